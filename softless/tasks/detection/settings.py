"""The settings of detection: the group `detection` of a recipe."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from softless.errors import UsageError, unknown
from softless.experiment.fields import CHANCE, COUNT, SIDE, TaskSettings, setting

# what can be measured on the training boxes (`sizes`)
MEASURABLE = ("anchors", "resize", "canvas", "scale")


@dataclass(frozen=True)
class DetectionSpec(TaskSettings):
    """Detection, and instance segmentation where the head has masks."""

    sized: ClassVar[str] = (
        "detection.resize and detection.longest (evaluation), detection.canvas and "
        "detection.scale (training)"
    )

    head: Literal["maskrcnn", "fasterrcnn", "retinanet"] = setting(
        "maskrcnn", "head on the pyramid"
    )
    layers: tuple[int, ...] | None = setting(
        None,
        "of a host of one grid, from 1: those whose tokens are taken",
        "[1, 10000]",
        rising=True,
    )
    width: int = setting(256, "channels of pyramid and heads", "[1, 65536]")
    norm: Literal["none", "group"] = setting("none", "norm of pyramid and convolutional heads")
    measure: tuple[str, ...] = setting(
        (),
        "fields that are measured on the training boxes; one that is set too is not measured",
        choices=MEASURABLE,
    )
    anchors: tuple[float, ...] | None = setting(
        None,
        "sides of the anchors on the five maps; none: 32, 64, 128, 256, 512",
        "(0, 65536]",
        unit="pixels",
    )
    proposals: int = setting(
        1000, "proposals of an image in evaluation; twice as many in training", COUNT
    )
    regions: int = setting(512, "proposals that the second stage learns from", COUNT)
    detections: int = setting(100, "answers for an image at most, and what AP looks at", COUNT)
    min_score: float = setting(0.05, "lowest score of an answer", CHANCE)
    resize: int | None = setting(
        800, "shorter side in evaluation; none leaves the size", SIDE, unit="pixels"
    )
    longest: int = setting(1333, "longer side at most", SIDE, unit="pixels")
    canvas: tuple[int, int] | None = setting(
        None,
        "height and width in training, multiples of 32; none draws the shortest side",
        "[32, 65536]",
        unit="pixels",
    )
    scale: tuple[float, float] = setting(
        (0.5, 2.0), "random scale on a canvas", "(0, 1000]", rising=True
    )
    shortest: tuple[int, ...] = setting(
        (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        "shorter sides to draw from, without a canvas",
        "[32, 65536]",
        unit="pixels",
    )
    crop_share: float = setting(
        0.5, "share of the images that are cropped before, without a canvas", CHANCE
    )
    hflip: float = setting(0.5, "chance of a horizontal flip", CHANCE)
    vflip: float = setting(0.0, "chance of a vertical flip", CHANCE)
    quarter_turns: bool = setting(default=False, says="random quarter turns of a square canvas")
    photometric: bool = setting(default=False, says="SSD's distortion of colours")
    faults: Literal["stop", "skip", "clip"] = setting(
        "stop",
        "annotations that cannot be used: stop, leave them out, or cut those that reach outside",
    )

    def check(self, recipe: Any = None) -> None:
        """Whether the fields of training go together.

        Raises:
            UsageError: they do not.
        """
        del recipe  # none of its other fields matters here
        if strange := sorted(set(self.measure) - set(MEASURABLE)):
            raise unknown("field of detection that can be measured", strange[0], MEASURABLE)
        if self.canvas is not None and (
            min(self.canvas) < 32 or any(side % 32 for side in self.canvas)
        ):
            raise UsageError(
                f"detection.canvas={self.canvas}: height and width are multiples of 32, or none "
                "for DETR's sizes"
            )
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UsageError(
                f"detection.scale={self.scale}: two positive numbers, the smaller first"
            )
        if self.quarter_turns and (self.canvas is None or self.canvas[0] != self.canvas[1]):
            raise UsageError(
                "detection.quarter_turns turns a square canvas: set detection.canvas=(256,256) or "
                "the like"
            )
        if self.canvas is None and (not self.shortest or min(self.shortest) < 32):
            raise UsageError(
                f"detection.shortest={self.shortest}: sides of at least 32 pixels to draw from"
            )


SETTINGS = DetectionSpec
