"""`softless bench`: measured comparisons."""

import importlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from softless.cli.options import assignments
from softless.errors import UsageError, need
from softless.ranks import Done, shared

TRAINED = {
    "recipe",
    "data",
    "epochs",
    "set",
    "seeds",
    "out",
    "overwrite",
    "resume",
    "record",
    "device",
}
# the function that measures, and the options that it has
KINDS: Mapping[str, tuple[str, set[str]]] = {
    "twins": ("softless.benching.comparison:twins", TRAINED | {"op", "twin"}),
    "compare": ("softless.benching.comparison:compare", TRAINED | {"ops"}),
    "uses": ("softless.benching.uses:uses", TRAINED | {"ops"}),
    "dino": ("softless.benching.dino:dino", TRAINED | {"ops"}),
    "resolution": ("softless.benching.resolution:resolution", TRAINED | {"image_size"}),
    "averages": ("softless.benching.averages:averages", TRAINED | {"limits", "name", "threads"}),
    "runs": ("softless.benching.finished:finished", {"runs", "name", "record"}),
    "operators": ("softless.benching.operators:operators", {"ops", "long", "record"}),
    "inverse": ("softless.benching.inverses:compare_inverses", {"record"}),
    "models": ("softless.benching.sizes:models", {"record"}),
    "counts": ("softless.benching.counts:counts", {"ops", "record"}),
    "papers": ("softless.benching.papers:papers", {"record"}),
    "autograd": ("softless.benching.autograd:autograd", {"ops", "record"}),
    "swaps": ("softless.benching.swaps:families", {"op", "record"}),
    "fidelity": ("softless.benching.fidelity:fidelity", {"ops", "record"}),
    "survival": ("softless.benching.survival:survival", {"record"}),
    "slides": ("softless.benching.slides:slides", {"data", "record"}),
    "settings": ("softless.benching.settings:settings", {"record"}),
    "speed": ("softless.benching.speed:speed", {"figure", "threads", "out", "record"}),
}
# used at the end
EXTRAS = {
    "dino": ("lightly", "sklearn"),
    "resolution": ("matplotlib",),
    "speed": ("matplotlib",),
}


