"""A model that was built in Python, not by name: a run notes what it is, and it is given again to
be loaded.

Nothing is ever unpickled, so a run folder holds the weights of such a model and not its code. Of a
teacher it holds neither: its class, its outline and a digest of its weights are noted.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from copy import deepcopy
from typing import Any, TypeVar

from torch import nn

from softless.errors import UsageError, need_module
from softless.models.digests import of_tensor, of_texts

Held = TypeVar("Held")
GIVEN = "given"  # stands for its name in a recipe and in best.json
LONGEST = 160  # characters of a class's name that are noted
_given: ContextVar[nn.Module | None] = ContextVar("softless_given_model", default=None)
_teacher: ContextVar[nn.Module | None] = ContextVar("softless_given_teacher", default=None)


@contextmanager
def held_in(variable: ContextVar[Held], value: Held) -> Iterator[None]:
    """Within it, a variable has this value; afterwards the one that it had."""
    token = variable.set(value)
    try:
        yield
    finally:
        variable.reset(token)


@contextmanager
def model_given(model: nn.Module | None) -> Iterator[None]:
    """Within it, this is the model of runs whose model was given; None leaves what was given
    before.
    """
    if model is None:
        yield
        return
    need_module(model, "train")
    with held_in(_given, model):
        yield


def noted(model: nn.Module) -> dict[str, str]:
    """What a recipe notes of it: its class, and a digest of the names, shapes and types of its
    tensors.
    """
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    tensors = [
        (name, tuple(tensor.shape), str(tensor.dtype))
        for name, tensor in model.state_dict().items()
    ]
    return {"class": kind[-LONGEST:], "outline": hashlib.sha256(repr(tensors).encode()).hexdigest()}


def given_model(note: Mapping[str, Any], *, copied: bool = True) -> nn.Module:
    """The model that was given, if it is the one that was noted.

    Args:
        note: as `noted` made it.
        copied: a copy; otherwise the module itself, which is trained in place.

    Raises:
        UsageError: none was given, or one of another class or other tensors.
    """
    model = _given.get()
    named = note.get("class", "a module")
    if model is None:
        raise UsageError(
            f"the model of this run ({named}) was built in Python, and its code is in no file: "
            "give it again, in "
            "Python, as model=…, for example softless.train(out=RUN, resume=True, model=…) or "
            "softless.eval(RUN, model=…)"
        )
    actual = noted(model)
    if actual["class"] != named:
        raise UsageError(
            f"the model of this run is a {named}, and a {actual['class']} was given: build it as "
            "it was"
        )
    if actual["outline"] != note.get("outline"):
        raise UsageError(
            f"the {named} that was given has other tensors than the one of this run: build it "
            "with the same arguments"
        )
    return deepcopy(model) if copied else model


def teacher_given(teacher: nn.Module) -> AbstractContextManager[None]:
    """Within it, this is the teacher of runs that learn from one."""
    return held_in(_teacher, teacher)


def noted_teacher(teacher: nn.Module) -> dict[str, str]:
    """What a recipe notes of a teacher: class, outline, and a digest of its weights."""
    values = {name: of_tensor(tensor) for name, tensor in teacher.state_dict().items()}
    return {**noted(teacher), "weights": of_texts(values)}


def given_teacher(note: Mapping[str, Any]) -> nn.Module:
    """The teacher that was given, itself, if it is the one that was noted.

    Args:
        note: as `noted_teacher` made it.

    Raises:
        UsageError: none was given, or one of another class, other tensors or other weights.
    """
    teacher = _teacher.get()
    named = note.get("class", "a module")
    if teacher is None:
        raise UsageError(
            f"the teacher of this run ({named}) was given in Python, and its weights are in no "
            "file of the run: give it again to softless.recovery.distil.distil(…, resume=True)"
        )
    if noted_teacher(teacher) != dict(note):
        raise UsageError(
            f"the teacher of this run is a {named} with other weights than the one that was "
            "given: give the teacher that the run began with"
        )
    return teacher
