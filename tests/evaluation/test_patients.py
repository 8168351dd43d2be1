"""Numbers per patient: slides are averaged, patients are drawn, and every number is what a plain
computation says.
"""

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, roc_auc_score

from softless.evaluation.patients import PatientEvaluation, areas, averaged, roc, roc_band

CLASSES = ("benign", "malignant")


def slides(patients: int = 60, seed: int = 0):
    """Three slides a patient at most; the probability of the second class rises with the truth."""
    rng = np.random.default_rng(seed)
    truth = rng.random(patients) < 0.4
    counts = rng.integers(1, 4, patients)
    whose = np.repeat(np.arange(patients), counts)
    logits = rng.normal(size=len(whose)) + 1.2 * truth[whose]
    second = 1 / (1 + np.exp(-logits))
    names = [f"s{number}" for number in range(len(whose))]
    answers = np.stack([1 - second, second], axis=1)
    return names, answers, truth[whose].astype(int), [f"p{number:03}" for number in whose], truth


def test_slides_of_a_patient_are_averaged():
    names, answers, targets, patients, truth = slides()
    units = averaged(names, answers, targets, patients)
    assert units.unit == "patient"
    assert units.names == tuple(sorted(set(patients)))
    own = np.array([answers[np.array(patients) == name, 1].mean() for name in units.names])
    assert units.answers[:, 1] == pytest.approx(own)
    assert units.targets.tolist() == truth.astype(int).tolist()
    assert units.slides.sum() == len(names)
    outcome = PatientEvaluation(units, CLASSES, (None, 0.6))
    assert outcome.area.value == pytest.approx(roc_auc_score(truth, own))
    assert outcome.brier == pytest.approx(brier_score_loss(truth, own))
    assert outcome.balanced_accuracy is not None
    assert outcome.balanced_accuracy.value == pytest.approx(
        balanced_accuracy_score(truth, own >= 0.6)
    )
    row = outcome.at_threshold()["malignant"]
    assert row["sensitivity"].value == pytest.approx((own[truth] >= 0.6).mean())
    assert row["specificity"].value == pytest.approx((own[~truth] < 0.6).mean())
    assert outcome.confusion().sum() == len(truth)
    text = str(outcome)
    assert "patients" in text
    assert "DeLong" in text
    assert "image" not in text


def test_an_order_of_slides_says_nothing():
    names, answers, targets, patients, _ = slides()
    order = np.random.default_rng(1).permutation(len(names))
    one = PatientEvaluation(averaged(names, answers, targets, patients), CLASSES)
    other = averaged(
        [names[k] for k in order], answers[order], targets[order], [patients[k] for k in order]
    )
    again = PatientEvaluation(other, CLASSES)
    assert one.to_dict()["auc"] == pytest.approx(again.to_dict()["auc"])
    assert one.to_dict()["intervals"]["auc"] == pytest.approx(again.to_dict()["intervals"]["auc"])


def test_delong_is_its_definition_and_agrees_with_the_draws():
    names, answers, targets, patients, truth = slides(200)
    outcome = PatientEvaluation(averaged(names, answers, targets, patients), CLASSES)
    scores = outcome.units.answers[:, 1]
    pairs = scores[truth][:, None] - scores[~truth][None]
    right = (pairs > 0) + 0.5 * (pairs == 0)
    variance = right.mean(1).var() / truth.sum() + right.mean(0).var() / (~truth).sum()
    rarer = min(truth.sum(), (~truth).sum())
    value = float(right.mean())
    low, high = outcome.area.delong.interval or (0, 1)
    half = (np.log(high / (1 - high)) - np.log(low / (1 - low))) / 2
    deviation = half * value * (1 - value) / 1.9900634 * np.sqrt((rarer - 1) / rarer)
    assert deviation == pytest.approx(np.sqrt(variance), rel=2e-2), "Student's t of few degrees"
    for one, two in zip(
        outcome.area.delong.interval or (), outcome.area.bootstrap.interval or (), strict=True
    ):
        assert one == pytest.approx(two, abs=0.02)


