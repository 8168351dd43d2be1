"""SOFT and normalised SOFT: the formula by hand, the ways of sampling, masks on the grid, the
published form.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import softless
from softless import UsageError
from softless.attention import OPERATORS, get
from softless.attention.bottleneck.claims import SAMPLINGS
from softless.attention.bottleneck.sampling import sample, scaled
from softless.attention.learned import starting
from softless.attention.options import Sizes
from softless.attention.record import Dims
from softless.measure.flops import FlopCounter
from tests.ops.draw import assert_near, attend, error

both = pytest.mark.parametrize("name", ["soft", "softnorm"])
GRID = (1, 6, 8)
TOKENS = 49


def draw(
    dtype: torch.dtype = torch.float64, width: int = 8
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    q, v = (
        torch.randn(2, 3, TOKENS, width, generator=generator, dtype=torch.float64).to(dtype)
        for _ in range(2)
    )
    sizes = Sizes(3, width, OPERATORS["soft"].filled({}))
    own = {
        name: (x + 0.1).to(dtype)
        for name, x in starting(OPERATORS["soft"], sizes, generator).items()
    }
    return q, v, own


def by_hand(name: str, q: Tensor, v: Tensor, own: dict[str, Tensor], invert: Any) -> Tensor:
    """Distances as sums of squared differences, one head at a time, no shared code."""
    x = q / q.shape[-1] ** 0.25
    image = x[:, :, 1:].unflatten(2, GRID[1:])  # (B,H,6,8,D)
    windows = image.unfold(2, 2, 2).unfold(3, 2, 2)  # (B,H,3,4,D,2,2)
    few = torch.einsum("bhyxiuv,oiuv->bhyxo", windows, own["conv"]).flatten(2, 3)
    few = F.gelu(F.layer_norm(few, few.shape[-1:], own["norm_weight"], own["norm_bias"]))
    distance = lambda a, b: (a[..., :, None, :] - b[..., None, :, :]).square().sum(-1)  # noqa: E731
    p, a = (-distance(few, x) / 2).exp(), (-distance(few, few) / 2).exp()
    middle = invert(a)
    if name == "softnorm":
        root = a.sum(-1) ** -0.5
        middle = root[..., :, None] * middle * root[..., None, :]
    return p.mT @ middle @ p @ v


@both
def test_formula_by_hand(name: str) -> None:
    q, v, own = draw()
    expected = by_hand(
        name,
        q,
        v,
        own,
        lambda a: torch.linalg.inv(a + 0.01 * torch.eye(a.shape[-1], dtype=a.dtype)),
    )
    for inverse in ("cholesky", "newton"):
        o = softless.attend(q, None, v, op=name, grid=GRID, learned=own, inverse=inverse)
        assert_near(o, expected, 1e-10, inverse)


def published_inverse(a: Tensor) -> Tensor:
    """soft.md section 1: alpha from the row sums, then the ridge, then twenty steps."""
    alpha = 0.9 * 2 / a.sum(-1).max(-1).values[..., None, None] ** 2
    ridged = a + 0.01 * torch.eye(a.shape[-1], dtype=a.dtype)
    x = alpha * ridged
    for _ in range(20):
        x = 2 * x - x @ ridged @ x
    return x


def published_norm_inverse(a: Tensor) -> Tensor:
    """soft.md section 1: no ridge, one alpha for the batch, halved while it is too large."""
    one = torch.eye(a.shape[-1], dtype=a.dtype)
    alpha = 2 / a.sum(-1).max() ** 2
    for _ in range(10):
        if (one - alpha * a @ a).abs().sum(-2).max() <= 1.01:
            break
        alpha = alpha / 2
    x = alpha * a
    for _ in range(20):
        x = 2 * x - x @ a @ x
    return x


@both
def test_published_form(name: str) -> None:
    """parity=True gives the official numbers; on a flat region they are far from ours, and the
    normalised form couples the batch.
    """
    invert = published_inverse if name == "soft" else published_norm_inverse
    q, v, own = draw()
    flat = q[:, :, :1] + 0.02 * q
    for x in (q, flat):
        o = softless.attend(x, None, v, op=name, grid=GRID, learned=own, parity=True)
        assert_near(o, by_hand(name, x, v, own, invert), 1e-8)
    alone = softless.attend(q[:1], None, v[:1], op=name, grid=GRID, learned=own, parity=True)
    beside = softless.attend(
        torch.cat([q[:1], flat[1:]]), None, v, op=name, grid=GRID, learned=own, parity=True
    )[:1]
    assert (error(beside, alone) > 1e-6) == (name == "softnorm")
    with pytest.raises(UsageError, match="leave out parity=True"):
        softless.attention.attend_chunks(
            [softless.attention.Tokens(q, q, v)], name, grid=GRID, learned=own, parity=True
        )


@both
def test_flops_of_the_published_form(name: str) -> None:
    """Counted as run: twenty steps, and P^T A^-1 before P v."""
    q, v, own = draw()
    options = {"parity": True}
    dims = Dims.of(q, q, v, GRID, get(name).filled(options))
    with FlopCounter() as counter:
        softless.attend(q, None, v, op=name, grid=GRID, learned=own, parity=True)
    assert counter.total == get(name).flops(dims)


def test_gradient_of_the_published_form_is_the_analytic_one() -> None:
    q, v, own = draw()
    leaf = q.clone().requires_grad_()
    softless.attend(
        leaf, None, v, op="soft", grid=GRID, learned=own, parity=True
    ).square().sum().backward()
    ours = q.clone().requires_grad_()
    softless.attend(ours, None, v, op="soft", grid=GRID, learned=own).square().sum().backward()
    assert leaf.grad is not None
    assert ours.grad is not None
    assert_near(leaf.grad, ours.grad, 1e-3)  # well spread tokens: twenty steps suffice


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_samplings(sampling: str) -> None:
    """Each takes as many bottleneck tokens as there are windows, and repeats; only the convolution
    has tensors of its own.
    """
    q, v, own = draw()
    learned = own if sampling == "conv" else {}
    record = OPERATORS["soft"]
    assert set(record.own_tensors({"sampling": sampling})) == set(learned)
    x = scaled(q, None)
    few, there = sample(x, None, GRID, learned, sampling, 2)
    assert few.shape == (2, 3, 12, 8)
    assert bool(there.all())
    assert few.equal(sample(x, None, GRID, learned, sampling, 2)[0])
    cells = x[:, :, 1:].unflatten(2, GRID[1:])
    if sampling == "pool":
        assert_near(few[..., 5, :], cells[:, :, 2:4, 2:4].mean((2, 3)), 1e-12)
    if sampling == "strided":
        assert few[..., 5, :].equal(cells[:, :, 2, 2])
    if sampling == "first":
        assert few.equal(x[:, :, 1:13])
    if sampling == "random":
        which = (few[0, 0, :, None] == x[0, 0, None]).all(-1).nonzero()[:, 1]
        assert len(set(which.tolist())) == 12
        assert which.min() >= 1, "the class token is no bottleneck token"
        assert which.max() > 24, "not the first ones"
        assert which.tolist() != sorted(which.tolist())
    o = softless.attend(q, None, v, op="soft", grid=GRID, learned=learned, sampling=sampling)
    assert o.shape == v.shape


@both
@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_chunks_of_every_sampling(name: str, sampling: str) -> None:
    q, v, own = draw()
    learned = own if sampling == "conv" else {}
    mask = (torch.rand(2, TOKENS) < 0.7).index_fill(1, torch.tensor([20]), value=True)
    parts = softless.attention.chunks.split(
        softless.attention.Tokens(q, q, v, mask, mask), [1, 20, 0, 28]
    )
    arguments: dict[str, Any] = {"grid": GRID, "learned": learned, "sampling": sampling}
    whole = softless.attend(q, None, v, op=name, mask=mask, query_mask=mask, **arguments)
    streamed = torch.cat(softless.attention.attend_chunks(parts, name, **arguments), dim=2)
    assert_near(streamed, whole, 1e-10)


@both
@pytest.mark.parametrize("sampling", ["conv", "pool", "strided"])
def test_a_masked_border_is_a_smaller_grid(name: str, sampling: str) -> None:
    """Padding at the right and below in whole windows, masked: as if the image had been smaller."""
    q, v, own = draw()
    learned = own if sampling == "conv" else {}
    keep = torch.zeros(6, 8, dtype=torch.bool)
    keep[:4, :6] = True
    mask = torch.cat([torch.ones(1, dtype=torch.bool), keep.flatten()]).expand(2, -1)
    dirty_q, dirty_v = (x.masked_fill(~mask[:, None, :, None], float("nan")) for x in (q, v))
    arguments: dict[str, Any] = {"op": name, "learned": learned, "sampling": sampling}
    o = softless.attend(dirty_q, None, dirty_v, mask=mask, query_mask=mask, grid=GRID, **arguments)
    small = softless.attend(q[:, :, mask[0]], None, v[:, :, mask[0]], grid=(1, 4, 6), **arguments)
    assert_near(o[:, :, mask[0]], small, 1e-10)


@both
def test_a_flat_image_is_no_danger(name: str) -> None:
    """All tokens the same, or all but: float32 stays near float64, values and gradients, where the
    published inverse is not.
    """
    q, v, own = draw()
    for spread in (0.0, 1e-4, 0.03):
        x = q[:, :, :1] + spread * q
        single = x.float().requires_grad_()
        tensors = {key: value.float() for key, value in own.items()}
        o = softless.attend(single, None, v.float(), op=name, grid=GRID, learned=tensors)
        double = single.detach().double().requires_grad_()
        exact = softless.attend(
            double,
            None,
            v.float().double(),
            op=name,
            grid=GRID,
            learned={k: t.double() for k, t in tensors.items()},
        )
        assert_near(o, exact, 1e-4, f"spread {spread}")
        o.square().sum().backward()
        assert single.grad is not None
        assert bool(single.grad.isfinite().all())


def test_sizes_it_refuses() -> None:
    q = torch.randn(1, 1, 64 * 64, 4)
    with pytest.raises(
        UsageError,
        match=r"has 4096 bottleneck tokens, and their inverse is kept to 1024: choose ratio=2 or "
        r"more",
    ):
        softless.attend(q, None, q, op="soft", grid=(0, 64, 64), ratio=1, sampling="pool")
    few = torch.randn(1, 1, 3, 4)
    with pytest.raises(
        UsageError, match=r"grid 1 x 3 has no window of 2 x 2: choose a smaller ratio"
    ):
        softless.attend(few, None, few, op="soft", grid=(0, 1, 3), sampling="pool")
    with pytest.raises(
        UsageError, match=r"grid=\(0, 2, 2\) has 0 \+ 2 x 2 = 4 tokens, and there are 3"
    ):
        softless.attend(few, None, few, op="soft", grid=(0, 2, 2), sampling="pool")
    with pytest.raises(UsageError, match="pass k=None"):
        softless.attend(few, few, few, op="soft", grid=(0, 1, 3), sampling="pool")
    with pytest.raises(
        UsageError,
        match=r"needs the grid of the tokens: pass grid=\(prefix_tokens, height, width\)",
    ):
        attend(few, few, few, op="soft", sampling="pool")
