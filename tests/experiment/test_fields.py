"""Every field of every recipe is described once; types, ranges, nearest names and tables follow
from that.
"""

import dataclasses
import json
import typing
from dataclasses import replace
from typing import Any

import pytest

from lab.settings import (
    FOREIGN,
    NO_NUMBER,
    faults,
    is_refused,
    numbers,
    outside,
    takes_text,
)
from softless.errors import UsageError
from softless.experiment.fields import (
    FieldRow,
    FieldSetting,
    described,
    fits,
    nearest_field,
    typed,
    walk,
)
from softless.experiment.groups import TableSpec
from softless.experiment.recipe import Recipe, as_json, recipe_from
from softless.recipes import RECIPES, get_recipe
from softless.tasks.distillation.settings import DistillationSpec

EVERY = [pytest.param(row, id=row.name) for row in walk(Recipe)]
# recipes that have these groups
HOLDERS = {
    "multilabel": "multilabel",
    "detection": "cards",
    "segmentation": "aerial",
    "dino": "dino",
    "bags": "bags",
}


def holder(name: str) -> Recipe:
    """A recipe that has the field."""
    if name.startswith("table."):
        return replace(get_recipe("folder"), table=TableSpec(path="table.csv"))
    if name.startswith("distillation."):
        return replace(get_recipe("digits"), distillation=DistillationSpec())
    return get_recipe(HOLDERS.get(name.partition(".")[0], "digits"))


def test_every_field_says_what_it_is_and_every_number_has_a_range():
    """A new field of a recipe is written with `setting`, and a range where it is a number."""
    bare = []
    for kind in (
        Recipe,
        *(part for part in map(group, typing.get_type_hints(Recipe).values()) if part),
    ):
        hints = typing.get_type_hints(kind)
        for entry in dataclasses.fields(kind):
            about = entry.metadata.get("setting")
            if group(hints[entry.name]) or (kind is Recipe and entry.name in {"name", "summary"}):
                continue
            if about is None or not about.says or (numbers(hints[entry.name]) and not about.within):
                bare.append(f"{kind.__name__}.{entry.name}")
    assert not bare, "described with softless.experiment.fields.setting, numbers with their range"


def group(hint: Any) -> Any:
    return next(
        (kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)), None
    )


@pytest.mark.parametrize("name", RECIPES)
def test_recipes_lie_in_the_ranges(name: str):
    recipe = get_recipe(name)
    recipe.check()
    for row in walk(recipe):
        assert fits(row.value, row.hint), row.name


@pytest.mark.parametrize("row", EVERY)
def test_defaults_lie_in_their_range(row: FieldRow):
    assert typed(row.value, row.hint, row.name, row.setting) == row.value


@pytest.mark.parametrize(
    "row", [one for one in EVERY if typing.cast("FieldRow", one.values[0]).setting.within]
)
def test_what_lies_below_or_above_is_refused_wherever_it_is_given(row: FieldRow):
    recipe, tried = holder(row.name), 0
    for value in outside(row):
        text = str(value)
        for given in (value, text):
            with pytest.raises(UsageError, match=r"is out of range|does not fit"):
                recipe.with_fields(**{row.name: given})
        with pytest.raises(UsageError, match=row.name):
            put(recipe, row.name, value).check()
        stored = as_json(put(recipe, row.name, value))
        with pytest.raises(UsageError, match=row.name):
            recipe_from(stored)
        tried += 1
    assert tried >= 2


def put(recipe: Recipe, name: str, value: Any) -> Recipe:
    """The field set without a check, as Python's `replace` does."""
    first, _, rest = name.partition(".")
    return replace(
        recipe, **{first: replace(getattr(recipe, first), **{rest: value}) if rest else value}
    )


@pytest.mark.parametrize("row", EVERY)
def test_another_type_and_a_misspelt_name_are_refused_in_one_sentence(row: FieldRow):
    recipe = holder(row.name)
    for wrong in FOREIGN:
        if not fits(wrong, row.hint):
            with pytest.raises(
                UsageError, match=r"does not fit: the field takes|is a group of fields"
            ):
                recipe.with_fields(**{row.name: wrong})
    if numbers(row.hint) and not takes_text(row.hint):
        for text in NO_NUMBER:
            with pytest.raises(UsageError, match="does not fit: the field takes"):
                recipe.with_fields(**{row.name: text})
    misspelt = row.name[:-2] + row.name[-1] + row.name[-2] + "x"
    with pytest.raises(UsageError, match="no field named") as refused:
        recipe.with_fields(**{misspelt: 1})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["true", "True", "TRUE", " true"])
