"""The one rule: which layers are read, which are called, and what a layer that must be called gives
in float16.
"""

import functools
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils.flop_counter import FlopCounterMode

import softless
from softless.attention import get
from softless.errors import PrecisionError, UsageError
from softless.layers import Attention, ClassAttention
from softless.layers.conv_attention import ConvProjection
from softless.layers.lpi import LPI
from softless.layers.plain import absent, called, is_nothing, watched, weights_of, why_not
from tests.ops.draw import error


def linear() -> Any:
    return nn.Linear(4, 6)


class Derived(nn.Linear):
    pass


def hooked(name: str) -> Any:
    layer = linear()
    getattr(layer, name)(lambda *_: None)
    return layer


def moved() -> Any:
    layer = linear()
    layer.forward = functools.partial(nn.Linear.forward, layer)
    return layer


def weighed(weight: Any) -> Any:
    layer = linear()
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


NOT_PLAIN = {
    "a derived class": (lambda: Derived(4, 6), "it is a Derived"),
    "another layer": (lambda: nn.Conv2d(3, 3, 3), "it is a Conv2d"),
    "a forward hook": (lambda: hooked("register_forward_hook"), "it has hooks"),
    "a forward pre-hook": (lambda: hooked("register_forward_pre_hook"), "it has hooks"),
    "a full backward hook": (lambda: hooked("register_full_backward_hook"), "it has hooks"),
    "a full backward pre-hook": (lambda: hooked("register_full_backward_pre_hook"), "it has hooks"),
    "a forward of its own": (moved, "its forward was replaced"),
    "a sparse weight": (lambda: weighed(torch.eye(6, 4).to_sparse()), "not an ordinary tensor"),
    "eight bits": (lambda: weighed(torch.zeros(6, 4, dtype=torch.int8)), "its weight is int8"),
    "float8": (
        lambda: weighed(torch.zeros(6, 4).to(torch.float8_e4m3fn)),
        "its weight is float8_e4m3fn",
    ),
    "elsewhere": (lambda: linear().to("meta"), "its weight lies on meta"),
}


@pytest.mark.parametrize("name", NOT_PLAIN)
def test_a_layer_that_somebody_changed_is_not_read(name: str) -> None:
    make, why = NOT_PLAIN[name]
    layer = make()
    assert why in why_not(layer, torch.device("cpu"))
    assert weights_of(layer, torch.device("cpu")) is None


def test_a_parametrization_is_not_read_and_a_plain_layer_is() -> None:
    layer = linear()
    found = weights_of(layer, torch.device("cpu"))
    assert found is not None
    assert found.W is layer.weight
    assert found.b is layer.bias
    nn.utils.parametrizations.weight_norm(layer)
    assert weights_of(layer) is None
    assert weights_of(None) is None
    # shapes are counted as they will run
    assert weights_of(linear().to("meta"), torch.device("meta")) is not None
    assert weights_of(linear().to("meta")) is None


def test_a_hook_on_all_modules_is_somebody_who_waits_and_the_counter_of_flops_is_not() -> None:
    layer, nothing = linear(), nn.Identity()
    assert is_nothing(nothing)
    for register in (register_module_forward_hook, register_module_forward_pre_hook):
        held = register(lambda *_: None)
        try:
            assert weights_of(layer) is None
            assert not is_nothing(nothing)
        finally:
            held.remove()
    with FlopCounterMode(display=False):
        assert weights_of(layer) is not None
    assert not watched(nn.Sequential(nn.ReLU(), nothing))
    nothing.register_forward_hook(lambda *_: None)
    assert not is_nothing(nothing)
    assert watched(nn.Sequential(nn.ReLU(), nothing))


def test_the_rule_stands_in_one_compiled_graph() -> None:
    module = Attention(8, 2, qkv_bias=True).eval()
    module.merged_from = 0.1  # type: ignore[misc]
    x = torch.randn(1, 9, 8)
    with torch.no_grad():
        compiled = torch.compile(module, backend="eager", fullgraph=True)
        assert error(compiled(x), module(x)) < 1e-5


