"""`softless bench`: measured comparisons."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from softless.errors import UsageError

TAKES = {
    "twins": {"recipe", "op", "seeds", "out", "overwrite", "resume", "record", "device"},
    "compare": {"recipe", "ops", "data", "epochs", "seeds", "out", "overwrite", "resume", "record", "device"},
    "runs": {"runs", "name", "record"},
    "operators": {"ops", "long", "record"},
    "inverse": {"record"},
    "models": {"record"},
    "papers": {"record"},
    "resolution": {"recipe", "data", "image_size", "epochs", "seeds", "out", "overwrite", "resume", "record", "device"},
}


def bench(
    what: Literal["twins", "compare", "runs", "operators", "inverse", "models", "papers", "resolution"],
    *,
    recipe: str = "digits",
    op: str | None = None,
    ops: Sequence[str] = (),
    data: str | Path | None = None,
    image_size: int | None = None,
    epochs: int | None = None,
    runs: Sequence[str] = (),
    name: str | None = None,
    seeds: int = 1,
    out: str | Path | None = None,
    overwrite: bool = False,
    resume: bool = False,
    record: bool = False,
    long: bool = False,
    device: str = "auto",
) -> Any:
    """Measure: a model against its softmax twin, several operators in one recipe, or the operators' numbers.

    twins      trains a recipe with its own operator and with softmax, everything else alike, and writes out/report.html
    compare    trains every operator, or those of --ops, in one small ViT under a recipe: accuracy, time per step, memory, exponentials
    runs       puts finished runs of one model together: mean test accuracy over their seeds, with its interval
    operators  value and gradient errors of every operator, backend and dtype against float64, from 1 to 65,536 tokens
    models     counts parameters, multiply-adds and exponentials of every named model
    resolution trains a recipe's model per operator at one image size and evaluates it at 0.5 to 4 times that size
    papers     counts the models of the papers' tables, the printed sizes beside the measured ones
    inverse    errors of SOFT's inverse and of the published one on kernel matrices from spread tokens to a flat image region

    Args:
        what: twins, compare, runs, operators, inverse, models, papers or resolution.
        recipe: what to train.
        op: the operator beside softmax in twins; the recipe's own by default.
        ops: operators for compare and operators; all by default.
        data: folder of class folders or .npz file, for compare and resolution with a recipe that takes one.
        image_size: of training in resolution, in pixels; the recipe's own by default.
        epochs: how long each run of compare and resolution trains; the recipe's own length by default.
        runs: run folders that differ in their seed alone.
        name: what runs are recorded as.
        seeds: how many, for twins, compare and resolution.
        out: folder for runs and report.
        overwrite: delete the runs that the folder holds.
        resume: keep finished runs and continue those that were stopped.
        record: also write the rows to benchmarks/ of the repository.
        long: operators at a million tokens (some minutes an operator, 6 GB).
        device: auto, cpu, cuda, mps (twins, compare and resolution).

    Raises:
        UsageError: an unknown name, an option that this comparison does not have, or a folder that already holds runs.
    """
    given: dict[str, Any] = {"recipe": recipe, "op": op, "ops": ops, "data": data, "image_size": image_size, "epochs": epochs, "runs": runs, "name": name, "seeds": seeds, "out": out, "overwrite": overwrite, "resume": resume,
             "record": record, "long": long, "device": device}  # fmt: skip
    standard = {"recipe": "digits", "seeds": 1, "device": "auto"}
    unused = sorted(
        name for name, value in given.items() if name not in TAKES[what] and value != standard.get(name) and value
    )
    if unused:
        listed = ", ".join("--" + name.replace("_", "-") for name in unused)
        raise UsageError(f"bench {what} has no use for {listed}: leave {'it' if len(unused) == 1 else 'them'} out")
    options = {name: value for name, value in given.items() if name in TAKES[what]}
    if what == "operators":
        from softless.benching.operators import operators

        return operators(**options)
    if what == "inverse":
        from softless.benching.inverses import compare_inverses

        return compare_inverses(**options)
    if what == "models":
        from softless.benching.sizes import models

        return models(**options)
    if what == "papers":
        from softless.benching.papers import papers

        return papers(**options)
    if what == "runs":
        from softless.benching.finished import finished

        return finished(**options)
    if what == "resolution":
        from softless.benching.resolution import resolution

        return resolution(**options)
    from softless.benching import compare, twins

    return twins(**options) if what == "twins" else compare(**options)
