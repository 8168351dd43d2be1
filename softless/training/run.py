"""A training under way."""

import time
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from softless.data.datasets import Splits
from softless.data.loader import EpochLoader, mix
from softless.errors import DivergedError
from softless.experiment.checkpoints import Checkpoints
from softless.experiment.claim import Claim
from softless.experiment.folder import RunFolder
from softless.experiment.recipe import Recipe
from softless.tasks.task import Task, TrainingProgress
from softless.training.epoch_state import OnEpoch
from softless.training.signals import Signals
from softless.training.world import World

if TYPE_CHECKING:
    from timm.scheduler.scheduler import Scheduler
    from timm.utils import ModelEmaV3


@dataclass
class Partial:
    """What the log will say of the epoch under way."""

    loss: float = 0.0  # summed over its steps
    lr: float = 0.0  # of its last step
    seconds: float = 0.0  # spent on it by processes before this one


@dataclass
class Run:
    """A training under way: what it was made from, what it moves, and how far it is."""

    requested: Recipe  # as it was given
    recipe: Recipe  # of the length that fits the data
    folder: RunFolder
    world: World
    task: Task
    model: nn.Module
    learner: nn.Module  # a batch to the loss, averaging gradients over the ranks
    ema: "ModelEmaV3 | None"
    optimizer: torch.optim.Optimizer
    scheduler: "Scheduler"
    scaler: torch.amp.GradScaler
    loader: EpochLoader
    val_loader: EpochLoader
    epochs: int
    signals: Signals
    checkpoints: Checkpoints
    claim: Claim | None = None  # of the first rank
    epoch: int = 0  # the one under way
    step: int = 0  # steps done of it
    updates: int = 0  # steps done in all
    # epochs that the run was meant to have before, once it was made longer
    extended_from: list[int] = field(default_factory=list)
    partial: Partial = field(default_factory=Partial)
    skipped: int = 0  # steps in a row that the float16 scaler left out
    # steps in a row that were left out because they were not finite, or rewinds since the last
    # epoch
    faults: int = 0
    # (epoch, step) that a rewind left out
    left_out: set[tuple[int, int]] = field(default_factory=set)
    on_epoch: OnEpoch | None = None
    ended_by: str = ""  # what ended the run before its last epoch
    # what became of the weights that it started from
    recovered: dict[str, Any] = field(default_factory=dict)
    best: dict[str, Any] | None = None
    best_weights: dict[str, Tensor] | None = None  # on the processor
    saved: tuple[int, int] | None = None  # (updates, epoch) of the last checkpoint
    saved_at: float = field(default_factory=time.monotonic)

    @property
    def splits(self) -> Splits:
        """The parts of the data."""
        return self.task.splits

    @property
    def progress(self) -> TrainingProgress:
        """How far the training is."""
        steps = len(self.loader)
        return TrainingProgress(
            self.updates, self.epochs * steps, self.epoch, self.epochs, self.step
        )

    @property
    def logged(self) -> int:
        """Lines of the log up to where the run stands, that of the start among them once it is the
        best so far.
        """
        return self.epoch + (self.task.measured_first and self.best is not None)

    @property
    def device(self) -> torch.device:
        """Where this rank computes."""
        return self.world.device

    def seed_step(self, step: int) -> None:
        """Dropout and stochastic depth draw from (seed, epoch, step, rank)."""
        torch.manual_seed(mix(self.recipe.seed, self.epoch, step, self.world.rank) >> 1)

    def rest(self) -> AbstractContextManager[None]:
        """A stretch in which nothing of the state moves, so that a signal may break it off."""
        return self.signals.interruptible(alone=self.world.size == 1)

    def check_finite(self) -> None:
        """An update may overflow although loss and gradient were finite: such weights are never kept.

        Raises:
            DivergedError: names the first weights that are not finite.
        """
        averaged = [] if self.ema is None else self.ema.module.state_dict().items()
        for name, tensor in (*self.model.state_dict().items(), *averaged):
            if not bool(tensor.isfinite().all()):
                raise DivergedError(
                    f"the weights {name} are not finite after step "
                    f"{self.step or len(self.loader)} of epoch {self.epoch + bool(self.step)} "
                    f"(lr {self.optimizer.param_groups[0]['lr']:.2e}); they were not kept, the "
                    f"states in {self.folder.path} are from before. Try a lower optim.lr"
                )
