"""What a function that is called after each epoch sees of the run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

from torch import nn


@dataclass
class EpochState:
    """An epoch that ended, on the first rank, before its state is written.

    A run that is killed between the two calls again for the same epoch: what the function does
    should bear that.
    """

    epoch: int  # from 1
    epochs: int  # of the whole run
    # the epoch's line of log.jsonl: train_loss, lr, val, val_ema, kept, …
    scores: Mapping[str, Any]
    best: Mapping[str, Any] | None  # the best epoch so far: epoch, weights, metric, value
    model: nn.Module  # that is trained; `scores` say whether its average was better
    run_dir: Path
    stopped: bool = field(default=False, init=False)

    def stop(self) -> None:
        """End the run after this epoch; the best one so far is tested."""
        self.stopped = True


OnEpoch: TypeAlias = Callable[[EpochState], Any]
