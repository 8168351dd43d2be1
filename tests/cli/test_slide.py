"""`softless slide`: several images, of which some are bad, and what is left of each."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import softless
from softless.cli.main import main
from softless.cli.slide import RESULT, SHEET, SUMMARY, slide
from softless.data.reading import read_image
from softless.errors import DataError, UsageError
from softless.slides.pictures import fitted
from softless.slides.pixels import Bytes, Scaled
from softless.slides.thumbnails import LOST, thumbnail
from tests.slides.test_reader import SIZE, pixels, spoil, write

MODEL = "sima_deit_tiny_patch16_224"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    torch.manual_seed(4)
    path = tmp_path / "weights"
    softless.save_weights(softless.create_model(MODEL, num_classes=1000), path)
    return path


def test_one_image(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(pixels((150, 170))).save(tmp_path / "image.png")
    assert (
        main([
            "slide",
            MODEL,
            str(tmp_path / "image.png"),
            "--out",
            str(tmp_path / "out"),
            "--quiet",
        ])
        == 0
    )
    said = capsys.readouterr()
    assert "170 x 150 pixels, 111 tokens" in said.out
    assert "model with new weights" in said.err
    found = json.loads((tmp_path / "out" / "image.png" / RESULT).read_text())
    torch.manual_seed(0)
    wanted = softless.stream(softless.create_model(MODEL).eval(), pixels((150, 170)))
    assert np.allclose(found["logits"], wanted.logits[0].tolist(), rtol=1e-5, atol=1e-6)
    assert sum(found["classes"].values()) == pytest.approx(1)
    assert list(found["classes"].values()) == sorted(found["classes"].values(), reverse=True)
    assert (found["size"], found["grid"], found["unreadable"]) == ([150, 170], [10, 11], [])
    sheet = read_image(tmp_path / "out" / "image.png" / SHEET)
    assert sheet.width < 1700
    assert sheet.height < 700


def test_of_three_slides_one_is_bad(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The others finish, the table says which, and the exit code is 4."""
    good = write(tmp_path / "good.tif", pixels())
    (tmp_path / "bad.svs").write_bytes(b"no slide")
    spoilt = spoil(good, [9])
    words = [
        "slide",
        MODEL,
        str(good),
        "--out",
        str(tmp_path / "out"),
        str(tmp_path / "bad.svs"),
        str(spoilt),
        "--dtype",
        "bfloat16",
    ]
    assert main(words) == 4
    said = capsys.readouterr().out
    assert "failed: " in said
    assert "1 tile could not be read" in said
    told = json.loads((tmp_path / "out" / SUMMARY).read_text())
    assert [("failed" in one, len(one.get("unreadable", []))) for one in told["images"]] == [
        (False, 0),
        (True, 0),
        (False, 1),
    ]
    assert told["images"][2]["unreadable"][0].keys() == {"level", "x", "y", "reason"}
    for name in ("good.tif", "spoilt.tif"):
        assert (tmp_path / "out" / name / SHEET).is_file()


def test_the_only_image_that_fails_is_the_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["slide", MODEL, str(tmp_path / "none.svs"), "--out", str(tmp_path / "out")]) == 2
    assert "no image at" in capsys.readouterr().err
    with pytest.raises(UsageError, match="name one image or more"):
        slide(MODEL)
    with pytest.raises(UsageError, match="cannot be streamed"):
        slide(
            "deit_tiny_patch16_224",
            str(write(tmp_path / "good.tif", pixels())),
            op="softmax",
            out=tmp_path / "out",
        )
    with pytest.raises(DataError, match="no image at"):
        slide(MODEL, str(tmp_path / "a.svs"), str(tmp_path / "b.svs"), out=tmp_path / "out")


def test_a_slide_of_which_nothing_can_be_read_has_no_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = spoil(write(tmp_path / "slide.tif", pixels((256, 256))), [0, 1, 2, 3])
    assert (
        main([
            "slide",
            MODEL,
            str(path),
            "--out",
            str(tmp_path / "out"),
            "--store",
            str(tmp_path / "store"),
        ])
        == 1
    )
    said = capsys.readouterr()
    assert "none of its 4 tiles that count can be read" in said.err
    assert "class" not in said.out
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "store" / path.name).exists()


