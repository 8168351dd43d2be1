"""From a recipe to a trained model and its run folder."""

from softless.training.loop import fit
from softless.training.recipe import (
    AugmentSpec,
    DataSpec,
    ModelSpec,
    OptimSpec,
    Recipe,
    ScheduleSpec,
)
from softless.training.result import Result

__all__ = [
    "AugmentSpec",
    "DataSpec",
    "ModelSpec",
    "OptimSpec",
    "Recipe",
    "Result",
    "ScheduleSpec",
    "fit",
]
