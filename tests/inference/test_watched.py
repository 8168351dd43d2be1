"""An optimized model takes no short cut over what somebody changed or waits for, before it was made
and afterwards.
"""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import softless
from softless.errors import UsageError
from softless.inference import optimize
from softless.inference.layers import Added, InDtype, PackedAttention
from softless.inference.packed import PackedLinear
from softless.models.create import create_model
from softless.tasks.detection.model import detector
from tests.models.lively import lively
from tests.ops.draw import assert_near, error

FLOAT = 1e-5


def image(number: int = 2) -> Tensor:
    return torch.randn(number, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def vit(**given: Any) -> Any:
    made = create_model(
        "deit_tiny_patch16_224", op="sima", depth=2, num_classes=10, dynamic_img_size=True, **given
    )
    return lively(made, image())


def xcit(**given: Any) -> Any:
    return lively(
        create_model("xcit_tiny_12_p16_224", op="sima", depth=2, num_classes=10, **given), image()
    )


def shapes(model: Any, *names: str) -> dict[str, tuple[int, ...]]:
    """What hooks see, as they are filled in by the next call."""
    seen: dict[str, tuple[int, ...]] = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda _, __, out, name=name: seen.__setitem__(name, tuple(out.shape))
        )
    return seen


WATCHED = (
    "norm",
    "blocks",
    "blocks.1",
    "blocks.1.attn",
    "blocks.1.mlp",
    "norm_pre",
    "fc_norm",
    "patch_embed.proj",
)


@pytest.mark.parametrize("when", ["before", "afterwards"])
@pytest.mark.parametrize("name", WATCHED)
def test_a_hook_sees_what_it_sees_in_the_plain_model(name: str, when: str) -> None:
    plain = vit()
    ours = optimize(plain, torch.float32) if when == "afterwards" else None
    source = plain if ours is None else ours
    seen = shapes(source, name)
    ours = optimize(plain, torch.float32) if ours is None else ours
    answer = ours(image())
    found = dict(seen)
    reference = copy.deepcopy(plain)
    expected = shapes(reference, name)
    with torch.no_grad():
        assert_near(answer, reference(image()), FLOAT)
    assert found == expected
    assert found[name]


@pytest.mark.parametrize("name", ["q_norm", "k_norm", "norm", "proj_drop"])
def test_a_hook_on_a_place_that_is_empty_is_called(name: str) -> None:
    ours = optimize(vit(), torch.float32)
    assert isinstance(ours.blocks[0].attn, PackedAttention)
    before = ours(image())
    for block in ours.blocks:
        block.attn.get_submodule(name).register_forward_hook(lambda _, __, out: 2 * out + 1)
    assert error(ours(image()), before) > 1e-3


def test_hooks_within_fused_convolutions_and_kept_positions_are_called() -> None:
    ours = optimize(xcit(), torch.float32)
    before, counts = ours(image()), []
    ours.pos_embed.positions.token_projection.register_forward_hook(
        lambda *_: counts.append("positions")
    )
    ours.blocks[0].local_mp.first.conv.register_forward_hook(
        lambda *_: counts.append("convolution")
    )
    for _ in range(2):
        assert_near(ours(image()), before, FLOAT)
    assert sorted(counts) == ["convolution", "convolution", "positions", "positions"]


def test_the_short_cut_needs_a_norm_of_single_tokens() -> None:
    model = vit()
    model.norm = nn.Sequential(nn.LayerNorm(192), nn.Softmax(dim=1))  # over tokens
    ours = optimize(model, torch.float32)
    assert not any("class token" in note for note in ours.optimized.notes)
    with torch.no_grad():
        assert_near(ours(image()), model(image()), FLOAT)


