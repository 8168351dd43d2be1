"""Where pixels come from: an array, a tensor, an image file, or a slide that is read region by
region and never whole.
"""

# C channels, h x w pixels

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from softless.data.images import UPRIGHT
from softless.data.pictures import Picture, scaled
from softless.data.reading import decode
from softless.data.tiff_pages import PLAUSIBLE
from softless.errors import DataError, MissingResolution, UsageError, located
from softless.saliency.viewer import in_range
from softless.slides.files import Choice, Levels, slide_of
from softless.slides.pixels import Bytes, Lost, Pixels, Scaled, divided

SAME = 0.01  # relative difference of two resolutions up to which they are taken as one


@dataclass(frozen=True)
class Placement:
    """Where what was read lies in its file: level, resolution and the way back to pixels of level
    0.

    A pixel (x, y) of what was read covers level-0 pixels from (origin[0] + x * scale[1], origin[1]
    + y * scale[0]) on.
    """

    level: int = 0  # whose pixels were read
    # micrometres per pixel of what was read, down and across; None: nothing says
    mpp: tuple[float, float] | None = None
    scale: tuple[float, float] = (1.0, 1.0)  # pixels of level 0 in one of what was read
    origin: tuple[int, int] = (0, 0)  # x and y of level 0 where it begins
    # x, y, width, height of what was scanned, in pixels of level 0
    bounds: tuple[int, int, int, int] | None = None
    remarks: tuple[str, ...] = ()  # what was seen of the file
    step: tuple[float, float] = (1.0, 1.0)  # pixels of level 0 in one of `level`
    orientation: int = UPRIGHT  # 1 to 8 of the file, which was undone


@dataclass(frozen=True)
class Source:
    """An image as the model takes it, region by region: (1, C, h, w) normalised."""

    size: tuple[int, int]
    # (top, left, height, width, what cannot be read)
    read: Callable[[int, int, int, int, list[Lost]], Tensor]
    # a tensor, whose size the model must take as it is; others are filled up at the right and the
    # bottom
    exact: bool
    name: str
    placement: Placement = field(default_factory=Placement)
    close: Callable[[], None] = lambda: None


def source_of(
    image: Any,
    channels: int,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    level: int = 0,
    mpp: float | None = None,
    slide_mpp: float | None = None,
    to_size: Callable[[int, int], tuple[int, int]] | None = None,
    choice: Choice | None = None,
) -> Source:
    """An image in any of the forms `stream` takes; `to_size` makes of its height and width those at
    which it is read.

    Raises:
        DataError: the file is no image that can be read.
        MissingResolution: `mpp` is asked for, and the file does not say its resolution.
        UsageError: a shape, a level, a page, channels or a resolution that does not fit.
        MissingExtra: it is a slide, and what reads it is not installed.
    """
    choice = choice or Choice()
    if to_size is not None and (mpp is not None or isinstance(image, Tensor)):
        reason = (
            "a tensor is taken as it is"
            if isinstance(image, Tensor)
            else f"mpp={mpp} decides the size already"
        )
        raise UsageError(
            f"resize= changes the size of a picture, and {reason}: leave one of them out"
        )
    if isinstance(image, Tensor):
        choice.refuse("a tensor")
        return _of_tensor(image, channels, level, mpp)
    pixels, name = _pixels(image, channels, level, choice)
    try:
        return _source(pixels, name, mean, std, mpp=mpp, slide_mpp=slide_mpp, to_size=to_size)
    except BaseException:
        pixels.close()
        raise


def _source(
    pixels: Pixels,
    name: str,
    mean: Sequence[float],
    std: Sequence[float],
    *,
    mpp: float | None,
    slide_mpp: float | None,
    to_size: Callable[[int, int], tuple[int, int]] | None,
) -> Source:
    level0_mpp = level0_resolution(pixels, slide_mpp, name)
    own = pixels
    if mpp is not None:
        pixels, own = _at(pixels, mpp, level0_mpp, name)
    elif to_size is not None:
        pixels, own = _at_size(pixels, to_size(*pixels.size))
    scale = [torch.tensor(list(side), dtype=torch.float32)[:, None, None] for side in (mean, std)]

    def read(top: int, left: int, height: int, width: int, lost: list[Lost]) -> Tensor:
        unreadable: list[Lost] = []
        # a copy: a file's bytes are read-only
        region = np.array(pixels.read(top, left, height, width, unreadable))
        values = (
            scaled(torch.from_numpy(region).permute(2, 0, 1)).sub_(scale[0]).div_(scale[1])[None]
        )
        for tile in unreadable:  # the mean colour, where nothing can be read
            values[
                ..., _part(tile.box[0], tile.box[2], top), _part(tile.box[1], tile.box[3], left)
            ] = 0
        lost += unreadable
        return values

    return Source(
        pixels.size,
        read,
        exact=False,
        name=name,
        placement=_place(pixels, own, level0_mpp),
        close=pixels.close,
    )


