"""The weights of the best epoch as evaluation reads them: best.safetensors, and best.json with what
rebuilds model and transform.
"""

from typing import TYPE_CHECKING

from torch import Tensor

from softless.experiment.candidates import AVERAGED
from softless.experiment.folder import BEST, WEIGHTS
from softless.models.durable import digest_of, write_tensors
from softless.models.records import sealed
from softless.tasks.task import facts

if TYPE_CHECKING:
    from softless.training.setup import Run


def take_best(run: "Run") -> None:
    """Hold the weights that were the best, raw or averaged, on the processor, and write them."""
    assert run.best is not None
    averaged = run.best["weights"] == AVERAGED and run.ema is not None
    source = run.task.evaluated(run.ema.module if averaged and run.ema is not None else run.model)
    run.best_weights = {
        name: value.detach().cpu().contiguous().clone()
        for name, value in source.state_dict().items()
    }
    write_best(run)


def write_best(run: "Run") -> None:
    """Write the best weights that the run holds: after an epoch that beat the others, and where a
    run is continued.
    """
    weights: dict[str, Tensor] = run.best_weights or {}
    write_tensors(run.folder.path / WEIGHTS, weights)
    digest = digest_of(run.folder.path / WEIGHTS)
    content = {
        **(run.best or {}),
        **facts(run.task, run.task.evaluated(run.model)),
        "weights_sha256": digest.sha256,
    }
    run.folder.write_json(BEST, sealed(content))
