"""A run's own files are read like weights: what was damaged or made to harm is one sentence, at
once, and within the memory of the model.
"""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import softless
from softless.cli.main import main
from softless.errors import DataError, UsageError
from softless.experiment.files import read_best
from softless.models.records import sealed
from softless.report.runs import read_run
from softless.tasks.loaded import load_run
from softless.training import fit
from tests.edits import edit
from tests.training.conftest import tiny_recipe, write_npz

ROOT = Path(__file__).resolve().parents[2]
FILES = ("best.json", "recipe.json", "result.json", "classes.json", "log.jsonl", "state.json")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("finished")
    recipe = tiny_recipe(write_npz(root / "images.npz"))
    fit(
        replace(recipe, schedule=replace(recipe.schedule, epochs=2)),
        root / "run",
        device="cpu",
        progress=False,
    )
    (root / "images").mkdir()
    for number in range(2):
        Image.effect_noise((16, 16), 60 + number).save(root / "images" / f"{number}.png")
    return root


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    shutil.copytree(finished / "run", tmp_path / "run")
    return tmp_path / "run"


def answers(run: Path, finished: Path, out: Path) -> str:
    assert (
        main([
            "predict",
            str(run),
            str(finished / "images"),
            str(out),
            "--no-overlays",
            "--device",
            "cpu",
        ])
        == 0
    )
    return (out / "predictions.csv").read_text()


@pytest.mark.bar("C4", "one bit flipped in best.json: refused, or the answers are the same")
@pytest.mark.parametrize(
    "count", [pytest.param(60, id="60"), pytest.param(300, id="300", marks=pytest.mark.soak)]
)
def test_a_flipped_bit_in_best_json_changes_no_answer(
    run: Path, count: int, record_property: Callable[[str, object], None]
):
    whole, rng = (run / "best.json").read_bytes(), random.Random(count)
    before = load_run(run)
    for done in range(count):
        record_property("cases", (done, count))
        bad = bytearray(whole)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        (run / "best.json").write_bytes(bad)
        try:
            again = load_run(run)
        except UsageError as error:
            assert "best.json" in str(error)  # noqa: PT017 - whether it is raised is open
            continue
        known = {name: value for name, value in again.best.items() if name in before.best}
        assert known == {name: before.best[name] for name in known}
        assert again.classes == before.classes
    record_property("cases", (count, count))


def rewrite(file: Path, change: Callable[[dict[str, Any]], Any], *, seal: bool = False) -> None:
    """Change a file as its writer would have; a digest that is there fits, or is left out as older
    runs did.
    """
    content = json.loads(file.read_text())
    content.pop("sha256", None)
    content = change(content) or content
    file.write_text(json.dumps(sealed(content) if seal else content))


BESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "depth of a million": lambda best: best["model_args"].update(depth=10**6),
    "depth of 10^9": lambda best: best["model_args"].update(depth=10**9),
    "ten million classes": lambda best: best["model_args"].update(num_classes=10**6),
    "a giant": lambda best: best.update(
        architecture="vit_giant_patch14_224", model_args={"op": "sima"}
    ),
    "a huge width": lambda best: best["model_args"].update(embed_dim=10**6),
    "a huge image": lambda best: best["model_args"].update(img_size=2**20),
    "image_size": lambda best: best.update(image_size=10**6),
    "crop_pct": lambda best: best.update(crop_pct=1e-9),
    "crop_pct text": lambda best: best.update(crop_pct="1"),
    "interpolation": lambda best: best.update(interpolation="worst"),
    "mean": lambda best: best.update(mean=["0.5"]),
    "mean NaN": lambda best: best.update(mean=[float("nan")]),
    "means": lambda best: best.update(mean=[0.5, 0.5]),
    "std zero": lambda best: best.update(std=[0]),
    "classes": lambda best: best.update(classes=[1, 2, 3]),
    "no classes": lambda best: best.pop("classes") and None,
    "task": lambda best: best.update(task=["classification"]),
    "in_chans": lambda best: best.update(in_chans=-1),
    "an argument that is none": lambda best: best["model_args"].update(cls_attn_layers=10**6),
    "a word for a number": lambda best: best["model_args"].update(depth="many"),
    "no heads": lambda best: best["model_args"].update(num_heads=0),
    "negative": lambda best: best["model_args"].update(depth=-3),
    "a path": lambda best: best.update(architecture="local-dir:/etc"),
    "another op": lambda best: best["model_args"].update(op="nothing"),
    "args list": lambda best: best.update(model_args=[]),
    "pixels": lambda best: best.update(pixels=[16]),
}


