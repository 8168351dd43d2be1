"""One experiment per file; each module has `recipe()`, which returns a complete frozen Recipe."""

import importlib.util
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softless.errors import UsageError, located, unknown
from softless.experiment.configuration import BASE, ENDINGS, read_configuration
from softless.experiment.names import ALIASES, canonical
from softless.experiment.recipe import Recipe
from softless.recipes import (
    ade20k_softnorm_upernet,
    aerial,
    arteries,
    bags,
    boxes,
    cards,
    classify,
    coco_sima_maskrcnn,
    coco_softnorm_maskrcnn,
    coco_softnorm_retinanet,
    digits,
    dino,
    imagenet_sima_deit_small,
    imagenet_sima_dino,
    imagenet_sima_xcit_small,
    labels,
    masks,
    medmnist,
    multilabel,
    nuclei,
    vessels,
)

RECIPES = {
    "digits": digits.recipe,
    "classify": classify.recipe,
    "boxes": boxes.recipe,
    "masks": masks.recipe,
    "labels": labels.recipe,
    "medmnist": medmnist.recipe,
    "multilabel": multilabel.recipe,
    "imagenet_sima_deit_small": imagenet_sima_deit_small.recipe,
    "imagenet_sima_xcit_small": imagenet_sima_xcit_small.recipe,
    "dino": dino.recipe,
    "bags": bags.recipe,
    "imagenet_sima_dino": imagenet_sima_dino.recipe,
    "ade20k_softnorm_upernet": ade20k_softnorm_upernet.recipe,
    "vessels": vessels.recipe,
    "arteries": arteries.recipe,
    "aerial": aerial.recipe,
    "nuclei": nuclei.recipe,
    "cards": cards.recipe,
    "coco_sima_maskrcnn": coco_sima_maskrcnn.recipe,
    "coco_softnorm_maskrcnn": coco_softnorm_maskrcnn.recipe,
    "coco_softnorm_retinanet": coco_softnorm_retinanet.recipe,
}

# what a recipe has in place of its own fields where a run starts from weights
FINE_TUNING: Mapping[str, Mapping[str, Any]] = {"classify": classify.FINE_TUNING}

__all__ = ["ALIASES", "FINE_TUNING", "RECIPES", "canonical", "get_recipe"]


def get_recipe(name: str) -> Recipe:
    """The recipe of this name, of one that it had once, or of a file `my_recipe.py` or
    `my_recipe.yaml`.

    A file of Python holds `recipe()`, as the modules here do, and is run; one of YAML holds a
    complete recipe, or names the recipe that its fields are set of.

    Raises:
        UsageError: there is none, the nearest name is offered; or the file gives no recipe.
    """
    if name.endswith(".py"):
        return _of_file(located(name))
    if name.endswith(ENDINGS):
        return _of_yaml(located(name))
    if canonical(name) not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[canonical(name)]()


def _of_yaml(file: Path) -> Recipe:
    """The recipe that a YAML file holds, or describes by another."""
    configuration = read_configuration(file)
    if configuration.complete is not None:
        return configuration.complete
    if configuration.base is None:
        raise UsageError(f"{file} names no recipe: add a line `{BASE}: NAME`, or give --recipe")
    return get_recipe(configuration.base).with_fields(**configuration.fields)


def _of_file(file: Path) -> Recipe:
    """What `recipe()` of a file returns."""
    if not file.is_file():
        raise UsageError(f"no recipe file {file}: name a file that holds recipe(), or a recipe")
    module_spec = importlib.util.spec_from_file_location(f"softless_recipe_{file.stem}", file)
    assert module_spec is not None, "the name ends in .py"
    assert module_spec.loader is not None
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
        make = getattr(module, "recipe", None)
        recipe = make() if callable(make) else None
    except UsageError:
        raise
    except Exception as error:
        line = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UsageError(
            f"{file} ends in an error ({line}): mend it; --debug shows where"
        ) from error
    if not isinstance(recipe, Recipe):
        problem = (
            "has no recipe()" if make is None else f"gives {type(recipe).__name__} by recipe()"
        )
        raise UsageError(
            f"{file} {problem}: it must hold `def recipe()`, which returns a "
            "softless.training.Recipe"
        )
    return recipe
