"""Which patches count: by a mask that somebody drew, or by where tissue is.

A patch that does not is removed.
"""

# h x w patches

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softless.data.images import BadImage
from softless.data.notices import notice
from softless.errors import DataError, MissingExtra, located
from softless.slides.lattice import Lattice
from softless.tasks.segmentation.values import read_values

OUTLINES = frozenset({".geojson", ".json"})
PICTURES = frozenset({".png"})
HALF = 0.5  # of a patch, from which on it counts
SAMPLES = 8  # places along a side of a patch that an outline cuts
IGNORED = "Ignore*"  # QuPath's class of what is to be left out
LARGEST = 2**28  # bytes of one file of outlines
Mask = NDArray[np.bool_]


def mask_of(path: str | Path, lattice: Lattice) -> Mask:
    """The patches (h,w) of which at least half lies inside a mask.

    Args:
        path: A PNG of two values, of the shape of the image at any scale, where anything but 0
            counts; or polygons as GeoJSON, in pixels of level 0 as `lattice.origin` says.
        lattice: The patches.

    Raises:
        DataError: no such file, one that cannot be read, or no mask of this image.
        MissingExtra: GeoJSON without what reads it.
    """
    file = mask_file(path)
    mask = _of_outlines(file, lattice) if is_outlines(file) else _of_picture(file, lattice)
    if not mask.any():
        raise DataError(
            f"{file} leaves no patch of the image: none lies half inside it; "
            "coordinates are pixels of level 0, as origin= counts them"
        )
    return mask


def mask_file(path: str | Path) -> Path:
    """A file that may be a mask, by its name.

    Raises:
        DataError: no such file, or one of another kind.
    """
    file = located(path)
    if file.suffix.lower() not in OUTLINES | PICTURES:
        raise DataError(
            f"{file} is no mask that is read: give a PNG of two values (0: does not count), or "
            "polygons as GeoJSON"
        )
    if not file.is_file():
        raise DataError(f"no mask at {file}")
    return file


def is_outlines(file: Path) -> bool:
    """Whether a file of a mask holds polygons, by its name."""
    return file.suffix.lower() in OUTLINES


# A picture


def _of_picture(file: Path, lattice: Lattice) -> Mask:
    x0, y0, x1, y1 = lattice.shown
    values = picture_of(file, lattice)
    height, width = values.shape
    rows = (lattice.spans(0) - y0) * (height / (y1 - y0))
    columns = (lattice.spans(1) - x0) * (width / (x1 - x0))
    return shares(values, rows, columns) >= HALF


def picture_of(file: Path, lattice: Lattice) -> Mask:
    """The values (h,w) of a PNG, upright, over what `lattice.shown` says.

    Raises:
        DataError: unreadable, of more than two values, or not of the image's shape.
    """
    values = lattice.turned(_two_values(file))
    x0, y0, x1, y1 = lattice.shown
    height, width = values.shape
    if not _same_shape((height, width), (y1 - y0, x1 - x0)):
        raise DataError(
            f"{file} is {width} x {height} pixels, which is not the shape of the image "
            f"({x1 - x0:.0f} x {y1 - y0:.0f} "
            "at level 0): draw the mask over the whole image, at any scale"
        )
    return values


def _two_values(file: Path) -> Mask:
    """The mask (h,w) of a PNG: whether a value is another than 0.

    Raises:
        DataError: unreadable, in colour, or of more than two values.
    """
    try:
        values = read_values(file)
    except BadImage as error:
        if error.kind != "pixel format":
            raise
        raise DataError(f"{file} is no mask: {error.reason}") from error
    distinct = np.unique(values)
    if len(distinct) > 2 or (len(distinct) == 2 and distinct[0]):
        listing = ", ".join(str(value) for value in distinct[:4])
        raise DataError(
            f"{file} has {len(distinct)} values ({listing}{', …' if len(distinct) > 4 else ''}), "
            "and a mask has two, "
            "0 for what does not count and another: choose which of them count, and save those"
        )
    return np.asarray(values != 0)


def _same_shape(mask: tuple[int, int], image: tuple[float, float]) -> bool:
    """Whether a picture of the mask's size can be the image scaled by one factor, up to a pixel of
    the mask a side.
    """
    scales = [
        ((side - 1) / length, (side + 1) / length) for side, length in zip(mask, image, strict=True)
    ]
    return max(low for low, _ in scales) <= min(high for _, high in scales)


