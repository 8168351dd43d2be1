"""Attention of other families of timm: softmax in softmax's place changes nothing, grids are right
or refused, what is kept has its true reason, and what is given up is measured.
"""

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import softless
from softless.convert import swap
from softless.convert.layouts import (
    ByHeadAttention,
    ChannelsFirstAttention,
    MapAttention,
    OneBlockAttention,
    UnbiasedAttention,
)
from softless.errors import UsageError
from softless.layers import Attention, ClassAttention
from tests.convert.families import BIASED, FAMILIES, built, images
from tests.ops.draw import assert_near, error

ALL = FAMILIES | BIASED


def ours(model: nn.Module) -> list[Any]:
    return [one for one in model.modules() if isinstance(one, Attention | ClassAttention)]


@torch.no_grad()
def answer(model: Any, x: Tensor) -> Tensor:
    y: Any = model(x)
    while isinstance(y, tuple):
        y = y[0]
    assert isinstance(y, Tensor)
    return y


@pytest.mark.parametrize("family", ALL)
def test_softmax_for_softmax_is_the_identity(family: str) -> None:
    """And attention counts there: another operator in the same places is another answer."""
    model, x = built(family), images(family)
    before, other = answer(model, x), copy.deepcopy(model)
    report = swap(model, "softmax", force="*")
    assert len(report.swapped) == ALL[family][2]
    assert report.untried == ""
    assert_near(answer(model, x), before, 1e-5)
    swap(other, "softmax", force="*")
    for attention in ours(other):
        attention.register_forward_hook(lambda _, __, out: 0 * out)
    assert error(answer(other, x), before) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_dtype_follows_and_what_was_frozen_stays_frozen(family: str, dtype: torch.dtype) -> None:
    model, x = built(family).to(dtype).requires_grad_(False), images(family).to(dtype)
    swap(model, "sima", token_scale="tokens")
    assert {x.dtype for x in model.parameters()} == {dtype}
    assert not any(x.requires_grad for x in model.parameters())
    assert answer(model, x).dtype == dtype


@pytest.mark.parametrize("family", ALL)
def test_sima_is_calibrated_and_gradients_flow(family: str) -> None:
    model, x = built(family), images(family, 3)
    report = swap(model, "sima", force="*", calibrate=x)
    assert set(report.gains) == set(report.swapped)
    assert all(error <= bare for bare, error in report.errors.values())
    model(x).square().sum().backward()
    for attention in ours(model):
        assert all(p.grad is not None and p.grad.isfinite().all() for p in attention.parameters())
        assert attention.proj.in_features if hasattr(attention.proj, "in_features") else True
    again = pickle.loads(pickle.dumps(model))
    assert torch.equal(answer(again, x), answer(model, x))


@pytest.mark.parametrize("family", ["volo", "sam2", "fastvit", "nest", "sam"])
@pytest.mark.parametrize(
    ("op", "options"),
    [("cosformer2d", {}), ("soft", {"ratio": 2, "sampling": "conv"}), ("nystrom", {})],
)
def test_a_map_is_its_own_grid(family: str, op: str, options: dict[str, Any]) -> None:
    """Each new module answers what attention of the same weights answers to the tokens, row by
    row.
    """
    model, x = built(family), images(family)
    swap(model, op, force="*", **options)
    seen: list[tuple[Any, Tensor, Tensor]] = []
    for attention in ours(model):
        attention.register_forward_hook(
            lambda module, args, out: seen.append((module, args[0], out))
        )
    answer(model, x)
    assert seen
    for attention, taken, given in seen:
        _, grid, _ = attention.called_with(taken)
        tokens = attention.tokens_of(taken)
        if family != "nest":
            places = taken.shape[2:] if family == "fastvit" else taken.shape[1:3]
            assert grid == (0, *places)
        with torch.no_grad():
            expected = Attention.forward(attention, tokens, grid=grid)
            turned = Attention.forward(attention, tokens, grid=(0, grid[2], grid[1]))
        assert_near(attention.tokens_of(given), expected, 1e-6)
        if grid[1] != grid[2] and op == "cosformer2d":
            assert error(turned, expected) > 1e-4


def test_a_map_calibrates_on_a_single_image() -> None:
    """Then rows are held out in place of images, of maps as of tokens."""
    model, x = built("volo"), images("volo", 1)
    report = swap(model, "sima", calibrate=x)
    twin, tokens = built("volo"), copy.deepcopy(x)
    assert swap(twin, "sima", calibrate=tokens).gains == report.gains
    assert all(error <= bare <= 1.5 for bare, error in report.errors.values())


