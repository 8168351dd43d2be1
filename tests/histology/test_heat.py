"""`softless heat`: scores of tiles where the tiles lie, as numbers, polygons and a picture."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import softless
from softless.bags.bag import Bag
from softless.bags.write import write_bag
from softless.cli.main import main
from softless.errors import CoordinateError, DataError, UsageError
from softless.histology.heatmap import STRENGTH, HeatMap
from softless.histology.regions import collection, polygons, region_of_mask
from softless.histology.scores import Scores, scores_of
from softless.saliency.colours import colourise
from softless.slides import Lattice
from softless.tasks.bags.model import StandardisedLinear
from tests.slides.test_reader import pixels, write

h5py = pytest.importorskip("h5py")
shapely = pytest.importorskip("shapely")
pytest.importorskip("tifffile")
openslide = pytest.importorskip("openslide")

WIDTH, CLASSES = 12, ("benign", "malignant", "other")
TILE = 50  # pixels of level 0


def bag_model(name: str = "sima_bag_tiny", seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    model: Any = softless.create_model(name, in_dim=WIDTH, num_classes=3, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)  # so that tiles differ
    return model


def places(size: tuple[int, int] = (400, 600), every: int = 1) -> np.ndarray:
    """Corners of tiles, some of them left out."""
    down, across = np.mgrid[0 : size[0] // TILE, 0 : size[1] // TILE]
    corners = np.stack([across.ravel(), down.ravel()], axis=1) * TILE
    return corners[np.arange(len(corners)) % (every + 1) > 0] if every > 1 else corners


def features(count: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, WIDTH)).astype(np.float32)


def written(path: Path, coords: np.ndarray, size: tuple[int, int] = (400, 600)) -> Path:
    write_bag(
        path,
        features(len(coords)),
        coords,
        slide=path.stem,
        encoder="small",
        mpp0=0.25,
        mpp=0.25 * TILE / 32,
        tile_px=32,
        tile_px0=TILE,
        overlap=0,
        level0_size=size,
    )
    return path


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """A slide and the features of its tiles."""
    slide = write(tmp_path / "slide.tif", pixels((400, 600)), mpp=0.25)
    return slide, written(tmp_path / "slide.h5", places(every=4))


def read(out: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Polygons of tiles, and annotations."""
    found = json.loads((out / "heat.geojson").read_text())
    assert found["type"] == "FeatureCollection"
    kinds = [one["properties"]["objectType"] for one in found["features"]]
    assert set(kinds) <= {"tile", "annotation"}
    return tuple(  # type: ignore[return-value]
        [one for one, kind in zip(found["features"], kinds, strict=True) if kind == wanted]
        for wanted in ("tile", "annotation")
    )


def corners(feature: dict[str, Any]) -> list[float]:
    (ring,) = feature["geometry"]["coordinates"]
    assert ring[0] == ring[-1]
    x, y = zip(*ring, strict=True)
    assert ring == [
        [min(x), min(y)],
        [max(x), min(y)],
        [max(x), max(y)],
        [min(x), max(y)],
        [min(x), min(y)],
    ]
    return [min(x), min(y), max(x), max(y)]


def test_polygons_and_numbers_are_those_of_the_tiles(
    pair: tuple[Path, Path], tmp_path: Path
) -> None:
    model, (slide, file) = bag_model(), pair
    made = softless.heat(model, slide, features=file, out=tmp_path / "out")
    coords = places(every=4)
    tiles, _ = read(tmp_path / "out")
    assert [corners(one) for one in tiles] == [
        [x, y, x + TILE, y + TILE] for x, y in coords.tolist()
    ]
    with torch.no_grad():
        wanted = model.tile_scores(torch.from_numpy(features(len(coords)))[None])[0]
    with h5py.File(tmp_path / "out" / "scores.h5") as scores:
        found = scores["scores"][:]
        assert np.array_equal(scores["coords"][:], coords)
        assert scores["coords"].dtype == np.int64
        assert scores["coords"].attrs["patch_size_level0"] == TILE
        assert scores.attrs["slide"] == "slide"
    assert np.allclose(found, wanted.numpy(), rtol=1e-5)
    assert found.sum() == pytest.approx(1, abs=1e-5)
    for one, weight in zip(tiles, found, strict=True):
        numbers = one["properties"]["measurements"]
        assert numbers["weight"] == pytest.approx(weight, rel=1e-5)
        assert numbers["times the mean"] == pytest.approx(weight * len(coords), rel=1e-5)
    assert sum(made.classes.values()) == pytest.approx(1)
    assert made.tiles == len(coords)


