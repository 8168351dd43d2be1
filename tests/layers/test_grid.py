"""What an attention module must be told about its tokens, and the parts of it that look at their
grid.
"""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import softless
from softless import UsageError
from softless.layers import Attention
from softless.layers.companions import HeadConv, Reduction
from tests.ops.draw import assert_near, error

create_model: Any = softless.create_model
TINY: dict[str, Any] = {"depth": 2, "num_classes": 7, "embed_dim": 48, "num_heads": 3}


def image(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(3))


def told(model: nn.Module) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


# Companions


def test_head_conv_by_hand() -> None:
    """One filter per head for all its channels, zero padding, nothing for the prefix token."""
    v = torch.randn(2, 3, 1 + 4 * 5, 6, dtype=torch.float64)
    conv = HeadConv(3, 3, dtype=torch.float64)
    out = conv(v, None, (1, 4, 5))
    assert not bool(out[:, :, 0].any())
    padded = torch.nn.functional.pad(v[:, :, 1:].unflatten(2, (4, 5)), (0, 0, 1, 1, 1, 1))
    for head, row, column, channel in ((0, 0, 0, 0), (1, 2, 3, 5), (2, 3, 4, 1)):
        window = padded[1, head, row : row + 3, column : column + 3, channel]
        expected = (window * conv.weight[head, 0]).sum()
        assert_near(out[1, head, 1 + 5 * row + column, channel], expected, 1e-12)


def test_head_conv_under_a_mask() -> None:
    """Padding at the right and below, masked: the same as without it."""
    v = torch.randn(2, 3, 1 + 4 * 5, 6, dtype=torch.float64)
    conv = HeadConv(3, 3, dtype=torch.float64)
    keep = torch.zeros(4, 5, dtype=torch.bool)
    keep[:3, :4] = True
    mask = torch.cat([torch.ones(1, dtype=torch.bool), keep.flatten()]).expand(2, -1)
    dirty = v.masked_fill(~mask[:, None, :, None], float("nan"))
    out = conv(dirty, mask, (1, 4, 5))
    small = conv(v[:, :, mask[0]], None, (1, 3, 4))
    assert_near(out[:, :, mask[0]], small, 1e-12)
    assert not bool(out[:, :, ~mask[0]].any())


def test_an_even_side_is_refused() -> None:
    with pytest.raises(UsageError, match="v_conv=4: the side of the convolution must be odd"):
        Attention(24, 4, v_conv=4)


def test_reduction_by_hand() -> None:
    """Convolution with stride, then LayerNorm; the prefix token as it is; what windows leave over
    unread.
    """
    x = torch.randn(2, 1 + 5 * 4, 6, dtype=torch.float64)
    reduce = Reduction(6, 2, dtype=torch.float64)
    few, mask = reduce(x, None, (1, 5, 4))
    assert mask is None
    assert few.shape == (2, 1 + 2 * 2, 6)
    assert few[:, 0].equal(x[:, 0])
    cells = x[1, 1:].unflatten(0, (5, 4))[2:4, 0:2]  # the window in the second row, first column
    made = torch.einsum("oiab,abi->o", reduce.conv.weight, cells) + reduce.state_dict()["conv.bias"]
    assert_near(few[1, 1 + 2], reduce.norm(made), 1e-12)


def test_reduction_under_a_mask() -> None:
    x = torch.randn(1, 16, 6, dtype=torch.float64)
    reduce = Reduction(6, 2, dtype=torch.float64)
    keep = torch.ones(4, 4, dtype=torch.bool)
    keep[2:] = False
    keep[0, 1] = False
    mask = keep.flatten()[None]
    few, seen = reduce(x.masked_fill(~mask[..., None], float("nan")), mask, (0, 4, 4))
    assert seen is not None
    assert seen.tolist() == [[True, True, False, False]]
    zeroed, _ = reduce(x.masked_fill(~mask[..., None], 0)[:, :8], None, (0, 2, 4))
    assert_near(few[:, :2], zeroed, 1e-12)
    with pytest.raises(UsageError, match=r"grid 1 x 4 has no window of 2 x 2"):
        reduce(x[:, :4], None, (0, 1, 4))


# Telling


def test_a_module_that_was_not_told_raises() -> None:
    """It never infers a square: timm's blocks pass tokens alone."""
    bare: Any = timm.create_model(
        "deit_tiny_patch16_224",
        attn_layer=softless.SimA.with_options(v_conv=3),
        img_size=64,
        depth=1,
    )
    with pytest.raises(
        UsageError,
        match=r"v_conv needs the grid of the tokens.*set_grid\(\(prefix_tokens, height, width\)\)",
    ):
        bare(image(64, 64))
    for module in told(bare):
        module.set_grid((1, 4, 4))
    assert bare(image(64, 64)).shape == (2, 1000)
    told(bare)[0].set_grid((1, 4, 5))
    with pytest.raises(UsageError, match=r"the grid told is 1 \+ 4 x 5 tokens, and 17 came"):
        bare(image(64, 64))


@pytest.mark.parametrize(
    "host", ["deit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "xcit_nano_12_p16_224"]
)
def test_hosts_tell_the_grid_of_every_image(host: str) -> None:
    """96 x 32 and 32 x 96 pixels are as many tokens on different grids; each pass is told its own,
    in any order, in a copy too.
    """
    model = create_model(host, op="sima", v_conv=3, img_size=96, **TINY).eval()
    tall, wide = image(96, 32), image(32, 96)
    prefix = getattr(model, "num_prefix_tokens", 1) if host.startswith("deit") else 0

    def seen(picture: Tensor, of: nn.Module) -> list[tuple[int, int, int]]:
        grids: list[tuple[int, int, int]] = []
        hooks = [
            m.v_conv.register_forward_pre_hook(lambda _, given: grids.append(given[2]))
            for m in told(of)
            if m.v_conv
        ]
        of(picture)
        for hook in hooks:
            hook.remove()
        return grids

    for picture, grid in ((tall, (prefix, 6, 2)), (wide, (prefix, 2, 6)), (tall, (prefix, 6, 2))):
        assert seen(picture, model) == [grid] * 2
    again = copy.deepcopy(model)
    assert seen(wide, again) == [(prefix, 2, 6)] * 2
    first = model(tall)
    again(wide)
    assert model(tall).equal(first)


def test_the_grid_matters_and_compiles() -> None:
    """One graph for the whole model, on grids of different shapes."""
    model = create_model("deit_tiny_patch16_224", op="sima", v_conv=3, img_size=64, **TINY).eval()
    with torch.no_grad():
        for module in told(model):
            module.proj.weight.mul_(20)
    compiled: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    for size in ((64, 64), (32, 128), (128, 32)):
        assert_near(compiled(image(*size)), model(image(*size)), 1e-5)
    plain = create_model("deit_tiny_patch16_224", op="sima", img_size=64, **TINY).eval()
    plain.load_state_dict(model.state_dict(), strict=False)
    assert error(plain(image(64, 64)), model(image(64, 64))) > 1e-2


def test_v_conv_wants_a_named_operator() -> None:
    with pytest.raises(UsageError, match="v_conv is an option of hosts with a named operator"):
        create_model("deit_tiny_patch16_224", v_conv=3)
