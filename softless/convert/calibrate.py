"""`calibrate=` of `swap`: each head of a new attention gets the number that brings its branch
nearest to the one that was there.

With P_h what head h adds to the branch and r what the old branch added, both without the bias, the
numbers minimise

    |r - sum_h g_h P_h|^2        over the tokens of one half of the images,

by the normal equations of H unknowns. How far they go, g(s) = 1 + s (g - 1), is chosen on the other
half. With s = 0 it is the bare swap, and any other has to be better by more than its standard error
over those images. On them no branch is farther from the old one than the bare swap's.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from softless.convert.layouts import as_tokens
from softless.convert.modules import Gained, features_of
from softless.errors import UsageError
from softless.layers.plain import weights_of

STRENGTHS = (0.0, 0.25, 0.5, 0.75, 1.0)
RIDGE = 1e-9  # of the mean diagonal: heads that add nothing keep their number

Rest = AbstractContextManager[None]


@dataclass(frozen=True)
class ObservedCall:
    """What an attention was given on some images, and what it answered."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    out: Tensor


@dataclass(frozen=True)
class Fit:
    """The numbers of one branch, and its relative error on held-out images without and with
    them.
    """

    gains: tuple[float, ...]  # one for each head
    bare: float
    error: float


def branches(
    model: nn.Module, paths: Iterable[str], images: Tensor, at_rest: Rest
) -> dict[str, ObservedCall]:
    """Each attention at work on some images (B, C, h, w), as it is.

    Returns:
        By path, what each was given and what it answered.

    Raises:
        UsageError: the model does not take the images, or an attention is not called.
    """
    observed: dict[str, ObservedCall] = {}

    def look(path: str, args: Any, kwargs: Any, out: Any) -> None:
        observed[path] = ObservedCall(args, kwargs, out)

    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _, args, kwargs, out, path=path: look(path, args, kwargs, out), with_kwargs=True
        )
        for path in paths
    ]
    try:
        with at_rest:
            model(images)
    except Exception as error:
        line = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise UsageError(
            f"calibrate: the model does not run on images {tuple(images.shape)} ({line})"
        ) from error
    finally:
        for hook in hooks:
            hook.remove()
    if missing := [path for path in paths if path not in observed]:
        raise UsageError(
            f"calibrate: {missing[0]} was not seen at work on these images, so its answer is not "
            "known: leave it out with layers="
        )
    return observed


def fitted(replacement: nn.Module, observed: ObservedCall, at_rest: Rest) -> Fit:
    """The numbers of a new attention on what the old one was given; nothing is changed."""
    holder: Any = replacement
    head_outputs: list[Tensor] = []
    # before others change it
    hook = holder.proj.register_forward_pre_hook(
        lambda _, inputs: head_outputs.append(inputs[0]), prepend=True
    )
    try:
        with at_rest:
            replacement(*observed.args, **observed.kwargs)
    finally:
        hook.remove()
    with torch.no_grad():
        weight, bias = _linear(holder.proj, head_outputs[0])
        answer = as_tokens(holder, observed.out).double()
        first, second = _halves(head_outputs[0].double(), answer - bias)
        best = _Moments.of(*first, weight, holder.num_heads).solution()
        held_out = [
            _Moments.of(o[None], r[None], weight, holder.num_heads)
            for o, r in zip(*second, strict=True)
        ]
    ones = torch.ones_like(best)
    chosen = min(
        (torch.lerp(ones, best, strength) for strength in STRENGTHS),
        key=lambda gains: _total(held_out, gains),
    )
    if not _surely_better(held_out, chosen, ones):
        chosen = ones
    return Fit(tuple(chosen.tolist()), _relative(held_out, ones), _relative(held_out, chosen))


def _total(held_out: Sequence["_Moments"], gains: Tensor) -> float:
    return sum(image.squares(gains) for image in held_out)


