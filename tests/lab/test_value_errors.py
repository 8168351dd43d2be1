"""The table of value and gradient errors: what it must see, and what it must not blame."""

import importlib
from dataclasses import replace

import pytest
import torch

from lab.errors_of import deviation
from lab.families import FAMILIES, draw
from lab.inputs import call, squarest
from softless.attention import OPERATORS

bench = importlib.import_module("lab.operators")


def test_sima_keeps_its_claims_and_the_published_form_does_not():
    found = bench.operators(ops=["sima"], lengths=(1, 2, 196, 2049))
    assert found.exit_code == 0
    lines = [
        x for x in found.lines if x.form == "eager" and x.family == "gauss" and x.tokens == 2049
    ]
    status = {(x.dtype, x.out_dtype, x.options): x.status for x in lines}
    assert status["float16", "float16", ""] == "refused"
    assert (
        status["float16", "float32", ""]
        == status["float16", "float16", "token_scale=tokens"]
        == "ok"
    )
    assert "token_scale" in next(x.reason for x in lines if x.status == "refused")
    broken = [x for x in found.lines if x.form == "published" and x.not_finite]
    assert {x.dtype for x in broken} == {"float16"}  # a zero channel: 0 / 0
    assert "refused" in str(found)


@pytest.mark.parametrize(
    ("mutant", "sees"),
    [
        (torch.zeros_like, 1.0),
        (lambda o: o * 1.01, 0.01),
        (lambda o: o.flip(-2), 0.1),
        (lambda o: o.half().to(o.dtype), 1e-5),
    ],
    ids=["zeros", "1% off", "tokens turned round", "through float16"],
)
def test_a_wrong_backend_is_seen(monkeypatch, mutant, sees):
    record = OPERATORS["sima"]
    eager = next(one for one in record.own if one.name == "eager")
    right = eager.fn

    def fn(q, k, v, **extras):
        return mutant(right(q, k, v, **extras))

    broken = replace(record, own=(replace(eager, fn=fn),))
    monkeypatch.setattr(bench, "OPERATORS", {"sima": broken})
    found = bench.operators(ops=["sima"], lengths=(196,))
    assert found.exit_code == 1
    worst = max(
        x.error
        for x in found.lines
        if x.form == "eager" and x.dtype == "float32" and x.family == "gauss" and not x.options
    )
    assert worst >= sees * 0.9
    assert "!" in str(found)


def test_softmax_rows_stand_alone():
    """Above 1,024 tokens 64 queries are looked at: the same values as in the whole."""
    record = OPERATORS["softmax"]
    q, k, v = draw("gauss", 1100, 64, 0, torch.float64)
    whole, part = record.reference(q, k, v), record.reference(q[:, :, :64], k, v)
    torch.testing.assert_close(part, whole[:, :, :64])
    found = bench.operators(ops=["softmax"], lengths=(1100,))
    assert all(x.tokens == 1100 and x.error < 1e-2 for x in found.lines if x.error is not None)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("tokens", [1, 2, 49])
def test_no_family_cancels_to_nothing(family, tokens):
    """The exact answer is not zero, or the relative error would be noise over nothing."""
    for seed in range(5):
        q, k, v = draw(family, tokens, 64, seed, torch.float64)
        sima = OPERATORS["sima"].reference
        size = float(sima(q, k, v).norm()) / float(sima(q.abs(), k.abs(), v.abs()).norm() or 1)
        assert family == "one-hot" or size > 0.01


def test_draws_are_the_same_in_every_dtype_up_to_rounding():
    exact, half = (draw("wide", 7, 64, 3, dtype)[1] for dtype in (torch.float64, torch.float16))
    torch.testing.assert_close(exact.half(), half, atol=0, rtol=0)


def test_deviation():
    exact = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert deviation(torch.tensor([0.0, 0.0]), exact).frobenius == 1
    assert deviation(torch.tensor([0.0, 0.0]), exact).zeros == 1
    assert deviation(torch.tensor([3.0, 5.0]), exact).frobenius == pytest.approx(0.2)
    assert deviation(torch.tensor([3.0, 5.0]), exact).largest == pytest.approx(0.25)
    assert deviation(torch.tensor([3.0, float("nan")]), exact).frobenius == float("inf")
    assert deviation(torch.tensor([3.0, float("nan")]), exact).not_finite == 1


