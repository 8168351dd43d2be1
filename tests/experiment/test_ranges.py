"""A declared range of values: one answer, the float64 formula's, from every kind of file through
every door; nothing is rounded to 8 bits on the way.
"""

import dataclasses
import json
import struct
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from softless.cli.data import data as data_command
from softless.data import open_splits
from softless.data.arrays import npz_parts
from softless.data.images import BadImage
from softless.data.loader import seed_generators
from softless.data.reading import decode, read_image
from softless.data.transforms import build_transforms, eval_transform
from softless.errors import DataError, UsageError
from softless.experiment.groups import AugmentSpec, DataSpec
from softless.experiment.ranges import Range
from softless.experiment.recipe import Recipe
from softless.tasks.check import Reading, check
from softless.tasks.detection.samples import open_boxes
from softless.tasks.detection.settings import DetectionSpec
from softless.tasks.detection.transforms import eval_pipeline as box_eval
from softless.tasks.detection.transforms import train_pipeline as box_train
from softless.tasks.dino.samples import open_unlabelled
from softless.tasks.dino.settings import DinoSpec
from softless.tasks.dino.transforms import multi_crop
from softless.tasks.segmentation.samples import open_label_images
from softless.tasks.segmentation.settings import SegmentationSpec
from softless.tasks.segmentation.transforms import eval_pipeline as label_eval
from softless.tasks.segmentation.transforms import train_pipeline as label_train
from tests.data.making import medmnist

SIZE = (24, 20)  # height, width
NEAR = 1e-6  # of the float64 formula
PLAIN: dict[str, Any] = {"mean": (0.0,), "std": (1.0,), "in_chans": 1}


def formula(values: np.ndarray, low: float, high: float) -> np.ndarray:
    return np.clip((values.astype(np.float64) - low) / (high - low), 0, 1)


def drawn(
    low: float, high: float, seed: int, kind: Any = np.float64, channels: int = 0
) -> np.ndarray:
    shape = (*SIZE, channels) if channels else SIZE
    values = np.random.default_rng(seed).uniform(low, high, shape)
    return values.astype(kind) if np.dtype(kind).kind == "f" else np.rint(values).astype(kind)


def chunk(kind: bytes, content: bytes) -> bytes:
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )


def deep_png(values: np.ndarray, path: Path) -> None:
    """16 bits per channel, of one, two, three or four channels."""
    height, width, channels = values.shape if values.ndim == 3 else (*values.shape, 1)
    header = struct.pack(">IIBBBBB", width, height, 16, {1: 0, 2: 4, 3: 2, 4: 6}[channels], 0, 0, 0)
    rows, above = [], np.zeros(2 * width * channels, np.uint8)
    for number, row in enumerate(values):
        raw = np.frombuffer(row.astype(">u2").tobytes(), np.uint8)
        left = np.concatenate([np.zeros(2 * channels, np.uint8), raw[: -2 * channels]])
        # PNG's first three filters
        rows.append(bytes([number % 3]) + (raw - (0 * raw, left, above)[number % 3]).tobytes())
        above = raw
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"".join(rows)))
        + chunk(b"IEND", b"")
    )


def pgm(most: int) -> Callable[[np.ndarray, Path], None]:
    def save(values: np.ndarray, path: Path) -> None:
        kind = ">u2" if most > 255 else "u1"
        path.write_bytes(
            f"P5 {SIZE[1]} {SIZE[0]} {most}\n".encode() + values.astype(kind).tobytes()
        )

    return save


def tiff(**options: Any) -> Callable[[np.ndarray, Path], None]:
    def save(values: np.ndarray, path: Path) -> None:
        tifffile = pytest.importorskip("tifffile")
        tifffile.imwrite(path, values, **{"photometric": "minisblack", **options})

    return save


def pillow(values: np.ndarray, path: Path) -> None:
    Image.fromarray(values).save(path)


def upside_down(values: np.ndarray, path: Path) -> None:
    """Stored turned by half, with the EXIF note that says so."""
    deep_png(values[::-1, ::-1], path)
    exif = Image.Exif()
    exif[0x0112] = 3
    whole = path.read_bytes()
    path.write_bytes(
        whole[:33] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + whole[33:]
    )


