"""`softless bench latency`: models timed in turns, by name or by the folder of a run."""

import pytest
import torch
from torch import nn

from softless.cli.bench import bench
from softless.compare import latency as module
from softless.compare.latency import latency
from softless.errors import DataError, UsageError
from softless.origin import command

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
