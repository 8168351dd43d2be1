"""The inverse of SOFT's kernel matrix: Cholesky, or Newton's iteration that stops by its residual,
with the derivative of the inverse itself.

A is a kernel matrix plus a ridge, so it is symmetric with eigenvalues of at least the ridge.
However X = A^-1 was found, its derivative is -X dA X: nothing is differentiated through Cholesky or
through steps.
"""

# B batch, H heads, R landmarks

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from softless.attention.recording import known, recording, recording_for_onnx

RESIDUAL = 1e-3  # |I - A X| at which Newton's iteration stops; each further step squares it
FURTHER = 2
MOST = 1024  # rows of a matrix, for which a graph of any size has its steps
# R x R products of `published` and `published_norm`: 20 steps of two, and the ten of its start
PUBLISHED_PRODUCTS = (
    40,
    50,
)


class Inversion(NamedTuple):
    """An inverse, how many steps each matrix took, and which of them fell back to Cholesky."""

    inverse: Tensor  # (..., R, R)
    steps: Tensor  # (...)
    fell_back: Tensor  # (...) boolean


@dataclass
class Newton:
    """How inverses are taken within `by_newton` and `watching_newton`, and how near they came."""

    steps: int | None = None  # of every matrix; None for those that no matrix of its size outlasts
    watched: bool = False  # whether each matrix takes as many as it needs, which are noted
    most: int = 0  # that any matrix took, the further ones included
    residual: float = 0.0  # the largest |I - A X| (Frobenius); infinite where a matrix holds NaN

    def taken(self, a: Tensor, ridge: float) -> Tensor:
        """A^-1 (...,R,R) of matrices that hold their ridge."""
        identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
        if self.watched:
            taken = newton(a, ridge)
            x, self.most = taken.inverse, max(self.most, int(taken.steps.amax()) + FURTHER)
        else:
            x = stepped(a, identity, self.steps or most_steps(a.shape[-1], ridge) + FURTHER)
        if not recording():
            furthest = (identity - a @ x).square().sum((-2, -1)).amax().sqrt()
            self.residual = max(float(furthest.nan_to_num(math.inf)), self.residual)
        return x


_newton: ContextVar[Newton | None] = ContextVar("newton", default=None)


@contextmanager
def _taken_by(newton: Newton) -> Iterator[Newton]:
    token = _newton.set(newton)
    try:
        yield newton
    finally:
        _newton.reset(token)


def by_newton(steps: int | None = None) -> AbstractContextManager[Newton]:
    """Every inverse within by so many of Newton's steps, in the model's own dtype and without a way
    back to Cholesky, as an edge form takes it. None: as many as no matrix of its size outlasts.
    """
    return _taken_by(Newton(steps))


def watching_newton() -> AbstractContextManager[Newton]:
    """Every inverse within by as many of Newton's steps as its matrix needs; the most of them is
    noted.
    """
    return _taken_by(Newton(watched=True))


def in_newton() -> bool:
    """Whether inverses are taken as `by_newton` or `watching_newton` say."""
    return _newton.get() is not None


def inverse(a: Tensor, ridge: float, method: str = "cholesky") -> Tensor:
    """(A + ridge I)^-1 for kernel matrices (..., R, R), differentiable; float32 at least, whatever
    came.

    Each matrix is inverted by itself: its neighbours in the batch, a NaN image among them, change
    nothing.
    """
    told = _newton.get()
    if told is not None:
        return told.taken(a + ridge * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device), ridge)
    ridged = a + ridge * torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    if recording():  # a graph holds torch's own operators, which have derivatives of their own
        return _by_method(ridged, ridge, method)
    with torch.no_grad():
        x = _by_method(ridged, ridge, method)
    return _with_derivatives(ridged, x)


def _by_method(a: Tensor, ridge: float, method: str) -> Tensor:
    """A^-1 by a method; in an ONNX graph, which has no Cholesky, by Newton's iteration."""
    return newton(a, ridge).inverse if method == "newton" or recording_for_onnx() else cholesky(a)


def _with_derivatives(a: Tensor, x: Tensor) -> Tensor:
    """X, the inverse of A, with its derivatives by A."""
    kind = Inverse if torch.compiler.is_compiling() else ForwardInverse
    differentiable: Tensor = kind.apply(a, x)
    return differentiable


