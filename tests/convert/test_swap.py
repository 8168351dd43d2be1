"""Swapping attention inside timm's models: the same projections, a report that leaves nothing out,
and softmax in softmax's place changing nothing.
"""

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from torch import nn

import softless
from softless import UsageError
from softless.convert import swap
from softless.layers import Attention
from tests.ops.draw import assert_near, error

SMALL: dict[str, tuple[dict[str, Any], int]] = {
    "deit_tiny_patch16_224": ({"depth": 2}, 224),
    "deit3_small_patch16_224": ({"depth": 2, "embed_dim": 96, "num_heads": 3}, 224),
    "flexivit_small": ({"depth": 1, "embed_dim": 96, "num_heads": 3}, 240),
    "eva02_tiny_patch14_224": ({"depth": 1}, 224),
    "vit_small_patch16_dinov3": (
        {"depth": 1, "embed_dim": 96, "num_heads": 3, "init_values": 1.0},
        256,
    ),
    "pvt_v2_b0": ({"depths": (1, 1, 1, 1)}, 64),
    "pvt_v2_b2_li": ({"depths": (1, 1, 1, 1)}, 64),
    "xcit_nano_12_p16_224": ({"depth": 1}, 64),
}
SOFTMAX = [name for name in SMALL if not name.startswith("xcit")]


def theirs(name: str) -> Any:
    torch.manual_seed(0)
    arguments, _ = SMALL[name]
    return timm.create_model(name, num_classes=5, **arguments).eval()


