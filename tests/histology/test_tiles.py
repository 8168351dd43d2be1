"""`softless tiles`: features as a model gives them, files that other tools read, slides that fail,
and what a second call keeps.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import softless
from softless.cli.main import main
from softless.errors import DataError, UsageError
from softless.evaluation.features import as_it_is, output
from softless.histology import extract
from softless.histology.encoder import encoder_of
from softless.histology.tiling import Cut, tiling_of
from softless.slides.masks import mask_of
from softless.slides.pixels import Bytes
from softless.slides.thumbnails import thumbnail
from tests.histology.encoders import saved, small
from tests.slides.test_reader import TILE, pixels, spoil, write
from tests.slides.test_tissue import glass, slide

h5py = pytest.importorskip("h5py")
shapely = pytest.importorskip("shapely")
pytest.importorskip("tifffile")
openslide = pytest.importorskip("openslide")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("encoder") / "small")


def normal(values: np.ndarray, model: Any) -> torch.Tensor:
    mean, std = (
        torch.tensor(model.pretrained_cfg[name])[:, None, None] for name in ("mean", "std")
    )
    return (torch.from_numpy(values).permute(2, 0, 1) / 255 - mean) / std


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "tiles.csv").read_text().splitlines()))


def bag(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    with h5py.File(path) as file:
        return file["features"][:], file["coords"][:], dict(file["coords"].attrs)


def test_features_are_what_the_head_would_be_given(encoder: Path, tmp_path: Path) -> None:
    values = pixels((150, 170))
    path = write(tmp_path / "slide.tif", values, mpp=0.5)
    made = softless.tiles(
        str(path), encoder=str(encoder), out=tmp_path / "out", tile=48, quiet=True
    )
    features, coords, told = bag(tmp_path / "out" / "features" / "slide.h5")
    assert made.exit_code == 0
    assert features.dtype == np.float32
    assert coords.dtype == np.int64
    model = small()
    for row, (x, y) in zip(features, coords.tolist(), strict=True):
        tile = torch.zeros(3, 48, 48)  # the mean colour beyond the image
        part = normal(values[y : y + 48, x : x + 48], model)
        tile[:, : part.shape[1], : part.shape[2]] = part
        with torch.no_grad():
            assert np.allclose(row, output(model, tile[None])[0].numpy(), atol=1e-5)
    # 26 of 48 pixels of the last column lie inside, and 6 of the last row
    assert coords.tolist() == [[x, y] for y in (0, 48, 96) for x in (0, 48, 96, 144)]
    assert told["patch_size"] == told["patch_size_level0"] == 48
    assert (told["mpp"], told["mpp0"]) == (pytest.approx(0.5), pytest.approx(0.5))
    assert (told["level0_width"], told["level0_height"], told["name"]) == (170, 150, "slide")
    assert (told["level0_magnification"], told["target_magnification"]) == (20, 20)


def test_a_bag_opens_with_its_places(encoder: Path, tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", pixels((512, 768)), mpp=0.25)
    softless.tiles(
        str(path), encoder=str(encoder), out=tmp_path / "out", mpp="0.6", tile=80, overlap=16
    )
    opened = softless.Bag.open(tmp_path / "out" / "features" / "slide.h5")
    assert (opened.tile_px0, opened.mpp0, opened.encoder) == (192, pytest.approx(0.25), "small")
    assert opened.layout == "trident"
    assert opened.slide == "slide"
    assert not opened.remarks
    _, coords, _ = bag(tmp_path / "out" / "features" / "slide.h5")
    assert np.array_equal(np.asarray(opened.coords_px0), coords)
    assert np.allclose(np.asarray(opened.coords_um), coords * 0.25)
    steps = np.unique(np.diff(np.unique(coords[:, 0])))
    assert steps.tolist() == [192 - 38]


def test_the_digest_is_of_weights_scale_and_precision(tmp_path: Path) -> None:
    one = encoder_of(str(saved(tmp_path / "one")), 32)
    same = encoder_of(str(saved(tmp_path / "same")), 32)
    other = encoder_of(str(saved(tmp_path / "other", seed=5)), 32)
    narrow = encoder_of(str(tmp_path / "one"), 32, dtype=torch.bfloat16)
    assert one.digest == same.digest
    assert len({one.digest, other.digest, narrow.digest}) == 3
    config = json.loads((tmp_path / "same" / "config.json").read_text())
    assert config["pretrained_cfg"]["mean"]
    model = small()
    model.pretrained_cfg |= {"mean": (0.1, 0.2, 0.3)}  # type: ignore[operator]
    assert encoder_of(model, 32).digest != encoder_of(small(), 32).digest


def test_models_without_a_head_and_of_one_size(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(0)
    fixed = timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=1, img_size=64).eval()
    wanted: Any = timm.create_model(
        "vit_tiny_patch16_224", num_classes=0, depth=1, img_size=64
    ).eval()
    wanted.load_state_dict(fixed.state_dict())
    wanted.set_input_size((32, 32))
    made = encoder_of(fixed, 32)
    assert made.read is as_it_is
    assert "its table of positions is brought to tiles of 32 x 32" in caplog.text
    tile = pixels((32, 32))
    with torch.no_grad():
        features = wanted(normal(tile, wanted)[None])
    assert np.allclose(made.features([tile]), features.numpy(), atol=1e-5)


def test_grey_slides_and_grey_encoders(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = softless.create_model("sima_deit_tiny_patch16_224", depth=1, num_classes=2, in_chans=1)
    data = {"mean": (0.5,), "std": (0.5,)}
    softless.save_weights(model.eval(), tmp_path / "grey", data=data)
    path = write(tmp_path / "slide.tif", pixels((64, 64)))
    made = softless.tiles(str(path), encoder=str(tmp_path / "grey"), out=tmp_path / "out", tile=32)
    assert vars(made.slides[0])["tiles"] == 4


def test_of_three_slides_one_is_bad(
    encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "slides"
    folder.mkdir()
    write(folder / "a.tif", pixels((64, 96)))
    (folder / "b.svs").write_bytes(b"no slide")
    spoil(write(folder / "c.tif", pixels((256, 256))), [2]).rename(folder / "c.tif")
    words = ["tiles", str(folder), "--encoder", str(encoder), "--tile", "32", "--quiet"]
    assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == 4
    told = json.loads(capsys.readouterr().out)
    assert [slide.get("tiles") for slide in told["slides"]] == [6, None, 48]
    assert "b.svs cannot be opened" in told["slides"][1]["failed"]
    assert len(told["slides"][2]["unreadable"]) == 16
    rows = table(tmp_path / "out")
    assert [row["tiles"] for row in rows] == ["6", "", "48"]
    assert rows[1]["note"].startswith("failed: ")
    assert rows[2]["note"] == "16 tiles could not be read and are left out"
    assert rows[2]["unreadable"] == "16"
    assert sorted(path.name for path in (tmp_path / "out" / "features").iterdir()) == [
        "a.h5",
        "c.h5",
    ]
    _, coords, _ = bag(tmp_path / "out" / "features" / "c.h5")
    assert not ((coords[:, 1] >= TILE) & (coords[:, 0] < TILE)).any()
    write(folder / "b.svs", pixels((64, 64)))
    capsys.readouterr()
    assert main([*words, "--out", str(tmp_path / "out")]) == 4  # c is as it was
    rows = table(tmp_path / "out")
    assert [row["tiles"] for row in rows] == ["6", "4", "48"]


def test_a_slide_without_tissue_is_an_empty_bag_and_said(
    encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "blank.tif", glass((320, 480)))
    made = softless.tiles(
        str(path), encoder=str(encoder), out=tmp_path / "out", tile=32, tissue="otsu", quiet=True
    )
    features, coords, _ = bag(tmp_path / "out" / "features" / "blank.h5")
    assert (features.shape, coords.shape, made.exit_code) == ((0, 192), (0, 2), 0)
    assert "it has no tile that counts, so its bag is empty" in caplog.text
    assert "it has no tile that counts" in str(made)


def test_a_slide_of_which_nothing_can_be_read(encoder: Path, tmp_path: Path) -> None:
    path = spoil(write(tmp_path / "slide.tif", pixels((256, 256))), [0, 1, 2, 3])
    with pytest.raises(DataError, match=r"none of the 64 tiles of .* can be read"):
        softless.tiles(str(path), encoder=str(encoder), out=tmp_path / "out", tile=32)
    assert not list((tmp_path).glob("out/features/*"))


def test_tissue_is_what_is_stained(encoder: Path, tmp_path: Path) -> None:
    values = slide((640, 960))
    path = write(tmp_path / "slide.tif", values, mpp=2.0)
    softless.tiles(
        str(path), encoder=str(encoder), out=tmp_path / "out", tile=32, tissue="otsu", quiet=True
    )
    _, coords, _ = bag(tmp_path / "out" / "features" / "slide.h5")
    y, x = np.arange(640)[:, None] / 640, np.arange(960)[None] / 960
    disc = ((y - 0.5) / 0.35) ** 2 + ((x - 0.4) / 0.25) ** 2 < 1
    shares = np.array([disc[b : b + 32, a : a + 32].mean() for a, b in coords.tolist()])
    assert (shares > 0.3).all()
    wanted = (disc.reshape(20, 32, 30, 32).mean((1, 3)) > 0.7).sum()
    assert (shares > 0.7).sum() == wanted
    (region,) = json.loads((tmp_path / "out" / "tissue" / "slide.geojson").read_text())["features"]
    assert region["properties"]["objectType"] == "annotation"
    assert region["properties"]["classification"]["name"] == "Tissue"
    found = shapely.from_geojson(json.dumps(region["geometry"]))
    assert found.area == pytest.approx(disc.sum(), rel=0.03)
    picture = np.asarray(thumbnail(path, side=1024))
    drawn = np.asarray(Image.open(tmp_path / "out" / "thumbnails" / "slide.png").convert("RGB"))
    assert drawn.shape == picture.shape
    taken = np.zeros((640, 960), dtype=bool)
    for a, b in coords.tolist():
        taken[b + 2 : b + 30, a + 2 : a + 30] = True
    assert np.array_equal(drawn[taken], picture[taken])
    assert (drawn[:30, :30].astype(int) > picture[:30, :30]).mean() > 0.9  # a veil


@pytest.mark.parametrize("kind", ["png", "geojson"])
@pytest.mark.parametrize("overlap", [0, 16])
def test_tissue_in_a_file(kind: str, overlap: int, encoder: Path, tmp_path: Path) -> None:
    path, mask = write(tmp_path / "slide.tif", pixels((320, 480))), tmp_path / f"slide.{kind}"
    inside = np.zeros((320, 480), dtype=bool)
    inside[80:200, 50:300] = True
    if kind == "png":
        Image.fromarray(inside.astype(np.uint8) * 255).save(mask)
    else:
        mask.write_text(shapely.to_geojson(shapely.box(50, 80, 300, 200)))
    for tissue in (mask, tmp_path):  # a file, and the folder that holds it
        softless.tiles(
            str(path),
            encoder=str(encoder),
            out=tmp_path / "out" / tissue.name,
            tile=32,
            overlap=overlap,
            tissue=str(tissue),
        )
        _, coords, _ = bag(tmp_path / "out" / tissue.name / "features" / "slide.h5")
        step = 32 - overlap
        wanted = [
            [x, y]
            for y in range(0, 320, step)
            for x in range(0, 480, step)
            if inside[y : y + 32, x : x + 32].sum() >= 512
        ]
        assert coords.tolist() == wanted
    written = json.loads((tmp_path / "out" / tissue.name / "tissue" / "slide.geojson").read_text())
    (region,) = written["features"]
    assert shapely.from_geojson(json.dumps(region["geometry"])).bounds == (50, 80, 300, 200)


@pytest.mark.usefixtures("bounded")
def test_what_qupath_drew_and_gets_counts_from_the_bounds(encoder: Path, tmp_path: Path) -> None:
    path, mask = write(tmp_path / "slide.tif", pixels((400, 600))), tmp_path / "slide.geojson"
    mask.write_text(shapely.to_geojson(shapely.box(28, 56, 92, 120)))  # as QuPath counts
    softless.tiles(
        str(path),
        encoder=str(encoder),
        out=tmp_path / "out",
        tile=32,
        tissue=str(mask),
        origin="qupath",
    )
    _, coords, told = bag(tmp_path / "out" / "features" / "slide.h5")
    assert told["bounds"].tolist() == [100, 40, 200, 300]
    assert coords.tolist() == [[x, y] for y in (96, 128) for x in (128, 160)]
    (region,) = json.loads((tmp_path / "out" / "tissue" / "slide.geojson").read_text())["features"]
    assert shapely.from_geojson(json.dumps(region["geometry"])).bounds == (28, 56, 92, 120)


def test_a_finished_slide_is_kept_and_another_setting_is_not(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "slide.tif", pixels((96, 96)))
    worked: list[int] = []
    features = extract.Encoder.features

    def counting(self: extract.Encoder, tiles: Any) -> Any:
        worked.append(len(tiles))
        return features(self, tiles)

    monkeypatch.setattr(extract.Encoder, "features", counting)

    def made(**options: Any) -> int:
        worked.clear()
        softless.tiles(
            str(path), out=tmp_path / "out", **{"tile": 32, "encoder": str(encoder), **options}
        )
        return sum(worked)

    assert (made(), made(batch_size=2), made(quiet=True)) == (9, 0, 0)
    assert made(tile=48) == 4
    assert "other settings, another encoder or another file" in caplog.text
    other = saved(tmp_path / "other", seed=5)
    assert (made(), made(encoder=str(other)), made(encoder=str(other))) == (9, 9, 0)
    for name in ("features/slide.h5", "tissue/slide.geojson", "thumbnails/slide.png"):
        (tmp_path / "out" / name).unlink()
        assert made(encoder=str(other)) == 9
    write(path, pixels((96, 96), seed=8))
    assert made(encoder=str(other)) == 9


def test_an_earlier_slide_stays_in_the_table(
    encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name, folder in (("b", encoder), ("a", encoder), ("c", saved(tmp_path / "other", seed=5))):
        path = write(tmp_path / f"{name}.tif", pixels((64, 64)))
        softless.tiles(str(path), out=tmp_path / "out", encoder=str(folder), tile=32)
    rows = table(tmp_path / "out")
    assert [row["slide"] for row in rows] == ["a", "b", "c"]
    assert "2 slides of an earlier call have features of another encoder" in caplog.text


def test_images_without_a_resolution(encoder: Path, tmp_path: Path) -> None:
    values = pixels((64, 96))
    Image.fromarray(values).save(tmp_path / "eye.png")
    softless.tiles(
        str(tmp_path / "eye.png"), encoder=str(encoder), out=tmp_path / "out", tile=32, mpp="none"
    )
    _, coords, told = bag(tmp_path / "out" / "features" / "eye.h5")
    assert len(coords) == 6
    assert "mpp0" not in told
    assert told["level0_magnification"] == "None"
    with pytest.raises(DataError, match="does not say how large its pixels are"):
        softless.tiles(
            str(tmp_path / "eye.png"), encoder=str(encoder), out=tmp_path / "out", mpp="0.5"
        )


def test_dicom_files_of_one_slide_are_one(
    data_root: Path, encoder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("boxes_0.dcm", "boxes_1.dcm"):
        source = data_root / "slides_odd" / "openslide" / name
        (tmp_path / name).write_bytes(source.read_bytes())
    made = softless.tiles(str(tmp_path), encoder=str(encoder), out=tmp_path / "out", tile=16)
    assert [(slide.slide, vars(slide)["tiles"]) for slide in made.slides] == [("boxes_0", 1)]
    assert "they are read as one" in caplog.text


def test_masks_of_overlapping_tiles_are_those_of_each(tmp_path: Path) -> None:
    """Against areas of shapely."""
    tiling, _ = tiling_of(Bytes(pixels((300, 400))), "array", Cut(tile=40, overlap=13))
    region = shapely.Polygon([(20, 30), (350, 70), (260, 280), (40, 200)])
    (tmp_path / "m.geojson").write_text(shapely.to_geojson(region))
    found = mask_of(tmp_path / "m.geojson", tiling.lattice())
    for row, column in np.ndindex(tiling.grid):
        box = shapely.box(column * 27, row * 27, column * 27 + 40, row * 27 + 40)
        share = region.intersection(box).area / 1600
        if abs(share - 0.5) > 0.05:
            assert found[row, column] == (share > 0.5)


REFUSED: dict[str, tuple[list[str], str]] = {
    "no slide": ([], "name one slide or more"),
    "no such file": (["NONE.svs"], "no slide at"),
    "an empty folder": (["EMPTY"], "no slides in"),
    "the same name twice": (["SLIDE", "TWIN"], "are both called slide"),
    "no such encoder": (["SLIDE", "--encoder", "no_such_model"], "no model named 'no_such_model'"),
    "an encoder that is a file": (["SLIDE", "--encoder", "SLIDE"], "no model named"),
    "weights of a run": (["SLIDE", "--weights", "SLIDE"], "whose weights are its own"),
    "a tile that the encoder does not take": (["SLIDE", "--tile", "40"], "takes no tiles of 40"),
    "no number": (["SLIDE", "--mpp", "fine"], "--mpp fine: give micrometres per pixel"),
    "a resolution that cannot be": (["SLIDE", "--mpp", "-1"], "--mpp -1"),
    "a resolution that is not known": (["SLIDE", "--mpp", "0.5"], "does not say how large"),
    "no tissue of that name": (["SLIDE", "--tissue", "outsu"], "--tissue outsu: give otsu"),
    "no mask": (["SLIDE", "--tissue", "mask.png"], "no mask at mask.png"),
    "a mask of another kind": (["SLIDE", "--tissue", "mask.jpg"], "is no mask that is read"),
    "one mask for two": (["SLIDE", "OTHER", "--tissue", "MASK"], "is the mask of one slide"),
    "a folder without a mask": (["SLIDE", "--tissue", "EMPTY"], "holds no mask for slide.tif"),
    "a mask of another shape": (["SLIDE", "--tissue", "MASK"], "is not the shape of the image"),
    "no origin": (["SLIDE", "--origin", "centre"], "origin"),
    "an overlap of a whole tile": (["SLIDE", "--overlap", "32"], "--overlap 32: give fewer"),
    "no batch": (["SLIDE", "--batch-size", "0"], "--batch-size 0"),
    "an image less than half a tile": (["SMALL", "--tile", "64"], "less than half a tile"),
    "no out": (["SLIDE", "--out"], "--out"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_said_in_a_sentence(
    name: str, encoder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "slide.tif", pixels((96, 96)))
    write(tmp_path / "other.tif", pixels((96, 96)))
    (tmp_path / "empty").mkdir()
    (tmp_path / "twin").mkdir()
    Image.fromarray(pixels((32, 32))).save(tmp_path / "twin" / "slide.png")
    Image.fromarray(pixels((32, 32))).save(tmp_path / "small.png")
    Image.fromarray(np.eye(60, 20, dtype=np.uint8)).save(tmp_path / "mask.png")
    places = {
        "SLIDE": "slide.tif",
        "OTHER": "other.tif",
        "EMPTY": "empty",
        "TWIN": "twin",
        "SMALL": "small.png",
        "MASK": "mask.png",
        "NONE.svs": "none.svs",
    }
    words, said = REFUSED[name]
    words = [str(tmp_path / places[word]) if word in places else word for word in words]
    given = {"--encoder": str(encoder), "--tile": "32", "--out": str(tmp_path / "out")}
    for option, value in given.items():
        if option not in words:
            words += [option, value]
    assert main(["tiles", *words, "--quiet"]) == 2
    sentence = " ".join(capsys.readouterr().err.split())
    assert said in sentence
    assert "Traceback" not in sentence


def test_what_gives_no_features(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not say what its head is given"):
        encoder_of(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), 32)
    model: Any = timm.create_model("resnet18", num_classes=0, global_pool="")
    with pytest.raises(UsageError, match=r"gives features of shape \(1, 512, 1, 1\)"):
        encoder_of(model, 32)
