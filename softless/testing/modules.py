"""Meters of the module: what `softless.Attention` makes of the operator, its options, adapters on
its layers, chosen backends.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from softless.attention.record import Operator
from softless.attention.samples import draw, given_options, grid_of
from softless.errors import UsageError
from softless.layers.attention import Attention
from softless.layers.class_attention import ClassAttention
from softless.testing.comparing import SHAPES, error, exact, run
from softless.testing.faults import Fault

TOKENS, DIM, HEADS = 30, 16, 2


class LowRank(nn.Module):
    """A layer with a low-rank addition, as adapters put in place of a projection: (…, in) ->
    (…, out).
    """

    def __init__(self, old: nn.Linear) -> None:
        super().__init__()
        self.old = old
        self.down = nn.Linear(old.in_features, 2, bias=False)
        self.up = nn.Linear(2, old.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.old(x) + self.up(self.down(x))


def _made(op: Operator) -> Attention:
    torch.manual_seed(0)
    module = (
        Attention(
            DIM, HEADS, op=op, tokens=TOKENS if op.wants("tokens", {}) else None, **_options(op)
        )
        .double()
        .eval()
    )
    if op.wants("grid", {}):
        module.set_grid(grid_of(TOKENS))
    return module


def _options(op: Operator) -> dict[str, Any]:
    _, extras = draw(op, (1, HEADS, TOKENS, TOKENS, DIM // HEADS, DIM // HEADS))
    return given_options(op, extras)


def _by_hand(module: Attention, x: Tensor) -> Tensor:
    """Projections around the reference."""
    q, k, v = module.project(x)
    o = exact(
        module.op,
        (q, q if k is None else k, v),
        module.op.filled(module.options) | module.extras(x.shape[1]),
    )
    return module.proj(o.transpose(1, 2).flatten(2))


def module(op: Operator) -> Iterator[Fault]:
    """The module is the projections around the operator, with and without adapters on both."""
    state = torch.get_rng_state()
    try:
        layer = _made(op)
        x = torch.randn(2, TOKENS, DIM, dtype=torch.float64)
        for adapted in (False, True):
            if adapted:
                first = "".join(layer.parts)
                setattr(layer, first, LowRank(getattr(layer, first)).double())
                layer.add_module("proj", LowRank(layer.proj).double())
            with torch.no_grad():
                apart = error(layer(x), _by_hand(layer, x))
            if apart > 1e-8:
                variant = "with low-rank adapters" if adapted else "as built"
                yield Fault(
                    "host.reduces" if layer.reduction is not None else "own",
                    "the projections around the operator",
                    f"off by {apart:.1e} {variant}",
                    "mend the roads",
                )
        if op.class_row is not None and not op.learned:
            torch.manual_seed(0)
            ClassAttention(DIM, HEADS, op=op)(x.float())
    finally:
        torch.set_rng_state(state)


def options(op: Operator) -> Iterator[Fault]:
    """An option that the operator does not have, and a value outside its rule, are refused in a
    sentence; each is looked at.
    """
    call, extras = draw(op, SHAPES["short"])
    for name, value in {"no_such_option": 1, **dict.fromkeys(op.options, object())}.items():
        sentence = _refusal(op, call, {**extras, name: value})
        if not sentence:
            yield Fault(f"options['{name}']", "a rule", f"{value!r} is taken", "mend accepts")
        elif name not in sentence:
            yield Fault(
                "options", f"a sentence that names {name}", sentence[:100], "mend the option"
            )


def _refusal(op: Operator, call: Any, extras: dict[str, Any]) -> str:
    """The sentence with which a call is refused; empty where it is taken."""
    try:
        run(op, call, **extras)
    except UsageError as refused:
        return str(refused)
    return ""