def test_softmax_weighs_tiles_too(pair: tuple[Path, Path]) -> None:
    """It has no chunks, and works on all tiles at once."""
    model, bag = bag_model("softmax_bag_tiny"), Bag.open(pair[1])
    scores = scores_of(model, bag)
    with torch.no_grad():
        inputs = torch.from_numpy(np.array(bag.features[:]))[None]
        assert np.allclose(scores.values, model.tile_scores(inputs)[0].numpy(), rtol=1e-5)
        assert np.allclose(scores.logits, model(inputs)[0].numpy(), rtol=1e-5)


def test_regions_are_the_tiles_of_a_class_together(pair: tuple[Path, Path], tmp_path: Path) -> None:
    softless.heat(bag_model(), pair[0], features=pair[1], out=tmp_path / "out")
    tiles, regions = read(tmp_path / "out")
    names = {one["properties"]["classification"]["name"] for one in tiles}
    assert len(names) >= 4
    for name in names:
        own = [one for one in tiles if one["properties"]["classification"]["name"] == name]
        around = [one for one in regions if one["properties"]["classification"]["name"] == name]
        if name == "weight 1/2 to 2 times the mean":
            assert not around
            continue
        area = shapely.union_all([shapely.box(*corners(one)) for one in own])
        drawn = [shapely.from_geojson(json.dumps(one["geometry"])) for one in around]
        assert all(one.is_valid for one in drawn)
        assert shapely.union_all(drawn).equals(area)
        assert len(drawn) == len(shapely.get_parts(area))
        assert sum(one["properties"]["measurements"]["tiles"] for one in around) == len(own)
        assert {str(one["properties"]["classification"]["color"]) for one in around} == {
            str(one["properties"]["classification"]["color"]) for one in own
        }
    share = [one["properties"]["measurements"]["times the mean"] for one in tiles]
    high = [
        one["properties"]["classification"]["name"] == "weight above 4 times the mean"
        for one in tiles
    ]
    assert high == [value >= 4 for value in share]


def test_equal_weights_show_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    """No rank or stretch makes a pattern of what is none."""
    model = bag_model()
    with torch.no_grad():
        for parameter in model.pool.parameters():
            parameter.mul_(1e-4)
    softless.heat(model, pair[0], features=pair[1], out=tmp_path / "out")
    tiles, regions = read(tmp_path / "out")
    assert not regions
    assert {one["properties"]["classification"]["name"] for one in tiles} == {
        "weight 1/2 to 2 times the mean"
    }


