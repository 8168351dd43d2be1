"""Slides and TIFFs as files: their levels exactly as they are stored, through tifffile or through
openslide.

| file | reader |
| --- | --- |
| SVS, tiled TIFF and TIFF in strips, OME-TIFF, Philips-TIFF, qptiff | tifffile and imagecodecs, tile by tile |
| MRXS, NDPI, VMS, VMU, SCN, BIF, CZI, SVSLIDE, Trestle, DICOM | openslide, at levels whose places are whole pixels |
"""

# C channels, h x w pixels

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from softless.data import tags, tiff_pages
from softless.data.deep import in_range, of_tiles
from softless.data.images import MAX_PIXELS, MIN_SIDE, UPRIGHT, Remark, bad_image, limit
from softless.data.tiff import Damaged, Tiles
from softless.data.tiff_pages import JPEG, OPENSLIDE, PLAUSIBLE, Contents, Resolution
from softless.errors import DataError, MissingExtra, UsageError
from softless.experiment.ranges import Range
from softless.slides.pixels import Lost, Unreadable, as_channels

SLIDE_TYPES = frozenset({
    ".svs",
    ".ndpi",
    ".mrxs",
    ".scn",
    ".vms",
    ".vmu",
    ".bif",
    ".svslide",
    ".czi",
})
DICOM_TYPES = frozenset({".dcm", ".dicom"})
WHITE = (255, 255, 255)
SHIFT = 1 / 1024  # of a pixel, up to which a place is whole: cairo has 256 steps in a pixel
# formats of openslide whose tiles are those of the TIFF
CHECKED = frozenset({
    "aperio",
    "generic-tiff",
    "philips-tiff",
})
Sides = tuple[int, int]


@dataclass(frozen=True)
class Choice:
    """What a reader asked for of a file that holds several things."""

    channels: tuple[int, ...] | None = None
    page: int | None = None
    scale: Range | None = None  # the declared range of its values

    def values(self, path: Path) -> tags.Values | None:
        """What becomes of the stored numbers of a file, where a range is declared: float32 in 0..1.

        Raises (when called):
            BadImage: NaN or infinity, or bytes under a range that reaches beyond them.
        """
        scale = self.scale
        if scale is None:
            return None
        return lambda numbers: in_range(of_tiles(numbers), path, scale)

    def refuse(self, source: str) -> None:
        """For an image that leaves no choice.

        Raises:
            UsageError: something was chosen.
        """
        for name, value in (("channels", self.channels), ("page", self.page)):
            if value is not None:
                raise UsageError(
                    f"{name}= chooses inside a TIFF, and {source} leaves no choice: leave it out"
                )


class Levels:
    """A slide at one of its levels, and what it says of all of them.

    Attributes:
        sizes: Height and width of each level.
        works: Whether a level can be read exactly.
        resolution: Of level 0.
        bounds: (x, y, width, height) of what was scanned, in pixels of level 0, where the file says
            it.
        remarks: What was seen of the file.
        orientation: Of the file, 1 to 8; it was undone.
    """

    path: Path
    level: int
    channels: int
    sizes: Sequence[Sides]
    works: Sequence[bool]
    resolution: Resolution
    bounds: tuple[int, int, int, int] | None = None
    remarks: tuple[Remark, ...] = ()
    orientation: int = UPRIGHT

    @property
    def size(self) -> Sides:
        """Height and width of this level."""
        return self.sizes[self.level]

    def scale(self, level: int) -> tuple[float, float]:
        """Pixels of level 0 in one of a level, down and across."""
        return self.sizes[0][0] / self.sizes[level][0], self.sizes[0][1] / self.sizes[level][1]

    def at(self, level: int) -> "Levels":
        """The same slide at another level; this one is closed.

        Raises:
            UsageError: there is no such level, or it cannot be read exactly.
        """
        raise NotImplementedError

    def read(
        self, top: int, left: int, height: int, width: int, lost: list[Lost] | None = None
    ) -> NDArray[Any]:
        """A region (h,w,C) of this level, as `Pixels.read`."""
        raise NotImplementedError

    def close(self) -> None:
        """Give the file back."""
        raise NotImplementedError

    def _refuse_level(self, level: int) -> None:
        count = len(self.sizes)
        if not 0 <= level < count:
            raise UsageError(f"{self.path} has no level {level}: its levels are 0 to {count - 1}")
        if not self.works[level]:
            working = ", ".join(str(number) for number, works in enumerate(self.works) if works)
            raise UsageError(
                f"level {level} of {self.path} cannot be read as it is stored, since "
                f"{self.scale(level)[1]:.6g} pixels of level 0 make one of its "
                f"own and openslide takes places of level 0: these levels work: {working}; mpp= "
                "scales one of them"
            )


