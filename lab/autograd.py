"""What torch's ways of differentiating and mapping give for every operator and backend: right,
refused in a sentence, or wrong.

The truth is the operator's reference in float64: central differences for what goes forward and for
second derivatives, reverse mode for the rest. A result that a transform drops in silence is zero,
and zero is wrong: every truth here is not.
"""

# B images, N tokens, D features of a head

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from lab.inputs import Call, call
from softless.attention import OPERATORS, Operator, get, use_backend
from softless.compare.record import record_path, write_csv
from softless.data.progress import track
from softless.errors import SoftlessError, unknown
from softless.layers import Attention
from softless.words import table

TOKENS, WIDTH, HEADS = 24, 4, 2
SMALL = {"landmarks": 4, "projected": 4, "ratio": 2}
STEP = 1e-5  # of central differences in float64
BAR = 1e-4  # relative, in float32
OUTCOMES = ("right", "refused", "wrong")


@dataclass(frozen=True)
class Cell:
    """One transform of one operator by one backend."""

    transform: str
    operator: str
    backend: str
    outcome: str  # right, refused or wrong
    error: float | None  # relative, where there is an answer
    why: str  # it is refused, or what was raised that is no sentence


@dataclass(frozen=True)
class Autograd:
    """All of them."""

    cells: tuple[Cell, ...]
    recorded: Path | None = None

    @property
    def counts(self) -> Mapping[str, Mapping[str, int]]:
        """Right, refused and wrong by transform."""
        by_transform: dict[str, Counter[str]] = {}
        for cell in self.cells:
            by_transform.setdefault(cell.transform, Counter())[cell.outcome] += 1
        return by_transform

    @property
    def wrong(self) -> list[Cell]:
        return [cell for cell in self.cells if cell.outcome == "wrong"]

    @property
    def exit_code(self) -> int:
        return 1 if self.wrong else 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "cells": [asdict(cell) for cell in self.cells],
            "counts": self.counts,
            "exit_code": self.exit_code,
        }

    def __str__(self) -> str:
        rows = [
            [name, *(counts.get(outcome, 0) for outcome in OUTCOMES)]
            for name, counts in self.counts.items()
        ]
        sentences = [
            f"wrong: {cell.transform} of {cell.operator}, {cell.backend}: {cell.error or cell.why}"
            for cell in self.wrong
        ]
        sentences += [f"recorded: {self.recorded}"] if self.recorded else []
        return "\n".join([table(["transform", *OUTCOMES], rows), *sentences])


def autograd(
    names: Sequence[str] = (), *, ops: Sequence[str] = (), record: bool = False
) -> Autograd:
    """Transform every operator by every backend, and say which answers are right, refused and
    wrong.

    Args:
        names: transforms; all by default.
        ops: operators; all by default.
        record: also write benchmarks/autograd.csv of the repository: the counts.

    Returns:
        The table; exit_code 1 where an answer is wrong.

    Raises:
        UsageError: an unknown transform or operator, or `record` outside of the repository.
    """
    target = record_path("autograd") if record else None
    for name in names:
        if name not in TRANSFORMS:
            raise unknown("transform", name, TRANSFORMS)
    records = [get(name) for name in ops or OPERATORS]
    planned = [(name, operator) for operator in records for name in names or TRANSFORMS]
    cells = [
        cell
        for name, operator in track(planned, len(planned), "differentiating")
        for cell in measured(name, operator)
    ]
    summary = Autograd(tuple(cells), target)
    if target is not None:
        rows = [
            {"transform": name, **{outcome: counts.get(outcome, 0) for outcome in OUTCOMES}}
            for name, counts in summary.counts.items()
        ]
        write_csv(target, rows)
    return summary


def measured(transform: str, record: Operator) -> list[Cell]:
    """A transform of an operator, by every backend and by the one that is taken where none is
    named.
    """
    cells = []
    for backend in ("auto", *(candidate.name for candidate in record.backends)):
        outcome, error, why = judged(TRANSFORMS[transform], record, backend)
        cells.append(Cell(transform, record.name, backend, outcome, error, why))
    return cells


def judged(transform: "Transform", record: Operator, backend: str) -> tuple[str, float | None, str]:
    """Right, refused or wrong, the relative error, and why."""
    try:
        got, expected = transform(record, backend)
    except (SoftlessError, NotImplementedError) as refusal:
        return "refused", None, str(refusal).splitlines()[0]
    except RuntimeError as refusal:
        line = str(refusal).splitlines()[0]
        return (
            ("refused" if "not implemented" in line else "wrong"),
            None,
            f"{type(refusal).__name__}: {line}",
        )
    got, expected = _flat(got), _flat(expected)
    size = expected.norm()
    assert size > 0, "a truth of zero would tell nothing"
    error = float((got - expected).norm() / size)
    return ("right" if error <= BAR else "wrong"), error, ""


# What is differentiated

Leaves = tuple[Tensor, ...]
# what came, and the truth
Transform = Callable[[Operator, str], tuple[Sequence[Tensor], Sequence[Tensor]]]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().double().flatten() for tensor in tensors])


