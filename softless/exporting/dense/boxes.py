"""What makes boxes of a detector's maps, in numpy: anchors, offsets, and the suppression of boxes
that overlap.

The arithmetic is torchvision's, in float32 and in its order, so that the answers are the run's own.
"""

# H x W cells of a map, A anchors of a cell; boxes (n, 4) are corners x, y, x, y in pixels

from collections.abc import Sequence

import numpy as np

MANY = 4000  # numbers of boxes from which on torchvision suppresses class by class


def anchors_of(cell: np.ndarray, grid: tuple[int, int], canvas: tuple[int, int]) -> np.ndarray:
    """Anchors (H W A, 4) of a map.

    Args:
        cell: anchors of one cell around its origin (A, 4).
        grid: height and width of the map in cells.
        canvas: height and width in pixels of the image that the map is of.
    """
    rows, columns = (
        np.arange(cells, dtype=np.float32) * (pixels // cells)
        for cells, pixels in zip(grid, canvas, strict=True)
    )
    down, across = np.meshgrid(rows, columns, indexing="ij")
    corners = np.stack([across, down, across, down], axis=-1).reshape(-1, 1, 4)
    return (corners + cell.astype(np.float32)[None]).reshape(-1, 4)


def listed(map_: np.ndarray, width: int) -> np.ndarray:
    """A map (A width, H, W) as rows (H W A, width), in the order of `anchors_of`."""
    _, height, across = map_.shape
    rows = map_.reshape(-1, width, height, across).transpose(2, 3, 0, 1)
    return rows.reshape(-1, width)


def moved(
    offsets: np.ndarray, boxes: np.ndarray, weights: Sequence[float], most: float
) -> np.ndarray:
    """Boxes (n, k, 4) moved by offsets (n, 4 k), as R-CNN encodes them (arXiv:1311.2524).

    Args:
        offsets: of centres in sides, and logarithms of the factors of sides, times `weights`.
        boxes: (n, 4).
        weights: four.
        most: the largest logarithm that counts.
    """
    sides = boxes[:, 2:] - boxes[:, :2]
    centres = boxes[:, :2] + np.float32(0.5) * sides
    numbers = offsets.reshape(len(boxes), offsets.shape[1] // 4, 4) / np.asarray(
        weights, dtype=np.float32
    )
    new_centres = numbers[..., :2] * sides[:, None] + centres[:, None]
    halves = np.float32(0.5) * (
        np.exp(np.minimum(numbers[..., 2:], np.float32(most))) * sides[:, None]
    )
    return np.concatenate([new_centres - halves, new_centres + halves], axis=-1)


def clipped(boxes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Boxes (..., 4) within an image of this height and width."""
    height, width = size
    edges = np.array([width, height, width, height], dtype=np.float32)
    return np.clip(boxes, np.float32(0), edges)


def large(boxes: np.ndarray, side: float) -> np.ndarray:
    """(n,) bool: whether both sides of a box have so many pixels."""
    return ((boxes[:, 2:] - boxes[:, :2]) >= np.float32(side)).all(1)


def falling(scores: np.ndarray, most: int | None = None) -> np.ndarray:
    """Indices of the largest scores (n,), the largest first."""
    return np.argsort(-scores, kind="stable")[:most]


def kept(boxes: np.ndarray, scores: np.ndarray, groups: np.ndarray, overlap: float) -> np.ndarray:
    """Indices of the boxes that no better one of their group overlaps, the best first.

    Args:
        boxes: (n, 4).
        scores: (n,).
        groups: (n,) whole numbers: classes, or maps.
        overlap: intersection over union beyond which the worse of two boxes goes.
    """
    if not len(boxes):
        return np.zeros(0, dtype=np.int64)
    if boxes.size <= MANY:  # apart by what is added, as torchvision does where there are few
        apart = groups.astype(np.float32) * (boxes.max() + np.float32(1))
        return _kept(boxes + apart[:, None], scores, overlap)
    stays = np.zeros(len(boxes), dtype=bool)
    for group in np.unique(groups):
        own = np.flatnonzero(groups == group)
        stays[own[_kept(boxes[own], scores[own], overlap)]] = True
    left = np.flatnonzero(stays)
    return left[falling(scores[left])]


def _kept(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    order = falling(scores)
    sorted_boxes = boxes[order]
    areas = (sorted_boxes[:, 2] - sorted_boxes[:, 0]) * (sorted_boxes[:, 3] - sorted_boxes[:, 1])
    stays = np.ones(len(order), dtype=bool)
    for index in range(len(order)):
        if not stays[index]:
            continue
        behind = index + 1 + np.flatnonzero(stays[index + 1 :])
        low = np.maximum(sorted_boxes[index, :2], sorted_boxes[behind, :2])
        high = np.minimum(sorted_boxes[index, 2:], sorted_boxes[behind, 2:])
        common = np.maximum(high - low, np.float32(0)).prod(1)
        with np.errstate(invalid="ignore"):  # boxes without an area: no number, which is not more
            shares = common / (areas[index] + areas[behind] - common)
        stays[behind[shares.astype(np.float64) > overlap]] = False
    return order[stays]


def chances(logits: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)) of logits of any shape, in float32."""
    with np.errstate(over="ignore"):  # 1 / infinity is the 0 that is wanted
        return np.float32(1) / (np.float32(1) + np.exp(-logits))


def shares_of(logits: np.ndarray) -> np.ndarray:
    """Softmax of logits (n, K) over K, in float32."""
    exponentials = np.exp(logits - logits.max(1, keepdims=True))
    return exponentials / exponentials.sum(1, keepdims=True)
