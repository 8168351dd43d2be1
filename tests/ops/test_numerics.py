"""Errors against float64 along the ladder of lengths, and the edges: limits of float16, dead
channels, autocast, the order of products.
"""

import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from softless import PrecisionError
from softless.attention import OPERATORS, get
from softless.attention.chunks import split
from softless.attention.learned import given_or_starting
from softless.attention.streaming import Tokens
from tests.ops.bars import truth
from tests.ops.draw import (
    FAMILIES,
    assert_near,
    attend,
    attend_chunks,
    draw,
    error,
    every,
    exact,
    family,
)

LADDER = (1, 2, 49, 196, 4096, 65536)
equivariant = pytest.mark.parametrize(
    "op", [op for op in OPERATORS.values() if op.equivariant], ids=lambda op: op.name
)
each_family = pytest.mark.parametrize("name", FAMILIES)


@each_family
@pytest.mark.parametrize("tokens", LADDER)
def test_sima_along_the_ladder(name: str, tokens: int) -> None:
    """D1: fp32 <= 1e-6, bf16 <= 4e-3, fp16 <= 5e-4 with float32 output or token_scale; nothing is
    zero that is not.
    """
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 4e-3)):
        call = family(name, tokens, dtype=dtype)
        o = attend(*call, op="sima")
        assert o.dtype == dtype
        assert_near(o, truth(*call), bound, str(dtype))
    call = family(name, tokens, dtype=torch.float16)
    assert_near(
        attend(*call, op="sima", out_dtype=torch.float32),
        truth(*call),
        1e-6,
        "float16 in, float32 out",
    )
    scaled = truth(*call) * tokens
    if scaled.abs().max() < 65504:
        assert_near(attend(*call, op="sima", token_scale="tokens"), scaled, 5e-4, "float16, scaled")
    if tokens <= 2048 and truth(*call).abs().max() < 65504:
        assert_near(attend(*call, op="sima"), truth(*call), 5e-4, "float16")


@pytest.mark.slow
def test_sima_at_a_million_tokens() -> None:
    call = family("biased", 1_000_000, width=16)
    expected = truth(*call)
    assert_near(attend(*call, op="sima"), expected, 1e-6)
    # the published form: the test can see
    assert (
        error(
            torch.nn.functional.normalize(call[0], p=1.0, dim=-2)
            @ (torch.nn.functional.normalize(call[1], p=1.0, dim=-2).mT @ call[2]),
            expected,
        )
        > 1e-5
    )
    half = tuple(x.half() for x in call)
    assert_near(attend(*half, op="sima", token_scale="tokens"), truth(*half) * 1_000_000, 5e-4)


def test_errors_do_not_grow_with_the_length() -> None:
    for name in ("gauss", "biased", "wide"):
        errors = [
            max(
                error(attend(*(call := family(name, n, seed=seed)), op="sima"), truth(*call))
                for seed in range(3)
            )
            for n in (196, 65536)
        ]
        assert errors[1] <= 2 * errors[0], name


@pytest.mark.parametrize("options", [{}, {"token_scale": 4096.0}], ids=["paper", "trained at 4096"])
def test_float16_refuses_what_it_cannot_hold(options: dict[str, float]) -> None:
    """D3: a rule on shapes that names the three ways out; float32 output and bfloat16 are
    served.
    """
    limit = 2048 if not options else 512  # N^1.5 <= 2048^1.5 N / 4096
    q, k, v = family("gauss", limit, dtype=torch.float16)
    assert attend(q, k, v, op="sima", **options).dtype == torch.float16
    q, k, v = family("gauss", 4096, dtype=torch.float16)
    with pytest.raises(
        PrecisionError,
        match=r"out_dtype=torch.float32, use bfloat16, or set token_scale=\"tokens\"",
    ):
        attend(q, k, v, op="sima", token_scale=40000.0 if options else None)
    with pytest.raises(PrecisionError):  # a rule on the output, wherever it comes from
        attend(q.float(), k.float(), v.float(), op="sima", out_dtype=torch.float16)
    assert attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), op="sima").abs().min() > 0
    chunks = split(Tokens(q, k, v), [2000, 2096])
    # each chunk alone is short enough
    with pytest.raises(PrecisionError, match="float16 chunks cannot hold"):
        attend_chunks(chunks, "sima", **options)
    assert (
        len(
            attend_chunks(
                [replace(c, q=c.q.float(), k=c.k.float(), v=c.v.float()) for c in chunks], "sima"
            )
        )
        == 2
    )