def _call(record: Operator, seed: int = 0) -> Call:
    sample = call(record, "gauss", TOKENS, WIDTH, seed, torch.float32)
    small_options = {
        name: value
        for name, value in SMALL.items()
        if name in record.options and (name != "ratio" or "grid" in sample.extras)
    }
    if not small_options:
        return sample
    again = Call(record, sample.q, sample.k, sample.v, {**sample.extras, **small_options})
    return again if "learned" not in sample.extras else _with_learned(again)


def _with_learned(sample: Call) -> Call:
    """The call with tensors of the operator's own that fit its options."""
    from softless.attention.learned import starting
    from softless.attention.options import Sizes

    options = {
        name: value for name, value in sample.extras.items() if name in sample.record.options
    }
    sizes = Sizes(1, WIDTH, sample.record.filled(options), TOKENS, WIDTH)
    own = starting(sample.record, sizes, torch.Generator().manual_seed(0))
    return Call(
        sample.record,
        sample.q,
        sample.k,
        sample.v,
        {**sample.extras, "learned": {name: x.float() for name, x in own.items()}},
    )


def _function(sample: Call, backend: str) -> Callable[..., Tensor]:
    names = list(sample.leaves)
    return lambda *leaves: sample.with_leaves(**dict(zip(names, leaves, strict=True))).run(
        backend=backend
    )


def _like(leaves: Leaves, seed: int) -> Leaves:
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in leaves
    )


@dataclass(frozen=True)
class Problem:
    """A function in float32 by a backend, the same in float64 by the reference, where they are
    taken, and a direction.
    """

    f: Callable[..., Tensor]
    exact: Callable[..., Tensor]
    at: Leaves
    along: Leaves

    @classmethod
    def of(cls, record: Operator, backend: str, seed: int = 0) -> "Problem":
        sample = _call(record, seed)
        at = tuple(sample.leaves.values())
        return cls(
            _function(sample, backend), _function(sample.double(), "reference"), at, _like(at, 5)
        )

    def doubled(self) -> Leaves:
        return tuple(x.double() for x in self.at)

    def moved(self, by: float) -> Leaves:
        return tuple(x.double() + by * t.double() for x, t in zip(self.at, self.along, strict=True))