class StoredLevel(Levels):
    """A level of a TIFF through tifffile: the stored pixels, tile by tile."""

    def __init__(self, path: Path, level: int, channels: int, choice: Choice | None = None) -> None:
        self.path, self.level, self.channels, self.choice = (
            path,
            level,
            channels,
            choice or Choice(),
        )
        file = tiff_pages.opened(path)
        if file is None:
            raise DataError(
                f"{path} cannot be opened as a TIFF: its header is damaged; replace or remove the "
                "file"
            )
        self.file = file
        try:
            self._know(tiff_pages.contents(file))
        except tiff_pages.DAMAGED as error:
            file.close()
            if isinstance(error, UsageError):  # a sentence already
                raise
            raise bad_image(
                path, "damaged", f"its tags are damaged ({error}); replace or remove the file"
            ) from error
        except BaseException:
            file.close()
            raise

    def _know(self, contents: Contents) -> None:
        """Judge what the file holds, and find the levels of the picture that is asked for."""
        choice = self.choice
        try:
            values = choice.values(self.path)
            verdict = tags.judged(
                contents, channels=choice.channels, page=choice.page, values=values
            )
            tiles = [
                Tiles(self.file, verdict, number, values)
                for number in range(len(verdict.picture.levels))
            ]
        except tags.Refused as error:
            raise bad_image(self.path, error.kind, error.text, f"{self.path} holds ") from error
        except tags.NoSuch as error:
            raise UsageError(f"{self.path}: {error}") from error
        self.verdict = verdict
        self.sizes, self.works = [tile.size for tile in tiles], [True] * len(tiles)
        self._refuse_level(self.level)
        self.tiles = tiles[self.level]
        self.orientation = tiles[0].turn.orientation
        self._refuse_size()
        self.resolution = _upright(contents.resolution, swapped=tiles[0].turn.swaps)
        self.remarks = tuple(Remark(*remark) for remark in verdict.remarks)
        self.check = _Check(self) if self._checkable(contents) else None

    def _refuse_size(self) -> None:
        """A whole picture may have any size; what is decoded at once may not."""
        max_pixels = limit("SOFTLESS_MAX_PIXELS", MAX_PIXELS)
        once = self.tiles.segment[0] * self.tiles.segment[1]
        min_side = limit("SOFTLESS_MIN_SIDE", MIN_SIDE)
        if once > max_pixels:
            reason = (
                f"its tags say one tile of {once} pixels, and at most {max_pixels} are decoded at "
                f"once; make it smaller, or set SOFTLESS_MAX_PIXELS={once} if you trust it"
            )
            raise bad_image(self.path, "too many pixels", reason)
        if min(self.sizes[0]) < min_side:
            height, width = self.sizes[0]
            reason = (
                f"it is {width} x {height} pixels, and both sides must have at least "
                f"{min_side}; remove it, or set SOFTLESS_MIN_SIDE={min(height, width)} to have "
                "it read"
            )
            raise bad_image(self.path, "too small", reason)

    def _checkable(self, contents: Contents) -> bool:
        """Whether openslide sees the same JPEG tiles."""
        picture = self.verdict.picture
        own = picture is contents.pictures[0] and len(picture.levels[0]) == 1
        return own and int(self.tiles.page.compression) == JPEG and bool(self.tiles.page.is_tiled)

    def at(self, level: int) -> "StoredLevel":
        self._refuse_level(level)
        self.close()
        return StoredLevel(self.path, level, self.channels, self.choice)

    def read(
        self, top: int, left: int, height: int, width: int, lost: list[Lost] | None = None
    ) -> NDArray[Any]:
        """As `Pixels.read`: (height, width, C).

        Raises:
            Unreadable: a tile of it cannot be read, and there is no `lost`.
        """
        values, bad = self.tiles.read(top, left, height, width, self.check)
        if bad and lost is None:
            raise Unreadable(bad[0].reason)
        if lost is not None:
            lost += [
                Lost(
                    self.level,
                    tile.left,
                    tile.top,
                    tile.reason,
                    (tile.top, tile.left, tile.bottom, tile.right),
                )
                for tile in bad
            ]
        return as_channels(values, self.channels)

    def close(self) -> None:
        self.file.close()
        if self.check is not None:
            self.check.close()


