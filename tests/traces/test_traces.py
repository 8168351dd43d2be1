"""The table of tracers: what records a model x hosts x operators. An answer is that of the model itself, at other sizes too, or it is refused.

A telling part here; all by `make traces`.
"""

import pytest

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
