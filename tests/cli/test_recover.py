"""`softless recover`: from a run or one's own weights to a folder with model, numbers and page; how
it goes on after a kill, and what it refuses.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

import softless
from softless.cli.main import main
from softless.errors import Interrupted
from softless.recovery.pictures import Framing, from_folder
from softless.tasks.loaded import load_run
from tests.exporting.trained import digits_run

OWN: dict[str, Any] = {"num_classes": 3, "in_chans": 1, "img_size": 48}
SIZES = ["--num-classes", "3", "--in-chans", "1", "--image-size", "48"]


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """Digits at 12 x 20 pixels, by softmax."""
    return digits_run(tmp_path_factory.mktemp("digits"), op="softmax", size=(12, 20))


@pytest.fixture(scope="module")
def digits(tmp_path_factory) -> Path:
    """Class folders of digits that the run was not trained on."""
    return written(tmp_path_factory.mktemp("images"), range(1200, 1797))


def written(root: Path, rows: range) -> Path:
    images, targets = load_digits(return_X_y=True)
    for row in rows:
        folder = root / str(targets[row])
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.round(images[row].reshape(8, 8) * 15.9).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{row}.png")
    return root


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> Path:
    """A checkpoint of three classes and one channel."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", **OWN)
    path = tmp_path_factory.mktemp("own") / "own.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """Noise of many sizes and shapes."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(20):
        image = Image.effect_noise((60 + number, 80), 30 + 8 * number)
        image.save(folder / f"{number}.png")
    return folder


