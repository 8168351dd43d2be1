"""Sequence normalisation: the properties of medical_seqnorm.md section 3, and large means."""

from typing import Any

import pytest
import torch
from torch import Tensor

from softless.attention import OPERATORS, moments
from softless.attention.chunks import split
from softless.attention.learned import starting
from softless.attention.options import Sizes
from softless.attention.streaming import Tokens
from tests.ops.draw import assert_near, attend, attend_chunks, draw, error, exact

SEQNORM = OPERATORS["seqnorm"]


def unit(width: int, heads: int = 2, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {
        name: x.to(dtype)
        for name, x in starting(SEQNORM, Sizes(heads, width, SEQNORM.filled({}))).items()
    }


def test_unit_affine_gives_correlations() -> None:
    """Property 1: the D x E matrix is that of Pearson correlations between key and value channels,
    and o = q^ times it.
    """
    (q, k, v), _ = draw(SEQNORM, (1, 2, 40, 40, 8, 8))
    extras = {"learned": unit(8), "eps": 1e-12}
    stream = SEQNORM.streaming
    assert stream is not None
    summary = stream.sweeps[0].summarise(Tokens(q, k, v), None, **extras)
    _, matrix, offset = stream.sweeps[0].finish(summary, **extras)
    for head in range(2):
        found = torch.corrcoef(torch.cat([k[0, head].T, v[0, head].T]))[:8, 8:]
        assert_near(q[0, head].std(0, correction=0)[:, None] * matrix[0, head], found, 1e-9)
        assert bool((found.abs() <= 1).all())
    assert not bool(offset.any())
    q_hat = (q - q.mean(-2, keepdim=True)) / q.std(-2, correction=0, keepdim=True)
    pairs = torch.stack([
        torch.corrcoef(torch.cat([k[0, h].T, v[0, h].T]))[:8, 8:] for h in range(2)
    ])[None]
    assert_near(attend(q, k, v, op="seqnorm", **extras), q_hat @ pairs, 1e-9)


def test_affine_adds_a_rank_one_path() -> None:
    """Property 2: diag(gamma_k) C diag(gamma_v) + beta_k beta_v^T."""
    (q, k, v), extras = draw(SEQNORM, (1, 2, 40, 40, 8, 8))
    own = extras["learned"]
    plain = {"learned": unit(8)}
    stream = SEQNORM.streaming
    assert stream is not None
    hats = [
        (x - x.mean(-2, keepdim=True)) / (x.var(-2, correction=0, keepdim=True) + 1e-5).sqrt()
        for x in (q, k, v)
    ]
    correlations = hats[1].mT @ hats[2] / 40
    inner = own["k_weight"].mT * correlations * own["v_weight"] + own["k_bias"].mT * own["v_bias"]
    expected = (own["q_weight"] * hats[0] + own["q_bias"]) @ inner
    assert_near(attend(q, k, v, op="seqnorm", **extras), expected, 1e-12)
    assert error(attend(q, k, v, op="seqnorm", **plain), expected) > 0.1


@pytest.mark.parametrize("times", [2, 5])
def test_token_duplication_changes_nothing(times: int) -> None:
    """Property 3: SimA falls as 1 / r, seqnorm stays."""
    (q, k, v), extras = draw(SEQNORM, (2, 2, 30, 30, 8, 8))
    repeated = [x.repeat(1, 1, times, 1) for x in (q, k, v)]
    assert_near(
        attend(*repeated, op="seqnorm", **extras)[..., :30, :],
        attend(q, k, v, op="seqnorm", **extras),
        1e-12,
    )
    assert_near(
        attend(*repeated, op="sima")[..., :30, :] * times, attend(q, k, v, op="sima"), 1e-12
    )


def test_shifts_and_scales_of_channels_change_nothing() -> None:
    """Property 4: so the biases of the q, k, v projections have no effect; exactly so but for
    eps.
    """
    (q, k, v), extras = draw(SEQNORM, (2, 2, 30, 30, 8, 8))
    shift, scale = (
        torch.randn(3, 1, 1, 1, 8, dtype=torch.float64),
        torch.rand(3, 1, 1, 1, 8, dtype=torch.float64) + 0.5,
    )
    moved = [s * x + t for x, s, t in zip((q, k, v), scale, shift, strict=True)]
    assert_near(
        attend(*moved, op="seqnorm", eps=1e-14, **extras),
        attend(q, k, v, op="seqnorm", eps=1e-14, **extras),
        1e-11,
    )
    shifted = [x + t for x, t in zip((q, k, v), shift, strict=True)]
    assert_near(
        attend(*shifted, op="seqnorm", **extras), attend(q, k, v, op="seqnorm", **extras), 1e-12
    )


def test_one_token_and_dead_channels() -> None:
    """Property 5: one token gives (beta_q . beta_k) beta_v; a constant channel its beta alone."""
    (q, k, v), extras = draw(SEQNORM, (1, 2, 1, 1, 8, 8))
    own = extras["learned"]
    expected = (own["q_bias"] * own["k_bias"]).sum(-1, keepdim=True) * own["v_bias"]
    assert_near(attend(q, k, v, op="seqnorm", **extras), expected.expand(1, 2, 1, 8), 1e-12)
    (q, k, v), extras = draw(SEQNORM, (1, 2, 30, 30, 8, 8))
    k[..., 3] = 7.0
    for eps in (1e-5, 1e-12):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        o = attend(*leaves, op="seqnorm", eps=eps, **extras)
        o.sum().backward()
        assert all(bool(leaf.grad.isfinite().all()) for leaf in leaves if leaf.grad is not None)
        moved = k.clone()
        moved[..., 3] = -1.0
        assert_near(attend(q, moved, v, op="seqnorm", eps=eps, **extras), o.detach(), 1e-12)


@pytest.mark.parametrize("parts", [1, 3, 64])
def test_large_means_do_not_cancel(parts: int) -> None:
    """Float32 error <= 1e-5 at mean / std = 100, whole and in chunks."""
    (q, k, v), extras = draw(SEQNORM, (1, 2, 4096, 4096, 16, 16))
    call: tuple[Any, ...] = tuple((x + 100.0).float() for x in (q, k, v))
    own = {"learned": {name: x.float() for name, x in extras["learned"].items()}}
    expected = exact(SEQNORM, call, own)
    sizes = [4096 // parts] * parts
    sizes[-1] += 4096 - sum(sizes)
    o = torch.cat(attend_chunks(split(Tokens(*call), sizes), SEQNORM, **own), dim=2)
    assert_near(o, expected, 1e-5)
    assert_near(attend(*call, op="seqnorm", **own), expected, 1e-5)


def test_plain_sums_would_lose_it() -> None:
    """The control: E[x y] - E[x] E[y] in float32 at mean / std = 100."""
    x, y = (torch.randn(4096, 8) + 100 for _ in range(2))
    plain = (x.T @ y) / 4096 - x.mean(0)[:, None] * y.mean(0)
    centred = (x.double() - x.double().mean(0)).T @ (y.double() - y.double().mean(0)) / 4096
    assert error(plain, centred) > 1e-2
    count = moments.number(x[None, None], None)
    ours = [
        moments.centred(z[None, None], moments.mean(z[None, None], None, count), None)
        for z in (x, y)
    ]
    assert_near(moments.products(*ours)[0, 0] / 4096, centred, 1e-6)