@pytest.mark.parametrize("op", ["soft", "softnorm"])
def test_float16_refuses_kernels_that_sink_with_the_channels(op: str) -> None:
    """With LayerNorm's published weight of one the exact answer at 64 channels a head lies below
    what float16 holds; bottleneck tokens of the tokens' own kind are no trouble. The rule is one on
    shapes: it holds for weights from elsewhere.
    """
    record = get(op)
    for width, sampling, refused in ((64, "conv", True), (16, "conv", False), (64, "pool", False)):
        q, _, v = family("gauss", 49, width=width, dtype=torch.float16)
        chosen = {"ratio": 1, "sampling": sampling}
        learned = given_or_starting(record, None, chosen, q.double(), v.double())
        learned = {
            name: torch.ones_like(x) if name == "norm_weight" else x for name, x in learned.items()
        }
        options: dict[str, Any] = {"grid": (0, 7, 7), **chosen}
        expected = attend(
            q.double(), q.double(), v.double(), op=op, learned=learned or None, **options
        )
        options["learned"] = {name: x.half() for name, x in learned.items()} or None
        wide = attend(q, q, v, op=op, out_dtype=torch.float32, **options)
        # attend draws the same starting tensors for both, here rounded to float16
        assert_near(wide, expected, 1e-3)
        if refused:
            with pytest.raises(PrecisionError, match=r"heads of 64 channels.*sampling=\"pool\""):
                attend(q, q, v, op=op, **options)
            assert expected.abs().max() < torch.finfo(torch.float16).tiny
        else:
            assert_near(
                attend(q, q, v, op=op, **options), expected, record.own[0].tolerance[torch.float16]
            )


@pytest.mark.parametrize("share", [0.5, 0.99, 1.01, 10.0])
def test_sums_beyond_the_range_of_float16(share: float) -> None:
    """D4: N x mean|x| around and far above 65,504, where a norm in half precision is infinite and
    its output silently 0.
    """
    tokens = 8192
    q, k, v = (x.abs() * (share * 65504 / tokens / x.abs().mean()) for x in family("gauss", tokens))
    half = (q.half(), k.half(), v.half())
    assert_near(attend(*half, op="sima", out_dtype=torch.float32), truth(*half), 1e-6)
    assert_near(attend(*half, op="sima", token_scale="tokens"), truth(*half) * tokens, 5e-4)


@pytest.mark.parametrize("op", ["sima", "sima_l2", "xca"])
def test_gradient_of_a_dying_channel(op: str) -> None:
    """D5: the formula's above 1e-6 of the median channel norm, zero below it, in every backend and
    in the reference.
    """
    record = OPERATORS[op]
    for size, alive in (
        (1e-3, True),
        (1e-5, True),
        (1e-7, False),
        (1e-12, False),
        (1e-20, False),
        (0.0, False),
    ):
        call, extras = draw(record, (1, 2, 40, 40, 8, 8), seed=3)
        call[0][..., 2] *= size
        call[1][..., 4] *= size
        plain = [x.clone().requires_grad_() for x in call]
        norm = (
            (lambda x: x.abs().sum(-2, keepdim=True))
            if op == "sima"
            else (lambda x: x.norm(dim=-2, keepdim=True))
        )
        hats = [x / norm(x).clamp_min(1e-12) for x in plain[:2]]
        if op == "xca":
            o = (
                plain[2]
                @ (extras["learned"]["temperature"] * (hats[0].mT @ hats[1])).softmax(-1).mT
            )
        else:
            o = hats[0] @ (hats[1].mT @ plain[2])
        formula = torch.autograd.grad(o.square().sum(), plain)
        for backend in ("reference", "eager"):
            leaves = [x.clone().requires_grad_() for x in call]
            ours = torch.autograd.grad(
                attend(*leaves, op=op, backend=backend, **extras).square().sum(), leaves
            )
            for side, channel in ((0, 2), (1, 4)):
                others = [c for c in range(8) if c != channel]
                assert_near(
                    ours[side][..., others],
                    formula[side][..., others],
                    1e-9,
                    f"{backend} {size} other channels",
                )
                if alive:
                    assert_near(
                        ours[side][..., channel],
                        formula[side][..., channel],
                        1e-9,
                        f"{backend} {size}",
                    )
                else:
                    assert not bool(ours[side][..., channel].any()), f"{backend} {size}"
            assert_near(ours[2], formula[2], 1e-9, f"{backend} {size} v")


@equivariant
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_permutation_moves_less_than_the_error(op: object, dtype: torch.dtype) -> None:
    """D7: fp32 <= 1e-5; half precision at most twice its own error."""
    record = OPERATORS[op.name]  # type: ignore[attr-defined]
    call, extras = draw(record, (1, 2, 2000, 2000, 16, 16), dtype)
    order = torch.randperm(2000)
    straight = attend(*call, op=record, **extras)
    moved = attend(*(x[..., order, :] for x in call), op=record, **extras)
    own = error(straight, exact(record, call, extras))
    assert error(moved, straight[..., order, :]) <= (1e-5 if dtype == torch.float32 else 2 * own)