def test_gradient_times_input_and_leave_out(pair: tuple[Path, Path], tmp_path: Path) -> None:
    model, bag = bag_model("seqnorm_bag_tiny"), Bag.open(pair[1])
    inputs = torch.from_numpy(np.array(bag.features[:]))[None].requires_grad_()
    logits = model(inputs)
    logits[0, 1].backward()
    assert inputs.grad is not None
    gradient = scores_of(model, bag, "gradient", 1, CLASSES)
    assert np.allclose(gradient.values, (inputs.grad * inputs).sum(-1)[0].detach(), atol=1e-6)
    lost = scores_of(model, bag, "leave-out", 1, CLASSES)
    for tile in (0, 5, len(bag) - 1):
        rest = torch.cat([inputs[:, :tile], inputs[:, tile + 1 :]], dim=1)
        with torch.no_grad():
            wanted = float(logits[0, 1] - model(rest)[0, 1])
        assert lost.values[tile] == pytest.approx(wanted, abs=2e-5)
    assert scores_of(model, bag, "gradient").label == f"class {int(logits.argmax())}"
    assert np.abs(gradient.shown).max() == pytest.approx(1)
    softless.heat(
        model, pair[0], features=pair[1], out=tmp_path / "out", score="leave-out", label="1"
    )
    tiles, _ = read(tmp_path / "out")
    told = [one["properties"]["measurements"]["evidence for class 1"] for one in tiles]
    assert np.allclose(told, lost.values, rtol=1e-4, atol=1e-7)
    strongest = int(np.argmax(lost.values))
    if lost.shown[strongest] >= 0.6:
        name = tiles[strongest]["properties"]["classification"]["name"]
        assert name == "strongly for class 1"


