"""Recipes to compare models under, and their training over several seeds."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from softless.attention.registry import OPERATORS
from softless.compare.models import left_out
from softless.errors import DivergedError, UsageError
from softless.experiment.assignments import assignments
from softless.experiment.recipe import Recipe
from softless.ranks import Done
from softless.recipes import get_recipe
from softless.training.loop import fit
from softless.training.own_data import with_data
from softless.training.world import choose_device

# where the recipe leaves it open: those of the recorded tables, which a machine with more cores
# repeats
THREADS = 2
_log = logging.getLogger("softless.compare")


def trained(
    recipes: Mapping[str, Recipe],
    folder: Path,
    seeds: int,
    *,
    resume: bool,
    overwrite: bool,
    device: str,
) -> tuple[list[Path], dict[str, str]]:
    """Train each recipe over the seeds; the runs take turns, seed by seed. One that diverges is
    told, and the others go on.

    Returns:
        The folders of the finished runs, recipe by recipe, and what became of those that diverged,
        by their folder's name.

    Raises:
        UsageError: seeds below one, or a folder that already holds these runs.
        DivergedError: every run diverged.
        Done: ranks have trained them together, and this is not the first one, which measures and
            writes.
    """
    if seeds < 1:
        raise UsageError(f"seeds={seeds}: at least one")
    seeds_by_name = {
        name: range(recipe.seed, recipe.seed + seeds) for name, recipe in recipes.items()
    }
    planned = [(name, list(seeds_by_name[name])[turn]) for turn in range(seeds) for name in recipes]
    diverged: dict[str, str] = {}
    for number, (name, seed) in enumerate(planned, 1):
        _log.info("%s, seed %d (run %d of %d)", name, seed, number, len(planned))
        run = replace(recipes[name], seed=seed)
        try:
            fit(
                run,
                run_folder(folder, name, seed),
                resume=resume,
                overwrite=overwrite,
                device=device,
            )
        except DivergedError as error:
            diverged[run_folder(folder, name, seed).name] = str(error)
            _log.warning("%s, seed %d diverged: %s", name, seed, error)
    run_dirs = [run_folder(folder, name, seed) for name in recipes for seed in seeds_by_name[name]]
    runs = [run_dir for run_dir in run_dirs if run_dir.name not in diverged]
    if not runs:
        raise DivergedError(f"every run diverged: {next(iter(diverged.values()))}")
    if os.environ.get("RANK", "0") != "0":
        raise Done
    return runs, diverged


def run_folder(out: Path, op: str, seed: int) -> Path:
    """The folder of one run."""
    return out / f"{op}-seed{seed}"


def as_recipe(recipe: str | Recipe) -> Recipe:
    """The recipe to compare models under, with a number of threads and loaders that is the same on
    every machine.
    """
    chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
    workers = 0 if chosen.data.workers is None else chosen.data.workers
    return replace(
        chosen, data=replace(chosen.data, workers=workers), threads=chosen.threads or THREADS
    )


def prepared(
    recipe: str | Recipe,
    data: str | Path | None = None,
    epochs: int | None = None,
    fields: str | Sequence[str] | Mapping[str, Any] = (),
) -> Recipe:
    """The recipe to compare models under, with its data, fields and length as they are given.

    Raises:
        UsageError: a recipe, a field or data that cannot be used, or two lengths.
    """
    overrides = dict(assignments(fields))
    if epochs is not None and str(overrides.setdefault("schedule.epochs", epochs)) != str(epochs):
        raise UsageError(
            f"epochs={epochs} and schedule.epochs={overrides['schedule.epochs']} are two lengths: "
            "give one of them"
        )
    return with_data(as_recipe(recipe).with_fields(**overrides), data, overrides)


def lacking(chosen: Recipe, recipes: Mapping[str, Recipe]) -> dict[str, dict[str, object]]:
    """By operator, the options of the recipe's that it does not have; a model that is taken as it
    is lacks none.
    """
    return {
        name: options
        for name in recipes
        if name in OPERATORS and (options := left_out(chosen, name))
    }


def device_name(device: str) -> str:
    return str(choose_device(device))
