"""A model of any task from what a run notes of it: `best.json` holds the arguments of
`assemble`.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from softless.errors import unknown
from softless.experiment.groups import TASKS
from softless.models.create import create_model
from softless.models.given import GIVEN, given_model
from softless.tasks.detection.model import detector
from softless.tasks.segmentation.model import segmenter

# task -> what builds a head around a host; the others train a model as `create_model` makes it
HEADS: Mapping[str, Callable[..., nn.Module]] = {"detection": detector, "segmentation": segmenter}


def assemble(
    task: str,
    architecture: str,
    model_args: Mapping[str, Any],
    head: Mapping[str, Any] | None = None,
) -> nn.Module:
    """The model of a task.

    Args:
        task: "classification", "multilabel", "detection", "segmentation" or "dino" (the backbone
            that it trained, without a head).
        architecture: a registered model or a host; "given" is the one that `models.given` holds.
        model_args: further arguments of `create_model`, among them `op`, `num_classes` and
            `in_chans`.
        head: what is built around a host for dense prediction: arguments of `detector` or
            `segmenter`.

    Raises:
        UsageError: no such task or model, or arguments that do not fit.
    """
    if architecture == GIVEN:
        return given_model(model_args)
    if task not in TASKS:
        raise unknown("task", task, TASKS)
    if task in HEADS:
        return HEADS[task](architecture, model_args, **(head or {}))
    return create_model(architecture, **model_args)
