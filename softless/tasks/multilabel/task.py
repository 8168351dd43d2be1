"""Classification with several labels an image: a probability for each, binary cross-entropy on
smoothed and weighted targets.

    loss = - 1/(B K) sum_b sum_k [ w_k y_bk log s(z_bk) + (1 - y_bk) log(1 - s(z_bk)) ],        s
    the logistic function

y holds label smoothing, y (1 - e) + e / 2. The weight w is 1, or n_k0 / n_k1 for balanced labels:
the images without label k over those with it, so that both sides weigh alike. Mixup and cutmix are
for one label an image.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless.data.datasets import open_splits
from softless.data.loader import EpochLoader
from softless.data.samples import Samples
from softless.errors import DataError, UsageError
from softless.experiment.recipe import Recipe
from softless.tasks.classification.task import Classification
from softless.tasks.multilabel.measure import LabelEvaluation, evaluate_labels
from softless.tasks.weights import asked_weights, label_weights
from softless.words import few


class Multilabel(Classification):
    """Turns a batch of images (B, C, H, W) and labels (B, K) of 0 and 1 into a loss.

    Args:
        recipe: gives label smoothing, weights, threshold and seed.
        classes: the K labels in index order.
        targets: (n, K) of the training images.

    Raises:
        UsageError: a weight of an unknown label, or balanced weights of one that no image has.
    """

    name = "multilabel"
    needs = ()
    measures: ClassVar[tuple[str, ...]] = ("auc", "loss")

    def __init__(self, recipe: Recipe, classes: Sequence[str], targets: np.ndarray) -> None:
        assert recipe.multilabel is not None
        self.recipe = recipe
        self.classes = tuple(classes)
        self.seed = recipe.seed
        self.smoothing = recipe.augment.smoothing
        self.threshold = recipe.multilabel.threshold
        self.weight = asked_weights(
            recipe.class_weights, self.classes, lambda: label_weights(targets, classes)
        )
        self.mixer = None

    @classmethod
    def open(cls, recipe: Recipe) -> "Multilabel":
        """Open the data of the recipe, several labels an image.

        Raises:
            UsageError: the data have one label an image.
            DataError: a label of one value in all training images, or whatever else is wrong.
        """
        splits = open_splits(recipe.data, recipe.seed, recipe.table)
        targets = splits.train.targets
        if targets.ndim != 2:
            raise UsageError(
                "multilabel is for data with several labels an image, and these have one: leave "
                "it out"
            )
        constant = [
            name
            for name, share in zip(splits.classes, targets.mean(0), strict=True)
            if share in {0, 1}
        ]
        if constant:
            raise DataError(
                f"all training images have the same value of {few(constant)}: there is nothing "
                "to learn; leave the label out, or add images"
            )
        task = cls(recipe, splits.classes, targets)
        task.splits = splits
        return task

    def evaluate(  # type: ignore[override]
        self, model: nn.Module, loader: EpochLoader, *, amp: str, label: str
    ) -> LabelEvaluation:
        return evaluate_labels(
            model, loader, self.classes, threshold=self.threshold, amp=amp, label=label
        )

    def composition(self, samples: Samples) -> dict[str, int]:
        """Images that have each label."""
        return {
            name: int(count)
            for name, count in zip(self.classes, samples.targets.sum(0), strict=True)
        }

    def decided(self, outcome: Any, validated: Mapping[str, Any]) -> Any:  # noqa: ARG002
        """As it is: the threshold of labels is the recipe's."""
        return outcome

    def soft(self, targets: Tensor) -> Tensor:
        """Labels (B, K) of 0 and 1 as smoothed probabilities (B, K)."""
        return targets.float() * (1 - self.smoothing) + self.smoothing / 2

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean loss of logits (B, K) against probabilities (B, K), in float32 at least."""
        dtype = torch.promote_types(logits.dtype, torch.float32)
        return F.binary_cross_entropy_with_logits(
            logits.to(dtype), targets.to(dtype), pos_weight=self.weight
        )


TASK = Multilabel
