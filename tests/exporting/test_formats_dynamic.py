"""Whole models in files of any batch and size, from 64 x 64 to 1024 x 1024 pixels."""

import pytest
import torch

from tests.exporting.written import living, tools, written
from tests.models.lively import zeroed

NEAR = 1e-5  # of the largest logit, in float32
NAMES = (
    "sima_deit_tiny_patch16_224",
    "seqnorm_deit_tiny_patch16_224",
    "sima_xcit_tiny_12_p16_224",
    "sima_cvt_13_224",
)
SHAPES = ((1, 3, 64, 64), (3, 3, 64, 160), (2, 3, 320, 224), (1, 3, 1024, 512), (1, 3, 1024, 1024))


@pytest.mark.soak
@pytest.mark.parametrize("format", ["pt2", "onnx", "openvino"])
@pytest.mark.parametrize("name", NAMES)
def test_any_batch_and_size(tmp_path, name, format):
    """No guard on the number of tokens stands in a graph; without its attention the model answers
    otherwise.
    """
    tools(format)
    model = living(name, (224, 224))
    file = written(model, format, tmp_path, (224, 224), dynamic="both")
    for shape in SHAPES:
        assert file.apart(model, torch.randn(shape)) <= NEAR, shape
    assert file.apart(zeroed(model), torch.randn(SHAPES[1])) > 100 * NEAR