def test_a_run_gets_its_accuracy_back(run, digits, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["recover", str(run), "sima", "--images", str(digits), "--out", str(out)]
    assert main([*words, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    kept = json.loads((out / "recover.json").read_text())
    steps = kept["steps"]
    assert printed["steps"] == steps
    assert steps["refit"]["teacher_top1"] > 0.75
    assert steps["refit"]["top1"] > 0.85 * steps["refit"]["teacher_top1"]
    assert steps["bare"]["top1"] < 0.9 * steps["refit"]["top1"]
    assert kept["exponentials"]["after"].get("softmax", 0) == 0
    assert kept["exponentials"]["before"]["softmax"] > 0
    assert kept["request"]["op"] == "sima"
    assert kept["about"]["commit"]
    assert "refit" in (out / "report.html").read_text(encoding="utf-8")
    assert sorted(path.name for path in out.iterdir()) == [
        "model",
        "recover.json",
        "refit",
        "report.html",
        "request.json",
    ]
    again: Any = softless.create_model(f"local-dir:{out / 'model'}", pretrained=True)
    assert {module.op.name for module in again.modules() if hasattr(module, "op")} == {"sima"}
    student = load_file(out / "refit/student.safetensors")
    assert all(torch.equal(student[name], value) for name, value in again.state_dict().items())


def test_images_are_framed_as_the_run_frames_them(run, digits):
    """Not as the `pretrained_cfg` of a module would have it: 12 x 20, one channel, own mean."""
    loaded = load_run(run)
    gathered = from_folder(digits, Framing.of(loaded), 16)
    chunk = gathered.fit[0]
    assert chunk.shape == (16, 1, 12, 20)
    samples, chosen = gathered.fit.samples, gathered.fit.chosen  # type: ignore[attr-defined]
    mine = torch.stack([loaded.transform(samples.image(row)) for row in chosen])
    assert torch.equal(chunk, mine)
    assert gathered.fit_labels is not None
    folders = [int(Path(samples.files[row]).parent.name) for row in chosen]
    assert gathered.fit_labels.tolist() == folders
    assert sorted(folders[:10]) == list(range(10)), "in turn from each class"


def test_ones_own_weights(own, photos, tmp_path, capsys):
    """Of 3 classes, one channel and 48 pixels; images without labels."""
    out = tmp_path / "out"
    words = ["recover", "test_vit", "relu_linear", "--weights", str(own), *SIZES]
    assert main([*words, "--images", str(photos), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert "6 attention modules now compute 'relu_linear'" in said
    assert "the share of the teacher's own answers on" in said
    kept = json.loads((out / "recover.json").read_text())
    assert kept["steps"]["refit"]["top1"] is None
    assert kept["steps"]["refit"]["kl"] <= kept["steps"]["bare"]["kl"] + 1e-6
    assert len(kept["swapped"]) == 6


def test_a_finished_folder_stays(run, digits, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["recover", str(run), "sima", "--images", str(digits), "--number", "16"]
    words += ["--out", str(out)]
    assert main(words) == 0
    before = (out / "recover.json").read_bytes()
    weights = (out / "model/model.safetensors").read_bytes()
    assert main(words) == 2
    assert "overwrite deletes it" in capsys.readouterr().err
    assert main([*words, "--set", "nonsense=1", "--overwrite"]) == 2
    assert (out / "recover.json").read_bytes() == before, "a wrong word deletes nothing"
    assert main([*words, "--resume"]) == 0
    assert (out / "model/model.safetensors").read_bytes() == weights
    assert main([*words, "--resume", "--seed", "1"]) == 2
    assert "seed was 0 and is 1" in capsys.readouterr().err
    assert main([*words, "--overwrite", "--seed", "1"]) == 0
    (out / "notes.txt").write_text("mine")
    assert main([*words, "--overwrite"]) == 2
    assert "notes.txt" in capsys.readouterr().err
    assert (out / "recover.json").is_file()


def test_a_folder_of_parts_keeps_its_test(run, tmp_path):
    """What a test will measure is not learned from."""
    root = tmp_path / "data"
    for part, rows in (
        ("train", range(1200, 1300)),
        ("val", range(1300, 1350)),
        ("test", range(1350, 1400)),
    ):
        written(root / part, rows)
    gathered = from_folder(root, Framing.of(load_run(run)), 256, learns=True)
    assert gathered.learned is not None
    assert gathered.held is not None
    assert (len(gathered.learned), len(gathered.held)) == (100, 50)
    assert gathered.apart


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["test_vit", "sima"], "has new weights, with nothing to recover"),
        (["test_vit", "sima", "--weights", "OWN"], "--num-classes"),
        (["test_vit", "sima", "--weights", "OWN", "--pretrained"], "choose one"),
        (["RUN", "sima", "--num-classes", "3"], "--num-classes goes with the name"),
        (["RUN", "sima", "--weights", "OWN"], "--weights goes with the name"),
        (["RUN", "nosuch"], "nosuch"),
        (["RUN", "sima", "--set", "epochs=3"], "epochs"),
        (["RUN", "sima", "--steps", "distil", "refit"], "in this order"),
        (["RUN", "sima", "--steps", "both"], "'both'"),
        (["RUN", "sima", "--number", "0"], "number=0"),
        (["RUN", "sima", "--ridge", "-1"], "ridge"),
        (["RUN", "softmax"], "its attention is softmax already"),
        (["RUN", "sima", "--images", "EMPTY"], "no images"),
        (["RUN", "sima", "--images", "FEW"], "at least 8"),
        (["RUN", "sima", "--images", "nowhere"], "nowhere"),
        (["EMPTY", "sima"], "holds no finished epoch"),
    ],
)
def test_what_it_refuses(words, message, run, own, digits, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    few = written(tmp_path / "few", range(5))
    places = {"RUN": run, "OWN": own, "EMPTY": tmp_path / "empty", "FEW": few}
    words = [str(places.get(word, word)) for word in words]
    out = tmp_path / "out"
    if "--images" not in words:
        words += ["--images", str(digits)]
    assert main(["recover", *words, "--out", str(out)]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert said.count("\n") == 1
    assert not (out / "recover.json").exists()


QUICK = ["--steps", "refit", "distil", "--epochs", "4", "--number", "32"]


@pytest.mark.slow
def test_killed_in_the_distillation_it_goes_on_to_the_same_bits(run, digits, tmp_path, capsys):
    words = ["recover", str(run), "sima", "--images", str(digits), *QUICK]
    assert main([*words, "--out", str(tmp_path / "whole")]) == 0
    out = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "-m", "softless", *words, "--out", str(out)], stderr=subprocess.DEVNULL
    )
    log = out / "distil/log.jsonl"
    waited(lambda: log.is_file() and len(log.read_text().splitlines()) >= 2, process)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (out / "recover.json").exists()
    stamp = (out / "refit/student.safetensors").stat().st_mtime_ns
    capsys.readouterr()
    assert main([*words, "--out", str(out)]) == 2
    assert "resume goes on with it" in capsys.readouterr().err
    assert main([*words, "--out", str(out), "--resume"]) == 0
    assert (out / "refit/student.safetensors").stat().st_mtime_ns == stamp, "not fitted again"
    first, second = (
        load_file(tmp_path / name / "model/model.safetensors") for name in ("whole", "killed")
    )
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    told = [
        json.loads((tmp_path / name / "recover.json").read_text())["steps"]
        for name in ("whole", "killed")
    ]
    assert told[0] == told[1]


def waited(ready: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 240
    while not ready():
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_damaged_refit_is_done_again(run, digits, tmp_path, capsys):
    words = ["recover", str(run), "sima", "--images", str(digits), "--number", "32"]
    out = tmp_path / "out"
    assert main([*words, "--out", str(out)]) == 0
    file = out / "refit/student.safetensors"
    whole = file.read_bytes()
    (out / "recover.json").unlink()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    capsys.readouterr()
    assert main([*words, "--out", str(out), "--resume"]) == 0
    assert "the refit is done again" in capsys.readouterr().err
    assert file.read_bytes() == whole


def test_a_published_folder_stands_in_the_place_of_a_run(digits, tmp_path, capsys):
    """Framed by its config.json, labelled by its classes; what comes out is evaluated likewise."""
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=10, in_chans=1, img_size=32).eval()
    names = [str(number) for number in range(10)]
    folder = tmp_path / "published"
    about = {"mean": (0.25,), "std": (0.7,), "input_size": (1, 32, 32), "crop_pct": 1.0}
    softless.save_weights(model, folder, data=about, classes=names)
    framing = Framing.of(load_run(folder))
    assert framing.classes == tuple(names)
    gathered = from_folder(digits, framing, 16)
    samples, chosen = gathered.fit.samples, gathered.fit.chosen  # type: ignore[attr-defined]
    pixels = np.asarray(samples.image(chosen[0]).resize((32, 32), Image.Resampling.BICUBIC))
    mine = (torch.from_numpy(pixels.copy()).float() / 255 - 0.25) / 0.7
    assert torch.allclose(gathered.fit[0][0, 0], mine, atol=1e-5)
    out = tmp_path / "out"
    words = ["recover", f"local-dir:{folder}", "relu_linear", "--images", str(digits)]
    assert main([*words, "--number", "32", "--layers", "blocks.0.*", "--out", str(out)]) == 0
    kept = json.loads((out / "recover.json").read_text())
    assert kept["steps"]["refit"]["teacher_top1"] is not None
    assert list(kept["swapped"]) == ["blocks.0.attn"]
    capsys.readouterr()
    assert main(["eval", str(out / "model"), str(digits), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["classes"] == names
    again: Any = softless.create_model(f"local-dir:{out / 'model'}", pretrained=True)
    student = load_file(out / "refit/student.safetensors")
    assert all(torch.equal(student[name], value) for name, value in again.state_dict().items())


def test_a_signal_says_how_to_go_on(run, digits, tmp_path, monkeypatch, capsys):
    def stopped(*_: Any, **__: Any) -> None:
        raise Interrupted("it is saved; continue with the same call and resume=True", 130)

    monkeypatch.setattr("softless.recovery.recover.recover", stopped)
    words = ["recover", str(run), "sima", "--images", str(digits), "--out", str(tmp_path / "out")]
    assert main(words) == 130
    assert "the same command and --resume" in capsys.readouterr().err


def test_classes_of_no_name_are_taken_in_order(own, tmp_path, caplog):
    """Where there are as many folders as outputs, and that is said."""
    for name in ("ant", "bee", "cat"):
        for number in range(4):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.effect_noise((50, 50), 40 + number).save(tmp_path / name / f"{number}.png")
    model = timm.create_model("test_vit", **OWN)
    gathered = from_folder(tmp_path, Framing.of(model), 6)
    assert gathered.fit_labels is not None
    assert sorted(gathered.fit_labels.tolist()) == [0, 0, 1, 1, 2, 2]
    assert "taken to be in the order" in caplog.text
    other = from_folder(tmp_path, Framing.of(model, ["dog", "elk", "fox"]), 6)
    assert other.fit_labels is None
    assert "none of the model's classes" in caplog.text
