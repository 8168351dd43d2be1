"""Data sets that the tests make themselves."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softless.experiment.groups import AugmentSpec, DataSpec
from softless.experiment.recipe import Recipe

PLAIN = AugmentSpec(
    color_jitter=None, auto_augment=None, reprob=0.0, hflip=0.0, mixup=0.0, cutmix=0.0
)


def noise(width: int = 20, height: int = 16, mode: str = "RGB", seed: int = 0) -> Image.Image:
    channels = len(mode) if mode != "L" else 1
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def class_folders(
    root: Path, counts: Mapping[str, int], *, ending: str = "png", mode: str = "RGB"
) -> Path:
    for number, (name, count) in enumerate(counts.items()):
        (root / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            noise(mode=mode, seed=100 * number + index).save(root / name / f"{index:02d}.{ending}")
    return root


def split_folders(root: Path, parts: Mapping[str, Mapping[str, int]]) -> Path:
    for part, counts in parts.items():
        class_folders(root / part, counts)
    return root


def table(
    root: Path,
    rows: Sequence[Sequence[object]],
    header: str = "file,label,patient",
    name: str = "table.csv",
) -> Path:
    """A table and the images that its rows name first."""
    (root / "images").mkdir(parents=True, exist_ok=True)
    for number, (file, *_) in enumerate(rows):
        noise(seed=number).save(root / str(file))
    lines = [header, *(",".join(map(str, row)) for row in rows)]
    (root / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return root / name


def medmnist(
    path: Path, *, counts: Mapping[str, int] | None = None, channels: int = 0, **replaced: Any
) -> Path:
    """An npz file with MedMNIST's keys, three classes in turn; `replaced` exchanges or (None) drops
    arrays.
    """
    arrays: dict[str, Any] = {}
    for seed, (part, n) in enumerate((counts or {"train": 12, "val": 6, "test": 9}).items()):
        shape = (n, 10, 10, channels) if channels else (n, 10, 10)
        arrays[f"{part}_images"] = np.random.default_rng(seed).integers(
            0, 256, shape, dtype=np.uint8
        )
        arrays[f"{part}_labels"] = (np.arange(n) % 3).astype(np.uint8)[:, None]
    arrays.update(replaced)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def labelled(
    path: Path,
    counts: Mapping[str, int] | None = None,
    labels: int = 4,
    side: int = 16,
    **replaced: Any,
) -> Path:
    """An npz file of grey images with several labels each: label k brightens one quarter of the
    image, more or less."""
    arrays: dict[str, Any] = {}
    for seed, (part, n) in enumerate((counts or {"train": 48, "val": 24, "test": 32}).items()):
        rng = np.random.default_rng(seed)
        told = (rng.random((n, labels)) < np.linspace(0.5, 0.2, labels)).astype(np.uint8)
        told[:2] = [[0] * labels, [1] * labels]
        pixels = rng.integers(0, 120, (n, side, side))
        half = side // 2
        for label in range(labels):
            top, left = divmod(label % 4, 2)
            pixels[:, top * half : (top + 1) * half, left * half : (left + 1) * half] += (
                80 * told[:, label, None, None]
            )
        arrays |= {f"{part}_images": pixels.astype(np.uint8), f"{part}_labels": told}
    arrays.update(replaced)
    np.savez(path, **{key: value for key, value in arrays.items() if value is not None})
    return path


def recipe(
    data: DataSpec | None = None, augment: AugmentSpec = PLAIN, **data_fields: Any
) -> Recipe:
    spec = dataclasses.replace(
        data or DataSpec(source="digits", image_size=32, in_chans=1, crop_pct=1.0), **data_fields
    )
    return Recipe("test", "a test", data=spec, augment=augment)
