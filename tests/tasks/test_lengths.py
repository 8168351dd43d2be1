from dataclasses import replace

import pytest

from softless.errors import UsageError
from softless.experiment.groups import ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.recipes import get_recipe
from softless.tasks.lengths import fitted


def recipe(**schedule) -> Recipe:
    return Recipe(
        name="x",
        summary="x",
        schedule=ScheduleSpec(**{
            "epochs": 40,
            "warmup_epochs": 4,
            "min_steps": 1000,
            "min_epoch_steps": 10,
            **schedule,
        }),
        batch_size=128,
        ema_decay=0.98,
    )


def test_what_the_recipe_was_made_for_is_left_alone():
    enough = fitted(recipe(), 128 * 25)
    assert enough.recipe == recipe()
    assert enough.changed == {}
    assert enough.sentences(128 * 25) == []


def test_few_images_get_steps():
    few = fitted(recipe(), 300)
    assert few.recipe.batch_size == 16  # 18 steps an epoch; 32 would be 9
    assert (
        few.recipe.schedule.epochs * (300 // 16)
        >= 1000
        > (few.recipe.schedule.epochs - 1) * (300 // 16)
    )
    assert few.recipe.schedule.warmup_epochs == round(4 * few.recipe.schedule.epochs / 40)
    # as many images in the average
    assert few.recipe.ema_decay == pytest.approx(0.98 ** (16 / 128))
    assert set(few.changed) == {
        "batch_size",
        "schedule.epochs",
        "schedule.warmup_epochs",
        "ema_decay",
    }
    batch, epochs = few.sentences(300)
    assert "batch_size 128 -> 16: 300 training images make 2 steps an epoch" in batch
    assert "schedule.epochs 40 -> 56: epochs of 18 steps" in epochs
    assert "schedule.warmup_epochs 4 -> 6" in epochs


def test_milestones_keep_their_share():
    long = fitted(
        recipe(name="multistep", decay_epochs=(20, 30), cooldown_epochs=4, warmup_epochs=0), 1280
    )
    assert long.recipe.schedule.epochs == 100
    assert long.recipe.schedule.decay_epochs == (50, 75)
    assert long.recipe.schedule.cooldown_epochs == 10


@pytest.mark.parametrize("images", [2, 3, 7, 20])
def test_a_handful_of_images_still_makes_pairs(images: int):
    assert fitted(recipe(), images).recipe.batch_size == 2


def test_what_the_user_sets_stays():
    epochs = recipe().with_fields(**{"schedule.epochs": 5})
    assert fitted(epochs, 300).recipe.schedule.epochs == 5
    assert fitted(epochs, 300).recipe.batch_size == 16
    batch = recipe().with_fields(batch_size=64)
    assert fitted(batch, 300).recipe.batch_size == 64
    assert fitted(batch, 300).recipe.schedule.epochs == 250
    both = recipe().with_fields(**{"schedule.epochs": 5, "batch_size": 64})
    assert fitted(both, 300).changed == {}
    longer = recipe().with_fields(**{"schedule.min_steps": 3000})
    assert fitted(longer, 300).recipe.schedule.epochs == 167


@pytest.mark.parametrize(
    ("field", "floor"), [("schedule.epochs", "min_steps"), ("batch_size", "min_epoch_steps")]
)
def test_two_rules_for_one_length_are_refused(field: str, floor: str):
    with pytest.raises(UsageError, match=f"{field} and schedule.{floor} are both set"):
        recipe().with_fields(**{field: 5, f"schedule.{floor}": 100})
    assert recipe().with_fields(**{field: 6, f"schedule.{floor}": None})


@pytest.mark.parametrize(
    "name", ["folder", "medmnist", "digits", "nuclei", "cards", "vessels", "arteries", "aerial"]
)
def test_recipes_for_data_of_one_s_own_have_a_least_length(name: str):
    schedule = get_recipe(name).schedule
    assert schedule.min_steps is not None
    few = fitted(replace(get_recipe(name), ema_decay=None), 30)
    assert few.recipe.schedule.epochs * (30 // few.recipe.batch_size) >= schedule.min_steps
