"""What a step of stored coordinates is: micrometres, pixels of level 0, or both. It is read from
the file or given, and never guessed.
"""

import math
from dataclasses import dataclass, replace

from softless.errors import CoordinateError, UsageError, unknown

UNITS = {"um": "micrometres", "px0": "level-0 pixels"}
MPP = (0.01, 100.0)  # micrometres of a pixel, from electron microscopes to overviews
NEAR = 0.01  # relative difference of two statements of one size
MAGNIFIED = 10.0  # micrometres per pixel times magnification, by convention
FACTOR = 2.05  # by which a scanner may depart from that


@dataclass(frozen=True)
class Given:
    """What a caller says of coordinates.

    Attributes:
        unit: "um" or "px0".
        slide_mpp: micrometres of a level-0 pixel.
        tile: side of a tile, in the unit of the coordinates.
        overlap: of neighbours, in that unit.
    """

    unit: str | None = None
    slide_mpp: float | None = None
    tile: float | None = None
    overlap: float | None = None

    def check(self) -> None:
        """Raise a UsageError for what no coordinates can have."""
        if self.unit is not None and self.unit not in UNITS:
            raise unknown("unit of coordinates", self.unit, tuple(UNITS))
        for name, value in (("slide_mpp", self.slide_mpp), ("tile", self.tile)):
            if value is not None and not (math.isfinite(value) and value > 0):
                raise UsageError(f"{name}={value}: it must be above 0")
        if self.slide_mpp is not None and not MPP[0] <= self.slide_mpp <= MPP[1]:
            raise CoordinateError(
                f"slide_mpp={self.slide_mpp:g}: micrometres of a level-0 pixel lie between "
                f"{MPP[0]:g} and {MPP[1]:g}; a scan at 40x has about 0.25"
            )
        if self.overlap is not None and self.tile is not None and self.overlap >= self.tile:
            raise UsageError(
                f"overlap={self.overlap:g} is not below tile={self.tile:g}: neighbours would "
                "stand on one place"
            )


@dataclass(frozen=True)
class Frame:
    """How stored coordinates are to be read.

    Attributes:
        um: micrometres of one stored step; None where that is unknown.
        px0: level-0 pixels of one stored step; None where that is unknown.
        tile: side of a tile, in stored steps.
        overlap: of neighbouring tiles, in stored steps.
        magnification: of level 0, as the file says it.
        size: width and height of level 0.
    """

    um: float | None = None
    px0: float | None = None
    tile: float | None = None
    overlap: float | None = None
    magnification: float | None = None
    size: tuple[float, float] | None = None

    @property
    def mpp0(self) -> float | None:
        return None if self.um is None or self.px0 is None else self.um / self.px0

    @property
    def unit(self) -> str:
        """What a stored step is called."""
        if self.px0 == 1:
            return UNITS["px0"]
        return UNITS["um"] if self.um == 1 else "stored steps"

    def in_um(self, length: float | None) -> float | None:
        return None if length is None or self.um is None else length * self.um

    def in_px0(self, length: float | None) -> float | None:
        return None if length is None or self.px0 is None else length * self.px0

    def why_no_um(self) -> str:
        """What is missing for micrometres, and how it is given; nothing where none is missing."""
        if self.um is not None:
            return ""
        if self.px0 is not None:
            return (
                "its coordinates are level-0 pixels, and the file does not say how large one is: "
                "give slide_mpp=, the micrometres of a level-0 pixel"
            )
        return (
            "the file does not say what unit its coordinates have: give unit='um', or "
            "unit='px0' and slide_mpp="
        )

    def with_given(self, hints: Given, name: str) -> "Frame":
        """The frame with what the caller says, which may add to the file and not contradict it.

        Raises:
            CoordinateError: file and caller contradict each other; both numbers are named.
        """
        hints.check()
        frame = self
        if hints.unit is not None:
            if (self.um, self.px0) == (None, None):
                um, px0 = (1.0, None) if hints.unit == "um" else (None, 1.0)
                frame = replace(frame, um=um, px0=px0)
            elif getattr(self, hints.unit) != 1:
                raise CoordinateError(
                    f"{name}: its coordinates are {self.unit} by what the file says, and "
                    f"unit='{hints.unit}' says {UNITS[hints.unit]}: leave unit= out"
                )
        frame = frame._with_mpp(hints.slide_mpp, name)
        tile = _agreed(f"{name}: the side of a tile", "tile", frame.tile, hints.tile, frame.unit)
        overlap = _agreed(
            f"{name}: the overlap of tiles", "overlap", frame.overlap, hints.overlap, frame.unit
        )
        return replace(frame, tile=tile, overlap=overlap)

    def _with_mpp(self, mpp: float | None, name: str) -> "Frame":
        if mpp is None:
            return self
        if self.mpp0 is not None:
            _agreed(
                f"{name}: a level-0 pixel", "slide_mpp", self.mpp0, mpp, "micrometres of a pixel"
            )
            return self
        if self.magnification is not None:
            usual = MAGNIFIED / self.magnification
            if not 1 / FACTOR < mpp / usual < FACTOR:
                raise CoordinateError(
                    f"{name}: level 0 is magnified {self.magnification:g} times, which is about "
                    f"{usual:g} micrometres per pixel, and slide_mpp={mpp:g} says another: give "
                    "that of level 0"
                )
        if self.px0 is not None:
            return replace(self, um=self.px0 * mpp)
        if self.um is not None:
            return replace(self, px0=self.um / mpp)
        raise UsageError(
            f"{name}: slide_mpp={mpp:g} is given and the unit of the coordinates is not known: "
            "give unit='px0' or unit='um' too"
        )


def _agreed(
    size: str, setting: str, stored: float | None, stated: float | None, unit: str
) -> float | None:
    """The one of two statements that is there.

    Raises:
        CoordinateError: both are, and they differ.
    """
    if stored is not None and stated is not None:
        if abs(stored - stated) > NEAR * max(abs(stored), abs(stated)):
            raise CoordinateError(
                f"{size} is {stored:g} {unit} by what the file says, and {setting}={stated:g} is "
                f"given: leave {setting}= out, or mend the file"
            )
        return stored
    return stated if stored is None else stored
