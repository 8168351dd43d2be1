"""The hosts: timm's numbers with timm's attention, every operator in every host, and what timm's
users call.
"""

import itertools
from typing import Any

import pytest
import timm
import torch
from torch import nn

import softless
from softless import OPERATORS, UsageError
from softless.layers import LPI, Attention, ClassAttention
from softless.models import no_weight_decay
from tests.models.lively import lively
from tests.ops.draw import assert_near

SIMA_VIT, SIMA_XCIT = "sima_deit_tiny_patch16_224", "sima_xcit_tiny_12_p16_224"
both = pytest.mark.parametrize("name", [SIMA_VIT, SIMA_XCIT])
create_model: Any = softless.create_model  # timm models have methods that torch.nn.Module does not
TINY: dict[str, Any] = {"depth": 2, "num_classes": 7, "embed_dim": 48, "num_heads": 3}


def image(height: int = 32, width: int = 48, channels: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, channels, height, width, generator=torch.Generator().manual_seed(3))


def test_vit_with_softmax_is_timms() -> None:
    theirs = timm.create_model("deit_tiny_patch16_224", dynamic_img_size=True, **TINY).eval()
    ours = lively(create_model("deit_tiny_patch16_224", op="softmax", **TINY), image())
    theirs.load_state_dict(ours.state_dict())
    assert_near(ours(image()), theirs(image()), 1e-5)


@pytest.mark.parametrize("name", ["xcit_tiny_12_p16_224", "xcit_nano_12_p8_224"])
def test_xcit_with_xca_is_timms(name: str) -> None:
    """Stem, positions, blocks and class attention, with layer scales near 1; only the temperature
    has another name.
    """
    theirs = timm.create_model(name, **TINY).eval()
    ours = lively(create_model(name, op="xca", **TINY), image())
    theirs.load_state_dict({
        key.replace("learned.temperature", "temperature"): value
        for key, value in ours.state_dict().items()
    })
    assert_near(ours(image()), theirs(image()), 1e-5)


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize(
    "host",
    [
        "deit_tiny_patch16_224",
        "vit_small_patch32_224",
        "deit_tiny_distilled_patch16_224",
        "xcit_nano_12_p8_224",
    ],
)
def test_every_operator_in_every_host(host: str, op: str) -> None:
    size = (64, 96)
    model = create_model(host, op=op, depth=1, num_classes=7)
    found = [module for module in model.modules() if isinstance(module, Attention)]
    assert [module.op.name for module in found] == [op]
    model(image(*size)).square().sum().backward()
    assert all(p.grad is not None for p in found[0].parameters())
    xcit = host.startswith("xcit")
    assert any(isinstance(m, ClassAttention) for m in model.modules()) == (
        xcit and OPERATORS[op].class_row is not None
    )


@both
def test_options_reach_the_model(name: str) -> None:
    model = create_model(
        name, depth=2, act="relu", num_heads=1, token_scale="tokens", order="channels"
    )
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    assert all(
        module.num_heads == 1 and module.options == {"token_scale": "tokens", "order": "channels"}
        for module in attentions
    )
    rows = [module for module in model.modules() if isinstance(module, ClassAttention)]
    assert all(module.options == {"token_scale": "tokens"} for module in rows)
    assert len(rows) == (2 if "xcit" in name else 0)
    assert not [module for module in model.modules() if isinstance(module, nn.GELU)]
    # XCiT's positions
    assert softless.cost(model, 32).transcendentals.keys() <= {"trigonometric", "power"}
    with pytest.raises(UsageError, match="no option"):
        create_model("deit_tiny_patch16_224", op="sima_l2", token_scale="tokens")


def test_xcit_without_lpi() -> None:
    model = create_model(SIMA_XCIT, lpi=False, **TINY)
    assert not [module for module in model.modules() if isinstance(module, LPI)]
    assert not [
        key for key in model.state_dict() if "local_mp" in key or "norm3" in key or "gamma3" in key
    ]
    model(image()).sum().backward()
    with pytest.raises(UsageError, match="option of XCiT hosts"):
        create_model("deit_tiny_patch16_224", op="sima", lpi=False)
    with pytest.raises(UsageError, match="op='xca'"):
        create_model("xcit_tiny_12_p16_224", lpi=False)


