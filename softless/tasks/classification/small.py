"""Generated class folders or arrays, whose brightness says the class."""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softless.models.durable import make_folder, write_picture, write_stream
from softless.models.sides import sides
from softless.tasks.small import CLASSES, COUNTS, SMALL, shortened


def shrunk(recipe: Any, folder: Path) -> Any:
    """The recipe on generated images, of one label or of several, with a small model."""
    pixels = min(*sides(recipe.data.image_size), 32)
    args = {**recipe.model.args, **SMALL}
    if "img_size" in args:
        args["img_size"] = pixels
    several, channels = recipe.multilabel is not None, recipe.data.in_chans
    if recipe.data.source == "folder" and not several:
        path = _class_folders(folder / "images", pixels, channels)
        return shortened(recipe, args, path, pixels)
    path = _npz(folder / "images.npz", pixels, channels, several=several)
    return shortened(recipe, args, path, pixels, source="npz")


def _images(count: int, pixels: int, channels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose mean says the class: (count, pixels, pixels[, 3]) uint8 and labels (count,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    shape = (count, pixels, pixels) if channels == 1 else (count, pixels, pixels, channels)
    noise = rng.integers(0, 128, shape)
    return (noise + 127 * labels.reshape(-1, *[1] * (len(shape) - 1))).astype(np.uint8), labels


def _npz(path: Path, pixels: int, channels: int, *, several: bool) -> Path:
    make_folder(path.parent)
    arrays: dict[str, np.ndarray] = {}
    for seed, (part, count) in enumerate(COUNTS.items()):
        images, labels = _images(count, pixels, channels, seed)
        targets = np.stack([labels, np.roll(labels, 1)], 1) if several else labels.reshape(-1, 1)
        arrays |= {f"{part}_images": images, f"{part}_labels": targets}
    # typed as if a key could be allow_pickle
    write_stream(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    return path


def _class_folders(root: Path, pixels: int, channels: int) -> Path:
    for seed, (part, count) in enumerate(COUNTS.items()):
        for index, (image, label) in enumerate(
            zip(*_images(count, pixels, channels, seed), strict=True)
        ):
            file = root / part / f"class_{label}" / f"{index:03}.png"
            write_picture(file, Image.fromarray(image))
    return root
