"""Classification: one label per image, cross-entropy on mixed, smoothed and weighted targets.

    loss = - 1/B sum_b sum_c w_c y_bc log softmax(logits_b)_c

y holds label smoothing and the mixing of mixup and cutmix. The weight w is 1, n / (K n_c) for
balanced classes (mean 1 over the training split), or what the recipe names. The sum is divided by
the batch, not by the sum of its weights: so the mean over ranks is the loss of the global batch.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless.convert.parts import projections
from softless.data.datasets import open_splits
from softless.data.loader import EpochLoader
from softless.data.resolution import seen_mpp
from softless.data.samples import Samples
from softless.data.transforms import Pipeline, build_transforms
from softless.errors import UsageError, unknown
from softless.evaluation.evaluate import Evaluation, evaluate
from softless.experiment.groups import AugmentSpec
from softless.experiment.recipe import Recipe
from softless.layers.lora import LowRank
from softless.models.arguments import takes
from softless.models.given import GIVEN
from softless.models.partial import rest_backbone, rest_statistics, train_heads
from softless.models.sides import sides
from softless.models.sizes import with_training_scale
from softless.tasks.classification.measure import validate
from softless.tasks.task import Loss, Task, TrainingProgress
from softless.tasks.weights import asked_weights, class_weights

MIXUP_MODES = ("batch", "pair", "elem")


class Classification(Task):
    """Turns a batch of images (B, C, H, W) and labels (B,) into a loss.

    Args:
        recipe: gives augmentation, class weights and seed.
        classes: K names in index order.
        class_counts: (K,) training images per class; needed for balanced weights.

    Raises:
        UsageError: a weight of an unknown class, or balanced weights of a class without an image.
    """

    name = "classification"
    needs: ClassVar[tuple[str, ...]] = ()
    measures: ClassVar[tuple[str, ...]] = ("top1", "balanced_accuracy", "auc", "loss")
    weighs = True

    def __init__(
        self, recipe: Recipe, classes: Sequence[str], class_counts: Sequence[int] | np.ndarray
    ) -> None:
        self.recipe = recipe
        self.classes = tuple(classes)
        self.seed = recipe.seed
        self.smoothing = recipe.augment.smoothing
        self.weight = asked_weights(
            recipe.class_weights, self.classes, lambda: class_weights(class_counts)
        )
        self.mixer = _mixer(recipe.augment, len(self.classes))

    @classmethod
    def open(cls, recipe: Recipe) -> "Classification":
        """Open the data of the recipe, and count the training images of each class.

        Raises:
            UsageError: the data have several labels an image.
            DataError: whatever is wrong with them, with its path.
        """
        splits = open_splits(recipe.data, recipe.seed, recipe.table)
        if splits.train.targets.ndim != 1:
            raise UsageError(
                f"{(recipe.table and recipe.table.path) or recipe.data.path} has "
                f"{len(splits.classes)} labels an image, and this recipe takes one: "
                "give the data with --data or --table, or in Python multilabel=MultilabelSpec()"
            )
        task = cls(
            recipe, splits.classes, np.bincount(splits.train.targets, minlength=len(splits.classes))
        )
        task.splits = splits
        return task

    def construction(self) -> dict[str, Any]:
        return {"architecture": self.recipe.model.name, "model_args": dict(self._arguments)}

    @cached_property
    def _arguments(self) -> dict[str, Any]:
        if self.recipe.model.name == GIVEN:
            return dict(self.recipe.model.args)
        return model_args(self.recipe, len(self.classes), self.splits.in_chans)

    def trained_mpp(self) -> float | None:
        return self._mpp

    @cached_property
    def _mpp(self) -> float | None:
        # as `eval_transform` covers the frame that is cropped
        down, across = (math.floor(side / self.recipe.data.crop_pct) for side in self.pixels())
        return seen_mpp(self.splits.train, lambda height, width: min(height / down, width / across))

    def learner(self, model: nn.Module) -> nn.Module:
        """Images (B, C, H, W) and probabilities (B, K) to the loss ()."""
        return Loss(model, self.loss, self._rest)

    @property
    def _rest(self) -> Callable[[nn.Module], None] | None:
        """What puts the parts that are not trained to rest; None where all are trained."""
        spec = self.recipe.model
        if spec.freeze == "backbone":
            return rest_backbone
        return None if spec.lora is None else rest_statistics

    def surround(self, model: nn.Module) -> nn.Module:
        """The model with what is not trained of it frozen, and low-rank updates where the recipe
        has them.
        """
        spec = self.recipe.model
        if spec.freeze == "backbone":
            return train_heads(model)
        if spec.lora is None:
            return model
        paths = projections(model)
        if not paths:
            raise UsageError(
                f"model.lora={spec.lora}: '{spec.name}' has no linear projection of an attention "
                "to update; leave it out"
            )
        moving = LowRank(model, paths, rank=spec.lora, seed=self.seed)
        train_heads(model, learned=True)
        return moving

    def evaluated(self, model: nn.Module) -> nn.Module:
        return model.merged() if isinstance(model, LowRank) else model

    def after_step(self, model: nn.Module, progress: TrainingProgress) -> None:  # noqa: ARG002
        if isinstance(model, LowRank):
            model.moved()

    def transform(self, *, train: bool) -> Pipeline:
        """An image to a float tensor (C, H, W), its sides `data.image_size`."""
        return build_transforms(self.recipe, self.splits.mean, self.splits.std, train=train)

    def evaluate(
        self, model: nn.Module, loader: EpochLoader, *, amp: str, label: str
    ) -> Evaluation:
        return evaluate(model, loader, self.classes, amp=amp, label=label)

    def validate(self, model: nn.Module, loader: EpochLoader, *, amp: str) -> dict[str, Any]:
        if loader.rounds is None:
            return super().validate(model, loader, amp=amp)
        return validate(model, loader, self.classes, amp=amp)

    def composition(self, samples: Samples) -> dict[str, int]:
        """Images of each class."""
        counts = np.bincount(samples.targets, minlength=len(self.classes)).tolist()
        return dict(zip(self.classes, counts, strict=True))

    def decided(self, outcome: Any, validated: Mapping[str, Any]) -> Evaluation:
        return replace(outcome, threshold=validated.get("threshold"))

    def published(self, model: nn.Module) -> nn.Module:
        return model

    def prepare(
        self, batch: Any, device: torch.device, *, epoch: int, step: int
    ) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) and labels (B,) on the device, mixed: images and probabilities (B,
        K).

        Raises:
            UsageError: an odd number of images that are to be mixed.
        """
        images, targets = (part.to(device, non_blocking=True) for part in batch)
        return self.mix(images, targets, epoch=epoch, step=step)

    def to(self, device: torch.device) -> "Classification":
        """Move the weights of the classes (K,)."""
        self.weight = None if self.weight is None else self.weight.to(device)
        return self

    def mix(
        self, images: Tensor, targets: Tensor, *, epoch: int, step: int
    ) -> tuple[Tensor, Tensor]:
        """Mix images (B, C, H, W) among each other, in place; targets (B,) become probabilities
        (B, K).

        What is drawn derives from (seed, epoch, step): every rank mixes alike, and a resumed run
        mixes like the first.

        Raises:
            UsageError: an odd number of images that are to be mixed.
        """
        if self.mixer is None:
            return images, self.soft(targets)
        if len(images) % 2:
            raise UsageError(
                f"mixup and cutmix mix pairs, but this process gets {len(images)} images a batch: "
                "choose an even "
                "batch_size per process, or augment.mixup=0 and augment.cutmix=0"
            )
        with numpy_seed(self.seed, epoch, step):
            return self.mixer(images, targets)

    def soft(self, targets: Tensor) -> Tensor:
        """Labels (B,) as smoothed probabilities (B, K)."""
        classes = len(self.classes)
        rest = self.smoothing / classes
        hot = torch.full((len(targets), classes), rest, device=targets.device)
        return hot.scatter_(1, targets.long().unsqueeze(1), 1.0 - self.smoothing + rest)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of logits (B, K) against probabilities (B, K), in float32 at least."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return F.cross_entropy(logits.to(dtype), targets.to(dtype), weight=self.weight)