@pytest.mark.parametrize("name", ["q_norm", "k_norm", "norm"])
@pytest.mark.parametrize("training", [False, True])
def test_a_hook_on_an_empty_place_is_called(name: str, training: bool) -> None:
    """Read from the buffer, merged or projected, nobody would call it."""
    module = Attention(8, 2)
    module.merged_from, module.projected_from = 0.1, 1  # type: ignore[misc]
    plain = module.train(training)(torch.ones(1, 9, 8).requires_grad_(training))
    module.get_submodule(name).register_forward_hook(lambda _, __, out: 2 * out + 1)
    with torch.set_grad_enabled(training):
        assert error(module(torch.ones(1, 9, 8)), plain) > 0.1


def test_a_hook_on_the_class_rows_dropout_is_called() -> None:
    module, seen = ClassAttention(8, 2).eval(), []
    module.attn_drop.register_forward_hook(lambda _, __, out: seen.append(out.shape))
    with torch.no_grad():
        module(torch.randn(1, 40, 8))
    assert seen == [(1, 2, 1, 40)]


# Layers that are called in float16


@pytest.mark.parametrize("lift", [2.0**11, 2.0**-6])
def test_a_layer_that_must_be_called_is_scaled_down_behind_its_product(lift: float) -> None:
    layer = nn.Linear(16, 8).half().eval()
    o = torch.randn(2, 30, 16)
    exact = nn.functional.linear(o.double() / lift, layer.weight.double(), layer.bias.double())
    assert error(called(layer, o.half(), lift), exact) < 2e-3


def test_a_layer_that_is_no_product_and_sum_is_refused_and_not_scaled() -> None:
    layer: Any = nn.Sequential(nn.Linear(16, 8), nn.GELU()).half().eval()
    with pytest.raises(PrecisionError, match="no product and a sum"):
        called(layer, 3 * torch.randn(2, 30, 16).half(), 2.0**11)


def test_softs_convolution_in_half_calls_a_projection_that_is_hooked() -> None:
    """Its output is past what float16 holds, and no lift is known beforehand."""
    torch.manual_seed(0)
    module = Attention(64, 1, "soft", ratio=2, sampling="conv").eval()
    module.set_grid((0, 6, 6))
    x = torch.randn(1, 36, 64)
    assert get("soft").half_refusal is not None
    with torch.no_grad():
        want = module.half()(x.half())
        module.proj.register_forward_hook(lambda _, __, out: out)
        assert error(module(x.half()).float(), want.double()) < 1e-2


# Layers without numbers

PLACES: dict[str, Any] = {
    "qkv": (lambda: Attention(8, 2), "qkv", (1, 9, 8)),
    "proj": (lambda: Attention(8, 2), "proj", (1, 9, 8)),
    "class attention": (lambda: ClassAttention(8, 2), "proj", (1, 9, 8)),
    "the patches of a ViT": (
        lambda: softless.create_model("sima_deit_tiny_patch16_224", depth=1),
        "patch_embed.proj",
        (1, 3, 32, 32),
    ),
    "the stem of XCiT": (
        lambda: softless.create_model("sima_xcit_tiny_12_p16_224", depth=1),
        "patch_embed.proj.2.0",
        (1, 3, 32, 32),
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_a_layer_without_numbers_is_named(name: str) -> None:
    """Of a convolution on "meta" torch makes zeros, of a product what was in memory."""
    make, path, shape = PLACES[name]
    model = make().eval()
    model.get_submodule(path).to("meta")
    assert absent(model) == path
    last = path.removeprefix("patch_embed.")
    with (
        torch.no_grad(),
        pytest.raises(UsageError, match=rf"the weight of '{last}' has no numbers.*assign=True"),
    ):
        model(torch.zeros(shape))
    whole = make().to("meta")
    assert absent(whole)
    assert whole(torch.zeros(shape, device="meta")).device.type == "meta"


def test_convolutions_of_tokens_without_numbers_are_named() -> None:
    x = torch.randn(1, 16, 8)
    lpi, projection = LPI(8).eval(), ConvProjection(8, 3, 1).eval()
    lpi.conv2.to("meta")
    projection.conv.to("meta")
    with pytest.raises(UsageError, match="the weight of 'conv2' has no numbers"):
        lpi(x, 4, 4)
    with pytest.raises(UsageError, match="the weight of 'conv' has no numbers"):
        projection(x, (0, 4, 4))
    for build in ({"v_conv": 3}, {"op": "linformer", "reduction": "grid", "ratio": 2}):
        module: Any = Attention(8, 2, tokens=16, **build)
        module.set_grid((0, 4, 4))
        (module.v_conv or module.reduction.conv).to("meta")
        with pytest.raises(UsageError, match="has no numbers"):
            module(x)
