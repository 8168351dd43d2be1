"""What cannot be exported, or not so: one sentence, exit code 2, no half file, no traceback."""

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

import softless
from softless.cli.main import main
from softless.errors import DataError, UsageError
from softless.exporting import checks
from softless.exporting.formats.table import FORMATS
from tests.data.making import split_folders

NAME = "sima_deit_tiny_patch16_224"
Words = Callable[[Path], list[str]]


def images(folder: Path, count: int, mode: str = "RGB") -> str:
    folder.mkdir()
    for number in range(count):
        Image.effect_noise((16, 16), 50 + number).convert(mode).save(folder / f"{number}.png")
    return str(folder)


def copied(trained: Path, **changed: object) -> str:
    """The run with other entries in best.json, beside its data."""
    run = shutil.copytree(trained / "run", trained / "copy", dirs_exist_ok=True)
    content = json.loads((run / "best.json").read_text())
    (run / "best.json").write_text(json.dumps(content | changed))
    return str(run)


def unfinished(world: Path) -> str:
    run = shutil.copytree(world / "run", world / "unfinished")
    (run / "best.json").unlink()
    return str(run)


def file(path: Path, content: bytes = b"x") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return str(path)


def split(folder: Path, *classes: str) -> str:
    split_folders(folder, {part: dict.fromkeys(classes, 2) for part in ("train", "test")})
    return str(folder)


def of_run(*words: str) -> Words:
    return lambda world: [f"{world}/run", *words]


CASES: dict[str, tuple[Words, str]] = {
    # as the specification lists them
    "unknown format": (of_run("--format", "onx"), "no format named 'onx'. Did you mean 'onnx'?"),
    "format of another part": (of_run("--format", "litert"), "no format named 'litert'"),
    "size off the grid": (of_run("--size", "15", "16"), "multiples of 4 pixels, for example"),
    "any size in eight bits": (
        of_run("--int8", "static", "--dynamic", "size"),
        "--int8 static measures its scales at one size: give --size",
    ),
    "eight bits without images": (
        lambda _: [NAME, "--int8", "static", "--size", "32"],
        "is measured on labelled test images, and there are none of",
    ),
    "too few to calibrate": (
        lambda world: [
            f"{world}/run",
            "--int8",
            "static",
            "--calibrate",
            images(world / "few", 5),
        ],
        "5 images to calibrate with, and 32 are the fewest",
    ),
    "weights that changed": (
        lambda world: [copied(world, weights_sha256="0" * 64)],
        "best.safetensors",
    ),
    "a file that is there": (
        lambda world: [f"{world}/run", "--out", str(Path(file(world / "o/model.onnx")).parent)],
        "holds model.onnx already: choose another --out, or --overwrite",
    ),
    "a failed file that is there": (
        lambda world: [
            f"{world}/run",
            "--out",
            str(Path(file(world / "f/model.onnx.failed")).parent),
        ],
        "holds model.onnx already",
    ),
    "an option of another part": (of_run("--require", "exp-free"), "has no option '--require'"),
    # and others
    "no such run": (lambda _: ["runs/nothing"], "no run folder at runs/nothing"),
    "no such model": (lambda _: ["sima_deit_tyni"], "no model named 'sima_deit_tyni'"),
    "a folder of something else": (
        lambda world: [f"{world}/data"],
        "not both there) and no published model (config.json)",
    ),
    "no finished epoch": (lambda world: [unfinished(world)], "holds no finished epoch"),
    "damaged best.json": (
        lambda world: [str(Path(file(Path(copied(world)) / "best.json", b"{")).parent)],
        "best.json is damaged",
    ),
    "best.json of no run": (
        lambda world: [copied(world, in_chans=-1)],
        "in_chans is -1 and should be",
    ),
    "an exported file": (
        lambda world: [file(world / "model.onnx")],
        "model.onnx",
    ),
    "out is a file": (
        lambda world: [f"{world}/run", "--out", file(world / "taken")],
        "is a file: choose a folder with --out",
    ),
    "a second format by place": (
        of_run("onnx", "pt2"),
        "several are given as --format onnx pt2; a folder of that name is --out ./pt2",
    ),
    "three sides": (of_run("--size", "16", "16", "3"), "give height and width in pixels"),
    "no side": (of_run("--size", "0", "16"), "give height and width in pixels, from 1 to"),
    "a side beyond reason": (of_run("--size", "1600000"), "from 1 to 16,384"),
    "a side in words": (of_run("--size", "small"), "--size"),
    "an old opset": (of_run("--opset", "7"), "opset=7: from 18 to 23 are written"),
    "an opset of no ONNX": (
        of_run("--format", "pt2", "--opset", "20"),
        "--opset is of onnx, and pt2 has none: leave it out",
    ),
    "another form": (of_run("--form", "npu"), "npu"),
    "an edge form of any size": (
        of_run("--form", "edge", "--dynamic", "size"),
        "--form edge makes constants of all that depends on the size",
    ),
    "other pixels": (of_run("--pixels", "float"), "float"),
    "another int8": (of_run("--int8", "integer"), "integer"),
    "eight bits of pt2": (
        of_run("--format", "pt2", "--int8", "static"),
        "pt2 has no --int8 static; formats that have: onnx",
    ),
    "images for nothing": (
        lambda world: [f"{world}/run", "--calibrate", images(world / "some", 33)],
        "--calibrate is of --int8 static",
    ),
    "no images to calibrate": (
        of_run("--int8", "static", "--calibrate", "nowhere"),
        "nowhere",
    ),
    "no test images": (of_run("--test", "nowhere"), "nowhere"),
    "test images of other classes": (
        lambda world: [f"{world}/run", "--test", split(world / "birds", "gull", "owl")],
        "gull",
    ),
    "test images of no run": (
        lambda world: [NAME, "--size", "32", "--test", f"{world}/data"],
        "--test measures a run on labelled images, and",
    ),
    "any size of a pyramid": (
        lambda _: ["soft_tiny_224", "--dynamic", "size"],
        "is a SOFT pyramid, whose windows lie on the grid of one size",
    ),
    "a word too many": (of_run("--overwrites"), "Did you mean '--overwrite'?"),
}