def _part(first: int, last: int, start: int) -> slice:
    return slice(max(0, first - start), max(0, last - start))


def _place(pixels: Pixels, own: Pixels, level0_mpp: tuple[float, float] | None) -> Placement:
    """What leaves with an answer: `own` is the level that was read, and `pixels` what was made of
    it.
    """
    bounds, step, orientation = None, (1.0, 1.0), UPRIGHT
    if isinstance(own, Levels):
        bounds, step = own.bounds, own.scale(own.level)
    if isinstance(own, Levels | Bytes):
        orientation = own.orientation
    shrunk = own.size[0] / pixels.size[0], own.size[1] / pixels.size[1]
    scale = step[0] * shrunk[0], step[1] * shrunk[1]
    mpp = None if level0_mpp is None else (level0_mpp[0] * scale[0], level0_mpp[1] * scale[1])
    remarks = tuple(remark.text for remark in getattr(own, "remarks", ()))
    return Placement(own.level, mpp, scale, (0, 0), bounds, remarks, step, orientation)


def _of_tensor(image: Tensor, channels: int, level: int, mpp: float | None) -> Source:
    batch = image[None] if image.ndim == 3 else image
    if batch.ndim != 4 or len(batch) != 1 or batch.shape[1] != channels:
        raise UsageError(
            f"image has shape {tuple(image.shape)}: one image ({channels}, height, width) as the "
            f"model takes it, or (1, {channels}, height, width)"
        )
    if not batch.is_floating_point():
        raise UsageError(
            f"image is {image.dtype}: a tensor is taken as the model takes it, normalised; give "
            "bytes as a numpy array (height, width, C)"
        )
    _no_level("a tensor", level, mpp)
    return Source(
        (batch.shape[2], batch.shape[3]),
        lambda top, left, height, width, _: batch[:, :, top : top + height, left : left + width],
        exact=True,
        name="tensor",
    )


def pixels_of(
    image: Any, channels: int, level: int, coarse: int | None = None, choice: Choice | None = None
) -> Pixels:
    """An image in bytes: an array or a file; of a slide the level, or the coarsest one whose longer
    side has `coarse` pixels.

    Raises:
        DataError: the file is no image that can be read.
        UsageError: a shape or a level that does not fit.
        MissingExtra: it is a slide, and what reads it is not installed.
    """
    pixels, _ = _pixels(image, channels, level, choice or Choice())
    if coarse is None or not isinstance(pixels, Levels):
        return pixels
    return _coarsest(pixels, lambda size: max(size) >= coarse)


def _coarsest(slide: Levels, fits: Callable[[tuple[int, int]], bool]) -> Levels:
    """The slide at its coarsest level that fits and can be read exactly; as it is where none
    does.
    """
    fitting = [
        number for number, size in enumerate(slide.sizes) if slide.works[number] and fits(size)
    ]
    return slide.at(fitting[-1]) if fitting and fitting[-1] != slide.level else slide


def _no_level(source: str, level: int, mpp: float | None) -> None:
    if level or mpp is not None:
        raise UsageError(f"{source} has one level and no resolution: leave level= and mpp= out")


def _pixels(image: Any, channels: int, level: int, choice: Choice) -> tuple[Pixels, str]:
    if choice.scale is not None and isinstance(image, Image.Image | np.ndarray):
        _no_level("an array", level, None)
        choice.refuse("an array")
        return Bytes(in_range(image, channels, choice.scale)), "array"
    if isinstance(image, Image.Image):
        _no_level("a PIL image", level, None)
        choice.refuse("a PIL image")
        return Bytes(_array(image.convert("L" if channels == 1 else "RGB"), channels)), "image"
    if isinstance(image, np.ndarray):
        array = image[..., None] if image.ndim == 2 else image
        if (
            array.dtype != np.uint8
            or array.ndim != 3
            or array.shape[-1] != channels
            or not array.size
        ):
            raise UsageError(
                f"image is an array {image.shape} of {image.dtype}: give bytes (uint8) of shape "
                f"(height, width, {channels})"
            )
        _no_level("an array", level, None)
        choice.refuse("an array")
        return Bytes(array), "array"
    if not isinstance(image, str | Path):
        raise UsageError(
            f"image is a {type(image).__name__}: give a path, a PIL image, a numpy array of bytes "
            "or a tensor"
        )
    path = located(image)
    if not path.exists():
        raise DataError(f"no image at {path}")
    slide = slide_of(path, level, channels, choice)
    if slide is not None:
        return slide, str(path)
    _no_level(f"{path} is an image that", level, None)
    choice.refuse(str(path))
    decoded = decode(path, channels, choice.scale)
    array = _array(decoded.image, channels)
    return Bytes(array, remarks=decoded.remarks, orientation=decoded.orientation), str(path)


