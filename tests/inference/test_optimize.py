"""`optimize`: the same answers branch by branch, what its report says, what it refuses, and that
the model it was given is left alone.
"""

import copy
import io
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import softless
from softless.errors import UsageError
from softless.inference import optimize, packed
from softless.inference.layers import Added, KeptPositions, PackedAttention
from softless.inference.packed import FusedConv, PackedLinear
from softless.layers import LPI
from softless.models.create import create_model
from tests.models.lively import branches, lively, zeroed
from tests.ops.draw import assert_near, error

FLOAT = 1e-5  # relative error of logits and of branches in float32
# what any processor packs
PACKS = torch.float32 if packed.why_not(torch.bfloat16, torch.device("cpu")) else torch.bfloat16


def image(height: int = 64, width: int = 96, number: int = 2) -> Tensor:
    return torch.randn(number, 3, height, width, generator=torch.Generator().manual_seed(3))


def vit(**given: Any) -> Any:
    return create_model(
        "deit_tiny_patch16_224", op="sima", depth=2, num_classes=10, dynamic_img_size=True, **given
    )


def layer_scaled() -> Any:
    return create_model(
        "deit3_small_patch16_224",
        op="sima",
        depth=2,
        num_classes=10,
        dynamic_img_size=True,
        no_embed_class=True,
    )


def swapped(host: str, **given: Any) -> Any:
    model = timm.create_model(host, num_classes=10, **given)
    softless.swap(model, "sima")
    return model


