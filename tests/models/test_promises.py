"""What the documents promise of every model: half precision at every size, masks as timm makes
them, batches of no images.
"""

import re
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import ParallelScalingBlock
from torch import Tensor

import softless
from softless import UsageError
from softless.layers import Attention
from softless.models.kept import softmax_kept
from softless.models.variants import check_host
from softless.tasks.segmentation.model import segmenter
from tests.models.lively import lively
from tests.ops.draw import assert_near, error

create_model: Any = softless.create_model
TINY: dict[str, Any] = {"depth": 1, "num_classes": 3, "embed_dim": 64, "num_heads": 4}


def image(height: int, width: int, batch: int = 1) -> Tensor:
    return torch.randn(batch, 3, height, width, generator=torch.Generator().manual_seed(1))


# Half precision


@pytest.mark.parametrize("grad", [True, False], ids=["gradients", "no_grad"])
@pytest.mark.parametrize("op", ["sima", "sima_l2"])
@pytest.mark.parametrize("host", ["deit_tiny_patch16_224", "xcit_nano_12_p16_224"])
def test_half_precision_above_the_size_that_float16_holds(host: str, op: str, grad: bool) -> None:
    """2,112 tokens; class attention reads them from one matrix where no gradient is asked for, and
    float16 need not hold that.
    """
    model = lively(create_model(host, op=op, **TINY), image(64, 64))
    x = image(704, 768)
    with torch.no_grad():
        expected = model(x)
    half = model.half()
    with torch.set_grad_enabled(grad):
        assert_near(half(x.half()).float(), expected, 1e-2)


# No images


@pytest.mark.parametrize(
    "name",
    ["sima_deit_tiny_patch16_224", "sima_xcit_nano_12_p16_224", "sima_cvt_13_224", "soft_tiny_224"],
)
def test_a_batch_of_no_images(name: str) -> None:
    """Detection crops may be none: no logits for no images, and zero gradients; XCiT's BatchNorm
    has no mean of none to train by.
    """
    depth = (
        {"depths": (1, 1, 1)}
        if "cvt" in name
        else {"depths": (1, 1, 1, 1)}
        if name.startswith("soft")
        else {"depth": 1}
    )
    model = create_model(name, num_classes=3, **depth).eval()
    none = torch.randn(0, 3, 64, 64)
    out = model(none)
    assert out.shape == (0, 3)
    out.sum().backward()
    with torch.inference_mode():
        assert model(none).shape == (0, 3)
        assert softless.optimize(model, dtype=torch.float32)(none).shape == (0, 3)
    model.train()
    if "xcit" in name:
        with pytest.raises(
            UsageError,
            match=r"a batch of no images, \(0, 3, 64, 64\): this model needs at least one",
        ):
            model(none)
    elif "deit" in name:
        assert model(none).shape == (0, 3)


def test_no_images_for_a_host_of_timms_class_is_one_sentence() -> None:
    model = create_model("deit_tiny_distilled_patch16_224", op="sima", **TINY)
    with pytest.raises(UsageError, match="a batch of no images"):
        model(torch.randn(0, 3, 64, 64))


# Masks


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.uint8])
@pytest.mark.parametrize("op", ["sima", "softmax", "cosformer"])
def test_a_mask_of_whole_numbers_is_one_sentence(op: str, dtype: torch.dtype) -> None:
    """Softmax added its ones and zeros to the scores, and said nothing."""
    attention = Attention(24, 4, op=op)
    x = torch.randn(2, 5, 24)
    ones = torch.ones(2, 1, 1, 5, dtype=dtype)
    with pytest.raises(
        UsageError, match=rf"attn_mask is {dtype}: it must be boolean.*attn_mask\.bool\(\)"
    ):
        attention(x, attn_mask=ones)
    with pytest.raises(
        UsageError, match=rf"mask is {dtype} \(2, 5\): it must be torch.bool of shape \(2, 5\)"
    ):
        attention(x, mask=ones[:, 0, 0])
    q = torch.randn(2, 4, 5, 6)
    if op == "softmax":
        with pytest.raises(
            UsageError, match=r"pairwise=.*is not None, a boolean or a floating-point tensor"
        ):
            softless.attend(q, q, q, op=op, pairwise=ones)


def padded(patches: Tensor, valid: Tensor) -> dict[str, Tensor]:
    rows, columns = torch.meshgrid(torch.arange(4), torch.arange(5), indexing="ij")
    places = torch.stack((rows, columns), -1).reshape(1, 20, 2).repeat(2, 1, 1)
    return {"patches": patches, "patch_coord": places, "patch_valid": valid}


