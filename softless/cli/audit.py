"""`softless audit`: which transcendental functions a model calls; the exit code says whether any is
left.
"""

from collections.abc import Sequence
from pathlib import Path

from softless.cli.cost import size_of
from softless.errors import UsageError, located
from softless.measure.audit import audit as watch
from softless.measure.findings import Audit
from softless.measure.graphs.files import has_reader
from softless.tasks.opened import model_and_size


def audit(
    model: str,
    input_size: int | None = None,
    *,
    height: int | None = None,
    width: int | None = None,
    op: str | None = None,
    act: str | None = None,
    allow: Sequence[str] = (),
) -> Audit:
    """List every transcendental function that one image meets, by kind, number of evaluations and
    place; the exit code is 0 where none is left, 1 where one is that `--allow` does not name.

    Exponentials, softmax, GELU, sigmoid, tanh, logarithms, sines and other powers count, fused
    attention opened up; square roots and divisions do not. Tables that do not depend on the image
    are listed apart. The Python function softless.audit takes a module.

    Files of exported models are read without the tools that wrote them, and nothing in them is
    run. An operator that no table knows, or that cannot be looked into, is opaque: not exp-free.

    Args:
        model: the name of a model, the folder of a run or of `save_weights`, or a file: .pt2, .onnx, .xml (OpenVINO),
            .tflite, .pte (ExecuTorch), .mlpackage (Core ML).
        input_size: side of the image in pixels; the model's own size without it.
        height: of an image that is not square, with width.
        width: of an image that is not square, with height.
        op: operator for a host (`softless audit deit_small_patch16_224 --op sima --act relu`).
        act: activation: gelu, relu, hard_swish or silu.
        allow: kinds that may be left (`--allow gelu softmax`).

    Raises:
        UsageError: unknown model, operator, activation or kind, a size the model refuses, options
            that a file has no use for.
        DataError: a file that cannot be read, or of an ending that no audit can read.
    """
    size = size_of(input_size, height, width)
    if not has_reader(model) and not located(model).is_file():
        return watch(*model_and_size(model, op, act, size), allow=allow)
    if op or act:
        raise UsageError(
            f"'{model}' is an exported model: its operator and activation are its own; leave "
            "--op and --act out"
        )
    return watch(Path(model), size, allow=allow)
