"""Deliberate faults: a false claim, or a broken form, fails in the test that is meant for it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from softless.attention import OPERATORS, Backend, Operator, linear
from softless.attention.norms import normalise
from softless.attention.record import Bounds
from softless.attention.streaming import Streaming, Sweep
from softless.errors import UsageError
from tests.ops import test_contract as contract
from tests.ops import test_streaming as streaming
from tests.ops.draw import SHAPES

SIMA, SOFTMAX, XCA = (OPERATORS[name] for name in ("sima", "softmax", "xca"))
EAGER = partial(linear.eager, norm="l1")
FAIL = (AssertionError, UsageError, RuntimeError, TypeError, pytest.fail.Exception)


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


def unmasked(q: Tensor, k: Tensor, v: Tensor, mask: Any = None, query_mask: Any = None, **extras: Any) -> Tensor:
    return SIMA.reference(q, k, v, **extras)


CLAIMS: dict[str, tuple[Callable[..., Any], Operator, tuple[Any, ...]]] = {
    "flops doubled": (contract.test_flops_claim, SIMA.changed(flops=lambda d: 2 * linear.flops(d)), ()),
    "one exponential claimed": (contract.test_exponentials_claim, SIMA.changed(exps=lambda _: 1), ("eager",)),
    "exponentials denied": (contract.test_exponentials_claim, SOFTMAX.changed(exps=lambda _: 0), ("eager",)),
    "quadratic growth claimed": (contract.test_growth_claim, SIMA.changed(growth="N^2"), ()),
    "linear growth claimed": (contract.test_growth_claim, SOFTMAX.changed(growth="N"), ()),
    "rows claimed": (contract.test_rows_claim, SIMA.changed(normalises="rows"), ()),
    "rows denied": (contract.test_rows_claim, SOFTMAX.changed(normalises="nothing"), ()),
    "scale-free claimed": (contract.test_scale_free_claim, SOFTMAX.changed(scale_free=True), ()),
    "scale-free denied": (contract.test_scale_free_claim, SIMA.changed(scale_free=False), ()),
    "equivariance denied": (contract.test_equivariance_claim, SIMA.changed(equivariant=False), ()),
    "matrix claimed": (contract.test_implied_matrix_claim, XCA.changed(implied_matrix=True), ()),
    "matrix denied": (contract.test_implied_matrix_claim, SIMA.changed(implied_matrix=False), ()),
    "cross claimed": (contract.test_cross_claim, XCA.changed(cross=True), ()),
    "cross denied": (contract.test_cross_claim, SIMA.changed(cross=False), ()),
    "causal claimed": (contract.test_mask_kinds_claim, SIMA.changed(masks=("token", "causal")), ()),
    "dropout claimed": (contract.test_dropout_claim, SIMA.changed(drops_weights=True), ()),
    "learned tensor forgotten": (contract.test_learned_tensors_are_learned, XCA.changed(learned={}), ()),
    "a thousandth too large": (
        contract.test_backends_equal_the_reference,
        with_eager(lambda *x, **extras: EAGER(*x, **extras) * 1.001),
        (SHAPES["square"], torch.float32),
    ),
    "sums in half precision": (
        contract.test_backends_equal_the_reference,
        with_eager(EAGER, bounds=Bounds(native_half=True)),
        (SHAPES["63"], torch.float16),
    ),
    "norm without gradient": (contract.test_gradients_of_the_backends, with_eager(norm_without_gradient), (torch.float32,)),
    "batch mates coupled": (contract.test_batch_mates_change_nothing, with_eager(coupled), (torch.float32,)),
    "mask ignored": (contract.test_masked_tokens_are_gone, SIMA.changed(reference=unmasked), (torch.float32,)),
    "merge keeps the last chunk": (streaming.test_float32_does_not_feel_the_chunks, with_sweep(merge=lambda _, b: b), (7,)),
    "merge forgets the norms": (
        streaming.test_float32_does_not_feel_the_chunks,
        with_sweep(merge=lambda a, b: {"context": a["context"] + b["context"], "q": b["q"], "k": b["k"]}),
        (2,),
    ),
    "merge not associative": (
        streaming.test_merge_is_associative_and_commutative,
        with_sweep(merge=lambda a, b: {name: (a[name] + b[name]) * 1.01 for name in a}),
        (),
    ),
}  # fmt: skip


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
        contract.test_backends_equal_the_reference(SIMA, SHAPES["63"], torch.float32)


def test_a_record_says_either_how_it_streams_or_why_not() -> None:
    assert replace(SOFTMAX, no_stream="").no_stream == "its record has no streaming form"
    with pytest.raises(UsageError, match="has a streaming form and no_stream="):
        replace(SOFTMAX, streaming=Streaming((Sweep(dict, dict),), dict, "", ""))  # type: ignore[arg-type]
