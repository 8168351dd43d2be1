"""Compiled models are counted, watched and looked into as they are written: compiled kernels once
ran on fake tensors and ended the process.
"""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

import softless
from softless.evaluation.evaluate import forward_all

X = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


def vit() -> Any:
    torch.manual_seed(0)
    return timm.create_model(
        "deit_tiny_patch16_224", attn_layer=softless.SimA, depth=2, num_classes=3, img_size=64
    ).eval()


def whole(model: Any) -> Any:
    return torch.compile(model, backend="aot_eager")


def in_place(model: Any) -> Any:
    model.compile(backend="aot_eager")
    return model


def blocks(model: Any) -> Any:
    for index, block in enumerate(model.blocks):
        model.blocks[index] = torch.compile(block, backend="aot_eager")
    return model


@pytest.mark.filterwarnings("ignore:Using `torch.compile")  # of the hooks that count
@pytest.mark.parametrize("compiled", [whole, in_place, blocks])
def test_a_compiled_model_that_has_run(compiled: Any) -> None:
    plain, model = vit(), compiled(copy.deepcopy(vit()))
    with torch.no_grad():
        model(X)
    found, expected = softless.cost(model), softless.cost(plain)
    assert (found.macs, found.parameters, found.peak_bytes) == (
        expected.macs,
        expected.parameters,
        expected.peak_bytes,
    )
    assert softless.audit(model).kinds == softless.audit(plain).kinds
    assert torch.equal(softless.explain(model, X).query, softless.explain(plain, X).query)
    with torch.no_grad():
        assert torch.allclose(model(X), plain(X), atol=1e-5)


@pytest.mark.parametrize(
    "look",
    [
        softless.cost,
        softless.audit,
        lambda model: softless.explain(model, X),
        lambda model: softless.stream(model, X, quiet=True, saliency=False),
        lambda model: forward_all(model, [(X, torch.zeros(1))], 1, torch.device("cpu")),
    ],
    ids=["cost", "audit", "explain", "stream", "eval"],
)
def test_each_module_keeps_its_mode(look: Any) -> None:
    model = vit().train()
    model.blocks[0].norm1.eval()
    look(model)
    assert [path for path, one in model.named_modules() if not one.training] == ["blocks.0.norm1"]
    assert all(x.requires_grad for x in model.parameters())
    assert isinstance(model.blocks[0].norm1, nn.LayerNorm)