class _Check:
    """Has a JPEG tile decoded by openslide too, which tells of damaged data: imagecodecs fills them
    up with grey, without a word.

    Openslide decodes the whole tile for one pixel of it, so the middle one is asked for.
    """

    def __init__(self, stored: StoredLevel) -> None:
        self.path, self.size, self.level = stored.path, stored.tiles.stored, 0
        self.handle: Any = None
        try:
            self.lib = openslide(stored.path)
            if self.lib.OpenSlide.detect_format(str(self.path)) in CHECKED:
                self._open()
        except (MissingExtra, DataError):
            self.handle = None

    def _open(self) -> None:
        self.handle = opened_by(self.lib, self.path)
        with suppress(self.lib.OpenSlideError):  # a library before 4.0 has one size of cache
            self.handle.set_cache(self.lib.OpenSlideCache(0))  # each tile is looked at once
        sizes = [(height, width) for width, height in self.handle.level_dimensions]
        if self.size in sizes:
            self.level = sizes.index(self.size)
        else:
            self.close()

    def __call__(self, top: int, left: int, height: int, width: int) -> None:
        """Look at the tile that has this rectangle of the stored level.

        Raises:
            Damaged: openslide cannot decode it.
        """
        if self.handle is None:
            return
        step = self.handle.level_downsamples[self.level]
        middle = round((left + width / 2) * step), round((top + height / 2) * step)
        try:
            self.handle.read_region(middle, self.level, (1, 1))
        except self.lib.OpenSlideError as error:
            self.close()
            self._open()  # its handle is of no use after an error
            raise Damaged(" ".join(str(error).split())) from error

    def close(self) -> None:
        """Give the file back."""
        if self.handle is not None:
            self.handle.close()
            self.handle = None


