"""Values near the end of float32's range: sums over them overflow, and the answer is the right one
all the same; and no image at all.
"""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import softless
from softless import OPERATORS, UsageError
from softless.attention import Operator, attend_packed, output_matrix
from softless.attention.packed import unpacked
from softless.layers import ClassAttention
from tests.ops.draw import assert_near, attend, draw, every

SQUARE = (3, 2, 20, 20, 8, 8)
BARS = {torch.float32: 2e-6, torch.bfloat16: 1e-2}
SCALES = (1e14, 1e18, 1e20, 1e30, 1e37)


def exact(op: Operator, call: Any, extras: dict[str, Any]) -> Tensor:
    """The formula in float64, which holds products of three such values."""
    wide = {name: _double(value) for name, value in extras.items()}
    return attend(*(x.double() for x in call), op=op, backend="reference", **wide)


def _double(value: Any) -> Any:
    return _cast(value, torch.float64)


def _single(value: Any) -> Any:
    return _cast(value, torch.float32)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, dict):
        return {name: tensor.to(dtype) for name, tensor in value.items()}
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


@every
@pytest.mark.parametrize("dtype", BARS, ids=str)
@pytest.mark.parametrize("values", ["q and k", "q, k and v"])
def test_large_values_give_the_right_answer(op: Operator, dtype: torch.dtype, values: str) -> None:
    for scale in SCALES:
        (q, k, v), extras = draw(op, SQUARE, torch.float64)
        large = [(x / x.abs().max() * scale).to(dtype) for x in (q, k, v)]
        call = large if values == "q, k and v" else [*large[:2], v.to(dtype)]
        extras = {
            name: value
            if not isinstance(value, dict)
            else {key: x.to(dtype) for key, x in value.items()}
            for name, value in extras.items()
        }
        with torch.no_grad():
            found, expected = attend(*call, op=op, **extras), exact(op, call, extras)
        if expected.abs().max() < torch.finfo(dtype).max:
            assert_near(found, expected, BARS[dtype])
        else:  # only what does not fit is infinite
            assert found[expected.abs() > 2 * torch.finfo(dtype).max].isinf().all()


@every
@pytest.mark.parametrize("values", ["q", "k", "qk", "qkv"])
def test_large_values_of_later_tokens_never_pass_for_nothing(op: Operator, values: str) -> None:
    """An infinite norm once divided to 0, and the channel was missing from every output, in
    silence.
    """
    if op.name == "softmax":
        pytest.skip("torch's own kernel passes over a score that is NaN")
    for scale in (1e20, 1e37, 1e38):
        for first in (1, 8, 19):
            (q, k, v), extras = draw(op, SQUARE, torch.float64)
            for name, x in zip("qkv", (q, k, v), strict=True):
                if name in values:
                    x[:, :, first:] *= scale / x[:, :, first:].abs().max()
            call = [x.float() for x in (q, k, v)]
            extras = {name: _single(value) for name, value in extras.items()}
            with torch.no_grad():
                found, expected = attend(*call, op=op, **extras), exact(op, call, extras)
            # what is not finite is seen by whoever reads it
            told = found.isfinite().flatten(1).all(1)
            assert_near(found[told], expected[told], 2e-6)
            if op.name in {"sima", "sima_l2", "seqnorm", "xca"} and "v" not in values:
                assert told.all()


@pytest.mark.parametrize("name", ["sima", "sima_l2"])
def test_the_matrix_of_large_values_is_not_taken(name: str) -> None:
    """Merged projections and class attention read the operator's matrix, and not its outputs."""
    qkv = torch.randn(1, 40, 3 * 2 * 8)
    assert output_matrix(qkv, 2, name) is not None
    qkv[:, 8:] *= 1e38 / qkv.abs().max()
    assert output_matrix(qkv, 2, name) is None
    attention = ClassAttention(16, 2, "sima").eval()
    x = torch.randn(1, 120, 16)
    with torch.no_grad():
        attention.qkv.weight *= 1e38
        found = attention(x)
        expected = copy.deepcopy(attention).double()(x.double())
    assert_near(found, expected, 2e-6)


@pytest.mark.parametrize("name", ["sima", "seqnorm", "softmax"])
def test_large_values_in_one_buffer(name: str) -> None:
    qkv = torch.randn(2, 30, 3 * 2 * 16) * 1e37
    with torch.no_grad():
        found = attend_packed(qkv, 2, name)
    q, k, v = (x.double() for x in unpacked(qkv, 2))
    expected = softless.attend(q, k, v, op=name, backend="reference").transpose(1, 2).flatten(2)
    assert_near(found, expected, 2e-6)


@every
def test_a_large_mate_changes_no_bit(op: Operator) -> None:
    """One image of large values, one of NaN: the others keep their bits, and the large one has the
    answer that it has alone.
    """
    call, extras = draw(op, SQUARE, torch.float32)
    with torch.no_grad():
        alone = attend(*call, op=op, **extras)
        for x in call[:2]:
            x[1] *= 1e36 / x[1].abs().max()
            x[2] = float("nan")
        among = attend(*call, op=op, **extras)
        large = attend(*(x[1:2] for x in call), op=op, **extras)
    assert torch.equal(among[0], alone[0])
    assert torch.equal(among[1:2], large)
    assert not among[1].isnan().any()


def test_nothing_is_looked_at_where_a_graph_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """A gradient keeps what float32 gives, NaN, which ends a run as one that diverged; usual values
    are computed once.
    """
    import importlib

    module = importlib.import_module("softless.attention.attend")
    again: list[str] = []
    usual = module._in_double

    def told(*about: Any) -> Tensor:
        again.append("again")
        found: Tensor = usual(*about)
        return found

    monkeypatch.setattr(module, "_in_double", told)
    q = torch.randn(1, 1, 40, 8)
    softless.attend(q, q, q)
    assert not again
    leaf = (q * 1e37).requires_grad_()
    assert not softless.attend(leaf, leaf, leaf).isfinite().all()
    assert not again
    softless.attend(q * 1e37, q * 1e37, q)
    assert again == ["again"]


@pytest.mark.parametrize("name", OPERATORS)
def test_no_image(name: str) -> None:
    call, extras = draw(OPERATORS[name], SQUARE, torch.float32)
    none = [x[:0].requires_grad_() for x in call]
    found = attend(*none, op=name, **extras)
    assert found.shape == (0, 2, 20, 8)
    found.sum().backward()


@pytest.mark.parametrize(
    ("name", "answers"),
    [
        ("sima_deit_tiny_patch16_224", True),
        ("sima_xcit_nano_12_p16_224", True),
        ("sima_cvt_13_224", True),
        ("soft_tiny_224", True),
        ("deit_tiny_patch16_224", True),
        ("deit_tiny_distilled_patch16_224", False),
    ],
)
def test_no_image_for_a_model(name: str, answers: bool) -> None:
    model = softless.create_model(
        name, num_classes=5, op="sima" if name[0] in "dv" else None
    ).eval()
    if answers:
        assert model(torch.zeros(0, 3, 64, 64)).shape == (0, 5)
    else:
        with pytest.raises(UsageError, match=r"a batch of no images, \(0, 3, 64, 64\)"):
            model(torch.zeros(0, 3, 64, 64))
