"""ExecuTorch in eight bits, by XNNPACK's quantiser."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from softless.errors import need
from softless.exporting.graph import recorded
from softless.exporting.quantized.candidate import Candidate, Material

LINEAR = (torch.ops.aten.linear.default,)


def dynamic(material: Material, path: Path) -> None:
    """Linear layers: weights int8, a scale for each channel; what they read as it comes, in the
    range that each image has. No image to calibrate with. Convolutions stay float: XNNPACK has no
    such one for most of XCiT's.
    """
    _quantised(material, path, measured=False, only=LINEAR)


def dynamic_tokens(material: Material, path: Path) -> None:
    """The same, and layers that read one row alone stay float, a class token's and the head: the
    partitioner of XNNPACK 1.5 leaves the query of XCiT's class attention outside, and there is no
    kernel for it there.
    """
    _quantised(material, path, measured=False, only=LINEAR, rows=2)


def everything(material: Material, path: Path) -> None:
    """Linear layers, convolutions and the sums of the residual stream, all that XNNPACK's quantiser
    knows: weights int8, a scale for each channel, activations int8 in the ranges of the images.
    """
    _quantised(material, path)


def linear(material: Material, path: Path) -> None:
    """Linear layers alone; the residual stream stays float."""
    _quantised(material, path, only=LINEAR)


def _quantised(
    material: Material,
    path: Path,
    *,
    measured: bool = True,
    only: Sequence[Any] = (),
    rows: int = 1,
) -> None:
    """Quantise what reads as many rows at least, and write it."""
    need("executorch", "torchao")
    from executorch.backends.xnnpack.quantizer.xnnpack_quantizer import (
        XNNPACKQuantizer,
        get_symmetric_quantization_config,
    )
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    setting = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=not measured)
    quantizer = XNNPACKQuantizer()
    for operator in only:
        quantizer.set_operator_type(operator, setting)
    if not only:
        quantizer.set_global(setting)
    quantizer.set_filter_function(lambda node: _rows(node) >= rows)
    with torch.no_grad():
        observed = prepare_pt2e(recorded(material.graph).module(), quantizer)
        for batch in material.batches() if measured else [material.graph.example]:
            observed(batch)
        module = Recorded(convert_pt2e(observed))
    material.write(replace(material.graph, module=module), path)


def _rows(node: torch.fx.Node) -> int:
    """Of what a node of a recorded module reads: all but its last axis."""
    read = node.args[0] if node.args else None
    value = read.meta.get("val") if isinstance(read, torch.fx.Node) else None
    return value.shape[:-1].numel() if isinstance(value, Tensor) else 1


class Recorded(nn.Module):
    """A recorded module as one that can be recorded again: it has one mode, evaluation, and refuses
    to be told.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def train(self, mode: bool = True) -> "Recorded":  # noqa: ARG002
        """Itself: the change to evaluation comes here too."""
        return self

    def forward(self, images: Tensor) -> Any:
        """Images (B,C,H,W) -> what the module answers."""
        return self.module(images)


INT8 = {
    "weights": (
        Candidate("dynamic", "linear layers, activations in the range of each image", dynamic),
        Candidate("dynamic-tokens", "the same, but where one row is read", dynamic_tokens),
    ),
    "static": (
        Candidate("everything", "all that XNNPACK's quantiser knows", everything),
        Candidate("linear", "linear layers", linear),
    ),
}
