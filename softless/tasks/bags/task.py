"""Bags: a class, several labels, or the time to an event, of each slide as the features of its tiles.

    one class       loss = - 1/B sum_b sum_c w_c y_bc log softmax(z_b)_c,       y smoothed
    several labels  loss = - 1/(B K) sum_b sum_k [ w_k y_bk log s(z_bk) + (1 - y_bk) log(1 - s(z_bk)) ]
    survival        loss = Cox's partial likelihood over the batch, Efron's ties

Bags of several lengths are one batch by padding, with a mask. Masked tiles are gone, so a bag's loss
has nothing to do with its batch mates. Survival compares it with them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless import ranks
from softless.data.loader import EpochLoader
from softless.data.samples import Samples
from softless.errors import UsageError
from softless.evaluation.survival import cox_loss
from softless.experiment.recipe import Recipe
from softless.models.arguments import takes
from softless.tasks.bags import folds
from softless.tasks.bags.measure import BagEvaluation, Kind, evaluate_bags, with_thresholds
from softless.tasks.bags.model import StandardisedLinear, folded
from softless.tasks.bags.samples import (
    BagSplits,
    all_of,
    feature_scale,
    lengths_of,
    open_splits,
    open_whole,
    positions_of,
)
from softless.tasks.bags.settings import BagsSpec
from softless.tasks.bags.transforms import BagPipeline, bag_pipeline, padded
from softless.tasks.task import Task
from softless.tasks.weights import asked_weights, class_weights, label_weights

WORDS: Mapping[str, str] = {
    "class": "one class a slide",
    "several": "several labels a slide",
    "survival": "survival times",
}
LARGEST = 1 << 14  # of a number of best.json's sides


class Learner(nn.Module):
    """A batch of bags to its loss.

    Args:
        model: of bags.
        loss: logits (B, K) and targets to ().
    """

    def __init__(self, model: nn.Module, loss: Any) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, features: Tensor, coords: Tensor, mask: Tensor, targets: Tensor) -> Tensor:
        """Features (B, N, D), coordinates (B, N, 2) or (B, N, 0), mask (B, N), targets (B, …)."""
        placed = coords if coords.shape[2] else None
        value: Tensor = self.loss(self.model(features, placed, mask), targets)
        return value


class Bags(Task):
    """Turns a batch of bags into a loss.

    Args:
        recipe: with its group `bags`.
        splits: of bags, and of what kind their labels are.

    Raises:
        UsageError: weights of classes that there are not, or fields that do not fit the labels.
    """

    name = "bags"
    needs: ClassVar[tuple[str, ...]] = ()
    measures: ClassVar[tuple[str, ...]] = (
        "auc",
        "loss",
        "top1",
        "balanced_accuracy",
        "concordance",
        "last",  # where validation patients are too few to pick an epoch
    )
    of_images: ClassVar[bool] = False
    counted: ClassVar[str] = "bags"
    weighs = True

    def __init__(self, recipe: Recipe, opened: BagSplits) -> None:
        assert recipe.bags is not None
        self.recipe, self.spec, self.splits = recipe, recipe.bags, opened.splits
        self.kind: Kind = opened.kind
        self.in_dim = opened.in_dim
        self.weight = self._weights()

    @classmethod
    def open(cls, recipe: Recipe) -> "Bags":
        """Open the table and the bags of the recipe; every bag is looked into.

        Raises:
            DataError: all that is wrong with them.
            UsageError: a field of the recipe that cannot be used.
        """
        opened = open_splits(recipe)
        _check(recipe, opened.kind)
        return cls(recipe, opened)

    @classmethod
    def open_other(cls, recipe: Recipe, split: str) -> "Bags":
        opened = open_whole(recipe)
        return cls(replace(recipe, class_weights="none"), all_of(opened, split))

    def _weights(self) -> Tensor | None:
        """(K,) of the classes, or of the labels."""
        weights, targets = self.recipe.class_weights, self.splits.train.targets
        classes = self.splits.classes
        if weights == "none":
            return None
        if self.kind == "survival":
            raise UsageError(
                f"class_weights={weights} is for classes, and these bags have survival times: "
                "leave it out"
            )
        if self.kind == "several":
            return asked_weights(weights, classes, lambda: label_weights(targets, classes))
        counts = np.bincount(targets, minlength=len(classes))
        return asked_weights(weights, classes, lambda: class_weights(counts))

    def with_classes(self, classes: Sequence[str], owner: str) -> "Bags":
        splits = self.splits
        if self.kind != "survival":
            splits = splits.ordered(classes, owner, self.data_location)
        return Bags(self.recipe, BagSplits(splits, self.kind, self.in_dim))

    @property
    def data_location(self) -> str:
        table = self.recipe.table
        return str((table and table.path) or self.recipe.data.path)

    @property
    def outputs(self) -> int:
        return 1 if self.kind == "survival" else len(self.splits.classes)

    def construction(self) -> dict[str, Any]:
        model, spec = self.recipe.model, self.spec
        args: dict[str, Any] = {**model.args}
        for name in ("pool", "position", "chunk"):
            value, plain = getattr(spec, name), getattr(BagsSpec(), name)
            if takes(model.name, model.op, name):
                args.setdefault(name, value)
            elif value != plain:
                raise UsageError(f"bags.{name}={value}: '{model.name}' takes no {name}")
        if args.get("chunk") is None:
            args.pop("chunk", None)
        if model.op is not None:
            args["op"] = model.op
        args |= {"in_dim": self.in_dim, "num_classes": self.outputs}
        head = {"standardise": self.spec.standardise, "kind": self.kind}
        return {"architecture": model.name, "model_args": args, "head": head}

    def trial(self) -> tuple[Tensor, ...]:
        tiles = torch.zeros(1, 4, self.in_dim)
        return (tiles, torch.zeros(1, 4, 2)) if self._positions else (tiles,)

    @property
    def _positions(self) -> bool:
        """Whether the model sees where tiles lie."""
        return positions_of(self.recipe)

    def surround(self, model: nn.Module) -> nn.Module:
        """The model, which knows mean and deviation of the training tiles."""
        embed = getattr(model, "embed", None)
        if isinstance(embed, StandardisedLinear):
            mean, deviation = self._scale
            embed.mean.copy_(mean)
            embed.deviation.copy_(deviation)
        return model

    def published(self, model: nn.Module) -> nn.Module | None:
        """The model with the scale of its features in its first layer; None of survival, which no
        config.json says.
        """
        if self.kind == "survival":
            return None
        construction = self.construction()
        return folded(model, construction["architecture"], construction["model_args"])

    def preparation(self) -> dict[str, Any]:
        """Features are taken as they are; a bag has one class or several labels."""
        return {"task": "multilabel" if self.kind == "several" else "classification"}

    @cached_property
    def _scale(self) -> tuple[Tensor, Tensor]:
        """(D,) both; of several processes those that the first measured."""
        measured: Any = feature_scale(self.splits.train) if ranks.rank() == 0 else None
        mean, deviation = ranks.gather(measured)[0]
        return torch.as_tensor(mean), torch.as_tensor(deviation)

    def learner(self, model: nn.Module) -> nn.Module:
        """Features, coordinates, mask and targets to the loss ()."""
        return Learner(model, self.loss)

    def loss(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Of logits (B, K) in float32 at least; targets (B,), (B, K), or (B, 2) time and event."""
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        smoothing = self.spec.smoothing
        if self.kind == "survival":
            return cox_loss(logits[:, 0], targets[:, 0], targets[:, 1] > 0)
        if self.kind == "several":
            smooth = targets.to(logits.dtype) * (1 - smoothing) + smoothing / 2
            return F.binary_cross_entropy_with_logits(logits, smooth, pos_weight=self.weight)
        hot = F.one_hot(targets.long(), logits.shape[1]).to(logits.dtype)
        smooth = hot * (1 - smoothing) + smoothing / logits.shape[1]
        return F.cross_entropy(logits, smooth, weight=self.weight)

    def to(self, device: torch.device) -> "Bags":
        """Move the weights of the classes (K,)."""
        self.weight = None if self.weight is None else self.weight.to(device)
        return self

    def transform(self, *, train: bool) -> BagPipeline:
        """A bag to its tiles; in training some of them, drawn each time."""
        if not train:
            return bag_pipeline(positions=self._positions)
        spec = self.spec
        return bag_pipeline(positions=self._positions, tiles=spec.tiles, keep=spec.keep)

    def prepare(
        self,
        batch: Any,
        device: torch.device,
        *,
        epoch: int,  # noqa: ARG002
        step: int,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Features (B, N, D), coordinates, mask (B, N) and targets (B, …) on the device."""
        bags, targets = batch
        truth = torch.as_tensor(np.stack([np.asarray(target) for target in targets]))
        if truth.dtype == torch.float64:
            truth = truth.float() if self.kind != "survival" else truth
        parts = (*padded(list(bags)), truth)
        features, coords, mask, truth = (part.to(device, non_blocking=True) for part in parts)
        return features, coords, mask, truth

    def evaluate(
        self, model: nn.Module, loader: EpochLoader, *, amp: str, label: str
    ) -> BagEvaluation:
        answered = getattr(model, "kind", self.kind)
        if answered != self.kind:
            raise UsageError(
                f"the model answers {WORDS[answered]}, and the table {self.data_location} has "
                f"{WORDS[self.kind]}: name the columns with --set table.label=… when it is trained"
            )
        classes = self.splits.classes or ("risk",)
        fold = self.recipe.data.fold
        return evaluate_bags(model, loader, classes, self.kind, amp=amp, label=label, fold=fold)

    def decided(self, outcome: Any, validated: Mapping[str, Any]) -> BagEvaluation:
        return with_thresholds(outcome, validated)

    def composition(self, samples: Samples) -> dict[str, int]:
        """Bags of each class, or with each label; of survival with and without the event."""
        if self.kind == "several":
            counts = samples.targets.sum(0)
            return dict(zip(self.splits.classes, map(int, counts), strict=True))
        classes = ("no event", "event") if self.kind == "survival" else self.splits.classes
        counts = np.bincount(samples.targets, minlength=len(classes))
        return dict(zip(classes, map(int, counts), strict=True))

    def pixels(self) -> tuple[int, int]:
        """Tiles of the middle bag, and features of a tile."""
        middle = int(np.median(lengths_of(self.splits.train)))
        return min(max(middle, 1), LARGEST), min(self.in_dim, LARGEST)

    def extent(self, samples: Samples) -> str:
        lengths = np.sort(lengths_of(samples))
        low, middle, high = lengths[0], lengths[len(lengths) // 2], lengths[-1]
        tiles = f"{low:,} tiles" if low == high else f"{low:,} to {high:,} tiles, mostly {middle:,}"
        return f"{tiles} of {self.in_dim:,} features each"

    @classmethod
    def over_folds(cls, folder: Path, runs: Sequence[Path]) -> dict[str, Any]:
        return folds.together(folder, runs)


def _check(recipe: Recipe, kind: Kind) -> None:
    """Whether the recipe fits the kind of labels.

    Raises:
        UsageError: it does not.
    """
    metric = recipe.metric
    if (kind == "survival") != (metric == "concordance") and metric not in {"loss", "last"}:
        usual = "concordance" if kind == "survival" else "auc"
        raise UsageError(
            f"metric={metric}: the table has {'survival times' if kind == 'survival' else 'labels'}"
            f", so set metric={usual} or metric=loss"
        )
    if kind == "several" and metric in {"top1", "balanced_accuracy"}:
        raise UsageError(
            f"metric={metric} is for one class, and the bags have several labels: set metric=auc "
            "or metric=loss"
        )
    if kind == "survival" and recipe.accumulate > 1:
        raise UsageError(
            f"accumulate={recipe.accumulate} cuts the batch, and Cox's loss compares all of it: "
            "set a larger batch_size in its place"
        )
    if kind == "survival" and ranks.size() > 1:
        raise UsageError(
            "Cox's loss compares all bags of a batch, and several processes see a part each: "
            "train survival in one process"
        )


TASK = Bags
