"""What a dtype cannot hold, told by values: float32 its sums over tokens, float16 its answers.

Values are looked at where that costs nothing: on a processor, without gradients, outside compiled
and recorded graphs. On a GPU a look would make the processor wait, a graph must not depend on
values, and in training a loss that is not finite says it.
"""

# B batch, H heads, N query tokens, D features

import math

import torch
from torch import Tensor
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from softless.attention.recording import recording
from softless.errors import PrecisionError

# up to here products of three values and their sums over a million tokens fit float32
LARGE = 2.0**40
MOST = torch.finfo(torch.float16).max


def may_look(x: Tensor) -> bool:
    """Whether a call may depend on the values of its result x, of any shape."""
    # first: a graph would hold even the question after the size
    if torch.compiler.is_compiling() or recording():
        return False
    if x.device.type != "cpu" or x.requires_grad or type(x) is not Tensor or not x.numel():
        return False
    return not (is_in_torch_dispatch_mode() or torch._C._functorch.is_functorch_wrapped_tensor(x))


def may_overflow(row: Tensor, *inputs: Tensor) -> bool:
    """Whether the output of the first query is not finite, or the first tokens given hold large
    values. Any shapes are taken, (B,H,1,D) for one.

    Sums over tokens that overflow spoil every row, by NaN, infinity or zero, so the first tokens
    are enough and nothing is read as a whole.
    """
    if row.dtype == torch.float64 or not may_look(row):
        return False
    if not torch.linalg.vector_norm(row, 1).item() < math.inf:  # NaN is not
        return True
    return any(
        x.numel() and not torch.linalg.vector_norm(x, math.inf).item() <= LARGE for x in inputs
    )


def in_range(o: Tensor, dtype: torch.dtype, op: str, *inputs: Tensor) -> Tensor:
    """The output o of an operator, cast to a dtype that holds it.

    Args:
        o: (B, ...), first axis the images.
        dtype: what the caller gets.
        op: name of the operator.
        inputs: what the output was made of, (B, ...) each; an image of which holds NaN or infinity
            answers so.

    Raises:
        PrecisionError: float16 does not hold the answer to finite values.
    """
    cast = o if o.dtype == dtype else o.to(dtype)
    if dtype != torch.float16 or not may_look(cast) or _is_finite(cast):
        return cast
    finite_inputs = torch.stack([x.isfinite().flatten(1).all(1) for x in inputs]).all(0)
    lost = finite_inputs & ~cast.isfinite().flatten(1).all(1)
    if lost.any():
        raise PrecisionError(
            f"operator '{op}': float16 ends at {MOST:,.0f}, and the answer to these values "
            "exceeds it: use bfloat16 or float32"
        )
    return cast


def _is_finite(x: Tensor) -> bool:
    """Whether all of x is, in one quick pass over halves."""
    smallest, largest = x.aminmax()
    return smallest.item() > -math.inf and largest.item() < math.inf  # NaN is not
