"""One cell of the crossed table: the answer with an adapter beside the answer with it merged, and a
control without it.
"""

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from softless.attention import Operator, get
from softless.errors import SoftlessError
from tests.crossed.adapters import ADAPTERS, Adapter
from tests.crossed.uses import USES, named

SHOWS = 1e-2  # by so much the control must differ
HALF = 2e-2  # of an answer in float16


@dataclass(frozen=True)
class Cell:
    """What became of one use of one adapter: "right", "refused", "wrong", or "none" where softmax
    has none either.
    """

    outcome: str
    told: str


def cell(row: str, column: str, op: Operator) -> Cell:
    """Fill a cell in."""
    adapter, use = ADAPTERS[row], USES[column](op)
    torch.manual_seed(0)
    model = use.build(op).to(use.dtype)
    paths = named(use.paths, model)
    merged = copy.deepcopy(model)
    try:
        have = _adapted(adapter, copy.deepcopy(model), paths, use.answer)
    except SoftlessError as error:
        return Cell("refused", str(error))
    except Exception as error:  # noqa: BLE001  # whatever else is raised is held against softmax
        return _as_softmax(row, column, op, f"{type(error).__name__}: {error}")
    if not adapter.answers:
        return Cell("wrong", "an answer without numbers")
    adapter.merge(merged, paths)
    want, control = use.answer(merged), use.answer(model)
    shows = distance(control, want)
    if shows < SHOWS:
        return Cell("wrong", f"the control is blind: it differs by {shows:.1e}")
    if use.dtype == torch.float16 and row == "torchao int8" and not have.isfinite().all():
        return Cell(
            "none",
            "torchao's product of eight bits and float16 overflows by itself on numbers as large "
            "as these",
        )
    away, near = (
        distance(have, want),
        max(adapter.nearness, HALF if use.dtype == torch.float16 else 0),
    )
    return Cell(
        "right" if away <= near else "wrong", f"off by {away:.1e}, the control by {shows:.1e}"
    )


def _adapted(adapter: Adapter, model: Any, paths: list[str], answer: Any) -> Tensor:
    with adapter.around():
        adapter.put(model, paths)
        found: Tensor = answer(model)
    return found


def _as_softmax(row: str, column: str, op: Operator, told: str) -> Cell:
    """An error of torch is no fault of ours where the same call with softmax raises it too."""
    if op.name == "softmax":
        return Cell("none", told)
    softmax = cell(row, column, get("softmax"))
    return Cell("none" if softmax.outcome == "none" else "wrong", told)


def distance(found: Tensor, want: Tensor) -> float:
    """Relative to the reference's own size; infinite where there is no number."""
    away = float((found - want).norm() / want.norm())
    return float("inf") if math.isnan(away) else away
