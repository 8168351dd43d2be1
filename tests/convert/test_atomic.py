"""A swap is whole or not at all: on any error the model has its bits, flags, hooks, modes and
modules; where it is done, nothing else has changed.
"""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.nn.utils import parametrizations

import softless
from softless import UsageError
from softless.convert import swap
from softless.layers import Attention
from tests.ops.draw import assert_near


def vit(**other: Any) -> Any:
    torch.manual_seed(0)
    return timm.create_model(
        "deit_tiny_patch16_224", **{"depth": 2, "num_classes": 3, "img_size": 64, **other}
    ).eval()


def named(name: str, **other: Any) -> Callable[[], Any]:
    def make() -> Any:
        torch.manual_seed(0)
        return timm.create_model(name, num_classes=3, **other).eval()

    return make


X = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


def with_block_that_reads_qkv() -> Any:
    """A host of a user's own, whose block looks into the attention that it had."""
    model = vit()

    class Block(type(model.blocks[0])):  # type: ignore[misc]
        def forward(self, x: torch.Tensor, **_: Any) -> torch.Tensor:
            assert self.attn.qkv.weight is not None
            found: torch.Tensor = super().forward(x)
            return found

    for block in model.blocks:
        block.__class__ = Block
    return model


def with_large_projections() -> Any:
    model = vit()
    for block in model.blocks:
        block.attn.qkv.weight.data.mul_(1e18)
    return model


def weight_normed_and_large() -> Any:
    model = with_large_projections()
    for block in model.blocks:
        parametrizations.weight_norm(block.attn.proj)
    return model


def without_patch_embedding() -> Any:
    return nn.Sequential(vit().blocks[0])


def beside_an_unused_attention() -> Any:
    model = vit()
    model.unused = copy.deepcopy(model.blocks[0].attn)
    return model


def watched_everywhere() -> Any:
    model = vit()
    for block in model.blocks:
        block.attn.register_forward_hook(lambda *_: None)
    return model


def already() -> Any:
    model = vit()
    swap(model, "sima")
    return model


def on_meta() -> Any:
    with torch.device("meta"):
        return vit()


