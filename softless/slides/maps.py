"""Maps over the patches of a slide, on their way out: arrays, a picture with a scale bar, and
polygons for a viewer.
"""

# h x w patches

import io
import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from softless.errors import UsageError
from softless.models.durable import make_folder, write_bytes, write_picture, write_text
from softless.saliency.colours import colourise
from softless.saliency.figure import FAINT, INK, PAPER, colour_bar, fitting, font
from softless.saliency.overlay import overlay
from softless.slides.engine import BadTile
from softless.slides.lattice import Lattice, Origin
from softless.slides.stream import StreamResult
from softless.words import visible

CELLS = 60_000  # polygons of one file: QuPath draws so many at ease, in some 20 MB
BANDS = 5  # classes of a viewer's legend
# pixels of the longer side of a picture, to which a smaller picture is enlarged by a whole number
LEAST = 512
FOOT, EDGE = 56, 16  # pixels below the picture, and around what is written
BAR = 0.2  # of the picture's width, at most
VEIL = 0.65  # of white over what does not count
OVERLAY, OUTLINES = "overlay.png", "saliency.geojson"


@dataclass(frozen=True)
class Map:
    """Numbers over patches.

    Attributes:
        name: What they are.
        values: (h, w) float32 in 0..1, or in -1..1 where `signed`; NaN where a patch does not
            count.
        signed: Whether they have a sign.
    """

    name: str
    values: NDArray[np.float32]
    signed: bool = False

    def band(self, value: float) -> int:
        """Which of the five parts of its range a value lies in."""
        share = (value + 1) / 2 if self.signed else value
        return min(BANDS - 1, max(0, int(share * BANDS)))

    def band_name(self, number: int) -> str:
        """A part of its range in words."""
        low, high = (self._at(edge / BANDS) for edge in (number, number + 1))
        return f"{self.name} {low:g} to {high:g}"

    def colour(self, number: int) -> list[int]:
        """The colour of a part of its range, red, green and blue in 0..255."""
        middle = np.array([self._at((number + 0.5) / BANDS)])
        return [int(channel) for channel in colourise(middle, signed=self.signed)[0].round()]

    def _at(self, share: float) -> float:
        return round(2 * share - 1 if self.signed else share, 6)


