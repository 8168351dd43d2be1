"""The buffer that one projection writes for self-attention: q, k and v of all heads, side by side in every token's row."""

# B batch, H heads, N tokens, D features of a head, O features of the output

from torch import Tensor


def unpacked(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of q, k and v, each (B,H,N,D), in the buffer (B,N,3 H D)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def absorbed(matrix: Tensor, weight: Tensor) -> Tensor:
    """An operator's matrix A (B,H,D,D) taken into an output projection (O,H D): A W of each head below each other, (B,H D,O) in A's dtype."""
    return (matrix @ weight.to(matrix.dtype).T.unflatten(0, matrix.shape[1:3])).flatten(1, 2)
