"""`softless explain`: files in, pictures out."""

import logging

import numpy as np
import pytest
from PIL import Image

from softless.cli.explain import explain
from softless.cli.main import main
from softless.errors import DataError, UsageError

MODEL = "sima_deit_tiny_patch16_224"


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("b.png", "a.png", "deep/c.jpg"):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), dtype=np.uint8)).save(path)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


@pytest.fixture
def notices():
    """What the package said, whether or not the command line's own handler took it away."""
    said: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record):
            said.append(record.getMessage())

    handler, log = Keep(), logging.getLogger("softless")
    log.addHandler(handler)
    level = log.level
    log.setLevel(logging.INFO)
    yield said
    log.removeHandler(handler)
    log.setLevel(level)


def test_a_picture_per_image(folder, tmp_path, notices):
    drawn = explain(MODEL, folder, out=tmp_path / "out", device="cpu")
    assert [file.relative_to(tmp_path / "out").as_posix() for file in drawn.files] == [
        "a.png",
        "b.png",
        "deep/c.png",
    ]
    with Image.open(drawn.files[0]) as sheet:
        assert sheet.width > 4 * 300  # four panels: this model has a class token
    assert drawn.caption == "sima, attention layer 12 of 12"
    assert any("new weights" in said for said in notices)
    assert any("1 files are not images" in said for said in notices)


def test_one_image_and_a_layer(folder, tmp_path, capsys):
    assert (
        main([
            "explain",
            MODEL,
            str(folder / "a.png"),
            "--out",
            str(tmp_path / "out"),
            "--layer",
            "0",
            "--device",
            "cpu",
        ])
        == 0
    )
    assert "layer 1 of 12" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("model", "images", "message"),
    [
        ("no/such/run", "images", "no run folder at no/such/run"),
        ("sima_diet_tiny_patch16_224", "images", "sima_deit_tiny_patch16_224"),
        (MODEL, "nowhere", "no images at"),
        (MODEL, "images/notes", "no images in"),
    ],
)
def test_misuse(model, images, message, folder, tmp_path):
    (folder / "notes").mkdir()
    with pytest.raises(UsageError, match=message):
        explain(model, tmp_path / images, out=tmp_path / "out", device="cpu")


def test_an_unreadable_image_is_named(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(DataError, match=r"broken\.png"):
        explain(MODEL, tmp_path / "broken.png", out=tmp_path / "out", device="cpu")


def test_a_second_call_draws_none_of_its_own_pictures(folder, tmp_path, notices):
    for _ in range(2):
        drawn = explain(MODEL, folder, out=folder / "out", device="cpu")
        assert len(drawn.files) == 3
    assert any("3 images in" in said and "folder for the results" in said for said in notices)
    explain(MODEL, folder / "deep", out=folder / "out", device="cpu")
    assert [path.name for path in (folder / "out").rglob("*.png")] == ["c.png"]
    with pytest.raises(UsageError, match="would be overwritten"):
        explain(MODEL, folder / "a.png", out=folder, device="cpu")
    before = {path: path.read_bytes() for path in folder.rglob("*.*")}
    assert all(path.read_bytes() == held for path, held in before.items())
