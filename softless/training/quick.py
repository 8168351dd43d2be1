"""Any recipe, shrunk to seconds: generated images, a small model, two steps. Shows that the recipe runs, not that it learns."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from softless.training.recipe import Recipe

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
BATCH, STEPS, CLASSES = 8, 2, 2


def quick(recipe: Recipe, folder: Path) -> Recipe:
    """The same run with two steps of eight generated images, written into `folder`, and a model of width 32, depth 2.

    All else stays: host and operator, augmentation, optimiser, averaging, class weights, metric, AMP (float16 becomes
    bfloat16, which every CPU has).
    """
    return SHRINK[recipe.task](recipe, folder)


def _classification(recipe: Recipe, folder: Path) -> Recipe:
    pixels = min(recipe.data.image_size, 32)
    args = {**recipe.model.args, **SMALL}
    if "img_size" in args:
        args["img_size"] = pixels
    if recipe.data.source == "folder":
        path = _class_folders(folder / "images", pixels, recipe.data.in_chans)
        data = replace(recipe.data, path=str(path), image_size=pixels, workers=0)
    else:
        path = _npz(folder / "images.npz", pixels, recipe.data.in_chans)
        data = replace(recipe.data, source="npz", path=str(path), image_size=pixels, workers=0)
    return replace(
        recipe,
        model=replace(recipe.model, args=args, weights=None),
        data=data,
        schedule=replace(recipe.schedule, epochs=1, warmup_epochs=0),
        batch_size=BATCH,
        amp="bfloat16" if recipe.amp == "float16" else recipe.amp,
        threads=1,
    )


def _images(count: int, pixels: int, channels: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise whose mean says the class: (count, pixels, pixels[, 3]) uint8 and labels (count,)."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % CLASSES
    shape = (count, pixels, pixels) if channels == 1 else (count, pixels, pixels, channels)
    noise = rng.integers(0, 128, shape)
    return (noise + 127 * labels.reshape(-1, *[1] * (len(shape) - 1))).astype(np.uint8), labels


def _npz(path: Path, pixels: int, channels: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, np.ndarray] = {}
    for seed, (part, count) in enumerate(_COUNTS.items()):
        images, labels = _images(count, pixels, channels, seed)
        arrays |= {f"{part}_images": images, f"{part}_labels": labels.reshape(-1, 1)}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # typed as if a key could be allow_pickle
    return path


def _class_folders(root: Path, pixels: int, channels: int) -> Path:
    for seed, (part, count) in enumerate(_COUNTS.items()):
        for index, (image, label) in enumerate(zip(*_images(count, pixels, channels, seed), strict=True)):
            file = root / part / f"class_{label}" / f"{index:03}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return root


_COUNTS = {"train": BATCH * STEPS, "val": BATCH, "test": BATCH}

SHRINK: dict[str, Callable[[Recipe, Path], Recipe]] = {"classification": _classification}