@pytest.mark.bar("C12", "best.json of somebody else, by kind: one sentence, at once")
@pytest.mark.parametrize("seal", [False, pytest.param(True, marks=pytest.mark.soak)])
@pytest.mark.parametrize("kind", BESTS)
def test_a_hostile_best_json_is_refused(run: Path, kind: str, seal: bool):
    rewrite(run / "best.json", BESTS[kind], seal=seal)
    with pytest.raises(UsageError) as raised:
        load_run(run)
    assert "\n" not in str(raised.value)


LIMITED = """
import resource, sys
import softless, torch
from softless.errors import SoftlessError
from softless.tasks.loaded import load_run
create = lambda: softless.create_model("local-dir:" + sys.argv[2], pretrained=True)
load = (lambda: load_run(sys.argv[2])) if sys.argv[1] == "run" else create
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    load()
    print("loaded")
except SoftlessError as error:
    print(type(error).__name__, error)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def within(kind: str, folder: Path) -> tuple[str, int]:
    """What is said of a folder, and the MB that it took."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, kind, str(folder)],
        env=env,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    said, megabytes = done.stdout.splitlines()
    return said, int(megabytes)


@pytest.mark.bar(
    "C5", "a run or a folder that describes a giant beside tiny weights: refused within 200 MB"
)
@pytest.mark.parametrize("kind", ["a giant", "depth of a million"])
def test_a_giant_beside_tiny_weights_takes_no_memory(run: Path, kind: str):
    rewrite(run / "best.json", BESTS[kind])
    said, megabytes = within("run", run)
    assert said.startswith("DataError")
    assert "describes a model of" in said
    assert megabytes <= 200


@pytest.mark.bar(
    "C5", "a run or a folder that describes a giant beside tiny weights: refused within 200 MB"
)
@pytest.mark.parametrize("change", ["architecture", "depth"])
def test_a_published_folder_too(tmp_path: Path, change: str):
    model = softless.create_model(
        "sima_deit_tiny_patch16_224", img_size=32, embed_dim=32, depth=1, num_heads=2, num_classes=2
    )
    softless.save_weights(model, tmp_path / "model")
    (tmp_path / "model" / "digests.json").unlink()
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    if change == "depth":
        config["model_args"]["depth"] = 10**6
    else:
        config |= {"architecture": "vit_giant_patch14_224", "model_args": {}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    said, megabytes = within("folder", tmp_path / "model")
    assert said.startswith("DataError")
    assert "describes a model of" in said
    assert megabytes <= 200


BROKEN: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"name": "ti',
    "NUL": bytes(200),
    "a list": b"[1, 2]",
    "a number": b"7",
    "null": b"null",
    "not UTF-8": b'{"name": "\xff"}',
    "nested": b"[" * 100_000,
    "nested tables": b'{"a":' * 900 + b"1" + b"}" * 900,
    "deep in an entry": json.dumps({"name": "x"}).encode()[:-1]
    + b', "model": '
    + b"[" * 60
    + b"]" * 60
    + b"}",
    "a huge number": b'{"name": 1' + b"0" * 5000 + b"}",
    "all types": b'{"name": 1, "val": 2, "epochs": "x", "architecture": null, "model": [], '
    b'"data": 5}',
}

QUICK = {"empty", "nested", "all types"}  # in `make test`


def verbs(run: Path, finished: Path) -> list[list[str]]:
    run_, images = str(run), str(finished / "images")
    return [
        ["predict", run_, images, str(run.parent / "out"), "--no-overlays", "--device", "cpu"],
        ["eval", run_, "--device", "cpu"],
        ["train", "--resume", "--out", run_, "--device", "cpu"],
        ["runs", str(run.parent)],
    ]


@pytest.mark.bar(
    "C12",
    "a damaged file of a run under predict, eval, train --resume and runs: one sentence or none, "
    "no traceback",
)
@pytest.mark.parametrize(
    "kind",
    [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.soak) for kind in BROKEN],
)
@pytest.mark.parametrize(
    "name", ["best.json", "recipe.json", "result.json", "log.jsonl", "classes.json"]
)
def test_a_damaged_file_of_a_run(
    run: Path, finished: Path, name: str, kind: str, capsys: pytest.CaptureFixture[str]
):
    ending = b"\n" if name == "log.jsonl" else b""
    (run / name).write_bytes(BROKEN[kind] + ending)
    capsys.readouterr()
    codes = {words[0]: main(words) for words in verbs(run, finished)}
    said = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("softless: ") and "note:" not in line
    ]
    assert codes["runs"] == 0
    assert sum(code == 2 for code in codes.values()) == len(said) >= 1
    assert all(name in line for line in said), said


