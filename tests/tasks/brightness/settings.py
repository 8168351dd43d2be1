"""The settings of brightness: the group `brightness` of a recipe."""

from dataclasses import dataclass

from softless.experiment.fields import TaskSettings, setting


@dataclass(frozen=True)
class BrightnessSpec(TaskSettings):
    """How bright an image is, as one number."""

    power: float = setting(2.0, "power of the error in the loss", "[1, 4]")
    width: int = setting(64, "channels of the head", "[1, 65536]")


SETTINGS = BrightnessSpec
