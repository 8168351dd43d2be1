"""Semantic segmentation: a class for each pixel, of whole images of their own size or of crops.

    loss = mean over images of [ 1/n sum_pixels w_c CE(pixel) + dice (1 - mean_c 2 sum p_c y_c / (sum p_c + sum y_c)) ]

over the n pixels of an image that are not ignored; w is 1, or n / (K n_c) by the training split's
pixels. The Dice term (Milletari et al., arXiv:1606.04797) is of each image, over the classes that
occur in it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from softless.data.datasets import Splits
from softless.data.loader import EpochLoader
from softless.data.pictures import size_of
from softless.data.samples import Samples
from softless.data.transforms import Pipeline
from softless.errors import UsageError, need
from softless.experiment.recipe import Recipe
from softless.tasks.segmentation.measure import SegmentationScores as Outcome
from softless.tasks.segmentation.measure import Tally, evaluate
from softless.tasks.segmentation.samples import IGNORE, LabelImages, open_label_images
from softless.tasks.segmentation.settings import SegmentationSpec
from softless.tasks.segmentation.transforms import eval_pipeline, train_pipeline
from softless.tasks.task import Task
from softless.tasks.weights import asked_weights, class_weights


class Segmentation(Task):
    """Turns images and their label images into a loss.

    Args:
        recipe: with its group `segmentation`.
        splits: of `LabelImages`.
        values: what label images call the classes, in index order.
    """

    name = "segmentation"
    needs = ("segmentation_models_pytorch",)
    measures = ("miou", "dice", "pixel_accuracy", "loss")

    def __init__(self, recipe: Recipe, splits: Splits, values: Sequence[int]) -> None:
        self.recipe, self.splits, self.values = recipe, splits, tuple(values)
        train = splits.train
        assert isinstance(train, LabelImages)
        self.pixel_counts = train.counts.sum(0)  # (K,) of the training split
        requested, classes = self.spec.class_weights, splits.classes
        weight = asked_weights(requested, classes, lambda: class_weights(self._counts_of_all()))
        self.loss = PixelLoss(weight, self.spec.dice)

    @classmethod
    def open(cls, recipe: Recipe) -> "Segmentation":
        """Read all images and label images once, and count the pixels of each class.

        Raises:
            UsageError: a field of the recipe that would have no effect, or cannot be used.
            DataError: all that is wrong with the files, each with its path.
        """
        _refuse_other_groups(recipe)
        spec = recipe.segmentation
        assert spec is not None
        train_pipeline(spec, (0.5,), (0.5,))  # its errors come before the images are read
        splits, layout = open_label_images(
            recipe.data,
            recipe.seed,
            labels=spec.labels,
            ignore=spec.ignore,
            fov=spec.fov,
            values=spec.values,
        )
        return cls(recipe, splits, layout.values)

    counted = "images with the class"

    def composition(self, samples: Samples) -> dict[str, int]:
        """Images in which each class has a pixel."""
        assert isinstance(samples, LabelImages)
        image_counts = (samples.counts > 0).sum(0).tolist()
        return dict(zip(self.splits.classes, image_counts, strict=True))

    def with_classes(self, classes: Sequence[str], owner: str) -> "Segmentation":
        splits = self.splits.ordered(classes, owner, self.data_location)
        value = dict(zip(self.splits.classes, self.values, strict=True))
        return type(self)(self.recipe, splits, [value[name] for name in splits.classes])

    @property
    def spec(self) -> SegmentationSpec:
        assert self.recipe.segmentation is not None
        return self.recipe.segmentation

    def construction(self) -> dict[str, Any]:
        model, spec = self.recipe.model, self.spec
        # --set model.args.token_scale=None for a twin
        own_args = {name: value for name, value in model.args.items() if value is not None}
        args = {**own_args, "in_chans": self.splits.in_chans}
        head = {
            "classes": len(self.values),
            "decoder": spec.decoder,
            "layers": None if spec.layers is None else list(spec.layers),
            "width": spec.width,
            "values": list(self.values),
        }
        return {
            "architecture": model.name,
            "model_args": args if model.op is None else {"op": model.op, **args},
            "head": head,
        }

    def learner(self, model: nn.Module) -> nn.Module:
        """Lists of images (C, h, w) and label images (h, w) to the loss ()."""
        return SegmentationLearner(model, self.loss)

    def transform(self, *, train: bool) -> Pipeline:
        mean, std = self.splits.mean, self.splits.std
        return train_pipeline(self.spec, mean, std) if train else eval_pipeline(mean, std)

    def evaluate(self, model: nn.Module, loader: EpochLoader, *, amp: str, label: str) -> Outcome:
        return evaluate(
            model, loader, self.splits.classes, self.values, loss=self.loss, amp=amp, label=label
        )

    def prepare(
        self,
        batch: Any,
        device: torch.device,
        *,
        epoch: int,  # noqa: ARG002
        step: int,  # noqa: ARG002
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The batch on the device: images, each (C, h, w), and label images, each (h, w), of class
        indices and IGNORE.
        """
        images, labels = (
            [tensor.to(device, non_blocking=True) for tensor in part] for part in batch
        )
        return images, labels

    def to(self, device: torch.device) -> "Segmentation":
        """Move the weights of the classes (K,)."""
        self.loss.to(device)
        return self

    def pixels(self) -> tuple[int, int]:
        """The crop, or the first training image's size."""
        if self.spec.crop is not None:
            return self.spec.crop
        width, height = size_of(self.splits.train.image(0))
        return height, width

    def baselines(self, samples: Samples) -> dict[str, dict[str, Any]]:
        """What answers without a model are worth: the commonest class of the training pixels
        everywhere, the first class everywhere, and another person's label images where the recipe
        names them.

        Raises:
            DataError: a label image of the other person is missing or of another size.
        """
        outcomes = {}
        for index in dict.fromkeys((int(self.pixel_counts.argmax()), 0)):
            always = [
                np.full_like(samples.target(position), index) for position in range(len(samples))
            ]
            outcomes[f"always {self.splits.classes[index]}"] = _measured(self, samples, always)
        if self.spec.observer is not None:
            outcomes[f"another person ({self.spec.observer})"] = _measured(
                self, samples, self._other_person(samples)
            )
        return {name: outcome.to_dict() for name, outcome in outcomes.items()}

    def _other_person(self, samples: Samples) -> list[np.ndarray]:
        """The other person's classes of the pixels of each sample; pixels that are ignored there
        are the first class.
        """
        spec = replace(
            self.recipe.data,
            mean=(0.5,) * self.recipe.data.in_chans,
            std=(0.5,) * self.recipe.data.in_chans,
        )
        splits, _ = open_label_images(
            spec,
            self.recipe.seed,
            labels=self.spec.observer,
            ignore=self.spec.ignore,
            values=self.spec.values,
        )
        labels_by_file: dict[str, tuple[LabelImages, int]] = {}
        for part in (splits.train, splits.val, splits.test):
            if isinstance(part, LabelImages):
                labels_by_file |= {part.files[index]: (part, index) for index in range(len(part))}
        names = [samples.name(index) for index in range(len(samples))]
        return [
            np.where((labels := part.target(index)) == IGNORE, 0, labels)
            for part, index in map(labels_by_file.__getitem__, names)
        ]

    def _counts_of_all(self) -> np.ndarray:
        absent = [
            name
            for name, count in zip(self.splits.classes, self.pixel_counts, strict=True)
            if not count
        ]
        if absent:
            raise UsageError(
                "balanced class weights need a pixel of every class, and the training split has "
                f"none of {', '.join(absent)}: "
                "set segmentation.class_weights=none, or name them in segmentation.ignore"
            )
        return self.pixel_counts


