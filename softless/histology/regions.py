"""Regions of a slide as polygons: of a mask of pixels, of tiles, and as GeoJSON for QuPath."""

# h x w pixels, n tiles

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softless.errors import need
from softless.slides.lattice import Lattice

Scale = tuple[float, float]  # pixels of level 0 in one of a picture, down and across


def region_of_mask(mask: NDArray[np.bool_], scale: Scale, corner: Scale = (0.0, 0.0)) -> Any:
    """The pixels (h,w) that are True as one geometry of shapely, in pixels of level 0.

    Args:
        mask: The pixels.
        scale: Of them.
        corner: y and x of the first one's corner, in pixels of level 0.

    Raises:
        MissingExtra: shapely is not installed.
    """
    need("shapely")
    import shapely

    boxes = np.array(list(_boxes(mask)), dtype=np.float64).reshape(-1, 4)
    if not len(boxes):
        return shapely.MultiPolygon()
    places = boxes * [scale[1], scale[0], scale[1], scale[0]] + [corner[1], corner[0]] * 2
    return shapely.union_all(shapely.box(*places.T))


def _boxes(mask: NDArray[np.bool_]) -> Iterator[tuple[int, int, int, int]]:
    """Rectangles (x0, y0, x1, y1) that make up the mask: runs of its rows, those that are the same
    in the next row as one.
    """
    open_runs: dict[tuple[int, int], int] = {}
    for y in range(len(mask) + 1):
        runs = set(_runs(mask[y])) if y < len(mask) else set()
        for run in [run for run in open_runs if run not in runs]:
            yield run[0], open_runs.pop(run), run[1], y
        for run in runs:
            open_runs.setdefault(run, y)


def _runs(line: NDArray[np.bool_]) -> Iterator[tuple[int, int]]:
    steps = np.diff(np.concatenate([[0], line.astype(np.int8), [0]]))
    yield from zip(
        np.flatnonzero(steps == 1).tolist(), np.flatnonzero(steps == -1).tolist(), strict=True
    )


def polygons(region: Any) -> list[Any]:
    """The polygons of a geometry, from the top to the bottom; without what has no area."""
    import shapely

    parts = [part for part in shapely.get_parts(region) if part.geom_type == "Polygon"]
    parts = [shapely.normalize(shapely.simplify(part, 0)) for part in parts if not part.is_empty]
    return sorted(parts, key=lambda part: (part.bounds[1], part.bounds[0], part.wkt))


def annotation(
    polygon: Any,
    lattice: Lattice,
    name: str,
    colour: Sequence[int],
    measurements: Mapping[str, float] | None = None,
) -> Mapping[str, Any]:
    """A polygon as QuPath's annotation, its places as a viewer counts them."""
    rings = [polygon.exterior, *polygon.interiors]
    return feature(
        [_ring(lattice.counted(np.asarray(ring.coords))) for ring in rings],
        "annotation",
        name,
        colour,
        measurements,
    )


def feature(
    rings: Sequence[Any],
    kind: str,
    name: str,
    colour: Sequence[int],
    measurements: Mapping[str, float] | None = None,
) -> Mapping[str, Any]:
    """A polygon of GeoJSON with what QuPath reads of it."""
    properties: dict[str, Any] = {
        "objectType": kind,
        "classification": {"name": name, "color": [int(channel) for channel in colour]},
    }
    if measurements is not None:
        properties["measurements"] = dict(measurements)
    return {
        "type": "Feature",
        "geometry": {"type": "Polygon", "coordinates": list(rings)},
        "properties": properties,
    }


def _ring(points: NDArray[np.float64]) -> list[list[float | int]]:
    return [[short(x), short(y)] for x, y in points.tolist()]


def short(coordinate: float) -> float | int:
    """A coordinate to a thousandth of a pixel; a whole one as such."""
    rounded = round(float(coordinate), 3)
    return int(rounded) if rounded == int(rounded) else rounded


def collection(features: Iterable[Mapping[str, Any]]) -> str:
    """A FeatureCollection as QuPath reads it, one feature a line (RFC 7946, coordinates in pixels
    of level 0).
    """
    lines = (
        json.dumps(feature, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        for feature in features
    )
    return '{"type":"FeatureCollection","features":[\n' + ",\n".join(lines) + "\n]}\n"
