"""The settings of segmentation: the group `segmentation` of a recipe."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from softless.errors import UsageError
from softless.experiment.fields import CHANCE, SHARE, WEIGHT, TaskSettings, setting
from softless.tasks.segmentation.meanings import checked_values


@dataclass(frozen=True)
class SegmentationSpec(TaskSettings):
    """Semantic segmentation: a class for each pixel.

    The images' changes in training are here; the fields of `augment` are for classification.
    """

    sized: ClassVar[str] = (
        "segmentation.scale and segmentation.crop (training); evaluation takes whole images"
    )

    decoder: Literal["upernet", "dpt"] = setting("upernet", "decoder on the host's maps")
    width: int = setting(256, "channels of the decoder", "[1, 65536]")
    layers: tuple[int, ...] | None = setting(
        None,
        "of a host of one grid, from 1: those whose tokens are taken",
        "[1, 10000]",
        rising=True,
    )
    labels: str | None = setting(
        None, "folder of label images; none is labels, or ADE20K's annotations"
    )
    values: Mapping[int | str, str] | None = setting(
        None,
        "names of stored values, as {0: background, 127: cell}; several may share one, void "
        "counts nowhere; none is classes.json",
        "[0, 255]",
    )
    ignore: tuple[str | int, ...] = setting(
        (), "classes by name, or values, that count nowhere and have no output", "[0, 65535]"
    )
    fov: str | None = setting(None, "folder of masks: pixels where they are 0 count nowhere")
    observer: str | None = setting(
        None, "folder of label images by another person, to hold scores against"
    )
    crop: tuple[int, int] | None = setting(
        None,
        "height and width of a random crop in training; none trains on whole images",
        "[32, 65536]",
        unit="pixels",
    )
    crop_share: float = setting(
        1.0, "most of the pixels that one class may have in a crop; ten draws at most", SHARE
    )
    scale: tuple[float, float] = setting(
        (1.0, 1.0), "random scale in training", "(0, 1000]", rising=True
    )
    hflip: float = setting(0.5, "chance of a horizontal flip", CHANCE)
    vflip: float = setting(0.0, "chance of a vertical flip", CHANCE)
    quarter_turns: bool = setting(default=False, says="random quarter turns")
    color_jitter: float | None = setting(
        None, "strength of changes of brightness, contrast and saturation", "[0, 10]"
    )
    photometric: bool = setting(default=False, says="SSD's distortion of colours")
    dice: float = setting(0.0, "weight of the soft Dice loss beside cross-entropy", "[0, inf)")
    class_weights: Literal["none", "balanced"] | Mapping[int | str, float] = setting(
        "none",
        "weights of cross-entropy: by the training pixels, or by name as {cell: 2}, 1 for the "
        "others",
        WEIGHT,
    )

    def check(self, recipe: Any = None) -> None:
        """Whether the fields of training go together.

        Raises:
            UsageError: they do not.
        """
        del recipe  # none of its other fields matters here
        if self.values is not None:
            checked_values(self.values)
        if self.crop is not None and min(self.crop) < 32:
            raise UsageError(
                f"segmentation.crop={self.crop}: height and width of at least 32 pixels, or none "
                "for whole images"
            )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UsageError(
                f"segmentation.scale={self.scale}: two positive numbers, the smaller first; (1.0, "
                "1.0) leaves the size"
            )
        if not 0 < self.crop_share <= 1:
            raise UsageError(
                f"segmentation.crop_share={self.crop_share}: the largest share of one class in a "
                "crop lies in (0, 1]"
            )


SETTINGS = SegmentationSpec