ERRORS: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "unknown operator": (vit, {"op": "smia"}, "no operator named 'smia'"),
    "unknown option": (vit, {"op": "sima", "ratio": 2}, "no option"),
    "option out of range": (vit, {"op": "sima", "order": "sideways"}, "order"),
    "pattern of nothing": (vit, {"layers": "block.1"}, "no attention module fits"),
    "windows": (named("swin_tiny_patch4_window7_224"), {}, "attends within windows"),
    "biases by position": (named("levit_128s"), {}, "bias by relative position"),
    "no attention": (named("resnet18"), {}, "no attention module that softless knows"),
    "reduced keys, tied operator": (
        named("pvt_v2_b0", depths=(1, 1, 1, 1)),
        {"op": "soft"},
        "many queries attend to few keys",
    ),
    "reduced keys, rows for tokens": (
        named("pvt_v2_b0", depths=(1, 1, 1, 1)),
        {"op": "linformer"},
        "has a row per token",
    ),
    "rotary, reduced keys": (
        named("eva02_tiny_patch14_224", depth=1),
        {"op": "linformer", "reduction": "grid"},
        "its keys are turned by their positions",
    ),
    "rotary (DINOv3), reduced keys": (
        named("vit_small_patch16_dinov3", depth=1),
        {"op": "linformer", "reduction": "grid"},
        "its keys are turned by their positions",
    ),
    "bias that would be lost": (
        named("beit_base_patch16_224", depth=1, embed_dim=96, num_heads=3),
        {},
        "relative position bias",
    ),
    "images of whole numbers": (
        vit,
        {"calibrate": torch.zeros(1, 3, 64, 64, dtype=torch.uint8)},
        "calibrate is uint8",
    ),
    "one image without a batch": (vit, {"calibrate": X[0]}, "calibrate is float32"),
    "no image": (vit, {"calibrate": X[:0]}, "at least one"),
    "no tensor": (vit, {"calibrate": "photos"}, "calibrate is str"),
    "NaN in an image": (vit, {"calibrate": X / 0 * 0}, "holds NaN or infinity"),
    "infinity in an image": (vit, {"calibrate": X / 0}, "holds NaN or infinity"),
    "complex images": (vit, {"calibrate": X.to(torch.complex64)}, "calibrate is complex64"),
    "images without numbers": (
        vit,
        {"calibrate": X.to("meta")},
        r"calibrate is float32 \(2, 3, 64, 64\) on meta",
    ),
    "sparse images": (
        vit,
        {"calibrate": X.to_sparse()},
        "calibrate is float32 .* in torch.sparse_coo",
    ),
    "images of another size": (vit, {"calibrate": X[:, :, :32]}, "does not run on images"),
    "images of other channels": (vit, {"calibrate": X[:, :1]}, "does not run on images"),
    "a branch that is not reached": (
        beside_an_unused_attention,
        {"calibrate": X},
        "unused was not seen at work",
    ),
    "swapped already": (already, {"op": "seqnorm"}, "its attention is softless's already: sima"),
    "patches left out in training": (
        lambda: vit(patch_drop_rate=0.5),
        {"op": "cosformer2d"},
        "leaves some out in training",
    ),
    "no patch embedding": (without_patch_embedding, {"op": "cosformer2d"}, "has no patch_embed"),
    "weights on meta": (on_meta, {"calibrate": X}, "has no numbers"),
    "a block that reads qkv": (
        with_block_that_reads_qkv,
        {"op": "soft"},
        "does not run with 'soft': .*qkv",
    ),
    "no numbers afterwards": (
        with_large_projections,
        {"op": "sima_none"},
        "does not run with 'sima_none': it answers NaN",
    ),
    "no numbers, calibrated": (
        with_large_projections,
        {"op": "sima_none", "calibrate": X},
        "does not run with 'sima_none': it answers NaN",
    ),
    "hooks on every attention": (watched_everywhere, {}, "it has hooks"),
    "a class that is none": (vit, {"op": nn.Linear}, "give an operator's name"),
    "patches left out, rotary": (
        named("eva02_tiny_patch14_224", depth=1, patch_drop_rate=0.5),
        {"op": "soft"},
        "leaves some out in training",
    ),
    "weight-normed, no numbers": (
        weight_normed_and_large,
        {"op": "sima_none", "calibrate": X},
        "does not run with 'sima_none': it answers NaN",
    ),
    "half precision, no numbers": (
        lambda: with_large_projections().to(torch.bfloat16),
        {"op": "sima_none", "calibrate": X},
        "does not run with 'sima_none': it answers NaN",
    ),
    "compiled, images of another size": (
        lambda: torch.compile(vit(), backend="eager"),
        {"calibrate": X[:, :, :32]},
        "does not run on images",
    ),
    "hybrid, images of other channels": (
        named("vit_tiny_r_s16_p8_224", depth=1),
        {"calibrate": X[:, :1]},
        "does not run on images",
    ),
    "talking heads alone": (
        named("cait_xxs24_224", depth=1),
        {"layers": "blocks.*"},
        "talking heads",
    ),
}