def turned_tiff(**options: Any) -> Callable[[np.ndarray, Path], None]:
    """Stored turned to the left, with the tag that says so."""
    save = tiff(extratags=[(274, "H", 1, 6, True)], **options)
    return lambda values, path: save(np.ascontiguousarray(np.rot90(values)), path)


def white_at_zero(values: np.ndarray, path: Path) -> None:
    """8 bits, which Pillow turns around as they are shown."""
    tiff(photometric="miniswhite")(255 - values, path)


# name -> (ending, kind of number, lowest and highest stored, channels, writer)
FILES: dict[str, tuple[str, Any, float, float, int, Callable[[np.ndarray, Path], None]]] = {
    "16-bit PNG": ("png", np.uint16, 0, 65535, 0, deep_png),
    "12 bits in a 16-bit PNG": ("png", np.uint16, 0, 4095, 0, deep_png),
    "16-bit PNG in colour": ("png", np.uint16, 0, 65535, 3, deep_png),
    "16-bit PNG with alpha": ("png", np.uint16, 0, 65535, 4, deep_png),
    "16-bit PNG, grey with alpha": ("png", np.uint16, 0, 65535, 2, deep_png),
    "16-bit PNG, turned": ("png", np.uint16, 0, 65535, 0, upside_down),
    "16-bit TIFF": ("tif", np.uint16, 0, 65535, 0, pillow),
    "16-bit TIFF, big-endian": ("tif", ">u2", 0, 65535, 0, tiff(byteorder=">")),
    "16-bit TIFF, packed": (
        "tif",
        np.uint16,
        0,
        65535,
        0,
        tiff(compression="zlib", predictor=True),
    ),
    "16-bit TIFF in colour": ("tif", np.uint16, 0, 65535, 3, tiff(photometric="rgb")),
    "16-bit TIFF in colour, big-endian": (
        "tif",
        ">u2",
        0,
        65535,
        3,
        tiff(photometric="rgb", byteorder=">"),
    ),
    "16-bit TIFF in colour, packed": (
        "tif",
        np.uint16,
        0,
        65535,
        3,
        tiff(photometric="rgb", compression="zlib", predictor=True),
    ),
    "16-bit TIFF in colour, tiled": (
        "tif",
        np.uint16,
        0,
        65535,
        3,
        tiff(photometric="rgb", tile=(16, 16), compression="zlib"),
    ),
    "16-bit TIFF with alpha": (
        "tif",
        np.uint16,
        0,
        65535,
        4,
        tiff(photometric="rgb", extrasamples=["unassalpha"]),
    ),
    "16-bit TIFF in colour, turned": (
        "tif",
        np.uint16,
        0,
        65535,
        3,
        turned_tiff(photometric="rgb"),
    ),
    "16-bit TIFF, turned": ("tif", np.uint16, 0, 65535, 0, turned_tiff()),
    "signed TIFF": ("tif", np.int16, -2000, 3000, 0, tiff()),
    "signed TIFF, packed": ("tif", np.int16, -2000, 3000, 0, tiff(compression="zlib")),
    "8-bit signed TIFF": ("tif", np.int8, -128, 127, 0, tiff()),
    "32-bit TIFF": ("tif", np.int32, -90000, 90000, 0, pillow),
    "unsigned 32-bit TIFF": ("tif", np.uint32, 0, 4e9, 0, tiff()),
    "float TIFF": ("tif", np.float32, -0.2, 1.3, 0, pillow),
    "float TIFF, packed": ("tif", np.float32, -0.2, 1.3, 0, tiff(compression="zlib")),
    "PGM of 65535": ("pgm", np.uint16, 0, 65535, 0, pgm(65535)),
    "PGM of 4095": ("pgm", np.uint16, 0, 4095, 0, pgm(4095)),
    "PGM of 1000": ("pgm", np.uint16, 0, 1000, 0, pgm(1000)),
    "PGM of 100": ("pgm", np.uint8, 0, 100, 0, pgm(100)),
    "PGM of 255": ("pgm", np.uint8, 0, 255, 0, pgm(255)),
    "PPM of 255": ("ppm", np.uint8, 0, 255, 3, pillow),
    "BMP": ("bmp", np.uint8, 0, 255, 3, pillow),
    "8-bit TIFF": ("tif", np.uint8, 0, 255, 0, pillow),
    "8-bit TIFF in which 0 is white": ("tif", np.uint8, 0, 255, 0, white_at_zero),
    "8-bit PNG": ("png", np.uint8, 0, 255, 0, pillow),
    "8-bit PNG in colour": ("png", np.uint8, 0, 255, 3, pillow),
}