def test_places_of_a_map_may_be_masked() -> None:
    """What a masked place holds changes no other."""
    kinds: list[tuple[type[Attention], tuple[int, ...], dict[str, Any]]] = [
        (MapAttention, (2, 3, 5, 32), {}),
        (ChannelsFirstAttention, (2, 32, 3, 5), {}),
        (OneBlockAttention, (2, 1, 16, 32), {"side": 4}),
    ]
    for kind, shape, options in kinds:
        attention: Any = kind(32, 4, "sima", **options)
        x = torch.randn(shape)
        tokens = attention.tokens_of(x).shape[1]
        counts = torch.ones(2, tokens, dtype=torch.bool)
        counts[:, 3] = False
        mask = counts.view(2, 1, 16) if kind is OneBlockAttention else counts.view(2, 3, 5)
        changed = x.clone()
        attention.tokens_of(changed.view(shape))
        place = {MapAttention: (slice(None), 0, 3), OneBlockAttention: (slice(None), 0, 3)}
        changed[place.get(kind, (slice(None), slice(None), 0, 3))] = 9.0
        assert_near(attention(changed, mask=mask), attention(x, mask=mask), 1e-6)
        assert error(attention(changed), attention(x)) > 1e-3
        assert attention(x).shape == x.shape


def test_tied_queries_and_keys_of_efficientformer_are_the_mean_of_both() -> None:
    model, x = built("efficientformer"), images("efficientformer")
    qkv = next(one for path, one in model.named_modules() if path.endswith("token_mixer.qkv"))
    report = swap(model, "efficient", force="*")
    assert report.swapped
    (attention,) = ours(model)
    assert isinstance(attention, ByHeadAttention)
    assert attention.qkv is qkv
    assert answer(model, x).isfinite().all()
    tokens = torch.randn(1, 7, 64)
    tied = ByHeadAttention(64, 8, "softnorm", attn_head_dim=32, value_dim=128, sampling="pool")
    tied.qkv = qkv
    q, k, _ = tied.project(tokens)
    assert k is None
    both = qkv(tokens).view(1, 7, 8, -1).transpose(1, 2)
    assert_near(q, (both[..., :32] + both[..., 32:64]) / 2, 1e-6)


KEPT: dict[str, tuple[str, str, dict[str, Any]]] = {
    "volo's outlook": ("volo", "weights come from the token in the middle", {}),
    "convit's gated positions": ("convit", "gated mean of two softmaxes", {}),
    "hiera's mask units": ("hiera", "attends within mask units", {}),
    "hiera's pooling": ("hiera", "pools its queries", {}),
    "sam2's windows": ("sam2", "within windows that its block cuts", {}),
    "nest's blocks": ("nest", "attends within 16 blocks of the image", {}),
    "tnt's pixels": ("tnt", "attends to the pixels of one patch", {}),
    "twins' groups": ("twins, groups", "within windows that its block cuts", {}),
    "sam's windows": ("sam", "within windows that its block cuts", {"force": "*"}),
    "no class attention": ("crossvit", "has no form for class attention", {"op": "efficient"}),
    "volo's class attention": ("volo", "has no form for class attention", {"op": "efficient"}),
}


@pytest.mark.parametrize("case", KEPT)
def test_what_is_kept_has_its_reason(case: str) -> None:
    family, reason, arguments = KEPT[case]
    report = swap(built(family), **{"op": "sima", **arguments})
    assert report.swapped
    assert any(reason in why for why in report.kept.values()), report


