"""The gradient of a step: of one batch, or the mean of several that one batch's memory takes in
turn.

    grad L(theta) = 1/k sum_i grad L_i(theta),     i = 1 … k parts of k batch_size images

The images of a step are drawn, changed and mixed together, so the mean is the gradient of the large
batch for every loss that is a mean over images. Detection's losses divide by the boxes of a part.
BatchNorm sees a part at a time.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from softless.evaluation.evaluate import autocast
from softless.tasks.task import Task


def backward(
    task: Task,
    learner: nn.Module,
    prepared: tuple[Any, ...],
    *,
    parts: int,
    amp: str,
    device: torch.device,
    scaler: torch.amp.GradScaler | None = None,
) -> Tensor:
    """Add the gradient of the loss to the parameters'.

    Args:
        task: whose batch it is.
        learner: the module that answers the loss ().
        prepared: a batch as `prepare` made it, of all images of the step.
        parts: forward and backward passes that it takes.
        amp: precision, as the recipe names it.
        device: where it is computed.
        scaler: of float16 gradients, where there is one.

    Returns:
        The mean loss (), float32, without a gradient.
    """
    losses = []
    for index, part in enumerate(task.parts(prepared, parts)):
        with _exchanged_last(learner, last=index == parts - 1):
            with autocast(device, amp):
                loss: Tensor = learner(*part)
            shared = loss if parts == 1 else loss / parts
            (shared if scaler is None else scaler.scale(shared)).backward()
        losses.append(loss.detach().float())
    return losses[0] if parts == 1 else torch.stack(losses).mean()


def _exchanged_last(learner: nn.Module, *, last: bool) -> AbstractContextManager[None]:
    """Ranks exchange gradients once, in the last part's backward pass."""
    if last or not isinstance(learner, nn.parallel.DistributedDataParallel):
        return nullcontext()
    return learner.no_sync()