def ranges(low: float, high: float) -> dict[str, tuple[str, float, float]]:
    """Declared ranges inside what is stored: as ends, and as a window and a level."""
    a, b = low + 0.1 * (high - low), high - 0.2 * (high - low)
    a, b = round(a, 3), round(b, 3)
    return {"ends": (f"{a}..{b}", a, b), "window": (f"window={b - a},level={(a + b) / 2}", a, b)}


@pytest.mark.parametrize("way", ["ends", "window"])
@pytest.mark.parametrize("name", FILES)
def test_files_are_what_the_formula_says(tmp_path: Path, name: str, way: str):
    ending, kind, low, high, channels, save = FILES[name]
    values = drawn(low, high, 0, kind, channels)
    path = tmp_path / f"image.{ending}"
    save(values, path)
    text, a, b = ranges(low, high)[way]
    scale = Range.parse(text)
    colour = values[..., : 1 if channels == 2 else 3] if channels else values[..., None]
    wanted = formula(colour, a, b)
    found = read_image(path, 3, scale)
    assert found.dtype == np.float32
    assert np.abs(found - wanted).max() <= NEAR
    grey = wanted if wanted.shape[-1] == 1 else wanted @ [[0.299], [0.587], [0.114]]
    assert np.abs(read_image(path, 1, scale) - grey).max() <= NEAR
    assert decode(path, 3, scale).outside == (int((colour < a).sum()), int((colour > b).sum()))
    assert sum(decode(path, 3, scale).outside) > 0, "or nothing is cut and the test says less"


def test_between_two_steps_of_8_bits_there_are_others(tmp_path: Path):
    """The negative control: an image that went through 8 bits on the way would have 256 values at
    most.
    """
    values = np.arange(4096, dtype=np.uint16).reshape(64, 64)
    deep_png(values, tmp_path / "a.png")
    assert len(np.unique(read_image(tmp_path / "a.png", 1, Range.parse("0..4095")))) == 4096


def cut(path: Path) -> None:
    deep_png(drawn(0, 4095, 0, np.uint16), path)
    path.write_bytes(path.read_bytes()[:300])


REFUSED: dict[str, tuple[str, Callable[[Path], Any], str]] = {
    "NaN": (
        "tif",
        lambda path: pillow(np.full(SIZE, np.nan, np.float32), path),
        "480 of them NaN or infinite",
    ),
    "infinity": (
        "tif",
        lambda path: pillow(np.full(SIZE, np.inf, np.float32), path),
        "480 of them NaN or infinite",
    ),
    "8 bits under a wider range": (
        "png",
        lambda path: pillow(drawn(0, 255, 0, np.uint8), path),
        "8-bit pixels, which lie in 0..255, and data.range=0..4095 reaches beyond",
    ),
    "0 is white": (
        "tif",
        lambda path: tiff(photometric="miniswhite")(drawn(0, 4095, 0, np.uint16), path),
        "in which 0 is white",
    ),
    "16-bit colours in PPM": (
        "ppm",
        lambda path: path.write_bytes(
            f"P6 {SIZE[1]} {SIZE[0]} 4095\n".encode() + bytes(6 * SIZE[0] * SIZE[1])
        ),
        "16-bit colours in a PPM",
    ),
    "a cut PNG": ("png", cut, "image.png"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_range_can_mean_is_refused_by_name(tmp_path: Path, name: str):
    ending, save, said = REFUSED[name]
    path = tmp_path / f"image.{ending}"
    save(path)
    with pytest.raises(BadImage, match=said):
        decode(path, 3, Range.parse("0..4095"))


@pytest.mark.parametrize(
    ("text", "low", "high"),
    [
        ("0..4095", 0, 4095),
        ("-1000..400", -1000, 400),
        ("0..1", 0, 1),
        ("0.5..1e3", 0.5, 1000),
        (" -2 .. -1 ", -2, -1),
        ("window=400,level=40", -160, 240),
        ("window = 2000, level=-600", -1600, 400),
    ],
)
def test_ranges_are_read(text: str, low: float, high: float):
    scale = Range.parse(text)
    assert (scale.low, scale.high) == (low, high)
    assert Recipe("a", "b").with_fields(**{"data.range": text}).data.range == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4095",
        "4095..0",
        "1..1",
        "0..nan",
        "0..inf",
        "0...",
        "a..b",
        "window=0,level=1",
        "window=400",
        "level=1,window=2",
        "0..1e999",
    ],
)
def test_what_is_no_range(text: str):
    with pytest.raises(UsageError, match=r"data\.range="):
        Recipe("a", "b").with_fields(**{"data.range": text}).check()