MODELS: dict[str, Any] = {
    "vit": vit,
    "vit, layer scale": layer_scaled,
    "vit, average": lambda: vit(global_pool="avg", class_token=False),
    "vit, relu and one head": lambda: vit(act="relu", num_heads=1),
    "vit, softmax of ours": lambda: create_model(
        "deit_tiny_patch16_224", op="softmax", depth=2, num_classes=10, dynamic_img_size=True
    ),
    "vit, seqnorm": lambda: create_model(
        "deit_tiny_patch16_224", op="seqnorm", depth=2, num_classes=10, dynamic_img_size=True
    ),
    "vit, a convolution of v": lambda: vit(v_conv=3),
    "vit, swapped": lambda: swapped("deit_tiny_patch16_224", depth=2, dynamic_img_size=True),
    "xcit": lambda: create_model("xcit_tiny_12_p16_224", op="sima", depth=2, num_classes=10),
    "xcit, patches of 8": lambda: create_model(
        "xcit_nano_12_p8_224", op="sima", depth=2, num_classes=10
    ),
    "xcit, its own attention": lambda: create_model(
        "xcit_tiny_12_p16_224", op="xca", depth=2, num_classes=10
    ),
    "xcit, swapped": lambda: swapped("xcit_nano_12_p16_224", depth=2),
    "cvt": lambda: create_model("cvt_13_224", op="sima", depths=(1, 1, 2), num_classes=10),
    "vit, linformer's reduction": lambda: create_model(
        "deit_tiny_patch16_224",
        op="linformer",
        reduction="grid",
        ratio=2,
        depth=2,
        num_classes=10,
        dynamic_img_size=True,
    ),
    "pyramid without a convolution of v": lambda: create_model(
        "soft_pyramid_tiny_224", op="sima", v_conv=0, depths=(1, 1, 1, 1), num_classes=10
    ),
    "pyramid": lambda: create_model(
        "soft_pyramid_tiny_224", op="sima", depths=(1, 1, 1, 1), num_classes=10
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


def made(name: str, size: Tensor) -> Any:
    torch.manual_seed(0)
    return lively(MODELS[name](), size)


@torch.inference_mode()
def seen(model: nn.Module, paths: list[str], images: Tensor) -> dict[str, Tensor]:
    """What each branch adds to the residual on what it is given, where it adds itself without the
    residual.
    """
    found: dict[str, Tensor] = {}

    def keep(path: str) -> Any:
        def hook(module: Any, args: Any, kwargs: Any, out: Tensor) -> None:
            onto = kwargs.get("onto")
            found[path] = out if onto is None else out.double() - onto.double()

        return hook

    hooks = [
        model.get_submodule(path).register_forward_hook(keep(path), with_kwargs=True)
        for path in paths
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def scaled(model: Any, path: str, branch: Tensor) -> Tensor:
    """A plain model's branch with its layer scale."""
    block = model.get_submodule(path.rsplit(".", 1)[0])
    name = path.rsplit(".", 1)[1]
    for attribute in (
        {"attn": "ls1", "mlp": "ls2"}.get(name),
        {"attn": "gamma1", "mlp": "gamma2", "local_mp": "gamma3"}[name],
    ):
        factor = getattr(block, attribute or "", None)
        factor = getattr(factor, "gamma", factor)
        if isinstance(factor, Tensor):
            return branch * factor
    return branch


@every_model
def test_float32_gives_the_plain_answers_branch_by_branch(name: str) -> None:
    images = image(224, 224) if name.startswith("pyramid") else image()
    model = made(name, images)
    ours = optimize(model, torch.float32)
    with torch.inference_mode():
        assert_near(ours(images), model(images), FLOAT, name)
        other = images[:1, :, :, 32:]  # another number of images, another size
        assert_near(ours(other), model(other), FLOAT, f"{name}, another size")
    names = [
        f"{path}.{part}" for path in ours.optimized.blocks for part in ("attn", "local_mp", "mlp")
    ]
    paths = [path for path in names if path in dict(model.named_modules())]
    assert paths or name == "cvt"
    plain, found = seen(model, paths, images), seen(ours, paths, images)
    with torch.inference_mode():
        for path in paths:
            assert_near(found[path], scaled(model, path, plain[path]), FLOAT, f"{name}, {path}")
    without = zeroed(copy.deepcopy(model))
    with torch.inference_mode():
        assert error(without(images), model(images)) > 1000 * FLOAT


@every_model
def test_bfloat16_is_no_worse_than_the_plain_model_in_bfloat16(name: str) -> None:
    images = image(224, 224, 6) if name.startswith("pyramid") else image(number=6)
    model = made(name, images)
    ours = optimize(model)
    assert not ours(images).requires_grad
    with torch.inference_mode():
        true = copy.deepcopy(model).double()(images.double())
        plain = error(copy.deepcopy(model).to(torch.bfloat16)(images.to(torch.bfloat16)), true)
        found = ours(images)  # float32 images are cast
        assert found.dtype == torch.bfloat16
        assert error(found, true) <= 2 * plain
        assert error(zeroed(copy.deepcopy(model))(images), true) > 3 * plain


def test_weights_of_convolutions_lie_as_their_images_do() -> None:
    """No call copies them: of as many channels the weight is larger than a small image."""
    ours = optimize(made("xcit", image()), torch.float32)
    weights = [
        part.weight
        for part in ours.modules()
        if isinstance(part, nn.Conv2d) and part.groups == 1 and part.kernel_size != (1, 1)
    ]
    assert len(weights) >= 4
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights)


def test_the_last_block_computes_what_the_class_token_needs() -> None:
    images = image()
    model = made("vit", images)
    ours = optimize(model, torch.float32)
    with torch.inference_mode(), FlopCounterMode(display=False) as short:
        logits = ours(images)
    with torch.inference_mode(), FlopCounterMode(display=False) as whole:
        features = ours.forward_features(images)
    B, N, D = 2, 25, 192
    # of the last block's MLP one token; its projection too
    spared = 2 * B * (N - 1) * 9 * D * D
    assert whole.get_total_flops() - short.get_total_flops() > 0.9 * spared
    with torch.inference_mode():
        assert_near(features, model.forward_features(images), FLOAT, "every token")
        assert_near(logits, ours.forward_head(features), FLOAT, "logits of the features")
        # who looks at the last block sees every token
        ours.blocks[-1].register_forward_hook(lambda *_: None)
        with FlopCounterMode(display=False) as watched:
            assert_near(ours(images), logits, FLOAT)
    assert watched.get_total_flops() > short.get_total_flops() + 0.9 * spared
    average = optimize(made("vit, average", images), torch.float32)
    assert not any("class token" in note for note in average.optimized.notes)


def test_the_model_that_was_given_is_left_alone() -> None:
    model = made("xcit", image()).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    kinds = [type(module) for module in model.modules()]
    ours = optimize(model)
    assert model.training
    assert not ours.training
    assert all(one.requires_grad for one in model.parameters())
    assert not any(one.requires_grad for one in ours.parameters())
    assert [type(module) for module in model.modules()] == kinds
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert isinstance(ours, type(model))
    assert not set(map(id, model.parameters())) & set(map(id, ours.parameters()))


def test_the_report_says_what_was_done() -> None:
    report = optimize(made("xcit", image()), PACKS).optimized
    # qkv, proj, fc1 and fc2 of two blocks and of two class attention blocks
    assert len(report.packed) == len(set(report.packed)) == 16
    assert set(report.blocks) == {"blocks.0", "blocks.1"}
    assert {path for path in report.folded if path.startswith("blocks.0")} == {
        *(f"blocks.0.gamma{number}" for number in (1, 2, 3)),
        "blocks.0.local_mp.bn",
    }
    assert sum(path.startswith("patch_embed") for path in report.folded) == 4
    assert report.kept["head"] == "it reads one row an image"
    assert "16 linear layers packed, 2 blocks fused" in str(report)
    assert (
        "blocks.*: attention, MLP, local patch interaction added to the residual in place (2 times)"
        in str(report)
    )
    vits = optimize(made("vit, layer scale", image()), PACKS).optimized
    assert len(vits.packed) == 1 + 4 * 2
    assert {"blocks.0.ls1", "blocks.1.ls2"} <= set(vits.folded)
    kept = optimize(made("vit, a convolution of v", image()), PACKS).optimized.kept
    assert "only its linear layers are packed" in kept["blocks.0.attn"]
    theirs = timm.create_model("swin_tiny_patch4_window7_224", depths=(1, 1, 1, 1))
    kept = optimize(theirs).optimized.kept
    assert "no rule for SwinTransformerBlock" in kept["layers.0.blocks.0"]
    assert "no attention of softless" in kept["layers.0.blocks.0.attn"]


def test_every_linear_layer_of_the_report_is_packed_and_no_other() -> None:
    for name in MODELS:
        ours = optimize(
            made(name, image(224, 224) if name.startswith("pyramid") else image()), PACKS
        )
        found = {path for path, module in ours.named_modules() if isinstance(module, PackedLinear)}
        # the patches' convolution is a linear layer of its own; a branch that is kept stands one
        # level lower
        said = {
            path.replace("patch_embed.proj", "patch_embed.proj.linear")
            for path in ours.optimized.packed
        }
        assert {path.replace(".branch", "") for path in found} == said
        assert all(
            module.packs and module.packed.layout == torch._mkldnn  # type: ignore[attr-defined]
            for module in ours.modules()
            if isinstance(module, PackedLinear)
        )
        assert not any(isinstance(module, nn.BatchNorm2d) for module in ours.modules())


@pytest.mark.parametrize(
    "path",
    [
        "blocks.0.mlp.fc1",
        "blocks.0.attn",
        "blocks.0.attn.proj",
        "blocks.0",
        "patch_embed.proj",
        "norm",
    ],
)
def test_layers_with_hooks_stay_as_they_are(path: str) -> None:
    images, calls = image(), []
    model = made("vit", images)
    model.get_submodule(path).register_forward_hook(lambda *_: calls.append(path))
    ours = optimize(model, torch.float32)
    with torch.inference_mode():
        expected = model(images)
        calls.clear()
        assert_near(ours(images), expected, FLOAT)
    assert calls == [path]
    assert type(ours.get_submodule(path)) is type(model.get_submodule(path))
    assert type(ours.blocks[1].attn) is PackedAttention
    if path.startswith("blocks.0"):
        assert any("hooks" in why for why in ours.optimized.kept.values())


def test_what_an_optimized_model_cannot_do() -> None:
    images = image()
    ours = optimize(made("vit", images), torch.float32)
    for refused, said in (
        (ours.train, "cannot be trained"),
        (ours.requires_grad_, "has no gradients"),
        (ours.state_dict, "has no state dict"),
        (lambda: ours.load_state_dict({}), "takes no weights"),
        (ours.double, "stays torch.float32 on cpu"),
        (lambda: ours(images.requires_grad_()), "has no gradients"),
        (lambda: ours.patch_embed(images.requires_grad_()), "has no gradients"),
        (lambda: torch.export.export(ours, (image(),)), "is not exported"),
        (lambda: optimize(ours), "optimized already"),
        (lambda: optimize(vit(), torch.float16), "torch.bfloat16 or torch.float32"),
    ):
        with pytest.raises(UsageError, match=said):
            refused()
    assert not any(module.training for module in ours.modules())
    assert ours.eval() is ours
    assert ours.to("cpu") is ours
    assert ours.float() is ours


def test_copies_and_pickles_answer_alike() -> None:
    images = image()
    for name in ("vit", "xcit"):
        ours = optimize(made(name, images), PACKS)
        file = io.BytesIO()
        torch.save(ours, file)
        file.seek(0)
        with torch.inference_mode():
            expected = ours(images)
            for other in (copy.deepcopy(ours), torch.load(file, weights_only=False)):
                assert type(other) is type(ours)
                assert torch.equal(other(images), expected)
                assert str(other.optimized) == str(ours.optimized)
                assert all(one.packs for one in other.modules() if isinstance(one, PackedLinear))


@pytest.mark.parametrize("dtype", packed.DTYPES)
def test_without_onednn_it_says_so_and_still_answers(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = image()
    model = made("xcit", images)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    ours = optimize(model, dtype)
    assert ours.optimized.packed == ()
    assert "nothing is packed: this build of torch has no oneDNN" in str(ours.optimized)
    assert "no linear layer packed" in str(ours.optimized)
    with torch.inference_mode():
        assert_near(ours(images), model(images), FLOAT if dtype == torch.float32 else 3e-2)


def test_a_processor_without_bfloat16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "BFLOAT16", False)
    here = torch.device("cpu")
    assert "dtype=torch.float32 is the faster choice" in packed.why_not(torch.bfloat16, here)
    assert not packed.why_not(torch.float32, here)
    assert "the model is on meta" in packed.why_not(torch.float32, torch.device("meta"))


def test_counters_see_what_is_fused() -> None:
    images = image(64, 64, 1)
    model = made("xcit", images)
    ours = optimize(model, torch.float32)
    counts = []
    for one in (model, ours):
        with torch.inference_mode(), FlopCounterMode(display=False) as counted:
            one(images)
        counts.append(counted.get_total_flops())
    assert counts[0] == counts[1]
    assert softless.audit(ours, (3, 64, 64)).kinds == softless.audit(model, (3, 64, 64)).kinds
    assert softless.audit(ours, (3, 64, 64)).kinds["gelu"] > 0


@pytest.mark.parametrize("dtype", packed.DTYPES)
def test_a_packed_layer_takes_any_number_of_rows_lying_anyhow(dtype: torch.dtype) -> None:
    linear = nn.Linear(24, 16)
    ours = PackedLinear.of(linear, dtype, scale=torch.arange(16.0))
    x, onto = torch.randn(3, 24, 50), torch.randn(3, 50, 16)
    bound = FLOAT if dtype == torch.float32 else 2e-2
    with torch.inference_mode():
        for rows in (x.mT, x.mT[:, ::7], x.mT[:, :1], x.mT[:, :0], x.mT[0, 0]):
            expected = linear(rows) * torch.arange(16.0)
            assert_near(ours(rows), expected, bound, str(tuple(rows.shape)))
        expected, before = linear(x.mT) * torch.arange(16.0) + onto, onto.clone()
        assert_near(ours(x.mT, onto.to(dtype)), expected, bound)
        assert torch.equal(onto, before)


def test_a_shared_layer_stays_shared() -> None:
    layer = nn.Linear(8, 8)
    model = nn.Sequential(layer, nn.ReLU(), layer)
    x = torch.randn(4, 8)
    ours = optimize(model, torch.float32)
    assert ours[0] is ours[2]
    assert isinstance(ours[0], PackedLinear)
    with torch.inference_mode():
        assert_near(ours(x), model(x), FLOAT)


def test_a_channel_that_batch_norm_switches_off() -> None:
    images = image()
    model = made("xcit", images)
    with torch.no_grad():
        model.blocks[0].local_mp.bn.weight[3] = 0
    ours = optimize(model, torch.float32)
    assert isinstance(ours.blocks[0].local_mp, Added)
    assert isinstance(ours.blocks[0].local_mp.branch, LPI)
    assert "switched off" in ours.optimized.kept["blocks.0.local_mp"]
    with torch.inference_mode():
        assert_near(ours(images), model(images), FLOAT)


def test_the_border_of_the_patch_interaction() -> None:
    """BatchNorm's shift is not seen by what pads the image after it."""
    model = made("xcit", image())
    with torch.no_grad():
        model.blocks[0].local_mp.bn.bias.fill_(5.0)
    ours = optimize(model, torch.float32)
    x = torch.randn(1, 24, model.embed_dim)
    with torch.inference_mode():
        expected = model.blocks[0].local_mp(x, 4, 6) * model.blocks[0].gamma3
        assert_near(ours.blocks[0].local_mp(x, 4, 6), expected, FLOAT)


@pytest.mark.parametrize(
    "how",
    [
        {"padding": 1, "padding_mode": "reflect"},
        {"padding": "same"},
        {"dilation": 2},
        {"groups": 3, "bias": False},
    ],
)
def test_convolutions_of_any_kind(how: dict[str, Any]) -> None:
    norm = nn.BatchNorm2d(6)
    nn.init.normal_(norm.running_mean)  # type: ignore[arg-type]
    model = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 6, 3, **how), norm), nn.ReLU(), nn.Conv2d(6, 4, 1)
    ).eval()
    images = image(32, 32)
    ours = optimize(model, torch.float32)
    with torch.inference_mode():
        assert_near(ours(images), model(images), FLOAT)
    assert ours.optimized.folded == {"0.1": "0.0"}


