"""Each class, the threshold of validation and intervals, against scikit-learn, on friendly and
unfriendly sets.
"""

import numpy as np
import pytest
import torch
from sklearn.metrics import (
    confusion_matrix,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

from softless.evaluation import details as module
from softless.evaluation import wilson
from softless.evaluation.details import details, operating, youden
from softless.evaluation.metrics import measure, second_class


def draw(n=300, classes=4, seed=0):
    rng = np.random.default_rng(seed)
    targets = rng.choice(classes, n, p=np.arange(1, classes + 1) / (classes * (classes + 1) / 2))
    logits = rng.normal(size=(n, classes)).astype(np.float32)
    logits[np.arange(n), targets] += 1
    return logits, targets


def told(logits, targets, names=None):
    metrics = measure(torch.from_numpy(logits), torch.from_numpy(targets))
    return details(metrics, logits, targets, names or tuple("abcdefghijkl"[: logits.shape[1]]))


@pytest.mark.parametrize("classes", [2, 4])
def test_each_class_is_scikit_learn_s(classes):
    logits, targets = draw(classes=classes)
    found, said = told(logits, targets), logits.argmax(1)
    p = torch.from_numpy(logits).double().softmax(1).numpy()
    labels = range(classes)
    for name, theirs in (("precision", precision_score), ("recall", recall_score)):
        wanted = theirs(targets, said, labels=labels, average=None)
        assert [one.value for one in found.of_class[name]] == pytest.approx(wanted, abs=1e-9)
    areas = [roc_auc_score(targets == label, p[:, label]) for label in labels]
    assert [one.value for one in found.of_class["auc"]] == pytest.approx(areas, abs=1e-9)
    assert found.overall["auc"].value == pytest.approx(np.mean(areas), abs=1e-9)
    for one in (*found.overall.values(), *(one for row in found.of_class.values() for one in row)):
        low, high = one.interval or (1.0, 0.0)
        assert low < one.value < high
    hits = int((said[targets == 1] == 1).sum())
    assert found.of_class["recall"][1].interval == pytest.approx(
        wilson(hits, int((targets == 1).sum()))
    )


def test_draws_and_their_limit_agree(monkeypatch):
    logits, targets = draw(2000, 4)
    drawn = told(logits, targets)
    monkeypatch.setattr(module, "MOST", 0)
    limit = told(logits, targets)
    for one, other in zip(
        [drawn.overall["auc"], *drawn.of_class["auc"]],
        [limit.overall["auc"], *limit.of_class["auc"]],
        strict=True,
    ):
        assert one.value == other.value
        assert one.high - one.low == pytest.approx(other.high - other.low, rel=0.06)


def test_a_class_that_does_not_occur_has_no_numbers_but_reasons():
    logits, targets = draw()
    kept = targets != 2
    found = told(logits[kept], targets[kept])
    assert [found.of_class[name][2].value for name in ("recall", "auc")] == [None, None]
    assert found.of_class["recall"][2].why == "no image is of class c"
    assert found.of_class["auc"][2].why == "no image is of this class"
    assert found.of_class["precision"][2].value == 0.0, "it is answered, and never rightly"
    assert all(found.of_class[name][0].value is not None for name in ("precision", "recall", "auc"))


def test_a_class_that_is_never_answered_has_no_precision():
    found = told(np.array([[2.0, 0.0]] * 12, dtype=np.float32), np.arange(12) % 2)
    assert (found.of_class["precision"][1].value, found.of_class["precision"][1].why) == (
        None,
        "b is never answered",
    )
    assert found.of_class["auc"][1].value == 0.5
    assert found.of_class["auc"][1].interval is None, "all draws of equal scores are 0.5"


@pytest.mark.parametrize("images", [1, 5])
def test_one_class_alone(images):
    logits = np.random.default_rng(0).normal(size=(images, 3)).astype(np.float32)
    found = told(logits, np.ones(images, dtype=np.int64))
    assert (found.overall["auc"].value, found.overall["auc"].why) == (None, "only one class occurs")
    assert found.overall["balanced_accuracy"].value == (logits.argmax(1) == 1).mean()
    assert found.overall["balanced_accuracy"].interval is None


def test_a_rare_class_has_no_interval():
    logits, targets = draw(200, 2)
    targets[:] = 0
    targets[:3] = 1
    found = told(logits, targets)
    assert found.of_class["auc"][1].value is not None
    assert found.of_class["auc"][1].why == "it would rest on 3 images, and at least 10 are needed"
    assert found.overall["auc"].interval is None


def test_classes_wholly_apart_have_an_area_without_interval():
    logits = np.array([[1.0, -1.0]] * 20 + [[-1.0, 1.0]] * 20, dtype=np.float32)
    found = told(logits, np.repeat([0, 1], 20))
    assert found.overall["auc"].value == 1.0
    assert found.overall["auc"].interval is None


@pytest.mark.parametrize("seed", range(5))
def test_the_threshold_is_the_best_of_scikit_learn_s_curve(seed):
    logits, targets = draw(80, 2, seed)
    chances = second_class(np.round(logits, 1 if seed % 2 else 7))
    chosen = youden(chances, targets == 1)
    assert chosen is not None
    false, true, _ = roc_curve(targets == 1, chances, drop_intermediate=False)
    said = chances >= chosen
    reached = said[targets == 1].mean() - said[targets == 0].mean()
    assert reached == pytest.approx((true - false).max(), abs=1e-9)
    assert np.abs(chances - chosen).min() > 0, (
        "it lies between probabilities, so that rounding moves no image across it"
    )


@pytest.mark.parametrize(
    ("chances", "positive"),
    [
        ([0.2, 0.4], [True, True]),
        ([0.2, 0.4], [False, False]),
        ([0.3, 0.3, 0.3], [True, False, True]),
        ([0.9, 0.1], [False, True]),
        ([0.5], [True]),
    ],
)
def test_there_may_be_no_threshold(chances, positive):
    assert youden(np.array(chances), np.array(positive)) is None


def test_neighbouring_numbers_are_told_apart():
    low = np.nextafter(0.5, 0)
    assert youden(np.array([low, 0.5]), np.array([False, True])) == 0.5


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.62, 1.0])
def test_an_operating_point_is_scikit_learn_s(threshold):
    logits, targets = draw(90, 2, 3)
    point = operating(logits, targets, ("healthy", "ill"), threshold)
    said = torch.from_numpy(logits).double().softmax(1)[:, 1].numpy() >= threshold
    ((passed, called), (missed, found)) = confusion_matrix(targets, said, labels=[0, 1])
    assert point.counts == (found, missed, passed, called)
    assert point.sensitivity.value == pytest.approx(recall_score(targets, said), abs=1e-9)
    assert point.specificity.value == pytest.approx(
        recall_score(targets, said, pos_label=0), abs=1e-9
    )
    assert point.sensitivity.interval == pytest.approx(wilson(int(found), int(found + missed)))
    assert point.to_dict()["positive"] == "ill"


@pytest.mark.parametrize(
    ("label", "of", "why"),
    [
        (0, "sensitivity", "no image is of class ill"),
        (1, "specificity", "every image is of class ill"),
    ],
)
def test_one_class_alone_has_one_side_of_a_threshold(label, of, why):
    logits, _ = draw(12, 2)
    point = operating(logits, np.full(12, label), ("healthy", "ill"), 0.5)
    assert (getattr(point, of).value, getattr(point, of).why) == (None, why)
    other = "specificity" if of == "sensitivity" else "sensitivity"
    assert getattr(point, other).value is not None