@pytest.mark.parametrize("key_only", [False, True], ids=["pairs", "keys"])
@pytest.mark.parametrize("op", ["sima", "xca", "efficient"])
def test_padded_batches_of_naflexvit(op: str, key_only: bool) -> None:
    """timm's mask of a padded batch, valid queries x valid keys, is a token mask: what stands in
    the padding changes nothing.
    """
    torch.manual_seed(0)
    model: Any = timm.create_model(
        "naflexvit_base_patch16_gap",
        depth=1,
        embed_dim=96,
        num_heads=3,
        num_classes=3,
        use_key_only_attn_mask=key_only,
    ).eval()
    softless.swap(model, op)
    valid = torch.ones(2, 20, dtype=torch.bool)
    valid[1, 12:] = False
    patches = torch.randn(2, 20, 768)
    other = torch.where(valid[..., None], patches, torch.randn(2, 20, 768))
    with torch.no_grad():
        y, again = model(padded(patches, valid)), model(padded(other, valid))
        without = model(padded(patches, torch.ones_like(valid)))
    assert_near(again, y, 1e-6)
    assert torch.equal(without[0], y[0])
    assert error(without[1], y[1]) > 1e-3


def test_masks_of_valid_pairs_are_token_masks() -> None:
    """Boolean and additive, by every spelling; a pair that no token mask says stays an error."""
    attention, x = Attention(24, 4, op="sima"), torch.randn(2, 6, 24)
    valid = torch.tensor([[True] * 6, [True, True, False, True, False, False]])
    pairs = (valid[:, :, None] & valid[:, None])[:, None]
    expected = attention(x, mask=valid)
    added = torch.zeros(pairs.shape).masked_fill(~pairs, float("-inf"))
    least = torch.zeros(pairs.shape).masked_fill(~pairs, torch.finfo(torch.float32).min)
    for mask in (pairs, added, least, pairs.expand(-1, 4, -1, -1), pairs[:, 0]):
        assert torch.equal(attention(x, attn_mask=mask), expected)
    lone = pairs.clone()
    lone[1, 0, 0, 3] = False  # one query does not see one token
    blind = pairs.clone()
    blind[1, 0, 0] = False  # a query that counts sees nothing
    heads = pairs.repeat(1, 4, 1, 1)
    heads[0, 2, :, 1] = False
    for wrong in (lone, blind, heads, torch.randn(2, 1, 6, 6)):
        with pytest.raises(UsageError, match="attn_mask differs between queries or heads"):
            attention(x, attn_mask=wrong)


def test_a_mask_inside_a_transform_is_one_sentence_where_it_cannot_be_checked() -> None:
    attention = Attention(24, 4, op="sima")
    x, valid = torch.randn(3, 2, 6, 24), torch.rand(3, 2, 6) > 0.3
    found = torch.func.vmap(lambda x, m: attention(x, attn_mask=m[:, None, None]))(x, valid)
    assert_near(
        found, torch.stack([attention(a, mask=m) for a, m in zip(x, valid, strict=True)]), 1e-5
    )
    with pytest.raises(
        UsageError,
        match=r"cannot be checked inside a compiled or recorded graph or a transform of "
        r"torch\.func",
    ):
        torch.func.vmap(
            lambda x, m: attention(x, attn_mask=m[:, None, :, None] & m[:, None, None])
        )(x, valid)


# What is there already


def test_swap_of_a_softless_model_says_what_it_has() -> None:
    model = create_model("sima_deit_tiny_patch16_224", depth=1)
    with pytest.raises(
        UsageError, match=r"its attention is softless's already: sima; build.*op='xca'"
    ):
        softless.swap(model, "xca")


# What a named operator promises

PARALLEL = (
    "vit_pwee_patch16_reg1_gap_256",
    "vit_dpwee_patch16_reg1_gap_256",
    "vit_base_patch16_xp_224",
    "vit_large_patch14_xp_224",
    "vit_huge_patch14_xp_224",
)


@pytest.mark.parametrize("host", PARALLEL)
def test_a_host_in_which_nothing_is_exchanged_is_refused(host: str) -> None:
    """Five timm ViTs were built with softmax in every block, the operator's options swallowed."""
    with pytest.raises(
        UsageError,
        match=f"'{host}' has no place for another attention: its blocks .* would keep softmax",
    ):
        create_model(host, op="sima", token_scale="tokens")
    with pytest.raises(UsageError, match="has no place for another attention"):
        check_host(host, "sima")


