"""Any recipe, shrunk to seconds: generated images, a small model, two steps.

Shows that the recipe runs, not that it learns.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softless.models.durable import make_folder, write_picture, write_stream, write_text
from softless.models.sizes import sides
from softless.models.variants import VARIANTS
from softless.training.recipe import Recipe

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
PYRAMID = {"embed_dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
BATCH, STEPS, CLASSES = 8, 2, 2


def quick(recipe: Recipe, folder: Path) -> Recipe:
    """The same run with two steps of eight generated images, written into `folder`, and a model of
    width 32, depth 2.

    All else stays: host and operator, augmentation, optimiser, averaging, class weights, metric,
    effective rate, AMP (float16 becomes bfloat16, which every CPU has).
    """
    small = SHRINK[recipe.task](recipe, folder)
    # generated images have 8 bits, and no groups
    data = replace(small.data, range=None, group=None, folds=None, fold=None)
    return replace(small, data=data, table=None)


def _classification(recipe: Recipe, folder: Path) -> Recipe:
    pixels = min(*sides(recipe.data.image_size), 32)
    args = {**recipe.model.args, **SMALL}
    if "img_size" in args:
        args["img_size"] = pixels
    if recipe.data.source == "folder" and recipe.multilabel is None:
        path = _class_folders(folder / "images", pixels, recipe.data.in_chans)
        data = replace(recipe.data, path=str(path), image_size=pixels, workers=0)
    else:
        path = _npz(
            folder / "images.npz",
            pixels,
            recipe.data.in_chans,
            several=recipe.multilabel is not None,
        )
        data = replace(recipe.data, source="npz", path=str(path), image_size=pixels, workers=0)
    return replace(
        recipe,
        model=replace(recipe.model, args=args, weights=None),
        data=data,
        schedule=replace(
            recipe.schedule, epochs=1, warmup_epochs=0, min_steps=None, min_epoch_steps=None
        ),
        optim=replace(recipe.optim, lr=recipe.effective_lr, base_batch=None),
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


def _npz(path: Path, pixels: int, channels: int, *, several: bool) -> Path:
    make_folder(path.parent)
    arrays: dict[str, np.ndarray] = {}
    for seed, (part, count) in enumerate(_COUNTS.items()):
        images, labels = _images(count, pixels, channels, seed)
        targets = np.stack([labels, np.roll(labels, 1)], 1) if several else labels.reshape(-1, 1)
        arrays |= {f"{part}_images": images, f"{part}_labels": targets}
    # typed as if a key could be allow_pickle
    write_stream(path, lambda file: np.savez(file, **arrays))  # type: ignore[arg-type]
    return path


def _class_folders(root: Path, pixels: int, channels: int) -> Path:
    for seed, (part, count) in enumerate(_COUNTS.items()):
        for index, (image, label) in enumerate(
            zip(*_images(count, pixels, channels, seed), strict=True)
        ):
            file = root / part / f"class_{label}" / f"{index:03}.png"
            write_picture(file, Image.fromarray(image))
    return root


def _segmentation(recipe: Recipe, folder: Path) -> Recipe:
    """Images of 64 pixels with a brighter rectangle, which is the second class."""
    assert recipe.segmentation is not None
    crop = None if recipe.segmentation.crop is None else (64, 64)
    return replace(
        recipe,
        model=replace(
            recipe.model, args={**recipe.model.args, **_small_host(recipe.model.name)}, weights=None
        ),
        data=replace(
            recipe.data, path=str(_label_images(folder / "images")), image_size=64, workers=0
        ),
        segmentation=replace(
            recipe.segmentation, width=16, layers=None, labels=None, ignore=(), fov=None, crop=crop
        ),
        schedule=replace(
            recipe.schedule, epochs=1, warmup_epochs=0, min_steps=None, min_epoch_steps=None
        ),
        optim=replace(recipe.optim, lr=recipe.effective_lr, base_batch=None),
        batch_size=BATCH,
        amp="bfloat16" if recipe.amp == "float16" else recipe.amp,
        threads=1,
    )


def _dino(recipe: Recipe, folder: Path) -> Recipe:
    assert recipe.dino is not None
    small = _classification(recipe, folder)
    return replace(
        small,
        model=replace(small.model, args={**small.model.args, "cls_attn_layers": 1}),
        dino=replace(
            recipe.dino, outputs=64, hidden=32, bottleneck=16, local_crops=2, local_size=16
        ),
    )


def _detection(recipe: Recipe, folder: Path) -> Recipe:
    """Images of 64 pixels with one brighter rectangle, whose brightness says the class."""
    assert recipe.detection is not None
    sizes: dict[str, Any] = (
        {"shortest": (64,), "longest": 96}
        if recipe.detection.canvas is None
        else {"canvas": (64, 64)}
    )
    return replace(
        recipe,
        model=replace(
            recipe.model, args={**recipe.model.args, **_small_host(recipe.model.name)}, weights=None
        ),
        data=replace(recipe.data, path=str(_boxes(folder / "images")), image_size=64, workers=0),
        detection=replace(
            recipe.detection,
            width=32,
            layers=None,
            proposals=50,
            regions=16,
            detections=10,
            resize=64,
            measure=(),
            **sizes,
        ),
        schedule=replace(
            recipe.schedule, epochs=1, warmup_epochs=0, min_steps=None, min_epoch_steps=None
        ),
        optim=replace(recipe.optim, lr=recipe.effective_lr, base_batch=None),
        batch_size=BATCH,
        amp="bfloat16" if recipe.amp == "float16" else recipe.amp,
        threads=1,
    )


def _small_host(name: str) -> dict[str, Any]:
    """Arguments of a small host that has four maps."""
    pyramid = any(
        variant.host == "pyramid" and name in {variant.name, *map(variant.entry, variant.operators)}
        for variant in VARIANTS
    )
    return {**PYRAMID} if pyramid else {**SMALL, "depth": 4}


def _label_images(root: Path) -> Path:
    for seed, (part, count) in enumerate(_COUNTS.items()):
        rng = np.random.default_rng(seed)
        for index in range(count):
            label = np.zeros((64, 64), dtype=np.uint8)
            top, left = rng.integers(0, 32, 2)
            label[top : top + 32, left : left + 32] = 1
            image = rng.integers(0, 128, (64, 64, 3)) + 127 * label[..., None]
            for kind, pixels in (("images", image.astype(np.uint8)), ("labels", label)):
                file = root / kind / part / f"{index:03}.png"
                write_picture(file, Image.fromarray(pixels))
    write_text(root / "classes.json", '{"0": "dark", "1": "bright"}')
    return root


def _boxes(root: Path) -> Path:
    """COCO's layout; polygons run along the boxes."""
    for seed, (part, count) in enumerate(_COUNTS.items()):
        rng = np.random.default_rng(seed)
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for index in range(count):
            pixels = rng.integers(0, 64, (64, 64, 3))
            (left, top), (width, height) = (
                rng.integers(0, 32, 2).tolist(),
                rng.integers(12, 32, 2).tolist(),
            )
            right, bottom, label = left + width, top + height, index % CLASSES
            pixels[top:bottom, left:right] += 96 * (1 + label)
            file = root / "images" / part / f"{index:03}.png"
            write_picture(file, Image.fromarray(pixels.clip(0, 255).astype(np.uint8)))
            images.append({"id": index, "file_name": file.name, "width": 64, "height": 64})
            outline = [left, top, right, top, right, bottom, left, bottom]
            annotations.append({
                "id": index + 1,
                "image_id": index,
                "category_id": label + 1,
                "bbox": [left, top, width, height],
                "area": width * height,
                "iscrowd": 0,
                "segmentation": [outline],
            })
        categories = [{"id": number + 1, "name": f"class {number}"} for number in range(CLASSES)]
        written = root / "annotations" / f"instances_{part}.json"
        make_folder(written.parent)
        content = {"images": images, "annotations": annotations, "categories": categories}
        write_text(written, json.dumps(content))
    return root


_COUNTS = {"train": BATCH * STEPS, "val": BATCH, "test": BATCH}

SHRINK: dict[str, Callable[[Recipe, Path], Recipe]] = {
    "classification": _classification,
    "multilabel": _classification,
    "detection": _detection,
    "dino": _dino,
    "segmentation": _segmentation,
}