class Inverse(torch.autograd.Function):
    """X with the derivative of A^-1, backward, as often as one likes."""

    generate_vmap_rule = True

    @staticmethod
    def forward(_: Tensor, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def setup_context(ctx: Any, _: tuple[Tensor, Tensor], output: Tensor) -> None:
        # not the x that was given: a second derivative goes through it
        ctx.save_for_backward(output)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (x,) = ctx.saved_tensors
        return -(x.mT @ grad @ x.mT), None


class ForwardInverse(Inverse):
    """The same with forward-mode differentiation, which dynamo does not trace."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        Inverse.setup_context(ctx, inputs, output)
        ctx.save_for_forward(output)

    @staticmethod
    def jvp(ctx: Any, change: Tensor, _: Tensor | None) -> Tensor:
        (x,) = ctx.saved_tensors
        return -(x @ change @ x)


def cholesky(a: Tensor) -> Tensor:
    """A^-1 of symmetric positive definite A (...,R,R).

    A matrix that holds NaN gives NaN, and no error for the others.
    """
    factor, _ = torch.linalg.cholesky_ex(a)
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device).expand_as(a)
    return torch.cholesky_solve(identity, factor)


def most_steps(size: int, ridge: float) -> int:
    """Newton's limit, 2 log2(kappa) + 6 steps: the condition number kappa is at most (R + ridge) /
    ridge.
    """
    size = size if known(size) else MOST
    return math.ceil(2 * math.log2((size + ridge) / ridge)) + 6


def newton(a: Tensor, ridge: float) -> Inversion:
    """X <- 2 X - X A X from X_0 = 1.8 A / |A|_1^2, until |I - A X| (Frobenius) is at most 1e-3, and
    two steps more; each matrix by itself. A is (...,R,R); `steps` and `fell_back` are (...).

    A matrix that has not come so far within the limit is inverted by Cholesky, and counted; in an
    ONNX graph, which has none, it is NaN.
    """
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    rows = a.abs().sum(-1).amax(-1)[..., None, None]
    x = (1.8 / rows.square()) * a
    steps = torch.zeros(a.shape[:-2], dtype=torch.int64, device=a.device)
    going = torch.ones(a.shape[:-2], dtype=torch.bool, device=a.device)
    for _ in range(most_steps(a.shape[-1], ridge)):
        residual = identity - a @ x
        going = going & ~(residual.square().sum((-2, -1)) <= RESIDUAL**2)
        x = torch.where(going[..., None, None], x + x @ residual, x)
        steps = steps + going
    fell_back = ~((identity - a @ x).square().sum((-2, -1)) <= RESIDUAL**2)
    for _ in range(FURTHER):
        x = x + x @ (identity - a @ x)
    rest = torch.full_like(x, torch.nan) if recording_for_onnx() else cholesky(a)
    return Inversion(torch.where(fell_back[..., None, None], rest, x), steps, fell_back)


def stepped(a: Tensor, identity: Tensor, steps: int) -> Tensor:
    """Newton's iteration with a fixed number of steps, the same for every matrix: A (...,R,R) and
    the identity (R,R) -> (...,R,R).
    """
    largest = a.abs().sum(-1, keepdim=True).amax(-2, keepdim=True)
    x = (1.8 / (largest * largest)) * a  # a graph would hold a square as a power
    # the operator of three dimensions, which expands nothing, for whoever records one image
    times = torch.bmm if a.ndim == 3 else torch.matmul
    for _ in range(steps):
        x = x + times(x, identity - times(a, x))
    return x


def published(a: Tensor, steps: int = 20, ridge: float = 0.01) -> Tensor:
    """SOFT's code: 20 steps from a start chosen before the ridge is added, no stop, and the
    derivative of an exact inverse. A is (...,R,R).

    The derivative is -X dA X with the X that was reached, right only where the steps sufficed.
    """
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    with torch.set_grad_enabled(recording() and torch.is_grad_enabled()):
        start = 1.8 / a.abs().sum(-1).amax(-1)[..., None, None].square()
        ridged = a + ridge * identity
        x = start * ridged
        for _ in range(steps):
            x = 2 * x - x @ ridged @ x
    return x if recording() else _with_derivatives(a, x)


def published_norm(a: Tensor, steps: int = 20, halvings: int = 10) -> Tensor:
    """The code of the normalised variant: no ridge, one start for the whole batch and all heads,
    and gradients through the steps. A is (B,H,R,R).

    The start is halved while |I - start A A|_1 exceeds 1.01, at most ten times.
    """
    identity = torch.eye(a.shape[-1], dtype=a.dtype, device=a.device)
    start = 2 / a.abs().sum(-1).amax().square()
    for _ in range(halvings):
        far = (identity - start * (a @ a)).abs().sum(-2).amax() > 1.01
        start = torch.where(far, start / 2, start)
    x = start * a
    for _ in range(steps):
        x = 2 * x - x @ a @ x
    return x
