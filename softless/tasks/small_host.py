"""A small host with four maps: what the heads of small detections and segmentations stand on."""

from typing import Any

from softless.models.variants import VARIANTS
from softless.tasks.small import SMALL

PYRAMID = {"embed_dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}


def small_host(name: str) -> dict[str, Any]:
    """Arguments of a small host that has four maps."""
    pyramid = any(
        variant.host == "pyramid" and name in {variant.name, *map(variant.entry, variant.operators)}
        for variant in VARIANTS
    )
    return {**PYRAMID} if pyramid else {**SMALL, "depth": 4}
