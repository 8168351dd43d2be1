"""ExecuTorch in eight bits, by XNNPACK's quantiser."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softless.errors import need
from softless.exporting.graph import recorded
from softless.exporting.quantized.candidate import Candidate, Material


def dynamic(material: Material, path: Path) -> None:
    """Weights int8, a scale for each channel; activations of linear layers as they come, with the
    range that each image has: no image to calibrate with.
    """
    _quantised(material, path, dynamic_ranges=True)


def static(material: Material, path: Path) -> None:
    """Weights int8, a scale for each channel; activations int8 in the ranges of the images."""
    _quantised(material, path, dynamic_ranges=False)


def _quantised(material: Material, path: Path, *, dynamic_ranges: bool) -> None:
    need("executorch", "torchao")
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    quantizer = XNNPACKQuantizer()
    quantizer.set_global(
        get_symmetric_quantization_config(is_per_channel=True, is_dynamic=dynamic_ranges)
    )
    with torch.no_grad():
        observed = prepare_pt2e(recorded(material.graph).module(), quantizer)
        for batch in [material.graph.example] if dynamic_ranges else material.batches():
            observed(batch)
        module = Recorded(convert_pt2e(observed))
    material.write(replace(material.graph, module=module), path)


class Recorded(nn.Module):
    """A recorded module as one that can be recorded again: it has one mode, evaluation, and refuses
    to be told.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def train(self, mode: bool = True) -> "Recorded":  # noqa: ARG002
        """Itself: `eval()` comes here too."""
        return self

    def forward(self, images: Tensor) -> Any:
        """Images (B,C,H,W) -> what the module answers."""
        return self.module(images)


INT8 = {
    "weights": (Candidate("dynamic", "weights; activations in the range of each image", dynamic),),
    "static": (Candidate("static", "weights and activations", static),),
}
