"""The settings of distillation: the group `distillation` of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from softless.errors import UsageError
from softless.experiment import augmentation
from softless.experiment.fields import TaskSettings, setting


@dataclass(frozen=True)
class DistillationSpec(TaskSettings):
    """A student that learns a teacher's answers, both modules built in Python."""

    classifies: ClassVar[bool] = True

    teacher: Mapping[str, Any] = setting(
        dict, "the teacher's class, and digests of its outline and its weights"
    )
    compared: Literal["answers", "features"] = setting(
        "answers", "what the student learns: answers of classes, or features of models without"
    )
    temperature: float = setting(
        2.0, "both models' logits are divided by it ahead of the loss", "[0.01, 1000]"
    )
    labels: float = setting(
        0.0,
        "weight of the cross-entropy against the images' labels; 0 leaves labels unused",
        "[0, 1000]",
    )
    classes: tuple[str, ...] = setting(
        (), "names of the models' classes in their order; none takes the images' classes for them"
    )
    trained: Literal["all", "attention", "lora"] = setting(
        "all", "what of the student moves; lora: low-rank updates of its attention's projections"
    )
    rank: int = setting(8, "rank of these updates", "[1, 65536]")
    prepared: bool = setting(
        default=False, says="whether the images are tensors, ready for the models"
    )

    def check(self, recipe: Any) -> None:
        """Whether images and labels can be used as the recipe says.

        Raises:
            UsageError: they cannot, or a field would have no effect.
        """
        augmentation.check_augmentation(recipe)
        augment = recipe.augment
        unused = [name for name in ("mixup", "cutmix", "smoothing") if getattr(augment, name)]
        if unused:
            raise UsageError(
                f"augment.{unused[0]}={getattr(augment, unused[0]):g} changes labels, and a "
                "student learns its teacher's answers: set it to 0"
            )
        if self.prepared and (augment.auto_augment or augment.color_jitter or augment.reprob):
            raise UsageError(
                "augment.auto_augment, augment.color_jitter and augment.reprob change pixels of "
                "pictures, and these images are tensors, ready for the models: set them to none"
            )
        if self.compared == "features" and self.labels:
            raise UsageError(
                f"distillation.labels={self.labels:g}: the models have no classes, so labels "
                "teach nothing; leave them out"
            )
        if recipe.ema_decay is not None or recipe.optim.layer_decay is not None:
            raise UsageError(
                "ema_decay and optim.layer_decay are not for distillation: set both to none"
            )


SETTINGS = DistillationSpec
