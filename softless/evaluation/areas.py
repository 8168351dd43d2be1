"""The area under the ROC curve, exact for any ties, for all draws of the images at once.

    AUC = (pairs of an image of the class and another that are in the right order + half of those that tie) / all such pairs

Hanley and McNeil, Radiology 1982. Its spread without draws, from what each image adds: DeLong,
DeLong and Clarke-Pearson, Biometrics 1988.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np

SIDES: tuple[Literal["left", "right"], ...] = ("left", "right")


def area_of(scores: np.ndarray, own: np.ndarray) -> float | None:
    """The area of scores (n,) float64, with the places of the images of the class; None where one
    side has no image.

    Scores are sorted once, rounded to float32, which is three times as fast: rounding keeps their
    order. The few of the others that share the rounded score of an image of the class are compared
    as they are.
    """
    negatives = len(scores) - len(own)
    if not len(own) or not negatives:
        return None
    rounded = scores.astype(np.float32)
    ordered, mine = np.sort(rounded), np.sort(scores[own])
    near = mine.astype(np.float32)
    first, last = (
        np.searchsorted(ordered, near, side) - np.searchsorted(near, near, side) for side in SIDES
    )
    in_order = float(first.sum())  # others below by their rounded scores
    if (shared := first != last).any():
        aside = np.isin(rounded, near[shared])
        aside[own] = False
        close = np.sort(scores[aside])
        below, up_to = (np.searchsorted(close, mine[shared], side) for side in SIDES)
        in_order += float(
            (
                below
                - np.searchsorted(close.astype(np.float32), near[shared])
                + (up_to - below) / 2
            ).sum()
        )
    return in_order / (len(own) * negatives)


@dataclass(frozen=True)
class Ordered:
    """Images in the rising order of a score, equal scores side by side."""

    order: np.ndarray  # (n,) places of the images
    starts: np.ndarray  # (g,) where another score begins
    positive: np.ndarray  # (n,) bool, in this order

    @classmethod
    def of(cls, scores: np.ndarray, positive: np.ndarray) -> "Ordered":
        """Of scores (n,) and whether each image is of the class (n,)."""
        order = np.argsort(scores, kind="stable")
        sorted_scores = scores[order]
        fresh = np.ones(len(sorted_scores), dtype=bool)
        fresh[1:] = sorted_scores[1:] != sorted_scores[:-1]
        return cls(order, np.flatnonzero(fresh), positive[order])

    @property
    def decides(self) -> bool:
        """Whether there are images on both sides."""
        return bool(self.positive.any()) and not bool(self.positive.all())

    def area(self) -> float | None:
        """The area, or None where one side has no image."""
        return float(self.areas(np.ones((1, len(self.order))))[0]) if self.decides else None

    def areas(self, weights: np.ndarray) -> np.ndarray:
        """(b,) areas of images that count `weights` (b, n) times; NaN where a row has none of one
        side.
        """
        counted = weights[:, self.order].astype(np.float64)
        up, down = (self._by_score(counted * side) for side in (self.positive, ~self.positive))
        below = down.cumsum(1) - down
        pairs = up.sum(1) * down.sum(1)
        in_order = (up * (below + down / 2)).sum(1)
        return np.divide(in_order, pairs, out=np.full(len(pairs), np.nan), where=pairs > 0)

    def influence(self) -> np.ndarray:
        """(n,) by how much each image moves the area, times n: its squares' sum over n squared is
        DeLong's variance.
        """
        ones = np.ones((1, len(self.order)))
        up, down = (self._by_score(ones * side)[0] for side in (self.positive, ~self.positive))
        above, below = up.sum() - up.cumsum() + up / 2, down.cumsum() - down + down / 2
        group = np.repeat(
            np.arange(len(self.starts)), np.diff(np.append(self.starts, len(self.order)))
        )
        positives, negatives = up.sum(), down.sum()
        area = float((up * below).sum() / (positives * negatives))
        of_class, of_others = (
            (below / negatives - area) / positives,
            (above / positives - area) / negatives,
        )
        moved = np.empty(len(self.order))
        moved[self.order] = len(self.order) * np.where(
            self.positive, of_class[group], of_others[group]
        )
        return moved

    def _by_score(self, counted: np.ndarray) -> np.ndarray:
        """Sums (b, g) over equal scores."""
        if len(self.starts) == len(self.order):
            return counted
        summed: np.ndarray = np.add.reduceat(counted, self.starts, axis=1)
        return summed
