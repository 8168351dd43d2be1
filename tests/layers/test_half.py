"""float16 over many tokens, by every operator: near float32 in a module of its own, or refused by
name where float16 ends.
"""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import softless
from softless.attention import OPERATORS, Operator
from softless.attention.chunks import attend_chunks
from softless.attention.streaming import Tokens
from softless.errors import PrecisionError
from softless.layers import Attention, ClassAttention
from tests.ops.draw import SMALL

WIDTH, HEADS = 16, 2
NEAR = 3e-2  # large q and k make exponentials of which half precision keeps two digits
LEAST = 2.0**-25  # what float16 rounds to 0
SIZES = (4096, pytest.param(16384, marks=pytest.mark.soak))
scales = pytest.mark.parametrize("scale", [1.0, 30.0])


def outcome(module: nn.Module, x: Tensor) -> str:
    """What a module answers for tokens x (B,N,dim) in float16: "near", "off by …", or the
    refusal.
    """
    module = module.eval().half()
    x = x.half()
    with torch.no_grad():
        want = copy.deepcopy(module).float()(x.float())
        try:
            found = module(x).float()
        except PrecisionError as refusal:
            assert want.abs().max() > 1e4, "refused, and the answer is small"
            return str(refusal)
    if want.abs().max() < LEAST:  # SOFT's kernels of tokens far apart: rounded, they are nothing
        return "near" if not found.any() else "something of nothing"
    away = float((found - want).norm() / want.norm())
    return "near" if away < NEAR else f"off by {away:.1e}"


def fits(told: str, op: str) -> bool:
    return told == "near" or (
        op == "sima_none" and told.startswith("operator 'sima_none': float16 ends at 65,504")
    )


def tokens(number: int, scale: float) -> Tensor:
    return scale * torch.randn(2, number, WIDTH, generator=torch.Generator().manual_seed(1))


def attention(op: Operator, number: int) -> Attention:
    torch.manual_seed(0)
    few: dict[str, Any] = {
        name: value for name, value in (SMALL | {"ratio": 8}).items() if name in op.options
    }
    made = Attention(WIDTH, HEADS, op, qkv_bias=True, tokens=number, **few)
    made.set_grid((0, math.isqrt(number), math.isqrt(number)))
    nn.init.zeros_(made.proj.bias)  # or it would hide the rest
    return made


def class_attention(op: Operator, **options: Any) -> ClassAttention:
    torch.manual_seed(0)
    made = ClassAttention(WIDTH, HEADS, op, qkv_bias=True, **options)
    nn.init.zeros_(made.proj.bias)
    return made


@scales
@pytest.mark.parametrize("number", SIZES)
@pytest.mark.parametrize("name", OPERATORS)
def test_attention(name: str, number: int, scale: float) -> None:
    told = outcome(attention(OPERATORS[name], number), tokens(number, scale))
    assert fits(told, name), told


@scales
@pytest.mark.parametrize("number", SIZES)
@pytest.mark.parametrize("name", [name for name, op in OPERATORS.items() if op.class_row])
def test_class_attention(name: str, number: int, scale: float) -> None:
    told = outcome(class_attention(OPERATORS[name]), tokens(number + 1, scale))
    assert fits(told, name), told


def test_class_attention_lifts_nothing_that_its_token_scale_has_lifted() -> None:
    told = outcome(class_attention(OPERATORS["sima"], token_scale=1), tokens(4097, 30.0))
    assert told == "near"


def sides() -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v (2,1,64,8) of one sign, so that their product of the first image is too large for
    float16.
    """
    given = 40 * torch.rand(3, 2, 1, 64, 8, generator=torch.Generator().manual_seed(1)).half()
    given[:, 1] /= 40
    return given[0], given[1], given[2]


def test_every_way_in_refuses_what_float16_cannot_hold() -> None:
    q, k, v = sides()
    buffer = torch.stack([q, k, v]).permute(1, 3, 0, 2, 4).flatten(2)
    with pytest.raises(
        PrecisionError,
        match=r"operator 'sima_none': float16 ends at 65,504, .* use bfloat16 or float32",
    ):
        softless.attend(q, k, v, op="sima_none")
    with pytest.raises(PrecisionError, match="sima_none"):
        softless.attention.attend_packed(buffer, 1, "sima_none")
    with pytest.raises(PrecisionError, match="sima_none"):
        attend_chunks([Tokens(q, k, v)], "sima_none")
    assert softless.attend(q, k, v, op="sima_none", out_dtype=torch.float32).max() > 65504
    assert softless.attend(q[1:], k[1:], v[1:], op="sima_none").isfinite().all()


def test_an_image_without_numbers_answers_so_beside_others() -> None:
    q, k, v = sides()
    q[0], k[0] = math.nan, 1
    found = softless.attend(q, k, v, op="sima_none")
    assert found[0].isnan().all()
    assert found[1].isfinite().all()


def test_a_loss_in_training_says_it_by_itself() -> None:
    """GradScaler passes over such a step: nothing is raised where a gradient is wanted."""
    q, k, v = sides()
    assert softless.attend(q.requires_grad_(), k, v, op="sima_none").isinf().any()