class Twice(nn.Module):
    """A part of a user's."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.parametrize("name", ["ls1", "ls2", "drop_path1", "mlp.drop1", "mlp.drop2", "mlp.norm"])
def test_a_part_of_a_block_that_was_exchanged_is_called(name: str) -> None:
    model = vit()
    before = model(image())
    model.blocks[0].set_submodule(name, Twice())
    with torch.no_grad():
        want = model(image())
        assert error(before, want) > 1e-3
        assert_near(optimize(model, torch.float32)(image()), want, FLOAT)


def test_a_drop_path_of_xcit_that_was_exchanged_is_called() -> None:
    model = xcit()
    model.blocks[0].drop_path = Twice()
    with torch.no_grad():
        assert_near(optimize(model, torch.float32)(image()), model(image()), FLOAT)


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(9)


CHANGES: dict[str, Any] = {
    "a hook that holds float32": lambda layer: layer.register_forward_hook(
        lambda _, x, out: (
            out
            + x[0] @ torch.randn(layer.in_features, layer.out_features, generator=seeded()) * 0.1
        )
    ),
    "weight_norm": nn.utils.weight_norm,
    "parametrized weight_norm": nn.utils.parametrizations.weight_norm,
    "spectral_norm": nn.utils.spectral_norm,
}


@pytest.mark.parametrize("path", ["blocks.0.attn.qkv", "blocks.1.mlp.fc2", "head"])
@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_changed_layer_is_called_in_the_dtype_that_it_came_in(name: str, path: str) -> None:
    model = vit()
    with torch.no_grad():
        plain = model(image())
        CHANGES[name](model.get_submodule(path))
        want = model.eval()(image())
    assert name.endswith("weight_norm") or error(plain, want) > 0.03
    for dtype, near in ((torch.float32, FLOAT), (torch.bfloat16, 0.03)):
        ours = optimize(model, dtype)
        assert ours.optimized.kept[path]
        assert_near(ours(image()).float(), want, near, f"{name}, {path}, {dtype}")
    assert isinstance(ours.get_submodule(path), InDtype) or "parametrized" in name


@pytest.mark.filterwarnings("ignore")  # of torch.ao
def test_layers_of_eight_bits_are_called_and_told() -> None:
    model = torch.ao.quantization.quantize_dynamic(vit(), {nn.Linear}, dtype=torch.qint8)
    with torch.no_grad():
        want = model(image())
    for dtype, near in ((torch.float32, 0.05), (torch.bfloat16, 0.08)):
        ours = optimize(model, dtype)
        assert ours.optimized.kept["blocks.0.attn.qkv"] == "its weight is quantized"
        assert_near(ours(image()).float(), want, near)


@pytest.mark.parametrize(
    "path", ["blocks.0.local_mp.conv1", "blocks.0.local_mp.conv2", "patch_embed.proj.0.0"]
)
def test_a_convolution_of_another_class_is_called(path: str) -> None:
    """As peft puts one in: no hook shows it."""

    class Adapted(nn.Module):
        def __init__(self, base_layer: nn.Conv2d) -> None:
            super().__init__()
            self.base_layer = base_layer

        @property
        def weight(self) -> Tensor:
            return self.base_layer.weight

        def forward(self, x: Tensor) -> Tensor:
            return 3 * self.base_layer(x)

    model = xcit()
    model.set_submodule(path, Adapted(model.get_submodule(path)))
    with torch.no_grad():
        assert_near(optimize(model, torch.float32)(image()), model(image()), FLOAT)


def test_lora_on_attention_is_not_lost() -> None:
    peft = pytest.importorskip("peft", reason="peft is not installed: it is in the extra `dev`")
    for target in ("qkv", "proj", "fc1"):
        model = vit()
        with torch.no_grad():
            plain = model(image())
            config = peft.LoraConfig(
                r=4, lora_alpha=16, target_modules=[target], init_lora_weights=False
            )
            tuned = peft.get_peft_model(model, config).eval()
            want = tuned(image())
            assert error(plain, want) > 0.05
            ours = optimize(tuned.base_model.model, torch.float32)
            assert_near(ours(image()), want, FLOAT, target)
            assert_near(
                optimize(tuned, torch.float32)(image()), want, FLOAT, f"{target}, the whole"
            )
    assert any(isinstance(one, PackedLinear) for one in ours.modules())


# What it is called with


def test_arguments_are_cast_wherever_they_stand_and_unknown_ones_refused() -> None:
    model = vit()
    for dtype in (torch.float32, torch.bfloat16):
        ours = optimize(model, dtype)
        want = ours(image())
        assert torch.equal(ours(x=image().double()), want)
        mask = torch.zeros(2, 1, 1, 25, dtype=torch.float64)
        assert error(ours(image(), attn_mask=mask).float(), want.float()) < 0.05
        with pytest.raises(TypeError, match="colour"):
            ours(image(), colour=1)
        with pytest.raises(UsageError, match="no gradients"):
            ours(x=image().requires_grad_())


def test_a_part_that_is_no_float_or_not_here_is_one_sentence() -> None:
    model = vit()
    model.blocks[1].mlp.fc1.to("meta")
    with pytest.raises(
        UsageError, match=r"optimize: blocks.1.mlp.fc1 has no numbers.*load_state_dict"
    ):
        optimize(model)


@pytest.mark.parametrize("head", ["maskrcnn", "retinanet"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_detector_keeps_its_coordinates_in_float32(head: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = detector(
        "deit_tiny_patch16_224",
        {"op": "sima", "depth": 4, "img_size": 64},
        classes=3,
        head=head,
        layers=(1, 2, 3, 4),
        width=32,
        min_size=None,
        detections=5,
        min_score=0.0,
        proposals=50,
    ).eval()
    images = [torch.randn(3, 64, 96), torch.randn(3, 96, 64)]
    ours = optimize(model, dtype)
    assert ours.optimized.dtype == dtype
    with torch.no_grad():
        want, found = model(images), ours(images)
    for one, other in zip(want, found, strict=True):
        assert other["boxes"].dtype == torch.float32
        assert len(other["boxes"]) == len(one["boxes"]) == 5
        near = 1e-4 if dtype == torch.float32 else 0.02
        assert_near(other["scores"], one["scores"], near)
    near = 1e-4 if dtype == torch.float32 else 0.1
    with torch.no_grad():
        maps, ours_maps = (one.net.backbone(images[0][None]) for one in (model, ours))
    for name, map_ in maps.items():
        assert ours_maps[name].dtype == torch.float32
        assert_near(ours_maps[name], map_, near, name)
    assert any(isinstance(one, PackedLinear | Added) for one in ours.modules())


def test_timms_own_vit_with_a_hooked_norm_gives_every_token() -> None:
    model = timm.create_model("vit_tiny_patch16_224", depth=1, num_classes=3, img_size=64).eval()
    softless.swap(model, "sima")
    ours = optimize(model, torch.float32)
    seen = shapes(ours, "norm")
    ours(image()[..., :64])
    assert seen == {"norm": (2, 17, 192)}
