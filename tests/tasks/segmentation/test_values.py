"""What label images hold and what `segmentation.values` calls it: every container against every set
of values is read right or refused by name.
"""

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from softless.cli.data import data as data_command
from softless.errors import DataError, SoftlessError, UsageError
from softless.experiment.groups import DataSpec
from softless.experiment.recipe import recipe_from
from softless.recipes import get_recipe
from softless.tasks.check import Reading, check
from softless.tasks.segmentation.meanings import checked_values
from softless.tasks.segmentation.samples import IGNORE, open_label_images
from softless.tasks.segmentation.settings import SegmentationSpec
from tests.tasks.segmentation.labelled import photograph

SIZE = (24, 32)
SCALE: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "val_fraction": 0.25}
COLOURS = np.random.default_rng(0).integers(0, 256, (256, 3), dtype=np.uint8)


def palette(label: np.ndarray) -> Image.Image:
    image = Image.fromarray(label).convert("P")
    image.putpalette(COLOURS.reshape(-1).tolist())
    return image


def pictured(
    make: Callable[[np.ndarray], Image.Image], ending: str = "png"
) -> Callable[[np.ndarray, Path], None]:
    return lambda label, place: make(label).save(place.with_suffix(f".{ending}"))


def npz(kind: Any) -> Callable[[np.ndarray, Path], None]:
    return lambda label, place: np.savez_compressed(
        place.with_suffix(".npz"), mask=label.astype(kind)
    )


def truth(label: np.ndarray) -> np.ndarray:
    return label > label.min()


HOLDERS: dict[str, Callable[[np.ndarray, Path], None]] = {
    "grey PNG": pictured(Image.fromarray),
    "grey TIFF": pictured(Image.fromarray, "tif"),
    "palette PNG": pictured(palette),
    "grey stored as RGB": pictured(lambda label: Image.fromarray(label).convert("RGB")),
    "colours": pictured(lambda label: Image.fromarray(COLOURS[label])),
    "16 bits": pictured(lambda label: Image.fromarray(label.astype(np.uint16))),
    "one bit": pictured(lambda label: Image.fromarray(truth(label))),
    "npz of bytes": npz(np.uint8),
    "npz of int64": npz(np.int64),
    "npz of true and false": lambda label, place: np.savez(
        place.with_suffix(".npz"), mask=truth(label)
    ),
    "npz of numbers with fractions": npz(np.float32),
    "npy of true and false": lambda label, place: np.save(place.with_suffix(".npy"), truth(label)),
    "npy by columns": lambda label, place: np.save(
        place.with_suffix(".npy"), np.asfortranarray(label)
    ),
}
# hold two values, whatever was drawn
BITS = {"one bit", "npz of true and false", "npy of true and false"}
REFUSED = {
    "colours": "holds colours",
    "16 bits": "more than 8 bits per pixel",
    "npz of numbers with fractions": "holds an array of float32",
}
VALUES: dict[str, tuple[int, ...]] = {
    "0, 1": (0, 1),
    "0, 255": (0, 255),
    "127, 254": (127, 254),
    "0, 1, void": (0, 1, 255),
    "0, 64, 127": (0, 64, 127),
}
NAMES = ("ground", "water", "road")


def drawn(values: tuple[int, ...], seed: int) -> np.ndarray:
    label = np.full(SIZE, values[0], dtype=np.uint8)
    for place, value in enumerate(values[1:]):
        label[6 * place : 6 * place + 9, seed % 5 : seed % 5 + 12] = value
    return label


def made(
    root: Path, values: tuple[int, ...], hold: Callable[[np.ndarray, Path], None], count: int = 4
) -> Path:
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for index in range(count):
        photograph(drawn(values, index) % 8, index).save(root / f"images/{index}.png")
        hold(drawn(values, index), root / f"masks/{index}")
    return root


def opened(root: Path, values: Mapping[Any, str] | None = None):
    return open_label_images(DataSpec("masks", str(root), **SCALE), 0, values=values)