class Slide(Levels):
    """A level of a slide through openslide; after an error the file is opened again, since
    openslide's handle is of no use then.
    """

    def __init__(self, path: Path, level: int, channels: int, choice: Choice | None = None) -> None:
        self.path, self.level, self.channels, self.choice = (
            path,
            level,
            channels,
            choice or Choice(),
        )
        self.values = self.choice.values(path)
        self.dtype = (
            np.dtype(np.uint8)
            if self.values is None
            else self.values(np.zeros((0, 0, 1), np.uint8)).dtype
        )
        self.lib = openslide(path)
        self.handle = opened_by(self.lib, path)
        self.sizes = [(height, width) for width, height in self.handle.level_dimensions]
        self.steps = [float(step) for step in self.handle.level_downsamples]
        self.works = [_whole(step, size) for step, size in zip(self.steps, self.sizes, strict=True)]
        self._refuse_level(level)
        self.properties: Mapping[str, str] = dict(self.handle.properties)
        across, down = (
            self._number(f"openslide.level[{level}].tile-{side}") for side in ("width", "height")
        )
        self.tile = (int(down or 256), int(across or 256))
        self.background = _colour(self.properties.get("openslide.background-color"))
        self.resolution = self._resolution()
        self.bounds = self._bounds()

    def _number(self, name: str) -> float | None:
        try:
            return float(self.properties[name])
        except (KeyError, ValueError):
            return None

    def _resolution(self) -> Resolution:
        down, across = self._number("openslide.mpp-y"), self._number("openslide.mpp-x")
        if down is None or across is None:
            return Resolution(None)
        if not all(PLAUSIBLE[0] <= side <= PLAUSIBLE[1] for side in (down, across)):
            return Resolution(None, f"it says {across:.4g} micrometres per pixel, which cannot be")
        return Resolution((down, across))

    def _bounds(self) -> tuple[int, int, int, int] | None:
        sides = [self._number(f"openslide.bounds-{name}") for name in ("x", "y", "width", "height")]
        if any(side is None for side in sides):
            return None
        x, y, width, height = (int(side or 0) for side in sides)
        return x, y, width, height

    def scale(self, level: int) -> tuple[float, float]:
        """As openslide places a level: sizes are rounded, and tell it less well."""
        step = self.steps[level]
        exact = float(round(step)) if self.works[level] else step
        return exact, exact

    def at(self, level: int) -> "Slide":
        self._refuse_level(level)
        self.close()
        return Slide(self.path, level, self.channels, self.choice)

    def read(
        self, top: int, left: int, height: int, width: int, lost: list[Lost] | None = None
    ) -> NDArray[Any]:
        """As `Pixels.read`: (height, width, C)."""
        try:
            return self._region(top, left, height, width)
        except Unreadable:
            if lost is None:
                raise
        region = np.zeros((height, width, self.channels), dtype=self.dtype)
        (tile_height, tile_width), (last, end) = self.tile, self.size
        for y in range(top // tile_height * tile_height, top + height, tile_height):
            for x in range(left // tile_width * tile_width, left + width, tile_width):
                y0, x0, y1, x1 = (
                    max(y, top),
                    max(x, left),
                    min(y + tile_height, top + height),
                    min(x + tile_width, left + width),
                )
                try:
                    region[y0 - top : y1 - top, x0 - left : x1 - left] = self._region(
                        y0, x0, y1 - y0, x1 - x0
                    )
                except Unreadable as error:
                    lost.append(
                        Lost(
                            self.level,
                            x,
                            y,
                            str(error),
                            (y, x, min(y + tile_height, last), min(x + tile_width, end)),
                        )
                    )
        return region

    def _region(self, top: int, left: int, height: int, width: int) -> NDArray[Any]:
        step = self.steps[self.level]  # openslide takes places of level 0
        try:
            region = self.handle.read_region(
                (round(left * step), round(top * step)), self.level, (width, height)
            )
        except self.lib.OpenSlideError as error:
            self.handle.close()
            self.handle = opened_by(self.lib, self.path)
            raise Unreadable(" ".join(str(error).split())) from error
        paper = Image.new("RGBA", region.size, (*self.background, 255))
        pixels = np.asarray(Image.alpha_composite(paper, region).convert("RGB"))
        return as_channels(pixels if self.values is None else self.values(pixels), self.channels)

    def close(self) -> None:
        self.handle.close()


def _whole(step: float, size: Sides) -> bool:
    """Whether every place of a level is a whole pixel of level 0 and comes back as itself."""
    return max(size) * abs(step - round(step)) / step <= SHIFT


def _upright(resolution: Resolution, *, swapped: bool) -> Resolution:
    return (
        Resolution(resolution.mpp[::-1], resolution.said)
        if swapped and resolution.mpp
        else resolution
    )


def slide_of(path: Path, level: int, channels: int, choice: Choice | None = None) -> Levels | None:
    """A file as a slide, or None where it is a plain image that Pillow reads.

    Raises:
        DataError: the file cannot be opened, or is of a kind that is not read.
        UsageError: a level, a page or channels that it does not have.
        MissingExtra: it is a slide, and what reads it is not installed.
    """
    choice = choice or Choice()
    file = tiff_pages.opened(path)
    if file is not None:
        with file:
            maker = tiff_pages.maker(file)
        if maker not in OPENSLIDE:
            return StoredLevel(path, level, channels, choice)
    if file is None and not _by_openslide(path):
        return None
    choice.refuse(f"{path}, which openslide reads,")
    return Slide(path, level, channels, choice)


def _by_openslide(path: Path) -> bool:
    """Whether a file is what openslide knows, or cannot be anything else."""
    named_so = path.suffix.lower() in SLIDE_TYPES
    try:
        lib = openslide(path)
    except MissingExtra:
        if named_so:
            raise
        return False
    return named_so or lib.OpenSlide.detect_format(str(path)) is not None


def series_of(path: Path) -> str | None:
    """What the DICOM files of one slide have in common; None of any other file.

    Raises:
        DataError: it is a slide, and cannot be opened.
    """
    if path.suffix.lower() not in DICOM_TYPES:
        return None
    try:
        lib = openslide(path)
    except MissingExtra:
        return None
    if lib.OpenSlide.detect_format(str(path)) != "dicom":
        return None
    with opened_by(lib, path) as handle:
        series: str | None = handle.properties.get("dicom.SeriesInstanceUID")
    return series


def openslide(path: Path) -> Any:
    """The module.

    Raises:
        MissingExtra: it is not installed.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            import openslide as lib
    except ImportError as error:
        raise MissingExtra(f"openslide (to read {path})", "slides") from error
    return lib


def opened_by(lib: Any, path: Path) -> Any:
    """The slide that openslide opens.

    Raises:
        DataError: it cannot.
    """
    try:
        return lib.OpenSlide(str(path))
    except (lib.OpenSlideError, OSError) as error:
        raise DataError(
            f"{path} cannot be opened as a slide: {error}; replace or remove the file"
        ) from error


def _colour(text: str | None) -> tuple[int, int, int]:
    """The background of a slide, where nothing was scanned: as the file says, else white."""
    try:
        values = bytes.fromhex(text or "")
    except ValueError:
        return WHITE
    return (values[0], values[1], values[2]) if len(values) == 3 else WHITE
