"""Train the same recipe with several operators over several seeds, and say what came out."""

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from softless.benching.models import checked_operators, host_and_operator, left_out, with_operator
from softless.benching.outcome import Compared
from softless.benching.record import record_path, write_csv
from softless.benching.throughput import throughput
from softless.errors import UsageError
from softless.report.groups import grouped
from softless.report.runs import read_run
from softless.report.statistics import Estimate, accuracy, difference
from softless.training.recipe import Recipe

_log = logging.getLogger("softless.benching")


def twins(
    recipe: str | Recipe = "digits", *, seeds: int = 1, out: str | Path | None = None, op: str | None = None,
    overwrite: bool = False, resume: bool = False, record: bool = False, device: str = "auto",
) -> Compared:  # fmt: skip
    """Train a recipe's model and its softmax twin, everything else alike, and compare them on the test images.

    Args:
        recipe: name, or a Recipe.
        seeds: how many, from the recipe's own seed on.
        out: folder for the runs and report.html; runs/RECIPE-twins by default.
        op: the operator beside softmax; the recipe's own by default.
        overwrite: delete the runs that the folder holds.
        resume: keep finished runs and continue those that were stopped.
        record: also write benchmarks/twins_RECIPE.csv of the repository.
        device: auto, cpu, cuda, mps.
    """
    chosen = _recipe(recipe)
    own = op or host_and_operator(chosen.model)[1]
    if own == "softmax":
        raise UsageError(
            f"recipe '{chosen.name}' uses softmax itself: name the operator to compare it with, for example --op sima"
        )
    folder = out or Path("runs") / f"{chosen.name}-twins"
    return compare(
        chosen,
        (own, "softmax"),
        seeds=seeds,
        out=folder,
        overwrite=overwrite,
        resume=resume,
        record=record,
        device=device,
        name="twins",
    )


def compare(
    recipe: str | Recipe, ops: Sequence[str], *, seeds: int = 1, out: str | Path | None = None, overwrite: bool = False,
    resume: bool = False, record: bool = False, device: str = "auto", name: str = "compare",
) -> Compared:  # fmt: skip
    """Train a recipe with each operator over the seeds; the runs take turns, seed by seed.

    Raises:
        UsageError: unknown recipe or operator, fewer than two operators, a folder that already holds these runs, no test split.
    """
    from softless import report
    from softless.training import fit

    chosen, names = _recipe(recipe), checked_operators(ops)
    if seeds < 1:
        raise UsageError(f"seeds={seeds}: at least one")
    target = record_path(f"{name}_{chosen.name}") if record else None
    folder = Path(out or Path("runs") / f"{chosen.name}-{name}")
    planned = [(op, seed) for seed in range(chosen.seed, chosen.seed + seeds) for op in names]
    for number, (op, seed) in enumerate(planned, 1):
        _log.info("%s, seed %d (run %d of %d)", op, seed, number, len(planned))
        fit(
            replace(with_operator(chosen, op), seed=seed),
            run_folder(folder, op, seed),
            resume=resume,
            overwrite=overwrite,
            device=device,
        )
    runs = [run_folder(folder, op, seed) for op in names for seed in range(chosen.seed, chosen.seed + seeds)]
    groups = grouped([read_run(run) for run in runs])
    speeds = throughput([group.first.folder for group in groups], device=_place(device))
    page = report.write(runs, folder / "report.html", speeds=speeds)
    compared = Compared(
        recipe=chosen.name,
        groups=tuple(groups),
        accuracies=tuple(_known(accuracy(group), chosen) for group in groups),
        differences=tuple(_known(difference(group, groups[-1]), chosen) for group in groups[:-1]),
        speeds=speeds,
        only={op: options for op in names if (options := left_out(chosen, op))},
        report=page,
        recorded=target,
    )
    if target is not None:
        write_csv(target, compared.rows())
    return compared


def run_folder(out: Path, op: str, seed: int) -> Path:
    return out / f"{op}-seed{seed}"


def _place(device: str) -> str:
    from softless.training.world import choose_device

    return str(choose_device(device))


def _recipe(recipe: str | Recipe) -> Recipe:
    from softless.recipes import get_recipe

    return get_recipe(recipe) if isinstance(recipe, str) else recipe


def _known(estimate: Estimate | None, recipe: Recipe) -> Estimate:
    if estimate is None:
        raise UsageError(
            f"the data of recipe '{recipe.name}' have no test split, so there is nothing to compare: add one"
        )
    return estimate