@pytest.fixture
def world(trained, tmp_path):
    shutil.copytree(trained / "run", tmp_path / "run")
    shutil.copytree(trained / "data", tmp_path / "data")
    return tmp_path


@pytest.mark.parametrize("case", CASES)
def test_one_sentence_and_no_file(case, world, monkeypatch, capfd):
    words, said = CASES[case]
    monkeypatch.chdir(world)
    asked = words(world)
    before = {path: path.stat().st_mtime_ns for path in world.rglob("*")}
    assert main(["export", *asked]) == 2
    lines = capfd.readouterr().err.splitlines()
    lines = [line for line in lines if "note:" not in line]
    assert len(lines) == 1, lines
    assert said in lines[0]
    assert len(lines[0]) < 600
    assert {path: path.stat().st_mtime_ns for path in world.rglob("*")} == before


@pytest.mark.parametrize("name", [name for name, record in FORMATS.items() if record.writes_with])
def test_what_is_not_installed_is_named_with_its_command(name, world, monkeypatch, capsys):
    monkeypatch.setattr("softless.errors._installed", lambda _: False)
    assert main(["export", f"{world}/run", "--format", name, "--out", f"{world}/out"]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("which", "not installed: pip install"))
    assert not (world / "out").exists()


@pytest.mark.parametrize("name", [name for name, record in FORMATS.items() if not record.dynamic])
def test_a_format_of_one_size_says_so(name, world, monkeypatch, capsys):
    monkeypatch.setattr("softless.errors._installed", lambda _: True)
    words = ["--format", name, "--dynamic", "size", "--out", f"{world}/out"]
    assert main(["export", f"{world}/run", *words]) == 2
    assert "write one file for each --size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (softless.optimize, "inference copy of softless.optimize"),
        (lambda model: model.half(), "export float32"),
        (lambda model: model.to("meta"), "export a model on the processor"),
    ],
)
def test_modules_that_are_not_exported(change, said, tmp_path):
    model = softless.create_model(NAME, depth=1, embed_dim=32, num_heads=2).eval()
    with pytest.raises(UsageError, match=said):
        softless.export(change(model), "pt2", tmp_path / "out", size=32)
    assert not (tmp_path / "out").exists()