@both
def test_any_size_and_channels(name: str) -> None:
    model = create_model(name, in_chans=5, **TINY).eval()
    for height, width in ((16, 16), (32, 48), (224, 16), (64, 240)):
        assert model(image(height, width, channels=5)).shape == (2, 7)
    for height, width in ((225, 300), (7, 500), (1, 1)):
        with pytest.raises(
            UsageError, match=f"image is {height} x {width} but patches are 16 x 16"
        ):
            model(image(height, width, channels=5))


@both
def test_features_only(name: str) -> None:
    model: Any = timm.create_model(
        name, features_only=True, out_indices=(0, 1), depth=2, embed_dim=48, num_heads=3
    )
    assert model.feature_info.channels() == [48, 48]
    assert model.feature_info.reduction() == [16, 16]
    assert [tuple(x.shape) for x in model(image())] == [(2, 48, 2, 3)] * 2


@pytest.mark.parametrize(
    "name", ["deit_tiny_patch16_224", "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"]
)
@pytest.mark.parametrize("op", ["sima", "cosformer2d", "linformer"])
def test_features_of_a_host_with_another_operator(name: str, op: str) -> None:
    """The tokens of the blocks of the same model built whole, its attention told the grid."""
    options = {**TINY, "img_size": 64}
    features = create_model(name, op=op, features_only=True, out_indices=(0, 1), **options).eval()
    whole = create_model(name, op=op, **options).eval()
    lively(features, image(64, 64))
    whole.load_state_dict(features.model.state_dict(), strict=False)
    expected = whole.forward_intermediates(image(64, 64), indices=[0, 1], intermediates_only=True)
    for found, wanted in zip(features(image(64, 64)), expected, strict=True):
        assert_near(found, wanted, 1e-6)


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", SIMA_VIT, SIMA_XCIT, "sima_cvt_13_224"])
def test_features_of_blocks_that_there_are_not(name: str) -> None:
    op = None if name.startswith("sima") else "sima"
    with pytest.raises(
        UsageError, match=r"features_only of '.*': .*out of range.*; name blocks that there are"
    ):
        create_model(name, op=op, features_only=True, out_indices=(90,))


@both
def test_forward_intermediates(name: str) -> None:
    model = create_model(name, **TINY).eval()
    final, middle = model.forward_intermediates(image(), indices=[0, 1])
    assert [tuple(x.shape) for x in middle] == [(2, 48, 2, 3)] * 2
    assert_near(final, model.forward_features(image()), 1e-6)


@both
def test_set_input_size(name: str) -> None:
    model = create_model(name, **TINY).eval()
    model.set_input_size((96, 64))
    assert tuple(model.patch_embed.img_size) == (96, 64)
    assert model.patch_embed.num_patches == 24
    assert model(image(96, 64)).shape == (2, 7)


def test_set_input_size_refuses() -> None:
    model = create_model(SIMA_XCIT, **TINY)
    with pytest.raises(UsageError, match="multiples of 16"):
        model.set_input_size((100, 64))
    with pytest.raises(UsageError, match="this stem has patches of 16"):
        model.set_input_size(patch_size=8)


@both
def test_reset_classifier(name: str) -> None:
    model = create_model(name, **TINY)
    model.reset_classifier(3)
    assert model(image()).shape == (2, 3)
    model.reset_classifier(0)
    assert model(image()).shape == (2, 48)
    assert create_model(name, global_pool="avg", **TINY)(image()).shape == (2, 7)


@both
def test_drop_path(name: str) -> None:
    """XCiT's rate is the same in all blocks, as published; ViT's grows over them, as timm has
    it.
    """
    model = create_model(name, drop_path_rate=0.2, **{**TINY, "depth": 3})
    rates = [
        block.drop_path.drop_prob
        if hasattr(block, "drop_path")
        else getattr(block.drop_path1, "drop_prob", 0.0)
        for block in model.blocks
    ]
    assert rates == pytest.approx([0.2] * 3 if "xcit" in name else [0.0, 0.1, 0.2])


