"""Whether all ranks train the same run: what each of them was given and opened is compared before
the first step.

Torch compares nothing. Ranks that see other pixels train side by side to the end, and ranks with
another number of steps wait for each other for ever.
"""

import dataclasses
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from softless import origin
from softless.data.folder import Listing, class_listings
from softless.data.walks import identity, walked
from softless.errors import UsageError, located
from softless.experiment.folder import flat
from softless.experiment.recipe import Recipe, as_json
from softless.tasks.task import Task
from softless.training.settle import from_root
from softless.training.world import World

LONG = 60  # characters of a value that are said


def agree_on_command(
    world: World, recipe: Recipe | None, run_dir: Path, *, resume: bool, overwrite: bool
) -> None:
    """Compare what every rank was asked to do, and by which versions.

    Raises:
        UsageError: one was asked something else; the rank and the field are named.
    """
    mine = {
        **origin.versions(),
        "out": from_root(run_dir),
        "resume": resume,
        "overwrite": overwrite,
        "recipe": "none" if recipe is None else "given",
        **({} if recipe is None else flat(as_json(recipe))),
    }
    if recipe is None or recipe.threads is None:
        mine["threads"] = torch.get_num_threads()
    _agree(world, mine, "give every rank the same command, software and threads")


def agree_on_arguments(world: World, arguments: Mapping[str, Any]) -> None:
    """Compare the arguments of a command that every rank was given, its software and its threads.

    Raises:
        UsageError: one was asked something else; the rank and the argument are named.
    """
    mine = {**origin.versions(), **arguments, "threads": torch.get_num_threads()}
    _agree(world, mine, "give every rank the same command, software and threads")


def opened_alike(world: World, recipe: Recipe, open_task: Callable[[Recipe], Task]) -> Task:
    """The data, opened by every rank and compared; mean and deviation are measured by the first
    rank alone.

    Raises:
        UsageError: a rank cannot open them, or sees others; the rank is named.
    """
    measured = recipe.data.mean is None and recipe.data.std is None
    mine = recipe
    if measured and not world.is_first:  # the first rank's numbers take their place
        blank = dataclasses.replace(
            recipe.data, mean=(0.0,) * recipe.data.in_chans, std=(1.0,) * recipe.data.in_chans
        )
        mine = dataclasses.replace(recipe, data=blank)
    if world.size == 1:
        return world.together(lambda: open_task(mine))
    with walked(_walked_once(world, recipe)):
        task = world.together(lambda: open_task(mine))
    scaling = world.first(lambda: (task.splits.mean, task.splits.std))
    task.splits = dataclasses.replace(task.splits, mean=scaling[0], std=scaling[1])
    opened = {
        **{f"data: {name}": value for name, value in task.splits.fingerprint.items()},
        "data: class names": list(task.splits.classes),
    }
    _agree(world, opened, "let every rank see the same files")
    return task


def _walked_once(world: World, recipe: Recipe) -> dict[Path, Listing]:
    """The first rank's walk through class folders, for the ranks that see the very same folder; the
    others walk themselves, and what differs there is found.
    """
    root = None
    if recipe.data.source == "folder" and recipe.data.path and recipe.table is None:
        with suppress(UsageError):  # said when the data are opened
            root = located(recipe.data.path)
    seen = None if root is None else identity(root)
    by_rank = world.gather(seen)
    if by_rank[0] is None or by_rank.count(by_rank[0]) < 2:
        return {}
    walks = world.first(lambda: class_listings(root) if root is not None else {})
    return {} if root is None or seen != by_rank[0] else {root / at: w for at, w in walks.items()}


def agree_on_steps(world: World, steps: int, epochs: int) -> None:
    """Compare how long every rank will train.

    Raises:
        UsageError: one has another number of steps; the rank is named.
    """
    _agree(
        world,
        {"steps of an epoch": steps, "epochs": epochs},
        "give every rank the same data and recipe",
    )


def _agree(world: World, mine: Mapping[str, Any], way: str) -> None:
    if world.size == 1:
        return
    gathered = world.gather({name: repr(value) for name, value in mine.items()})
    for rank, values in enumerate(gathered[1:], start=1):
        names = [
            name for name in {**gathered[0], **values} if gathered[0].get(name) != values.get(name)
        ]
        if names:
            parts = [
                f"{name} = {_short(values.get(name))} and rank 0 has "
                f"{_short(gathered[0].get(name))}"
                for name in names
            ]
            suffix = f" (and {len(parts) - 1} more)" if len(parts) > 1 else ""
            error = UsageError(f"rank {rank} of {world.size} has {parts[0]}{suffix}: {way}")
            error.shared = True
            raise error


def _short(text: str | None) -> str:
    if text is None:
        return "none"
    return text if len(text) <= LONG else f"{text[: LONG // 2]}…{text[-LONG // 2 :]}"
