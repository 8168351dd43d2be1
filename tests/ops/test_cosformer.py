"""cosFormer against the N x N form with its weights written out; places under masks; the class
token on a grid.
"""

import math

import pytest
import torch
from torch import Tensor

from softless.attention import OPERATORS
from tests.ops.draw import assert_near, attend, draw, error

LINE, PLANE = OPERATORS["cosformer"], OPERATORS["cosformer2d"]


def weighted(q: Tensor, k: Tensor, v: Tensor, weights: Tensor | float) -> Tensor:
    """relu(q) relu(k)^T times explicit weights, rows divided by their sums."""
    pairs = (q.relu() @ k.relu().mT) * weights
    return pairs @ v / pairs.sum(-1, keepdim=True).clamp_min(1e-6)


def along(queries: int, keys: int) -> Tensor:
    i, j = torch.arange(1, queries + 1)[:, None], torch.arange(1, keys + 1)
    return (math.pi / 2 * (i - j).double() / max(queries, keys)).cos()


@pytest.mark.parametrize("shape", [(2, 2, 30, 30, 8, 8), (1, 2, 7, 40, 8, 5), (1, 1, 50, 9, 4, 4)])
def test_weights_along_a_sequence(shape: tuple[int, ...]) -> None:
    (q, k, v), _ = draw(LINE, shape)
    assert_near(
        attend(q, k, v, op="cosformer"), weighted(q, k, v, along(shape[2], shape[3])), 1e-12
    )
    assert_near(attend(q, k, v, op="cosformer", reweight=False), weighted(q, k, v, 1.0), 1e-12)
    assert bool((along(shape[2], shape[3]) >= 0).all())


def test_places_are_those_of_tokens_that_count() -> None:
    """M is the number of tokens that count, in each sample its own."""
    (q, k, v), _ = draw(LINE, (2, 2, 30, 30, 8, 8))
    keep = torch.rand(2, 30, generator=torch.Generator().manual_seed(1)) < torch.tensor([
        [0.4],
        [0.8],
    ])
    o = attend(q, k, v, op="cosformer", mask=keep, query_mask=keep)
    for sample in range(2):
        few = [x[sample : sample + 1, :, keep[sample]] for x in (q, k, v)]
        number = few[0].shape[2]
        assert_near(
            o[sample : sample + 1, :, keep[sample]],
            weighted(few[0], few[1], few[2], along(number, number)),
            1e-12,
        )


def test_equivariant_without_re_weighting() -> None:
    (q, k, v), _ = draw(LINE, (1, 2, 30, 30, 8, 8))
    order = torch.randperm(30)
    moved = attend(*(x[:, :, order] for x in (q, k, v)), op="cosformer", reweight=False)
    assert_near(moved, attend(q, k, v, op="cosformer", reweight=False)[:, :, order], 1e-12)


def on_a_grid(prefix: int, height: int, width: int, *, factor: bool = True) -> Tensor:
    """1 with a prefix token, else the product of the cosines in rows and columns."""
    row = torch.arange(height).repeat_interleave(width).double()
    column = torch.arange(width).repeat(height).double()
    down, across = (math.pi / 2 / height, math.pi / 2 / width) if factor else (1.0, 1.0)
    patches = ((row[:, None] - row) * down).cos() * ((column[:, None] - column) * across).cos()
    weights = torch.ones(prefix + height * width, prefix + height * width, dtype=torch.float64)
    weights[prefix:, prefix:] = patches
    return weights


@pytest.mark.parametrize("grid", [(0, 5, 6), (1, 4, 7), (2, 7, 4)])
def test_weights_on_a_grid(grid: tuple[int, int, int]) -> None:
    tokens = grid[0] + grid[1] * grid[2]
    (q, k, v), _ = draw(PLANE, (2, 2, tokens, tokens, 8, 8))
    assert_near(
        attend(q, k, v, op="cosformer2d", grid=grid), weighted(q, k, v, on_a_grid(*grid)), 1e-12
    )
    assert bool((on_a_grid(*grid) >= 0).all())
    turned = (grid[0], grid[2], grid[1])
    assert (
        error(attend(q, k, v, op="cosformer2d", grid=turned), weighted(q, k, v, on_a_grid(*grid)))
        > 1e-3
    )


def test_the_printed_angles() -> None:
    """parity=True: cos(i - j) cos(m - n) without a factor, whose weights turn negative."""
    (q, k, v), _ = draw(PLANE, (2, 2, 31, 31, 8, 8))
    weights = on_a_grid(1, 5, 6, factor=False)
    assert bool((weights < 0).any())
    assert_near(
        attend(q, k, v, op="cosformer2d", grid=(1, 5, 6), parity=True),
        weighted(q, k, v, weights),
        1e-10,
    )


def test_masked_tokens_on_a_grid() -> None:
    """The others keep their places: the weights' rows and columns of masked tokens are struck
    out.
    """
    (q, k, v), _ = draw(PLANE, (1, 2, 31, 31, 8, 8))
    keep = (torch.rand(31, generator=torch.Generator().manual_seed(1)) < 0.6).index_fill(
        0, torch.tensor([0]), value=True
    )
    mask = keep[None]
    o = attend(q, k, v, op="cosformer2d", grid=(1, 5, 6), mask=mask, query_mask=mask)
    few = [x[:, :, keep] for x in (q, k, v)]
    assert_near(
        o[:, :, keep], weighted(few[0], few[1], few[2], on_a_grid(1, 5, 6)[keep][:, keep]), 1e-12
    )


@pytest.mark.parametrize("name", ["cosformer", "cosformer2d"])
def test_a_query_that_nothing_lets_through(name: str) -> None:
    record = OPERATORS[name]
    (q, k, v), extras = draw(record, (1, 2, 30, 30, 8, 8))
    q[:, :, 4] = -q[:, :, 4].abs()
    o = attend(q, k, v, op=name, **extras)
    assert not bool(o[:, :, 4].any())
    assert bool(o[:, :, 5].any())