REFUSED: dict[str, tuple[str, str, str]] = {
    "differential": ("vit_dlittle_patch16_reg1_gap_256", "sima", "differential attention"),
    "tiny_vit": (
        "tiny_vit_5m_224",
        "sima",
        "its block cuts, so it never sees all tokens, and a bias",
    ),
    "mvitv2": ("mvitv2_tiny", "sima", "it pools q, k and v by convolutions"),
    "davit": ("davit_tiny", "sima", "channels attend to channels"),
    "efficientformer v2": ("efficientformerv2_s0", "sima", "talking heads"),
    "coat": ("coat_lite_tiny", "sima", "softmax is over the tokens of each key channel"),
    "parallel": ("vit_pwee_patch16_reg1_gap_256", "sima", "from one projection"),
    "coatnet": ("coatnet_pico_rw_224", "sima", "q, k and v are convolutions"),
    "halo": ("halonet26t", "sima", "bias of its queries by position"),
    "gates": ("skresnet18", "sima", "no token attends to another"),
    "efficientformer's values": ("efficientformer_l1", "xca", "wider than its keys"),
    "hiera's grid": ("hiera_tiny_224", "cosformer2d", "tokens stand in the order of mask units"),
    "hiera's sequence": ("hiera_tiny_224", "cosformer", "asks where a token stands"),
    "volo's rows": ("volo_d1_224", "linformer", "a row per token"),
    "metaformer's grid": ("caformer_s18", "cosformer2d", "no patch_embed that could tell"),
    "relpos": ("vit_relpos_small_patch16_224", "sima", "its relative position bias"),
    "shared relpos": ("vit_srelpos_small_patch16_224", "sima", "the layers' common relative"),
    "sam": ("samvit_base_patch16_224", "sima", "bias by its queries and relative positions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals_are_true_sentences_and_touch_nothing(case: str) -> None:
    name, op, reason = REFUSED[case]
    model = timm.create_model(name)
    modules = [(path, id(one)) for path, one in model.named_modules()]
    with pytest.raises(UsageError, match=reason):
        swap(model, op)
    assert [(path, id(one)) for path, one in model.named_modules()] == modules
    assert not any(one._forward_hooks for one in model.modules())


@pytest.mark.parametrize("family", BIASED)
def test_a_bias_goes_by_force_alone_and_its_share_is_measured(family: str) -> None:
    model, x = built(family, biased=True), images(family, 4)
    twin = copy.deepcopy(model)
    with pytest.raises(UsageError, match="bias"):
        swap(twin, "sima")
    report = swap(model, "sima", force="*", calibrate=x)
    assert set(report.lost) == set(report.swapped)
    assert all("bias" in loss for loss in report.lost.values())
    # the same by hand: softmax without the bias on what the first branch was given
    path = next(iter(report.swapped))
    seen: list[tuple[Any, Any, Tensor]] = []
    old = twin.get_submodule(path)
    hook = old.register_forward_hook(
        lambda _, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True
    )
    answer(twin, x)
    hook.remove()
    swap(twin, "softmax", force="*")
    args, kwargs, out = seen[0]
    with torch.no_grad():
        without = twin.get_submodule(path)(*args, **kwargs)
        bias = 0 if old.proj.bias is None else old.proj.bias
        far = (without - out)[2:].norm() / (out - bias)[2:].norm()
        expected = float(far)
    assert expected > 0.03
    assert report.without[path] == pytest.approx(expected, rel=1e-3)
    assert f"softmax's branch without it is {expected:.3g} away" in str(report)
    plain = swap(built(family, biased=True), "sima", force="*")
    assert plain.without == {}
    assert "away" not in str(plain)


def test_weights_keep_their_names() -> None:
    """So a checkpoint of the family loads into the swapped model, where no projection is another's
    mean or order.
    """
    for family in ("convit", "hiera", "sam2", "fastvit", "metaformer", "relpos", "sam"):
        model, plain = built(family), built(family)
        swap(model, "sima", force="*", layers="*")
        bias = [name for name in plain.state_dict() if "rel" in name or "relative" in name]
        kept = [name for name in plain.state_dict() if name not in bias and "_bias" not in name]
        missing = set(kept) - set(model.state_dict())
        assert not missing, (family, missing)


def test_dropout_of_weights_of_reduced_keys_stays() -> None:
    model: Any = timm.create_model("pvt_v2_b0", depths=(1, 1, 1, 1), num_classes=5)
    for block in model.modules():
        if isinstance(getattr(block, "attn_drop", None), nn.Dropout):
            block.attn_drop.p = 0.25
    swap(model, "softmax")
    assert {one.attn_drop for one in ours(model)} == {0.25}


def test_what_wraps_an_attention_is_not_counted_beside_it() -> None:
    from softless.convert.adapters import sites

    maxvit = sites(timm.create_model("maxvit_rmlp_pico_rw_256"))
    assert {type(site.module).__name__ for site in maxvit.values()} == {"AttentionCl"}
    assert len(maxvit) == 22


def test_unbiased_attention_is_called_as_the_blocks_call_theirs() -> None:
    attention, x = UnbiasedAttention(32, 4, "sima"), torch.randn(2, 6, 32)
    bias = torch.randn(4, 6, 6)
    for call in ({"shared_rel_pos_bias": bias}, {"shared_rel_pos": bias}, {}):
        assert torch.equal(attention(x, **call), Attention.forward(attention, x))
    tokens, grid, passed = attention.called_with(x, shared_rel_pos=bias)
    assert (tokens is x, grid, passed) == (True, None, {})


def test_swapped_families_are_audited_without_softmax() -> None:
    model = built("metaformer")
    swap(model, "sima")
    assert softless.audit(model, (64, 96)).kinds.get("softmax", 0) == 0
