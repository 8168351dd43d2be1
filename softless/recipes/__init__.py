"""One experiment per file; each module has `recipe()`, which returns a complete frozen Recipe."""

from softless.errors import unknown
from softless.recipes import (
    ade20k_softnorm_upernet,
    aerial,
    arteries,
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
from softless.training.names import ALIASES, canonical
from softless.training.recipe import Recipe

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

__all__ = ["ALIASES", "RECIPES", "canonical", "get_recipe"]


def get_recipe(name: str) -> Recipe:
    """The recipe of this name, or of one that it had once.

    Raises:
        UsageError: there is none; the nearest name is offered.
    """
    if canonical(name) not in RECIPES:
        raise unknown("recipe", name, RECIPES)
    return RECIPES[canonical(name)]()
