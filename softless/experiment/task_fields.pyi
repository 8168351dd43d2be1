# Written by tools/task_fields.py (`make tables`) from the table of tasks.
from dataclasses import dataclass

from softless.experiment.fields import TaskSettings
from softless.tasks.bags.settings import BagsSpec
from softless.tasks.detection.settings import DetectionSpec
from softless.tasks.dino.settings import DinoSpec
from softless.tasks.distillation.settings import DistillationSpec
from softless.tasks.multilabel.settings import MultilabelSpec
from softless.tasks.segmentation.settings import SegmentationSpec

GROUPS: dict[str, type[TaskSettings]]

@dataclass(frozen=True)
class TaskFields:
    multilabel: MultilabelSpec | None = ...
    detection: DetectionSpec | None = ...
    segmentation: SegmentationSpec | None = ...
    bags: BagsSpec | None = ...
    distillation: DistillationSpec | None = ...
    dino: DinoSpec | None = ...