def model_args(recipe: Recipe, classes: int, in_chans: int) -> dict[str, Any]:
    """The keyword arguments of `create_model` that rebuild the model for evaluation.

    Raises:
        UsageError: the model's image size is not the data's.
    """
    pixels = recipe.data.image_size
    spec = recipe.model
    # convolutional networks have none
    size = {"img_size": pixels} if takes(spec.name, spec.op, "img_size") else {}
    args = {**size, **spec.args, "num_classes": classes, "in_chans": in_chans}
    requested = args.get("img_size", pixels)
    if sides(requested) != sides(pixels):
        raise UsageError(
            f"model.args.img_size={requested} and data.image_size={pixels} differ: set both to the "
            "same pixels"
        )
    return with_training_scale(
        spec.name, args if spec.op is None else {"op": spec.op, **args}, pixels
    )


def _mixer(augment: AugmentSpec, classes: int) -> Any:
    if augment.mixup_mode not in MIXUP_MODES:
        raise unknown("mixup mode", augment.mixup_mode, MIXUP_MODES)
    if not (augment.mixup or augment.cutmix) or augment.mixup_prob == 0:
        return None
    from timm.data import Mixup

    return Mixup(
        mixup_alpha=augment.mixup,
        cutmix_alpha=augment.cutmix,
        prob=augment.mixup_prob,
        switch_prob=augment.mixup_switch_prob,
        mode=augment.mixup_mode,
        label_smoothing=augment.smoothing,
        num_classes=classes,
    )


@contextmanager
def numpy_seed(*numbers: int) -> Iterator[None]:
    """Seed numpy's global generator, which timm's Mixup draws from, and put the caller's state back
    afterwards.
    """
    state = np.random.get_state()  # noqa: NPY002 - timm draws from the global generator
    np.random.seed(np.random.SeedSequence(numbers).generate_state(4))  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(state)  # noqa: NPY002


TASK = Classification
