"""A small head for self-supervision in seconds, on the images of a small classification."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from softless.tasks.classification import small


def shrunk(recipe: Any, folder: Path) -> Any:
    """The recipe on generated images, with a small model and head."""
    recipe = small.shrunk(recipe, folder)
    return replace(
        recipe,
        model=replace(recipe.model, args={**recipe.model.args, "cls_attn_layers": 1}),
        dino=replace(
            recipe.dino, outputs=64, hidden=32, bottleneck=16, local_crops=2, local_size=16
        ),
    )
