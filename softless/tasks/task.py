"""What the one training loop needs to know of a kind of work: its data, its model, its loss, its
measures.

The loop opens a task, asks it for model and batches, moves the weights down the gradient of its
loss, and keeps what it measures. It never asks which task it runs.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from softless.data.datasets import Splits
from softless.data.loader import EpochLoader, eval_loader, train_loader
from softless.data.samples import Samples
from softless.data.transforms import Pipeline
from softless.experiment.groups import CLASSIFIES
from softless.experiment.recipe import Recipe
from softless.models.kept import operators_of
from softless.models.scale import scale_of
from softless.models.sides import sides
from softless.tasks.lengths import Fitted


class Outcome(Protocol):
    """What was measured on one split."""

    def summary(self) -> dict[str, Any]:
        """What a log keeps of an epoch: numbers by the names of `experiment.measures`, with `seen`
        and `expected` images.
        """

    def to_dict(self) -> dict[str, Any]:
        """Everything that JSON can hold; with `interval` where there is one, and `per_class`:
        measure -> class -> value, where there are such.
        """

    def write(self, folder: Path, samples: Samples) -> None:
        """Leave the answers to these samples in a run folder."""


@dataclass(frozen=True)
class TrainingProgress:
    """Where a training is: steps of the whole run that are done, of how many, and the epoch under
    way.
    """

    updates: int
    total: int
    epoch: int
    epochs: int
    step: int  # of the epoch

    @property
    def share(self) -> float:
        """Of the run, 0..1."""
        return self.updates / max(self.total, 1)


class Task(ABC):
    """One kind of work on one data set, as a recipe asks for it."""

    # the group of the recipe that holds its settings; "classification" has none
    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]]  # optional packages, as `errors.need` takes them
    measures: ClassVar[tuple[str, ...]]  # of `experiment.measures`, that may choose the best epoch
    # whether the state before the first step is measured too, as epoch 0, and may be the best
    measured_first: ClassVar[bool] = False
    weighs: ClassVar[bool] = False  # whether `class_weights` have a meaning for its loss

    recipe: Recipe  # of the length that fits the data, once `open_task` gave it
    splits: Splits
    fitted: Fitted  # what was changed for that

    @classmethod
    @abstractmethod
    def open(cls, recipe: Recipe) -> "Task":
        """Open the data, checked whole: what is wrong with it is said before the first step.

        Raises:
            DataError: all faults, each with its file.
            UsageError: a field of the recipe that cannot be used.
        """

    @classmethod
    def open_other(cls, recipe: Recipe, split: str) -> "Task":  # noqa: ARG003
        """The task on other data than a run was trained on, where the part `split` of them is
        measured; a task may take data without parts whole.
        """
        return cls.open(recipe)

    def with_classes(self, classes: Sequence[str], owner: str) -> "Task":
        """The task with class indices in the order of `classes`, matched by name, as a trained
        model has them.

        Args:
            classes: names in index order.
            owner: whose they are, for the message.

        Raises:
            DataError: the data has other classes.
        """
        raise NotImplementedError

    @property
    def data_location(self) -> str:
        """Where the data lies, for people."""
        return str(self.recipe.data.path or self.recipe.data.source)

    @abstractmethod
    def construction(self) -> dict[str, Any]:
        """The keyword arguments of `loaded.assemble` that build the model, of JSON's types."""

    @property
    def outputs(self) -> int:
        """Numbers that the model answers an image with, where it is a module built in Python."""
        return len(self.splits.classes)

    def surround(self, model: nn.Module) -> nn.Module:
        """The module that is trained and continued after an interruption: the model, or what
        training puts around it.
        """
        return model

    @abstractmethod
    def learner(self, model: nn.Module) -> nn.Module:
        """A module that holds the model: a batch of `prepare` to the loss (), the mean over its
        images.

        Gradients are averaged over ranks at its border, so a loss that is no mean over images would
        depend on the number of ranks.
        """

    @abstractmethod
    def transform(self, *, train: bool) -> Pipeline:
        """What happens to a sample before it is collated."""

    @abstractmethod
    def evaluate(self, model: nn.Module, loader: EpochLoader, *, amp: str, label: str) -> Outcome:
        """Measure the model on what an evaluation loader yields; under torch.distributed all ranks
        get the result of the whole.
        """

    def validate(self, model: nn.Module, loader: EpochLoader, *, amp: str) -> dict[str, Any]:
        """The summary of `evaluate` between epochs; on all ranks that of the whole."""
        return self.evaluate(model, loader, amp=amp, label="validating").summary()

    # whether its samples are images; of others its `predict` opens them
    of_images: ClassVar[bool] = True
    counted: ClassVar[str] = "images"  # what `composition` counts

    def composition(self, samples: Samples) -> dict[str, int]:  # noqa: ARG002
        """How many of what is counted each class has in these samples; nothing where there are no
        classes.
        """
        return {}

    def measured(self, recipe: Recipe) -> tuple[Recipe, dict[str, Any]]:
        """The recipe with what it leaves to be measured on the training split, and those fields by
        dotted name.
        """
        return recipe, {}

    def decided(self, outcome: Outcome, validated: Mapping[str, Any]) -> Outcome:  # noqa: ARG002
        """An outcome with what validation chose beside the epoch, from its summary there: a
        threshold, where there is one.
        """
        return outcome

    def prepare(
        self, batch: Any, device: torch.device, *, epoch: int, step: int
    ) -> tuple[Any, ...]:
        """A batch of the loader as arguments of the learner; what is drawn here derives from (seed,
        epoch, step).

        Args:
            batch: images (B, C, H, W) and targets; or a list of each, where images differ in size.
            device: where the learner is.
            epoch: counted from 0.
            step: of the epoch, counted from 0.
        """
        raise NotImplementedError

    def parts(self, prepared: tuple[Any, ...], count: int) -> list[tuple[Any, ...]]:
        """A prepared batch in so many of equal size, each as arguments of the learner, in the order
        of the images.

        Args:
            prepared: what `prepare` made of a batch: tensors (B, …) and lists of B.
            count: how many; it divides B.
        """
        if count == 1:
            return [prepared]
        size = len(prepared[0]) // count
        return [
            tuple(tensors[start : start + size] for tensors in prepared)
            for start in range(0, count * size, size)
        ]

    # hooks that most tasks leave as they are
    def to(self, device: torch.device) -> "Task":  # noqa: ARG002
        """Move what the task holds itself."""
        return self

    def before_step(  # noqa: B027
        self, model: nn.Module, optimizer: torch.optim.Optimizer, progress: TrainingProgress
    ) -> None:
        """Called with the gradients at hand, before the optimiser moves."""

    def after_step(self, model: nn.Module, progress: TrainingProgress) -> None:  # noqa: B027
        """Called when the optimiser has moved."""

    def evaluated(self, model: nn.Module) -> nn.Module:
        """The part of the trained module that is measured, kept as the best and loaded again."""
        return model

    def published(self, model: nn.Module) -> nn.Module | None:  # noqa: ARG002
        """The model that `save_weights` can write for timm's `local-dir:`, or None where timm has
        no place for it.
        """
        return None

    def preparation(self) -> dict[str, Any]:
        """How the published model's images are prepared, as `save_weights` takes it."""
        data, labelled = self.recipe.data, self.recipe.task in CLASSIFIES
        return {
            "input_size": (self.splits.in_chans, *sides(data.image_size)),
            "mean": tuple(self.splits.mean),
            "std": tuple(self.splits.std),
            "crop_pct": data.crop_pct,
            "interpolation": data.interpolation,
            "range": data.range,
            **({"task": self.recipe.task} if labelled else {}),
        }

    def baselines(self, samples: Samples) -> Mapping[str, Mapping[str, Any]]:  # noqa: ARG002
        """Measures on these samples that need no training (the commonest class, another human), by
        name: what a score is held against.
        """
        return {}

    def trial(self) -> tuple[Tensor, ...]:
        """What a new model is tried on before a folder is made: arguments of its forward pass."""
        return (torch.zeros(1, self.splits.in_chans, *sides(self.recipe.data.image_size)),)

    def extent(self, samples: Samples) -> str:  # noqa: ARG002
        """How large the samples are, in words, where they have no pixels; nothing of images."""
        return ""

    @classmethod
    def over_folds(cls, folder: Path, runs: Sequence[Path]) -> dict[str, Any]:  # noqa: ARG003
        """What the runs of all folds say together: files are written into their folder, numbers
        returned for folds.json. Nothing where each fold speaks for itself.

        Args:
            folder: of the folders of the folds.
            runs: their folders, finished.
        """
        return {}

    def pixels(self) -> tuple[int, int]:
        """Height and width of a typical image: what cost and speed are counted at."""
        return sides(self.recipe.data.image_size)

    def trained_pixels(self) -> tuple[int, int]:
        """Height and width of what the model sees in training."""
        return self.pixels()

    def trained_mpp(self) -> float | None:
        """Micrometres per pixel of what the model sees in evaluation, where the training files say
        it; None otherwise.
        """
        return None

    def train_loader(self, rank: int, world: int) -> EpochLoader:
        """This rank's share of each global batch."""
        recipe = self.recipe
        return train_loader(
            self.splits.train,
            self.transform(train=True),
            batch=recipe.batch_size,
            parts=recipe.accumulate,
            seed=recipe.seed,
            rank=rank,
            world=world,
            repeats=recipe.augment.repeats,
            workers=recipe.data.workers or 0,
        )

    def eval_loader(self, samples: Samples, rank: int, world: int) -> EpochLoader:
        """This rank's share of the samples, every one once."""
        batch = max(self.recipe.batch_size // world, 1)
        workers = self.recipe.data.workers or 0
        return eval_loader(
            samples,
            self.transform(train=False),
            batch=batch,
            workers=workers,
            rank=rank,
            world=world,
        )


def facts(task: Task, model: nn.Module) -> Mapping[str, Any]:
    """What `load_run` needs to rebuild model and transform without the recipe: the content of
    best.json beside the score.

    Args:
        task: what was trained.
        model: what the task evaluates; its tokens are counted.
    """
    splits, data = task.splits, task.recipe.data
    trained = task.trained_pixels()
    scale, mpp = scale_of(model, *trained), task.trained_mpp()
    return {
        "task": task.name,
        **task.construction(),
        "operators": operators_of(model),
        "mean": list(splits.mean),
        "std": list(splits.std),
        "image_size": data.image_size
        if isinstance(data.image_size, int)
        else list(data.image_size),
        "pixels": list(task.pixels()),
        "trained_at": {
            "pixels": list(trained),
            "tokens": None if scale is None else scale.tokens,
            **({} if mpp is None else {"mpp": mpp}),
        },
        "in_chans": splits.in_chans,
        "classes": list(splits.classes),
        "crop_pct": data.crop_pct,
        "interpolation": data.interpolation,
        "range": data.range,
    }


class Loss(nn.Module):
    """A learner for models that are simply called: loss(model(images), targets).

    Args:
        model: images (B, C, H, W) to logits (B, K).
        loss: logits and targets to ().
        rest: puts those parts of the model that are not trained into evaluation mode.
    """

    def __init__(
        self, model: nn.Module, loss: Any, rest: Callable[[nn.Module], None] | None = None
    ) -> None:
        super().__init__()
        self.model, self.loss, self._rest = model, loss, rest

    def train(self, mode: bool = True) -> "Loss":
        """Into training or evaluation, but for what rests in training too."""
        super().train(mode)
        if mode and self._rest is not None:
            self._rest(self.model)
        return self

    def forward(self, images: Tensor, targets: Tensor) -> Tensor:
        """Images (B, C, H, W) and targets, (B,) or (B, K), to the loss ()."""
        value: Tensor = self.loss(self.model(images), targets)
        return value