def images(name: str) -> torch.Tensor:
    return torch.randn(2, 3, *2 * (SMALL[name][1],), generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("name", SOFTMAX)
def test_softmax_for_softmax_changes_nothing(name: str) -> None:
    """Projections, norms, biases, rotary positions and reductions are where they were."""
    model = theirs(name)
    before = model(images(name))
    found = swap(model, "softmax")
    assert found.kept == {}
    assert any(isinstance(one, Attention) for one in model.modules())
    assert_near(model(images(name)), before, 1e-6)


@pytest.mark.parametrize("name", SMALL)
def test_sima_in_eight_families(name: str) -> None:
    """No softmax is left where every layer is swapped; calibrated, no branch is farther from the
    old one; gradients reach every projection.
    """
    model, x = theirs(name), images(name)
    had = softless.audit(model, SMALL[name][1]).kinds
    found = swap(model, "sima", calibrate=x)
    assert found.kept == {}
    assert had["softmax"] > 0
    left = softless.audit(model, SMALL[name][1]).kinds
    assert left == {kind: number for kind, number in had.items() if kind != "softmax"}
    assert set(found.gains) == set(found.swapped) == set(found.errors)
    assert all(error <= bare for bare, error in found.errors.values())
    model(x).square().sum().backward()
    assert all(
        p.grad is not None
        for one in model.modules()
        if isinstance(one, Attention)
        for p in one.parameters()
    )


def test_swapped_is_what_create_model_builds() -> None:
    model = theirs("deit_tiny_patch16_224")
    built: Any = softless.create_model(
        "deit_tiny_patch16_224", op="sima", num_classes=5, depth=2
    ).eval()
    built.load_state_dict(model.state_dict())
    swap(model, "sima")
    assert torch.equal(
        model(images("deit_tiny_patch16_224")), built(images("deit_tiny_patch16_224"))
    )
    assert list(model.state_dict()) == list(built.state_dict())


def test_rotary_positions_count_and_prefix_tokens_are_not_turned() -> None:
    model = theirs("vit_small_patch16_dinov3")
    swap(model, "sima")
    attention = model.blocks[0].attn
    x = torch.randn(1, 5 + 16, 96)
    rope = model.rope.get_embed((4, 4))
    turned, plain = attention(x, rope=rope), attention(x)
    assert error(turned, plain) > 1e-3
    q, _, _, _ = attention.sides(x, None, None, rope=rope)
    straight, _, _, _ = attention.sides(x, None, None)
    assert torch.equal(q[:, :, :5], straight[:, :, :5])
    assert error(q[:, :, 5:], straight[:, :, 5:]) > 1e-2


def test_a_grid_is_told_by_the_patch_embedding_and_copies_have_their_own() -> None:
    model = timm.create_model(
        "deit_tiny_patch16_224", depth=1, num_classes=5, dynamic_img_size=True
    ).eval()
    found = swap(model, "soft", ratio=2, sampling="pool")
    assert "mean of both" in found.tied
    for height, width in ((64, 96), (96, 64), (32, 32)):
        assert model(torch.randn(1, 3, height, width)).shape == (1, 5)
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    again(torch.randn(1, 3, 32, 64))
    first: Any = next(one for one in model.modules() if isinstance(one, Attention))
    assert first.shared_grid.value == (1, 2, 2)
    xcit: Any = theirs("xcit_nano_12_p16_224")
    swap(xcit, "soft", ratio=2)
    assert xcit(torch.randn(1, 3, 64, 96)).shape == (1, 5)
    found_one: Any = next(one for one in xcit.modules() if isinstance(one, Attention))
    tied = found_one.qv.weight
    q, k, v = theirs("xcit_nano_12_p16_224").blocks[0].attn.qkv.weight.chunk(3)
    assert_near(tied, torch.cat([(q + k) / 2, v]), 1e-7)


def test_layers_are_chosen_by_pattern() -> None:
    model = theirs("deit_tiny_patch16_224")
    found = swap(model, "sima", layers="blocks.1.*")
    assert found.swapped == {"blocks.1.attn": "Attention"}
    assert found.kept == {"blocks.0.attn": "not among the layers asked for"}
    assert "kept     blocks.0.attn: not among the layers asked for" in str(found)
    with pytest.raises(UsageError, match=r"no attention module fits 'block\.1'; there are blocks"):
        swap(theirs("deit_tiny_patch16_224"), "sima", layers="block.1")


def test_beit_is_refused_unless_its_bias_may_go() -> None:
    model: Any = timm.create_model(
        "beit_base_patch16_224", depth=2, embed_dim=96, num_heads=3, num_classes=5
    ).eval()
    x = images("deit_tiny_patch16_224")
    before = model(x)
    with pytest.raises(
        UsageError, match="nothing to swap in Beit: its relative position bias is added to scores"
    ):
        swap(model, "softmax")
    assert torch.equal(model(x), before)
    found = swap(model, "softmax", force="blocks.1.*")
    assert list(found.swapped) == list(found.lost) == ["blocks.1.attn"]
    assert "relative position bias" in found.kept["blocks.0.attn"]
    assert_near(model(x), before, 1e-6)  # new tables of biases are 0


def test_an_operator_is_named_by_its_class_too() -> None:
    """With the options that the class has fixed; those of the call go before them."""
    tokens = softless.SimA.with_options(token_scale="tokens")
    cases: list[tuple[Any, dict[str, Any], str | int | None]] = [
        (softless.SimA, {}, None),
        (tokens, {}, "tokens"),
        (tokens, {"token_scale": 49}, 49),
    ]
    for op, options, expected in cases:
        model: Any = timm.create_model("deit_tiny_patch16_224", depth=1, num_classes=5)
        assert swap(model, op, **options).op == "sima"
        assert model.blocks[0].attn.options.get("token_scale") == expected
    wrong: Any = torch.nn.Linear
    with pytest.raises(
        softless.UsageError, match=r"op=Linear: give an operator's name, as 'sima', or its class"
    ):
        swap(model, wrong)


def test_talking_heads_are_kept_and_class_attention_follows_the_operator() -> None:
    model: Any = timm.create_model("cait_xxs24_224", depth=1, num_classes=5).eval()
    found = swap(model, "sima")
    assert set(found.swapped) == {"blocks_token_only.0.attn", "blocks_token_only.1.attn"}
    assert "talking heads" in found.kept["blocks.0.attn"]
    other: Any = timm.create_model("cait_xxs24_224", depth=1, num_classes=5).eval()
    more = swap(other, "softmax", force="blocks.*")
    assert set(more.lost) == set(more.swapped) == {"blocks.0.attn"}
    assert "no form for class attention" in more.kept["blocks_token_only.0.attn"]


@pytest.mark.parametrize(
    ("name", "op", "message"),
    [
        (
            "swin_tiny_patch4_window7_224",
            "sima",
            "nothing to swap in SwinTransformer: it attends within windows",
        ),
        ("levit_128s", "sima", "nothing to swap in LevitDistilled: a bias by relative position"),
        ("edgenext_xx_small", "sima", "its channels attend to channels"),
        ("resnet18", "sima", "it has no attention module that softless knows"),
        ("pvt_v2_b0", "soft", "many queries attend to few keys here"),
        ("pvt_v2_b0", "linformer", "has a row per token"),
    ],
)
def test_refusals(name: str, op: str, message: str) -> None:
    arguments: dict[str, Any] = {"depths": (1, 1, 1, 1)} if name.startswith("pvt") else {}
    with pytest.raises(UsageError, match=message):
        swap(timm.create_model(name, **arguments), op)


def test_on_an_error_the_model_is_as_it_was() -> None:
    model = theirs("deit_tiny_patch16_224")
    kinds = [type(one) for one in model.modules()]
    for op, options, message in (
        ("smia", {}, "no operator named 'smia'"),
        ("sima", {"ratio": 2}, "no option"),
        ("sima", {"order": "sideways"}, "order"),
    ):
        with pytest.raises(UsageError, match=message):
            swap(model, op, **options)
    assert [type(one) for one in model.modules()] == kinds


def test_dropout_of_weights_stays_where_the_operator_has_weights() -> None:
    model: nn.Module = timm.create_model(
        "deit_tiny_patch16_224", depth=1, attn_drop_rate=0.1, proj_drop_rate=0.2
    )
    swap(model, "softmax")
    attention = next(one for one in model.modules() if isinstance(one, Attention))
    assert attention.attn_drop == 0.1
    assert attention.proj_drop.p == 0.2
