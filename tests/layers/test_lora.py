"""Low-rank updates: they begin at nothing, move what they should alone, and leave clean weights."""

import copy

import pytest
import timm
import torch
from torch import nn

import softless
from softless.convert.parts import attentions, projections
from softless.errors import UsageError
from softless.layers.lora import LowRank


def vit(op: str | None = "sima") -> nn.Module:
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=(16, 32),
        patch_size=8,
        embed_dim=16,
        depth=2,
        num_heads=2,
        num_classes=3,
        in_chans=1,
    )
    if op is not None:
        softless.swap(model, op)
    return model


IMAGES = torch.randn(3, 1, 16, 32, generator=torch.Generator().manual_seed(1))
EIGHT = [f"blocks.{block}.attn.{layer}" for block in (0, 1) for layer in ("qkv", "proj")]


@pytest.mark.parametrize("op", ["sima", "seqnorm", "cosformer2d", None])
def test_it_begins_as_the_model_and_merges_to_what_it_computed(op: str | None):
    model = vit(op).eval()
    expected = model(IMAGES)
    moving = LowRank(model, projections(model), rank=4)
    assert torch.equal(moving(IMAGES), expected)
    optimizer = torch.optim.AdamW([p for p in moving.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        optimizer.zero_grad()
        moving(IMAGES).square().sum().backward()
        optimizer.step()
        moving.moved()
    answer = moving(IMAGES).detach()
    assert (answer - expected).abs().max() > 1e-2
    torch.testing.assert_close(moving.merged()(IMAGES), answer, atol=1e-6, rtol=1e-5)
    assert moving.merged() is model


def test_it_moves_the_named_layers_alone_and_their_names_stay():
    model = vit()
    before = copy.deepcopy(model.state_dict())
    moving = LowRank(model, projections(model), rank=4)
    nn.init.normal_(moving.up[0])
    moving.moved()
    after = moving.merged().state_dict()
    assert list(after) == list(before)
    changed = [name for name in after if not torch.equal(after[name], before[name])]
    assert changed == ["blocks.0.attn.qkv.weight"]
    trained = {name.split(".")[0] for name, p in moving.named_parameters() if p.requires_grad}
    assert trained == {"up", "down"}


def test_a_state_continues_and_loaded_weights_stay():
    first = LowRank(vit(), projections(vit()), rank=4)
    for update in first.up:
        nn.init.normal_(update)
    first.moved()
    second = LowRank(vit(), projections(vit()), rank=4, seed=7)
    second.load_state_dict(first.state_dict())
    merged = second.merged().state_dict()
    assert torch.equal(second(IMAGES), first(IMAGES))
    assert all(
        torch.equal(merged[name], value) for name, value in first.merged().state_dict().items()
    )
    start = vit().state_dict()
    second.merged().load_state_dict(start)
    assert torch.equal(
        second.merged().state_dict()["blocks.0.attn.qkv.weight"], start["blocks.0.attn.qkv.weight"]
    )


def test_its_attention_is_known_swapped_or_not():
    for op in ("sima", None):
        model = vit(op)
        assert list(attentions(model)) == ["blocks.0.attn", "blocks.1.attn"]
        assert projections(model) == EIGHT


def test_what_cannot_be_is_refused():
    with pytest.raises(
        UsageError, match=r"rank=16: the layer blocks\.0\.attn\.qkv is 48 x 16.*1 to 15"
    ):
        LowRank(vit(), EIGHT, rank=16)
    with pytest.raises(
        UsageError, match=r"blocks\.0 of VisionTransformer is no plain linear layer: it is a Block"
    ):
        LowRank(vit(), ["blocks.0"])
    with pytest.raises(
        UsageError, match=r"heads\.0 of VisionTransformer is no plain .*: there is none"
    ):
        LowRank(vit(), ["heads.0"])
    twice = vit()
    twice.set_grad_checkpointing()  # type: ignore[operator]
    with pytest.raises(UsageError, match=r"computes its activations twice.*\(False\) first"):
        LowRank(twice, EIGHT)