def test_weight_decay() -> None:
    assert {"cls_token", "pos_embed"} <= no_weight_decay(create_model(SIMA_VIT, **TINY))
    listed = no_weight_decay(create_model("xcit_nano_12_p16_224", op="xca", **TINY))
    assert {
        "blocks.0.attn.learned.temperature",
        "blocks.1.attn.learned.temperature",
        "cls_token",
    } <= listed


def test_weights_of_a_softmax_vit_load() -> None:
    softmax = timm.create_model("deit_tiny_patch16_224", **TINY)
    assert create_model(SIMA_VIT, **TINY).load_state_dict(softmax.state_dict()) is not None


def test_saved_weights_load_from_a_folder(tmp_path: Any) -> None:
    """timm's own `local-dir:` with safetensors, as any timm model."""
    model = create_model(SIMA_XCIT, **TINY).eval()
    timm.models.save_for_hf(model, tmp_path, model_args=TINY, safe_serialization=True)
    again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    assert again(image()).equal(model(image()))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"name": "sima_deit_smal_patch16_224"},
            (
                "no model named 'sima_deit_smal_patch16_224'. Did you mean "
                "'sima_deit_small_patch16_224'"
            ),
        ),
        ({"name": "deit_tiny_patch16_224", "op": "smia"}, "no operator named 'smia'"),
        (
            {"name": "resnet18", "op": "sima"},
            "'resnet18' has no place for another attention. Hosts: ViT and DeiT.*cvt_13_224",
        ),
        ({"name": SIMA_VIT, "op": "xca"}, "name the host, 'deit_tiny_patch16_224'"),
        ({"name": SIMA_VIT, "act": "rellu"}, "no activation named 'rellu'. Did you mean 'relu'"),
        ({"name": "xcit_nano_12_p16_224", "op": "sima", "pretrained": True}, "no released weights"),
        ({"name": SIMA_XCIT, "patch_size": 14}, "patches of 8 or 16"),
        ({"name": SIMA_XCIT, "img_size": 100}, "image is 100 x 100"),
    ],
)
def test_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_model(**arguments)


def test_attn_drop_is_refused_where_there_is_nothing_to_drop() -> None:
    for name, op in itertools.product(
        ("deit_tiny_patch16_224", "xcit_nano_12_p16_224"), ("sima", "softmax")
    ):
        if OPERATORS[op].drops_weights:
            create_model(name, op=op, attn_drop_rate=0.1, depth=1)
        else:
            with pytest.raises(UsageError, match="no attention weights to drop"):
                create_model(name, op=op, attn_drop_rate=0.1, depth=1)


def test_an_option_of_another_operator_may_be_unset() -> None:
    """What a recipe sets for SimA is unset for its softmax twin with --set
    model.args.token_scale=None.
    """
    model = create_model("deit_tiny_patch16_224", op="softmax", token_scale=None, **TINY)
    found = next(module for module in model.modules() if isinstance(module, Attention))
    assert found.options == {}
    with pytest.raises(UsageError, match="operator 'softmax' has no option token_scale"):
        create_model("deit_tiny_patch16_224", op="softmax", token_scale="tokens", **TINY)


def test_what_starts_as_in_the_published_codes() -> None:
    """DeiT's class token from a normal of 0.02, where timm's starts at 1e-6; the bias of CvT's head
    as torch starts it.
    """
    torch.manual_seed(0)
    for name, op in (("sima_deit_tiny_patch16_224", None), ("deit_tiny_patch16_224", "softmax")):
        token = softless.create_model(name, op=op, depth=1).state_dict()["cls_token"]
        assert float(token.std()) == pytest.approx(0.02, rel=0.2)
    made = softless.create_model("sima_cvt_13_224", depths=(1, 1, 1)).state_dict()
    assert float(made["head.bias"].abs().max()) == pytest.approx(384**-0.5, rel=0.02)
    assert float(made["head.weight"].std()) == pytest.approx(0.02, rel=0.02)
