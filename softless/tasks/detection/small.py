"""Generated images of 64 pixels with one brighter rectangle, whose brightness says the class."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softless.models.durable import make_folder, write_picture, write_text
from softless.tasks.small import CLASSES, COUNTS, shortened
from softless.tasks.small_host import small_host


def shrunk(recipe: Any, folder: Path) -> Any:
    """The recipe on generated images, with a small host and head."""
    spec = recipe.detection
    sizes: dict[str, Any] = (
        {"shortest": (64,), "longest": 96} if spec.canvas is None else {"canvas": (64, 64)}
    )
    args = {**recipe.model.args, **small_host(recipe.model.name)}
    shrunk = shortened(recipe, args, _boxes(folder / "images"), 64)
    settings = replace(
        spec,
        width=32,
        layers=None,
        proposals=50,
        regions=16,
        detections=10,
        resize=64,
        measure=(),
        **sizes,
    )
    return replace(shrunk, detection=settings)


def _boxes(root: Path) -> Path:
    """COCO's layout; polygons run along the boxes."""
    for seed, (part, count) in enumerate(COUNTS.items()):
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