class PixelLoss(nn.Module):
    """The loss of one image: logits (K, h, w) and labels (h, w) of class indices and IGNORE, to ().

    Args:
        weight: of the classes in cross-entropy (K,), or None.
        dice: weight of the Dice term.
    """

    weight: Tensor | None

    def __init__(self, weight: Tensor | None, dice: float) -> None:
        super().__init__()
        self.register_buffer("weight", weight, persistent=False)
        self.share = dice
        self.dice = _dice_loss() if dice else None

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Logits (K, h, w) of any dtype and labels (h, w) to the loss (), in float32."""
        scores, truth = logits.float()[None], labels.long()[None]
        counted = (truth != IGNORE).sum().clamp(min=1)
        summed = F.cross_entropy(
            scores, truth, weight=self.weight, ignore_index=IGNORE, reduction="sum"
        )
        loss: Tensor = summed / counted
        if self.dice is None:
            return loss
        occurring = truth[truth != IGNORE].unique().numel()
        return loss + self.share * self.dice(scores, truth) * (scores.shape[1] / max(occurring, 1))


class SegmentationLearner(nn.Module):
    """Lists of images (C, h, w) and labels (h, w) to the mean of the images' losses ().

    Images of one size are one batch. Of several sizes each runs by itself, so that nothing is
    padded because of a batch mate; all ranks do the same, because their BatchNorms wait for each
    other.
    """

    def __init__(self, model: nn.Module, loss: PixelLoss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, images: list[Tensor], labels: list[Tensor]) -> Tensor:
        """Images, each (C, h, w), and labels, each (h, w), to the mean of their losses ()."""
        together = (
            [torch.stack(images)] if _of_one_size(images) else [image[None] for image in images]
        )
        logits = [image_logits for batch in together for image_logits in self.model(batch)]
        return torch.stack([
            self.loss(*logits_and_labels) for logits_and_labels in zip(logits, labels, strict=True)
        ]).mean()


def _measured(task: Segmentation, samples: Samples, answers: Sequence[np.ndarray]) -> Outcome:
    tally = Tally(len(task.values))
    for index, answer in enumerate(answers):
        tally.add(answer, samples.target(index), task.values)
    return tally.outcome(task.splits.classes, len(samples))


def _of_one_size(images: Sequence[Tensor]) -> bool:
    """Whether all images have one size, on all ranks."""
    sizes = {tuple(image.shape[-2:]) for image in images}
    if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        parts: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(parts, sizes)
        sizes = set().union(*parts)
    return len(sizes) == 1


def _dice_loss() -> nn.Module:
    need("segmentation_models_pytorch")
    from segmentation_models_pytorch.losses import MULTICLASS_MODE, DiceLoss

    return DiceLoss(MULTICLASS_MODE, ignore_index=IGNORE)


def _refuse_other_groups(recipe: Recipe) -> None:
    plain = type(recipe.augment)()
    if replace(recipe.augment, repeats=plain.repeats) != plain:
        raise UsageError(
            f"recipe '{recipe.name}' sets fields of augment, which are for classification: flips, "
            "scale, crop and colours of segmentation are "
            "fields of the group segmentation"
        )
    if recipe.data.source != "masks":
        raise UsageError(
            f"data.source={recipe.data.source}: segmentation takes images with label images, "
            "data.source=masks"
        )


TASK = Segmentation
