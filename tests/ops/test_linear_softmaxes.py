"""Efficient attention and Performer: the printed formulas, exponents of any size, and what random
features estimate.
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from softless import UsageError
from softless.attention import OPERATORS, attend_chunks
from softless.attention.learned import starting
from softless.attention.ops.performer import directions
from softless.attention.options import Sizes
from softless.attention.streaming import Tokens
from softless.layers import Attention, stepped
from tests.ops.draw import assert_near, attend, draw, error, exact

EFFICIENT, PERFORMER = OPERATORS["efficient"], OPERATORS["performer"]


def test_efficient_by_hand() -> None:
    q, k = (
        torch.tensor(x, dtype=torch.float64)[None, None]
        for x in ([[0.0, 0.0]], [[0.0, 1.0], [0.0, 3.0]])
    )
    v = torch.tensor([[1.0], [5.0]], dtype=torch.float64)[None, None]
    second = (torch.tensor(1.0).exp() * 1 + torch.tensor(3.0).exp() * 5) / (
        torch.tensor(1.0).exp() + torch.tensor(3.0).exp()
    )
    expected = 0.5 * 3.0 + 0.5 * second.double()
    assert_near(attend(q, k, v, op="efficient")[0, 0, 0, 0], expected, 1e-6)


@pytest.mark.parametrize("size", [1e2, 1e4])
def test_keys_of_any_size(size: float) -> None:
    """An outlier of 1e4 overflows exp in every dtype; each channel carries its own maximum."""
    call, _ = draw(EFFICIENT, (1, 2, 200, 200, 8, 8), torch.float32)
    call[1][..., 100, :] *= size
    assert_near(attend(*call, op="efficient"), exact(EFFICIENT, call, {}), 1e-5)


# Performer


def made(features: int, width: int, heads: int = 1, seed: int = 0) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return starting(
        PERFORMER, Sizes(heads, width, PERFORMER.filled({"features": features})), generator
    )


def test_directions_are_orthogonal_in_blocks() -> None:
    rows = directions((20, 8), torch.Generator().manual_seed(1))
    for start in (0, 8):
        gram = rows[start : start + 8] @ rows[start : start + 8].T
        assert_near(gram, gram.diagonal().diag(), 1e-12)
    lengths = directions((4000, 8), torch.Generator().manual_seed(1)).square().sum(-1)
    assert lengths.mean().item() == pytest.approx(8, rel=0.05), "as Gaussian vectors are long"
    assert lengths.std().item() == pytest.approx(4, rel=0.1)


def test_number_of_features() -> None:
    """int(D ln D), as published."""
    module = Attention(128, 2, op="performer")
    assert module.learned.directions.shape == (266, 64)
    assert Attention(128, 2, op="performer", features=10).learned.directions.shape == (10, 64)


def test_features_estimate_softmax() -> None:
    """The estimate nears softmax attention as features are added, without bias."""
    (q, k, v), _ = draw(PERFORMER, (1, 1, 30, 30, 8, 8), gain=0.4)
    softmax = attend(q, k, v, op="softmax")
    errors = [
        sum(
            error(attend(q, k, v, op="performer", features=m, learned=made(m, 8, seed=s)), softmax)
            for s in range(8)
        )
        / 8
        for m in (16, 256, 4096)
    ]
    assert errors[1] < errors[0] / 2
    assert errors[2] < errors[1] / 2


def test_positive_features_by_hand() -> None:
    """The ratio of the paper, with nothing stabilised, in float64."""
    (q, k, v), extras = draw(PERFORMER, (2, 2, 20, 20, 8, 8), gain=0.5)
    w = extras["learned"]["directions"]
    phi = [
        (x * 8**-0.25 @ w.T - (x * 8**-0.25).square().sum(-1, keepdim=True) / 2).exp()
        for x in (q, k)
    ]
    expected = phi[0] @ (phi[1].mT @ v) / (phi[0] @ phi[1].sum(-2, keepdim=True).mT)
    assert_near(attend(q, k, v, op="performer", **extras), expected, 1e-12)
    phi = [(x * 8**-0.25 @ w.T).relu() + 1e-3 for x in (q, k)]
    expected = phi[0] @ (phi[1].mT @ v) / (phi[0] @ phi[1].sum(-2, keepdim=True).mT)
    assert_near(attend(q, k, v, op="performer", kind="relu", **extras), expected, 1e-12)


def test_published_stabilisers() -> None:
    """parity=True is linear_attention.md's form; its epsilon moves the result, most where the norms
    of the keys are spread.
    """
    (q, k, v), extras = draw(PERFORMER, (2, 2, 20, 20, 8, 8))
    w, m = extras["learned"]["directions"], 12

    def features(x: Tensor, dims: Any) -> Tensor:
        dash = x * 8**-0.25 @ w.T
        half = (x * 8**-0.25).square().sum(-1, keepdim=True) / 2
        return m**-0.5 * ((dash - half - dash.amax(dims, keepdim=True)).exp() + 1e-4)

    for keys in (k, 6 * k):
        phi_q, phi_k = features(q, -1), features(keys, (-2, -1))
        expected = phi_q @ (phi_k.mT @ v) / (phi_q @ phi_k.sum(-2, keepdim=True).mT)
        assert_near(attend(q, keys, v, op="performer", parity=True, **extras), expected, 1e-12)
    ours = [attend(q, keys, v, op="performer", **extras) for keys in (k, 6 * k)]
    theirs = [attend(q, keys, v, op="performer", parity=True, **extras) for keys in (k, 6 * k)]
    assert error(theirs[0], ours[0]) > 1e-4
    assert error(theirs[1], ours[1]) > 0.1
    with pytest.raises(UsageError, match="leave out parity=True"):
        attend_chunks([Tokens(q, k, v)], "performer", parity=True, **extras)


def test_a_pass_draws_nothing_and_steps_draw_features_anew() -> None:
    """Training passes leave the features alone, so that a block computed again in the backward pass
    has those of its first pass.
    """
    module: Any = Attention(16, 2, op="performer", features=6, redraw_every=2)
    x = torch.randn(1, 10, 16)
    first = module.learned.directions.clone()
    for _ in range(5):
        module.train()(x)
    assert module.learned.directions.equal(first)
    stepped(module)
    assert module.learned.directions.equal(first)
    stepped(module)
    assert not module.learned.directions.equal(first)
    assert not any("directions" in name for name, _ in module.named_parameters())
