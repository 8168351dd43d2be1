"""Detectors on a labelled set: average precision of boxes and masks by COCO's own code
(pycocotools).

    AP = mean over IoU thresholds 0.50, 0.55, …, 0.95 and over classes of the precision at 101 recalls

Lin et al., arXiv:1405.0312. At most `detections` answers of an image count, 100 as COCO does unless
the recipe says more; answers in a crowd's region count neither way.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softless import ranks
from softless.data.loader import EpochLoader, TransformedSamples
from softless.data.progress import track
from softless.data.samples import Samples
from softless.evaluation.evaluate import autocast
from softless.evaluation.spread import Estimate, estimate
from softless.experiment.measures import MEASURES
from softless.models.durable import write_text
from softless.modes import evaluating
from softless.tasks.detection.matches import Matches, matches_of
from softless.tasks.detection.samples import BoxSamples, need_pycocotools
from softless.words import visible

PREDICTIONS = "predictions.json"
# what follows "ap" in a measure's name: the IoU, or all ten
STRICTNESS = {"": None, "50": 0.5, "75": 0.75}
IOUS = np.linspace(0.5, 0.95, 10)
# image_id, category_id, bbox as [x, y, width, height], score, segmentation as run lengths
Answer = dict[str, Any]


@dataclass(frozen=True)
class Detections:
    """The outcome on one split: measures, and the answers they came from in COCO's format of
    results.
    """

    measures: dict[str, float | None]  # None where no object is there to be found
    per_class: dict[str, dict[str, float | None]]  # measure -> class -> value
    answers: list[Answer]
    detections: int  # the most that count for an image
    seen: int
    expected: int
    # of boxes and of masks
    matches: Mapping[str, Matches] = field(default_factory=dict, repr=False, compare=False)

    @cached_property
    def estimates(self) -> dict[str, Estimate]:
        """The measures with intervals over images: some seconds on many."""
        estimates = {}
        for kind, matches in self.matches.items():
            drawn = matches.drawn()
            for name, threshold in STRICTNESS.items():
                values = drawn[:, _chosen(threshold)].mean(1)
                value, valid = self.measures[f"{kind}_ap{name}"], values[~np.isnan(values)]
                deviation = float(valid.std()) if len(valid) > 1 else 0.0
                estimates[f"{kind}_ap{name}"] = estimate(
                    value, deviation, matches.carrying, why="no object is there to be found"
                )
        return estimates

    def summary(self) -> dict[str, Any]:
        """What a log keeps of an epoch."""
        return {**self.measures, "seen": self.seen, "expected": self.expected}

    def to_dict(self) -> dict[str, Any]:
        """Everything but the answers; AP as shares 0..1, None where there is no object."""
        return {
            **self.summary(),
            "detections": self.detections,
            "per_class": self.per_class,
            "intervals": {name: estimate.interval for name, estimate in self.estimates.items()},
            "reasons": {
                name: estimate.why for name, estimate in self.estimates.items() if estimate.why
            },
        }

    # the answers name their images
    def write(self, folder: Path, samples: Samples) -> None:  # noqa: ARG002
        """predictions.json, which pycocotools' `loadRes` reads."""
        write_json(folder / PREDICTIONS, self.answers)

    def __str__(self) -> str:
        rows = [
            ("images", f"{self.seen} of {self.expected}"),
            ("answers", f"{len(self.answers):,}, at most {self.detections} an image count"),
        ]
        rows += [
            (MEASURES[name].title, _told(name, value, self.estimates.get(name)))
            for name, value in self.measures.items()
        ]
        for name, classes in self.per_class.items():
            if len(classes) > 1:
                rows += [
                    (f"{MEASURES[name].title}, {label}", MEASURES[name].write(value))
                    for label, value in classes.items()
                ]
        return "\n".join(f"{visible(name):<22} {value}" for name, value in rows)


def evaluate(
    model: nn.Module,
    loader: EpochLoader,
    *,
    detections: int = 100,
    amp: str = "none",
    label: str = "evaluating",
) -> Detections:
    """Measure a detector on what an `eval_loader` of `BoxSamples` yields; under torch.distributed
    all ranks get the result of the whole.

    Answers carry the category ids of the samples, whose classes lie in the order of the model's.

    Args:
        model: a `Detector`.
        loader: batches of (list of images (C, h, w), list of targets), at the images' own sizes.
        detections: the most answers that count for an image.
        amp: "none", "bfloat16" or "float16" (torch.autocast).
        label: of the progress line.

    Raises:
        MissingExtra: pycocotools is not installed.
    """
    need_pycocotools()
    assert isinstance(loader.dataset, TransformedSamples)
    samples = loader.dataset.samples
    assert isinstance(samples, BoxSamples)
    images = (image for batch, _ in loader for image in batch)
    answers_by_image = answers_to(
        model, track(images, len(loader.positions), label), amp, tuple(samples.categories)
    )
    mine = zip(loader.positions, answers_by_image, strict=True)
    own_answers = [
        {"image_id": samples.entries[position].id, **answer}
        for position, answers in mine
        for answer in answers
    ]
    all_answers = _gathered(loader, own_answers)
    measures, per_class, matches = measured(
        samples.document(), all_answers, masks=samples.masks, detections=detections
    )
    return Detections(
        measures, per_class, all_answers, detections, len(samples), len(samples), matches
    )