def test_the_hardest_families_are_kept():
    lines = list(bench.operators(ops=("sima",), lengths=(49,)).lines)
    kept = bench.hardest(lines)
    assert len(lines) / len(FAMILIES) <= len(kept) <= 2 * len(lines) / len(FAMILIES)
    for key in {line.key for line in lines}:
        for column in ("error", "gradient_error"):
            worst = max(getattr(x, column) for x in lines if x.key == key and x.status == "ok")
            assert worst == max(
                getattr(x, column) for x in kept if x.key == key and x.status == "ok"
            )


@pytest.mark.parametrize("op", OPERATORS)
def test_every_operator_keeps_its_claims_on_few_tokens(op):
    found = bench.operators(ops=[op], lengths=(1, 2, 50))
    assert found.exit_code == 0, str(found)
    friendly = [
        x for x in found.lines if x.form == "eager" and x.family == "gauss" and x.tokens == 50
    ]
    assert max(x.gradient_error for x in friendly if x.dtype == "float32") < 1e-5
    refused = {(x.operator, x.dtype, x.out_dtype) for x in found.lines if x.status == "refused"}
    assert refused == ({(op, "float16", "float16")} if op in {"soft", "softnorm"} else set())
    settings = {x.setting for x in found.lines if x.tokens == 50}
    expected = {
        "soft": "grid=1+7x7 ratio=1",
        "softnorm": "grid=1+7x7 ratio=1",
        "cosformer2d": "grid=1+7x7",
    }
    assert settings == {expected.get(op, "")}


@pytest.mark.parametrize(
    ("tokens", "grid"),
    [
        (1, (0, 1, 1)),
        (2, (1, 1, 1)),
        (49, (0, 7, 7)),
        (50, (1, 7, 7)),
        (197, (1, 14, 14)),
        (65536, (0, 256, 256)),
    ],
)
def test_the_squarest_grid(tokens, grid):
    assert squarest(tokens) == grid


@pytest.mark.parametrize(
    ("mutant", "sees"),
    [
        (lambda q, k, v: (q.detach(), k, v), 1.0),
        (lambda q, k, v: (q, k * 1.01 - k.detach() * 0.01, v), 0.01),
        (lambda q, k, v: (q, k, v.detach() - v + v.detach()), 2.0),
    ],
    ids=["none for q", "1% more for k", "minus v"],
)
def test_a_wrong_gradient_is_seen_where_the_value_is_right(monkeypatch, mutant, sees):
    record = OPERATORS["sima"]
    eager = next(one for one in record.own if one.name == "eager")
    right = eager.fn

    def fn(q, k, v, **extras):
        q, k, v = mutant(q, k, v)
        return right(q, k, v, **extras)

    broken = replace(record, own=(replace(eager, fn=fn),))
    monkeypatch.setattr(bench, "OPERATORS", {"sima": broken})
    lines = [
        x
        for x in bench.operators(ops=["sima"], lengths=(49,)).lines
        if x.form == "eager" and x.dtype == "float32" and x.family == "gauss" and not x.options
    ]
    assert all(x.error < 1e-6 and x.gradient_error >= 0.9 * sees for x in lines)


def test_what_hangs_on_the_last_bits_of_the_inputs_is_marked_and_not_blamed():
    line = bench.operators(ops=["sima"], lengths=(2,)).lines[0]
    hard = replace(line, status="ok", claim=1e-6, error=1e-4, moves=1e-5)
    assert hard.within
    assert "e-04 ~" in str(bench.Errors((hard,)))
    wrong = replace(hard, moves=1e-7)
    assert not wrong.within
    assert "e-04 !" in str(bench.Errors((wrong,)))
    assert bench.Errors((wrong,)).exit_code == 1


def test_rounding_the_inputs_moves_an_answer_that_cancels():
    """A hundred million equal terms less the same: what is left is the rounding of the terms."""
    record = OPERATORS["sima_none"]
    friendly = call(record, "gauss", 64, 8, 0, torch.float64)
    k = torch.cat([friendly.k[:, :, :32], -friendly.k[:, :, :32] * (1 - 1e-9)], 2)
    v = torch.cat([friendly.v[:, :, :32]] * 2, 2)
    cancelling = friendly.with_leaves(q=friendly.q, k=k, v=v)
    moves = [deviation(one.nudged().run(), one.run()).frobenius for one in (friendly, cancelling)]
    assert moves[0] < 1e-6
    assert moves[1] > 1