def _relative(held_out: Sequence["_Moments"], gains: Tensor) -> float:
    """The error of a branch on some images; 1 is a branch that says nothing."""
    target_squares = sum(float(image.r_squared) for image in held_out)
    return math.sqrt(_total(held_out, gains) / target_squares) if target_squares > 0 else 0.0


def _surely_better(held_out: Sequence["_Moments"], gains: Tensor, ones: Tensor) -> bool:
    """Whether numbers lessen the error by more than the standard error of their doing so over the
    images.
    """
    less = torch.tensor(
        [image.squares(ones) - image.squares(gains) for image in held_out], dtype=torch.float64
    )
    spread = float(less.std()) / math.sqrt(len(less)) if len(less) > 1 else 0.0
    return float(less.mean()) > spread


def _linear(projection: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """The matrix (in, out) and the bias (out) of a projection, float64; of one that must be called,
    from what it answers.
    """
    weights = weights_of(projection)
    if weights is not None:
        bias = weights.W.new_zeros(len(weights.W)) if weights.b is None else weights.b
        return weights.W.double().T, bias.double()
    width = features_of(projection)[0]
    bias = projection(like.new_zeros(1, width)).double()[0]
    return projection(torch.eye(width, dtype=like.dtype, device=like.device)).double() - bias, bias


def _halves(o: Tensor, r: Tensor) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Rows to fit on and rows held out: half of the images each, of one image every other token."""
    if len(o) > 1:
        half = (len(o) + 1) // 2
        return (o[:half], r[:half]), (o[half:], r[half:])
    return (o[:, ::2], r[:, ::2]), (
        o[:, 1::2] if o.shape[1] > 1 else o,
        r[:, 1::2] if o.shape[1] > 1 else r,
    )


@dataclass(frozen=True)
class _Moments:
    """What the error of a branch hangs on: |r|^2 - 2 g·b + g·A g, with A_hh' = P_h·P_h' and b_h =
    P_h·r summed over tokens.
    """

    A: Tensor  # (H, H)
    b: Tensor  # (H)
    r_squared: Tensor  # |r|^2

    @staticmethod
    def of(o: Tensor, r: Tensor, weight: Tensor, heads: int) -> "_Moments":
        o, r = o.flatten(0, -2), r.flatten(0, -2)
        pairs = (o.T @ o) * (weight @ weight.T)
        A = pairs.unflatten(0, (heads, -1)).unflatten(-1, (heads, -1)).sum((1, 3))
        b = ((o.T @ r) * weight).sum(1).unflatten(0, (heads, -1)).sum(1)
        return _Moments(A, b, r.square().sum())

    def solution(self) -> Tensor:
        """The numbers with the least error; 1 where there is nothing to solve."""
        ones = torch.ones_like(self.b)
        floor = RIDGE * self.A.diagonal().mean()
        if not (floor > 0 and self.A.isfinite().all() and self.b.isfinite().all()):
            return ones
        eye = torch.eye(len(ones), dtype=ones.dtype, device=ones.device)
        return ones + torch.linalg.solve(self.A + floor * eye, self.b - self.A @ ones)

    def squares(self, gains: Tensor) -> float:
        """The squared error of the branch."""
        return max(float(self.r_squared - 2 * gains @ self.b + gains @ self.A @ gains), 0.0)


@torch.no_grad()
def multiplied(projection: nn.Module, gains: Iterable[float], like: Tensor) -> nn.Module:
    """A projection that multiplies what each head gives it by its number: in its weight where that
    is all there is to it.

    Args:
        projection: of the heads' channels, side by side.
        gains: a number for each head.
        like: of any shape; its device is that of the numbers, and its dtype too, unless the weight
            takes them.
    """
    numbers = torch.tensor([*gains], dtype=torch.float64, device=like.device)
    channels = numbers.repeat_interleave(features_of(projection)[0] // len(numbers))
    weights = weights_of(projection)
    if weights is None:
        return Gained(projection, channels.to(like.dtype))
    weights.W.mul_(channels.to(weights.W))
    return projection
