"""The loss against its formula, and mixing that derives from (seed, epoch, step)."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from softless.errors import UsageError
from softless.tasks.classification.task import Classification
from softless.training import AugmentSpec, Recipe

COUNTS = (30, 10, 20)


def task(smoothing: float = 0.0, weights: str = "none", seed: int = 0, **augment) -> Classification:
    augment = {"mixup": 0.0, "cutmix": 0.0, **augment}
    recipe = Recipe("t", "", augment=AugmentSpec(smoothing=smoothing, **augment), seed=seed)
    return Classification(recipe.with_fields(class_weights=weights), ("a", "b", "c"), COUNTS)


def test_loss_is_cross_entropy_with_smoothing():
    logits, targets = torch.randn(5, 3, dtype=torch.float64), torch.tensor([0, 1, 2, 2, 1])
    smooth = task(smoothing=0.1)
    expected = torch.nn.functional.cross_entropy(logits, targets, label_smoothing=0.1)
    torch.testing.assert_close(
        smooth.loss(logits, smooth.mix(logits, targets, epoch=0, step=0)[1]), expected
    )


def test_balanced_weights_by_hand_and_over_ranks():
    """w_c = n / (K n_c), divided by the batch: the mean of two halves is the loss of the whole."""
    logits, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 0, 1])
    balanced = task(weights="balanced")
    assert balanced.weight is not None
    weight = torch.tensor([60 / (3 * n) for n in COUNTS])
    torch.testing.assert_close(balanced.weight, weight)
    each = -logits.log_softmax(1)[range(6), targets] * weight[targets]
    soft = balanced.soft(targets)
    torch.testing.assert_close(balanced.loss(logits, soft), each.mean())
    halves = (balanced.loss(logits[:3], soft[:3]) + balanced.loss(logits[3:], soft[3:])) / 2
    torch.testing.assert_close(balanced.loss(logits, soft), halves)


def test_weights_by_name():
    logits, targets = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 0, 1])
    named = task(weights={"c": 4, "a": 0.5})  # type: ignore[arg-type]
    weight = torch.tensor([0.5, 1.0, 4.0])
    each = -logits.log_softmax(1)[range(6), targets] * weight[targets]
    torch.testing.assert_close(named.loss(logits, named.soft(targets)), each.mean())
    typed = task(weights="{c: 4, a: 0.5}")
    torch.testing.assert_close(typed.weight, weight)


def test_mixing_derives_from_seed_epoch_and_step():
    images, targets = torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])

    def mixed(seed: int = 0, epoch: int = 0, step: int = 0) -> torch.Tensor:
        np.random.rand()  # noqa: NPY002 - the caller's generator has no say
        return task(seed=seed, mixup=0.8, cutmix=1.0).mix(
            images.clone(), targets, epoch=epoch, step=step
        )[0]

    torch.testing.assert_close(mixed(), mixed(), rtol=0, atol=0)
    for other in (mixed(seed=1), mixed(epoch=1), mixed(step=1)):
        assert not torch.equal(mixed(), other)


def test_mixing_leaves_the_callers_generator():
    before = np.random.get_state()[1].tolist()  # type: ignore[index]  # noqa: NPY002
    task(mixup=0.8).mix(torch.randn(4, 1, 8, 8), torch.tensor([0, 1, 2, 0]), epoch=0, step=0)
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index]  # noqa: NPY002


def test_mixed_targets_are_probabilities_of_the_mixed_images():
    images = torch.tensor([0.0, 1.0]).view(2, 1, 1, 1).expand(2, 1, 8, 8).clone()
    mixed, soft = task(mixup=0.8).mix(images, torch.tensor([0, 1]), epoch=0, step=3)
    torch.testing.assert_close(soft.sum(1), torch.ones(2))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), soft[:, 1])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: task(mixup=0.8).mix(
                torch.zeros(3, 1, 8, 8), torch.tensor([0, 1, 2]), epoch=0, step=0
            ),
            "3 images a batch",
        ),
        (lambda: task(mixup_mode="paar"), "no mixup mode named 'paar'. Did you mean 'pair'"),
        (
            lambda: Classification(
                replace(Recipe("t", ""), class_weights="balanced"), ("a", "b"), (3, 0)
            ),
            "an image of every class",
        ),
        (lambda: task(weights="{d: 2}"), r"no class \(class_weights\) named 'd'. .*Known: a, b, c"),
        (lambda: task(weights="{a: -2}"), r"class_weights={a: -2} is out of range"),
        (lambda: task(weights="heavy"), r"class_weights='heavy' does not fit"),
    ],
)
def test_what_cannot_be_is_refused(make, message: str):
    with pytest.raises(UsageError, match=message):
        make()