def test_without_a_range_the_refusal_names_the_way_out(tmp_path: Path):
    deep_png(drawn(0, 4095, 0, np.uint16), tmp_path / "a.png")
    with pytest.raises(
        BadImage,
        match=r"16-bit pixels .* --set data\.range=0\.\.4095 or --set "
        r"data\.range=window=400,level=40",
    ):
        read_image(tmp_path / "a.png")
    file = medmnist(tmp_path / "a.npz", train_images=np.zeros((12, 10, 10), np.uint16))
    with pytest.raises(
        DataError,
        match=r"train_images are uint16, and only uint8 pixels are read without a range: "
        r".*data\.range=",
    ):
        npz_parts(file, 1)


# --- through every door
# -----------------------------------------------------------------------------------------------

KINDS: dict[str, tuple[Any, float, float, str]] = {
    "12 bits in 16": (np.uint16, 0, 4095, "0..4000"),
    "int16": (np.int16, -1500, 2500, "window=1400,level=-300"),
    "float": (np.float32, -0.1, 1.1, "0..1"),
}
COUNTS = {"train": 6, "val": 3, "test": 3}


def stored(kind: str, seed: int) -> np.ndarray:
    number, low, high, _ = KINDS[kind]
    return drawn(low, high, seed, number)


def wanted(kind: str, seed: int) -> np.ndarray:
    scale = Range.parse(KINDS[kind][3])
    return formula(stored(kind, seed), scale.low, scale.high)


def seeds(part: str) -> range:
    first = 10 * list(COUNTS).index(part)
    return range(first, first + COUNTS[part])


def save_image(values: np.ndarray, folder: Path, name: str) -> str:
    """uint16 as PNG, all else as TIFF; returns the file's name."""
    folder.mkdir(parents=True, exist_ok=True)
    ending = "png" if values.dtype == np.uint16 else "tif"
    (deep_png if ending == "png" else tiff())(values, folder / f"{name}.{ending}")
    return f"{name}.{ending}"


def folders(root: Path, kind: str) -> Path:
    for part in COUNTS:
        for seed in seeds(part):
            save_image(stored(kind, seed), root / part / "ab"[seed % 2], str(seed))
    return root


def npz(root: Path, kind: str) -> Path:
    root.mkdir(parents=True)
    arrays: dict[str, Any] = {}
    for part in COUNTS:
        arrays[f"{part}_images"] = np.stack([stored(kind, seed) for seed in seeds(part)])
        arrays[f"{part}_labels"] = np.array([seed % 2 for seed in seeds(part)])
    np.savez(root / "data.npz", **arrays)
    return root


def coco(root: Path, kind: str) -> Path:
    for part in COUNTS:
        images, annotations = [], []
        for seed in seeds(part):
            name = save_image(stored(kind, seed), root / part, str(seed))
            images.append({"id": seed, "file_name": name, "width": SIZE[1], "height": SIZE[0]})
            annotations.append({
                "id": seed + 1,
                "image_id": seed,
                "category_id": 1 + seed % 2,
                "bbox": [2, 3, 8, 9],
                "area": 72,
                "iscrowd": 0,
            })
        content = {
            "images": images,
            "annotations": annotations,
            "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}],
        }
        (root / f"{part}.json").write_text(json.dumps(content))
    return root