def test_weights_that_are_read_apart_are_not_packed() -> None:
    theirs: Any = timm.create_model(
        "beitv2_base_patch16_224", depth=1, num_classes=10, embed_dim=96, num_heads=3, img_size=64
    ).eval()
    ours = optimize(theirs, torch.float32)
    images = image(64, 64)
    with torch.inference_mode():
        assert_near(ours(images), theirs(images), FLOAT)
    assert type(ours.blocks[0].attn.qkv) is nn.Linear
    assert ours.optimized.kept["blocks.0.attn.qkv"] == "its weight is read apart from it"
    assert isinstance(ours.blocks[0].mlp.fc1, PackedLinear)


@pytest.mark.parametrize(
    "act",
    [
        nn.GELU(),
        nn.GELU(approximate="tanh"),
        nn.ReLU(),
        nn.SiLU(),
        timm.layers.GELU(),
        timm.layers.GELUTanh(),
    ],
)
def test_activations_are_those_that_stood_there(act: nn.Module) -> None:
    torch.manual_seed(0)
    model: Any = timm.create_model(
        "deit_tiny_patch16_224", depth=1, num_classes=10, dynamic_img_size=True
    )
    model.blocks[0].mlp.act = act
    conv = nn.Sequential(nn.Conv2d(3, 8, 3, 2), nn.BatchNorm2d(8), act).eval()
    images = image(32, 32)
    with torch.inference_mode():
        assert_near(optimize(model, torch.float32)(images), model.eval()(images), FLOAT)
        ours = optimize(conv, torch.float32)
        assert_near(ours(images), conv(images), FLOAT)
        assert isinstance(ours[0], FusedConv) == (not isinstance(act, nn.SiLU))


