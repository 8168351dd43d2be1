"""`softless train`: one recipe, one run folder, one report."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from softless.training import Recipe, Result


def train(
    recipe: "str | Recipe",
    *,
    data: str | Path | None = None,
    out: str | Path | None = None,
    set: str | Sequence[str] | Mapping[str, Any] = (),
    resume: bool = False,
    overwrite: bool = False,
    device: str = "auto",
    amp: Literal["none", "bfloat16", "float16"] | None = None,
    seed: int | None = None,
) -> "Result":
    """Train a recipe and write its run folder and report.

    Args:
        recipe: a name that `softless list recipes` tells (in Python also a Recipe).
        data: folder of class folders, or .npz file, for recipes that take one.
        out: the run folder; runs/RECIPE by default.
        set: fields of the recipe as field=value, for example optim.lr=3e-4 schedule.epochs=30; `softless list recipes NAME`
            tells them all. In Python also one text, or a mapping.
        resume: continue the run in the folder from its newest good checkpoint.
        overwrite: delete the run in the folder first.
        device: auto, cpu, cuda, cuda:1, mps.
        amp: compute in bfloat16 or float16 where that is safe.
        seed: of weights, order and augmentation.

    Raises:
        UsageError: recipe, field, folder or data cannot be used.
        DivergedError: the loss is not finite (exit code 3).
    """
    from softless.cli.options import assignments
    from softless.recipes import get_recipe
    from softless.training import fit

    chosen = get_recipe(recipe) if isinstance(recipe, str) else recipe
    chosen = chosen.with_fields(**assignments(set))
    if data is not None:
        chosen = _with_data(chosen, Path(data))
    if amp is not None:
        chosen = replace(chosen, amp=amp)
    if seed is not None:
        chosen = replace(chosen, seed=seed)
    run_dir = Path(out) if out is not None else Path("runs") / chosen.name
    result = fit(chosen, run_dir, resume=resume, overwrite=overwrite, device=device)
    if os.environ.get("RANK", "0") == "0":
        from softless import report
        from softless.benching import throughput
        from softless.training.world import choose_device

        batch = 16 if chosen.task in {"classification", "dino"} else 1  # whole images are large, and of several sizes
        speeds = throughput([run_dir], batch=batch, rounds=5, device=choose_device(device))
        report.write([run_dir], run_dir / "report.html", title=f"{chosen.name}: {chosen.summary}", speeds=speeds)
    return result


def _with_data(recipe: "Recipe", path: Path) -> "Recipe":
    """The recipe reading from this path, as an npz file or as a folder, whichever it is."""
    from softless.errors import UsageError

    if recipe.data.source == "digits":
        raise UsageError(
            f"recipe '{recipe.name}' reads scikit-learn's bundled digits, so --data {path} has no effect: leave it out, or "
            "take --recipe folder (class folders) or medmnist (npz)"
        )
    return replace(recipe, data=replace(recipe.data, path=str(path)))