def test_formats_in_python(world):
    with pytest.raises(UsageError, match="no format is named"):
        softless.export(world / "run", [], world / "out")


def failing(monkeypatch, error: BaseException) -> None:
    """ONNX whose tool stops half-way."""

    def write(graph, path, opset):
        path.write_bytes(b"half")
        raise error

    real = checks.format_named
    monkeypatch.setattr(
        checks,
        "format_named",
        lambda name: replace(FORMATS["onnx"], write=write) if name == "onnx" else real(name),
    )


def test_a_tool_that_fails_says_its_last_sentence_and_all_of_it_is_kept(world, monkeypatch, capfd):
    graph = "\n".join(f"%{number} = call(x)" for number in range(3000))
    failing(monkeypatch, RuntimeError(f"{graph}\n\nOperator Foo is not supported.\n\n"))
    assert main(["export", f"{world}/run", "--out", f"{world}/out"]) == 2
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1
    assert "onnx failed: Operator Foo is not supported." in said[0]
    assert said[0].endswith(f"all that it said is in {world}/out/export.log")
    assert [path.name for path in (world / "out").iterdir()] == ["export.log"]
    assert "%2999 = call(x)" in (world / "out" / "export.log").read_text()


def test_files_that_were_whole_before_a_tool_failed_stay_and_are_noted(world, monkeypatch, capfd):
    failing(monkeypatch, RuntimeError("no"))
    words = ["--format", "pt2", "onnx", "--out", f"{world}/out"]
    assert main(["export", f"{world}/run", *words]) == 2
    assert sorted(path.name for path in (world / "out").iterdir()) == ["export.log", "model.pt2"]
    assert json.loads((world / "run" / "exports.jsonl").read_text())["file"] == "model.pt2"


@pytest.mark.parametrize("ending", [KeyboardInterrupt(), SystemExit(3), MemoryError()])
def test_whatever_ends_it_leaves_no_half_file(ending, world, monkeypatch):
    failing(monkeypatch, ending)
    with pytest.raises((type(ending), UsageError)):
        softless.export(world / "run", "onnx", world / "out")
    left = list((world / "out").iterdir()) if (world / "out").exists() else []
    assert [path.name for path in left if path.name != "export.log"] == []


def test_ctrl_c_leaves_no_half_file(world):
    """A real signal, while the tool works."""
    code = "import sys; from softless_command import main; sys.exit(main())"
    command = [sys.executable, "-c", code, "export", f"{world}/run", "--out", f"{world}/out"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not list(world.glob("out/.export-*")) and process.poll() is None:
        assert time.monotonic() < until
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=120)
    assert "Traceback" not in said
    if process.returncode == 0:  # the tool swallowed the signal: the file is whole
        assert [path.name for path in (world / "out").iterdir()] == ["model.onnx"]
        return
    assert process.returncode == 130, said
    assert said.splitlines()[-1] == "softless: interrupted"
    assert not (world / "out").exists() or not [*(world / "out").iterdir()]
    assert not (world / "run" / "exports.jsonl").exists()


def test_json_says_errors_too(world, capsys):
    assert main(["export", f"{world}/run", "--format", "onx", "--json"]) == 2
    content = json.loads(capsys.readouterr().out)
    assert content["exit_code"] == 2
    assert "onx" in content["message"]


def test_calibration_images_that_cannot_be_read(world):
    images(world / "pictures", 40)
    for path in (world / "pictures").iterdir():
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(DataError, match="pictures"):
        softless.export(
            world / "run", "onnx", world / "out", int8="static", calibrate=world / "pictures"
        )
    assert not (world / "out").exists()


def test_torch_that_runs_out_of_what_it_needs_is_no_traceback(world, monkeypatch, capfd):
    """What torch raises while it records is the tool's failure as well."""

    def fail(*_, **__):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("torch.export.export", fail)
    assert main(["export", f"{world}/run", "--format", "pt2", "--out", f"{world}/out"]) == 2
    assert "CUDA out of memory" in capfd.readouterr().err
