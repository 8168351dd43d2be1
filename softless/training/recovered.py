"""What becomes of weights that were trained with another attention than the model's.

Before the first step the model is fitted to the one that they are of, on training images without
their labels.

The first rank fits, and every rank gets what it fitted. A run that is continued has it in its
checkpoint, and none of this is done again.
"""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from softless import ranks
from softless.convert.refit.refit import LEAST, Refitted, finite, refit
from softless.data.loader import eval_loader, generators_restored
from softless.data.turns import in_turn
from softless.errors import UsageError
from softless.experiment.recipe import Recipe
from softless.experiment.started import EXCHANGED, REFITTED, TAKEN
from softless.tasks.task import Task
from softless.training.start import Start, exchanges, host_of, operator_of, start_of
from softless.training.world import World

IMAGES = 512  # of the training split, at most
BATCH = 32
_log = logging.getLogger("softless.training")


def recovered(
    task: Task, model: nn.Module, world: World, origin: Callable[[], nn.Module]
) -> dict[str, Any]:
    """Fit a model to the weights that it started from, where they are of another attention.

    Args:
        task: whose training images are used, in the transform of evaluation.
        model: with the weights as they were taken over; fitted in place.
        world: the processes of the run.
        origin: makes the model that the weights are of.

    Returns:
        What was done, for recovered.json; nothing where the weights were drawn.

    Raises:
        UsageError: model.recover=refit, and there is nothing to fit.
    """
    recipe = task.recipe
    spec = recipe.model
    start = start_of(spec)
    if start is None:
        return {}
    own = operator_of(*host_of(spec.name, spec.op))
    facts: dict[str, Any] = {
        "weights": start.title,
        "trained_with": start.operator or None,
        "assumed": start.assumed,
        "model_has": own or None,
    }
    if not exchanges(spec, start):
        if spec.recover == "refit":
            raise UsageError(
                f"model.recover=refit: {start.title} were trained with "
                f"{_named(start.operator) if start.operator else 'nothing that they name'}, and "
                f"the model has {_named(own)}: there is nothing to fit; leave recover out"
            )
        return {**facts, "how": TAKEN}
    if start.assumed:
        _log.warning(
            "%s does not say which attention it was trained with: it is taken for %s, which '%s' "
            "has by itself; model.recover=none takes it for '%s'",
            start.title,
            _named(start.operator),
            spec.name,
            own,
        )
    if spec.recover == "none" or hasattr(model, "host"):
        return {**facts, "how": EXCHANGED}
    model.to(world.device)
    fitted = world.first(lambda: _fitted(task, model, start, origin))
    _share(model)
    return {**facts, "how": REFITTED, **fitted}


def _named(operator: str) -> str:
    return f"'{operator}'" if operator else "no attention"


def _fitted(
    task: Task, model: nn.Module, start: Start, origin: Callable[[], nn.Module]
) -> dict[str, Any]:
    """Fit, on the first rank."""
    recipe = task.recipe
    images = images_of(task, recipe)
    if len(images) < LEAST:
        raise UsageError(
            f"{len(images)} training images are too few to fit '{recipe.model.op}' to "
            f"{start.title}: give at least {LEAST}, or set model.recover=none"
        )
    device = next(model.parameters()).device
    # what is held out is not fitted on in the end either: the error told is one of new images
    done = refit(model, origin().to(device), images.to(device), on_all=False, seed=recipe.seed)
    return _told(done)


def _told(done: Refitted) -> dict[str, Any]:
    """A report as JSON has it: a number that is none is null."""
    return {
        "images": done.images,
        "held_out": done.held_out,
        "seconds": done.seconds,
        "stream_error": finite(done.stream),
        "layers_fitted": sum(layer.fitted for layer in done.layers),
        "layers": done.rows(),
        "notes": list(done.notes),
    }


def images_of(task: Task, recipe: Recipe) -> Tensor:
    """Training images (n, C, H, W) as evaluation sees them, drawn from the seed, in turn from each
    class.
    """
    chosen = drawn(task.splits.train.targets, IMAGES, recipe.seed)
    samples = task.splits.train.take(chosen)
    with generators_restored():
        loader = eval_loader(samples, task.transform(train=False), batch=BATCH, keep=False)
        return torch.cat([images for images, _ in loader])


def drawn(targets: np.ndarray, number: int, seed: int) -> list[int]:
    """Places of so many images, in turn from each class; of several labels an image, from all.

    Args:
        targets: (n,) classes, or (n, K) labels.
        number: at most.
        seed: decides which.
    """
    order = np.random.default_rng(seed).permutation(len(targets))
    if targets.ndim > 1:
        return sorted(order[:number].tolist())
    return sorted(in_turn(order.tolist(), targets.tolist())[:number])


def _share(model: nn.Module) -> None:
    """Every rank gets the tensors of the first."""
    if ranks.size() == 1:
        return
    for value in model.state_dict().values():
        dist.broadcast(value, src=0)
