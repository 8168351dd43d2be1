"""Detection, and instance segmentation where the head has masks: boxes and masks of objects of
several classes.

    loss = mean over images of the losses of torchvision's heads (models.detectors)

    R-CNN:     objectness + boxes of regions; classes + boxes, and masks, of the regions that are learnt from
    RetinaNet: focal loss of classes + l1 of boxes

What R-CNN draws is seeded by each image, so that the loss does not depend on batch mates or the
number of ranks.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from softless.data.datasets import Splits
from softless.data.loader import EpochLoader
from softless.data.samples import Samples
from softless.data.transforms import Pipeline
from softless.errors import UsageError
from softless.experiment.recipe import Recipe
from softless.tasks.detection.measure import Detections, evaluate
from softless.tasks.detection.model import Detector
from softless.tasks.detection.samples import BoxSamples, open_boxes
from softless.tasks.detection.settings import DetectionSpec
from softless.tasks.detection.sizes import measured
from softless.tasks.detection.transforms import eval_pipeline, train_pipeline
from softless.tasks.task import Task


class Detection(Task):
    """Turns images and their objects into a loss.

    Args:
        recipe: with its group `detection`.
        splits: of `BoxSamples`.
    """

    name = "detection"
    needs = ("pycocotools",)
    measures = ("box_ap", "box_ap50", "box_ap75", "mask_ap", "mask_ap50", "mask_ap75", "last")

    def __init__(self, recipe: Recipe, splits: Splits) -> None:
        self.recipe, self.splits = recipe, splits

    @classmethod
    def open(cls, recipe: Recipe) -> "Detection":
        """Open images and annotations in COCO's layout.

        Raises:
            UsageError: a field of the recipe that would have no effect, or cannot be used.
            DataError: all that is wrong with images and annotations.
        """
        _refuse_what_has_no_effect(recipe)
        spec = recipe.detection
        assert spec is not None
        train_pipeline(spec, (0.5,), (0.5,))  # its errors come before the annotations are read
        return cls(
            recipe,
            open_boxes(recipe.data, recipe.seed, masks=spec.head == "maskrcnn", faults=spec.faults),
        )

    counted = "objects"

    def composition(self, samples: Samples) -> dict[str, int]:
        """Objects of each class, crowds left out."""
        assert isinstance(samples, BoxSamples)
        objects = [
            annotation["category_id"]
            for entry in samples.entries
            for annotation in entry.annotations
            if not annotation.get("iscrowd")
        ]
        return {name: objects.count(key) for key, name in samples.categories.items()}

    def measured(self, recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
        spec, train = recipe.detection, self.splits.train
        assert spec is not None
        assert isinstance(train, BoxSamples)
        measurements = measured(train, spec, spec.measure) if spec.measure else {}
        changes = {
            f"detection.{name}": (getattr(spec, name), value)
            for name, value in measurements.items()
        }
        return replace(recipe, detection=replace(spec, **measurements)), changes

    def with_classes(self, classes: Sequence[str], owner: str) -> "Detection":
        return type(self)(
            self.recipe, self.splits.ordered(classes, owner, self.data_location, partly=True)
        )

    @property
    def spec(self) -> DetectionSpec:
        assert self.recipe.detection is not None
        return self.recipe.detection

    def construction(self) -> dict[str, Any]:
        model, spec, train = self.recipe.model, self.spec, self.splits.train
        assert isinstance(train, BoxSamples)
        args = {**model.args, "in_chans": self.splits.in_chans}
        head = {
            "head": spec.head,
            "classes": len(self.splits.classes),
            "layers": None if spec.layers is None else list(spec.layers),
            "width": spec.width,
            "norm": spec.norm,
            "anchors": None if spec.anchors is None else list(spec.anchors),
            "proposals": spec.proposals,
            "regions": spec.regions,
            "detections": spec.detections,
            "min_score": spec.min_score,
            "min_size": spec.resize,
            "max_size": spec.longest,
            "categories": list(train.categories),
        }
        return {
            "architecture": model.name,
            "model_args": args if model.op is None else {"op": model.op, **args},
            "head": head,
        }

    def learner(self, model: nn.Module) -> nn.Module:
        """Lists of images (C, h, w) and targets to the detector's loss ()."""
        assert isinstance(model, Detector)
        return DetectionLearner(model)

    def transform(self, *, train: bool) -> Pipeline:
        mean, std = self.splits.mean, self.splits.std
        return train_pipeline(self.spec, mean, std) if train else eval_pipeline(mean, std)

    def evaluate(
        self, model: nn.Module, loader: EpochLoader, *, amp: str, label: str
    ) -> Detections:
        return evaluate(model, loader, detections=self.spec.detections, amp=amp, label=label)

    def prepare(
        self,
        batch: Any,
        device: torch.device,
        *,
        epoch: int,  # noqa: ARG002
        step: int,  # noqa: ARG002
    ) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
        """The batch on the device: images, each (C, h, w), and the target of each.

        A target holds boxes (n, 4), x and y of two corners in pixels, labels (n,) and a key ();
        with `head="maskrcnn"` masks (n, h, w) too.
        """
        images, targets = batch
        moved = [
            {name: value.to(device, non_blocking=True) for name, value in target.items()}
            for target in targets
        ]
        return [image.to(device, non_blocking=True) for image in images], moved

    def pixels(self) -> tuple[int, int]:
        """The first image of validation, as it is resized."""
        assert isinstance(self.splits.val, BoxSamples)
        first = self.splits.val.entries[0]
        sides = (first.height, first.width)
        if self.spec.resize is None:
            return sides
        factor = min(self.spec.resize / min(sides), self.spec.longest / max(sides))
        return int(factor * sides[0]), int(factor * sides[1])

    def trained_pixels(self) -> tuple[int, int]:
        """The canvas, or a typical image as it is resized in evaluation."""
        return self.spec.canvas or self.pixels()


class DetectionLearner(nn.Module):
    """Lists of images and targets to the detector's loss ()."""

    def __init__(self, model: Detector) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: list[Tensor], targets: list[Mapping[str, Tensor]]) -> Tensor:
        """Images, each (C, h, w), and targets of `Detection.prepare` to the loss ()."""
        return self.model.loss(images, targets)


def _refuse_what_has_no_effect(recipe: Recipe) -> None:
    plain = type(recipe.augment)()
    if replace(recipe.augment, repeats=plain.repeats) != plain:
        raise UsageError(
            f"recipe '{recipe.name}' sets fields of augment, which are for classification: sizes, "
            "flips and colours of detection are fields of "
            "the group detection"
        )
    if recipe.data.source != "coco":
        raise UsageError(
            f"data.source={recipe.data.source}: detection takes boxes in COCO's layout, "
            "data.source=coco"
        )
    spec = recipe.detection
    assert spec is not None
    if recipe.metric.startswith("mask") and spec.head != "maskrcnn":
        raise UsageError(
            f"metric={recipe.metric}: detection.head={spec.head} has no masks; set metric=box_ap"
        )


TASK = Detection
