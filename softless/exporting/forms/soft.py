"""SOFT and its normalised form for a fixed grid: Newton's iteration with a fixed number of steps, no
way back to Cholesky, everything in float32.

    o = P^T S (A + ridge I)^-1 S (P v)        (softless/attention/ops/soft.py)
"""

# B batch, H heads, N tokens, D features of a head, R bottleneck tokens

import torch
import torch.nn.functional as F
from torch import Tensor

from softless.attention.bottleneck.sampling import membership
from softless.attention.inverse import FURTHER, most_steps, stepped
from softless.attention.places import number_of_windows
from softless.exporting.forms.core import Core, Site, product


class Bottleneck(Core):
    """q (B,N,C) and v (B,N,C) -> (B,N,C), k tied to q; `before` is the published scale of q."""

    windows: Tensor  # (R,N), the share of each token in each bottleneck token

    def __init__(self, site: Site, normalised: bool) -> None:
        super().__init__(site)
        options, grid = site.options, site.grid
        assert grid is not None, "the record says that it needs a grid"
        self.before = site.head_dim**-0.25
        self.prefix, self.height, self.width = grid
        self.ratio, self.ridge = options["ratio"], options["ridge"]
        self.number, self.normalised = number_of_windows(grid, self.ratio), normalised
        self.head_dim, self.convolves = site.head_dim, options["sampling"] == "conv"
        most = most_steps(self.number, self.ridge) + FURTHER
        self.steps = most if site.steps is None else site.steps
        for name, x in site.learned.items():
            self.register_buffer(name, x)
        like = torch.zeros(1, 1, site.queries, 1)
        self.register_buffer("apart", 1 - torch.eye(self.number))
        self.register_buffer("identity", torch.eye(self.number))
        if not self.convolves:
            member = membership(like, None, None, grid, options["sampling"], self.ratio)[0, 0].mT
            self.register_buffer("windows", member / member.sum(-1, keepdim=True).clamp_min(1))

    def forward(self, q: Tensor, k: Tensor | None, v: Tensor) -> Tensor:  # noqa: ARG002
        """q (B,N,C), `before` in it, and v (B,N,C) -> (B,N,C)."""
        x = self.heads.apart(q, self.queries)
        tokens = self._convolved(q) if self.convolves else self.windows @ x
        middle = tokens.mean(-2, keepdim=True)
        tokens, x = tokens - middle, x - middle
        lengths = (tokens * tokens).sum(-1, keepdim=True)
        across = lengths.transpose(-2, -1)
        weights = _gaussian(
            (x * x).sum(-1, keepdim=True) + across - 2 * (product(x, tokens.mT))
        )  # (…,N,R)
        own = (lengths + across - 2 * product(tokens, tokens.mT)) * self.get_buffer("apart")
        kernel = _gaussian(own)
        identity = self.get_buffer("identity")
        inverse = stepped(kernel + self.ridge * identity, identity, self.steps)
        context = product(weights.mT, self.heads.apart(v, self.keys))
        if self.normalised:
            root = kernel.sum(-1, keepdim=True).rsqrt()
            return self.heads.joined(product(weights, root * product(inverse, root * context)))
        return self.heads.joined(product(weights, product(inverse, context)))

    def _convolved(self, q: Tensor) -> Tensor:
        """The bottleneck tokens (…,R,D) of q (B,N,C): a strided convolution that heads share, a
        LayerNorm, GELU.
        """
        tokens = q[:, self.prefix :] if self.prefix else q
        image = tokens.transpose(1, 2).reshape(-1, self.head_dim, self.height, self.width)
        y = F.conv2d(image, self.get_buffer("conv"), stride=self.ratio)
        y = y.reshape(-1, *self._heads(), self.head_dim, self.number).transpose(-2, -1)
        weight, bias = self.get_buffer("norm_weight"), self.get_buffer("norm_bias")
        return F.gelu(F.layer_norm(y, (self.head_dim,), weight, bias))

    def _heads(self) -> tuple[int, ...]:
        return () if self.heads.batch == 1 else (self.heads.number,)


def _gaussian(squares: Tensor) -> Tensor:
    return (-0.5 * squares.clamp_min(0.0)).exp()
