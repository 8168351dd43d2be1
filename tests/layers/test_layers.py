"""XCiT's parts beside timm's: the same numbers, in any memory format, dtype and grid."""

import pytest
import torch
from timm.models import xcit as timm_xcit
from torch import nn

from softless import UsageError
from softless.layers import LPI, ClassAttention, ConvPatchEmbed, FourierPosition, check_size
from tests.ops.draw import assert_near, error


@pytest.mark.parametrize("grid", [(5, 7), (1, 1), (14, 14)])
def test_lpi(grid: tuple[int, int]) -> None:
    theirs, ours = timm_xcit.LPI(12), LPI(12)
    assert theirs.bn.running_mean is not None
    nn.init.normal_(theirs.bn.running_mean)
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, grid[0] * grid[1], 12)
    for training in (True, False):
        assert_near(ours.train(training)(x, *grid), theirs.train(training)(x, *grid), 1e-6)


def test_lpi_copies_no_tokens() -> None:
    """The convolutions see the tokens themselves, channels last, and give back tokens as a view."""
    module, seen = LPI(12).eval(), []
    module.conv1.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    x = torch.randn(2, 35, 12)
    o = module(x, 5, 7)
    assert seen[0].data_ptr() == x.data_ptr()
    assert seen[0].is_contiguous(memory_format=torch.channels_last)
    assert o.is_contiguous()


@pytest.mark.parametrize("grid", [(1, 1), (3, 8), (14, 14)])
def test_positions_are_timms_bit_for_bit(grid: tuple[int, int]) -> None:
    theirs, ours = timm_xcit.PositionalEncodingFourier(dim=24), FourierPosition(24)
    ours.load_state_dict(theirs.state_dict())
    assert ours(2, *grid).equal(theirs(2, *grid))
    assert ours(2, *grid).equal(theirs(2, *grid))  # from the store
    for dtype in (torch.float64, torch.bfloat16):
        assert ours.to(dtype)(1, *grid).dtype == dtype


@pytest.mark.parametrize("patch", [8, 16])
def test_stem(patch: int) -> None:
    theirs = timm_xcit.ConvPatchEmbed(img_size=48, patch_size=patch, in_chans=4, embed_dim=32)
    ours = ConvPatchEmbed(48, patch, in_chans=4, embed_dim=32)
    ours.load_state_dict(theirs.state_dict())
    image = torch.randn(2, 4, 48, 64)
    (x, grid), (y, expected) = ours(image), theirs(image)
    assert grid == expected == (48 // patch, 64 // patch)
    assert_near(x, y, 1e-6)


@pytest.mark.parametrize(
    ("size", "near"),
    [
        ((225, 300), "224 x 304"),
        ((7, 500), "16 x 496"),
        ((1, 1), "16 x 16"),
        ((0, 16), "16 x 16"),
        ((160, 161), "160 x 160"),
    ],
)
def test_a_size_that_is_not_whole_patches(size: tuple[int, int], near: str) -> None:
    message = (
        f"image is {size[0]} x {size[1]} but patches are 16 x 16: height and width must be "
        f"multiples of 16, for example {near}"
    )
    with pytest.raises(UsageError, match=message):
        check_size(*size, (16, 16))


def test_stem_errors() -> None:
    with pytest.raises(UsageError, match="patches of 8 or 16"):
        ConvPatchEmbed(224, 14)
    with pytest.raises(UsageError, match="multiples of 16"):
        ConvPatchEmbed(32, 16)(torch.randn(1, 3, 32, 40))


@pytest.mark.parametrize("op", ["sima", "sima_l2", "sima_none"])
def test_class_attention_is_the_formula(op: str) -> None:
    """a = q^_cls k^^T with norms over all tokens and eps 1e-6, no scale, no softmax (sima.md
    section 5).
    """
    module = ClassAttention(16, 4, op, qkv_bias=True).double()
    x = torch.randn(2, 21, 16, dtype=torch.float64)
    q, k, v = module.qkv(x).reshape(2, 21, 3, 4, 4).permute(2, 0, 3, 1, 4)
    power = {"sima": 1, "sima_l2": 2}.get(op)
    if power:
        q, k = (z / z.norm(power, dim=-2, keepdim=True).clamp_min(1e-6) for z in (q, k))
    row = (q[:, :, 0, None] * k).sum(-1)
    expected = module.proj((row[..., None] * v).sum(2).reshape(2, 1, 16))
    assert_near(module(x), expected, 1e-12)


@pytest.mark.parametrize("op", ["sima", "sima_l2", "sima_none"])
def test_class_attention_by_matrix_is_that_by_row(op: str) -> None:
    """In inference many tokens are read once; not where dropout must act on the row."""
    torch.manual_seed(0)
    module, x = (
        ClassAttention(16, 2, op, qkv_bias=True, attn_drop=0.5).eval(),
        torch.randn(2, 40, 16),
    )
    by_row = module(x).detach()
    with torch.no_grad():
        assert module._takes_matrix(module.qkv(x))
        assert_near(module(x), by_row, 1e-5)
        module.train()
        assert not module._takes_matrix(module.qkv(x))
        assert error(module(x), by_row) > 1e-2


def test_class_attention_needs_a_class_row() -> None:
    with pytest.raises(UsageError, match="no form for class attention"):
        ClassAttention(16, 4, "softmax")


@pytest.mark.parametrize("token_scale", [None, "tokens", 196])
def test_class_attention_keeps_float16_above_2048_tokens(token_scale: str | int | None) -> None:
    module = ClassAttention(32, 1, "sima", token_scale=token_scale).eval()
    x = torch.randn(1, 5000, 32)
    with torch.no_grad():
        module.proj.bias.zero_()
    with torch.autocast("cpu", dtype=torch.float16):
        carried = module(x)
    assert_near(carried, module.double()(x.double()), 2e-2)


@pytest.mark.parametrize(("token_scale", "factor"), [("tokens", 20), (10, 2), (20, 1)])
def test_class_attention_counts_the_tokens_behind_the_class_token(
    token_scale: str | int, factor: float
) -> None:
    """A number that a host was trained at holds for its class attention too: 20 patches there are
    21 tokens here.
    """
    torch.manual_seed(0)
    plain = ClassAttention(16, 4, "sima").double()
    scaled = ClassAttention(16, 4, "sima", token_scale=token_scale).double()
    scaled.load_state_dict(plain.state_dict())
    x, bias = torch.randn(2, 21, 16, dtype=torch.float64), plain.proj.bias
    assert_near(scaled(x) - bias, factor * (plain(x) - bias), 1e-12)


def test_class_attention_refuses_a_scale_that_its_operator_does_not_have() -> None:
    with pytest.raises(UsageError, match="no option of operator 'sima_l2' named 'token_scale'"):
        ClassAttention(16, 4, "sima_l2", token_scale="tokens")
