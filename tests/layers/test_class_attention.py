"""Class attention by any operator with a class row: as the operator's first query, in float16 by
the operator's own rule, streamed.
"""

from typing import Any

import pytest
import torch

import softless
from softless import OPERATORS, UsageError
from softless.layers import ClassAttention
from tests.ops.draw import assert_near
from tests.slides.models import image, xcit

ROWS = [name for name, op in OPERATORS.items() if op.class_row is not None]
FLOOR = 1e-6


def made(op: str, **options: Any) -> ClassAttention:
    torch.manual_seed(0)
    return ClassAttention(64, 4, op, **options).eval()


def test_who_has_a_class_row() -> None:
    assert {"sima", "relu_linear", "inline", "mala"} <= set(ROWS)
    assert OPERATORS["focused"].class_row is None, (
        "its features want a learned scale, and class attention has none"
    )


@pytest.mark.parametrize("op", ROWS)
def test_it_is_the_first_query_of_the_operator(op: str) -> None:
    module, x = made(op).double(), torch.randn(2, 19, 64, dtype=torch.float64)
    q, k, v = module.qkv(x).unflatten(-1, (3, 4, 16)).permute(2, 0, 3, 1, 4)
    floor: dict[str, Any] = {"eps": FLOOR} if "eps" in OPERATORS[op].options else {}
    o = softless.attend(q, k, v, op=op, backend="reference", **floor)[:, :, :1]
    assert_near(module(x), module.proj(o.transpose(1, 2).flatten(2)), 1e-12)


@pytest.mark.parametrize("op", ROWS)
@torch.no_grad()
def test_float16_asks_the_record(op: str) -> None:
    """More tokens than float16 holds in SimA's scale: others are not scaled by their number."""
    module, x = made(op), torch.randn(1, 5000, 64)
    expected = module(x)
    found = module.half()(x.half())
    assert bool(found.isfinite().all())
    assert float((found.float() - expected).norm() / expected.norm()) < 2e-3


def test_an_option_of_the_row_reaches_it_or_is_refused() -> None:
    x = torch.randn(2, 19, 64)
    relu, elu = made("mala", feature="relu"), made("mala")
    assert float((relu(x) - elu(x)).detach().abs().max()) > 1e-3
    with pytest.raises(
        UsageError, match="class attention by operator 'mala' takes no option rotate: leave it out"
    ):
        made("mala", rotate=True)
    model: Any = softless.create_model(
        "xcit_nano_12_p16_224", op="mala", feature="relu", depth=1, cls_attn_layers=1
    )
    assert model.cls_attn_blocks[0].attn.options == {"feature": "relu"}
    assert softless.cost(model, 64).exps == 0


@pytest.mark.parametrize(
    ("op", "options"), [("relu_linear", {}), ("inline", {}), ("mala", {"feature": "relu"})], ids=str
)
@torch.no_grad()
def test_streams_with_its_maps(op: str, options: dict[str, Any]) -> None:
    """Answer and class row of the whole, from chunks."""
    model, picture = xcit(op, **options), image()
    streamed = softless.stream(model, picture[0], chunk=7, saliency=True)
    assert_near(streamed.logits, model(picture), 1e-5)
    whole = softless.explain(model, picture)
    assert whole.class_row is not None
    assert streamed.saliency is not None
    assert streamed.saliency.class_row is not None
    assert_near(
        streamed.saliency.class_row.flatten().double(), whole.class_row[0].flatten().double(), 1e-4
    )