def told(
    values: tuple[int, ...], *, by: str
) -> tuple[dict[int, str] | None, dict[str, str] | None]:
    """(segmentation.values, classes.json), one of them."""
    named = {
        value: "void" if value == 255 and len(values) > 2 else name
        for value, name in zip(values, NAMES, strict=False)
    }
    return (
        (named, None)
        if by == "recipe"
        else (None, {str(value): name for value, name in named.items() if name != "void"})
    )


@pytest.mark.parametrize(
    ("holder", "kind", "by"), [*itertools.product(HOLDERS, VALUES, ("recipe", "classes.json"))]
)
def test_every_holder_of_every_set_of_values(tmp_path: Path, holder: str, kind: str, by: str):
    """Read as it was drawn, or refused; the check with the recipe says the same."""
    stored = VALUES[kind]
    root = made(tmp_path / "set", stored, HOLDERS[holder])
    held = (0, 1) if holder in BITS else stored
    values, names = told(held, by=by)
    if names is not None:
        (root / "classes.json").write_text(json.dumps(names))
    report = check(root, reading=Reading("masks", values=values))
    if holder in REFUSED:
        with pytest.raises(DataError, match=REFUSED[holder]):
            opened(root, values)
        assert report.exit_code == 1
        return
    found, _ = opened(root, values)
    assert report.exit_code == 0
    expected = [name for name in told(held, by="recipe")[0].values() if name != "void"]  # type: ignore[union-attr]
    assert list(found.classes) == expected
    for part in (found.train, found.val):
        for place in range(len(part)):
            label = drawn(stored, int(part.key(place)))
            label = truth(label).astype(np.uint8) if holder in BITS else label
            wanted = np.select(
                [label == value for value in held[: len(expected)]], range(len(expected)), IGNORE
            )
            assert np.array_equal(part.target(place), wanted)


def test_several_values_share_a_name_and_void_counts_nowhere(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    root = made(tmp_path / "set", (0, 64, 127, 200), HOLDERS["grey PNG"])
    values = {0: "ground", 64: "cell", 127: "cell", 200: "void"}
    found, layout = opened(root, values)
    assert (found.classes, layout.values) == (("ground", "cell"), (0, 64))
    label = drawn((0, 64, 127, 200), int(found.train.key(0)))
    assert np.array_equal(
        found.train.target(0), np.select([label == 0, label == 200], [0, IGNORE], 1)
    )
    assert (
        "segmentation.values: the label images hold 0 as ground; 64, 127 as cell; 200 counting "
        "nowhere" in caplog.text
    )


def test_the_recipe_speaks_before_classes_json(tmp_path: Path):
    root = made(tmp_path / "set", (0, 127), HOLDERS["grey PNG"])
    (root / "classes.json").write_text('{"0": "a", "1": "b", "127": "c"}')
    assert opened(root, {0: "background", 127: "cell"})[0].classes == ("background", "cell")


@pytest.mark.parametrize("value", [9, 255])
def test_a_value_that_is_missed_is_said_with_file_and_count(tmp_path: Path, value: int):
    """255 too: who names values by hand says what each means."""
    root = made(tmp_path / "set", (0, 127), HOLDERS["grey PNG"])
    label = drawn((0, 127), 2)
    label[-2:, :3] = value
    Image.fromarray(label).save(root / "masks/2.png")
    values = {0: "background", 127: "cell"}
    said = (
        rf"masks/2\.png: it holds the values {value} \(6 pixels\); allowed are 0 background, "
        r"127 cell"
    )
    with pytest.raises(DataError, match=said):
        opened(root, values)
    assert check(root, reading=Reading("masks", values=values)).exit_code == 1
    text = f"segmentation.values={{0: background, 127: cell, {value}: void}}"
    assert (
        data_command(
            "check",
            root,
            recipe="vessels",
            set=[
                text,
                "segmentation.fov=none",
                "segmentation.ignore=()",
                "segmentation.labels=masks",
            ],
        ).exit_code
        == 0
    )


def test_colours_may_be_named_by_the_recipe(tmp_path: Path):
    root = made(tmp_path / "set", (0, 1, 2), HOLDERS["colours"])
    names = [f"#{red:02x}{green:02x}{blue:02x}" for red, green, blue in COLOURS[:3]]
    found, _ = opened(root, dict(zip(names, ("ground", "road", "road"), strict=True)))
    assert found.classes == ("ground", "road")
    label = drawn((0, 1, 2), int(found.train.key(0)))
    assert np.array_equal(found.train.target(0), label > 0)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({0: "a"}, "names 1 class beside void, and it takes two"),
        ({0: "a", 1: "void"}, "names 1 class beside void"),
        ({}, "names 0 classes"),
        ({0: "a", 256: "b"}, "the entry 256: 'b' is none; values are whole numbers from 0 to 255"),
        ({0: "a", -1: "b"}, "the entry -1: 'b' is none"),
        ({0: "a", "#ff0000": "b"}, "the entry '#ff0000': 'b' is none"),
        ({0: "a", 1: ""}, "the entry 1: '' is none"),
        ({0: "a", 1: "A"}, "differ only in case"),
        ({0: "a", "0": "b"}, "the value 0 is named twice"),
    ],
)
def test_values_that_are_none(values: Mapping[Any, str], said: str):
    with pytest.raises(UsageError, match=said):
        checked_values(values)


