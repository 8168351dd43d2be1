"""CvT and the SOFT pyramid: every operator that has a place in them, four scales or three,
positions, and what timm's users call.
"""

import re
from typing import Any

import pytest
import timm
import torch

import softless
from softless import OPERATORS, UsageError
from softless.layers import Attention, ConvAttention
from softless.models import no_weight_decay
from softless.models.pyramid import ramp
from tests.models.lively import lively
from tests.ops.draw import assert_near, error

create_model: Any = softless.create_model
CVT: dict[str, Any] = {
    "depths": (1, 1, 2),
    "num_classes": 7,
    "embed_dims": (16, 32, 48),
    "num_heads": (1, 2, 3),
}
SOFT: dict[str, Any] = {
    "depths": (1, 1, 1, 2),
    "num_classes": 7,
    "embed_dims": (16, 32, 32, 48),
    "num_heads": (2, 4, 4, 3),
}
HOSTS = {"cvt_13_224": CVT, "soft_pyramid_tiny_224": SOFT}
REDUCTIONS = {"cvt_13_224": [4, 8, 16], "soft_pyramid_tiny_224": [4, 8, 16, 32]}
each_host = pytest.mark.parametrize("host", HOSTS)


def small(host: str, op: str = "sima", **more: Any) -> Any:
    torch.manual_seed(0)
    return create_model(host, op=op, **{**HOSTS[host], **more})


