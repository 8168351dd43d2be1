"""`softless audit`: which transcendental functions a model calls; the exit code says whether any is
left.
"""

from pathlib import Path

from softless.cli.cost import size_of
from softless.errors import UsageError
from softless.measure.audit import Audit
from softless.measure.audit import audit as watch
from softless.tasks.opened import model_and_size


def audit(
    model: str,
    input_size: int | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
    op: str | None = None,
    act: str | None = None,
) -> Audit:
    """List every transcendental function that one image meets, by kind, number of evaluations and
    place; the exit code is 0 where none is left, 1 where one is.

    Exponentials, softmax, GELU, sigmoid, tanh, logarithms, sines and other powers count, fused
    attention opened up; square roots and divisions do not. Tables that do not depend on the image
    are listed apart. The Python function softless.audit takes a module.

    Args:
        model: the name of a model, the folder of a run, or a .pt2 file (torch.export.save).
        input_size: side of the image in pixels; the model's own size without it.
        height: of an image that is not square, with width.
        width: of an image that is not square, with height.
        op: operator for a host (`softless audit deit_small_patch16_224 --op sima --act relu`).
        act: activation: gelu, relu, hard_swish or silu.

    Raises:
        UsageError: unknown model, operator or activation, a size the model refuses, options that a
            file has no use for.
    """
    size = size_of(input_size, height, width)
    if not model.endswith(".pt2"):
        return watch(*model_and_size(model, op, act, size))
    if op or act:
        raise UsageError(
            f"'{model}' is an exported program: its operator and activation are its own; leave "
            "--op and --act out"
        )
    return watch(Path(model), size)
