"""From a recipe to a trained model and its run folder."""

from softless.experiment.groups import (
    AugmentSpec,
    DataSpec,
    DivergenceSpec,
    ModelSpec,
    OptimSpec,
    SaveSpec,
    ScheduleSpec,
    TableSpec,
)
from softless.experiment.recipe import Recipe
from softless.tasks.detection.settings import DetectionSpec
from softless.tasks.dino.settings import DinoSpec
from softless.tasks.distillation.settings import DistillationSpec
from softless.tasks.multilabel.settings import MultilabelSpec
from softless.tasks.segmentation.settings import SegmentationSpec
from softless.training.loop import fit
from softless.training.result import Result

__all__ = [
    "AugmentSpec",
    "DataSpec",
    "DetectionSpec",
    "DinoSpec",
    "DistillationSpec",
    "DivergenceSpec",
    "ModelSpec",
    "MultilabelSpec",
    "OptimSpec",
    "Recipe",
    "Result",
    "SaveSpec",
    "ScheduleSpec",
    "SegmentationSpec",
    "TableSpec",
    "fit",
]