def bench(
    what: Literal[
        "twins",
        "compare",
        "uses",
        "dino",
        "resolution",
        "averages",
        "runs",
        "operators",
        "inverse",
        "models",
        "counts",
        "papers",
        "autograd",
        "swaps",
        "fidelity",
        "survival",
        "slides",
        "settings",
        "speed",
    ],
    *,
    recipe: str = "digits",
    op: str | None = None,
    twin: str | None = None,
    ops: Sequence[str] = (),
    data: str | Path | None = None,
    image_size: int | None = None,
    epochs: int | None = None,
    limits: Sequence[int] = (),
    set: str | Sequence[str] | Mapping[str, Any] = (),
    runs: Sequence[str] = (),
    name: str | None = None,
    figure: str | None = None,
    threads: int | None = None,
    seeds: int = 1,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    record: bool = False,
    long: bool = False,
    device: str = "auto",
) -> Any:
    """Measure: a model against its softmax twin, several operators in one recipe, or the operators'
    numbers.

    twins      trains a recipe of any task with its own operator and with softmax, everything else
               alike, and writes out/report.html
    compare    trains every operator, or those of --ops, in one small ViT under a recipe: accuracy,
               time per step, memory, exponentials
    uses       trains a recipe of any task (detection, segmentation, …) with its own operator and
               softmax, or those of --ops
    dino       trains a recipe of dino without labels and measures frozen features, against
               untrained networks and pixels
    resolution trains a recipe's model per operator at one image size and evaluates it at 0.5 to 4
               times that size
    averages   trains a recipe on several numbers of images and measures what it publishes beside
               its last weights
    runs       puts finished runs of one model together: mean test accuracy over their seeds, with
               its interval
    operators  value and gradient errors of every operator, backend and dtype against float64, from
               1 to 65,536 tokens
    inverse    errors of SOFT's inverse and of the published one on kernel matrices from spread
               tokens to a flat image region
    models     counts parameters, multiply-adds and exponentials of every named model
    counts     counts every named model, and every operator in each host, on the processor and the
               meta device: the same numbers, or exit code 1
    papers     counts the models of the papers' tables, the printed sizes beside the measured ones
    autograd   differentiates and maps every operator by every backend in all of torch's ways:
               right, refused or wrong, or exit code 1
    swaps      exchanges attention in a model of each family of timm that has an adapter or is
               refused one
    fidelity   how far the defaults of the SOFT pyramids are from the published functions, on
               weights whose kernels count
    survival   what checkpoints and the loop's watching cost, beside plain torch.save and a plain
               step
    slides     times the reading of slides through tifffile beside openslide, in processor time
    settings   sets every field of every recipe to what it cannot be, and counts what is refused
               before any work
    speed      times attention, its training step and whole models on the processor: one --figure at
               a time, two to thirty minutes each

    Under --ranks or torchrun those that train share each run among the ranks, and the first rank
    measures; the others are refused.

    Args:
        what: twins, compare, uses, dino, resolution, averages, runs, operators, inverse, models,
            counts, papers, autograd, swaps, fidelity, survival, slides, settings or speed.
        recipe: what to train.
        op: the operator beside softmax in twins, the recipe's own by default; the one that swaps
            puts in, sima by default.
        twin: in twins, another model in place of the same host with softmax: any that timm has, as
            it is, resnet18 for example.
        ops: operators for compare, uses, dino, counts, autograd, fidelity and operators; all by
            default (uses: the recipe's own and softmax; dino: sima and xca).
        data: folder of data or .npz file, for what trains a recipe that takes one; a slide, or a
            folder of them, for slides.
        image_size: of training in resolution, in pixels; the recipe's own by default.
        epochs: how long each run trains; the recipe's own length by default.
        limits: numbers of training images for averages; all of them by default.
        set: fields of the recipe, as field=value: `softless list recipes NAME`. In Python also one
            text, or a mapping.
        runs: run folders that differ in their seed alone.
        name: what runs and averages are recorded as.
        figure: of speed: block, compiled, deit, xcit, training, tokens, width, merging, projected,
            seqnorm, optimized, optimized_xcit, memory, layer or stream.
        threads: of the processor in speed (torch's own number by default) and in averages (the
            recipe's).
        seeds: how many, for twins, compare, uses, dino, resolution and averages.
        out: folder for runs and report; of speed, for its rows and chart.
        overwrite: delete the runs that the folder holds.
        resume: keep finished runs and continue those that were stopped.
        record: also write the rows to benchmarks/ of the repository.
        long: operators at a million tokens (some minutes an operator, 6 GB).
        device: auto, cpu, cuda, mps (twins, compare, uses, dino, resolution and averages).

    Returns:
        The rows that were measured; `str()` of it is the table.

    Raises:
        UsageError: an unknown name, an option that this comparison does not have, or a folder that
            already holds runs.

    Examples:
        >>> "SimA" in str(softless.bench("runs", runs=["runs/digits"]))
        True
    """
    given: dict[str, Any] = {
        "recipe": recipe,
        "op": op,
        "twin": twin,
        "ops": ops,
        "data": data,
        "image_size": image_size,
        "epochs": epochs,
        "limits": limits,
        "set": assignments(set),
        "runs": runs,
        "name": name,
        "figure": figure,
        "threads": threads,
        "seeds": seeds,
        "out": out,
        "overwrite": overwrite,
        "resume": resume,
        "record": record,
        "long": long,
        "device": device,
    }
    standard = {"recipe": "digits", "seeds": 1, "device": "auto"}
    target, takes = KINDS[what]
    unused = sorted(
        name
        for name, value in given.items()
        if name not in takes and value != standard.get(name) and value
    )
    if unused:
        listed = ", ".join("--" + name.replace("_", "-") for name in unused)
        raise UsageError(
            f"bench {what} has no use for {listed}: leave {'it' if len(unused) == 1 else 'them'} "
            f"out ({'; '.join(map(_who_takes, unused))})"
        )
    if not takes >= TRAINED and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise shared(
            UsageError(f"bench {what} measures one process: start it without --ranks or torchrun")
        )
    need(*EXTRAS.get(what, ()))
    module, _, function = target.partition(":")
    try:
        return getattr(importlib.import_module(module), function)(**{
            name: given[name] for name in takes
        })
    except Done:
        return None


def _who_takes(option: str) -> str:
    """The comparisons that have an option."""
    return (
        f"--{option.replace('_', '-')} is taken by "
        f"{', '.join(what for what, (_, takes) in KINDS.items() if option in takes)}"
    )
