"""The settings of bags of features: the group `bags` of a recipe."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from softless.errors import UsageError
from softless.experiment.fields import COUNT, SHARE, TaskSettings, setting


@dataclass(frozen=True)
class BagsSpec(TaskSettings):
    """Slides as bags of features: a class, several labels or a survival time for each patient.

    The fields of `augment` are for images.
    """

    sized: ClassVar[str] = "bags.tiles"
    listed: ClassVar[bool] = True
    called: ClassVar[str] = "bags"

    pool: Literal["gated", "cls", "mean"] = setting(
        "gated", "how tiles become a slide; controls have their own"
    )
    position: Literal["none", "fourier"] = setting(
        "none", "whether the model sees where tiles lie, in micrometres"
    )
    tiles: int | None = setting(
        None,
        "tiles of a bag in training at most, drawn anew in every epoch; none takes all. "
        "Evaluation takes all",
        COUNT,
    )
    keep: float = setting(
        1.0,
        "share of a bag's tiles that is drawn in training; less than all where what tells lies in "
        "many tiles",
        SHARE,
    )
    chunk: int | None = setting(
        None, "tiles at once, for bags that fill the memory; none leaves it to the model", COUNT
    )
    standardise: bool = setting(
        default=True,
        says="scale features by mean and deviation of the training tiles, within the model",
    )
    smoothing: float = setting(0.0, "label smoothing", "[0, 1)")
    unit: Literal["um", "px0"] | None = setting(
        None, "unit of coordinates, where the files do not say it"
    )
    slide_mpp: float | None = setting(
        None, "micrometres of a level-0 pixel, where the files do not say it", "(0, 1000]"
    )
    tile: float | None = setting(
        None, "side of a tile in that unit, where the files do not say it", "(0, inf)"
    )
    overlap: float | None = setting(
        None, "overlap of neighbouring tiles in that unit, likewise", "[0, inf)"
    )
    layout: str | None = setting(None, "tool that wrote the files, where they do not show it")

    @property
    def given(self) -> dict[str, Any]:
        """What `Bag.open` is told of files."""
        said = {
            "unit": self.unit,
            "slide_mpp": self.slide_mpp,
            "tile": self.tile,
            "overlap": self.overlap,
            "layout": self.layout,
        }
        return {name: value for name, value in said.items() if value is not None}

    def check(self, recipe: Any) -> None:
        """Whether the fields go together.

        Raises:
            UsageError: they do not.
        """
        if type(recipe.augment)() != recipe.augment:
            raise UsageError(
                "the fields of augment are for images, and bags hold features: leave them out; "
                "bags.tiles and bags.smoothing change what is trained on"
            )
        if recipe.data.faults == "clip":
            raise UsageError("data.faults=clip is for boxes: bags take stop or skip")


SETTINGS = BagsSpec
