"""`softless.edge` of ViTs: the same answers as the model, whatever its parts; a part without a form
leaves the model as it is, and says why.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import timm
import torch
from timm.layers import RmsNorm, SwiGLU
from timm.models.vision_transformer import ParallelScalingBlock, VisionTransformer
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import softless
from softless.errors import UsageError
from softless.exporting.forms.attention import attention_form
from softless.exporting.forms.parts import NoForm, Setting
from softless.models.create import create_model
from softless.models.variants import ENTRIES
from tests.exporting.alive import alive
from tests.exporting.forms import BAR, apart, assert_parity, images, vit

NAMES = [name for name, entry in ENTRIES.items() if entry.variant.host == "vit"]


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_vit(name: str) -> None:
    module = assert_parity(create_model(name, depth=2, num_classes=10), images(96, 64))
    assert module.form == "edge"


@pytest.mark.parametrize("op", sorted(softless.OPERATORS))
def test_every_operator(op: str) -> None:
    assert assert_parity(vit(op), images()).form == "edge"


@pytest.mark.parametrize("token_scale", [None, "tokens", 50.5])
@pytest.mark.parametrize("order", ["auto", "tokens", "channels"])
@pytest.mark.parametrize("pool", ["token", "avg"])
def test_scales_and_orders_of_sima(token_scale: Any, order: str, pool: str) -> None:
    model = vit(token_scale=token_scale, order=order, global_pool=pool)
    module = assert_parity(model, images(48, 128), form="edge")
    assert module.setting.size == (48, 128)


ODD: dict[str, Callable[[], Any]] = {
    "norms of q and k": lambda: vit(qk_norm=True),
    "norms of q and k, softmax": lambda: vit("softmax", qk_norm=True),
    "norms of q and k, seqnorm": lambda: vit("seqnorm", qk_norm=True),
    "a norm of the output": lambda: vit(scale_attn_norm=True, token_scale="tokens"),
    "a norm in the MLP": lambda: vit(scale_mlp_norm=True),
    "a gate": lambda: vit(gated=True),
    "a linear gate": lambda: vit(gated="linear"),
    "a gate behind a norm": lambda: vit(gated="silu", scale_attn_norm=True),
    "v_conv by head": lambda: vit(v_conv=5, token_scale=100),
    "v_conv by channel": lambda: vit("softmax", v_conv=3, v_conv_filters="channel"),
    "v_conv shared": lambda: vit("soft", v_conv=3, v_conv_filters="shared"),
    "v_conv, no class token": lambda: vit(v_conv=3, class_token=False, global_pool="avg"),
    "v_conv, seqnorm": lambda: vit("seqnorm", v_conv=3),
    "a norm ahead": lambda: vit(pre_norm=True),
    "registers": lambda: vit(reg_tokens=3),
    "registers without positions": lambda: vit(reg_tokens=2, no_embed_class=True),
    "no positions": lambda: vit(pos_embed="none"),
    "largest": lambda: vit(global_pool="max"),
    "largest of normalised": lambda: vit(global_pool="max", fc_norm=False),
    "largest and mean": lambda: vit(global_pool="avgmax"),
    "all tokens": lambda: vit(global_pool=""),
    "mean of normalised": lambda: vit(global_pool="avg", fc_norm=False),
    "a norm behind the class token": lambda: vit(fc_norm=True),
    "mean with what is ahead": lambda: vit(
        global_pool="avg", pool_include_prefix=True, reg_tokens=2
    ),
    "no last norm": lambda: vit(final_norm=False),
    "no classes": lambda: vit(num_classes=0),
    "no classes, mean": lambda: vit(num_classes=0, global_pool="avg"),
    "no classes, all tokens": lambda: vit(num_classes=0, global_pool=""),
    "no classes, largest of normalised": lambda: vit(
        num_classes=0, global_pool="max", fc_norm=False
    ),
    "oblong patches": lambda: vit(patch_size=(8, 16)),
    "layer scale": lambda: vit(init_values=1e-5),
    "a norm of patches": lambda: vit(embed_norm_layer="layernorm"),
    "RMS norms": lambda: vit(norm_layer=RmsNorm),
    "torch's own norms": lambda: vit(norm_layer=nn.LayerNorm),
    "norms without weights": lambda: vit(
        norm_layer=partial(nn.LayerNorm, elementwise_affine=False)
    ),
    "norms without biases": lambda: vit(norm_layer=partial(nn.LayerNorm, bias=False)),
    "no bias of q, k and v": lambda: vit(qkv_bias=False),
    "one size alone": lambda: vit(dynamic_img_size=False),
    "one size alone, no positions": lambda: vit(dynamic_img_size=False, pos_embed="none"),
    "ReLU": lambda: vit(act="relu"),
    "SiLU": lambda: vit(act_layer="silu"),
    "xca of one head": lambda: vit("xca", num_heads=1),
    "SOFT by strided tokens": lambda: vit("soft", sampling="strided"),
    "SOFT by random tokens": lambda: vit("softnorm", sampling="random", ratio=3),
    "timm's attention": lambda: timm.create_model(
        "vit_tiny_patch16_224", depth=2, num_classes=7, img_size=(64, 96)
    ),
    "timm's attention with norms": lambda: VisionTransformer(
        img_size=(64, 96),
        embed_dim=48,
        depth=2,
        num_heads=4,
        num_classes=7,
        qk_norm=True,
        scale_attn_norm=True,
    ),
}


@pytest.mark.parametrize("name", ODD)
def test_odd_parts_are_right(name: str) -> None:
    assert assert_parity(ODD[name](), images(), form="edge").form == "edge"


@pytest.mark.parametrize("op", ["sima", "xca", "soft", "linformer"])
def test_one_channel_and_patches_of_eight(op: str) -> None:
    # windows of four: at 24 bottleneck tokens float32 itself leaves 1e-5
    options: dict[str, Any] = {"ratio": 4} if op == "soft" else {}
    model = vit(op, in_chans=1, patch_size=8, **options)
    assert_parity(model, images(64, 96, channels=1), form="edge")


SWAPPED: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"img_size": (64, 96)},
    "deit3_small_patch16_224": {"img_size": (64, 96)},
    "deit_tiny_distilled_patch16_224": {"img_size": (64, 96)},
    "vit_small_patch14_reg4_dinov2": {"img_size": (56, 84), "dynamic_img_size": True},
}


@pytest.mark.parametrize("op", ["sima", "cosformer2d", "soft", "softmax"])
@pytest.mark.parametrize("name", SWAPPED)
def test_timm_models_that_were_swapped(name: str, op: str) -> None:
    model = timm.create_model(name, depth=2, num_classes=7, **SWAPPED[name])
    softless.swap(model, op)
    assert_parity(model, images(*SWAPPED[name]["img_size"]), form="edge")


def test_an_image_that_timm_pads() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", depth=2, num_classes=7, dynamic_img_size=True, dynamic_img_pad=True
    )
    assert_parity(model, images(70, 50), form="edge")


def test_what_drops_in_training_does_nothing_here() -> None:
    rates: dict[str, Any] = dict.fromkeys(
        ("drop_rate", "pos_drop_rate", "proj_drop_rate", "drop_path_rate"), 0.5
    )
    model = alive(vit(patch_drop_rate=0.5, **rates), images()).train()
    before = {name: x.clone() for name, x in model.state_dict().items()}
    module = softless.edge(model, form="edge")
    assert apart(module, model, images()) <= BAR
    assert model.training
    assert all(part.training for part in model.modules())
    assert not any(part.training for part in module.modules())
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert {x.data_ptr() for x in module.parameters()}.isdisjoint(
        x.data_ptr() for x in model.parameters()
    )


@pytest.mark.parametrize("op", ["sima", "sima_l2", "xca", "relu_linear", "seqnorm"])
def test_a_channel_of_zeros_gives_zero(op: str) -> None:
    """The eps of the norms: a zero channel is divided by that, and not by itself."""
    model = alive(vit(op, init_values=0.5), images())
    with torch.no_grad():
        for block in model.blocks:
            for part in range(2):  # of q and of k
                rows = slice(part * 48, part * 48 + 5)
                block.attn.qkv.weight[rows] = 0
                block.attn.qkv.bias[rows] = 0
                block.norm1.bias.zero_()
    assert apart(softless.edge(model, form="edge"), model, images()) <= BAR
    assert apart(softless.edge(model, batch=1), model, images(number=1)) <= BAR


def test_large_means_of_seqnorm() -> None:
    """A bias of a thousand deviations, which the operator takes off again."""
    model = alive(vit("seqnorm"), images())
    with torch.no_grad():
        for block in model.blocks:
            block.attn.qkv.bias.add_(1000)
    assert apart(softless.edge(model, form="edge"), model, images()) <= BAR


# What has no edge form is left as it is


class OwnForward(softless.Attention):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = 2 * super().forward(x, *args, **kwargs)
        return y


class OwnHead(VisionTransformer):
    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        y: Tensor = 2 * super().forward_head(x, pre_logits)
        return y


class OwnLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).tanh()


class OwnBlock(timm.models.vision_transformer.Block):
    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        y: Tensor = x + super().forward(x, *args, **kwargs)
        return y


def _timm(**given: Any) -> Any:
    sizes = {"img_size": (64, 96), "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 7}
    return VisionTransformer(**{**sizes, **given})


def _hooked() -> Any:
    model = vit()
    model.blocks[1].mlp.act.register_forward_hook(lambda _, __, out: 2 * out)
    return model


def _bound() -> Any:
    model = vit()
    model.forward_features = lambda x, **_: 2 * type(model).forward_features(model, x)
    return model


def _parametrized() -> Any:
    model = vit()
    parametrizations.weight_norm(model.blocks[0].attn.proj)
    return model


def _odd_layer() -> Any:
    model = vit()
    model.blocks[1].mlp.fc2 = OwnLinear(192, 48)
    return model


def _own_forward() -> Any:
    model = vit()
    model.blocks[0].attn = OwnForward(48, 4, "sima", qkv_bias=True)
    return model


PLAIN: dict[str, tuple[Callable[[], Any], str]] = {
    "hook": (_hooked, "blocks.1.mlp.act: it has hooks"),
    "method": (_bound, "its forward_features was replaced"),
    "parametrized": (_parametrized, "blocks.0.attn.proj: its weight is computed at every use"),
    "layer": (_odd_layer, "blocks.1.mlp.fc2: it is a OwnLinear"),
    "attention": (_own_forward, "blocks.0.attn: OwnForward has a way of its own (forward)"),
    "head": (lambda: OwnHead(**_sizes()), "OwnHead has a forward of its own"),
    "block": (lambda: _timm(block_fn=OwnBlock), "blocks.0: it is a OwnBlock"),
    "other block": (
        lambda: _timm(block_fn=ParallelScalingBlock),
        "blocks.0: it is a ParallelScalingBlock",
    ),
    "MLP": (lambda: vit(mlp_layer=SwiGLU), "blocks.0.mlp: it is a SwiGLU"),
    "pooling": (lambda: vit(global_pool="map"), "its pooling is 'map'"),
    "rotary": (lambda: vit(rotary=True), "blocks.0.attn: it turns q and k by rotary positions"),
    "norm of q": (
        lambda: vit(qk_norm=True, norm_layer=RmsNorm),
        "blocks.0.attn: q and k go through a RmsNorm",
    ),
    "dropout": (
        lambda: vit("softmax", dropout=0.5),
        "blocks.0.attn: its option dropout=0.5 draws at random",
    ),
    "another host": (
        lambda: timm.create_model("resnet18", num_classes=7),
        "there is no edge form of a ResNet",
    ),
}


def _sizes() -> dict[str, Any]:
    return {"img_size": (64, 96), "embed_dim": 48, "depth": 2, "num_heads": 4, "num_classes": 7}


@pytest.mark.parametrize("name", PLAIN)
def test_a_part_without_a_form_leaves_the_model_as_it_is(name: str) -> None:
    make, why = PLAIN[name]
    model = make().eval()
    module = softless.edge(model, (64, 96))
    assert (module.form, module.why) == ("plain", why)
    if name != "dropout":
        assert apart(module, model, images()) == 0
    with pytest.raises(UsageError, match="this model has no edge form"):
        softless.edge(model, (64, 96), form="edge")


def test_half_precision_is_not_folded() -> None:
    module = softless.edge(vit().half().eval())
    assert module.form == "plain"
    assert module.why == "patch_embed.proj: its weight is float16; take the model in float32"


def test_plain_takes_other_sizes() -> None:
    model = alive(vit(), images())
    module = softless.edge(model, form="plain")
    assert module.why == ""
    assert apart(module, model, images(96, 32)) == 0


def test_an_adapter_is_called() -> None:
    peft = pytest.importorskip("peft")
    model = vit()
    config = peft.LoraConfig(target_modules=["qkv"], r=2, init_lora_weights=False)
    adapted = peft.inject_adapter_in_model(config, model).eval()
    module = softless.edge(adapted)
    assert module.form == "plain"
    assert module.why.startswith("blocks.0.attn.qkv: it is a Linear")
    assert apart(module, adapted, images()) == 0


# What is refused


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"size": (65, 96)}, "image is 65 x 96 but patches are 16 x 16"),
        ({"size": 0}, "size=0: give height and width in pixels"),
        ({"size": (64, 96, 3)}, "give height and width in pixels"),
        ({"size": "large"}, "size='large': give height and width"),
        ({"form": "npu"}, "no form named 'npu'"),
        ({"batch": 2}, "batch=2: 1 for one image at a time"),
        ({"images": torch.zeros(2, 3, 32, 32)}, r"images is \(2, 3, 32, 32\): it must be"),
    ],
)
def test_what_does_not_fit_is_a_sentence(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        softless.edge(vit(), **given)


def test_a_model_of_one_size_is_given_no_other() -> None:
    with pytest.raises(UsageError, match="this model takes images of 64 x 96 alone"):
        softless.edge(vit(dynamic_img_size=False), (96, 64))


def test_a_form_takes_its_images_alone() -> None:
    """96 x 64 pixels are as many patches as 64 x 96: a table added to them would fit."""
    module = softless.edge(vit().eval(), (64, 96))
    with pytest.raises(UsageError, match="takes images of 64 x 96, and these are 96 x 64"):
        module(images(96, 64))
    with pytest.raises(UsageError, match="takes 1 image at a time, and 3 came"):
        softless.edge(vit().eval(), batch=1)(images())


def test_an_optimized_copy_is_refused() -> None:
    fast = softless.optimize(vit().eval(), dtype=torch.float32)
    with pytest.raises(UsageError, match="an optimized model is not exported"):
        softless.edge(fast)


def test_a_model_without_numbers_is_refused() -> None:
    with torch.device("meta"):
        model = vit()
    with pytest.raises(UsageError, match=r"edge: .* has no numbers"):
        softless.edge(model)


def test_where_a_part_stands_is_told() -> None:
    attention = copy.deepcopy(vit().blocks[0].attn)
    attention.qkv = OwnLinear(48, 144)
    with pytest.raises(NoForm, match=r"^qkv: it is a OwnLinear$"):
        attention_form(attention, None, None, (1, 4, 6), Setting((64, 96)))
