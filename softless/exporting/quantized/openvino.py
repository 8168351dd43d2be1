"""OpenVINO in eight bits, by NNCF."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softless.exporting.quantized import tools
from softless.exporting.quantized.candidate import Candidate, Material

CONSTANT = {"Constant", "Convert", "FakeQuantize", "FakeConvert"}


def transformer(material: Material, path: Path) -> None:
    """NNCF's rules for transformers, without SmoothQuant: that took a trained SimA without split
    heads from 0.97 to 0.19.
    """
    _quantised(material, path)


def residual_float(material: Material, path: Path) -> None:
    """The same, and the residual stream's sums stay float."""
    _quantised(material, path, residual_float=True)


def smooth(material: Material, path: Path) -> None:
    """NNCF's rules for transformers as they are, SmoothQuant too; no recipe of ours, but what tests
    show the gate.
    """
    _quantised(material, path, smoothed=True)


def weights(material: Material, path: Path) -> None:
    """Weights alone, a scale and a zero for each channel; the arithmetic is float."""
    _saved(tools.nncf().compress_weights(_read(material)), path)


def _quantised(
    material: Material, path: Path, *, residual_float: bool = False, smoothed: bool = False
) -> None:
    nncf, model = tools.nncf(), _read(material)
    batches = [batch.numpy() for batch in material.batches()]
    alphas = nncf.AdvancedSmoothQuantParameters(convolution=-1, matmul=-1)
    advanced: Mapping[str, Any] = {} if smoothed else {"smooth_quant_alphas": alphas}
    quantised = nncf.quantize(
        model,
        nncf.Dataset(batches),
        subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER,
        ignored_scope=nncf.IgnoredScope(names=_sums(model)) if residual_float else None,
        advanced_parameters=nncf.AdvancedQuantizationParameters(**advanced),
    )
    _saved(quantised, path)


def _sums(model: Any) -> list[str]:
    """Names of the additions of two activations: the residual stream's."""
    return [
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() == "Add"
        and not any(
            node.input_value(place).get_node().get_type_name() in CONSTANT for place in (0, 1)
        )
    ]


def _read(material: Material) -> Any:
    return tools.openvino().Core().read_model(material.float_file)


def _saved(model: Any, path: Path) -> None:
    tools.openvino().save_model(model, path, compress_to_fp16=False)


INT8 = {
    "weights": (Candidate("weights", "weights, a scale for each channel", weights),),
    "static": (
        Candidate("transformer", "NNCF's rules for transformers, no SmoothQuant", transformer),
        Candidate("residual-float", "the same, sums of activations float", residual_float),
        Candidate("weights", "weights, a scale for each channel", weights),
    ),
}
