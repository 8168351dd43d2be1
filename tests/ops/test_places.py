"""Where tokens stand, and averages that carry their largest exponent: the two things several
operators build on.
"""

from typing import Any

import pytest
import torch

from softless.attention import exponents, places
from softless.attention.chunks import split
from softless.attention.streaming import Tokens
from tests.ops.draw import assert_near, error


def test_ranks_count_what_counts() -> None:
    mask = torch.tensor([[True, False, True, True, False], [False, False, False, True, True]])
    x = torch.zeros(2, 1, 5, 1)
    ranks, counted = places.key_ranks(Tokens(x, x, x, mask))
    assert [row[kept].tolist() for row, kept in zip(ranks, mask, strict=True)] == [
        [0, 1, 2],
        [0, 1],
    ]
    assert counted.tolist() == [[3], [2]]
    chunks = split(Tokens(x, x, x, mask, mask), [2, 3])
    for whole, part in ((ranks[:, :2], chunks[0]), (ranks[:, 2:], chunks[1])):
        assert part.mask is not None
        for read in (places.key_ranks, places.query_ranks):
            found, among = read(part)
            assert found[part.mask].equal(whole[part.mask])
            assert among.equal(counted)
    free = split(Tokens(x, x, x), [2, 3])[1]
    assert places.query_ranks(free)[0].tolist() == [[2, 3, 4]]
    assert places.query_ranks(free)[1].tolist() == [[5]]


def test_windows_row_by_row() -> None:
    """A class token, then 4 x 5 cells in windows of 2 x 2: the last column is in none."""
    window, inside, in_one = places.windows(torch.arange(21), (1, 4, 5), 2)
    assert not in_one[0]
    cells = torch.where(in_one, window, -1)[1:].reshape(4, 5)
    assert cells.tolist() == [
        [0, 0, 1, 1, -1],
        [0, 0, 1, 1, -1],
        [2, 2, 3, 3, -1],
        [2, 2, 3, 3, -1],
    ]
    assert inside[1:].reshape(4, 5)[:2, :2].tolist() == [[0, 1], [2, 3]]
    assert places.number_of_windows((1, 4, 5), 2) == 4
    row, column, on = places.cells(torch.arange(21), (1, 4, 5))
    assert (int(row[8]), int(column[8]), bool(on[8]), bool(on[0])) == (1, 2, True, False)


def averages(scores: Any, v: Any, mask: Any, sizes: list[int]) -> tuple[Any, Any]:
    parts, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        parts.append(exponents.weigh(scores[:, :, part], v[:, :, part], mask[:, part]))
        start += size
    total = parts[0]
    for part in parts[1:]:
        total = exponents.merge(total, part)
    return exponents.averages(total), exponents.log_totals(total)


@pytest.mark.parametrize("size", [1.0, 300.0, 1e6])
@pytest.mark.parametrize("sizes", [[40], [0, 13, 0, 27], [39, 1]])
def test_averages_of_scores_of_any_size(size: float, sizes: list[int]) -> None:
    """In float32 exp(89) is infinite; the sums carry their largest exponent, so that nothing is, in
    any chunks.
    """
    scores, v = size * torch.randn(2, 2, 40, 3), torch.randn(2, 2, 40, 4)
    mask = (torch.rand(2, 40) < 0.6).index_fill(1, torch.tensor([0]), value=True)
    dirty = scores.masked_fill(~mask[:, None, :, None], float("nan"))
    mean, log = averages(dirty, v.masked_fill(~mask[:, None, :, None], float("nan")), mask, sizes)
    closed = scores.double().masked_fill(~mask[:, None, :, None], float("-inf"))
    assert_near(mean, closed.softmax(-2).mT @ v.double(), 1e-5)
    assert_near(log[..., 0], closed.logsumexp(-2), 1e-6)


def test_where_nothing_counts() -> None:
    nothing = torch.zeros(1, 5, dtype=torch.bool)
    mean, log = averages(torch.randn(1, 1, 5, 2), torch.randn(1, 1, 5, 3), nothing, [2, 3])
    assert not bool(mean.any())
    assert bool((log == float("-inf")).all())


def test_gradients_do_not_feel_the_carried_exponent() -> None:
    scores = torch.randn(1, 1, 9, 2, dtype=torch.float64, requires_grad=True)
    v = torch.randn(1, 1, 9, 3, dtype=torch.float64)
    everything = torch.ones(1, 9, dtype=torch.bool)

    def gradient(made: Any) -> Any:
        return torch.autograd.grad(
            (made * torch.arange(6.0, dtype=torch.float64).reshape(2, 3)).sum(), scores
        )[0]

    plain = gradient(scores.softmax(-2).mT @ v)
    for sizes in ([9], [4, 5], [0, 9]):
        assert_near(gradient(averages(scores, v, everything, sizes)[0]), plain, 1e-12)
    log = torch.autograd.grad(averages(scores, v, everything, [4, 5])[1].sum(), scores)[0]
    assert_near(log, scores.detach().softmax(-2), 1e-12)
    assert error(plain, torch.zeros_like(plain)) == float("inf")
