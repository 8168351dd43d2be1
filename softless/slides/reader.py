"""Where pixels come from: an array, a tensor, an image file, or a slide that is read region by region and never whole."""

# C channels, h x w pixels

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from softless.data.images import decode
from softless.errors import DataError, MissingExtra, MissingResolution, UsageError, located

SLIDE_TYPES = frozenset({".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi"})
PLAUSIBLE = (0.01, 100.0)  # micrometres per pixel
AT_ONCE = 8192  # pixels along a side of the fine image that are read at once to be scaled down
SAME = 0.01  # relative difference of two resolutions up to which they are taken as one
WHITE = (255, 255, 255)


class Unreadable(Exception):
    """A region that cannot be read; the message says why."""


class Pixels(Protocol):
    """An image of bytes: (height, width), and regions of it (h, w, C)."""

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""

    @property
    def level(self) -> int:
        """Which level of a slide it is."""

    @property
    def tile(self) -> tuple[int, int] | None:
        """Height and width of the tiles it is stored in, where it is."""

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        """A region inside the image."""

    def close(self) -> None:
        """Give the file back."""


@dataclass(frozen=True)
class Bytes:
    """An image that is in memory as bytes (h, w, C)."""

    values: NDArray[np.uint8]
    level: int = 0
    tile: tuple[int, int] | None = None

    @property
    def size(self) -> tuple[int, int]:
        return self.values.shape[0], self.values.shape[1]

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        return self.values[top : top + height, left : left + width]

    def close(self) -> None:
        """There is no file."""


class Slide:
    """A level of a slide through openslide; after an error the file is opened again, since openslide's handle is of no use then."""

    def __init__(self, path: Path, level: int, channels: int) -> None:
        self.path, self.level, self.channels = path, level, channels
        self.lib = openslide(path)
        self.handle = self._opened()
        count = self.handle.level_count
        if not 0 <= level < count:
            raise UsageError(f"{path} has no level {level}: its levels are 0 to {count - 1}")
        width, height = self.handle.level_dimensions[level]
        self.size = height, width
        self.properties: Mapping[str, str] = dict(self.handle.properties)
        across, down = (self._number(f"openslide.level[{level}].tile-{side}") for side in ("width", "height"))
        self.tile = (int(down or 256), int(across or 256))
        self.step = float(self.handle.level_downsamples[level])
        self.background = _colour(self.properties.get("openslide.background-color"))

    def _opened(self) -> Any:
        try:
            return self.lib.OpenSlide(str(self.path))
        except (self.lib.OpenSlideError, OSError) as error:
            raise DataError(f"{self.path} cannot be opened as a slide: {error}; replace or remove the file") from error

    def close(self) -> None:
        """Give the file back."""
        self.handle.close()

    def _number(self, name: str) -> float | None:
        try:
            return float(self.properties[name])
        except (KeyError, ValueError):
            return None

    def resolution(self) -> tuple[float, float] | None:
        """Micrometres per pixel down and across at level 0; None where the file says nothing that can be."""
        found = self._number("openslide.mpp-y"), self._number("openslide.mpp-x")
        if any(side is None or not PLAUSIBLE[0] <= side <= PLAUSIBLE[1] for side in found):
            return None
        return float(found[0] or 0), float(found[1] or 0)

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        corner = round(left * self.step), round(top * self.step)  # openslide takes places of level 0
        try:
            region = self.handle.read_region(corner, self.level, (width, height))
        except self.lib.OpenSlideError as error:
            self.handle.close()
            self.handle = self._opened()
            raise Unreadable(" ".join(str(error).split())) from error
        paper = Image.new("RGBA", region.size, (*self.background, 255))
        return _array(Image.alpha_composite(paper, region).convert("RGB"), self.channels)


class Scaled:
    """Pixels at a coarser resolution; neighbouring regions fit without a seam, since each is made with the pixels around it."""

    def __init__(self, fine: Pixels, factors: tuple[float, float]) -> None:
        self.fine, self.level = fine, fine.level
        self.size = _divided(fine.size, factors)
        self.tile = None if fine.tile is None else _divided(fine.tile, factors)

    def read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        down, across = (max(1, int(AT_ONCE * new / old)) for new, old in zip(self.size, self.fine.size, strict=True))
        if height <= down and width <= across:
            return self._read(top, left, height, width)
        rows = [
            np.concatenate([
                self._read(row, column, min(down, top + height - row), min(across, left + width - column))
                for column in range(left, left + width, across)
            ], axis=1)
            for row in range(top, top + height, down)
        ]  # fmt: skip
        return np.concatenate(rows)

    def _read(self, top: int, left: int, height: int, width: int) -> NDArray[np.uint8]:
        spans, boxes = [], []
        for start, length, side, new in zip((top, left), (height, width), self.fine.size, self.size, strict=True):
            by = side / new
            first, last = start * by, min(side, (start + length) * by)
            low, high = max(0, int(first - 2 * by - 1)), min(side, int(last + 2 * by + 2))
            spans.append((low, high - low))
            boxes.append((first - low, last - low))
        pixels = self.fine.read(spans[0][0], spans[1][0], spans[0][1], spans[1][1])
        grey = pixels.shape[-1] == 1
        image = Image.fromarray(pixels[..., 0] if grey else pixels)
        box = (boxes[1][0], boxes[0][0], boxes[1][1], boxes[0][1])
        resized = image.resize((width, height), Image.Resampling.BICUBIC, box=box)
        return _array(resized, pixels.shape[-1])

    def close(self) -> None:
        """Give the file back."""
        self.fine.close()


