"""Scores of tiles on their way out: a picture over the slide, polygons for QuPath, and numbers."""

# N tiles, h x w pixels

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from softless.errors import need
from softless.histology.regions import annotation, feature, polygons, short
from softless.histology.scores import Scores
from softless.models.durable import write_whole
from softless.saliency.colours import colourise
from softless.slides.lattice import Lattice
from softless.slides.maps import CELLS, enlarged, laid

STRENGTH = 0.45  # of colours: tissue is seen through the strongest
MIDDLE = 2  # the class of tiles that say little, of which no region is drawn


@dataclass(frozen=True)
class HeatMap:
    """Scores where they lie.

    Attributes:
        scores: Of the tiles.
        places: (N,2) x and y of their top left corners, in upright pixels of level 0.
        side: Of a tile, in pixels of level 0.
        step: From one tile to the next, in pixels of level 0.
        lattice: Of the whole slide: its size, and how a viewer counts.
    """

    scores: Scores
    places: NDArray[np.float64]
    side: float
    step: float
    lattice: Lattice

    @cached_property
    def cells(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Corners x0, y0, x1, y1 (n,4) of what is drawn and its mean scores (n,): each tile, or
        squares of several where there are more than a viewer takes.
        """
        boxes = np.concatenate([self.places, self.places + self.side], axis=1)
        values = self.scores.values
        tiles = 1
        while len(boxes) > CELLS:
            tiles += 1
            boxes, values = self._grouped(tiles)
        return boxes, values

    def _grouped(self, tiles: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Squares of so many tiles a side."""
        keys = np.floor(self.places / (self.step * tiles)).astype(np.int64)
        _, groups = np.unique(keys[:, ::-1], axis=0, return_inverse=True)
        groups = groups.reshape(-1)
        counts = np.bincount(groups)
        means = np.bincount(groups, self.scores.values) / counts
        boxes = np.empty((len(counts), 4))
        for corner, worst, pick in ((0, np.inf, np.minimum), (2, -np.inf, np.maximum)):
            for axis in (0, 1):
                side = np.full(len(counts), worst)
                far = self.side if corner else 0.0
                pick.at(side, groups, self.places[:, axis] + far)
                boxes[:, corner + axis] = side
        return boxes, means

    def features(self) -> Iterator[Mapping[str, Any]]:
        """GeoJSON: an annotation around each region of tiles of one class but the middle one, and a
        polygon for each tile.
        """
        colours = self._colours
        for band, name in enumerate(self.scores.names):
            if band != MIDDLE:
                yield from self._regions(band, name, colours[band])
        boxes, values = self.cells
        bands = self.scores.bands(values)
        measurements = self.scores.measurements(values)
        for box, band, numbers in zip(boxes, bands.tolist(), measurements, strict=True):
            yield feature(
                [self._ring(box)], "tile", self.scores.names[band], colours[band], numbers
            )

    @cached_property
    def _colours(self) -> list[list[int]]:
        colours = colourise(np.array(self.scores.middles), signed=True).round().astype(int)
        return [[int(channel) for channel in colour] for colour in colours]

    def _ring(self, box: NDArray[np.float64]) -> list[list[float | int]]:
        corners = self.lattice.counted(box.reshape(2, 2))
        (x0, y0), (x1, y1) = corners.min(0).tolist(), corners.max(0).tolist()
        points = [(x0, y0), (x1, y0), (x1, y1), (x0, y1), (x0, y0)]
        return [[short(x), short(y)] for x, y in points]

    def _regions(self, band: int, name: str, colour: list[int]) -> Iterator[Mapping[str, Any]]:
        """Tiles of one class that touch, as one polygon each."""
        import shapely

        chosen = self.scores.bands(self.scores.values) == band
        if not chosen.any():
            return
        places, values = self.places[chosen], self.scores.values[chosen]
        boxes = shapely.box(*places.T, *(places + self.side).T)
        parts = polygons(shapely.union_all(boxes))
        tree = shapely.STRtree(parts)
        tiles, regions = tree.query(shapely.points(places + self.side / 2), predicate="intersects")
        for number, part in enumerate(parts):
            inside = values[tiles[regions == number]]
            (numbers,) = self.scores.measurements(np.array([inside.mean()]))
            numbers = {f"mean {key}": value for key, value in numbers.items()}
            yield annotation(part, self.lattice, name, colour, {"tiles": len(inside), **numbers})

    def painted(self, size: tuple[int, int]) -> NDArray[np.float64]:
        """What is shown (h,w) at a picture's size = (width, height): the mean of the tiles that
        cover a pixel, NaN where none does.
        """
        width, height = size
        scale = np.array([width / self.lattice.extent[1], height / self.lattice.extent[0]])
        first = np.rint(self.places * scale).astype(int)
        last = np.maximum(np.rint((self.places + self.side) * scale).astype(int), first + 1)
        sums, counts = np.zeros((height, width)), np.zeros((height, width))
        for (x0, y0), (x1, y1), value in zip(first, last, self.scores.shown, strict=True):
            sums[y0:y1, x0:x1] += value
            counts[y0:y1, x0:x1] += 1
        return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)

    def picture(self, thumbnail: Image.Image, title: str) -> Image.Image:
        """The map over a picture of the whole slide."""
        base = enlarged(thumbnail)
        return laid(
            base,
            self.painted(base.size),
            self.lattice,
            self.scores.caption,
            signed=True,
            title=title,
            ends=self.scores.ends,
            strength=STRENGTH,
        )

    def write_scores(self, path: Path, facts: Mapping[str, Any]) -> None:
        """HDF5 with `scores` (N,) float64 and `coords` (N,2), as TRIDENT places them, and facts as
        attributes of the file.

        Raises:
            StorageError: the disk does not take it.
            MissingExtra: h5py is not installed.
        """
        need("h5py")
        whole = self.places.astype(np.int64)
        coords = whole if np.array_equal(whole, self.places) else self.places

        def write(beside: Path) -> None:
            import h5py

            with h5py.File(beside, "w") as file:
                file.create_dataset("scores", data=self.scores.values)
                file.create_dataset("coords", data=coords)
                file["coords"].attrs["patch_size_level0"] = self.side
                file["scores"].attrs["kind"] = self.scores.kind
                file["scores"].attrs["label"] = self.scores.label
                for name, value in facts.items():
                    if value is not None:
                        file.attrs[name] = value

        write_whole(path, write)
