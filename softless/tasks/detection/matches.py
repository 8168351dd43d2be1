"""Average precision when images are drawn again: from pycocotools' matches of answers and objects,
each image counted as often as it is drawn.

    AP = mean over IoU thresholds, recalls 0.00, 0.01, …, 1.00 and classes of the highest precision at that recall or a higher one

With every image counted once this is what pycocotools accumulates.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from softless.evaluation.spread import draws

FEWEST, MOST = 200, 1000  # draws
CURVES = 20_000  # curves (draws x classes) that are drawn where FEWEST allows it


@dataclass(frozen=True)
class ClassMatches:
    """The answers of one class from the surest on, and its objects."""

    image: np.ndarray  # (D,) place of each answer's image
    hit: np.ndarray  # (T, D) bool: an object was found, at each IoU threshold
    missed: np.ndarray  # (T, D) bool: none was; both are false where the answer counts neither way
    objects: np.ndarray  # (n,) of each image


@dataclass(frozen=True)
class Matches:
    """All classes of one kind, boxes or masks."""

    classes: tuple[ClassMatches, ...]
    recalls: np.ndarray  # (101,)
    images: int

    def precision(self, weights: np.ndarray) -> np.ndarray:
        """(T,) mean over recalls and classes with each image counted `weights` (n,) times; NaN
        without an object.
        """
        precisions = [
            precision
            for class_matches in self.classes
            if (precision := _precision(class_matches, weights, self.recalls)) is not None
        ]
        if not precisions:
            return np.full(len(self.classes[0].hit) if self.classes else 1, np.nan)
        mean: np.ndarray = np.mean(precisions, axis=0)
        return mean

    def drawn(self, seed: int = 0) -> np.ndarray:
        """(R, T) the same under draws of the images."""
        replicates = int(np.clip(CURVES // max(len(self.classes), 1), FEWEST, MOST))
        return np.array([
            self.precision(row) for block in draws(self.images, replicates, seed) for row in block
        ])

    @property
    def carrying(self) -> int:
        """Images that have an object of some class."""
        return (
            int(
                (
                    np.sum([class_matches.objects for class_matches in self.classes], axis=0) > 0
                ).sum()
            )
            if self.classes
            else 0
        )


def matches_of(evaluation: Any, detections: int) -> Matches:
    """What a `COCOeval` found, after its `evaluate`; images lie in the order of its imgIds.

    Args:
        evaluation: with one range of areas.
        detections: the most answers that count for an image.
    """
    parameters, image_results = evaluation.params, evaluation.evalImgs
    images, thresholds = len(parameters.imgIds), len(parameters.iouThrs)
    by_class = (
        [image_results[start : start + images] for start in range(0, len(image_results), images)]
        if images
        else []
    )
    return Matches(
        tuple(_class(class_results, images, thresholds, detections) for class_results in by_class),
        np.asarray(parameters.recThrs),
        images,
    )


def _class(
    class_results: Sequence[Any], images: int, thresholds: int, detections: int
) -> ClassMatches:
    objects = np.zeros(images, dtype=np.int64)
    indices, scores, hit, ignored = [], [], [], []
    for index, image_result in enumerate(class_results):
        if image_result is None:  # neither an object nor an answer
            continue
        objects[index] = int((~np.asarray(image_result["gtIgnore"], dtype=bool)).sum())
        scores.append(np.asarray(image_result["dtScores"][:detections], dtype=np.float64))
        indices.append(np.full(len(scores[-1]), index))
        hit.append(np.asarray(image_result["dtMatches"])[:, :detections] != 0)
        ignored.append(np.asarray(image_result["dtIgnore"])[:, :detections].astype(bool))
    if not indices:
        none = np.zeros((thresholds, 0), dtype=bool)
        return ClassMatches(np.zeros(0, dtype=np.int64), none, none, objects)
    order = np.argsort(-np.concatenate(scores), kind="mergesort")
    met, left_out = (np.concatenate(parts, axis=1)[:, order] for parts in (hit, ignored))
    return ClassMatches(np.concatenate(indices)[order], met & ~left_out, ~met & ~left_out, objects)


def _precision(
    class_matches: ClassMatches, weights: np.ndarray, recalls: np.ndarray
) -> np.ndarray | None:
    """(T,) mean over recalls, or None where no object is drawn."""
    objects = int((class_matches.objects * weights).sum())
    if not objects:
        return None
    counted = weights[class_matches.image]
    hits, wrong = (
        (class_matches.hit * counted).cumsum(1),
        (class_matches.missed * counted).cumsum(1),
    )
    recall, precision = hits / objects, hits / (hits + wrong + np.spacing(1))
    highest = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    # recalls that are never reached
    padded = np.concatenate([highest, np.zeros((len(highest), 1))], axis=1)
    at = [np.searchsorted(reached, recalls, side="left") for reached in recall]
    return np.array([curve[places].mean() for curve, places in zip(padded, at, strict=True)])
