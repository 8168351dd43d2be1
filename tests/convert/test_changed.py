"""`swap` of layers that somebody changed: called where their weights may not be read, and told
where something would be lost.
"""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import softless
from softless.convert.modules import Gained, Joined, Tied, WithBias
from softless.errors import UsageError
from softless.layers import Attention
from tests.ops.draw import assert_near, error


def image(size: int = 64) -> Tensor:
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(3))


def vit(**given: Any) -> Any:
    torch.manual_seed(0)
    made = timm.create_model(
        "deit_tiny_patch16_224", depth=2, num_classes=3, img_size=64, **given
    ).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.normal_(std=0.2)
    return made


def branch(model: Any) -> Tensor:
    """The first attention's output without what its projection adds."""
    seen: list[Tensor] = []
    attention = model.blocks[0].attn
    held = attention.register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        model(image())
        held.remove()
        added = attention.proj(torch.zeros(1, 192))
    return seen[0] - added


def by_head(model: Any, gains: Tensor) -> Tensor:
    """The branch with what each head gives the projection multiplied."""
    channels = gains.repeat_interleave(192 // len(gains))
    held = model.blocks[0].attn.proj.register_forward_pre_hook(
        lambda _, inputs: inputs[0] * channels
    )
    found = branch(model)
    held.remove()
    return found


CHANGES: dict[str, Any] = {
    "weight_norm": nn.utils.weight_norm,
    "parametrized weight_norm": nn.utils.parametrizations.weight_norm,
    "a hook": lambda layer: layer.register_forward_hook(lambda _, __, out: 1.5 * out + 0.1),
    "a forward of its own": lambda layer: setattr(
        layer, "forward", lambda x: 1.5 * nn.functional.linear(x, layer.weight)
    ),
    "nothing": lambda _: None,
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_the_gain_that_is_told_is_applied(name: str) -> None:
    model = vit()
    CHANGES[name](model.blocks[0].attn.proj)
    plain = copy.deepcopy(vit())
    CHANGES[name](plain.blocks[0].attn.proj)
    softless.swap(plain, "sima")
    found = softless.swap(model, "sima", calibrate=image())
    after = branch(model)
    gains = torch.tensor(found.gains["blocks.0.attn"])
    assert (gains - 1).abs().max() > 1e-2
    assert_near(after, by_head(plain, gains), 1e-3)
    assert isinstance(model.blocks[0].attn.proj, Gained) == (name != "nothing")
    assert "blocks.0.attn.proj.gain" in model.state_dict() or name == "nothing"


def test_a_compiled_model_is_calibrated_as_any() -> None:
    """Its modules are called for it, as they are written; what it runs without them would be seen
    by nobody.
    """
    model, plain = vit(), vit()
    compiled: Any = torch.compile(model, backend="eager")
    with torch.no_grad():
        compiled(image())
        found = softless.swap(compiled, "soft", calibrate=image(), ratio=2)
        expected = softless.swap(plain, "soft", calibrate=image(), ratio=2)
        assert list(found.gains.values()) == list(expected.gains.values())
        assert_near(compiled(image()), plain(image()), 1e-5)


def turned(layer: nn.Module) -> Any:
    layer.register_forward_hook(lambda _, __, out: out.flip(-1))
    return layer


def merged(layer: Any) -> Any:
    with torch.no_grad():
        for x in layer.parameters():
            x.copy_(x.flip(0))
    return layer


# of a family: the model, the layer that is changed, the operator, what calls it
PLACES: dict[str, Any] = {
    "tied": (vit, "blocks.0.attn.qkv", "softnorm", Tied),
    "EVA": (
        lambda: timm.create_model("eva02_tiny_patch14_224", depth=1, num_classes=3),
        "blocks.0.attn.qkv",
        "sima",
        WithBias,
    ),
    "EVA with biases apart": (
        lambda: timm.create_model(
            "eva02_base_patch14_224", depth=1, num_classes=3, embed_dim=96, num_heads=3
        ),
        "blocks.0.attn.k_proj",
        "sima",
        Joined,
    ),
    "BEiT": (
        lambda: timm.create_model(
            "beit_base_patch16_224", depth=1, num_classes=3, embed_dim=96, num_heads=3
        ),
        "blocks.0.attn.qkv",
        "sima",
        WithBias,
    ),
    "CaiT": (
        lambda: timm.create_model("cait_xxs24_224", depth=1, num_classes=3),
        "blocks_token_only.0.attn.k",
        "sima",
        Joined,
    ),
}


@pytest.mark.parametrize("name", PLACES)
def test_what_a_hook_does_to_a_projection_is_as_if_it_were_in_the_weight(name: str) -> None:
    build, path, op, kind = PLACES[name]
    torch.manual_seed(0)
    model = build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.1)
    size = model.pretrained_cfg["input_size"][-1] if name != "tied" else 64
    options: dict[str, Any] = {"ratio": 2} if op == "softnorm" else {}
    answers: list[Tensor] = []
    for change in (turned, merged, lambda _: None):
        one = copy.deepcopy(model)
        change(one.get_submodule(path))
        torch.manual_seed(1)
        softless.swap(one, op, force="*", **options)
        attention: Any = one.get_submodule(path.rsplit(".", 1)[0])
        projection = getattr(attention, "inner", attention)._modules[
            "qv" if op == "softnorm" else "qkv"
        ]
        projection.register_forward_hook(lambda _, __, out: answers.append(out))
        with torch.no_grad():
            one(image(size))
        called = any(isinstance(part, kind) for part in one.modules())
        assert called == (change is turned)
    assert_near(answers[0], answers[1], 1e-4, name)
    assert error(answers[2], answers[1]) > 0.1


def test_hooks_on_what_is_exchanged_are_a_reason_to_keep_it() -> None:
    model = vit()
    model.blocks[0].attn.register_forward_hook(lambda *_: None)
    model.blocks[1].attn.attn_drop.register_forward_hook(lambda *_: None)
    with pytest.raises(
        UsageError, match=r"nothing to swap.*it has hooks, and a new module takes its place"
    ):
        softless.swap(model, "sima")
    found = softless.swap(model, "sima", force="blocks.0.*")
    assert list(found.swapped) == ["blocks.0.attn"]
    assert "has hooks" in found.lost["blocks.0.attn"]
    assert "has hooks" in found.kept["blocks.1.attn"]


def test_a_projection_that_does_not_say_its_width_is_named() -> None:
    model = vit()
    model.blocks[0].attn.qkv = nn.Sequential(model.blocks[0].attn.qkv)
    with pytest.raises(
        UsageError,
        match=r"blocks.0.attn: a projection is a Sequential, .*in_features and out_features",
    ):
        softless.swap(model, "sima")


def test_a_model_of_softless_says_that_it_is_one() -> None:
    model = softless.create_model("sima_deit_tiny_patch16_224", depth=1)
    with pytest.raises(UsageError, match=r"its attention is softless's already: .*create_model"):
        softless.swap(model, "xca")


def test_new_tensors_of_offloaded_attention_have_numbers() -> None:
    accelerate = pytest.importorskip(
        "accelerate", reason="accelerate is not installed: peft of the extra `dev` brings it"
    )
    model, twin = vit(), vit()
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    for one in (model, twin):
        torch.manual_seed(1)
        softless.swap(one, "linformer", projected=4)
    module = model.blocks[0].attn
    assert isinstance(module, Attention)
    assert not any(x.is_meta for x in module.learned.parameters())
    assert module.qkv.weight.is_meta
    with torch.no_grad():
        assert_near(model(image()), twin(image()), 1e-5)


def test_a_model_on_meta_is_swapped_there_and_loaded_later() -> None:
    there, here = vit().to("meta"), vit()
    for one in (there, here):
        softless.swap(one, "xca")
    assert all(x.is_meta for x in there.parameters())
    there.load_state_dict(here.state_dict(), assign=True)
    with torch.no_grad():
        assert_near(there(image()), here(image()), 1e-6)
    with pytest.raises(UsageError, match=r"calibrate: .* has no numbers"):
        softless.swap(vit().to("meta"), "sima", calibrate=image())
