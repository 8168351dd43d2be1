"""The buffer that one projection writes for self-attention: q, k and v of all heads, side by side in every token's row."""

# B batch, H heads, N tokens, D features of a head

from torch import Tensor


def unpacked(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Views of q, k and v, each (B,H,N,D), in the buffer (B,N,3 H D)."""
    q, k, v = qkv.unflatten(-1, (3, heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v
