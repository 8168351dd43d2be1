"""The settings of several labels an image: the group `multilabel` of a recipe."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softless.experiment.fields import TaskSettings, setting
from softless.tasks.classification import small


@dataclass(frozen=True)
class MultilabelSpec(TaskSettings):
    """Several labels an image, each there or not."""

    threshold: float = setting(0.5, "probability from which a label is said", "(0, 1)")

    def shrunk(self, recipe: Any, folder: Path) -> Any:
        """The recipe on generated data, with a small model and two steps."""
        return small.shrunk(recipe, folder)
