"""The weights of the best epoch as evaluation reads them: best.safetensors, and best.json with what rebuilds model and transform."""

from typing import TYPE_CHECKING, Any

from torch import Tensor

from softless.training.durable import digest_of, write_tensors
from softless.training.model import model_args
from softless.training.run_folder import BEST, WEIGHTS

if TYPE_CHECKING:
    from softless.training.setup import Run


def take_best(run: "Run") -> None:
    """Hold the weights that the recipe evaluates, on the processor, and write them."""
    source = run.ema.module if run.ema is not None and run.recipe.ema_evaluate else run.model
    run.best_weights = {name: value.detach().cpu().contiguous().clone() for name, value in source.state_dict().items()}
    write_best(run)


def write_best(run: "Run") -> None:
    """Write the best weights that the run holds: after an epoch that beat the others, and where a run is continued."""
    held: dict[str, Tensor] = run.best_weights or {}
    write_tensors(run.folder.path / WEIGHTS, held)
    digest = digest_of(run.folder.path / WEIGHTS)
    run.folder.write_json(BEST, {**(run.best or {}), **rebuild_facts(run), "weights_sha256": digest.sha256})


def rebuild_facts(run: "Run") -> dict[str, Any]:
    """What evaluation needs to rebuild model and transform without the recipe."""
    splits, data = run.splits, run.recipe.data
    return {
        "architecture": run.recipe.model.name,
        "model_args": model_args(run.recipe, len(splits.classes), splits.in_chans),
        "mean": list(splits.mean),
        "std": list(splits.std),
        "image_size": data.image_size,
        "in_chans": splits.in_chans,
        "classes": list(splits.classes),
        "crop_pct": data.crop_pct,
        "interpolation": data.interpolation,
    }
