"""recipe.json of a run, read: the recipe, and what is noted beside it."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softless.errors import DataError, UsageError
from softless.experiment.files import MEND, read_recipe
from softless.experiment.folder import restored
from softless.experiment.recipe import Recipe

# of what made the run: its names in recipe.json
VERSIONS = ("softless", "torch", "timm", "torchvision", "numpy", "python")


@dataclass(frozen=True)
class StoredRecipe:
    """What recipe.json says of a run."""

    recipe: Recipe
    fitted: Mapping[str, Any]  # dotted field -> what the run took in place of the recipe's
    versions: Mapping[str, str]  # package -> version
    machine: Mapping[str, Any]

    @property
    def epochs(self) -> int:
        """The epochs that the run is meant to have."""
        epochs = self.fitted.get("schedule.epochs")
        return epochs if type(epochs) is int else self.recipe.schedule.epochs


def read_stored(path: Path) -> StoredRecipe:
    """Read recipe.json. Fields that only another softless has are passed over.

    Raises:
        DataError: missing, damaged, or no recipe.
    """
    content = read_recipe(path)
    try:
        recipe = restored(content, strict=False)
    except (UsageError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path} is damaged: {error}; {MEND}") from error
    return StoredRecipe(
        recipe=recipe,
        fitted=content.get("fitted") or {},
        versions={name: str(content[name]) for name in VERSIONS if name in content},
        machine=content.get("machine") or {},
    )
