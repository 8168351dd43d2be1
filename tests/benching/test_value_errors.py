"""The table of value errors: what it must see, and what it must not blame."""

import importlib
from dataclasses import replace

import pytest
import torch

from softless.attention import OPERATORS
from softless.benching.errors_of import deviation
from softless.benching.families import FAMILIES, draw

bench = importlib.import_module("softless.benching.operators")


def test_sima_keeps_its_claims_and_the_published_form_does_not():
    found = bench.operators(ops=["sima"], lengths=(1, 2, 196, 2049))
    assert found.exit_code == 0
    lines = [x for x in found.lines if x.form == "eager" and x.family == "gauss" and x.tokens == 2049]
    status = {(x.dtype, x.out_dtype, x.options): x.status for x in lines}
    assert status["float16", "float16", ""] == "refused"
    assert status["float16", "float32", ""] == status["float16", "float16", "token_scale=tokens"] == "ok"
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
    right = record.own[0].fn

    def fn(q, k, v, **extras):
        return mutant(right(q, k, v, **extras))

    broken = replace(record, own=(replace(record.own[0], fn=fn),))
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


def test_the_hardest_family_is_kept():
    lines = list(bench.operators(ops=("sima",), lengths=(49,)).lines)
    kept = bench.hardest(lines)
    assert len(kept) == len(lines) / len(FAMILIES)
    for line in kept:
        alike = [
            x
            for x in lines
            if (x.form, x.options, x.dtype, x.out_dtype) == (line.form, line.options, line.dtype, line.out_dtype)
        ]
        assert line.error == max(x.error for x in alike if x.status == "ok")