def portrait(model: nn.Module) -> dict[str, Any]:
    """All that a failed swap could have touched; tensors by their bits."""
    return {
        "modules": [
            (path, id(one), type(one), one.training) for path, one in model.named_modules()
        ],
        "hooks": [
            (len(one._forward_hooks), len(one._forward_pre_hooks)) for one in model.modules()
        ],
        "flags": [(path, id(x), x.requires_grad, x.dtype) for path, x in model.named_parameters()],
        "bits": {path: x.clone() for path, x in model.state_dict().items()},
        "random": torch.get_rng_state(),
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    for part in ("modules", "hooks", "flags"):
        assert before[part] == after[part], part
    assert before["bits"].keys() == after["bits"].keys()
    real = {path: x for path, x in before["bits"].items() if not x.is_meta}
    assert all(torch.equal(x, after["bits"][path]) for path, x in real.items())
    assert torch.equal(before["random"], after["random"])


@pytest.mark.parametrize("situation", ERRORS)
def test_on_an_error_the_model_is_as_it_was(situation: str) -> None:
    make, arguments, message = ERRORS[situation]
    model = make()
    first: Any = next(model.parameters())
    first.requires_grad_(False)
    next(
        module for module in model.modules() if isinstance(module, nn.LayerNorm | nn.BatchNorm2d)
    ).train()
    before = portrait(model)
    with pytest.raises(UsageError, match=message) as told:
        swap(model, **arguments)
    assert "\n" not in str(told.value)
    assert_same(before, portrait(model))


def frozen(model: Any) -> Any:
    return model.requires_grad_(False)


def in_part() -> Any:
    model = vit()
    swap(model, "sima", layers="blocks.0.*")
    return model


def weight_normed(norm: Any, **other: Any) -> Callable[[], Any]:
    def make() -> Any:
        model = vit(**other)
        for block in model.blocks:
            norm(block.attn.qkv)
            norm(block.attn.proj)
        return model

    return make


def images(side: int, channels: int = 3, number: int = 2) -> torch.Tensor:
    return torch.randn(number, channels, side, side, generator=torch.Generator().manual_seed(2))


TAKEN: dict[str, tuple[Callable[[], Any], dict[str, Any], torch.Tensor]] = {
    "images in half precision": (vit, {"calibrate": X.to(torch.bfloat16)}, X),
    "images in double precision": (vit, {"calibrate": X.double()}, X),
    "images that want gradients": (vit, {"calibrate": X.clone().requires_grad_()}, X),
    "images channels last": (vit, {"calibrate": X.to(memory_format=torch.channels_last)}, X),
    "one image": (vit, {"calibrate": X[:1]}, X),
    "a model in bfloat16": (lambda: vit().to(torch.bfloat16), {"op": "xca", "calibrate": X}, X),
    "a model in float64": (lambda: vit().double(), {"op": "soft", "calibrate": X}, X),
    "a frozen model": (lambda: frozen(vit()), {"calibrate": X}, X),
    "a frozen model, tied": (lambda: frozen(vit()), {"op": "softnorm", "calibrate": X}, X),
    "a model in training": (
        lambda: vit(attn_drop_rate=0.1, drop_path_rate=0.1).train(),
        {"calibrate": X},
        X,
    ),
    "weight norm": (weight_normed(parametrizations.weight_norm), {"calibrate": X}, X),
    "weight norm, tied": (
        weight_normed(parametrizations.weight_norm),
        {"op": "soft", "calibrate": X},
        X,
    ),
    "spectral norm": (weight_normed(parametrizations.spectral_norm), {"calibrate": X}, X),
    "rotary": (
        named("eva02_tiny_patch14_224", depth=1, img_size=56),
        {"calibrate": images(56)},
        images(56),
    ),
    "rotary, DINOv3": (
        named("vit_small_patch16_dinov3", depth=1, img_size=64),
        {"op": "cosformer2d", "calibrate": X},
        X,
    ),
    "hybrid": (named("vit_tiny_r_s16_p8_224", depth=1, img_size=64), {"calibrate": X}, X),
    "patches left out, no grid": (lambda: vit(patch_drop_rate=0.5), {"calibrate": X}, X),
    "NaFlex": (
        named("naflexvit_base_patch16_gap", depth=1, embed_dim=96, num_heads=3),
        {"calibrate": X},
        X,
    ),
    "swapped in part": (in_part, {"op": "seqnorm", "calibrate": X}, X),
    "distilled": (
        named("deit_tiny_distilled_patch16_224", depth=1, img_size=64),
        {"op": "nystrom", "calibrate": X},
        X,
    ),
    "registers": (
        named("vit_small_patch14_reg4_dinov2", depth=1, img_size=56),
        {"op": "cosformer2d", "calibrate": images(56)},
        images(56),
    ),
    "grey images": (
        named("vit_tiny_patch16_224", depth=1, img_size=64, in_chans=1),
        {"calibrate": images(64, 1)},
        images(64, 1),
    ),
    "XCiT": (named("xcit_nano_12_p16_224", depth=1), {"op": "cosformer2d", "calibrate": X}, X),
    "CaiT, class attention": (
        named("cait_xxs24_224", depth=1),
        {"calibrate": images(224, number=1)},
        images(224, number=1),
    ),
    "PVT": (named("pvt_v2_b0", depths=(1, 1, 1, 1)), {"calibrate": X}, X),
    "BEiT, its bias given up": (
        named("beit_base_patch16_224", depth=1, embed_dim=96, num_heads=3),
        {"force": "*", "calibrate": images(224, number=1)},
        images(224, number=1),
    ),
}


@pytest.mark.parametrize("situation", TAKEN)
def test_what_is_taken_changes_attention_alone(situation: str) -> None:
    make, arguments, x = TAKEN[situation]
    model = make()
    before = {path: (id(one), one.training) for path, one in model.named_modules()}
    dtypes = {p.dtype for p in model.parameters()}
    trains = {p.requires_grad for p in model.parameters()}
    found = swap(model, **arguments)
    assert found.swapped
    assert found.untried == ""
    assert all(error <= bare for bare, error in found.errors.values())
    inside = tuple(f"{path}." for path in found.swapped)
    after = {path: (id(one), one.training) for path, one in model.named_modules()}
    beside = lambda seen: {  # noqa: E731
        path: one
        for path, one in seen.items()
        if path not in found.swapped and not path.startswith(inside)
    }
    assert beside(after) == beside(before)
    assert {p.dtype for p in model.parameters()} == dtypes
    assert {p.requires_grad for p in model.parameters()} == trains
    model.eval()
    with torch.no_grad():
        answer = model(x.to(next(iter(dtypes))))
    assert answer.isfinite().all()


def test_an_interruption_undoes_it_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    model = vit()
    before = portrait(model)
    monkeypatch.setattr(Attention, "forward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        swap(model, "sima", calibrate=X)
    assert_same(before, portrait(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    ("op", "options"),
    [
        ("sima", {}),
        ("xca", {}),
        ("linformer", {"reduction": "grid"}),
        ("linformer", {}),
        ("soft", {}),
        ("soft", {"sampling": "conv"}),
        ("performer", {}),
        ("seqnorm", {}),
        ("cosformer2d", {}),
    ],
)
def test_new_tensors_have_the_dtype_of_what_was_there(
    op: str, options: dict[str, Any], dtype: torch.dtype
) -> None:
    model = vit().to(dtype)
    swap(model, op, **options)
    held = [*model.parameters(), *model.buffers()]
    assert {x.dtype for x in held if x.is_floating_point()} == {dtype}
    assert model(X.to(dtype)).dtype == dtype


@pytest.mark.parametrize(
    ("name", "op", "arguments"),
    [
        ("deit_tiny_patch16_224", "sima", {"depth": 1}),
        ("eva02_tiny_patch14_224", "sima", {"depth": 1}),
        ("xcit_nano_12_p16_224", "sima", {"depth": 1}),
        ("cait_xxs24_224", "sima", {"depth": 1}),
        ("deit_tiny_patch16_224", "soft", {"depth": 1}),
    ],
)
def test_what_was_frozen_stays_frozen(name: str, op: str, arguments: dict[str, Any]) -> None:
    model = named(name, **arguments)().requires_grad_(False)
    swap(model, op)
    assert [path for path, x in model.named_parameters() if x.requires_grad] == []
    trained = named(name, **arguments)()
    swap(trained, op)
    assert all(x.requires_grad for x in trained.parameters())


def test_what_is_new_is_named_and_drawn_alike_each_time() -> None:
    one, other = vit(), vit()
    found = swap(one, "soft", sampling="conv")
    assert set(found.new["blocks.0.attn"]) >= {"learned.conv"}
    assert "  new      blocks.0.attn: learned.conv" in str(found)
    torch.manual_seed(7)  # what was drawn before does not count
    swap(other, "soft", sampling="conv")
    assert all(torch.equal(x, other.state_dict()[path]) for path, x in one.state_dict().items())
    assert swap(vit(), "soft").new == {}  # bottleneck tokens are means of tokens
    model: Any = named("xcit_nano_12_p16_224", depth=1)()
    assert swap(model, "xca").new == {}  # the temperature was there


def test_modes_of_single_modules_stay() -> None:
    """Frozen norms of a model in training are in evaluation mode, and stay there."""
    model = vit().train()
    model.blocks[1].norm1.eval()
    model.blocks[0].attn.proj_drop.eval()
    swap(model, "sima", calibrate=X)
    assert [path for path, one in model.named_modules() if not one.training] == [
        "blocks.0.attn.proj_drop",
        "blocks.1.norm1",
    ]


def test_dropout_that_has_no_place_is_said() -> None:
    model = vit(attn_drop_rate=0.1)
    assert (
        swap(model, "sima").lost["blocks.0.attn"]
        == "dropout of weights (0.1): 'sima' makes no weights to drop"
    )
    assert swap(vit(attn_drop_rate=0.1), "softmax").lost == {}


@pytest.mark.parametrize("norm", [parametrizations.weight_norm, parametrizations.spectral_norm])
def test_projections_that_are_computed_keep_being_computed(norm: Any) -> None:
    model, plain = vit(), vit()
    for block in model.blocks:
        norm(block.attn.qkv)
        norm(block.attn.proj)
    if norm is parametrizations.weight_norm:
        swap(plain, "sima", calibrate=X)
        swap(model, "sima", calibrate=X)
        assert_near(model(X), plain(X), 1e-5)
    else:
        swap(model, "sima")
    assert "parametrizations" in model.blocks[0].attn.qkv._modules


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_r_s16_p8_224", {"depth": 1}),
        ("vit_small_patch16_rope_224", {"depth": 1}),
        ("vit_small_patch14_reg4_dinov2", {"depth": 1, "img_size": 56}),
        ("vit_small_patch16_224", {"depth": 1, "dynamic_img_size": True, "in_chans": 1}),
        ("deit_tiny_distilled_patch16_224", {"depth": 1}),
    ],
)
def test_other_hosts_are_tried_on_an_image_of_theirs(name: str, arguments: dict[str, Any]) -> None:
    model = named(name, **arguments)()
    found = swap(model, "sima")
    assert found.swapped
    assert found.untried == ""


def test_a_model_that_takes_no_image_is_swapped_untried_and_that_is_said() -> None:
    model = nn.Sequential(vit().blocks)
    found = swap(model, "sima")
    assert "does not run on images (1, 3, 224, 224) as it was either" in found.untried
    assert "not tried on an image: it does not run" in str(found)
    assert model(torch.randn(1, 17, 192)).shape == (1, 17, 192)


def test_a_swapped_model_is_compiled_and_copied_as_any() -> None:
    model = vit()
    swap(model, "cosformer2d")
    again = copy.deepcopy(model)
    assert torch.equal(again(X), model(X))
    whole: Any = torch.compile(vit(), backend="eager")
    assert "Attention" in swap(whole, "sima").swapped.values()
    expected = vit()
    swap(expected, "sima")
    assert_near(whole(X), expected(X), 1e-6)


def test_images_come_to_the_models_dtype() -> None:
    gains = swap(vit().to(torch.bfloat16), "sima", calibrate=X).gains
    expected = swap(vit(), "sima", calibrate=X).gains
    assert gains.keys() == expected.keys()
    assert all(gains[path] == pytest.approx(expected[path], rel=0.1, abs=0.05) for path in gains)
    assert softless.swap is swap


@pytest.mark.parametrize("op", ["soft", "cosformer2d", "nystrom"])
def test_an_operator_on_the_grid_is_calibrated(op: str) -> None:
    found = swap(vit(), op, calibrate=X)
    assert all(error <= bare for bare, error in found.errors.values())
