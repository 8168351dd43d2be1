"""Pieces of a pyramid's maps under boxes, in numpy (RoIAlign: He et al., arXiv:1703.06870)."""

# R boxes, C channels of maps, S side of a piece in cells

from collections.abc import Sequence

import numpy as np

SIDE, LEVEL = 224, 4  # a box of such a side is read from the map of stride 2 ** LEVEL
FIRST = 2  # the finest map has stride 2 ** FIRST
TINY = 1e-6
AT_ONCE = 32  # boxes whose samples are in memory together


def levels_of(boxes: np.ndarray, count: int) -> np.ndarray:
    """(R,) which of `count` maps each box (R, 4) is read from; the finest is 0."""
    sides = boxes[:, 2:] - boxes[:, :2]
    with np.errstate(divide="ignore"):  # a box without an area is read from the finest
        logarithms = np.log2(np.sqrt(sides[:, 0] * sides[:, 1]) / np.float32(SIDE))
    levels = np.floor(np.float32(LEVEL) + logarithms + np.float32(TINY))
    return np.clip(levels, FIRST, FIRST + count - 1).astype(np.int64) - FIRST


def pieces(maps: Sequence[np.ndarray], boxes: np.ndarray, side: int, samples: int) -> np.ndarray:
    """What the maps hold under each box: (R, C, S, S).

    Args:
        maps: of strides 4, 8, …, each (C, h, w).
        boxes: (R, 4) corners in pixels.
        side: S.
        samples: points along a side of a cell, whose mean is its value.
    """
    cut = np.zeros((len(boxes), maps[0].shape[0], side, side), dtype=np.float32)
    levels = levels_of(boxes, len(maps))
    for level, map_ in enumerate(maps):
        own = np.flatnonzero(levels == level)
        scale = np.float32(1 / 2 ** (FIRST + level))
        for start in range(0, len(own), AT_ONCE):
            part = own[start : start + AT_ONCE]
            cut[part] = _cut(map_, boxes[part] * scale, side, samples)
    return cut


def _cut(map_: np.ndarray, boxes: np.ndarray, side: int, samples: int) -> np.ndarray:
    """Pieces (r, C, S, S) of one map (C, h, w) under boxes (r, 4) in its cells."""
    across = _points(boxes[:, 0], boxes[:, 2], side, samples, map_.shape[2])
    down = _points(boxes[:, 1], boxes[:, 3], side, samples, map_.shape[1])
    total = np.float32(0)
    for rows, row_shares in down:
        for columns, column_shares in across:
            shares = row_shares[:, :, None] * column_shares[:, None, :]
            total = total + map_[:, rows[:, :, None], columns[:, None, :]] * shares
    channels, count = map_.shape[0], len(boxes)
    cells = total.reshape(channels, count, side, samples, side, samples).mean((3, 5))
    return cells.transpose(1, 0, 2, 3)


def _points(
    start: np.ndarray, end: np.ndarray, side: int, samples: int, cells: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    """The two cells beside each point along an axis (r, S samples), and their shares; beyond the
    map by more than a cell nothing counts.
    """
    step = np.maximum(end - start, np.float32(1)) / np.float32(side)  # of a cell of the piece
    cell_starts = np.arange(side, dtype=np.float32) * step[:, None]
    within = (np.arange(samples, dtype=np.float32) + np.float32(0.5)) * step[:, None]
    within = within / np.float32(samples)
    points = (start[:, None] + cell_starts)[:, :, None] + within[:, None, :]
    points = points.reshape(len(start), -1)
    inside = (points >= -1) & (points <= cells)
    points = np.clip(points, 0, cells - 1)
    low = np.floor(points).astype(np.int64)
    high = np.minimum(low + 1, cells - 1)
    share = (points - low).astype(np.float32)
    return [(low, (1 - share) * inside), (high, share * inside)]