def _divided(sides: tuple[int, int], factors: tuple[float, float]) -> tuple[int, int]:
    return max(1, round(sides[0] / factors[0])), max(1, round(sides[1] / factors[1]))


@dataclass(frozen=True)
class Source:
    """An image as the model takes it, region by region: (1, C, h, w) normalised."""

    size: tuple[int, int]
    level: int
    tile: tuple[int, int] | None
    read: Callable[[int, int, int, int], Tensor]  # (top, left, height, width); raises Unreadable
    exact: bool  # a tensor, whose size the model must take as it is; others are filled up at the right and the bottom
    name: str
    close: Callable[[], None] = lambda: None


def source_of(
    image: Any, channels: int, mean: Sequence[float], std: Sequence[float], *, level: int = 0, mpp: float | None = None, slide_mpp: float | None = None,
    to_size: Callable[[int, int], tuple[int, int]] | None = None,
) -> Source:  # fmt: skip
    """An image in any of the forms `stream` takes; `to_size` makes of its height and width those at which it is read.

    Raises:
        DataError: the file is no image that can be read.
        MissingResolution: `mpp` is asked for, and the file does not say its resolution.
        UsageError: a shape, a level or a resolution that does not fit.
        MissingExtra: it is a slide, and openslide is not installed.
    """
    if to_size is not None and (mpp is not None or isinstance(image, Tensor)):
        what = "a tensor is taken as it is" if isinstance(image, Tensor) else f"mpp={mpp} decides the size already"
        raise UsageError(f"resize= changes the size of a picture, and {what}: leave one of them out")
    if isinstance(image, Tensor):
        return _of_tensor(image, channels, level, mpp)
    pixels, name = _pixels(image, channels, level)
    if mpp is not None:
        pixels = _at(pixels, mpp, slide_mpp, name)
    if to_size is not None:
        pixels = _at_size(pixels, to_size(*pixels.size), channels)
    scale = [torch.tensor(list(side), dtype=torch.float32)[:, None, None] for side in (mean, std)]

    def read(top: int, left: int, height: int, width: int) -> Tensor:
        values = torch.from_numpy(
            np.array(pixels.read(top, left, height, width))
        )  # a copy: a file's bytes are read-only
        return values.permute(2, 0, 1).float().div_(255).sub_(scale[0]).div_(scale[1])[None]

    return Source(pixels.size, pixels.level, pixels.tile, read, exact=False, name=name, close=pixels.close)


def _of_tensor(image: Tensor, channels: int, level: int, mpp: float | None) -> Source:
    whole = image[None] if image.ndim == 3 else image
    if whole.ndim != 4 or len(whole) != 1 or whole.shape[1] != channels:
        raise UsageError(
            f"image has shape {tuple(image.shape)}: one image ({channels}, height, width) as the model takes it, or (1, {channels}, height, width)"
        )
    if not whole.is_floating_point():
        raise UsageError(
            f"image is {image.dtype}: a tensor is taken as the model takes it, normalised; give bytes as a numpy array (height, width, C)"
        )
    _no_level("a tensor", level, mpp)
    return Source(
        (whole.shape[2], whole.shape[3]), 0, None, lambda top, left, height, width: whole[:, :, top : top + height, left : left + width],
        exact=True, name="tensor",
    )  # fmt: skip


def pixels_of(image: Any, channels: int, level: int, coarse: int | None = None) -> Pixels:
    """An image in bytes: an array or a file; of a slide the level, or the coarsest one whose longer side has `coarse` pixels.

    Raises:
        DataError: the file is no image that can be read.
        UsageError: a shape or a level that does not fit.
        MissingExtra: it is a slide, and openslide is not installed.
    """
    pixels, _ = _pixels(image, channels, level)
    if coarse is None or not isinstance(pixels, Slide):
        return pixels
    sizes = [max(size) for size in pixels.handle.level_dimensions]
    fitting = [number for number, size in enumerate(sizes) if size >= coarse]
    if not fitting or fitting[-1] == level:
        return pixels
    pixels.close()
    return Slide(pixels.path, fitting[-1], channels)


