"""The convolution of v with each kind of filters, against torch's own on an image; off by
default.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F

import softless
from softless import UsageError
from softless.layers import Attention
from softless.layers.companions import Filters, HeadConv
from tests.ops.draw import assert_near

B, H, D, GRID = 2, 3, 4, (1, 5, 6)


@pytest.mark.parametrize(("filters", "count"), [("head", H), ("channel", H * D), ("shared", D)])
@pytest.mark.parametrize("side", [3, 5])
def test_the_convolution(filters: Filters, count: int, side: int) -> None:
    """One depthwise convolution of H D channels whose filters are repeated as they are shared; the
    class token bypasses it.
    """
    conv = HeadConv(H, side, D, filters).double()
    assert conv.weight.shape == (count, 1, side, side)
    v = torch.randn(B, H, 31, D, dtype=torch.float64)
    image = v[:, :, 1:].permute(0, 1, 3, 2).reshape(B, H * D, 5, 6)
    each = {
        "head": conv.weight.repeat_interleave(D, 0),
        "channel": conv.weight,
        "shared": conv.weight.repeat(H, 1, 1, 1),
    }[filters]
    expected = (
        F.conv2d(image, each, padding=side // 2, groups=H * D).reshape(B, H, D, 30).transpose(2, 3)
    )
    found = conv(v, None, GRID)
    assert_near(found[:, :, 1:], expected, 1e-14)
    assert not bool(found[:, :, :1].any())


@pytest.mark.parametrize("op", ["focused", "mala", "inline", "relu_linear"])
@pytest.mark.parametrize("filters", ["channel", "shared"])
def test_a_module_and_a_model_have_it(op: str, filters: Filters) -> None:
    torch.manual_seed(0)
    module = Attention(H * D, H, op=op, v_conv=3, v_conv_filters=filters).double()
    plain = Attention(H * D, H, op=op).double()
    plain.load_state_dict(module.state_dict(), strict=False)
    x = torch.randn(B, 31, H * D, dtype=torch.float64)
    module.set_grid(GRID)
    assert module.v_conv is not None
    v = module.project(x)[2]
    added = module.proj(module.v_conv(v, None, GRID).transpose(1, 2).flatten(2)) - module.proj.bias
    assert_near(module(x), plain(x) + added, 1e-12)
    assert plain.v_conv is None
    assert filters in repr(module)
    model: Any = softless.create_model(
        "deit_tiny_patch16_224",
        op=op,
        depth=1,
        img_size=32,
        num_classes=2,
        v_conv=3,
        v_conv_filters=filters,
    )
    assert model.construction.arguments["v_conv_filters"] == filters
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 2)


def test_filters_without_a_convolution() -> None:
    with pytest.raises(
        UsageError,
        match=r"v_conv_filters='channel' is of the convolution of v, and there is none: pass "
        r"v_conv=",
    ):
        Attention(12, 3, op="mala", v_conv_filters="channel")
    with pytest.raises(
        UsageError, match=r"no v_conv_filters named 'chanel'\. Did you mean 'channel'"
    ):
        Attention(12, 3, op="mala", v_conv=3, v_conv_filters="chanel")  # type: ignore[arg-type]