def _array(image: Picture, channels: int) -> NDArray[Any]:
    if isinstance(image, np.ndarray):
        return image
    values = np.asarray(image if channels == 3 else image.convert("L"))
    return values if values.ndim == 3 else values[..., None]


def _at_size(pixels: Pixels, size: tuple[int, int]) -> tuple[Pixels, Pixels]:
    """The pixels brought to (height, width), and those they were made of: of a slide the coarsest
    level that has as many.
    """
    if isinstance(pixels, Levels) and not pixels.level:
        pixels = _coarsest(
            pixels, lambda level_size: level_size[0] >= size[0] and level_size[1] >= size[1]
        )
    if pixels.size == size:
        return pixels, pixels
    return Scaled(pixels, (pixels.size[0] / size[0], pixels.size[1] / size[1]), size), pixels


def level0_resolution(
    pixels: Pixels, slide_mpp: float | None, name: str
) -> tuple[float, float] | None:
    """Micrometres per pixel of level 0, down and across: as the file says, or as the caller does
    where it says nothing.

    Raises:
        UsageError: both say it, and differ.
    """
    stated_mpp = pixels.resolution.mpp if isinstance(pixels, Levels) else None
    if slide_mpp is None:
        return stated_mpp
    if not PLAUSIBLE[0] <= slide_mpp <= PLAUSIBLE[1]:
        raise UsageError(
            f"slide_mpp={slide_mpp}: give micrometres per pixel, between {PLAUSIBLE[0]} and "
            f"{PLAUSIBLE[1]}"
        )
    if stated_mpp is not None and any(abs(side / slide_mpp - 1) > SAME for side in stated_mpp):
        raise UsageError(
            f"{name} says {stated_mpp[1]:.4g} micrometres per pixel, and slide_mpp={slide_mpp:g} "
            "says another: it is for files that do not say; leave it out"
        )
    return stated_mpp or (slide_mpp, slide_mpp)


def _at(
    pixels: Pixels, mpp: float, level0_mpp: tuple[float, float] | None, name: str
) -> tuple[Pixels, Pixels]:
    """The pixels at `mpp` micrometres each, and the level they were made of: one that has them, or
    the next finer one, scaled.
    """
    if not PLAUSIBLE[0] <= mpp <= PLAUSIBLE[1]:
        raise UsageError(
            f"mpp={mpp}: give micrometres per pixel, between {PLAUSIBLE[0]} and {PLAUSIBLE[1]}, "
            "for example 0.5"
        )
    if level0_mpp is None:
        reason = pixels.resolution.said if isinstance(pixels, Levels) else ""
        raise MissingResolution(
            f"{name} does not say how large its pixels are{f' ({reason})' if reason else ''}: pass "
            "slide_mpp= (micrometres per pixel of level 0), or "
            "level= in place of mpp="
        )
    if not isinstance(pixels, Levels):
        return _scaled_to(pixels, mpp, level0_mpp, name)
    if pixels.level:
        raise UsageError(
            f"level={pixels.level} and mpp={mpp} both choose a level: give one of them"
        )
    slide = pixels
    steps = [slide.scale(number) for number in range(len(slide.sizes))]
    fitting = [
        i
        for i, step in enumerate(steps)
        if slide.works[i]
        and max(level0_mpp[0] * step[0], level0_mpp[1] * step[1]) <= mpp * (1 + SAME)
    ]
    if fitting and fitting[-1]:
        slide = slide.at(fitting[-1])
    step = steps[slide.level]
    return _scaled_to(slide, mpp, (level0_mpp[0] * step[0], level0_mpp[1] * step[1]), name)


def _scaled_to(
    pixels: Pixels, mpp: float, own: tuple[float, float], name: str
) -> tuple[Pixels, Pixels]:
    factors = (mpp / own[0], mpp / own[1])
    if min(factors) < 1 - SAME:
        raise UsageError(
            f"mpp={mpp} is finer than {name}, which has {min(own):.4g} micrometres per pixel: "
            "give a coarser one"
        )
    if max(abs(factor - 1) for factor in factors) <= SAME:
        return pixels, pixels
    return Scaled(pixels, factors, divided(pixels.size, factors)), pixels
