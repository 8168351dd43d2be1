"""Train the same recipe with several operators over several seeds, and say what came out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softless.attention.registry import OPERATORS
from softless.compare.models import (
    checked_operators,
    host_and_operator,
    in_comparison,
    in_small_vit,
    settings,
    with_operator,
)
from softless.compare.outcome import Compared
from softless.compare.record import record_path, write_csv
from softless.compare.steps import StepCost, steps
from softless.compare.throughput import throughput
from softless.compare.training import device_name, lacking, prepared, trained
from softless.compare.uses import Used, used
from softless.errors import UsageError
from softless.experiment.recipe import Recipe
from softless.exporting.checks import formats_named
from softless.exporting.export import export as export_run
from softless.exporting.report import Exported
from softless.report.groups import Group, grouped
from softless.report.runs import read_run
from softless.report.statistics import ShareEstimate, accuracy, difference
from softless.tasks import page


def twins(
    recipe: str | Recipe = "digits",
    *,
    data: str | Path | None = None,
    epochs: int | None = None,
    set: str | Sequence[str] | Mapping[str, Any] = (),
    seeds: int = 1,
    out: str | Path | None = None,
    op: str | None = None,
    twin: str | None = None,
    overwrite: bool = False,
    resume: bool = False,
    record: bool = False,
    device: str = "auto",
    export: str | Sequence[str] = (),
) -> Compared | Used:
    """Train a recipe's model and its softmax twin, everything else alike, and compare them on the
    test images.

    Of classifiers: accuracies with intervals. Of other tasks: their measures, and what a step takes
    (`uses`).

    Args:
        recipe: name, or a Recipe.
        data: folder or file of the data, for recipes that take one.
        epochs: how long each trains; the recipe's own length by default.
        set: fields of the recipe, as field=value: `softless list recipes NAME`. In Python also one
            text, or a mapping.
        seeds: how many, from the recipe's own seed on.
        out: folder for the runs and report.html; runs/RECIPE-twins by default.
        op: the operator beside softmax; the recipe's own by default.
        twin: another model in the twin's place, any that timm has, as it is; the same host with
            softmax by default.
        overwrite: delete the runs that the folder holds.
        resume: keep finished runs and continue those that were stopped.
        record: also write benchmarks/twins_RECIPE.csv of the repository.
        device: auto, cpu, cuda, mps.
        export: formats (`softless list formats`) that the classifier beside softmax is exported to
            at the end, into OUT/exported; the page shows the files.

    Raises:
        UsageError: a recipe or a field that cannot be used, an unknown operator or model, a recipe
            of softmax and no `op`, a folder that already holds these runs, no test split, no such
            format.
        MissingExtra: a format needs what is not installed.
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
    formats = [export] if isinstance(export, str) else [*export]
    if formats:  # before hours of training
        formats_named(formats)
    if chosen.task != "classification":
        if formats:
            raise UsageError(
                f"--export goes with classifiers, and recipe '{chosen.name}' trains for "
                f"{chosen.task}: export a run by itself with softless export RUN"
            )
        return used(chosen, recipes, "twins", seeds, out, overwrite, resume, record, device)
    return _compared(
        chosen,
        recipes,
        "twins",
        seeds,
        out,
        overwrite,
        resume,
        record,
        device,
        formats=formats,
        measure_steps=False,
    )


def compare(
    recipe: str | Recipe = "digits",
    ops: Sequence[str] = (),
    *,
    data: str | Path | None = None,
    epochs: int | None = None,
    set: str | Sequence[str] | Mapping[str, Any] = (),
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
        set: fields of the recipe, as field=value: `softless list recipes NAME`. In Python also one
            text, or a mapping.
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
    formats: Sequence[str] = (),
) -> Compared:
    """Train each recipe over the seeds; the runs take turns, seed by seed.

    One that diverges is told, and the others go on.
    """
    target = record_path(f"{name}_{chosen.name}") if record else None
    folder = Path(out or Path("runs") / f"{chosen.name}-{name}")
    runs, diverged = trained(
        recipes, folder, seeds, resume=resume, overwrite=overwrite, device=device
    )
    groups = grouped([read_run(run) for run in runs])
    chosen_device = device_name(device)
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
    try:
        files = _exported(groups[0], formats, folder)
    finally:
        page_path = page.write(runs, folder / "report.html", speeds=speeds)
    compared = Compared(
        recipe=chosen.name,
        groups=tuple(groups),
        accuracies=accuracies,
        differences=tuple(_known(difference(group, groups[-1]), chosen) for group in groups[:-1]),
        speeds=speeds,
        only=lacking(chosen, recipes),
        report=page_path,
        exported=files,
        recorded=target,
        steps=costs,
        settings={op: settings(recipe) for op, recipe in recipes.items()},
        diverged=diverged,
    )
    if target is not None:
        write_csv(target, compared.rows())
    return compared


def _exported(group: Group, formats: Sequence[str], folder: Path) -> Exported | None:
    """Files of a model's first run, where formats are named; its folder keeps a line for each."""
    if not formats:
        return None
    return export_run(group.first.folder, formats, folder / "exported", overwrite=True)


def _known(estimate: ShareEstimate | None, recipe: Recipe) -> ShareEstimate:
    if estimate is None:
        raise UsageError(
            f"the data of recipe '{recipe.name}' have no test split, so there is nothing to "
            "compare: add one"
        )
    return estimate
