"""A small head, on the images of a small classification."""

from dataclasses import replace
from pathlib import Path
from typing import Any

from softless.tasks.classification import small


def shrunk(recipe: Any, folder: Path) -> Any:
    """The recipe on generated images, with a small model and head."""
    recipe = small.shrunk(recipe, folder)
    return replace(recipe, brightness=replace(recipe.brightness, width=6))
