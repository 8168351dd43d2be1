"""The settings of several labels an image: the group `multilabel` of a recipe."""

from dataclasses import dataclass
from typing import Any, ClassVar

from softless.errors import UsageError
from softless.experiment import augmentation
from softless.experiment.fields import TaskSettings, setting


@dataclass(frozen=True)
class MultilabelSpec(TaskSettings):
    """Several labels an image, each there or not."""

    classifies: ClassVar[bool] = True

    threshold: float = setting(0.5, "probability from which a label is said", "(0, 1)")

    def check(self, recipe: Any) -> None:
        """Whether images of several labels can be changed as the recipe says.

        Raises:
            UsageError: they cannot.
        """
        augmentation.check_augmentation(recipe)
        augment = recipe.augment
        if (augment.mixup or augment.cutmix) and augment.mixup_prob:
            raise UsageError(
                f"augment.mixup={augment.mixup:g} and augment.cutmix={augment.cutmix:g} mix images "
                "of one label each, and these have several: set both to 0"
            )


SETTINGS = MultilabelSpec