def test_level_resolution_and_place_leave_with_the_answer(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", pixels((256, 384)), levels=2, mpp=0.25)
    assert (
        main(["slide", MODEL, str(path), "--out", str(tmp_path / "out"), "--mpp", "1", "--quiet"])
        == 0
    )
    found = json.loads((tmp_path / "out" / "slide.tif" / RESULT).read_text())
    wanted = {
        "size": [64, 96],
        "level": 1,
        "mpp": [1, 1],
        "scale": [4, 4],
        "origin": [0, 0],
        "bounds": None,
        "remarks": [],
    }
    assert {name: found[name] for name in wanted} == wanted


def test_channels_and_pages_are_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tifffile = pytest.importorskip("tifffile")
    five = np.random.default_rng(0).integers(0, 256, (96, 112, 5), dtype=np.uint8)
    path = tmp_path / "five.tif"
    tifffile.imwrite(
        path, np.moveaxis(five, -1, 0), photometric="minisblack", metadata=None, tile=(32, 48)
    )
    words = ["slide", MODEL, str(path), "--out", str(tmp_path / "out"), "--quiet"]
    assert main(words) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "5 grey pages of one size" in said
    assert "channels= chooses 1 or 3 of them, for example channels=0,1,2, page= one picture" in said
    assert main([*words, "--channels", "1,x"]) == 2
    assert "--channels 1,x: give 1 or 3 whole numbers" in " ".join(capsys.readouterr().err.split())
    assert main([*words, "--page", "5"]) == 2
    assert "it has no page 5: its pages are 0 to 4" in " ".join(capsys.readouterr().err.split())
    torch.manual_seed(0)
    model = softless.create_model(MODEL).eval()
    for options, pixels_of in (
        (["--channels", "4,0,2"], five[..., [4, 0, 2]]),
        (["--page", "3"], np.repeat(five[..., 3:4], 3, -1)),
    ):
        assert main([*words, *options]) == 0
        found = json.loads((tmp_path / "out" / "five.tif" / RESULT).read_text())
        assert np.allclose(
            found["logits"],
            softless.stream(model, pixels_of).logits[0].tolist(),
            rtol=1e-5,
            atol=5e-6,
        )


def test_slide_mpp_fills_in_and_overrides_no_slide(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    says = write(tmp_path / "says.tif", pixels((256, 384)), mpp=0.25)
    silent = write(tmp_path / "silent.tif", pixels((256, 384)))
    words = [
        "slide",
        MODEL,
        str(says),
        str(silent),
        "--out",
        str(tmp_path / "out"),
        "--mpp",
        "2",
        "--slide-mpp",
        "1",
        "--quiet",
    ]
    assert main(words) == 4
    assert "says.tif says 0.25 micrometres per pixel" in " ".join(capsys.readouterr().out.split())
    told = json.loads((tmp_path / "out" / SUMMARY).read_text())["images"]
    assert ["failed" in one for one in told] == [True, False]
    assert told[1]["size"] == [128, 192]


def test_weights_and_a_store(tmp_path: Path, weights: Path) -> None:
    image = tmp_path / "image.png"
    Image.fromarray(pixels((150, 170))).save(image)
    given: dict[str, Any] = {
        "weights": weights,
        "store": tmp_path / "store",
        "pictures": False,
        "quiet": True,
    }
    first = slide(MODEL, str(image), out=tmp_path / "out", **given)
    again = slide(MODEL, str(image), str(image), out=tmp_path / "out", **given)
    assert first.exit_code == again.exit_code == 0
    assert [answer.classes for answer in again.answers] == [first.answers[0].classes] * 2
    assert {file.name for file in (tmp_path / "store").iterdir()} == {"image.png", "image.png-2"}
    assert not (tmp_path / "out" / "image.png" / SHEET).exists()
    torch.manual_seed(4)
    wanted = softless.stream(softless.create_model(MODEL).eval(), pixels((150, 170))).logits
    assert np.allclose(
        json.loads((tmp_path / "out" / "image.png" / RESULT).read_text())["logits"],
        wanted[0].tolist(),
        atol=1e-6,
    )


def test_a_thumbnail_is_the_image_scaled_down_and_grey_where_it_cannot_be_read(
    tmp_path: Path,
) -> None:
    path = write(tmp_path / "slide.tif", pixels(), levels=2)
    small = np.asarray(thumbnail(path, side=300))
    assert small.shape == (233, 300, 3)
    # the coarsest level with more pixels
    half = Scaled(Bytes(pixels()[::2, ::2]), (1.5, 1.5)).read(0, 0, 233, 300)
    assert np.abs(small.astype(int) - half).max() <= 1
    spoilt = np.asarray(thumbnail(spoil(write(tmp_path / "one.tif", pixels()), [9]), side=225))
    lost = (spoilt == LOST).all(-1)
    assert lost[36:60, 36:60].all()
    assert lost.sum() < 50 * 50


def test_maps_end_where_the_image_ends() -> None:
    found = softless.stream(softless.create_model(MODEL, depth=1).eval(), pixels((33, 40)))
    assert found.grid == (3, 3)
    assert found.saliency is not None
    whole = fitted(found.saliency, found, (40, 33))
    assert whole.query.shape == (1, 33, 40)
    assert whole.class_row is not None
    assert whole.class_row.shape == (1, 33, 40)
    assert SIZE == (700, 900)


def outputs(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def test_maps_leave_as_arrays_pictures_and_polygons(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "slide.tif", pixels((256, 384)), levels=2, mpp=0.25)
    words = ["slide", MODEL, str(path), "--out", str(tmp_path / "out"), "--level", "1", "--quiet"]
    assert main(words) == 0
    folder = tmp_path / "out" / "slide.tif"
    told = json.loads((folder / RESULT).read_text())
    assert outputs(folder) == sorted([RESULT, *told["files"]])
    assert told["files"] == [
        SHEET,
        "query.npy",
        "key.npy",
        "class_row.npy",
        "overlay.png",
        "saliency.geojson",
    ]
    assert "overlay.png, saliency.geojson" in capsys.readouterr().out
    features = json.loads((folder / "saliency.geojson").read_text())["features"]
    assert len(features) == told["tokens"] - 1 == 8 * 12
    assert features[-1]["geometry"]["coordinates"][0][2] == [384, 256]
    assert np.load(folder / "key.npy").shape == (8, 12)
    assert main([*words[:3], "--out", str(tmp_path / "bare"), "--no-pictures", "--quiet"]) == 0
    assert outputs(tmp_path / "bare" / "slide.tif") == [RESULT]


def test_masks_are_a_file_or_a_folder_with_one_for_each(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = (
        write(tmp_path / f"{name}.tif", pixels((256, 384), seed)) for seed, name in enumerate("ab")
    )
    mask = np.zeros((64, 96), dtype=np.uint8)
    mask[8:40, 12:60] = 255  # rows 2 to 10 and columns 3 to 15 of 16 x 24
    masks = tmp_path / "masks"
    masks.mkdir()
    Image.fromarray(mask).save(masks / "a.png")
    square = {
        "type": "Polygon",
        "coordinates": [[[48, 32], [240, 32], [240, 160], [48, 160], [48, 32]]],
    }
    (masks / "b.tif.geojson").write_text(json.dumps(square))
    words = [
        "slide",
        MODEL,
        str(first),
        str(second),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
        "--no-pictures",
    ]
    assert main([*words, "--mask", str(masks)]) == 0
    told = json.loads((tmp_path / "out" / SUMMARY).read_text())["images"]
    assert [one["tokens"] for one in told] == [1 + 8 * 12] * 2
    assert [Path(one["mask"]).name for one in told] == ["a.png", "b.tif.geojson"]
    capsys.readouterr()
    assert main([*words, "--mask", str(masks / "a.png")]) == 2
    assert "is one file, and there are several images" in " ".join(capsys.readouterr().err.split())
    (masks / "b.tif.geojson").unlink()
    (masks / "a.geojson").write_text(json.dumps(square))
    assert main([*words, "--mask", str(masks), "--out", str(tmp_path / "none")]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "holds a.geojson and a.png for a.tif" in said
    assert not (tmp_path / "none").exists()


def test_a_mask_of_another_shape_leaves_nothing_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "slide.tif", pixels((256, 384)))
    Image.fromarray(np.full((96, 64), 255, dtype=np.uint8)).save(tmp_path / "mask.png")
    words = [
        "slide",
        MODEL,
        str(path),
        "--out",
        str(tmp_path / "out"),
        "--mask",
        str(tmp_path / "mask.png"),
    ]
    assert main([*words, "--store", str(tmp_path / "store")]) == 2
    assert "is not the shape of the image (384 x 256 at level 0)" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (tmp_path / "out").exists()
    assert not (tmp_path / "store").exists()


def test_tissue_and_origin_are_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = np.full((256, 384, 3), 242, dtype=np.uint8)
    values[64:192, 96:288] = (176, 110, 168)
    path = write(tmp_path / "slide.tif", values, mpp=2.0)
    words = ["slide", MODEL, str(path), "--out", str(tmp_path / "out"), "--quiet"]
    assert main([*words, "--tissue", "otsu", "--origin", "qupath"]) == 0
    told = json.loads((tmp_path / "out" / "slide.tif" / RESULT).read_text())
    assert told["mask"] == "otsu"
    assert told["tokens"] == 1 + 8 * 12
    capsys.readouterr()
    assert main([*words, "--origin", "viewer"]) == 2
    assert "viewer" in capsys.readouterr().err