def shares(
    values: NDArray[Any], rows: NDArray[np.float64], columns: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The mean (h,w) of a picture in each rectangle, in its pixels; what lies beyond it is 0.

    Args:
        values: The picture (height, width).
        rows: (h, 2) where each begins and ends down.
        columns: (w, 2) where each begins and ends across.
    """
    sums = np.stack([_between(line, columns) for line in _bands(values, rows)])
    areas = np.outer(np.diff(rows)[:, 0], np.diff(columns)[:, 0])
    return np.divide(sums, areas, out=np.zeros_like(sums), where=areas > 0)


def _bands(values: NDArray[Any], rows: NDArray[np.float64]) -> Iterator[NDArray[np.float64]]:
    """Sums over the height of the picture between two edges, a part of a pixel counting as that
    part.
    """
    height = len(values)
    for top, bottom in rows:
        first, last = (int(np.clip(edge, 0, height)) for edge in (np.floor(top), np.ceil(bottom)))
        lines = np.arange(first, last)
        parts = np.clip(np.minimum(lines + 1, bottom) - np.maximum(lines, top), 0, 1)
        yield parts @ values[first:last].astype(np.float64)


def _between(line: NDArray[np.float64], columns: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums of a line of pixels between two edges."""
    places = np.arange(len(line) + 1)
    sums: NDArray[np.float64] = np.interp(columns, places, np.concatenate([[0.0], np.cumsum(line)]))
    return np.diff(sums)[:, 0]


# Outlines


def _of_outlines(file: Path, lattice: Lattice) -> Mask:
    shapely, region = _shapely(file), region_of(file, lattice)
    inside = _inside(shapely, region, lattice)
    x0, y0, x1, y1 = region.bounds
    height, width = lattice.extent
    beyond = max(-x0, -y0, x1 - width, y1 - height)
    if beyond > max(lattice.patch[i] * lattice.placement.scale[i] for i in (0, 1)) and inside.any():
        notice(
            f"{file}: its polygons reach {beyond:,.0f} pixels beyond the image; what lies there "
            "is left out"
        )
    return inside


def region_of(file: Path, lattice: Lattice) -> Any:
    """The union of a file's polygons, in upright pixels of level 0.

    Raises:
        DataError: it is no GeoJSON, or holds no simple polygon that counts.
        MissingExtra: what reads it is not installed.
    """
    shapely = _shapely(file)
    shapes = [_upright(shapely, shape, lattice) for shape in _shapes(shapely, file)]
    return shapely.union_all(shapes)


def _shapely(file: Path) -> Any:
    try:
        import shapely
    except ImportError as error:
        raise MissingExtra(f"shapely (to read {file})", "slides") from error
    return shapely


def _shapes(shapely: Any, file: Path) -> list[Any]:
    """The polygons of a file, those of QuPath's class Ignore* left out."""
    if file.stat().st_size > LARGEST:
        raise DataError(
            f"{file} has {file.stat().st_size:,} bytes, and at most {LARGEST:,} are read: draw "
            "fewer points"
        )
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is no GeoJSON: {' '.join(str(error).split())}") from error
    features = list(_features(file, content))
    counting = [feature for feature in features if _class_of(feature) != IGNORED]
    if len(counting) < len(features):
        notice(
            f"{file}: {len(features) - len(counting)} polygons of the class {IGNORED} are left out"
        )
    if not counting:
        raise DataError(f"{file} holds no polygon that counts: draw around what is to count")
    return [_shape(shapely, file, number, feature) for number, feature in enumerate(counting)]


def _features(file: Path, content: Any) -> Iterable[Any]:
    """The features of a collection, of a list (as QuPath exports some), or the only one."""
    if isinstance(content, list):
        return content
    if not isinstance(content, dict):
        raise DataError(
            f"{file} is no GeoJSON: it holds a {type(content).__name__} in place of an object"
        )
    if content.get("type") == "FeatureCollection":
        features = content.get("features")
        if not isinstance(features, list):
            raise DataError(f"{file} is no GeoJSON: its FeatureCollection has no list of features")
        return features
    return [content]


def _class_of(feature: Any) -> Any:
    properties = feature.get("properties") if isinstance(feature, dict) else None
    kind = properties.get("classification") if isinstance(properties, dict) else None
    return kind.get("name") if isinstance(kind, dict) else None


def _shape(shapely: Any, file: Path, number: int, feature: Any) -> Any:
    """A polygon, or several, of a feature."""
    geometry = feature.get("geometry", feature) if isinstance(feature, dict) else feature
    kind = geometry.get("type") if isinstance(geometry, dict) else type(geometry).__name__
    if kind not in {"Polygon", "MultiPolygon"}:
        raise DataError(
            f"{file}: feature {number} is a {kind}, and a mask is made of polygons: leave it out"
        )
    try:
        shape = shapely.from_geojson(json.dumps(geometry))
    except (shapely.GEOSException, ValueError, TypeError) as error:
        raise DataError(
            f"{file}: feature {number} cannot be read: {' '.join(str(error).split())}"
        ) from error
    if not np.isfinite(shapely.get_coordinates(shape)).all():
        raise DataError(f"{file}: feature {number} has coordinates that are no numbers")
    if not shape.is_valid:
        why = shapely.is_valid_reason(shape)
        raise DataError(f"{file}: feature {number} is no simple polygon ({why}): mend its outline")
    return shape


def _upright(shapely: Any, shape: Any, lattice: Lattice) -> Any:
    return shapely.transform(shape, lattice.upright)


def _inside(shapely: Any, region: Any, lattice: Lattice) -> Mask:
    """Patches half inside: by their middle where no outline cuts them, by many places where one
    does.
    """
    shapely.prepare(region)
    down, across = lattice.spans(0), lattice.spans(1)
    y, x = (spans.mean(1) for spans in (down, across))
    inside = np.stack([shapely.contains_xy(region, x, np.full_like(x, line)) for line in y])
    for row, column in _cut(shapely, region, down, across):
        ys, xs = (
            start + (np.arange(SAMPLES) + 0.5) / SAMPLES * (end - start)
            for start, end in (down[row], across[column])
        )
        places = shapely.contains_xy(region, *(side.ravel() for side in np.meshgrid(xs, ys)))
        inside[row, column] = places.mean() >= HALF
    return inside


def _cut(
    shapely: Any, region: Any, down: NDArray[np.float64], across: NDArray[np.float64]
) -> Iterator[tuple[int, int]]:
    """Row and column of each patch that an outline runs through, a row at a time."""
    lines = region.boundary
    for row, (top, bottom) in enumerate(down):
        strip = shapely.clip_by_rect(lines, across.min(), top, across.max(), bottom)
        if strip.is_empty:
            continue
        boxes = shapely.box(across[:, 0], top, across[:, 1], bottom)
        for column in np.flatnonzero(shapely.intersects(boxes, strip)):
            yield row, int(column)