@torch.no_grad()
def answers_to(
    model: nn.Module, images: Any, amp: str = "none", categories: Sequence[int] | None = None
) -> Iterator[list[Answer]]:
    """For each normalised image (C, h, w), in order, a detector's answers without the image's id.

    The model is left in the mode it was in.

    Args:
        model: a `Detector`.
        images: normalised.
        amp: "none", "bfloat16" or "float16".
        categories: the id of each class, in the model's order; those that it was trained with by
            default.
    """
    ids: Sequence[int] = model.categories if categories is None else categories  # type: ignore[assignment]
    device = next(model.parameters()).device
    with evaluating(model):
        for image in images:
            with autocast(device, amp):
                (answer,) = model([image.to(device, non_blocking=True)])
            yield _written(answer, ids)


def average_precision(
    document: Mapping[str, Any], answers: Sequence[Answer], *, masks: bool, detections: int = 100
) -> tuple[dict[str, float | None], dict[str, dict[str, float | None]]]:
    """Measures, and AP of each class: the first two of `measured`."""
    measures, per_class, _ = measured(document, answers, masks=masks, detections=detections)
    return measures, per_class


def measured(
    document: Mapping[str, Any], answers: Sequence[Answer], *, masks: bool, detections: int = 100
) -> tuple[dict[str, float | None], dict[str, dict[str, float | None]], dict[str, Matches]]:
    """Measures, AP of each class, and the matches of boxes and of masks that both came from.

    Args:
        document: images, annotations and categories in COCO's format.
        answers: in COCO's format of results.
        masks: whether masks are measured too.
        detections: the most answers that count for an image.
    """
    from pycocotools.cocoeval import COCOeval

    truth, predicted = (
        _indexed(document),
        _indexed({
            **document,
            "annotations": [
                _as_annotation(answer, number) for number, answer in enumerate(answers, 1)
            ],
        }),
    )
    measures: dict[str, float | None] = {}
    per_class: dict[str, dict[str, float | None]] = {}
    matches: dict[str, Matches] = {}
    for kind, iou in [("box", "bbox"), *([("mask", "segm")] if masks else [])]:
        with _silence():
            evaluation = COCOeval(truth, predicted, iou)
            evaluation.params.maxDets = [detections]
            # by size takes four times as long
            evaluation.params.areaRng, evaluation.params.areaRngLbl = (
                [[0, 1e10]],
                ["all"],
            )
            evaluation.evaluate()
            evaluation.accumulate()
        matches[kind] = matches_of(evaluation, detections)
        # IoU, recall, class; of objects of all sizes
        precision = evaluation.eval["precision"][..., 0, -1]
        for name, threshold in STRICTNESS.items():
            measures[f"{kind}_ap{name}"] = _mean(precision[_chosen(threshold)])
        # by id, not as the file lists them
        column = {key: index for index, key in enumerate(evaluation.params.catIds)}
        per_class[f"{kind}_ap"] = {
            category["name"]: _mean(precision[:, :, column[category["id"]]])
            for category in document["categories"]
        }
    return measures, per_class, matches


def write_json(path: Path, content: Any) -> None:
    """The file whole or not at all."""
    write_text(path, json.dumps(content))


def _written(answer: Mapping[str, Tensor], categories: Sequence[int]) -> list[Answer]:
    boxes, scores, labels = (
        answer[name].float().cpu().numpy() for name in ("boxes", "scores", "labels")
    )
    coded = _coded(answer["masks"]) if "masks" in answer else None
    answers = []
    for index, (left, top, right, bottom) in enumerate(boxes.tolist()):
        coco_result: Answer = {
            "category_id": int(categories[int(labels[index])]),
            "bbox": [round(value, 2) for value in (left, top, right - left, bottom - top)],
            "score": round(float(scores[index]), 5),
        }
        answers.append(
            coco_result if coded is None else {**coco_result, "segmentation": coded[index]}
        )
    return answers


def _coded(masks: Tensor) -> list[dict[str, Any]]:
    """Masks (n, h, w) as compressed run lengths, their text as JSON holds it."""
    from pycocotools import mask as coding

    def run(mask: Tensor) -> dict[str, Any]:
        coded = coding.encode(np.asfortranarray(mask.cpu().numpy().view(np.uint8)))
        return {
            "size": [int(side) for side in coded["size"]],
            "counts": coded["counts"].decode("ascii"),
        }

    return [run(mask) for mask in masks]


def _as_annotation(answer: Answer, number: int) -> dict[str, Any]:
    return {**answer, "id": number, "area": answer["bbox"][2] * answer["bbox"][3], "iscrowd": 0}


def _indexed(document: Mapping[str, Any]) -> Any:
    from pycocotools.coco import COCO

    with _silence():
        coco = COCO()
        coco.dataset = dict(document)
        coco.createIndex()
    return coco


def _chosen(threshold: float | None) -> Any:
    """Which of the ten IoU thresholds, one or all."""
    return slice(None) if threshold is None else np.isclose(IOUS, threshold)


def _told(name: str, value: float | None, estimate: Estimate | None) -> str:
    """A measure with its interval, for people."""
    write = MEASURES[name].write
    if estimate is None or value is None:
        return write(value)
    if estimate.interval is None:
        return f"{write(value)}  (no interval: {estimate.why})"
    return f"{write(value)}  (95 % interval {write(estimate.low)} to {write(estimate.high)})"


def _mean(precision: np.ndarray) -> float | None:
    """Of those that exist: -1 stands where a class has no object."""
    valid = precision[precision > -1]
    return float(valid.mean()) if valid.size else None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """pycocotools prints its progress."""
    with (
        Path(os.devnull).open("w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(nowhere),
    ):
        yield


def _gathered(loader: EpochLoader, answers: list[Answer]) -> list[Answer]:
    """All ranks' answers, image by image in the order of their ids; a loader that ranks do not
    share has nothing to gather.
    """
    if loader.rounds is not None:
        answers = [answer for part in ranks.gather(answers) for answer in part]
    return sorted(answers, key=lambda answer: answer["image_id"])