def test_the_mean_of_the_training_is_no_evidence(pair: tuple[Path, Path]) -> None:
    """A feature that all tiles have alike says nothing, however large it is."""
    model, bag = bag_model(), Bag.open(pair[1])
    plain = scores_of(model, bag, "gradient", 1)
    scaled = StandardisedLinear(WIDTH, model.embed.out_features)
    scaled.load_state_dict(model.embed.state_dict(), strict=False)
    model.embed = scaled
    scaled.mean.fill_(1000.0)
    moved = Bag.of(bag.features[:].astype(np.float64) + 1000, slide="moved")
    shifted = scores_of(model, moved, "gradient", 1)
    assert np.allclose(shifted.values, plain.values, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("kind", ["several", "survival"])
def test_labels_and_risks_are_told_as_what_they_are(
    kind: str, pair: tuple[Path, Path], tmp_path: Path
) -> None:
    model = bag_model()
    model.kind = kind
    made = softless.heat(model, pair[0], features=pair[1], out=tmp_path / "out")
    logits = torch.tensor(made.map.scores.logits)
    if kind == "survival":
        assert dict(made.classes) == {"logarithm of the risk": pytest.approx(float(logits[0]))}
    else:
        assert list(made.classes.values()) == pytest.approx(
            sorted(logits.sigmoid().tolist(), reverse=True)
        )


@pytest.mark.usefixtures("bounded")
def test_the_tile_that_weighs_most_lies_where_qupath_shows_it(tmp_path: Path) -> None:
    values = np.full((400, 600, 3), 240, dtype=np.uint8)
    values[200:250, 150:200] = (90, 30, 120)
    slide, coords = write(tmp_path / "slide.tif", values), places()
    marked = coords.tolist().index([150, 200])
    model, file = bag_model(), written(tmp_path / "slide.h5", coords)
    order = np.argsort(-scores_of(model, Bag.open(file)).values)
    swapped = features(len(coords))
    swapped[[marked, order[0]]] = swapped[[order[0], marked]]
    with h5py.File(file, "r+") as stored:
        stored["features"][:] = swapped
    made = softless.heat(model, slide, features=file, out=tmp_path / "out", origin="qupath")
    tiles, _ = read(tmp_path / "out")
    highest = max(tiles, key=lambda one: one["properties"]["measurements"]["weight"])
    x0, y0, x1, y1 = (int(side) for side in corners(highest))
    assert (x0, y0) == (150 - 100, 200 - 40)
    with openslide.OpenSlide(str(slide)) as viewer:  # which adds the bounds to what QuPath counts
        seen = viewer.read_region((x0 + 100, y0 + 40), 0, (x1 - x0, y1 - y0)).convert("RGB")
    assert (np.asarray(seen) == (90, 30, 120)).all()
    picture = np.asarray(Image.open(tmp_path / "out" / "overlay.png").convert("RGB")).astype(int)
    base = np.asarray(Image.fromarray(values).convert("L")).astype(int)
    (colour,) = colourise(made.map.scores.shown[[marked]], signed=True)
    opacity = 0.15 + STRENGTH * made.map.scores.shown[marked]
    wanted = base[225, 175] * (1 - opacity) + colour * opacity
    assert np.abs(picture[225, 175] - wanted).max() < 2
    assert np.abs(picture[225, 175] - base[225, 175]).max() > 30


def heat_map(count: int, values: Sequence[float] | None = None) -> HeatMap:
    across = 300
    coords: Any = np.stack([np.arange(count) % across, np.arange(count) // across], axis=1) * 448.0
    numbers: Any = np.random.default_rng(0).random(count) if values is None else np.array(values)
    scores = Scores("weight", numbers / numbers.sum(), "", (0.0, 1.0))
    size = (448 * (count // across + 1), 448 * across)
    return HeatMap(scores, coords, 448, 448, Lattice((1, 1), size, size))


def test_sixty_thousand_tiles_are_at_most_30_mb() -> None:
    drawn = heat_map(60_000)
    text = collection(drawn.features())
    assert len(text.encode()) <= 30e6
    tiles = [
        one for one in json.loads(text)["features"] if len(one["geometry"]["coordinates"]) == 1
    ]
    kinds = [one["properties"]["objectType"] for one in tiles]
    assert kinds.count("tile") == 60_000


def test_of_more_tiles_there_are_squares_of_several() -> None:
    drawn = heat_map(90_301)
    boxes, means = drawn.cells
    assert len(boxes) <= 60_000
    assert len(text := collection(drawn.features())) <= 30e6
    assert text.count('"tile"') == len(boxes)
    inside = (drawn.places >= boxes[7, :2]).all(1) & (drawn.places < boxes[7, 2:]).all(1)
    assert means[7] == pytest.approx(drawn.scores.values[inside].mean())
    assert boxes[7].tolist() == [14 * 448, 0, 16 * 448, 2 * 448]
    assert boxes[-1].tolist() == [298 * 448, 300 * 448, 300 * 448, 301 * 448]  # of one row


def test_tiles_that_overlap_are_painted_as_means() -> None:
    scores = Scores("gradient", np.array([1.0, -0.5]), "b", (0.0, 1.0))
    coords = np.array([[0.0, 0.0], [5.0, 0.0]])
    drawn = HeatMap(scores, coords, 10, 5, Lattice((1, 1), (10, 20), (10, 20)))
    painted = drawn.painted((20, 10))
    assert (painted[0, :5] == 1).all()
    assert (painted[0, 5:10] == 0.25).all()
    assert (painted[0, 10:15] == -0.5).all()
    assert np.isnan(painted[0, 15:]).all()


def test_regions_of_masks_have_their_holes() -> None:
    mask = np.ones((6, 8), dtype=bool)
    mask[2:4, 3:5] = False
    mask[0, 0] = False
    region = region_of_mask(mask, (2.0, 3.0), (10.0, 20.0))
    (polygon,) = polygons(region)
    assert polygon.area == mask.sum() * 6
    assert polygon.bounds == (20, 10, 44, 22)
    assert [hole.bounds for hole in polygon.interiors] == [(29, 14, 35, 18)]
    assert polygons(region_of_mask(np.zeros((3, 3), dtype=bool), (1.0, 1.0))) == []


def test_twice_the_same_bits(pair: tuple[Path, Path], tmp_path: Path) -> None:
    for name in ("one", "two"):
        softless.heat(bag_model(), pair[0], features=pair[1], out=tmp_path / name)
    for name in ("scores.h5", "overlay.png", "heat.geojson"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of bags, and a classifier of images."""
    root = tmp_path_factory.mktemp("models")
    (root / "data").mkdir()
    rows = ["slide,patient,label"]
    for number in range(24):
        name = f"slide_{number:02}"
        written(root / "data" / f"{name}.h5", places(every=2))
        rows.append(f"{name},p{number},{CLASSES[number % 3]}")
    (root / "slides.csv").write_text("\n".join(rows))
    for folder, model in (("bags", "sima_bag_tiny"), ("mean", "mean_bag")):
        words = ["train", "--recipe", "bags", "--data", str(root / "data"), "--device", "cpu"]
        words += ["--table", str(root / "slides.csv"), "--out", str(root / folder), "--set"]
        fields = {
            "model.name": model,
            "schedule.epochs": 1,
            "schedule.warmup_epochs": 0,
            "schedule.min_steps": "none",
            "schedule.min_epoch_steps": "none",
            "threads": 1,
            "optim.lr": 0.02,
        }
        assert main([*words, *(f"{name}={value}" for name, value in fields.items())]) == 0
    torch.manual_seed(0)
    images = softless.create_model("sima_deit_tiny_patch16_224", depth=1, num_classes=3)
    softless.save_weights(images.eval(), root / "images")
    return root


def test_the_command(
    models: Path, pair: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["heat", str(models / "bags"), str(pair[0]), "--features", str(pair[1])]
    assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["files"] == ["scores.h5", "overlay.png", "heat.geojson"]
    assert told["tiles"] == len(places(every=4))
    assert main([*words, "--out", str(tmp_path / "more"), "--score", "gradient"]) == 0
    assert "evidence for " in capsys.readouterr().out
    words += ["--score", "leave-out", "--label", "malignant", "--out", str(tmp_path / "third")]
    assert main(words) == 0
    told = capsys.readouterr().out
    assert "evidence for malignant: what is lost without the tile" in told
    assert all(name in told for name in CLASSES)
    names = {one["properties"]["classification"]["name"] for one in read(tmp_path / "third")[0]}
    assert names & {"for malignant", "strongly for malignant", "strongly against malignant"}


def test_features_are_found_among_the_data_of_the_run(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    slide = write(tmp_path / "slide_00.tif", pixels((400, 600)), mpp=0.25)
    made = softless.heat(models / "bags", slide, out=tmp_path / "out")
    assert "the features of slide_00.tif are those of" in caplog.text
    assert made.tiles == len(places(every=2))


REFUSED: dict[str, tuple[list[str], str]] = {
    "no features": (["bags", "SLIDE"], "need the features that the run was trained on"),
    "no such features": (["bags", "SLIDE", "--features", "none.h5"], "none.h5"),
    "features that are none": (["bags", "SLIDE", "--features", "SLIDE"], "slide.tif"),
    "a classifier of images": (["images", "SLIDE", "--features", "BAG"], "looks at images"),
    "no such model": (["none", "SLIDE", "--features", "BAG"], "no run folder at"),
    "no such slide": (["bags", "none.svs", "--features", "BAG"], "no image at none.svs"),
    "another slide": (["bags", "OTHER", "--features", "BAG"], "600 x 400 pixels, and"),
    "a pool that weighs nothing": (["mean", "SLIDE", "--features", "BAG"], "--score gradient"),
    "a weight of a class": (
        ["bags", "SLIDE", "--features", "BAG", "--label", "1"],
        "a weight is for no class",
    ),
    "no such class": (
        ["bags", "SLIDE", "--features", "BAG", "--score", "gradient", "--label", "9"],
        "no class named '9'",
    ),
    "a class by its number": (
        ["bags", "SLIDE", "--features", "BAG", "--score", "gradient", "--label", "1"],
        "Known: benign, malignant, other",
    ),
    "no such score": (["bags", "SLIDE", "--features", "BAG", "--score", "rank"], "rank"),
    "no such origin": (["bags", "SLIDE", "--features", "BAG", "--origin", "x"], "origin"),
    "no chunk": (["bags", "SLIDE", "--features", "BAG", "--chunk", "0"], "--chunk 0"),
    "an empty bag": (["bags", "SLIDE", "--features", "EMPTY"], "has no tiles"),
    "features of another width": (["bags", "SLIDE", "--features", "WIDE"], "13"),
    "places in another unit": (
        ["bags", "SLIDE", "--features", "FAR"],
        "coordinates are of another level, slide or order",
    ),
    "another resolution": (["bags", "SLIDE", "--features", "COARSE"], "micrometres for a pixel"),
    "no places": (["bags", "SLIDE", "--features", "BARE"], "where its tiles lie"),
    "no unit": (["bags", "SLIDE", "--features", "UNKNOWN"], "--unit"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_is_said_in_a_sentence(
    name: str, models: Path, pair: tuple[Path, Path], tmp_path: Path, capsys: Any
) -> None:
    write(tmp_path / "other.tif", pixels((300, 600)), mpp=0.25)
    coords = places(every=4)
    written(tmp_path / "empty.h5", coords[:0])
    written(tmp_path / "far.h5", coords * 4)
    written(tmp_path / "coarse.h5", coords)
    written(tmp_path / "wide.h5", coords)
    with h5py.File(tmp_path / "wide.h5", "r+") as stored:
        del stored["features"]
        stored["features"] = np.zeros((len(coords), 13), dtype=np.float32)
    with h5py.File(tmp_path / "coarse.h5", "r+") as stored:
        stored["coords"].attrs["mpp0"] = 0.5
        del stored["coords"].attrs["mpp"]
    np.savez(tmp_path / "bare.npz", features=features(4))
    np.savez(tmp_path / "unknown.npz", features=features(len(coords)), coords=coords)
    known = {
        "SLIDE": pair[0],
        "BAG": pair[1],
        "OTHER": tmp_path / "other.tif",
        "EMPTY": tmp_path / "empty.h5",
        "FAR": tmp_path / "far.h5",
        "COARSE": tmp_path / "coarse.h5",
        "WIDE": tmp_path / "wide.h5",
        "BARE": tmp_path / "bare.npz",
        "UNKNOWN": tmp_path / "unknown.npz",
    }
    words, said = REFUSED[name]
    words = [str(known.get(word, word)) for word in words]
    assert main(["heat", str(models / words[0]), *words[1:], "--out", str(tmp_path / "out")]) == 2
    sentence = " ".join(capsys.readouterr().err.split())
    assert said in sentence
    assert "Traceback" not in sentence


def test_errors_have_their_kinds(pair: tuple[Path, Path], tmp_path: Path) -> None:
    far = written(tmp_path / "far.h5", places(every=4) * 4)
    with pytest.raises(
        CoordinateError, match=r"begins at \(2200, 1400\), and level 0 has 600 x 400"
    ):
        softless.heat(bag_model(), pair[0], features=far, out=tmp_path / "out")
    with pytest.raises(DataError):
        softless.heat(bag_model(), tmp_path / "none.svs", features=far, out=tmp_path / "out")
    written(far, places(every=4) + 400)
    with h5py.File(far, "r+") as stored:  # as a tool that does not say the slide's size
        for name in ("level0_width", "level0_height"):
            del stored["coords"].attrs[name]
    with pytest.raises(CoordinateError, match=r"tiles from .*400, 400.* to .*950, 750.* 600 x 400"):
        softless.heat(bag_model(), pair[0], features=far, out=tmp_path / "out")
    with pytest.raises(UsageError, match="--label x: the model does not name its classes"):
        softless.heat(
            bag_model(), pair[0], features=pair[1], out=tmp_path, score="gradient", label="x"
        )
    with pytest.raises(UsageError, match="--label 7: the model has the classes 0 to 2"):
        softless.heat(
            bag_model(), pair[0], features=pair[1], out=tmp_path, score="gradient", label="7"
        )
    with pytest.raises(UsageError, match="--score rank"):
        scores_of(bag_model(), Bag.open(pair[1]), "rank")  # type: ignore[arg-type]
