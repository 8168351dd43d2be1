"""Train the same recipe with several operators over several seeds, and say what came out."""

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from softless.attention import OPERATORS
from softless.benching.models import (
    checked_operators,
    host_and_operator,
    in_comparison,
    in_small_vit,
    left_out,
    settings,
    with_operator,
)
from softless.benching.outcome import Compared
from softless.benching.record import record_path, write_csv
from softless.benching.steps import StepCost, steps
from softless.benching.throughput import throughput
from softless.errors import DivergedError, UsageError
from softless.experiment.recipe import Recipe
from softless.ranks import Done
from softless.report.groups import grouped
from softless.report.runs import read_run
from softless.report.statistics import Estimate, accuracy, difference
from softless.training.own_data import with_data

if TYPE_CHECKING:
    from softless.benching.uses import Used

# where the recipe leaves it open: those of the recorded tables, which a machine with more cores
# repeats
THREADS = 2

_log = logging.getLogger("softless.benching")


def twins(
    recipe: str | Recipe = "digits",
    *,
    data: str | Path | None = None,
    epochs: int | None = None,
    set: Mapping[str, Any] | None = None,
    seeds: int = 1,
    out: str | Path | None = None,
    op: str | None = None,
    twin: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    record: bool = False,
    device: str = "auto",
) -> "Compared | Used":
    """Train a recipe's model and its softmax twin, everything else alike, and compare them on the
    test images.

    Of classifiers: accuracies with intervals. Of other tasks: their measures, and what a step takes
    (`uses`).

    Args:
        recipe: name, or a Recipe.
        data: folder or file of the data, for recipes that take one.
        epochs: how long each trains; the recipe's own length by default.
        set: fields of the recipe and their values.
        seeds: how many, from the recipe's own seed on.
        out: folder for the runs and report.html; runs/RECIPE-twins by default.
        op: the operator beside softmax; the recipe's own by default.
        twin: another model in the twin's place, any that timm has, as it is; the same host with
            softmax by default.
        overwrite: delete the runs that the folder holds.
        resume: keep finished runs and continue those that were stopped.
        record: also write benchmarks/twins_RECIPE.csv of the repository.
        device: auto, cpu, cuda, mps.

    Raises:
        UsageError: a recipe or a field that cannot be used, an unknown operator or model, a recipe
            of softmax and no `op`, a folder that already holds these runs, no test split.
    """
    chosen = prepared(recipe, data, epochs, set)
    own = op or host_and_operator(chosen.model)[1]
    if own == "softmax":
        raise UsageError(
            f"recipe '{chosen.name}' uses softmax itself: name the operator to compare it with, "
            "for example --op sima"
        )
    if twin is None:
        recipes = {
            name: with_operator(chosen, name) for name in checked_operators((own, "softmax"))
        }
    else:
        plain = chosen.with_fields(**{"model.name": twin})
        recipes = {own: with_operator(chosen, own), twin: plain}
    for candidate in recipes.values():
        candidate.check()
    if chosen.task != "classification":
        from softless.benching.uses import used

        return used(chosen, recipes, "twins", seeds, out, overwrite, resume, record, device)
    return _compared(
        chosen, recipes, "twins", seeds, out, overwrite, resume, record, device, measure_steps=False
    )


