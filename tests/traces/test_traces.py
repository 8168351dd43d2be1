"""The table of tracers: what records a model x hosts x operators. An answer is that of the model
itself, at other sizes too, or it is refused.

A telling part here; all by `make traces`.
"""

import pytest
import torch
from torch import Tensor, nn

import softless
from softless.errors import SoftlessError
from tests.traces.table import FAMILIES, HOSTS, TRACERS, absent, cell

TELLING = {
    *((tracer, "ViT", "sima") for tracer in TRACERS),
    ("torch.jit.trace", "XCiT", "sima"),
    ("torch.jit.trace", "pyramid", "soft"),
    ("torch.jit.trace", "ViT", "nystrom"),
    ("torch.jit.trace", "ViT", "cosformer2d"),
    ("torchvision's create_feature_extractor", "XCiT", "sima"),
    ("torchvision's create_feature_extractor", "pyramid", "soft"),
    ("torch.export, any size", "XCiT", "sima"),
}
CELLS = [
    pytest.param(tracer, host, op, marks=() if (tracer, host, op) in TELLING else pytest.mark.soak)
    for tracer in TRACERS
    for host in HOSTS
    for op in FAMILIES
]


@pytest.mark.parametrize(("tracer", "host", "op"), CELLS)
def test_what_is_recorded_answers_as_the_model(tracer: str, host: str, op: str) -> None:
    if missing := absent(tracer):
        pytest.skip(f"{missing[0]} is not installed: pip install softless[export]")
    found = cell(tracer, host, op)
    assert found.outcome != "wrong", found.told
    assert "\n" not in found.told


class Asks(nn.Module):
    """Attention called with something that it refuses."""

    def __init__(self, op: str, **asked: object) -> None:
        super().__init__()
        self.attn, self.asked = softless.Attention(16, 2, op), asked

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attn(x, **self.asked)
        return y


@pytest.mark.parametrize(
    ("op", "asked"),
    [
        ("sima", {"is_causal": True}),
        ("sima", {"attn_mask": torch.ones(5, 5).tril() > 0}),
        ("cosformer2d", {}),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_a_refusal_is_read_past_the_exporter_of_onnx(op: str, asked: dict[str, object]) -> None:
    """It tries again in another way, and raises an error of its own."""
    if missing := absent("torch.onnx"):
        pytest.skip(f"{missing[0]} is not installed: pip install softless[export]")
    model, x = Asks(op, **asked).eval(), torch.randn(1, 5, 16)
    with torch.no_grad(), pytest.raises(Exception, match="step 1/3") as raised:
        torch.onnx.export(model, (x,), dynamo=True, verbose=False)
    cause = raised.value.__cause__
    assert isinstance(cause, SoftlessError)
    assert str(cause) in str(raised.value)
