"""`softless bench latency`: models timed in turns, by name or by the folder of a run."""

import tempfile

import pytest
import torch
from torch import nn

import softless
from softless.cli.bench import bench
from softless.compare import latency as module
from softless.compare.latency import latency
from softless.compare.runtimes import every_runtime
from softless.errors import DataError, UsageError
from softless.experiment.groups import DataSpec
from softless.origin import command
from tests.evaluation.runs import run_folder

TINY = "sima_deit_tiny_patch16_224"


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, tuple[int, ...], bool]]:
    """Every forward pass: whose, of what shape, in evaluation or not."""
    passes: list[tuple[str, tuple[int, ...], bool]] = []

    class Model(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            passes.append((self.name, tuple(images.shape), self.training))
            return images

    monkeypatch.setattr(
        module, "model_and_size", lambda name, _op, _act, size: (Model(name), size or (1, 28, 20))
    )
    return passes


def test_models_take_turns_at_their_own_size_in_evaluation(seen):
    timed = latency("a", "b", batch=4, rounds=2, device="cpu")
    assert {entry[1:] for entry in seen} == {((4, 1, 28, 20), False)}
    names = [name for name, *_ in seen]
    assert len(names) == 2 * (3 + 2), "three rounds to warm up, and two that count"
    assert names[-4:] == ["a", "b", "b", "a"], "another one begins each round"
    assert [row.model for row in timed.rows] == ["a", "b"]
    first = timed.rows[0]
    assert (first.height, first.width, first.relative.median) == (28, 20, 1.0)
    assert first.images_per_second.median == pytest.approx(
        4000 / first.milliseconds.median, rel=0.5
    )
    assert timed.to_dict()["rows"][0]["relative"] == 1.0
    assert "4 images at once" in str(timed)


def test_a_size_that_is_asked_for(seen):
    assert (
        latency("a", input_size=48, rounds=1, device="cpu", runtimes=["eager"]).rows[0].height == 48
    )
    assert {shape for _, shape, _ in seen} == {(1, 3, 48, 48)}


def test_real_models_and_threads():
    before = torch.get_num_threads()
    timed = bench(
        "latency", TINY, input_size=32, rounds=1, threads=2, device="cpu", runtimes=["eager"]
    )
    assert (timed.threads, torch.get_num_threads()) == (2, before)


@pytest.mark.parametrize(
    ("models", "options", "message"),
    [
        ((), {}, "name some"),
        ((TINY, TINY), {}, "named twice"),
        ((TINY,), {"batch": 0}, "batch=0: at least one"),
        ((TINY,), {"rounds": 0}, "rounds=0: at least one"),
        (("sima_deit_tyni",), {}, "no model named 'sima_deit_tyni'"),
        ((TINY,), {"input_size": 40}, "16"),
    ],
)
def test_misuse(models, options, message):
    with pytest.raises(UsageError, match=message):
        latency(*models, device="cpu", **options)


def test_a_folder_that_is_no_run(tmp_path):
    with pytest.raises(DataError, match="no finished epoch"):
        latency(str(tmp_path), device="cpu")


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["/somewhere/bin/softless", "bench", "runs"], "softless bench runs"),
        (["/somewhere/lab/__main__.py", "speed", "--record"], "python -m lab speed --record"),
        (["/somewhere/other.py", "speed"], "called in Python"),
    ],
)
def test_the_command_that_is_recorded(words, expected, monkeypatch):
    monkeypatch.setattr("sys.argv", words)
    assert command() == expected


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run's folder, whose model takes milliseconds."""
    folder = tmp_path_factory.mktemp("latency")
    data = DataSpec(source="folder", path=str(folder / "data"), image_size=16)
    return run_folder(folder / "run", ("cat", "dog"), data)


def test_a_model_alone_is_timed_in_every_runtime_that_is_here(small, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    timed = latency(str(small), rounds=2, device="cpu")
    names = [row.runtime for row in timed.rows]
    assert names[:2] == ["eager", "optimized"]
    assert {"pt2", "onnx"} <= set(names)
    assert {(row.height, row.width) for row in timed.rows} == {(16, 16)}
    assert timed.rows[0].relative.median == 1.0
    absent = [name for name in every_runtime() if name not in names]
    assert all(any(f" in {name} is not timed: " in note for note in timed.notes) for name in absent)
    assert list(tmp_path.iterdir()) == [], "the files are gone"
    assert not (small / "exports.jsonl").exists()


def test_sizes_and_batches_reach_each_runtime(small):
    timed = latency(
        str(small), size=[16, 24], batch=3, rounds=1, device="cpu", runtimes=["onnx", "eager"]
    )
    assert [(row.runtime, row.height, row.width) for row in timed.rows] == [
        ("onnx", 16, 24),
        ("eager", 16, 24),
    ]
    row = timed.rows[0]
    assert row.images_per_second.median == pytest.approx(3000 / row.milliseconds.median, rel=1e-6)


def test_files_stand_beside_models(small, tmp_path):
    report = softless.export(small, "onnx", tmp_path, size=16)
    timed = latency(str(report.path), str(small), rounds=1, device="cpu")
    assert [(row.model, row.runtime) for row in timed.rows] == [
        (str(report.path), "onnx"),
        (str(small), "eager"),
    ]
    with pytest.raises(UsageError, match="exported for 16 x 16"):
        latency(str(report.path), size=[32], rounds=1, device="cpu")
    with pytest.raises(DataError, match="no file"):
        latency(str(tmp_path / "none.onnx"), device="cpu")


def test_a_runtime_that_cannot_is_said_and_the_others_are_timed(small, monkeypatch):
    monkeypatch.setattr("softless.errors._installed", lambda name: name != "onnxruntime")
    timed = latency(str(small), rounds=1, device="cpu", runtimes=["eager", "onnx"])
    assert [row.runtime for row in timed.rows] == ["eager"]
    assert "in onnx is not timed: this needs onnxruntime, which is not installed" in str(timed)
    with pytest.raises(UsageError, match=r"nothing to time: .*onnxruntime"):
        latency(str(small), rounds=1, device="cpu", runtimes=["onnx"])
    with pytest.raises(UsageError, match=r"no runtime named 'onx'\. Did you mean 'onnx'"):
        latency(str(small), device="cpu", runtimes=["onx"])
    with pytest.raises(UsageError, match="say the same"):
        latency(str(small), device="cpu", size=[16], input_size=16)