def masks(root: Path, kind: str) -> Path:
    for part in COUNTS:
        for seed in seeds(part):
            save_image(stored(kind, seed), root / "images" / part, str(seed))
            label = np.zeros(SIZE, dtype=np.uint8)
            label[4:12, 3 + seed % 4 : 15] = 1
            (root / "labels" / part).mkdir(parents=True, exist_ok=True)
            Image.fromarray(label).save(root / "labels" / part / f"{seed}.png")
    (root / "classes.json").write_text('["ground", "cell"]')
    return root


def spec(source: str, root: Path, kind: str) -> DataSpec:
    return DataSpec(
        source,  # type: ignore[arg-type]
        str(root),
        image_size=SIZE[1],
        crop_pct=1.0,
        range=KINDS[kind][3],
        **PLAIN,
    )


DOORS: Mapping[str, tuple[Callable[[Path, str], Path], Callable[[DataSpec], Any], str]] = {
    "folder": (folders, lambda data: open_splits(data, 0), "folder"),
    "npz": (npz, lambda data: open_splits(data, 0), "npz"),
    "self-supervision": (folders, lambda data: open_unlabelled(data, 0), "folder"),
    "boxes": (coco, lambda data: open_boxes(data, 0, masks=False), "coco"),
    "label images": (masks, lambda data: open_label_images(data, 0)[0], "masks"),
}


def made(tmp_path: Path, door: str, kind: str) -> tuple[Any, Path]:
    make, opener, source = DOORS[door]
    root = make(tmp_path / "data", kind)
    return opener(spec(source, root, kind)), root


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("door", DOORS)
def test_every_door_gives_the_same_pixels(tmp_path: Path, door: str, kind: str):
    splits, root = made(tmp_path, door, kind)
    for part, count in COUNTS.items():
        samples = getattr(splits, part)
        assert len(samples) == count
        for place in range(len(samples)):
            named = Path(samples.name(place)).stem
            seed = seeds(part)[int(named)] if door == "npz" else int(named)
            assert np.abs(samples.image(place)[..., 0] - wanted(kind, seed)).max() <= NEAR
    assert splits.fingerprint["range"] == KINDS[kind][3]
    source = DOORS[door][2]
    reading = Reading(source, range=KINDS[kind][3], masks=False, classes=door != "self-supervision")
    report = check(root, reading=reading)
    assert report.exit_code == 0
    outside = {
        fault.path: fault.reason for fault in report.warnings if fault.kind == "outside the range"
    }
    scale = Range.parse(KINDS[kind][3])
    below = sum(scale.outside(stored(kind, seed))[0] for part in COUNTS for seed in seeds(part))
    above = sum(scale.outside(stored(kind, seed))[1] for part in COUNTS for seed in seeds(part))
    counted = [reason.rpartition(": ")[2].replace(",", "").split() for reason in outside.values()]
    assert sum(int(words[0]) for words in counted) == below
    assert sum(int(words[3]) for words in counted) == above
    assert check(root, reading=Reading(source, masks=False)).exit_code == 1, "without the range"


@pytest.mark.parametrize("kind", KINDS)
def test_evaluation_normalises_what_the_formula_says(tmp_path: Path, kind: str):
    """Of the stored size, whole and normalised, for every task."""
    save_image(stored(kind, 3), tmp_path, "a")
    picture = read_image(next(tmp_path.iterdir()), 1, Range.parse(KINDS[kind][3]))
    expected = (wanted(kind, 3) - 0.25) / 0.5
    whole = eval_transform(SIZE[1], 1.0, "bicubic", (0.25,), (0.5,), 1, deep=True)(picture)
    cut = (SIZE[0] - SIZE[1]) // 2
    assert np.abs(whole[0].numpy() - expected[cut : cut + SIZE[1]]).max() <= 2 * NEAR
    for pipeline in (label_eval((0.25,), (0.5,)), box_eval((0.25,), (0.5,))):
        assert (
            np.abs(pipeline((picture, np.zeros(SIZE, np.uint8)))[0][0].numpy() - expected).max()
            <= 2 * NEAR
        )


