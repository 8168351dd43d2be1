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


def products_with_weights(material: Material, path: Path) -> None:
    """The same, and sums and products of two activations stay float: the residual stream and
    attention's own.
    """
    _quantised(material, path, of_weights=True)


def smooth(material: Material, path: Path) -> None:
    """NNCF's rules for transformers as they are, SmoothQuant too; no recipe of ours, but what tests
    show the gate.
    """
    _quantised(material, path, smoothed=True)


def weights(material: Material, path: Path) -> None:
    """Weights alone, a scale and a zero for each channel; the arithmetic is float."""
    _saved(tools.nncf().compress_weights(_read(material)), path)


def _quantised(
    material: Material, path: Path, *, of_weights: bool = False, smoothed: bool = False
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
        ignored_scope=nncf.IgnoredScope(names=_of_activations(model)) if of_weights else None,
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=_least_and_largest(), **advanced
        ),
    )
    _saved(quantised, path)


def _least_and_largest() -> Any:
    """Ranges between the least and the largest value of all images. NNCF's own is the mean over
    batches of each batch's extremes, which cuts off the more the fewer images a batch has: with
    one, an error of logits of 0.076 in place of 0.016.
    """
    from nncf.quantization.range_estimator import RangeEstimatorParametersSet

    return RangeEstimatorParametersSet.MINMAX


def _of_activations(model: Any) -> list[str]:
    """Names of the sums and products of two activations."""
    return [
        node.get_friendly_name()
        for node in model.get_ops()
        if node.get_type_name() in {"Add", "MatMul"}
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
        Candidate("products-with-weights", "products with weights", products_with_weights),
        Candidate("weights", "weights, a scale for each channel", weights),
    ),
}