@pytest.mark.parametrize(
    "text",
    [
        "{0: background, 127: cell}",
        "{0: 'background', 127: 'cell'}",
        '{"0": "background", "127": "cell"}',
        "{ 0:background,127 :cell }",
    ],
)
def test_values_are_set_as_text_and_kept_in_recipe_json(text: str):
    recipe = get_recipe("vessels").with_fields(**{"segmentation.values": text})
    assert recipe.segmentation is not None
    assert recipe.segmentation.values == {0: "background", 127: "cell"}
    stored = json.loads(
        json.dumps({
            "name": "x",
            "summary": "",
            "segmentation": {"values": {0: "background", 127: "cell"}},
        })
    )
    assert recipe_from(stored).segmentation == SegmentationSpec(
        values={0: "background", 127: "cell"}
    )


@pytest.mark.parametrize(
    "text", ["{0, 1}", "background", "{0: 1, 1: 2}", "{0: a, 0: b}", "0: a, 1: b"]
)
def test_texts_that_are_no_values(text: str):
    with pytest.raises(
        SoftlessError, match=r"segmentation\.values=.* does not fit: the field takes"
    ):
        get_recipe("vessels").with_fields(**{"segmentation.values": text})


def two_arrays(root: Path) -> None:
    np.savez(root / "masks/0.npz", a=drawn((0, 1), 0), b=drawn((0, 1), 0))


def cut(root: Path) -> None:
    file = root / "masks/0.npy"
    np.save(file, drawn((0, 1), 0))
    file.write_bytes(file.read_bytes()[:-5])


ARRAYS_REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "two arrays": (two_arrays, r"holds 2 arrays \(a, b\)"),
    "cut off": (cut, "it is cut off"),
    "objects": (
        lambda root: np.save(root / "masks/0.npy", np.array([[None]], dtype=object)),
        "an array of objects",
    ),
    "no numpy file": (
        lambda root: (root / "masks/0.npy").write_bytes(b"no file of numpy"),
        "no numpy file",
    ),
    "values above a byte": (
        lambda root: np.save(root / "masks/0.npy", np.full(SIZE, 300)),
        "the values 300 to 300",
    ),
    "one dimension": (
        lambda root: np.save(root / "masks/0.npy", np.zeros(8, bool)),
        r"shape \(8,\)",
    ),
}


@pytest.mark.parametrize("name", ARRAYS_REFUSED)
def test_arrays_that_are_no_label_images(tmp_path: Path, name: str):
    spoil, said = ARRAYS_REFUSED[name]
    root = made(tmp_path / "set", (0, 1), HOLDERS["grey PNG"])
    (root / "masks/0.png").unlink()
    spoil(root)
    with pytest.raises(DataError, match=said):
        opened(root, {0: "a", 1: "b"})
    assert check(root, reading=Reading("masks", values={0: "a", 1: "b"})).exit_code == 1