def test_blocks_that_a_caller_chooses_are_looked_at_too() -> None:
    with pytest.raises(
        UsageError, match=r"no block that takes another attention.*leave block_fn= out"
    ):
        create_model("deit_tiny_patch16_224", op="sima", depth=1, block_fn=ParallelScalingBlock)


def test_looking_for_a_place_draws_nothing() -> None:
    torch.manual_seed(0)
    expected = torch.randn(3)
    torch.manual_seed(0)
    check_host("vit_medium_patch16_gap_256", "sima")
    assert torch.equal(torch.randn(3), expected)


KEPT: dict[str, tuple[str, dict[str, Any], int, list[str], str]] = {
    "pool": (
        "vit_base_patch16_siglip_224",
        {"op": "sima", "depth": 1, "embed_dim": 48, "num_heads": 3},
        224,
        ["attn_pool"],
        r"attn_pool \(AttentionPoolLatent\)",
    ),
    "last stage": (
        "soft_tiny_224",
        {"depths": (1, 1, 1, 1)},
        64,
        ["stage3.blocks.0.attn"],
        r"stage3\.blocks\.\*\.attn \(Attention\)",
    ),
    "class attention": (
        "xcit_nano_12_p16_224",
        {"op": "seqnorm", "depth": 1},
        64,
        ["cls_attn_blocks.0.attn", "cls_attn_blocks.1.attn"],
        r"cls_attn_blocks\.\*\.attn \(\w+, 2 times\)",
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_what_keeps_softmax_is_named(name: str) -> None:
    """In what the model says of itself, and in its audit."""
    host, arguments, size, paths, line = KEPT[name]
    model = create_model(host, num_classes=3, **arguments)
    assert list(softmax_kept(model)) == paths
    assert re.search(f"softmax is kept in {line}", str(model.construction))
    found = softless.audit(model, size)
    assert found.kinds["softmax"] > 0
    assert len(found.softmax_kept) == 1
    assert found.softmax_kept[0].split("  ")[0].startswith(paths[0].split(".")[0])
    assert re.search(r"named \w+, and softmax is kept in", str(found))
    assert found.to_dict()["softmax_kept"] == found.softmax_kept


def test_nothing_is_named_where_nothing_is_kept() -> None:
    """Neither where no softmax is left, nor where it was asked for."""
    for op in ("sima", "softmax"):
        model = create_model("deit_tiny_patch16_224", op=op, depth=1, num_classes=3)
        assert softmax_kept(model) == {}
        assert "softmax is kept" not in str(model.construction) + str(softless.audit(model, 64))
    assert softmax_kept(torch.nn.Linear(2, 2)) == {}


def test_a_segmenter_names_the_last_stage_of_its_host() -> None:
    found = segmenter(
        "soft_pyramid_tiny_224", {"op": "sima", "depths": (1, 1, 1, 1), "in_chans": 3}, classes=2
    )
    assert [path.rsplit(".stage", 1)[-1] for path in softmax_kept(found)] == ["3.blocks.0.attn"]


# SOFT in wide heads


@pytest.mark.parametrize("op", ["soft", "softnorm"])
@pytest.mark.parametrize("num_heads", [1, 2, 3, 4, 12])
def test_soft_is_alive_at_its_start(op: str, num_heads: int) -> None:
    """In heads of 16 to 192 channels the branch counts, logits hang on the image, and attention's
    gradient is of the MLP's size.
    """
    model = create_model(
        "deit_tiny_patch16_224", op=op, depth=2, num_classes=10, num_heads=num_heads
    )
    seen: list[float] = []
    model.blocks[0].attn.register_forward_hook(
        lambda _, given, out: seen.append((out.norm() / given[0].norm()).item())
    )
    y = model(image(224, 224, batch=2))
    y.square().sum().backward()
    assert seen[0] > 1e-3
    assert error(y[0], y[1]) > 1e-2
    block = model.blocks[0]
    assert block.attn.proj.weight.grad.norm() > 1e-2 * block.mlp.fc1.weight.grad.norm()


def test_the_published_width_starts_as_published() -> None:
    for channels, expected in ((16, 1.0), (32, 1.0), (64, 0.5)):
        start = Attention(2 * channels, 2, op="soft").state_dict()["learned.norm_weight"]
        assert torch.equal(start, torch.full((channels,), expected))