def _no_level(what: str, level: int, mpp: float | None) -> None:
    if level or mpp is not None:
        raise UsageError(f"{what} has one level and no resolution: leave level= and mpp= out")


def _pixels(image: Any, channels: int, level: int) -> tuple[Pixels, str]:
    if isinstance(image, Image.Image):
        _no_level("a PIL image", level, None)
        return Bytes(_array(image.convert("L" if channels == 1 else "RGB"), channels)), "image"
    if isinstance(image, np.ndarray):
        whole = image[..., None] if image.ndim == 2 else image
        if whole.dtype != np.uint8 or whole.ndim != 3 or whole.shape[-1] != channels or not whole.size:
            raise UsageError(
                f"image is an array {image.shape} of {image.dtype}: give bytes (uint8) of shape (height, width, {channels})"
            )
        _no_level("an array", level, None)
        return Bytes(whole), "array"
    if not isinstance(image, str | Path):
        raise UsageError(
            f"image is a {type(image).__name__}: give a path, a PIL image, a numpy array of bytes or a tensor"
        )
    path = located(image)
    if not path.exists():
        raise DataError(f"no image at {path}")
    if is_slide(path):
        return Slide(path, level, channels), str(path)
    _no_level(f"{path} is an image that", level, None)
    return Bytes(_array(decode(path, channels).image, channels)), str(path)


def _array(image: Image.Image, channels: int) -> NDArray[np.uint8]:
    values = np.asarray(image if channels == 3 else image.convert("L"))
    return values if values.ndim == 3 else values[..., None]


def is_slide(path: Path) -> bool:
    """Whether a file is read through openslide: what it knows, and what cannot be anything else.

    Raises:
        MissingExtra: it must be, and openslide is not installed.
    """
    try:
        lib = openslide(path)
    except MissingExtra:
        if path.suffix.lower() in SLIDE_TYPES:
            raise
        return False
    return path.suffix.lower() in SLIDE_TYPES or lib.OpenSlide.detect_format(str(path)) is not None


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


def _colour(text: str | None) -> tuple[int, int, int]:
    """The background of a slide, where nothing was scanned: as the file says, else white."""
    try:
        values = bytes.fromhex(text or "")
    except ValueError:
        return WHITE
    return (values[0], values[1], values[2]) if len(values) == 3 else WHITE


def _at_size(pixels: Pixels, size: tuple[int, int], channels: int) -> Pixels:
    """The pixels brought to (height, width): of a slide from the coarsest level that has as many."""
    if isinstance(pixels, Slide):
        fitting = [number for number, (wide, tall) in enumerate(pixels.handle.level_dimensions) if tall >= size[0] and wide >= size[1]]  # fmt: skip
        if fitting and fitting[-1] > pixels.level:
            pixels.close()
            pixels = Slide(pixels.path, fitting[-1], channels)
    if pixels.size == size:
        return pixels
    return Scaled(pixels, (pixels.size[0] / size[0], pixels.size[1] / size[1]))


def _at(pixels: Pixels, mpp: float, slide_mpp: float | None, name: str) -> Pixels:
    """The pixels at `mpp` micrometres each: a level that has them, or the next finer one, scaled."""
    if not PLAUSIBLE[0] <= mpp <= PLAUSIBLE[1]:
        raise UsageError(
            f"mpp={mpp}: give micrometres per pixel, between {PLAUSIBLE[0]} and {PLAUSIBLE[1]}, for example 0.5"
        )
    told = (slide_mpp, slide_mpp) if slide_mpp else (pixels.resolution() if isinstance(pixels, Slide) else None)
    if told is None:
        raise MissingResolution(
            f"{name} does not say how large its pixels are, or nothing that can be: pass slide_mpp= (micrometres per pixel of level 0), or level= "
            "in place of mpp="
        )
    if isinstance(pixels, Slide):
        if pixels.level:
            raise UsageError(f"level={pixels.level} and mpp={mpp} both choose a level: give one of them")
        steps = pixels.handle.level_downsamples
        fitting = [i for i, step in enumerate(steps) if max(told) * step <= mpp * (1 + SAME)]
        if fitting and fitting[-1]:
            pixels = Slide(pixels.path, fitting[-1], pixels.channels)
            told = (told[0] * pixels.step, told[1] * pixels.step)
    factors = (mpp / told[0], mpp / told[1])
    if min(factors) < 1 - SAME:
        raise UsageError(
            f"mpp={mpp} is finer than {name}, which has {min(told):.4g} micrometres per pixel: give a coarser one"
        )
    return pixels if max(abs(factor - 1) for factor in factors) <= SAME else Scaled(pixels, factors)
