"""Means and second moments over tokens that merge exactly, however large the means are beside the
spread.

Plain sums of squares lose 3.6e-2 in float32 at mean / std = 100. Here each chunk is centred on its
own mean before anything is squared, and two chunks join by Chan, Golub and LeVeque (1979):

    mean = mean_a + d n_b / n,    S = S_a + S_b + d d^T n_a n_b / n,    d = mean_b - mean_a

Means, counts and second moments are float64 where the device has it: they are D or D x E numbers.
A recorded graph, which holds one chunk and which few runtimes run in float64, keeps the dtype of
its tokens: there a mean is taken twice, the second time of what the first left.
"""

# B batch, H heads, N tokens, D features of x, E features of y

import torch
from torch import Tensor

from softless.attention.norms import keep, product
from softless.attention.recording import recording


def precise(x: Tensor) -> Tensor:
    """x of any shape in float64, or as it is on a device that has none."""
    return x if x.device.type == "mps" else x.double()


def summed(x: Tensor) -> Tensor:
    """x of any shape in the dtype in which sums are kept: `precise`, or its own while recording."""
    return x if recording() else precise(x)


def number(x: Tensor, mask: Tensor | None) -> Tensor:
    """How many tokens of x (B,H,N,D) count: (B,1,1,1) or (1,1,1,1), whatever the dtype of x can
    count to.
    """
    dtype = torch.float32 if x.device.type == "mps" or recording() else torch.float64
    if mask is None:
        return torch.full((1, 1, 1, 1), x.shape[-2], device=x.device, dtype=dtype)
    return mask.sum(-1)[:, None, None, None].to(dtype)


def mean(x: Tensor, mask: Tensor | None, count: Tensor) -> Tensor:
    """(B,H,1,D) mean over the tokens that count."""
    middle = summed(keep(x, mask)).sum(-2, keepdim=True) / count.clamp_min(1)
    if not recording():
        return middle
    return middle + keep(x - middle, mask).sum(-2, keepdim=True) / count.clamp_min(1)


def centred(x: Tensor, middle: Tensor, mask: Tensor | None) -> Tensor:
    """x - middle in x's dtype, with what the dtype cannot hold of a large middle taken off
    afterwards; 0 where a token does not count. Here x is (B,H,n,D), middle (B,H,1,D).
    """
    if middle.dtype == x.dtype:
        return keep(x - middle, mask)
    high = middle.to(x.dtype)
    low = (middle - high).to(x.dtype)
    return keep(x - high - low, mask)


def squares(x: Tensor) -> Tensor:
    """(B,H,1,D) sums of squares over the tokens of centred x."""
    return summed(x).square().sum(-2, keepdim=True)


def products(x: Tensor, y: Tensor) -> Tensor:
    """(B,H,D,E) sums of products over the tokens of centred x and y."""
    return summed(product(x, y))


def shift(
    mean_a: Tensor, mean_b: Tensor, count_a: Tensor, count_b: Tensor
) -> tuple[Tensor, Tensor]:
    """The mean of both, and the weight that the product of two such differences of means enters
    second moments with. Means are (B,H,1,D).
    """
    count = (count_a + count_b).clamp_min(1)
    return mean_a + (mean_b - mean_a) * (count_b / count), count_a * count_b / count
