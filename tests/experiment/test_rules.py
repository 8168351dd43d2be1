"""Rules between the fields of a recipe, each held before data are opened."""

import logging
from typing import Any

import pytest

from softless.errors import UsageError
from softless.experiment.recipe import Recipe
from softless.recipes import RECIPES, get_recipe
from softless.tasks.table import open_task
from softless.training import fit


def with_(name: str, **fields: Any) -> Recipe:
    return get_recipe(name).with_fields(**{
        key.replace("__", "."): value for key, value in fields.items()
    })


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        (
            "digits",
            {"optim__lr": 2e-6},
            r"min_lr=1e-05, .* above the effective rate 2e-06 .* schedule.min_lr=2e-08",
        ),
        (
            "imagenet_sima_deit_small",
            {"batch_size": 4},
            r"min_lr=1e-05, .* times batch_size=4 / optim.base_batch=512",
        ),
        (
            "digits",
            {"schedule__warmup_lr": 1},
            r"warmup_lr=1, the rate at the start, is above the effective rate 0.0015",
        ),
        (
            "digits",
            {"schedule__epochs": 3, "schedule__warmup_epochs": 3},
            "warm-up shorter than the run",
        ),
        ("digits", {"schedule__decay_epochs": 3}, "no other schedule takes them"),
        ("digits", {"ema_decay": "none"}, "ema_evaluate=true needs averaged weights"),
        ("digits", {"data__mean": 0.5}, "set data.mean and data.std together"),
        (
            "digits",
            {"data__mean": "0.5, 0.5", "data__std": "1, 1"},
            "data.mean has 2 numbers for data.in_chans=1",
        ),
        ("digits", {"optim__name": "adamv"}, "no optimiser named 'adamv'. Did you mean 'adam"),
        ("digits", {"optim__name": "sgd", "optim__betas": "0.8,0.9"}, "takes no optim.betas"),
        (
            "digits",
            {"augment__mixup": 0.1, "batch_size": 33},
            "mixup and cutmix mix pairs, and batch_size=33 is odd",
        ),
        ("medmnist", {"augment__auto_augment": "augmix-m5"}, "only RandAugment"),
        ("imagenet_sima_deit_small", {"augment__auto_augment": "rand-q9"}, "is no policy of timm"),
        ("imagenet_sima_deit_small", {"augment__auto_augment": "rnd-m9"}, "is no policy of timm"),
        ("cards", {"detection__canvas": "100,128"}, "height and width are multiples of 32"),
        ("cards", {"detection__canvas": "64,128"}, "quarter_turns turns a square canvas"),
        ("coco_sima_maskrcnn", {"detection__shortest": "()"}, "sides of at least 32 pixels"),
    ],
)
def test_what_does_not_go_together_is_refused_before_any_work(
    name: str, fields: dict[str, Any], said: str, tmp_path: Any
):
    recipe = with_(name, **{"data__path": str(tmp_path / "nowhere"), **fields})
    for begin in (
        recipe.check,
        lambda: open_task(recipe),
        lambda: fit(recipe, tmp_path / "run", device="cpu"),
    ):
        with pytest.raises(UsageError, match=said) as refused:
            begin()
        assert "\n" not in str(refused.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["constant", "step"])
def test_a_floor_that_a_schedule_has_not_is_no_fault(name: str):
    recipe = with_("digits", optim__lr=2e-6, schedule__name=name, schedule__warmup_lr=0)
    recipe.check()
    assert recipe.schedule.min_lr > recipe.effective_lr


@pytest.mark.parametrize("name", RECIPES)
def test_a_quick_run_keeps_the_rate(name: str, tmp_path: Any):
    recipe = get_recipe(name)
    quick = recipe.quick(tmp_path)
    quick.check()
    assert quick.effective_lr == recipe.effective_lr


@pytest.mark.parametrize(
    ("name", "epochs", "warmup"),
    [
        ("folder", 1, 0),
        ("medmnist", 1, 0),
        ("cards", 1, 0),
        ("digits", 5, 0),
        ("imagenet_sima_dino", 10, 1),
    ],
)
def test_a_run_shorter_than_its_warm_up_has_one_in_proportion(
    name: str, epochs: int, warmup: int, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.WARNING)
    own = get_recipe(name).schedule
    shorter = with_(name, schedule__epochs=epochs)
    assert (shorter.schedule.epochs, shorter.schedule.warmup_epochs) == (epochs, warmup)
    assert f"warm-up of {own.warmup_epochs} epochs: schedule.warmup_epochs={warmup}" in caplog.text
    shorter.check()


def test_a_warm_up_that_fits_or_was_set_stays(caplog: pytest.LogCaptureFixture):
    assert with_("digits", schedule__epochs=6).schedule.warmup_epochs == 5
    for fields in (("epochs", "warmup_epochs"), ("warmup_epochs", "epochs")):
        values = {"epochs": 2, "warmup_epochs": 2}
        recipe = with_("digits", **{f"schedule__{name}": values[name] for name in fields})
        with pytest.raises(UsageError, match="schedule of 2 epochs with 2 of warm-up"):
            recipe.check()
    assert not caplog.records
