"""Cox's loss and Harrell's concordance against sums over pairs, written out."""

import math

import numpy as np
import pytest
import torch

from softless.evaluation.patients import averaged
from softless.evaluation.survival import (
    SurvivalEvaluation,
    concordance,
    cox_loss,
    kaplan_meier,
    weighted_concordance,
)


def drawn(n: int, seed: int, *, ties: bool):
    rng = np.random.default_rng(seed)
    risks = rng.normal(size=n)
    times = rng.exponential(size=n) * np.exp(-risks)
    if ties:
        times, risks = np.ceil(3 * times), np.round(risks)
    return risks, times, rng.random(n) < 0.6


def by_hand(risks, times, events) -> float:
    """Efron's, event time by event time, as Klein and Moeschberger write it."""
    total = 0.0
    for time in sorted(set(times[events])):
        deaths = np.flatnonzero(events & (times == time))
        everybody = sum(math.exp(r) for r, t in zip(risks, times, strict=True) if t >= time)
        dying = sum(math.exp(risks[k]) for k in deaths)
        total += sum(risks[k] for k in deaths)
        total -= sum(
            math.log(everybody - place / len(deaths) * dying) for place in range(len(deaths))
        )
    return -total / events.sum()


def pairs_by_hand(risks, times, events) -> float | None:
    right = pairs = 0.0
    for i in range(len(risks)):
        for j in range(len(risks)):
            first = events[i] and (times[i] < times[j] or (times[i] == times[j] and not events[j]))
            if first:
                pairs += 1
                right += 1.0 if risks[i] > risks[j] else 0.5 if risks[i] == risks[j] else 0.0
    return right / pairs if pairs else None


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [1, 2, 9, 40])
def test_the_loss_is_efron_s(n, ties):
    risks, times, events = drawn(n, n, ties=ties)
    events[0] = True
    loss = cox_loss(*(torch.as_tensor(part) for part in (risks, times, events)))
    assert float(loss) == pytest.approx(by_hand(risks, times, events), rel=1e-9, abs=1e-12)


def test_its_gradient_is_the_formula_s():
    risks, times, events = drawn(12, 3, ties=True)
    leaf = torch.as_tensor(risks).requires_grad_()
    rest = torch.as_tensor(times), torch.as_tensor(events)
    assert torch.autograd.gradcheck(lambda r: cox_loss(r, *rest), (leaf,))


def test_no_event_gives_a_zero_that_can_be_differentiated():
    risks = torch.ones(3, requires_grad=True)
    loss = cox_loss(risks, torch.arange(3.0), torch.zeros(3))
    loss.backward()
    assert float(loss.detach()) == 0
    assert risks.grad is not None
    assert risks.grad.eq(0).all()


def test_large_risks_do_not_overflow():
    risks = torch.tensor([400.0, -400.0, 0.0])
    loss = cox_loss(risks, torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1, 1, 0]))
    assert loss.isfinite()
    assert float(loss) == pytest.approx((0 + 400) / 2)


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("n", [1, 2, 7, 50])
def test_the_concordance_is_harrell_s(n, ties):
    risks, times, events = drawn(n, n + 1, ties=ties)
    assert concordance(risks, times, events) == (
        pytest.approx(value) if (value := pairs_by_hand(risks, times, events)) is not None else None
    )


def test_weights_are_copies():
    risks, times, events = drawn(20, 5, ties=True)
    weights = np.random.default_rng(0).integers(0, 3, (4, 20))
    for row, value in zip(
        weights, weighted_concordance(risks, times, events, weights), strict=True
    ):
        copies = np.repeat(np.arange(20), row)
        assert value == pytest.approx(pairs_by_hand(risks[copies], times[copies], events[copies]))


def test_per_patient_with_an_interval():
    risks, times, events = drawn(120, 6, ties=False)
    names = [f"s{k}" for k in range(240)]
    noise = np.random.default_rng(1).normal(size=(120, 1))
    answers = np.concatenate([risks[:, None] + noise, risks[:, None] - noise])
    targets = np.tile(np.stack([times, events], 1), (2, 1))
    patients = [f"p{k:03}" for k in range(120)] * 2
    outcome = SurvivalEvaluation(averaged(names, answers, targets, patients))
    assert outcome.risks == pytest.approx(risks)
    low, high = outcome.concordance.interval or (0, 0)
    assert low < (outcome.concordance.value or 0) < high
    assert outcome.concordance.value == pytest.approx(pairs_by_hand(risks, times, events))
    assert outcome.loss == pytest.approx(by_hand(risks, times, events))
    assert "concordance" in str(outcome)


def test_the_curve_of_those_left():
    points = kaplan_meier(np.array([1.0, 2, 2, 3]), np.array([True, True, False, True]))
    assert dict(points) == {0.0: 1.0, 1.0: 0.75, 2.0: 0.5, 3.0: 0.0}
