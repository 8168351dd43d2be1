"""Hypothesis: random shapes, dtypes and extremes against properties that hold exactly
(reliability.md D19).
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from softless import PrecisionError
from softless.attention import OPERATORS, Operator
from softless.attention.bottleneck.claims import HALF_CHANNELS
from tests.ops.draw import DTYPES, Call, assert_near, attend, draw, every, exact

# four times each backend's own bar
BOUND = {
    torch.float64: 1e-11,
    torch.float32: 4e-6,
    torch.bfloat16: 1.6e-2,
    torch.float16: 2e-3,
}


def bound(op: Operator, dtype: torch.dtype) -> float:
    return max(BOUND[dtype], 4 * op.backends[0].tolerance[dtype])


sizes = st.tuples(
    st.integers(1, 2), st.integers(1, 3), st.integers(1, 80), st.sampled_from([1, 3, 8, 17])
)
dtypes = st.sampled_from(DTYPES)
gains = st.sampled_from([1e-4, 1e-2, 1.0, 10.0])
seeds = st.integers(0, 10_000)
NEAR_THE_END = 1e-2  # of what a dtype holds: so near, rounding decides


def drawn(
    op: Operator, size: tuple[int, int, int, int], dtype: torch.dtype, gain: float, seed: int
) -> tuple[Call, dict[str, dict[str, Tensor]]]:
    B, H, N, D = size
    return draw(op, (B, H, N, N, D, D), dtype, seed, gain)


@every
@given(size=sizes, dtype=dtypes, gain=gains, seed=seeds)
def test_finite_and_in_its_dtype(
    op: Operator, size: tuple[int, int, int, int], dtype: torch.dtype, gain: float, seed: int
) -> None:
    (q, k, v), extras = drawn(op, size, dtype, gain, seed)
    q[..., seed % size[3]] = 0  # a dead channel: the published form is NaN here in float16
    if dtype == torch.float16 and op.name in {"soft", "softnorm"} and size[3] > HALF_CHANNELS:
        with pytest.raises(PrecisionError):
            attend(q, k, v, op=op, **extras)
        return
    most = float(exact(op, (q, k, v), extras).abs().max() / torch.finfo(dtype).max)
    try:
        o = attend(q, k, v, op=op, **extras)
    except PrecisionError:
        assert dtype == torch.float16
        assert most > 1 - NEAR_THE_END
        return
    assert o.dtype == dtype
    assert bool(o.isfinite().all()) or (most > 1 and dtype != torch.float16)
    assert dtype != torch.float16 or most < 1 + NEAR_THE_END


@every
@given(size=sizes, dtype=dtypes, gain=gains, seed=seeds)
def test_linear_in_v(
    op: Operator, size: tuple[int, int, int, int], dtype: torch.dtype, gain: float, seed: int
) -> None:
    (q, k, v), extras = drawn(op, size, dtype, gain, seed)
    if op.linear_in_v:
        wide = torch.promote_types(dtype, torch.float32)
        four = attend(q, k, v * 4, op=op, out_dtype=wide, **extras)
        apart = (four - 4 * attend(q, k, v, op=op, out_dtype=wide, **extras)).abs().max()
        # not one bit, but for numbers below the smallest normal one
        assert apart <= torch.finfo(wide).tiny


@every
@given(
    size=sizes,
    dtype=st.sampled_from([torch.float64, torch.float32]),
    seed=seeds,
    power=st.integers(-6, 6),
)
def test_powers_of_two_on_q_and_k(
    op: Operator, size: tuple[int, int, int, int], dtype: torch.dtype, seed: int, power: int
) -> None:
    """Scaling q, or k, by a power of two changes not one bit, exactly where the record says that a
    factor changes nothing.
    """
    (q, k, v), extras = drawn(op, size, dtype, 1.0, seed)
    if op.scale_free:
        expected = attend(q, k, v, op=op, **extras)
        assert torch.equal(attend(q * 2.0**power, k, v, op=op, **extras), expected)
        assert torch.equal(attend(q, k * 2.0**power, v, op=op, **extras), expected)


@every
@given(size=sizes, dtype=dtypes, gain=gains, seed=seeds)
def test_permuting_tokens(
    op: Operator, size: tuple[int, int, int, int], dtype: torch.dtype, gain: float, seed: int
) -> None:
    (q, k, v), extras = drawn(op, size, dtype, gain, seed)
    order = torch.randperm(size[2], generator=torch.Generator().manual_seed(seed))
    wide = torch.promote_types(dtype, torch.float32)
    straight = attend(q, k, v, op=op, out_dtype=wide, **extras)
    moved = attend(*(x[..., order, :] for x in (q, k, v)), op=op, out_dtype=wide, **extras)
    # the terms before they cancel; standardised ones are of order one, whatever came
    scale = attend(q.abs(), k.abs(), v.abs(), op=op, out_dtype=wide, **extras).abs().max()
    scale = scale if op.linear_in_v else scale.clamp_min(1)
    apart = (moved - straight[..., order, :]).abs().max()
    # that the others do feel it is in the contract
    assert apart <= bound(op, wide) * scale or not op.equivariant


@every
@given(size=sizes, dtype=dtypes, gain=gains, seed=seeds, kept=st.floats(0, 1))
def test_masking_is_removal(
    op: Operator,
    size: tuple[int, int, int, int],
    dtype: torch.dtype,
    gain: float,
    seed: int,
    kept: float,
) -> None:
    (q, k, v), extras = drawn(op, size, dtype, gain, seed)
    keep = (torch.rand(size[2], generator=torch.Generator().manual_seed(seed)) < kept).index_fill(
        0, torch.tensor([0]), value=True
    )
    mask = keep.expand(size[0], -1)
    wide = torch.promote_types(dtype, torch.float32)
    o = attend(q, k, v, op=op, mask=mask, query_mask=mask, out_dtype=wide, **extras)
    assert not bool(o[..., ~keep, :].any())
    if op.wants("grid", {}):  # the others keep their places, and nothing of the masked ones is left
        other = [x.masked_fill(~keep[:, None], float("nan")) for x in (q, k, v)]
        assert torch.equal(
            attend(*other, op=op, mask=mask, query_mask=mask, out_dtype=wide, **extras), o
        )
        return
    few = [x[..., keep, :] for x in (q, k, v)]
    scale = attend(*(x.abs() for x in few), op=op, out_dtype=wide, **extras).abs().max()
    scale = scale if op.linear_in_v else scale.clamp_min(1)
    assert (o[..., keep, :] - attend(*few, op=op, out_dtype=wide, **extras)).abs().max() <= bound(
        op, wide
    ) * scale


@given(size=sizes, gain=gains, seed=seeds)
def test_entries_of_sima_sum_to_at_most_d(
    size: tuple[int, int, int, int], gain: float, seed: int
) -> None:
    """Sum of |A| over all pairs is at most d (sima.md section 3)."""
    from softless.attention import implied_matrix

    (q, k, _), _ = drawn(OPERATORS["sima"], size, torch.float64, gain, seed)
    assert implied_matrix(q, k, "sima").abs().sum((-2, -1)).max() <= size[3] * (1 + 1e-12)


def test_near_is_near() -> None:
    """The meter itself: an all-zero answer, a NaN and a 1 % error are seen."""
    import pytest

    x = torch.randn(100, dtype=torch.float64) * 1e-9
    assert_near(x, x, 0.0)
    for wrong in (torch.zeros_like(x), x * 1.01, x.clone().fill_(float("nan"))):
        with pytest.raises(AssertionError):
            assert_near(wrong, x, 1e-3)
