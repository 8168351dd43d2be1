"""Meters of graphs: one compiled graph, and one exported graph for every number of tokens that the
record says.
"""

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from softless.attention.record import Operator
from softless.attention.samples import draw, given_options
from softless.testing.comparing import SHAPES, error, exact, run, sides
from softless.testing.faults import Fault


class OperatorModule(nn.Module):
    """The operator as a module: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E) -> (B,H,N,E)."""

    def __init__(self, op: Operator, extras: dict[str, Any]) -> None:
        super().__init__()
        self.op, self.extras = op, extras

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return run(self.op, (q, k, v), **self.extras)


def compiles(op: Operator) -> Iterator[Fault]:
    """One graph, with its gradients; dynamic in the number of tokens where no grid is a constant of
    it.
    """
    torch._dynamo.reset()
    for shape in (SHAPES["square"], SHAPES["100"]):
        call, extras = draw(op, shape, torch.float32)
        module = OperatorModule(op, extras)
        dynamic = op.resolution != "grid"
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=dynamic)
        leaves = [x.requires_grad_() for x in call]
        o = compiled(*leaves)
        apart = error(o, module(*leaves))
        if apart > op.backends[0].tolerance[torch.float32]:
            yield Fault(
                "own",
                "the same value compiled",
                f"off by {apart:.1e}",
                "let no value of a tensor decide in Python",
            )
        o.sum().backward()
        if any(leaf.grad is None for leaf in sides(op, leaves)):
            yield Fault("own", "gradients of the compiled graph", "none", "let gradients through")


def _exported(op: Operator, fewest: int) -> float:
    """How far the exported graph is off on the numbers of tokens that it is to serve."""
    length = 40
    call, extras = draw(op, (1, 2, length, length, 8, 8), torch.float32)
    longest = {"any": 4096, "fixed": length, "grid": None}[op.resolution]
    shapes = [{2: torch.export.Dim("tokens", min=fewest, max=longest)}] * 3 if longest else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        program = torch.export.export(OperatorModule(op, extras), call, dynamic_shapes=shapes)
    apart = 0.0
    for tokens in {"any": (fewest, 40, 333), "fixed": (fewest, 40), "grid": (40,)}[op.resolution]:
        inputs, _ = draw(op, (1, 2, tokens, tokens, 8, 8), torch.float32, seed=tokens)
        apart = max(apart, error(program.module()(*inputs), exact(op, inputs, extras)))
    return apart


def exports(op: Operator) -> Iterator[Fault]:
    """One graph without a branch on N serves every number of tokens from `exports_from` on, and
    fewer do not.
    """
    _, extras = draw(op, SHAPES["square"])
    fewest = op.exports_from(op.filled(given_options(op, extras)))
    if not isinstance(fewest, int) or fewest < 2:
        yield Fault(
            "claims.exports_from",
            repr(fewest),
            "a graph that is dynamic serves two tokens and more",
            "return 2 or more",
        )
        return
    apart = _exported(op, fewest)
    bound = op.backends[0].tolerance[torch.float32]
    if apart > bound:
        yield Fault(
            "claims.exports_from",
            f"a graph for {fewest} tokens and more",
            f"off by {apart:.1e}",
            "let no number of tokens decide, or return more",
        )
    if fewest > 2 and op.resolution != "grid" and _serves(op, max(2, fewest // 2), bound):
        yield Fault(
            "claims.exports_from",
            f"no graph for fewer than {fewest} tokens",
            f"{max(2, fewest // 2)} are served",
            "return less",
        )


def _serves(op: Operator, fewest: int, bound: float) -> bool:
    try:
        return _exported(op, fewest) <= bound
    # torch.export has no class of its own for what it cannot hold
    except Exception:  # noqa: BLE001
        return False
