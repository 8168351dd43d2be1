"""Deliberate faults: a false claim, or a broken form, fails in the test that is meant for it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from torch import Tensor

from softless.attention import OPERATORS, Backend, Operator, linear
from softless.attention.norms import normalise
from softless.attention.record import Bounds
from softless.attention.streaming import Streaming, Sweep
from softless.errors import UsageError
from softless.testing import CHECKS, ContractBroken, faults_of
from tests.ops import test_streaming as streaming

SIMA, SOFTMAX, XCA = (OPERATORS[name] for name in ("sima", "softmax", "xca"))
EAGER = partial(linear.eager, norm="l1")
FAIL = (AssertionError, UsageError, RuntimeError, TypeError, pytest.fail.Exception)


def of(name: str) -> Callable[[Operator], None]:
    """A check of the contract, as a function that raises."""

    def check(op: Operator) -> None:
        if faults := faults_of(op, (name,)):
            raise ContractBroken(op.name, tuple(faults))

    assert name in CHECKS
    return check


def with_eager(fn: Callable[..., Tensor], **fields: Any) -> Operator:
    return replace(SIMA, own=(Backend(name="eager", fn=fn, **fields),))


def with_sweep(**fields: Any) -> Operator:
    assert SIMA.streaming is not None
    sweep = replace(SIMA.streaming.sweeps[0], **fields)
    return replace(SIMA, streaming=replace(SIMA.streaming, sweeps=(sweep,)))


def norm_without_gradient(q: Tensor, k: Tensor, v: Tensor, **extras: Any) -> Tensor:
    return (q / q.abs().sum(-2, keepdim=True).detach()) @ (normalise(k).mT @ v)


def coupled(q: Tensor, k: Tensor, v: Tensor, **extras: Any) -> Tensor:
    return EAGER(q, k, v, **extras) * (1 + 1e-7 * k.shape[0])


def last_token_forgotten(k: Tensor, v: Tensor) -> Tensor:
    return k[..., :-1, :].mT @ v[..., :-1, :]


def unmasked(
    q: Tensor, k: Tensor, v: Tensor, mask: Any = None, query_mask: Any = None, **extras: Any
) -> Tensor:
    return SIMA.reference(q, k, v, **extras)


CLAIMS: dict[str, tuple[Callable[..., Any], Operator, tuple[Any, ...]]] = {
    "flops doubled": (of("flops"), SIMA.changed(flops=lambda d: 2 * linear.flops(d)), ()),
    "one exponential claimed": (of("exps"), SIMA.changed(exps=lambda _: 1), ()),
    "exponentials denied": (of("exps"), SOFTMAX.changed(exps=lambda _: 0), ()),
    "quadratic growth claimed": (of("growth"), SIMA.changed(growth="N^2"), ()),
    "linear growth claimed": (of("growth"), SOFTMAX.changed(growth="N"), ()),
    "rows claimed": (of("normalises"), SIMA.changed(normalises="rows"), ()),
    "rows denied": (of("normalises"), SOFTMAX.changed(normalises="nothing"), ()),
    "scale-free claimed": (of("scale_free"), SOFTMAX.changed(scale_free=True), ()),
    "scale-free denied": (of("scale_free"), SIMA.changed(scale_free=False), ()),
    "equivariance denied": (of("equivariant"), SIMA.changed(equivariant=False), ()),
    "matrix claimed": (of("implied_matrix"), XCA.changed(implied_matrix=True), ()),
    "matrix denied": (of("implied_matrix"), SIMA.changed(implied_matrix=False), ()),
    "cross claimed": (of("cross"), XCA.changed(cross=True), ()),
    "cross denied": (of("cross"), SIMA.changed(cross=False), ()),
    "causal claimed": (of("masks"), SIMA.changed(masks=("token", "causal")), ()),
    "dropout claimed": (of("drops_weights"), SIMA.changed(drops_weights=True), ()),
    "learned tensor forgotten": (of("record"), XCA.changed(learned={}), ()),
    "a thousandth too large": (
        of("values"),
        with_eager(lambda *x, **extras: EAGER(*x, **extras) * 1.001),
        (),
    ),
    "sums in half precision": (
        of("values"),
        with_eager(EAGER, bounds=Bounds(native_half=True)),
        (),
    ),
    "norm without gradient": (of("gradients"), with_eager(norm_without_gradient), ()),
    "batch mates coupled": (of("neighbours"), with_eager(coupled), ()),
    "mask ignored": (of("masked tokens"), SIMA.changed(reference=unmasked), ()),
    "merge keeps the last chunk": (
        streaming.test_float32_does_not_feel_the_chunks,
        with_sweep(merge=lambda _, b: b),
        (7,),
    ),
    "merge forgets the norms": (
        streaming.test_float32_does_not_feel_the_chunks,
        with_sweep(
            merge=lambda a, b: {"context": a["context"] + b["context"], "q": b["q"], "k": b["k"]}
        ),
        (2,),
    ),
    "merge not associative": (
        streaming.test_merge_is_associative_and_commutative,
        with_sweep(merge=lambda a, b: {name: (a[name] + b[name]) * 1.01 for name in a}),
        (),
    ),
}


@pytest.mark.parametrize("fault", CLAIMS)
def test_the_fault_is_seen(fault: str) -> None:
    check, record, arguments = CLAIMS[fault]
    with pytest.raises(FAIL):
        check(record, *arguments)


@pytest.mark.parametrize("fault", CLAIMS)
def test_the_honest_record_passes(fault: str) -> None:
    """The control: the same check on the record as it stands."""
    check, record, arguments = CLAIMS[fault]
    assert check(OPERATORS[record.name], *arguments) is None, "it raises where it fails"


def test_a_dropped_tail_of_the_blocks_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "product", last_token_forgotten)
    with pytest.raises(AssertionError):
        of("values")(SIMA)


def test_a_record_says_either_how_it_streams_or_why_not() -> None:
    assert replace(SOFTMAX, no_stream="").no_stream == "its record has no streaming form"
    with pytest.raises(UsageError, match="has a streaming form and no_stream="):
        replace(SOFTMAX, streaming=Streaming((Sweep(dict, dict),), dict, "", ""))  # type: ignore[arg-type]
