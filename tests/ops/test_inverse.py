"""SOFT's inverse against float64 on matrices from spread bottleneck tokens to a flat image region
(reliability.md D14 to D18).
"""

from typing import Any

import pytest
import torch
from torch import Tensor

from lab.kernels import KERNELS, matrices
from softless.attention import inverse as inverses
from softless.attention.bottleneck.kernels import kernel, own_kernel
from tests.ops.draw import error

RIDGE = 0.01
SIZES = (1, 2, 49, 196, 256)
each_family = pytest.mark.parametrize("name", KERNELS)
each_size = pytest.mark.parametrize("size", SIZES)
each_method = pytest.mark.parametrize("method", ["cholesky", "newton"])


def ours(a: Tensor, method: str = "cholesky") -> Tensor:
    """As the operator calls it: the island is float64 on a processor."""
    return inverses.inverse(a.double(), RIDGE, method)


def single(a: Tensor, method: str = "cholesky") -> Tensor:
    """As on a device without float64, where a float32 Cholesky is the measure."""
    return inverses.inverse(a, RIDGE, method)


def exactly(a: Tensor) -> Tensor:
    return torch.linalg.inv(a.double() + RIDGE * torch.eye(a.shape[-1], dtype=torch.float64))


def plain_cholesky(a: Tensor) -> Tensor:
    return inverses.cholesky(a + RIDGE * torch.eye(a.shape[-1]))


@each_family
@each_size
@each_method
def test_values(name: str, size: int, method: str) -> None:
    """D14: <= 2e-5 up to 49 bottleneck tokens, <= 5e-4 up to 256; D15: Newton too.

    Without float64, three times a float32 Cholesky's error.
    """
    a = matrices(name, size)
    bar = 2e-5 if size <= 49 else 5e-4
    assert error(ours(a, method), exactly(a)) <= bar
    rough = error(plain_cholesky(a), exactly(a))
    assert error(single(a, method), exactly(a)) <= max(3 * rough, 1e-6)


@each_family
@each_size
@each_method
def test_gradients(name: str, size: int, method: str) -> None:
    """D18: <= 1e-3 in every family, in float64 and in float32."""
    a = matrices(name, size, batch=2)
    weight = torch.randn(a.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)

    def gradient(run: Any, x: Tensor) -> Tensor:
        x = x.clone().requires_grad_()
        (run(x).double() * weight).sum().backward()
        assert x.grad is not None
        return x.grad

    truth = gradient(exactly, a.double())
    assert error(gradient(lambda x: ours(x, method), a), truth) <= 1e-3
    assert error(gradient(lambda x: single(x, method), a), truth) <= 1e-3


@each_method
@pytest.mark.parametrize("mate", ["flat", "spread", "nan"])
def test_neighbours_change_nothing(mate: str, method: str) -> None:
    """D17: not one bit, whatever lies beside a matrix in the batch."""
    a = matrices("sigma 0.3", 49, batch=2)[None]  # two heads of one image
    other = (
        torch.full_like(a, float("nan"))
        if mate == "nan"
        else matrices(mate, 49, batch=2, seed=7)[None]
    )
    ordinary = matrices("sigma 0.3", 49, batch=2, seed=9)[None]
    for run in (ours, single):
        for place in (0, 1):

            def beside(mate_: Tensor, run: Any = run, place: int = place) -> Tensor:
                found: Tensor = run(torch.cat([a, mate_] if place == 0 else [mate_, a]), method)
                return found

            found = beside(other)
            assert found[place].equal(beside(ordinary)[place])
            assert error(found[place], run(a, method)[0]) < 1e-5
            if mate == "nan":
                assert bool(found[1 - place].isnan().any()), "a NaN image keeps its NaN"


def test_newton_stops_by_its_residual() -> None:
    """D15: few steps where few do, more where the matrix is ill-conditioned, each matrix by itself,
    within the limit.
    """
    one = torch.eye(49, dtype=torch.float64)
    taken = {}
    for name in KERNELS:
        found = inverses.newton(matrices(name, 49).double() + RIDGE * one, RIDGE)
        assert not bool(found.fell_back.any())
        assert int(found.steps.max()) <= inverses.most_steps(49, RIDGE)
        taken[name] = int(found.steps.max())
    assert taken["spread"] < 10
    assert taken["flat"] > 20
    both = (
        torch.cat([matrices("spread", 49, batch=1), matrices("flat", 49, batch=1)]).double()
        + RIDGE * one
    )
    few, many = inverses.newton(both, RIDGE).steps.tolist()
    assert few < 10
    assert many > 20


def test_newton_falls_back_and_counts() -> None:
    """Where the limit is not enough, Cholesky: right all the same, and never NaN."""
    a = matrices("flat", 49).double() + RIDGE * torch.eye(49, dtype=torch.float64)
    found = inverses.newton(a, ridge=50.0)  # the limit of a far better conditioned matrix
    assert bool(found.fell_back.all())
    assert error(found.inverse, torch.linalg.inv(a)) < 1e-9


@each_size
@each_family
def test_kernels(name: str, size: int) -> None:
    """D16: 0 <= kernel <= 1, symmetric to the bit, ones on the diagonal, no eigenvalue below -1e-6
    times the largest.
    """
    a = matrices(name, size, batch=2)
    assert bool(((a >= 0) & (a <= 1)).all())
    assert a.equal(a.mT)
    assert bool((a.diagonal(dim1=-2, dim2=-1) == 1).all())
    lowest = torch.linalg.eigvalsh(a.double())[:, 0].min()
    assert lowest >= -1e-6 * size
    far = torch.randn(1, size, 8) + 100.0  # an offset that the squares would drown in
    assert error(own_kernel(far - far.mean(-2, keepdim=True)), own_kernel(far.double())) < 1e-4
    assert error(kernel(far, far, far.mean(-2, keepdim=True)), own_kernel(far.double())) < 1e-4


def test_the_published_inverse_is_far_off() -> None:
    """What 20 steps leave (reliability.md §3.3: 16 to 99.5 % off on half of the families), so that
    the bars above can see.
    """
    off = {
        (name, size): error(inverses.published(matrices(name, size)), exactly(matrices(name, size)))
        for name in KERNELS
        for size in (49, 196)
    }
    assert off["spread", 49] < 1e-5
    assert all(off[name, 49] > 0.1 for name in ("sigma 0.1", "sigma 0.03", "flat"))
    assert all(off[name, 196] > 0.9 for name in ("sigma 0.1", "sigma 0.03", "flat"))


def test_the_published_derivative_is_that_of_an_exact_inverse() -> None:
    """24 to 99 % off where the steps did not suffice."""
    for name in ("sigma 0.1", "flat"):
        a = matrices(name, 49, batch=1)
        weight = torch.randn(a.shape, generator=torch.Generator().manual_seed(4))
        x, y = a.clone().requires_grad_(), a.double().requires_grad_()
        (inverses.published(x) * weight).sum().backward()
        (exactly(y) * weight).sum().backward()
        assert x.grad is not None
        assert y.grad is not None
        assert error(x.grad, y.grad) > 0.2


def test_the_published_normalised_form_couples_the_batch() -> None:
    """One flat image beside another changes its inverse; ours does not
    (test_neighbours_change_nothing).
    """
    a, other = matrices("sigma 0.3", 49, batch=1), matrices("flat", 49, batch=1)
    alone = inverses.published_norm(a)
    beside = inverses.published_norm(torch.cat([a, other]))[:1]
    assert error(beside, alone) > 0.01
