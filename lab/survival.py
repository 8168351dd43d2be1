"""What it costs that a run survives: a verified checkpoint beside plain torch.save, and a step of
the loop beside the same step without what it watches.
"""

import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from softless.compare.record import record_path, write_csv
from softless.compare.timing import Spread, Timings, interleaved
from softless.words import table

MEGABYTES = 100
STEPS = 5  # of the loop, timed together
PLAIN = {"checkpoint": "torch.save", "step of the loop": "plain step"}


@dataclass(frozen=True)
class Cost:
    """One call: its time, and its ratio to the plain one from the pairs of each round."""

    what: str
    milliseconds: float
    low: float  # quarters
    high: float
    ratio: float | None  # to the plain one; None where it is that
    more_milliseconds: float | None


@dataclass(frozen=True)
class Costs:
    """All of them."""

    costs: tuple[Cost, ...]
    recorded: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [asdict(cost) for cost in self.costs]}

    def __str__(self) -> str:
        rows = [
            [
                cost.what,
                f"{cost.milliseconds:.1f}",
                f"{cost.low:.1f} to {cost.high:.1f}",
                "" if cost.ratio is None else f"{cost.ratio:.3f}",
                "" if cost.more_milliseconds is None else f"{cost.more_milliseconds:+.1f}",
            ]
            for cost in self.costs
        ]
        footer = f"\n\nrecorded: {self.recorded}" if self.recorded else ""
        return table(["", "ms", "quarters", "to the plain one", "more ms"], rows) + footer


def survival(*, rounds: int = 15, record: bool = False) -> Costs:
    """Time a checkpoint of 100 MB and a training step of the digits recipe, each beside its plain
    form, in turns.

    Args:
        rounds: how often each is timed.
        record: also write benchmarks/survival.csv of the repository.

    Raises:
        UsageError: `record` outside of the repository.
    """
    target = record_path("survival") if record else None
    with tempfile.TemporaryDirectory(prefix="softless-") as folder:
        saves = interleaved(_saves(Path(folder)), rounds=rounds)
        steps = interleaved(_steps(Path(folder)), rounds=rounds)
    outcome = Costs((*_costs(saves), *_costs(steps)), target)
    if target is not None:
        write_csv(target, [asdict(cost) for cost in outcome.costs])
    return outcome


def _costs(timed: Timings) -> list[Cost]:
    costs = []
    for name, seconds in timed.seconds.items():
        spread, plain = timed.spread(name), PLAIN.get(name)
        extra = (
            None
            if plain is None
            else Spread.of([a - b for a, b in zip(seconds, timed.seconds[plain], strict=True)])
        )
        costs.append(
            Cost(
                what=name,
                milliseconds=round(1e3 * spread.median, 2),
                low=round(1e3 * spread.low, 2),
                high=round(1e3 * spread.high, 2),
                ratio=None if plain is None else round(timed.ratio(name, plain).median, 4),
                more_milliseconds=None if extra is None else round(1e3 * extra.median, 2),
            )
        )
    return costs


def _saves(folder: Path) -> dict[str, Callable[[], Any]]:
    from softless.experiment.checkpoints import Checkpoints

    state = {"weights": {f"layer{i}": torch.randn(MEGABYTES * 10_000 // 4) for i in range(100)}}
    store, epochs = Checkpoints(folder / "checkpoints", keep=2), iter(range(10**6))
    return {
        "torch.save": lambda: torch.save(state, folder / "plain.pt"),
        "checkpoint": lambda: store.save(state, (next(epochs), 0), {}),
    }


def _steps(folder: Path) -> dict[str, Callable[[], Any]]:
    """Two trainings of the same recipe: one through the loop's steps, one through the same without
    seeds, wishes and judgement.
    """
    from softless.recipes import get_recipe
    from softless.tasks.table import open_task
    from softless.training import loop
    from softless.training.run import Run
    from softless.training.setup import set_up
    from softless.training.signals import Signals
    from softless.training.world import World

    recipe = get_recipe("digits")
    torch.set_num_threads(1)
    world = World(0, 1, torch.device("cpu"))
    runs = [
        set_up(
            recipe,
            folder / name,
            world,
            Signals(),
            open_task=open_task,
            resume=False,
            overwrite=False,
        )
        for name in ("ours", "plain")
    ]
    images, targets = next(iter(runs[0].loader))
    runs[0].learner.train()
    runs[1].learner.train()

    def ours(run: Run) -> None:
        for step in range(STEPS):
            with run.rest():
                pass
            loop.train_step(run, (images.clone(), targets), step)

    def plain(run: Run) -> None:
        for step in range(STEPS):
            loss = run.learner(
                *run.task.prepare((images.clone(), targets), run.device, epoch=0, step=step)
            )
            run.optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(run.model.parameters(), recipe.optim.clip_grad or 1.0)
            run.optimizer.step()
            run.updates += 1
            run.scheduler.step_update(run.updates)
            assert run.ema is not None
            run.ema.update(run.model)
            loss.item()

    return {"plain step": lambda: plain(runs[1]), "step of the loop": lambda: ours(runs[0])}