def test_several_slides_of_one_patient_are_no_patients_of_their_own():
    """Where labels differ within patients slides are counted, and drawn together: copies of each
    slide narrow nothing."""
    rng = np.random.default_rng(2)
    truth, scores = np.arange(80) % 2, rng.normal(size=80) + np.arange(80) % 2
    chances = 1 / (1 + np.exp(-scores))
    answers = np.stack([1 - chances, chances], 1)
    mixed = [f"p{number // 2}" for number in range(80)]
    single = averaged([str(k) for k in range(80)], answers, truth, mixed)
    assert single.unit == "slide"
    copies = averaged(
        [str(k) for k in range(240)], np.tile(answers, (3, 1)), np.tile(truth, 3), mixed * 3
    )
    one, many = (PatientEvaluation(units, CLASSES).area for units in (single, copies))
    assert many.value == pytest.approx(one.value)
    for kind in ("bootstrap", "delong"):
        assert getattr(many, kind).interval == pytest.approx(getattr(one, kind).interval, abs=0.01)


def test_more_classes_and_labels():
    rng = np.random.default_rng(3)
    truth = rng.integers(3, size=90)
    logits = rng.normal(size=(90, 3)) + 1.5 * np.eye(3)[truth]
    chances = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    names = [str(k) for k in range(90)]
    outcome = PatientEvaluation(averaged(names, chances, truth, None), ("a", "b", "c"))
    assert outcome.area.value == pytest.approx(
        roc_auc_score(truth, chances, multi_class="ovr", average="macro")
    )
    assert outcome.brier == pytest.approx(((chances - np.eye(3)[truth]) ** 2).sum(1).mean())
    labels = (rng.random((90, 2)) < 0.4).astype(int)
    each = 1 / (1 + np.exp(-(rng.normal(size=(90, 2)) + labels)))
    several = PatientEvaluation(averaged(names, each, labels, None), ("x", "y"))
    assert several.area.value == pytest.approx(roc_auc_score(labels, each, average="macro"))
    assert several.confusion is not None
    assert several.to_dict()["confusion"] is None
    assert len(several.choose()) == 2
    assert all(threshold is not None for threshold in several.choose())


def test_few_patients_have_no_interval_and_say_why():
    units = averaged(
        ["a", "b", "c"], np.array([[0.9, 0.1], [0.2, 0.8], [0.4, 0.6]]), np.array([0, 1, 1]), None
    )
    outcome = PatientEvaluation(units, CLASSES)
    assert outcome.area.value == 1
    assert outcome.to_dict()["intervals"]["auc"] is None
    assert "1 patient" in outcome.to_dict()["reasons"]["auc"]
    alone = averaged(["a", "b"], np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([1, 1]), None)
    assert PatientEvaluation(alone, CLASSES).area.value is None


def test_the_band_holds_the_curve():
    names, answers, targets, patients, truth = slides(80)
    units = averaged(names, answers, targets, patients)
    grid, low, high = roc_band(units.answers[:, 1], truth)
    across, upwards = np.array(roc(units.answers[:, 1], truth)).T
    assert np.trapezoid(upwards, across) == pytest.approx(roc_auc_score(truth, units.answers[:, 1]))
    middle = np.interp(grid, across, upwards)
    assert (low <= middle + 0.12).all()
    assert (middle <= high + 0.12).all()
    assert (high - low)[5:60].mean() > 0.05
    copies = np.tile(units.answers[:, 1], 4)
    _, narrow_low, narrow_high = roc_band(copies, np.tile(truth, 4))
    _, same_low, same_high = roc_band(copies, np.tile(truth, 4), np.tile(units.names, 4))
    assert (narrow_high - narrow_low).mean() < 0.7 * (high - low).mean()
    assert (same_high - same_low).mean() == pytest.approx((high - low).mean(), rel=0.1)


def test_areas_of_nobody():
    of_columns, mean = areas(np.ones((4, 2)), np.zeros((4, 2), dtype=bool), None)
    assert mean.value is None
    assert [area.value for area in of_columns] == [None, None]