def image(height: int = 64, width: int = 96, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_in_the_soft_pyramid(op: str) -> None:
    """In three stages, windows and convolutions of v as published; the last stage is softmax, or
    what is asked for.
    """
    more = {"img_size": (64, 96)} if OPERATORS[op].wants("tokens", {}) else {}
    model = small("soft_pyramid_tiny_224", op, **more)
    found = [module for module in model.modules() if isinstance(module, Attention)]
    assert [module.op.name for module in found] == [op] * 3 + ["softmax"] * 2
    if "ratio" in OPERATORS[op].options:
        assert [module.options["ratio"] for module in found[:3]] == [8, 4, 2]
    assert [
        module.v_conv.weight.shape[-1] for module in found[:3] if module.v_conv is not None
    ] == [9, 5, 3]
    model(image()).square().sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert {
        module.op.name
        for module in small(
            "soft_pyramid_tiny_224", op, last_stage="sima", **more
        ).stage3.attentions()
    } == {"sima"}


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_with_many_queries_and_few_keys_in_cvt(op: str) -> None:
    if not OPERATORS[op].cross:
        with pytest.raises(UsageError, match="has no place in CvT"):
            small("cvt_13_224", op)
        return
    more = {"img_size": (64, 96)} if OPERATORS[op].wants("tokens", {}) else {}
    model = small("cvt_13_224", op, **more)
    seen = []
    for module in model.modules():
        if isinstance(module, ConvAttention):
            module.register_forward_hook(
                lambda module, inputs, told, _: seen.append([
                    x.shape[2] for x in module.sides(inputs[0], None, told["grid"])[:2]
                ]),
                with_kwargs=True,
            )
    model(image()).square().sum().backward()
    assert seen == [
        [16 * 24, 8 * 12],
        [8 * 12, 4 * 6],
        [1 + 4 * 6, 1 + 2 * 3],
        [1 + 4 * 6, 1 + 2 * 3],
    ]


def test_softmax_in_cvt_is_scaled_by_the_full_width() -> None:
    assert [
        module.options["scale"]
        for module in small("cvt_13_224", "softmax").modules()
        if isinstance(module, ConvAttention)
    ] == [
        16**-0.5,
        32**-0.5,
        48**-0.5,
        48**-0.5,
    ]


def test_masks_have_no_meaning_behind_convolutions() -> None:
    attention = ConvAttention(32, 2, "sima")
    attention.set_grid((0, 4, 6))
    assert attention(torch.randn(1, 24, 32)).shape == (1, 24, 32)
    with pytest.raises(UsageError, match="mix every token with its neighbours"):
        attention(torch.randn(1, 24, 32), mask=torch.ones(1, 24, dtype=torch.bool))
    with pytest.raises(UsageError, match="v_conv has no place in CvT"):
        ConvAttention(32, 2, "sima", v_conv=3)


@each_host
def test_any_size_and_channels(host: str) -> None:
    model = small(host, in_chans=5).eval()
    side = REDUCTIONS[host][-1]
    for height, width in ((side, side), (2 * side, 3 * side), (224, side)):
        assert model(image(height, width, 5)).shape == (2, 7)
    for height, width in ((225, 300), (side - 1, 500)):
        with pytest.raises(
            UsageError, match=f"image is {height} x {width} but patches are {side} x {side}"
        ):
            model(image(height, width, 5))


@each_host
def test_features_only(host: str) -> None:
    name = {"cvt_13_224": "sima_cvt_13_224", "soft_pyramid_tiny_224": "soft_tiny_224"}[host]
    arguments = {key: value for key, value in HOSTS[host].items() if key != "num_classes"}
    model: Any = timm.create_model(name, features_only=True, **arguments)
    assert model.feature_info.reduction() == REDUCTIONS[host]
    assert tuple(model.feature_info.channels()) == HOSTS[host]["embed_dims"]
    shapes = [
        (2, dim, 64 // r, 96 // r)
        for dim, r in zip(HOSTS[host]["embed_dims"], REDUCTIONS[host], strict=True)
    ]
    assert [tuple(x.shape) for x in model(image())] == shapes
    early: Any = timm.create_model(name, features_only=True, out_indices=(0, 1), **arguments)
    assert [tuple(x.shape) for x in early(image())] == shapes[:2]
    assert not hasattr(early.model if hasattr(early, "model") else early, "stage2")


@each_host
def test_forward_intermediates(host: str) -> None:
    model = small(host).eval()
    final, maps = model.forward_intermediates(image())
    assert_near(final, model.forward_features(image()), 1e-6)
    last = model.forward_intermediates(image(), indices=1, norm=True, intermediates_only=True)[0]
    prefix = model.stages[-1].prefix
    assert_near(last.flatten(2).transpose(1, 2), final[:, prefix:], 1e-6)
    assert len(maps) == len(REDUCTIONS[host])
    first, one = model.forward_intermediates(image(), indices=[0], stop_early=True)
    assert len(one) == 1
    assert first.shape == (2, 16 * 24, 16)
    with pytest.raises(UsageError, match="NCHW"):
        model.forward_intermediates(image(), output_fmt="NLC")


@each_host
def test_set_input_size(host: str) -> None:
    model: Any = lively(small(host), image(224, 224))
    before = model(image(96, 64))
    model.set_input_size((96, 64))
    assert model.img_size == (96, 64)
    # positions are resized as they were at each pass
    assert_near(model(image(96, 64)), before, 1e-5)
    if host.startswith("soft"):
        assert model.stage0.pos_embed.shape == (1, 24 * 16, 16)
    with pytest.raises(UsageError, match="multiples of"):
        model.set_input_size((100, 64))


@each_host
def test_reset_classifier_and_pooling(host: str) -> None:
    model = small(host).eval()
    model.reset_classifier(3)
    assert model(image()).shape == (2, 3)
    model.reset_classifier(0)
    assert model(image()).shape == (2, 48)
    mean = small(host, global_pool="avg").eval()
    tokens = mean.forward_features(image())[:, 1:]
    assert_near(
        mean.forward_head(mean.forward_features(image()), pre_logits=True), tokens.mean(1), 1e-6
    )
    with pytest.raises(UsageError, match="global_pool='max'"):
        small(host, global_pool="max")


def test_drop_path_ramps_as_published() -> None:
    """Over all blocks in SOFT, inside the last stage in CvT; drop path where SOFT's code has
    dropout.
    """
    rates = [
        [
            getattr(block.drop_path, "drop_prob", 0.0)
            for stage in small(host, drop_path_rate=0.2).stages
            for block in stage.blocks
        ]
        for host in HOSTS
    ]
    assert rates[0] == pytest.approx([0.0, 0.0, 0.0, 0.2])
    assert rates[1] == ramp(0.2, 5) == pytest.approx([0.0, 0.05, 0.1, 0.15, 0.2])


@each_host
def test_exp_free_with_another_activation(host: str) -> None:
    more = {"last_stage": "sima"} if host.startswith("soft") else {}
    for act in ("relu", "hard_swish"):
        assert softless.cost(small(host, act=act, **more), 64).transcendentals == {}
    # QuickGELU's sigmoid, tanh and erf
    assert softless.cost(small(host, **more), 64).transcendentals


@each_host
def test_weight_decay_and_groups(host: str) -> None:
    model = small(host, "soft" if host.startswith("soft") else "sima")
    listed = no_weight_decay(model)
    last = len(model.stages) - 1
    assert f"stage{last}.cls_token" in listed
    if host.startswith("soft"):
        assert {
            "stage0.pos_embed",
            "stage3.pos_embed",
            "stage0.blocks.0.attn.learned.norm_weight",
        } <= listed
    from timm.optim import create_optimizer_v2

    groups = create_optimizer_v2(
        model, opt="adamw", lr=1e-3, weight_decay=0.05, layer_decay=0.5
    ).param_groups
    assert len({group["lr_scale"] for group in groups}) > 2


@each_host
def test_a_batch_of_one_and_attention_that_counts(host: str) -> None:
    model: Any = lively(small(host), image())
    with torch.no_grad():
        assert_near(model(image()[:1]), model(image())[:1], 2e-6)
        whole = model(image())
        for stage in model.stages:
            for attention in stage.attentions():
                attention.proj.weight.zero_()
        assert error(model(image()), whole) > 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "soft_pyramid_tiny_224"}, "host without an operator of its own: pass op="),
        ({"name": "soft_tiny_224", "op": "sima"}, "name the host, 'soft_pyramid_tiny_224'"),
        ({"name": "cvt_13_224", "op": "xca"}, "no place in CvT"),
        ({"name": "cvt_13_224", "op": "sima", "lpi": False}, "has no local patch interaction"),
        ({"name": "cvt_13_224", "op": "sima", "pretrained": True}, "no released weights"),
        ({"name": "soft_tiny_224", "img_size": 100}, "image is 100 x 100"),
        ({"name": "soft_tiny_224", "last_stage": "smia"}, re.escape("no operator named 'smia'")),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model(**arguments)
