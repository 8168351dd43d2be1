"""`softless train`: one recipe, one run folder, one report."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from softless.compare.throughput import throughput
from softless.data.given import data_given, is_dataset, parts_of
from softless.errors import ResumeMismatch, UsageError, located
from softless.experiment.assignments import assignments
from softless.experiment.configuration import Configuration, read_configuration
from softless.experiment.folder import RunFolder
from softless.experiment.groups import DENSE
from softless.experiment.names import canonical
from softless.experiment.recipe import Recipe, flat_fields
from softless.models.given import model_given
from softless.recipes import FINE_TUNING, get_recipe
from softless.tasks import page
from softless.training.epoch_state import OnEpoch
from softless.training.fine_tuning import is_named, with_start, with_weights
from softless.training.folds import FOLDS, Folds, fit_folds, held_recipe
from softless.training.loop import fit
from softless.training.own_data import (
    with_data,
    with_datasets,
    with_labels,
    with_model,
    with_table,
)
from softless.training.result import Result
from softless.training.world import choose_device

if TYPE_CHECKING:
    from torch import nn
    from torch.utils.data import Dataset

    Given = Dataset[Any] | Sequence[Dataset[Any]] | Mapping[str, Dataset[Any]]


def train(
    recipe: str | Recipe | None = None,
    *,
    config: str | Path | None = None,
    data: "str | Path | Given | None" = None,
    model: "nn.Module | None" = None,
    table: str | Path | None = None,
    weights: str | Path | None = None,
    folds: int | None = None,
    out: str | Path | None = None,
    set: str | Sequence[str] | Mapping[str, Any] = (),
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    amp: Literal["none", "bfloat16", "float16"] | None = None,
    seed: int | None = None,
    on_epoch: OnEpoch | None = None,
) -> Result | Folds:
    """Train a recipe and write its run folder and report.

    A run is continued by `--resume --out RUN` alone: recipe, data and fields are those that it was
    started with.

    In Python the model and the data may be objects:
    `softless.train(model=module, data=(train, val, test))`. They train under the same loop, and are
    given again to continue the run.

    Args:
        recipe: a name that `softless list recipes` shows, or a file my_recipe.py that holds
            `recipe()` as those do (in Python also a Recipe); a run that is
            continued knows its own.
        config: YAML file of fields, which `set` may replace; its line `recipe: NAME` is the recipe.
            `recipe.yaml` of a run holds every field, and trains it again.
        data: folder of class folders, or .npz file, for recipes that take one; of a run that is
            continued, where its data lie now. In Python also map-style datasets of (image, target):
            one, (train, val) or (train, val, test), or a mapping of these names. Images are
            Pillow's, arrays (H, W, C) or tensors (C, H, W), not normalised; targets are class
            numbers, or K labels of 0 and 1.
        model: a module in Python that answers logits (B, K); it is trained itself, and holds the
            best weights at the end.
        table: CSV file that lists the images: columns file, label, patient and, where the parts
            are declared, split; table.file, table.label,
            table.group and table.split give them other names. Its files start from `data`, or
            from its own folder.
        weights: a file, a run or local-dir:FOLDER to start from (model.weights); the model is
            theirs, unless model.name is set. Where model.op is another attention than they were
            trained with, the model is fitted to theirs first (model.recover).
        folds: train so many runs, fold0, fold1, …, each tested on another part of the images, and
            write folds.json with means and intervals.
        out: the run folder; runs/RECIPE by default.
        set: fields of the recipe as field=value, for example optim.lr=3e-4 schedule.epochs=30;
            `softless list recipes NAME` shows them all. In Python also one text, or a mapping.
        resume: continue the run in the folder from its newest good checkpoint.
        overwrite: delete the run in the folder first.
        device: auto, cpu, cuda, cuda:1, mps.
        amp: compute in bfloat16 or float16 where that is safe.
        seed: of weights, order and augmentation.
        on_epoch: a function in Python that is called after each epoch with its `EpochState`;
            state.stop() ends the run.

    Returns:
        The scores of the best epoch and where the run lies; of several folds, those of each.

    Raises:
        UsageError: recipe, field, folder or data cannot be used.
        ResumeMismatch: the run to continue has another recipe, or other fields than are given.
        DivergedError: the loss is not finite (exit code 3).

    Examples:
        >>> result = softless.train("digits", set="schedule.epochs=1", out="runs/one_epoch")
        >>> 0 < result.val["top1"] < 1
        True
    """
    folder = None if out is None else located(out)
    configuration = None if config is None else read_configuration(located(config))
    recipe = _with_configuration(recipe, configuration)
    parts = parts_of(data) if is_dataset(data) else None
    _check_callable(on_epoch)
    if (
        recipe is None
        and (parts is not None or model is not None or table is not None)
        and not (resume and folder is not None and _recipe_in(folder))
    ):
        recipe = "classify"
    chosen = with_table(
        _chosen(recipe, folder, resume=resume), None if table is None else located(table)
    )
    user_fields = {
        **({} if configuration is None else configuration.fields),
        **flat_fields(assignments(set)),
    }
    begun = resume and _recipe_in(folder or Path("runs") / chosen.name) is not None
    chosen = with_weights(chosen, weights, user_fields, model=model, begun=begun)
    if parts is not None:
        chosen = with_datasets(chosen, parts, user_fields).with_fields(**user_fields)
    else:
        own = None if data is None else located(data)  # type: ignore[arg-type]  # a path
        chosen = with_data(
            with_labels(chosen, own, user_fields).with_fields(**user_fields), own, user_fields
        )
    chosen = with_model(chosen, model, user_fields)
    if not begun and is_named(weights, user_fields):
        chosen = with_start(chosen, user_fields, FINE_TUNING.get(canonical(chosen.name), {}))
    if amp is not None:
        chosen = replace(chosen, amp=amp)
    if seed is not None:
        chosen = replace(chosen, seed=seed)
    run_dir = folder if folder is not None else Path("runs") / chosen.name
    if folds is not None and (model is not None or on_epoch is not None):
        raise UsageError(
            "folds are runs of a model by name: give model=… and on_epoch=… to one run"
        )
    if folds is not None or (resume and (run_dir / FOLDS).exists()):
        page = partial(_write_page, device=device)
        with data_given(parts):
            return fit_folds(
                chosen,
                run_dir,
                folds,
                resume=resume,
                overwrite=overwrite,
                device=device,
                finished=page,
            )
    if (run_dir / FOLDS).exists():
        raise UsageError(
            f"{run_dir} holds folds: go on with --folds or --resume, or choose another --out"
        )
    with model_given(model), data_given(parts):
        result = fit(
            chosen, run_dir, resume=resume, overwrite=overwrite, device=device, on_epoch=on_epoch
        )
        if os.environ.get("RANK", "0") == "0":
            _write_page(chosen, run_dir, device=device)
    return result


def _with_configuration(
    recipe: str | Recipe | None, configuration: Configuration | None
) -> str | Recipe | None:
    """The recipe that is named, or the one of the YAML file."""
    if configuration is None:
        return recipe
    other = configuration.complete or configuration.base
    if recipe is not None and other is not None and recipe != other:
        raise UsageError(f"--recipe and {configuration.path} name two recipes: leave --recipe out")
    return recipe if other is None else other


def _check_callable(on_epoch: Any) -> None:

    if on_epoch is not None and not callable(on_epoch):
        raise UsageError(
            f"on_epoch is a {type(on_epoch).__name__}: give a function that takes an EpochState"
        )


def _write_page(recipe: Recipe, run_dir: Path, *, device: str) -> None:
    """The page of one run, with its speed here."""
    # whole images are large, and of several sizes
    batch = 1 if recipe.task in DENSE else 16
    if recipe.unit != "images":
        page.write([run_dir], run_dir / "report.html")
        return
    speeds = throughput([run_dir], batch=batch, rounds=5, device=choose_device(device))
    page.write([run_dir], run_dir / "report.html", speeds=speeds)


def _chosen(recipe: str | Recipe | None, out: Path | None, *, resume: bool) -> Recipe:
    """The recipe as it is before fields are set: that of the run to continue, where one is there
    and no whole recipe is given.
    """
    if recipe is not None and not isinstance(recipe, str):
        return recipe
    named = None if recipe is None else get_recipe(recipe)
    if named is None and not resume:
        raise UsageError(
            "softless train needs --recipe; `softless list recipes` tells what there is"
        )
    if named is None and out is None:
        raise UsageError(
            "softless train --resume needs --out RUN, the folder of the run to continue"
        )
    folder = out if out is not None else Path("runs") / (named.name if named else "")
    stored_recipe = _recipe_in(folder) if resume else None
    if stored_recipe is None:
        if named is None:
            raise UsageError(
                f"no run to continue in {folder}: name its folder, or start one there with --recipe"
            )
        return named
    if named is not None and named.name != canonical(stored_recipe.name):
        raise ResumeMismatch(
            f"cannot resume {folder}: it is a run of recipe '{stored_recipe.name}', and "
            f"'{named.name}' was asked; leave --recipe out, or choose another --out"
        )
    return stored_recipe


def _recipe_in(folder: Path) -> Recipe | None:
    """The recipe of the run or of the folds in a folder, or None where there is neither."""
    return RunFolder(folder).recipe() or held_recipe(folder)
