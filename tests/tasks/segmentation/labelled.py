"""Small sets of images with label images: the brightness of a pixel says its class."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softless.experiment.groups import DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.tasks.segmentation.settings import SegmentationSpec

NAMES = {0: "ground", 3: "water", 7: "unknown"}
COUNTS = {"train": 4, "val": 2, "test": 3}
STEP = 30  # grey levels between two values


def label_of(seed: int, size: tuple[int, int], values: Sequence[int] = (0, 3, 7)) -> np.ndarray:
    """(h, w) uint8: rectangles of each value."""
    rng = np.random.default_rng(seed)
    label = np.full(size, values[0], dtype=np.uint8)
    for value in values[1:]:
        top, left = rng.integers(0, size[0] // 2), rng.integers(0, size[1] // 2)
        label[top : top + size[0] // 3, left : left + size[1] // 3] = value
    return label


def photograph(label: np.ndarray, seed: int) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 8, (*label.shape, 3))
    return Image.fromarray((STEP * label[..., None] + noise).astype(np.uint8))


def label_set(
    root: Path,
    sizes: Sequence[tuple[int, int]] = ((48, 64),),
    *,
    names: Mapping[int, str] = NAMES,
    counts: Mapping[str, int] = COUNTS,
    labels: str = "labels",
) -> Path:
    """root/images/PART/N.png and root/LABELS/PART/N.png, sizes (h, w) in turn."""
    for number, (part, count) in enumerate(counts.items()):
        for index in range(count):
            seed = 100 * number + index
            label = label_of(seed, sizes[index % len(sizes)], tuple(names))
            for place, image in (
                ("images", photograph(label, seed)),
                (labels, Image.fromarray(label)),
            ):
                file = root / place / part / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                image.save(file)
    (root / "classes.json").write_text(
        json.dumps({str(value): name for value, name in names.items()})
    )
    return root


def segmentation_recipe(
    root: Path, fields: Mapping[str, Any] | None = None, *, host: str = "xcit_tiny_12_p16_224"
) -> Recipe:
    """Two steps an epoch of a small segmenter."""
    small = {"embed_dim": 16, "depth": 4, "num_heads": 2}
    return Recipe(
        name="tiny",
        summary="for tests",
        model=ModelSpec(host, "sima", small),
        data=DataSpec("masks", str(root), image_size=64),
        segmentation=SegmentationSpec(decoder="dpt", width=8, ignore=("unknown",), dice=0.5),
        optim=OptimSpec(lr=5e-3, base_batch=None, clip_grad=1.0),
        schedule=ScheduleSpec(epochs=2, warmup_epochs=0),
        batch_size=2,
        metric="miou",
        threads=1,
    ).with_fields(**(fields or {}))