def test_the_same_digits() -> None:
    """A model trained for a few seconds on real digits names the same ones after `optimize`."""
    datasets = pytest.importorskip("sklearn.datasets")
    digits = datasets.load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1
    y = torch.tensor(digits.target)
    torch.manual_seed(0)
    model: Any = create_model(
        "vit_tiny_patch16_224",
        op="sima",
        img_size=8,
        patch_size=2,
        in_chans=1,
        num_classes=10,
        embed_dim=64,
        depth=2,
        num_heads=4,
        token_scale="tokens",
    )
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for step in range(240):
        batch = torch.randint(0, 1400, (48,), generator=torch.Generator().manual_seed(step))
        loss = F.cross_entropy(model(x[batch]), y[batch])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    model.eval()
    images, labels = x[1400:], y[1400:]
    with torch.inference_mode():
        plain = model(images)
        right = (plain.argmax(1) == labels).float().mean()
        assert right > 0.75
        assert_near(optimize(model, torch.float32)(images), plain, FLOAT)
        assert torch.equal(optimize(model, torch.float32)(images).argmax(1), plain.argmax(1))
        half = copy.deepcopy(model).to(torch.bfloat16)(images.to(torch.bfloat16))
        ours = optimize(model)(images)
        assert error(ours, plain) <= 2 * error(half, plain)
        assert (ours.argmax(1) == labels).sum() == (plain.argmax(1) == labels).sum()
        without = zeroed(copy.deepcopy(model))(images)
        assert (without.argmax(1) == labels).float().mean() < right - 0.3
        assert all(isinstance(one, PackedAttention) for one in branches(optimize(model)).values())


def test_what_an_inference_copy_keeps_follows_it_to_another_dtype() -> None:
    """Positions are projected once for a grid; in another dtype they are projected again, and none
    is a tensor of inference.
    """
    ours = optimize(made("xcit", image()), torch.float32)
    with torch.inference_mode():
        expected = ours(image())
    kept = next(module for module in ours.modules() if isinstance(module, KeptPositions))
    assert not any(one.is_inference() or one.requires_grad for one in kept.kept.held.values())
    kept.double()
    with torch.no_grad():
        assert kept(1, 4, 6).dtype == torch.float64
    kept.float()
    assert_near(ours(image()), expected, FLOAT)
