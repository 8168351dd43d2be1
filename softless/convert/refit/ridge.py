"""A layer by ridge regression: what it multiplies by is drawn towards what it was, and how strongly
is chosen on images that were held out.

    minimise over W, b   sum_t w_t |W o_t + b - y_t|^2 + strength * d * |W - g W0|^2

At the tokens t, o_t are the layer's inputs, y_t what it is to answer, w_t the tokens' weights. W0 is
the weight that was there, and g the number that fits it best. d is the mean of the diagonal of
sum w o o^T. All sums are in float64. The strength is the one with the least error on the held-out images, where
keeping the layer as it is stands for election too.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
FLOOR = 1e-12  # of the mean diagonal: where nothing is to be solved
MENDED = 1e-10  # of the squared target: an error below it is rounding


@dataclass
class Moments:
    """Sums over tokens of inputs o (C_in), targets y (C_out) and their products, float64."""

    tokens: Tensor  # (), the sum of their weights
    o: Tensor  # (C_in)
    y: Tensor  # (C_out)
    oo: Tensor  # (C_in, C_in)
    oy: Tensor  # (C_in, C_out)
    yy: Tensor  # (C_out)

    @staticmethod
    def zeros(inputs: int, outputs: int, device: torch.device) -> "Moments":
        """Of no token."""
        sizes = ((), (inputs,), (outputs,), (inputs, inputs), (inputs, outputs), (outputs,))
        return Moments(*(torch.zeros(size, dtype=torch.float64, device=device) for size in sizes))

    def add(self, o: Tensor, y: Tensor, weights: Tensor) -> None:
        """More tokens: inputs o (n, C_in), targets y (n, C_out), weights (n)."""
        o, y, weights = o.double(), y.double(), weights.double()
        weighted = o * weights[:, None]
        self.tokens += weights.sum()
        self.o += weighted.sum(0)
        self.y += weights @ y
        self.oo.addmm_(weighted.T, o)
        self.oy.addmm_(weighted.T, y)
        self.yy += weights @ y.square()

    def plus(self, other: "Moments") -> "Moments":
        """Of the tokens of both."""
        return Moments(
            self.tokens + other.tokens,
            self.o + other.o,
            self.y + other.y,
            self.oo + other.oo,
            self.oy + other.oy,
            self.yy + other.yy,
        )

    def error(self, W: Tensor, b: Tensor, of: Tensor) -> float:
        """sum w |W o + b - y|^2 of W (C_out, C_in) and b (C_out,), each output's part multiplied by
        its number of `of` (C_out,).
        """
        squares = (
            self.yy
            - 2 * (W * self.oy.T).sum(1)
            + ((W @ self.oo) * W).sum(1)
            + 2 * b * (W @ self.o - self.y)
            + b.square() * self.tokens
        )
        return max(float((squares * of).sum()), 0.0)


@dataclass(frozen=True)
class Solution:
    """A layer's new weight W (C_out, C_in) and bias b (C_out), float64, and how it came about."""

    W: Tensor
    b: Tensor
    strength: float | None  # of the ridge; None where the layer is kept
    gain: float  # g
    before: float  # relative error on the held-out tokens
    after: float
    grown: bool = False  # whether the ridge had to grow until there was a solution


@dataclass(frozen=True)
class _Centred:
    """Moments about the means, and the least-squares gain of the old weight."""

    oo: Tensor
    oy: Tensor
    mean_o: Tensor
    mean_y: Tensor
    gain: float

    @staticmethod
    def of(moments: Moments, W0: Tensor, important: Tensor, *, centred: bool) -> "_Centred":
        count = moments.tokens.clamp_min(1e-300)
        mean_o, mean_y = moments.o / count, moments.y / count
        if not centred:
            mean_o, mean_y = torch.zeros_like(mean_o), torch.zeros_like(mean_y)
        oo = moments.oo - moments.tokens * torch.outer(mean_o, mean_o)
        oy = moments.oy - moments.tokens * torch.outer(mean_o, mean_y)
        top = float(((W0.T * oy).sum(0) * important).sum())
        bottom = float((((W0 @ oo) * W0).sum(1) * important).sum())
        return _Centred(oo, oy, mean_o, mean_y, top / bottom if bottom > 0 else 1.0)

    def solved(self, W0: Tensor, strength: float) -> tuple[Tensor, bool]:
        """The weight (C_out, C_in) of one strength, and whether the ridge had to grow."""
        diagonal = float(self.oo.diagonal().mean())
        ridge, grown = strength * diagonal, False
        if not (math.isfinite(diagonal) and diagonal > 0):
            return W0 * self.gain, True
        eye = torch.eye(len(self.oo), dtype=self.oo.dtype, device=self.oo.device)
        for _ in range(20):
            factor, failed = torch.linalg.cholesky_ex(self.oo + ridge * eye)
            if not int(failed):
                right = self.oy + ridge * self.gain * W0.T
                W = torch.cholesky_solve(right, factor).T
                if bool(W.isfinite().all()):
                    return W, grown
            ridge, grown = max(ridge * 10, FLOOR * diagonal), True
        return W0 * self.gain, True


def solve(
    fit: Moments,
    held_out: Moments,
    W0: Tensor,
    b0: Tensor | None,
    *,
    important: Tensor,
    strengths: tuple[float, ...] | None = None,
    on_all: bool = True,
) -> Solution:
    """The layer that the images ask for.

    Args:
        fit: tokens that it is fitted on.
        held_out: tokens that choose the strength, and on which errors are told.
        W0: the weight that was there (C_out, C_in), float64.
        b0: its bias (C_out); None where it has none, and gets none.
        important: (C_out) what an output's squared error counts.
        strengths: of the ridge: None chooses among all, one is taken as it is, () keeps the layer.
        on_all: fit on the held-out tokens too, once the strength is chosen.
    """
    bias = torch.zeros_like(W0[:, 0]) if b0 is None else b0
    squares = max(held_out.error(torch.zeros_like(W0), torch.zeros_like(bias), important), 1e-300)
    kept = held_out.error(W0, bias, important)
    relative = math.sqrt(kept / squares)
    if kept <= MENDED * squares or strengths == ():
        return Solution(W0, bias, None, 1.0, relative, relative)
    centred = _Centred.of(fit, W0, important, centred=b0 is not None)
    trials = []
    for trial in STRENGTHS if strengths is None else strengths:
        W, grown = centred.solved(W0, trial)
        b = centred.mean_y - W @ centred.mean_o if b0 is not None else bias
        trials.append((held_out.error(W, b, important), trial, W, b, grown))
    error, chosen, W, b, grown = min(trials, key=lambda trial: trial[0])
    if strengths is None and not error < kept:
        return Solution(W0, bias, None, 1.0, relative, relative)
    if on_all:
        both = _Centred.of(fit.plus(held_out), W0, important, centred=b0 is not None)
        W, grown = both.solved(W0, chosen)
        b = both.mean_y - W @ both.mean_o if b0 is not None else bias
    return Solution(W, b, chosen, centred.gain, relative, math.sqrt(error / squares), grown)
