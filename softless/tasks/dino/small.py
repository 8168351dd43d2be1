"""A small head for self-supervision in seconds, on the images of a small classification."""

from dataclasses import replace
from typing import Any


def shrunk(recipe: Any) -> Any:
    """The recipe, which has a small model and generated images already, with a small head."""
    return replace(
        recipe,
        model=replace(recipe.model, args={**recipe.model.args, "cls_attn_layers": 1}),
        dino=replace(
            recipe.dino, outputs=64, hidden=32, bottleneck=16, local_crops=2, local_size=16
        ),
    )
