"""What every operator's edge form is made of: heads side by side and apart, and where it stands."""

# B batch, H heads, N queries, M keys, D features of a head, C = H D joined

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from softless.attention.record import Grid, Operator


@dataclass(frozen=True)
class Heads:
    """How many heads there are, and how many images: 1, or None for any number.

    With one image a head is the batch of a product, (H,N,D), as runtimes that copy what they
    broadcast take it best; else (B,H,N,D).
    """

    number: int
    batch: int | None = None

    def apart(self, x: Tensor, tokens: int) -> Tensor:
        """Joined heads (B,tokens,H D) -> (B,H,tokens,D), or (H,tokens,D)."""
        if self.batch == 1:
            return x.reshape(tokens, self.number, -1).transpose(0, 1)
        return x.reshape(-1, tokens, self.number, x.shape[2] // self.number).transpose(1, 2)

    def upright(self, x: Tensor, tokens: int) -> Tensor:
        """Joined heads (B,tokens,H D) -> (B,H,D,tokens), or (H,D,tokens)."""
        if self.batch == 1:
            return x.reshape(tokens, self.number, -1).permute(1, 2, 0)
        return x.reshape(-1, tokens, self.number, x.shape[2] // self.number).permute(0, 2, 3, 1)

    def joined(self, x: Tensor) -> Tensor:
        """What `apart` gives, (B,H,N,D), side by side: (B,N,H D)."""
        tokens, width = x.shape[-2], self.number * x.shape[-1]
        if self.batch == 1:
            return x.transpose(0, 1).reshape(1, tokens, width)
        return x.transpose(1, 2).reshape(-1, tokens, width)

    def laid(self, x: Tensor) -> Tensor:
        """What `upright` gives, (B,H,D,N), side by side: (B,N,H D)."""
        tokens, width = x.shape[-1], self.number * x.shape[-2]
        if self.batch == 1:
            return x.permute(2, 0, 1).reshape(1, tokens, width)
        return x.permute(0, 3, 1, 2).reshape(-1, tokens, width)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a b of heads apart, (…,n,m) and (…,m,l) -> (…,n,l): of three dimensions by the operator that
    expands nothing.
    """
    return torch.bmm(a, b) if a.ndim == b.ndim == 3 else a @ b


@dataclass(frozen=True)
class Site:
    """Where an operator stands: its record, the sizes of what it meets, its options and tensors.

    Args:
        record: of the operator.
        heads: how many, and for how many images.
        head_dim: features of a head.
        queries: how many there are.
        keys: how many there are.
        options: of the operator, defaults filled in.
        learned: the operator's own tensors.
        grid: where the queries stand.
        steps: Newton's steps of SOFT's inverse; None for as many as any matrix may need.
    """

    record: Operator
    heads: Heads
    head_dim: int
    queries: int
    keys: int
    options: Mapping[str, Any]
    learned: Mapping[str, Tensor] = field(default_factory=dict)
    grid: Grid | None = None
    steps: int | None = None


class Core(nn.Module):
    """An operator between its projections: q (B,N,C), k and v (B,M,C) -> (B,N,C).

    k is None where it is tied to q. What a constant factor of q or of the output would multiply
    stands in `before` and `after`: who has a linear layer there folds it in.
    """

    before: float = 1.0  # of q, and of k where it is tied to q
    centres: bool = False  # whether it takes the means off q, k and v: what is added is lost
    after: float = 1.0  # of the output

    def __init__(self, site: Site) -> None:
        super().__init__()
        self.heads, self.queries, self.keys = site.heads, site.queries, site.keys