def _loss(f: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A scalar whose second derivative sees more than f's."""
    return lambda *leaves: f(*leaves).square().sum()


def _gradient(f: Callable[..., Tensor], at: Leaves, **options: Any) -> Leaves:
    leaves = tuple(x.detach().requires_grad_() for x in at)
    return torch.autograd.grad(_loss(f)(*leaves), leaves, **options)


def _difference(f: Callable[..., Sequence[Tensor]], problem: Problem) -> list[Tensor]:
    ahead, behind = f(*problem.moved(STEP)), f(*problem.moved(-STEP))
    return [(a - b) / (2 * STEP) for a, b in zip(ahead, behind, strict=True)]


def _all(problem: Problem) -> tuple[int, ...]:
    return tuple(range(len(problem.at)))


def _jvp(record: Operator, backend: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    problem = Problem.of(record, backend)
    return [torch.func.jvp(problem.f, problem.at, problem.along)[1]], _difference(
        lambda *x: [problem.exact(*x)], problem
    )


def _forward(record: Operator, backend: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    problem = Problem.of(record, backend)
    with forward_ad.dual_level():
        o = problem.f(
            *(forward_ad.make_dual(x, t) for x, t in zip(problem.at, problem.along, strict=True))
        )
        tangent = forward_ad.unpack_dual(o).tangent
    return [torch.zeros_like(o) if tangent is None else tangent], _difference(
        lambda *x: [problem.exact(*x)], problem
    )


def _vjp(record: Operator, backend: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    problem = Problem.of(record, backend)
    vjp: Any = torch.func.vjp
    o, back = vjp(problem.f, *problem.at)
    return back(2 * o), _gradient(problem.exact, problem.doubled())


def _jacrev(record: Operator, backend: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    problem = Problem.of(record, backend)
    jacobian = torch.func.jacrev(lambda *x: problem.f(*x)[0, 0, 0], argnums=_all(problem))(
        *problem.at
    )
    exact = torch.autograd.functional.jacobian(
        lambda *x: problem.exact(*x)[0, 0, 0], problem.doubled()
    )
    return jacobian, exact


def _stacked(record: Operator, backend: str) -> tuple[Callable[..., Tensor], Leaves, list[Problem]]:
    """A function, three sets of its arguments, and the problem of each; what the operator itself
    holds is the same.
    """
    sample, several = _call(record), [_call(record, seed) for seed in (1, 2, 3)]
    leaves = [tuple(draw.leaves.values()) for draw in several]
    exact = _function(sample.double(), "reference")
    problems = [Problem(_function(sample, backend), exact, point, point) for point in leaves]
    return problems[0].f, tuple(torch.stack(parts) for parts in zip(*leaves, strict=True)), problems


def _vmap(record: Operator, backend: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    f, stacked, problems = _stacked(record, backend)
    return [torch.func.vmap(f)(*stacked)], [
        problem.exact(*problem.doubled()) for problem in problems
    ]


def _vmap_grad(record: Operator, backend: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    f, stacked, problems = _stacked(record, backend)
    gradients = torch.func.vmap(torch.func.grad(_loss(f), argnums=_all(problems[0])))(*stacked)
    exact = [_gradient(problem.exact, problem.doubled()) for problem in problems]
    return gradients, [torch.stack(parts) for parts in zip(*exact, strict=True)]


def _batched_backward(record: Operator, backend: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Several cotangents at once through a graph that was made without a transform
    (`is_grads_batched`).
    """
    problem = Problem.of(record, backend)
    leaves = tuple(x.clone().requires_grad_() for x in problem.at)
    o = problem.f(*leaves)
    several = torch.stack([o.detach() * factor for factor in (2.0, 3.0)])
    gradients = torch.autograd.grad(o, leaves, several, is_grads_batched=True)
    exact = _gradient(problem.exact, problem.doubled())
    return gradients, [torch.stack([x, 1.5 * x]) for x in exact]


def _curvature(problem: Problem) -> list[Tensor]:
    return _difference(lambda *x: _gradient(problem.exact, x), problem)


def _double_backward(record: Operator, backend: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    problem = Problem.of(record, backend)
    leaves = tuple(x.clone().requires_grad_() for x in problem.at)
    first = torch.autograd.grad(_loss(problem.f)(*leaves), leaves, create_graph=True)
    along = sum((g * t).sum() for g, t in zip(first, problem.along, strict=True))
    return torch.autograd.grad(along, leaves), _curvature(problem)  # type: ignore[arg-type]


def _forward_over_reverse(
    record: Operator, backend: str
) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    problem = Problem.of(record, backend)
    gradient = torch.func.grad(_loss(problem.f), argnums=_all(problem))
    return torch.func.jvp(gradient, problem.at, problem.along)[1], _curvature(problem)


def _gradgradcheck(record: Operator, backend: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """torch's own check in float64: one where it passes, zero where it does not."""
    sample = _call(record).double()
    leaves = tuple(x.clone().requires_grad_() for x in sample.leaves.values())
    passed = torch.autograd.gradgradcheck(
        _function(sample, backend), leaves, raise_exception=False, fast_mode=True
    )
    return [torch.tensor([float(passed)])], [torch.ones(1)]


# Modules


def _module(record: Operator, seed: int) -> Any:
    torch.manual_seed(seed)
    options: Any = {
        name: value
        for name, value in SMALL.items()
        if name in record.options and (name != "ratio" or record.wants("grid", {}))
    }
    module: Any = Attention(
        HEADS * WIDTH, HEADS, op=record, qkv_bias=True, tokens=TOKENS, **options
    )
    module.set_grid((0, 4, 6))
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.3)
    return module


def _tokens() -> Tensor:
    return torch.randn(2, TOKENS, HEADS * WIDTH, generator=torch.Generator().manual_seed(9))


def _weights(module: Any) -> dict[str, Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _functional_call(record: Operator, backend: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Another module's weights in every way that a pass may go: few tokens, both projections
    inside, the output projection merged.
    """
    module, donor, x = _module(record, 0), _module(record, 1), _tokens()
    weights = _weights(donor)
    outputs: list[Tensor] = []
    for merged, inside, grad in ((1e9, 1e9, True), (1e9, 0, True), (0, 1e9, False)):
        module.merged_from, module.projected_from = merged, inside
        with use_backend(backend), torch.set_grad_enabled(grad):
            outputs.append(torch.func.functional_call(module, weights, (x,)))
    exact_module = donor.double()
    with use_backend("reference"):
        exact, own = exact_module(x.double()), _module(record, 0).double()(x.double())
    assert (own - exact).norm() > 1e-2 * exact.norm(), "the other weights must tell"
    return outputs, [exact] * 3


def _checkpointing(record: Operator, backend: str) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
    """Gradients of a module that is computed again in the backward pass, few tokens and both
    projections inside.
    """
    gradients: list[Tensor] = []
    for inside in (1e9, 0):
        module, x = _module(record, 0), _tokens().requires_grad_()
        module.projected_from = inside
        with use_backend(backend):
            checkpoint(module, x, use_reentrant=False).square().sum().backward()
        gradients += _gradients(x, module)
    exact_module, x = _module(record, 0).double(), _tokens().double().requires_grad_()
    with use_backend("reference"):
        exact_module(x).square().sum().backward()
    return gradients, 2 * _gradients(x, exact_module)


def _gradients(x: Tensor, module: Any) -> list[Tensor]:
    return [leaf.grad for leaf in (x, *module.parameters()) if leaf.grad is not None]


TRANSFORMS: Mapping[str, Transform] = {
    "jvp": _jvp,
    "forward mode": _forward,
    "vjp": _vjp,
    "jacrev": _jacrev,
    "vmap": _vmap,
    "vmap of grad": _vmap_grad,
    "batched backward": _batched_backward,
    "double backward": _double_backward,
    "forward over reverse": _forward_over_reverse,
    "gradgradcheck": _gradgradcheck,
    "functional_call": _functional_call,
    "checkpointing": _checkpointing,
}
