"""The buffer that one projection writes for self-attention: q, k and v of all heads, side by side
in every token's row.
"""

# B batch, H heads, N tokens, D features of a head, O features of the output

import torch
from torch import Tensor

# Whether the processor has instructions for products in bfloat16; without them torch's own are many
# times slower than in float32.
BFLOAT16 = torch.backends.mkldnn.is_available() and bool(
    torch.ops.mkldnn._is_mkldnn_bf16_supported()
)
STRETCH = 4096  # rows that are widened at once


def unpacked(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of q, k and v, each (B,H,N,D), in the buffer (B,N,3 H D)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def absorbed(matrix: Tensor, weight: Tensor) -> Tensor:
    """An operator's matrix A (B,H,D,D) taken into an output projection (O,H D): A W of each head
    below each other, (B,H D,O) in A's dtype.
    """
    return (matrix @ weight.to(matrix.dtype).T.unflatten(0, matrix.shape[1:3])).flatten(1, 2)


def product(x: Tensor, matrix: Tensor) -> Tensor:
    """x (n,k) @ matrix (k,m) in the dtype of x, summed in float32; bfloat16 widened where the
    processor has no instructions for it.
    """
    slow = x.dtype == torch.bfloat16 and x.device.type == "cpu" and not BFLOAT16
    if not slow or torch.compiler.is_compiling():
        return x @ matrix.to(x.dtype)
    y, widened = x.new_empty(len(x), matrix.shape[1]), matrix.float()
    for first in range(0, len(x), STRETCH):
        y[first : first + STRETCH] = torch.matmul(x[first : first + STRETCH].float(), widened)
    return y
