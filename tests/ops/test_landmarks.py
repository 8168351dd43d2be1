"""Nystroem landmarks and Linformer's projections: segments, windows, the published starts, the
spatial reduction.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import softless
from softless import UsageError
from softless.attention import OPERATORS, attend_chunks
from softless.attention.chunks import split
from softless.attention.ops.nystrom import pseudo_inverse, segments
from softless.attention.streaming import Tokens
from softless.layers import Attention
from tests.ops.draw import assert_near, attend, draw, error

NYSTROM, LINFORMER = OPERATORS["nystrom"], OPERATORS["linformer"]


def test_segments_as_published() -> None:
    """10 tokens in 4 segments: s = 2, the first 3 * 4 - 10 = 2 of them have two tokens, the others
    three; one token each at 4.
    """
    assert segments(torch.arange(10), torch.tensor(10), 4).tolist() == [
        0,
        0,
        1,
        1,
        2,
        2,
        2,
        3,
        3,
        3,
    ]
    assert segments(torch.arange(8), torch.tensor(8), 4).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    assert segments(torch.arange(4), torch.tensor(4), 4).tolist() == [0, 1, 2, 3]
    assert len(set(segments(torch.arange(3), torch.tensor(3), 4).tolist())) == 3


def by_hand(q: Tensor, k: Tensor, v: Tensor, owners: list[int], start: Any) -> Tensor:
    """Three softmaxes and six steps, landmark by landmark."""
    number, scale = max(owners) + 1, q.shape[-1] ** -0.5
    few = [
        torch.stack([x[:, :, torch.tensor(owners) == r].mean(2) for r in range(number)], 2)
        for x in (q, k)
    ]
    f1, f2 = (q @ few[1].mT * scale).softmax(-1), (few[0] @ few[1].mT * scale).softmax(-1)
    f3, one = (few[0] @ k.mT * scale).softmax(-1), torch.eye(number, dtype=q.dtype)
    z = start(f2)
    for _ in range(6):
        z = z @ (13 * one - f2 @ z @ (15 * one - f2 @ z @ (7 * one - f2 @ z))) / 4
    return f1 @ z @ (f3 @ v)


def own_start(f: Tensor) -> Tensor:
    return f.mT / (f.sum(-1).amax(-1) * f.sum(-2).amax(-1))[..., None, None]


def test_nystrom_by_hand() -> None:
    (q, k, v), _ = draw(NYSTROM, (2, 2, 10, 10, 8, 8))
    expected = by_hand(q, k, v, [0, 0, 1, 1, 2, 2, 2, 3, 3, 3], own_start)
    assert_near(attend(q, k, v, op="nystrom", landmarks=4), expected, 1e-12)


def test_published_start_couples_the_batch() -> None:
    """parity=True takes the largest column sum of all: the same numbers as that formula, and other
    ones beside another image.
    """
    (q, k, v), _ = draw(NYSTROM, (2, 2, 10, 10, 8, 8))
    owners = [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]
    expected = by_hand(q, k, v, owners, lambda f: f.mT / f.sum(-2).max())
    o = attend(q, k, v, op="nystrom", landmarks=4, parity=True)
    assert_near(o, expected, 1e-12)
    alone = attend(q[:1], k[:1], v[:1], op="nystrom", landmarks=4, parity=True)
    assert error(alone, o[:1]) > 1e-6
    assert_near(
        attend(q[:1], k[:1], v[:1], op="nystrom", landmarks=4),
        attend(q, k, v, op="nystrom", landmarks=4)[:1],
        1e-12,
    )
    with pytest.raises(UsageError, match="leave out parity=True"):
        attend_chunks([Tokens(q, k, v)], "nystrom", landmarks=4, parity=True)


def test_no_more_tokens_than_landmarks_is_softmax() -> None:
    """By the shapes at hand, and sample by sample under a mask, whole and in chunks."""
    (q, k, v), _ = draw(NYSTROM, (2, 2, 20, 20, 8, 8))
    assert_near(attend(q, k, v, op="nystrom", landmarks=20), attend(q, k, v, op="softmax"), 1e-12)
    mask = torch.arange(20).expand(2, -1) < torch.tensor([[6], [20]])
    o = attend(q, k, v, op="nystrom", landmarks=6, mask=mask, query_mask=mask)
    few = [x[:1, :, :6] for x in (q, k, v)]
    assert_near(o[:1, :, :6], attend(*few, op="softmax"), 1e-12)
    assert_near(o[1:], attend(q[1:], k[1:], v[1:], op="nystrom", landmarks=6), 1e-12)
    assert error(o[1:], attend(q[1:], k[1:], v[1:], op="softmax")) > 1e-3
    chunks = attend_chunks(split(Tokens(q, k, v, mask, mask), [7, 13]), "nystrom", landmarks=6)
    assert_near(torch.cat(chunks, 2), o, 1e-12)


def test_windows_in_place_of_segments() -> None:
    (q, k, v), _ = draw(NYSTROM, (2, 2, 17, 17, 8, 8))
    grid, owners = (1, 4, 4), [0, 0, 1, 1, 0, 0, 1, 1, 2, 2, 3, 3, 2, 2, 3, 3]
    few = [
        torch.stack([x[:, :, 1:][:, :, torch.tensor(owners) == r].mean(2) for r in range(4)], 2)
        for x in (q, k)
    ]
    scale, one = 8**-0.5, torch.eye(4, dtype=q.dtype)
    f1, f2, f3 = (
        (a @ b.mT * scale).softmax(-1) for a, b in ((q, few[1]), (few[0], few[1]), (few[0], k))
    )
    z = own_start(f2)
    for _ in range(6):
        z = z @ (13 * one - f2 @ z @ (15 * one - f2 @ z @ (7 * one - f2 @ z))) / 4
    arguments: dict[str, Any] = {"pooling": "grid", "grid": grid}
    o = attend(q, k, v, op="nystrom", **arguments)
    assert_near(o, f1 @ z @ (f3 @ v), 1e-12)
    chunks = attend_chunks(split(Tokens(q, k, v), [3, 9, 5]), "nystrom", **arguments)
    assert_near(torch.cat(chunks, 2), o, 1e-12)
    with pytest.raises(UsageError, match="needs the grid of the tokens"):
        attend(q, k, v, op="nystrom", pooling="grid")
    with pytest.raises(
        UsageError, match=r'pooling="grid" needs as many queries as keys, got 5 and 17'
    ):
        attend(q[:, :, :5], k, v, op="nystrom", **arguments)
    with pytest.raises(UsageError, match=r"grid 4 x 4 has no window of 5 x 5"):
        attend(q, k, v, op="nystrom", ratio=5, **arguments)


@pytest.mark.parametrize("family", ["same", "all but the same", "one apart"])
def test_singular_landmarks(family: str) -> None:
    """Like tokens make the landmarks' matrix singular: finite values and gradients, near
    float64.
    """
    (q, k, v), _ = draw(NYSTROM, (1, 2, 64, 64, 8, 8))
    if family != "one apart":
        q, k = (x[:, :, :1] + (1e-3 if family == "all but the same" else 0) * x for x in (q, k))
    else:
        k[:, :, 9] *= 50
    leaves = [x.float().requires_grad_() for x in (q, k, v)]
    o = attend(*leaves, op="nystrom", landmarks=8)
    assert_near(o, attend(*(x.detach().double() for x in leaves), op="nystrom", landmarks=8), 1e-4)
    o.square().sum().backward()
    assert all(bool(leaf.grad.isfinite().all()) for leaf in leaves if leaf.grad is not None)


def test_pseudo_inverse_converges() -> None:
    f = torch.randn(2, 8, 8, dtype=torch.float64).mul(2).softmax(-1)
    assert_near(pseudo_inverse(f, 30, parity=False), torch.linalg.pinv(f), 1e-8)


# Linformer


def test_linformer_by_hand() -> None:
    (q, k, v), extras = draw(LINFORMER, (2, 2, 20, 20, 8, 8))
    own = extras["learned"]
    weights = (q @ (own["key_projection"].T @ k).mT / 8**0.5).softmax(-1)
    assert_near(
        attend(q, k, v, op="linformer", **extras), weights @ (own["value_projection"].T @ v), 1e-12
    )
    shared = {"learned": {"key_projection": own["key_projection"]}, "shared": True, "projected": 4}
    assert_near(
        attend(q, k, v, op="linformer", **shared), weights @ (own["key_projection"].T @ v), 1e-12
    )


def test_shorter_sequences_take_the_first_rows() -> None:
    (q, k, v), extras = draw(LINFORMER, (1, 2, 20, 20, 8, 8))
    few = [x[:, :, :13] for x in (q, k, v)]
    first = {name: x[:13] for name, x in extras["learned"].items()}
    assert_near(
        attend(*few, op="linformer", **extras),
        attend(*few, op="linformer", projected=4, learned=first),
        1e-12,
    )
    longer, _ = draw(LINFORMER, (1, 2, 21, 21, 8, 8))
    with pytest.raises(
        UsageError,
        match=r"21 tokens, and its projections have rows for 20: build the model for the longer "
        r"sequence",
    ):
        attend(*longer, op="linformer", **extras)


def test_spatial_reduction_by_hand() -> None:
    """PVT: k and v come from LayerNorm(Conv2d(x)), the class token beside them."""
    module = Attention(24, 4, op="linformer", reduction="grid", ratio=2, qkv_bias=True).double()
    x = torch.randn(2, 17, 24, dtype=torch.float64)
    assert module.reduction is not None
    assert not hasattr(module, "learned")
    image = x[:, 1:].mT.unflatten(2, (4, 4))
    made = (
        F
        .conv2d(image, module.reduction.conv.weight, module.reduction.conv.bias, stride=2)
        .flatten(2)
        .mT
    )
    few = torch.cat(
        [
            x[:, :1],
            F.layer_norm(made, (24,), module.reduction.norm.weight, module.reduction.norm.bias),
        ],
        1,
    )
    q = module.qkv(x)[..., :24]
    k, v = module.qkv(few)[..., 24:].chunk(2, -1)
    q, k, v = (t.unflatten(-1, (4, 6)).transpose(1, 2) for t in (q, k, v))
    expected = module.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
    assert_near(module(x, grid=(1, 4, 4)), expected, 1e-12)
    with pytest.raises(UsageError, match="operator 'linformer' needs the grid"):
        module(x)
    with pytest.raises(UsageError, match="leaves v no grid"):
        Attention(24, 4, op="linformer", reduction="grid", v_conv=3)


@pytest.mark.parametrize("host", ["deit_tiny_patch16_224", "xcit_nano_12_p16_224"])
@pytest.mark.parametrize(
    "options", [{"projected": 5}, {"reduction": "grid"}, {"projected": 5, "shared": True}], ids=str
)
def test_in_a_host(host: str, options: dict[str, Any]) -> None:
    model: Any = softless.create_model(
        host, op="linformer", img_size=64, depth=1, num_classes=3, **options
    )
    model(torch.randn(2, 3, 64, 64)).sum().backward()
    attention = next(module for module in model.modules() if isinstance(module, Attention))
    assert all(p.grad is not None for p in attention.parameters())
    if "reduction" not in options:
        rows = 16 + host.startswith("deit")
        assert attention.learned.key_projection.shape == (rows, 5)
        with pytest.raises(UsageError, match=f"its projections have rows for {rows}"):
            model(torch.randn(2, 3, 96, 96))
    else:
        assert model(torch.randn(2, 3, 96, 96)).shape == (2, 3)