def many(tensor: torch.Tensor) -> bool:
    """More values than 8 bits have: nothing was rounded on the way."""
    return len(torch.unique(tensor)) > 300 and bool(tensor.isfinite().all())


@pytest.mark.parametrize("channels", [1, 3])
def test_training_changes_work_on_floats(channels: int):
    mean, std = (0.4,) * channels, (0.2,) * channels
    picture = Range.parse("0..65535").applied(drawn(0, 65535, 0, np.uint16, 1)).repeat(channels, -1)
    data = DataSpec("folder", in_chans=channels, image_size=24, range="0..65535")
    seed_generators(0, 0, 0)
    for augment in (
        AugmentSpec(color_jitter=0.4, auto_augment=None, reprob=0.0),
        AugmentSpec(affine=(10, 0.1, 0.1), color_jitter=0.3, auto_augment=None, reprob=0.0),
    ):
        recipe = Recipe("a", "b", data=data, augment=augment)
        assert many(build_transforms(recipe, mean, std, train=True)(picture))
    segmentation = SegmentationSpec(
        scale=(0.5, 2.0),
        crop=(32, 32),
        quarter_turns=True,
        color_jitter=0.3,
        photometric=channels == 3,
    )
    image, _ = label_train(segmentation, mean, std)((picture, np.zeros(SIZE, np.uint8)))
    assert many(image)
    target = {"boxes": np.array([[2, 3, 10, 12]], np.float32), "labels": np.array([0])}
    for detection in (
        DetectionSpec(canvas=(32, 32), photometric=channels == 3),
        DetectionSpec(shortest=(32, 40), longest=64),
    ):
        assert many(box_train(detection, mean, std)((picture, target))[0])
    pytest.importorskip("lightly")
    views = multi_crop(
        DinoSpec(local_size=32, reduce=18, solarize=1.0), 32, mean, std, channels, deep=True
    )(picture)
    assert len(views) == 10
    assert all(many(view) for view in views)


def test_a_policy_for_8_bits_is_refused_with_a_range():
    recipe = Recipe(
        "a",
        "b",
        data=DataSpec(range="0..4095"),
        augment=AugmentSpec(auto_augment="rand-m9-mstd0.5-inc1"),
    )
    with pytest.raises(
        UsageError,
        match=r"changes 8-bit images, and data\.range=0\.\.4095 gives others: set "
        r"augment\.auto_augment=none",
    ):
        recipe.check()


def test_the_check_without_a_recipe_takes_a_range(tmp_path: Path):
    root = folders(tmp_path / "data", "12 bits in 16")
    assert data_command("check", root).exit_code == 1
    report = data_command("check", root, range="0..4000")
    assert report.exit_code == 0
    assert (
        "6 images of train with values outside data.range=0..4000, cut to its ends: 0 below and"
        in str(report)
    )
    with pytest.raises(UsageError, match=r"give --set data\.range=0\.\.1"):
        data_command("check", root, range="0..1", recipe="folder")


def test_npz_images_with_nan_are_named_and_can_be_left_out(tmp_path: Path):
    images = np.random.default_rng(0).random((12, 10, 10)).astype(np.float32)
    images[4, 2, 3] = np.nan
    file = medmnist(tmp_path / "a.npz", counts={"train": 12}, train_images=images)
    data = DataSpec("npz", str(file), range="0..1", val_fraction=0.3, **PLAIN)
    with pytest.raises(DataError, match="train/4: 1 of its values are NaN or infinite"):
        open_splits(data, 0)
    report = check(file, reading=Reading("npz", range="0..1"))
    assert [(fault.path, fault.kind) for fault in report.bad] == [("train/4", "not finite")]
    kept = open_splits(dataclasses.replace(data, faults="skip"), 0)
    assert len(kept.train) + len(kept.val) == 11
    assert np.isfinite(kept.train.image(0)).all()


def test_another_range_is_another_data_set(tmp_path: Path):
    root = folders(tmp_path / "data", "12 bits in 16")
    one, two = (
        open_splits(DataSpec("folder", str(root), range=text, **PLAIN), 0).fingerprint
        for text in ("0..4095", "0..4000")
    )
    assert {key for key in one if one[key] != two[key]} == {"range"}
