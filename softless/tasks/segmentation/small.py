"""Generated images of 64 pixels with a brighter rectangle, which is the second class."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softless.models.durable import write_picture, write_text
from softless.tasks.small import COUNTS, shortened
from softless.tasks.small_host import small_host


def shrunk(recipe: Any, folder: Path) -> Any:
    """The recipe on generated images, with a small host and decoder."""
    spec = recipe.segmentation
    args = {**recipe.model.args, **small_host(recipe.model.name)}
    shrunk = shortened(recipe, args, _label_images(folder / "images"), 64)
    crop = None if spec.crop is None else (64, 64)
    settings = replace(spec, width=16, layers=None, labels=None, ignore=(), fov=None, crop=crop)
    return replace(shrunk, segmentation=settings)


def _label_images(root: Path) -> Path:
    for seed, (part, count) in enumerate(COUNTS.items()):
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
