"""The product of a merged projection: the same with and without a processor's instructions for
bfloat16.
"""

import pytest
import torch

import softless
from softless.attention import packed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("there", [True, False])
def test_a_product_is_rounded_once_whatever_the_processor_has(
    dtype: torch.dtype, there: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "BFLOAT16", there)
    monkeypatch.setattr(packed, "STRETCH", 100)
    x, matrix = torch.randn(333, 3 * 48).to(dtype)[:, :48], torch.randn(48, 24)
    found = packed.product(x, matrix)
    wanted = x.double() @ matrix.double()
    assert found.dtype == dtype
    assert (found - wanted).norm() / wanted.norm() < 4 * torch.finfo(dtype).eps


def test_a_merged_projection_in_bfloat16_widens_where_nothing_multiplies_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    layer, x = softless.SimA(64, num_heads=4).eval(), torch.randn(2, 300, 64)
    layer.merged_from = 1
    with torch.inference_mode():
        wanted = layer(x)
        found = []
        for there in (True, False):
            monkeypatch.setattr(packed, "BFLOAT16", there)
            found.append(layer.to(torch.bfloat16)(x.bfloat16()))
            assert "merged" in layer.path(x.bfloat16())
    for one in found:
        assert (one - wanted).norm() / wanted.norm() < 0.02