@pytest.mark.parametrize("tokens", [31, 32, 33])
def test_orders_agree_at_the_switch(tokens: int) -> None:
    """D12: at N = d auto changes its order; neither order leaves the bars, in any dtype."""
    for dtype, bound in ((torch.float32, 1e-6), (torch.bfloat16, 4e-3), (torch.float16, 5e-4)):
        call = family("biased", tokens, width=32, dtype=dtype)
        outputs = [
            attend(*call, op="sima", order=order) for order in ("auto", "tokens", "channels")
        ]
        for o in outputs:
            assert_near(o, truth(*call), bound, str(dtype))
        assert torch.equal(outputs[0], outputs[1 if tokens < 32 else 2]), "a tie is linear"


def test_order_is_the_cheaper_one() -> None:
    from softless.measure.flops import FlopCounter

    for n, m, d, e in itertools.product((3, 40), (5, 60), (4, 32), (4, 16)):
        q, k, v = torch.randn(1, 1, n, d), torch.randn(1, 1, m, d), torch.randn(1, 1, m, e)
        work = {}
        for order in ("auto", "tokens", "channels"):
            with FlopCounter() as counter:
                attend(q, k, v, op="sima", order=order)
            work[order] = counter.total
        assert work["auto"] == min(work["tokens"], work["channels"])


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_reaches_no_sum(op: object, dtype: torch.dtype) -> None:
    """D13: autocast on a CPU puts products and norms into half precision; ours stay as they are,
    bit for bit.
    """
    record = OPERATORS[op.name]  # type: ignore[attr-defined]
    call, extras = draw(record, (1, 2, 300, 300, 16, 16), torch.float32)
    with torch.autocast("cpu", dtype=dtype):
        inside = attend(*call, op=record, **extras)
    assert torch.equal(inside, attend(*call, op=record, **extras))


def test_duplicated_tokens() -> None:
    """SimA halves when the tokens are doubled (sima.md section 3); with token_scale='tokens' it
    stays; a number is exact where trained.
    """
    q, k, v = family("biased", 300, dtype=torch.float64)
    twice: list[Tensor] = [torch.cat([x, x], dim=-2) for x in (q, k, v)]
    assert_near(attend(*twice, op="sima")[..., :300, :], attend(q, k, v, op="sima") / 2, 1e-12)
    assert_near(
        attend(*twice, op="sima", token_scale="tokens")[..., :300, :],
        attend(q, k, v, op="sima", token_scale="tokens"),
        1e-12,
    )
    assert_near(attend(q, k, v, op="sima", token_scale=300), attend(q, k, v, op="sima"), 1e-12)


def test_one_token_is_signs() -> None:
    q, k, v = family("gauss", 1, dtype=torch.float64)
    expected = (q.sign() * k.sign()).sum(-1, keepdim=True) * v
    assert_near(attend(q, k, v, op="sima"), expected, 1e-12)


def test_token_scale_counts_what_is_there() -> None:
    """Under a mask N is the number of queries that count: masking is removal, in the scale too,
    whole and in chunks.
    """
    call = family("gauss", 50, heads=2, width=8, dtype=torch.float64)
    keep = torch.arange(50).expand(1, -1) < 30
    for scale in ("tokens", 25):
        few = attend(*(x[..., :30, :] for x in call), op="sima", token_scale=scale)
        for order in ("tokens", "channels"):
            o = attend(*call, op="sima", mask=keep, query_mask=keep, token_scale=scale, order=order)
            assert_near(o[..., :30, :], few, 1e-12)
        chunks = attend_chunks(
            split(Tokens(*call, keep, keep), [20, 30]), "sima", token_scale=scale
        )
        assert_near(torch.cat(chunks, dim=2)[..., :30, :], few, 1e-12)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0, 9.0])
def test_background(share: float) -> None:
    """D10: constant background tokens change nothing behind a mask, and SimA's output by the order
    of its own size without one.
    """
    tokens, extra = 400, int(400 * share)
    call = family("gauss", tokens)
    background = [torch.cat([x, torch.full((1, 1, extra, 64), 2.0)], dim=-2) for x in call]
    keep = torch.arange(tokens + extra).expand(1, -1) < tokens
    o = attend(*background, op="sima", mask=keep, query_mask=keep)[..., :tokens, :]
    assert_near(o, truth(*call), 1e-6)
    unmasked = error(attend(*background, op="sima")[..., :tokens, :], truth(*call))
    assert unmasked > 0.3 if extra else unmasked <= 1e-6