def test_true_and_false_in_any_case(text: str):
    assert get_recipe("medmnist").with_fields(ema_evaluate=text).ema_evaluate is True
    assert (
        get_recipe("medmnist")
        .with_fields(ema_evaluate=text.lower().replace("true", "fALSE"))
        .ema_evaluate
        is False
    )


@pytest.mark.parametrize(
    ("name", "given", "found"),
    [
        ("segmentation.ignore", "background", ("background",)),
        ("segmentation.ignore", "sky,water", ("sky", "water")),
        ("segmentation.ignore", "0", (0,)),
        ("segmentation.ignore", "('a, b',)", ("a, b",)),
        ("segmentation.ignore", "[]", ()),
        ("segmentation.layers", "3", (3,)),
        ("data.mean", "0.5", (0.5,)),
        ("data.mean", "1, 0", (1.0, 0.0)),
        ("data.mean", "NONE", None),
        ("data.path", "2024", "2024"),
        ("data.path", "true", "true"),
        ("data.path", "'quoted'", "quoted"),
        ("class_weights", "none", "none"),
        ("optim.clip_grad", "none", None),
        ("optim.lr", "1", 1.0),
        ("segmentation.crop", "[64, 96]", (64, 96)),
    ],
)
def test_texts_are_read_by_what_the_field_takes(name: str, given: str, found: Any):
    recipe = get_recipe("vessels").with_fields(**{name: given})
    value = next(row.value for row in walk(recipe) if row.name == name)
    assert value == found
    assert type(value) is type(found)


def test_texts_that_are_known_have_a_nearest():
    with pytest.raises(
        UsageError,
        match=r"augment.remode='pixl' is not known. Did you mean 'pixel'. Known: const, rand",
    ):
        get_recipe("digits").with_fields(**{"augment.remode": "pixl"})


def test_one_number_is_not_two():
    with pytest.raises(UsageError, match="does not fit"):
        get_recipe("vessels").with_fields(**{"segmentation.crop": "64"})


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("epochs", "schedule.epochs"),
        ("lr", "optim.lr"),
        ("optim.rl", "optim.lr"),
        ("epoch", "schedule.epochs"),
        ("data.imagesize", "data.image_size"),
        ("train.batch_size", "batch_size"),
        ("batchsize", "batch_size"),
        ("model.args.depth.lr", "optim.lr"),
        ("xyzzy", ""),
    ],
)
def test_the_nearest_name_is_sought_at_any_depth(word: str, meant: str):
    assert nearest_field(word, [row.name for row in walk(Recipe)]) == meant


def test_a_field_of_another_task_is_said_to_be_one():
    with pytest.raises(
        UsageError,
        match=r"'dino.outputs' is a field of dino recipes, and this one is for classification",
    ):
        get_recipe("digits").with_fields(**{"dino.outputs": 8})


def test_what_is_stored_comes_back():
    for name in RECIPES:
        recipe = get_recipe(name)
        stored = json.loads(json.dumps(as_json(recipe)))
        assert as_json(recipe_from(stored)) == stored
        again = recipe_from(stored)
        assert replace(again, model=recipe.model) == recipe, "lists of JSON are tuples again"


def test_order_matters_where_numbers_rise():
    about = FieldSetting("two", rising=True)
    assert about.holds((1, 1))
    assert not about.holds((2, 1))
    assert described(tuple[int, ...]) == "several of: a whole number"


@pytest.mark.parametrize("name", RECIPES)
def test_every_fault_on_every_recipe_is_refused(name: str):
    """What `python -m lab settings` counts; a field that takes anything would be counted as
    accepted.
    """
    recipe = get_recipe(name)
    accepted = [
        (kind, field, value)
        for kind, field, value in faults(recipe)
        if not is_refused(recipe, field, value)
    ]
    assert not accepted
    assert not is_refused(recipe, "optim.lr", recipe.optim.lr)