@dataclass(frozen=True)
class Maps:
    """Maps over the same patches; the last one is what pictures and classes show.

    Attributes:
        maps: One at least.
        lattice: Where the patches lie.
        unreadable: Tiles that could not be read.
    """

    maps: Sequence[Map]
    lattice: Lattice
    unreadable: Sequence[BadTile] = ()

    @property
    def shown(self) -> Map:
        """What pictures and classes show."""
        return self.maps[-1]

    @cached_property
    def side(self) -> int:
        """Patches along a side of one polygon, so that there are no more of them than a viewer
        takes.
        """
        smallest = max(1, math.isqrt(self._cells(1) // CELLS))
        return next(side for side in itertools.count(smallest) if self._cells(side) <= CELLS)

    def _cells(self, side: int) -> int:
        return int((~np.isnan(pooled(self.shown.values, side))).sum())

    def features(self) -> Iterator[Mapping[str, Any]]:
        """GeoJSON, a polygon for each square of patches that count and a point for each tile that
        could not be read.
        """
        means = [pooled(patch_map.values, self.side) for patch_map in self.maps]
        height, width = self.lattice.grid
        for row, column in zip(*np.nonzero(~np.isnan(means[-1])), strict=True):
            top, left = int(row) * self.side, int(column) * self.side
            corners = self.lattice.rectangle(
                top, left, min(top + self.side, height), min(left + self.side, width)
            )
            values = {
                patch_map.name: round(float(mean[row, column]), 4)
                for patch_map, mean in zip(self.maps, means, strict=True)
            }
            yield _polygon(corners, self.shown, float(means[-1][row, column]), values)
        for tile in self.unreadable:
            step = self.lattice.placement.step
            (point,) = self.lattice.counted(np.array([[tile.x * step[1], tile.y * step[0]]]))
            yield _point((float(point[0]), float(point[1])), tile.reason)


def pooled(values: NDArray[np.float32], side: int) -> NDArray[np.float64]:
    """Means over squares of so many patches a side, of those that count; NaN where none does. A map
    (h,w) becomes (ceil(h / side), ceil(w / side)).
    """
    height, width = (-(-length // side) * side for length in values.shape)
    padded = np.full((height, width), np.nan)
    padded[: values.shape[0], : values.shape[1]] = values
    squares = padded.reshape(height // side, side, width // side, side)
    counts = (~np.isnan(squares)).sum((1, 3))
    sums = np.nansum(squares, axis=(1, 3))
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def _polygon(
    corners: Sequence[float], patch_map: Map, value: float, values: Mapping[str, float]
) -> Mapping[str, Any]:
    x0, y0, x1, y1 = (_short(coordinate) for coordinate in corners)
    band = patch_map.band(value)
    return {
        "type": "Feature",
        "geometry": {
            "type": "Polygon",
            "coordinates": [[[x0, y0], [x1, y0], [x1, y1], [x0, y1], [x0, y0]]],
        },
        "properties": {
            "objectType": "tile",
            "classification": {"name": patch_map.band_name(band), "color": patch_map.colour(band)},
            "measurements": dict(values),
        },
    }


def _point(point: tuple[float, float], reason: str) -> Mapping[str, Any]:
    return {
        "type": "Feature",
        "geometry": {"type": "Point", "coordinates": [_short(side) for side in point]},
        "properties": {
            "objectType": "annotation",
            "name": visible(reason),
            "classification": {"name": "cannot be read", "color": [200, 0, 0]},
        },
    }


def _short(coordinate: float) -> float | int:
    """A coordinate to a thousandth of a pixel; a whole one as such."""
    rounded = round(float(coordinate), 3)
    return int(rounded) if rounded == int(rounded) else rounded


def as_geojson(maps: Maps) -> str:
    """A FeatureCollection as QuPath reads it, one feature a line (RFC 7946, coordinates in pixels
    of level 0).
    """
    lines = (
        json.dumps(feature, separators=(",", ":"), allow_nan=False) for feature in maps.features()
    )
    return '{"type":"FeatureCollection","features":[\n' + ",\n".join(lines) + "\n]}\n"


# A picture


def drawn(maps: Maps, picture: Image.Image, title: str = "") -> Image.Image:
    """The map over the picture of what was read, with a scale bar, and below it what the colours
    say.

    Args:
        maps: The maps; patches that do not count lie under a veil.
        picture: The whole of what was read, at any size.
        title: Above the colours' name.
    """
    patch_map, base = maps.shown, enlarged(picture)
    values = _over(patch_map.values, maps.lattice, base.size)
    return laid(base, values, maps.lattice, patch_map.name, signed=patch_map.signed, title=title)


def enlarged(picture: Image.Image) -> Image.Image:
    """A small picture by a whole number of times, in colour."""
    factor = max(1, LEAST // max(picture.size))
    return picture.convert("RGB").resize(
        (picture.width * factor, picture.height * factor), Image.Resampling.NEAREST
    )


def laid(
    base: Image.Image,
    values: NDArray[np.floating],
    lattice: Lattice,
    name: str,
    *,
    signed: bool,
    title: str = "",
    ends: tuple[str, str] | None = None,
    strength: float = 0.7,
) -> Image.Image:
    """Values over a picture of their size, with a scale bar, and below it what the colours say.

    Args:
        base: The whole of what was read.
        values: (height,width) in 0..1, or in -1..1 where `signed`; NaN lies under a veil.
        lattice: Where the picture lies in its file.
        name: Of the values.
        signed: Whether they have a sign.
        title: Above the name.
        ends: What the first and the last colour are called.
        strength: As of `overlay`.
    """
    laid_over = overlay(base, np.nan_to_num(values), signed=signed, strength=strength)
    bare = np.asarray(base, dtype=np.float64) * (1 - VEIL) + 255 * VEIL
    over = np.asarray(laid_over, dtype=np.float64)
    pixels = np.where(np.isnan(values)[..., None], bare, over).round().astype(np.uint8)
    sheet = Image.new("RGB", (base.width, base.height + FOOT), PAPER)
    sheet.paste(Image.fromarray(pixels), (0, 0))
    draw = ImageDraw.Draw(sheet)
    _scale_bar(draw, base.size, lattice)
    ramp = min(260, base.width // 2)
    room = base.width - ramp - 3 * EDGE
    if title:
        text = fitting(draw, visible(title), room, font(16))
        draw.text((EDGE, base.height + 8), text, fill=INK, font=font(16))
    text = fitting(draw, visible(name), room, font(13))
    draw.text((EDGE, base.height + 32), text, fill=FAINT, font=font(13))
    corner = (base.width - ramp - EDGE, base.height + 20)
    colour_bar(sheet, draw, corner, ramp, signed=signed, ends=ends)
    return sheet


def _over(
    values: NDArray[np.float32], lattice: Lattice, size: tuple[int, int]
) -> NDArray[np.float32]:
    """The map (height,width) at a picture's size: each pixel has the value of the patch that its
    middle lies in.
    """
    places = [
        np.minimum(((np.arange(side) + 0.5) / side * extent / patch).astype(int), count - 1)
        for side, extent, patch, count in zip(
            size[::-1], lattice.size, lattice.patch, lattice.grid, strict=True
        )
    ]
    return values[np.ix_(*places)]


def _scale_bar(draw: ImageDraw.ImageDraw, size: tuple[int, int], lattice: Lattice) -> None:
    """A bar of a round length at the lower left, in micrometres or, where nothing says them, in
    pixels of level 0.
    """
    mpp = lattice.placement.mpp
    across = lattice.size[1] * mpp[1] if mpp else lattice.extent[1]
    length = round_length(across * BAR)
    text, pixels = _length(length, metric=mpp is not None), max(1, round(size[0] * length / across))
    x, y = EDGE, size[1] - EDGE
    bar_width = max(pixels, draw.textlength(text, font(14)))
    draw.rectangle((x - 8, y - 32, x + bar_width + 8, y + 8), fill=PAPER)
    draw.text((x, y - 28), text, fill=INK, font=font(14))
    draw.rectangle((x, y - 4, x + pixels - 1, y), fill=INK)


def round_length(limit: float) -> float:
    """The largest of 1, 2 and 5 times a power of ten that is not larger."""
    power = 10.0 ** math.floor(math.log10(limit))
    return max(step * power for step in (1, 2, 5) if step * power <= limit * (1 + 1e-9))


def _length(length: float, *, metric: bool) -> str:
    """In the letters that the typeface has."""
    if not metric:
        return f"{length:,g} px"
    return f"{length / 1000:,g} mm" if length >= 1000 else f"{length:g} um"


# Of a streamed answer


def maps_of(result: StreamResult, origin: Origin = "slide") -> Maps:
    """The query map, the key map and, where there is one, the class token's row of an answer.

    Raises:
        UsageError: it was made without maps, or `origin` is none.
    """
    saliency = result.saliency
    if saliency is None:
        raise UsageError("the answer has no maps: stream with saliency=True")
    named = [("query", saliency.query, False), ("key", saliency.key, False)]
    if saliency.class_row is not None:
        named.append(("class row", saliency.class_row, True))
    patch_maps = [
        Map(name, _counted(values[0], result.mask), signed) for name, values, signed in named
    ]
    return Maps(patch_maps, result.lattice(origin), result.unreadable)


def _counted(values: torch.Tensor, mask: torch.Tensor | None) -> NDArray[np.float32]:
    counted = values.float() if mask is None else values.float().masked_fill(~mask, math.nan)
    return np.asarray(counted.numpy(), dtype=np.float32)


def save_maps(
    maps: Maps,
    picture: Image.Image,
    folder: str | Path,
    *,
    title: str = "",
    outlines: str = OUTLINES,
) -> tuple[Path, ...]:
    """Write NAME.npy for each map, overlay.png and saliency.geojson; each is whole or not there.

    Args:
        maps: The maps.
        picture: The whole of what was read, at any size.
        folder: Where to, made if missing.
        title: Of the overlay.
        outlines: The name of the GeoJSON file.

    Returns:
        What was written.

    Raises:
        StorageError: the disk does not take it.
    """
    root, files = make_folder(Path(folder)), []
    for patch_map in maps.maps:
        file, buffer = root / f"{patch_map.name.replace(' ', '_')}.npy", io.BytesIO()
        np.lib.format.write_array(buffer, patch_map.values)
        write_bytes(file, buffer.getvalue())
        files.append(file)
    write_picture(root / OVERLAY, drawn(maps, picture, title))
    write_text(root / outlines, as_geojson(maps))
    return (*files, root / OVERLAY, root / outlines)
