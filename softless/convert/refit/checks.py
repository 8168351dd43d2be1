"""What a refit refuses, ahead of anything that it changes."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from softless.errors import UsageError
from softless.modes import in_evaluation

PREPARED = "give floating-point images (n, C, h, w), prepared as the model takes them"


@dataclass(frozen=True)
class Looked:
    """What a first look at all images showed."""

    lengths: tuple[int, ...]  # images of each chunk
    alike: bool  # whether all are the same

    @property
    def count(self) -> int:
        """Images in all."""
        return sum(self.lengths)


def check_form(images: Any) -> None:
    """Refuse what is no tensor of images (n, C, h, w).

    Raises:
        UsageError: it is something else, or holds whole numbers.
    """
    if not isinstance(images, Tensor):
        raise UsageError(f"chunks of images are {type(images).__name__}: {PREPARED}")
    if images.ndim != 4 or not images.is_floating_point():
        dtype = str(images.dtype).removeprefix("torch.")
        raise UsageError(f"images are {dtype} {tuple(images.shape)}: {PREPARED}")


def look_at(chunks: Sequence[Tensor]) -> Looked:
    """Look at every image once.

    Args:
        chunks: (b, C, h, w).

    Raises:
        UsageError: no images, some of another size, or not finite.
    """
    lengths, alike, first = [], True, None
    for number, chunk in enumerate(chunks):
        check_form(chunk)
        if not len(chunk):
            raise UsageError(f"chunk {number} holds no image: leave it out")
        first = chunk[0] if first is None else first
        if chunk.shape[1:] != first.shape:
            raise UsageError(
                f"images of {tuple(first.shape)} and of {tuple(chunk.shape[1:])}: give images of "
                "one size"
            )
        if not bool(chunk.isfinite().all()):
            raise UsageError(
                f"images hold NaN or infinity, first in chunk {number}: leave those out"
            )
        alike = alike and bool((chunk == first).all())
        lengths.append(len(chunk))
    return Looked(tuple(lengths), alike)


def check_settings(ridge: Any, class_weight: Any) -> None:
    """Refuse strengths and weights that are no numbers.

    Raises:
        UsageError: which it is.
    """
    strengths = (
        ridge.values() if isinstance(ridge, Mapping) else () if ridge == "held-out" else [ridge]
    )
    if not all(_number(strength) and strength > 0 for strength in strengths):
        raise UsageError(f"ridge={ridge!r}: give 'held-out', or a positive number")
    if class_weight != "auto" and not (_number(class_weight) and class_weight >= 0):
        raise UsageError(f"class_weight={class_weight!r}: give 'auto', or a number from 0 on")


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_models(student: nn.Module, teacher: nn.Module) -> None:
    """Refuse models that no stream in float32 or float64 can be fitted for.

    Raises:
        UsageError: numbers that are not finite, another dtype or device, or a weight of both.
    """
    for title, model in (("student", student), ("teacher", teacher)):
        for name, parameter in model.named_parameters():
            if parameter.dtype not in {torch.float32, torch.float64}:
                raise UsageError(
                    f"the {title}'s {name} is {_where(parameter)[0]}: fit in float32, "
                    "model.float(), and convert afterwards"
                )
            if not bool(parameter.isfinite().all()):
                raise UsageError(f"the {title}'s {name} holds NaN or infinity: load it anew")
    mine, goal = (_where(next(model.parameters())) for model in (student, teacher))
    if mine != goal:
        raise UsageError(
            f"the student is {mine[0]} on {mine[1]} and the teacher {goal[0]} on {goal[1]}: bring "
            "both to the same, student.to(…)"
        )
    of_teacher = {x.data_ptr() for x in teacher.state_dict().values() if x.numel()}
    for name, value in student.state_dict().items():
        if value.numel() and value.data_ptr() in of_teacher:
            raise UsageError(
                f"student and teacher share {name}, so the teacher would move: give a deep copy"
            )


def _where(x: Tensor) -> tuple[str, str]:
    return str(x.dtype).removeprefix("torch."), str(x.device)


def check_pass(model: nn.Module, images: Tensor) -> None:
    """Refuse images (n, C, h, w) that a model does not take.

    Raises:
        UsageError: the model's own reason, in short.
    """
    why = ""
    try:
        with in_evaluation(model), torch.no_grad():
            model(images)
    except Exception as error:  # noqa: BLE001  # of any kind: the model is another's
        why = (str(error).splitlines() or [""])[0][:200] or type(error).__name__
    if why:
        raise UsageError(
            f"{type(model).__name__} does not take images of {tuple(images.shape[1:])}: {why}"
        )