def compare(
    recipe: str | Recipe = "digits",
    ops: Sequence[str] = (),
    *,
    data: str | Path | None = None,
    epochs: int | None = None,
    set: Mapping[str, Any] | None = None,
    seeds: int = 1,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    record: bool = False,
    device: str = "auto",
) -> Compared:
    """Train every operator in one small ViT under one recipe, and measure what a step of each
    costs.

    A recipe whose host has convolutions in its blocks is taken with the small ViT of the digits
    (`models.in_small_vit`).

    Args:
        recipe: name, or a Recipe.
        ops: operators; all by default. softmax, or the last one named, is what the others are
            compared with.
        data: folder of class folders, or .npz file, for recipes that take one.
        epochs: how long each trains; the recipe's own length by default.
        set: fields of the recipe and their values.
        seeds: how many, from the recipe's own seed on.
        out: folder for the runs and report.html; runs/RECIPE-compare by default.
        overwrite: delete the runs that the folder holds.
        resume: keep finished runs and continue those that were stopped.
        record: also write benchmarks/compare_RECIPE.csv of the repository.
        device: auto, cpu, cuda, mps.

    Raises:
        UsageError: unknown recipe or operator, fewer than two operators, a folder that already
            holds these runs, no test split.
    """
    chosen = in_small_vit(prepared(recipe, data, epochs, set))
    names = checked_operators(ops or sorted(OPERATORS, key=lambda name: name == "softmax"))
    recipes = {op: in_comparison(chosen, op) for op in names}
    return _compared(
        chosen,
        recipes,
        "compare",
        seeds,
        out,
        overwrite,
        resume,
        record,
        device,
        measure_steps=True,
    )


def _compared(
    chosen: Recipe,
    recipes: Mapping[str, Recipe],
    name: str,
    seeds: int,
    out: str | Path | None,
    overwrite: bool,
    resume: bool,
    record: bool,
    device: str,
    *,
    measure_steps: bool,
) -> Compared:
    """Train each recipe over the seeds; the runs take turns, seed by seed.

    One that diverges is told, and the others go on.
    """
    from softless.tasks import page

    target = record_path(f"{name}_{chosen.name}") if record else None
    folder = Path(out or Path("runs") / f"{chosen.name}-{name}")
    runs, diverged = trained(
        recipes, folder, seeds, resume=resume, overwrite=overwrite, device=device
    )
    groups = grouped([read_run(run) for run in runs])
    chosen_device = _device_name(device)
    speeds = throughput([group.first.folder for group in groups], device=chosen_device)
    accuracies = tuple(_known(accuracy(group), chosen) for group in groups)
    costs: Mapping[str, StepCost] = {}
    if measure_steps:
        spec = read_run(runs[0])
        finished = {
            op: recipe
            for op, recipe in recipes.items()
            if any(group.first.operator == op for group in groups)
        }
        costs = steps(
            finished, classes=len(spec.classes), in_chans=chosen.data.in_chans, device=chosen_device
        )
    compared = Compared(
        recipe=chosen.name,
        groups=tuple(groups),
        accuracies=accuracies,
        differences=tuple(_known(difference(group, groups[-1]), chosen) for group in groups[:-1]),
        speeds=speeds,
        only=lacking(chosen, recipes),
        report=page.write(runs, folder / "report.html", speeds=speeds),
        recorded=target,
        steps=costs,
        settings={op: settings(recipe) for op, recipe in recipes.items()},
        diverged=diverged,
    )
    if target is not None:
        write_csv(target, compared.rows())
    return compared


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
    from softless.training import fit

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
    return out / f"{op}-seed{seed}"


def _device_name(device: str) -> str:
    from softless.training.world import choose_device

    return str(choose_device(device))


def as_recipe(recipe: str | Recipe) -> Recipe:
    """The recipe to compare models under, with a number of threads and loaders that is the same on
    every machine.
    """
    from softless.recipes import get_recipe

    chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
    workers = 0 if chosen.data.workers is None else chosen.data.workers
    return replace(
        chosen, data=replace(chosen.data, workers=workers), threads=chosen.threads or THREADS
    )


def prepared(
    recipe: str | Recipe,
    data: str | Path | None = None,
    epochs: int | None = None,
    fields: Mapping[str, Any] | None = None,
) -> Recipe:
    """The recipe to compare models under, with its data, fields and length as they are given.

    Raises:
        UsageError: a recipe, a field or data that cannot be used, or two lengths.
    """
    overrides = dict(fields or {})
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


def _known(estimate: Estimate | None, recipe: Recipe) -> Estimate:
    if estimate is None:
        raise UsageError(
            f"the data of recipe '{recipe.name}' have no test split, so there is nothing to "
            "compare: add one"
        )
    return estimate