def test_the_log_is_read_before_training_goes_on(
    run: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
):
    (run / "result.json").unlink()
    lines = (run / "log.jsonl").read_text().splitlines()
    monkeypatch.setattr("softless.training.loop.train_epoch", lambda *_: pytest.fail("it trained"))
    for bad in ("7", "[]", '{"val": 3}', '{"val": {"top1": "good"}}', lines[0][:20]):
        (run / "log.jsonl").write_text("\n".join([bad, *lines[1:]]) + "\n")
        with pytest.raises(UsageError, match=r"cannot resume .*log\.jsonl"):
            fit(None, run, resume=True, device="cpu", progress=False)


def test_a_finished_run_without_an_epoch_in_its_log_is_one_sentence(run: Path):
    (run / "log.jsonl").write_text("")
    with pytest.raises(DataError, match=r"log\.jsonl is damaged: it holds no epoch"):
        read_run(run)


def test_what_is_no_file_does_not_hang(run: Path):
    (run / "best.json").unlink()
    os.mkfifo(run / "best.json")
    with pytest.raises(UsageError):
        load_run(run)
    (run / "log.jsonl").unlink()
    os.mkfifo(run / "log.jsonl")
    with pytest.raises(UsageError):
        read_run(run)


def test_runs_lists_the_others(run: Path, capsys: pytest.CaptureFixture[str]):
    shutil.copytree(run, run.parent / "second")
    (run / "log.jsonl").write_text("7\n")
    assert main(["runs", str(run.parent)]) == 0
    said = capsys.readouterr().out
    assert "damaged" in said
    assert "finished" in said
    assert "line 1 of" in said


def test_best_json_of_an_older_run_is_read(run: Path):
    rewrite(run / "best.json", lambda _: None)
    assert "sha256" not in json.loads((run / "best.json").read_text())
    load_run(run)
    rewrite(run / "best.json", lambda best: best.update(mean=[0.25]), seal=True)
    assert load_run(run).best["mean"] == [0.25]
    content = json.loads((run / "best.json").read_text())
    (run / "best.json").write_text(json.dumps({**content, "mean": [0.26]}))
    with pytest.raises(UsageError, match="it is not what was written"):
        read_best(run / "best.json")


def edits(rng: random.Random, whole: bytes) -> bytes:
    """A random edit: bytes, lines, or a value of the JSON in it replaced."""
    kind = rng.randrange(6)
    if kind == 0:
        at, bad = rng.randrange(len(whole)), bytearray(whole)
        bad[at] = rng.randrange(256)
        return bytes(bad)
    if kind == 1:
        return whole[: rng.randrange(len(whole))]
    if kind == 2:
        at = rng.randrange(len(whole))
        return whole[:at] + rng.randbytes(rng.randrange(1, 20)) + whole[at:]
    if kind == 3:
        at = rng.randrange(len(whole))
        return whole[:at] + whole[at + rng.randrange(1, 30) :]
    lines = whole.decode().split("\n") if whole.count(b"\n{") else [whole.decode()]
    place = rng.randrange(max(len(lines) - 1, 1))
    content = json.loads(lines[place])
    edit(rng, content, VALUES)
    lines[place] = json.dumps(content)
    return "\n".join(lines).encode()


VALUES: tuple[Any, ...] = (
    None,
    True,
    0,
    -1,
    7,
    10**7,
    10**30,
    1.5,
    float("nan"),
    float("inf"),
    "",
    "text",
    "\0",
    [],
    {},
    [1, 2],
    {"a": 1},
    [[[]]],
)


@pytest.mark.bar("C12", "a file of a run edited at random: no traceback, no hang, no other answer")
@pytest.mark.parametrize(
    "count", [pytest.param(40, id="40"), pytest.param(500, id="500", marks=pytest.mark.soak)]
)
def test_files_edited_at_random(
    run: Path,
    finished: Path,
    count: int,
    record_property: Callable[[str, object], None],
    capsys: pytest.CaptureFixture[str],
):
    rng = random.Random(count)
    wanted = answers(run, finished, run.parent / "whole")
    for done in range(count):
        record_property("cases", (done, count))
        name = rng.choice(FILES)
        again = run.parent / "again"
        shutil.rmtree(again, ignore_errors=True)
        shutil.copytree(run, again)
        (again / name).write_bytes(edits(rng, (run / name).read_bytes()))
        words = rng.choice(verbs(again, finished))
        shutil.rmtree(run.parent / "out", ignore_errors=True)
        assert main(words) in {0, 2}
        told = run.parent / "out" / "predictions.csv"
        assert not told.exists() or told.read_text() == wanted or name == "best.json"
        if told.exists() and name == "best.json":
            assert "sha256" not in json.loads((again / name).read_text()), (
                "an edit under the digest"
            )
    record_property("cases", (count, count))
