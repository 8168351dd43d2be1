"""One image, looked at by the model that is served: its answer as `softless predict` gives it, and
what the page shows around it.

All of this runs in the thread that computes.
"""

import base64
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image

from softless.data.images import BadImage
from softless.data.pictures import for_people, size_of
from softless.data.reading import read_whole
from softless.errors import SoftlessError, UsageError
from softless.models.scale import foreign, scale_of, training_scale
from softless.saliency.maps import explain
from softless.saliency.overlay import overlay as laid_over
from softless.saliency.overlay import picture as seen_picture
from softless.saliency.saliency import Saliency
from softless.saliency.viewer import eyes
from softless.serving.headers import Header
from softless.serving.look import Answer, Look, Measured, Shown, png
from softless.serving.refusal import Refusal
from softless.serving.subject import Served, Subject, prepared
from softless.serving.uploads import as_file
from softless.tasks.classification.predict import Words, chances_of
from softless.tasks.classification.predict import words_of as of_classes
from softless.tasks.detection.measure import answers_to
from softless.tasks.detection.pictures import draw
from softless.tasks.multilabel.predict import words_of as of_labels
from softless.tasks.segmentation.pictures import overlay as areas_over
from softless.tasks.segmentation.predict import classes_of, label_image

WORDS: Mapping[str, Callable[[Any], Words]] = {
    "classification": of_classes,
    "multilabel": of_labels,
}
PAIRS, ENOUGH = 7, 1.5  # measurements of each model, and seconds that they may take together


def picture_of(served: Served, content: bytes | bytearray, header: Header) -> Any:
    """An upload as the model's transform takes it, read as `softless predict` reads a file.

    Raises:
        Refusal: it is damaged, or its pixels are not of a kind that is read.
    """
    loaded = served.loaded
    with as_file(content, header.kind) as path:
        try:
            return read_whole(
                path,
                loaded.in_chans,
                loaded.scale,
                max_pixels=header.width * header.height,
                min_side=1,
            ).image
        except BadImage as error:
            raise Refusal(422, f"the image cannot be read: {error.reason}") from None


def answered(subject: Subject, picture: Any, memory: int) -> dict[str, Any]:
    """The answer alone, for JSON.

    Raises:
        Refusal: the image needs more memory than there is.
        UsageError: the model's output is not finite.
    """
    served = subject.served
    tensor = prepared(served, picture)
    _check_room(subject, served, tensor, size_of(picture), memory)
    start = time.perf_counter()
    answer = _answer(served, picture, tensor, draws=False)
    seconds = time.perf_counter() - start
    return {
        "task": answer.task,
        **answer.body,
        "precision": served.precision,
        "milliseconds": round(1000 * seconds, 3),
    }


def looked_at(subject: Subject, picture: Any, memory: int, truth: str | None = None) -> Look:
    """All that the page shows.

    Raises:
        Refusal: the image needs more memory than there is.
        UsageError: the model's output is not finite.
    """
    models = [subject.served, *([] if subject.twin is None else [subject.twin])]
    tensors = [prepared(served, picture) for served in models]
    for served, tensor in zip(models, tensors, strict=True):
        _check_room(subject, served, tensor, size_of(picture), memory)
    answers, first_times = [], []
    for served, tensor in zip(models, tensors, strict=True):
        start = time.perf_counter()
        answers.append(_answer(served, picture, tensor, draws=served is subject.served))
        first_times.append(time.perf_counter() - start)
    times = first_times
    if sum(first_times) < ENOUGH:  # else once more would take too long
        times = _timed([_forward(*pair) for pair in zip(models, tensors, strict=True)])
    rows = [
        Measured(
            served,
            answer,
            1000 * seconds,
            subject.cost(served, tuple(tensor.shape)),
            _tokens(served, tensor),
        )
        for served, answer, seconds, tensor in zip(models, answers, times, tensors, strict=True)
    ]
    tensor, first = tensors[0], models[0]
    maps, why = _maps(first, tensor)
    far = None if first.exported else foreign(first.loaded.model, *tensor.shape[-2:])
    advice = "" if far is None else f"{far}."
    return Look(
        size=size_of(picture),
        model_size=(int(tensor.shape[-2]), int(tensor.shape[-1])),
        rows=rows,
        pictures=_pictures(first, picture, tensor, answers[0], maps),
        why_no_maps=why,
        sizes=_sizes(first, tensor),
        foreign=advice[:1].upper() + advice[1:],
        truth=truth,
    )


def _check_room(
    subject: Subject, served: Served, tensor: torch.Tensor, size: tuple[int, int], memory: int
) -> None:
    """Whether the memory is enough for an image of this size, counted before it is computed."""
    model = served.loaded.model
    if served.exported:
        if reason := model.refuses(size[1], size[0]):  # type: ignore[operator]
            raise Refusal(422, reason)
        return
    if served.loaded.task in WORDS:  # framed: always of one size
        return
    cost = subject.cost(served, tuple(tensor.shape))
    if cost is not None and cost.peak_bytes > memory:
        raise Refusal(
            413,
            f"an image of {size[0]} x {size[1]} pixels takes about {cost.peak_bytes / 1e9:.1f} GB "
            f"in this model, and {memory / 1e9:.1f} GB may be used: give a smaller one",
        )


def _forward(served: Served, tensor: torch.Tensor) -> Callable[[], Any]:
    """The model's work on a prepared image, as the answer has it."""
    loaded, setting = served.loaded, served.setting
    if loaded.task in WORDS:
        words = WORDS[loaded.task](loaded)
        return lambda: chances_of(loaded, tensor[None], setting, words, ["the image"])
    if loaded.task == "detection":
        return lambda: next(iter(_boxes(served, tensor)))
    ready = _Ready(tensor)
    return lambda: classes_of(_given(served, ready), None, setting, "the image")


class _Ready:
    """A transform of what is transformed already."""

    def __init__(self, tensor: torch.Tensor) -> None:
        self.tensor = tensor

    def __call__(self, _: Any) -> torch.Tensor:
        return self.tensor


def _given(served: Served, ready: Any) -> Any:
    """The run with an image that is prepared."""
    return replace(served.loaded, transform=ready)


def _boxes(served: Served, tensor: torch.Tensor) -> Any:
    return answers_to(served.loaded.model, [tensor], served.setting.amp)


def _answer(served: Served, picture: Any, tensor: torch.Tensor, *, draws: bool) -> Answer:
    output = _forward(served, tensor)()
    task = served.loaded.task
    if task in WORDS:
        return _of_classes(served, output[0])
    if task == "detection":
        return _of_boxes(served, picture, output, draws=draws)
    return _of_areas(served, picture, output, draws=draws)


def _of_classes(served: Served, row: np.ndarray) -> Answer:
    loaded = served.loaded
    words = WORDS[loaded.task](loaded)
    chances = dict(zip(loaded.classes, map(float, row), strict=True))
    labels = words.labels(row)
    return Answer(loaded.task, {"probabilities": chances, "labels": labels}, chances, labels)


def _of_boxes(
    served: Served, picture: Any, answers: Sequence[Mapping[str, Any]], *, draws: bool
) -> Answer:
    categories: Sequence[int] = served.loaded.model.categories  # type: ignore[assignment]
    classes = dict(zip(categories, served.loaded.classes, strict=True))
    numbers = [number for answer in answers for number in (answer["score"], *answer["bbox"])]
    if not all(map(math.isfinite, numbers)):
        raise UsageError("the model's output is not finite: its weights are of no use")
    ordered = sorted(answers, key=lambda answer: -answer["score"])
    boxes = [{"class": classes[answer["category_id"]], **_plain(answer)} for answer in ordered]
    drawn = draw(for_people(picture), ordered, classes) if draws else None
    return Answer("detection", {"boxes": boxes}, boxes=boxes, overlay=drawn)


def _plain(answer: Mapping[str, Any]) -> dict[str, Any]:
    names = ("score", "bbox", "segmentation")
    return {name: answer[name] for name in names if name in answer}


def _of_areas(served: Served, picture: Any, classes: np.ndarray, *, draws: bool) -> Answer:
    names = served.loaded.classes
    values: Sequence[int] = served.loaded.model.values  # type: ignore[assignment]
    counts = np.bincount(classes.reshape(-1), minlength=256)[: len(names)]
    shares = dict(zip(names, map(float, counts / classes.size), strict=True))
    labels = label_image(classes, values, names)
    body = {
        "shares": shares,
        "values": dict(zip(names, map(int, values), strict=True)),
        "label_image": "data:image/png;base64," + base64.b64encode(png(labels)).decode("ascii"),
    }
    drawn = areas_over(for_people(picture), classes, names, legend=False) if draws else None
    return Answer("segmentation", body, shares, overlay=drawn, label_image=labels)


def _timed(works: Sequence[Callable[[], Any]]) -> list[float]:
    """Seconds of each, the median of runs that take turns; the first of each was made before."""
    seconds: list[list[float]] = [[] for _ in works]
    end = time.perf_counter() + ENOUGH
    for _ in range(PAIRS):
        for work, measured in zip(works, seconds, strict=True):
            start = time.perf_counter()
            work()
            measured.append(time.perf_counter() - start)
        if time.perf_counter() > end:
            break
    return [statistics.median(measured) for measured in seconds]


def _tokens(served: Served, tensor: torch.Tensor) -> int | None:
    if served.exported:
        return None
    scale = scale_of(served.loaded.model, *map(int, tensor.shape[-2:]))
    return None if scale is None else scale.tokens


def _sizes(served: Served, tensor: torch.Tensor) -> str:
    """Trained at …, this is …; empty where nobody said."""
    height, width = map(int, tensor.shape[-2:])
    if served.exported:
        trained = served.loaded.best.get("trained_at", {}).get("pixels")
        if not trained:
            return ""
        return f"Trained at {trained[1]} x {trained[0]} pixels; this is {width} x {height} pixels."
    model = served.loaded.model
    image, learned = scale_of(model, height, width), training_scale(model)
    if image is None or learned is None:
        return ""
    return f"Trained at {learned}; this is {image}."


def _maps(served: Served, tensor: torch.Tensor) -> tuple[Saliency | None, str]:
    if served.exported:
        return None, "An exported file holds no attention layers, so no saliency is drawn."
    try:
        return explain(served.loaded.model, tensor[None]), ""
    except SoftlessError as error:
        return None, f"No saliency is drawn: {error}."


def _pictures(
    served: Served, picture: Any, tensor: torch.Tensor, answer: Answer, maps: Saliency | None
) -> list[Shown]:
    """The picture, the answer over it, and the maps over what the model saw."""
    best = served.loaded.best
    pictures = []
    if answer.overlay is not None:
        name = "boxes" if answer.boxes or answer.task == "detection" else "areas"
        pictures += [
            Shown(name, "", answer.overlay, large=True),
            Shown("the image", "", for_people(picture).convert("RGB")),
        ]
    framed = tensor if maps is None else eyes(served.loaded.model, tensor[None])[1][0]
    if best["mean"] is None or served.exported:
        return pictures or [Shown("the image", "", for_people(picture).convert("RGB"))]
    base = seen_picture(framed, best["mean"], best["std"])
    height, width = framed.shape[-2:]
    if answer.overlay is None:
        pictures.append(
            Shown("what the model sees", f"{width} x {height} pixels", base, max(base.size) < 96)
        )
    if maps is None:
        return pictures
    base = _enlarged(base)
    for name, letter, values in (("queries", "q", maps.query), ("keys", "k", maps.key)):
        hat = "^" if maps.normalised else ""
        rows, columns = values[0].shape
        note = f"norm of {letter}{hat}, {columns} x {rows} tokens; {where(values[0])}"
        pictures.append(Shown(name, note, laid_over(base, values[0], smooth=False)))
    if maps.class_row is not None:
        note = f"its attention to each token, signed; {where(maps.class_row[0].abs())}"
        row = laid_over(base, maps.class_row[0], signed=True, smooth=False)
        pictures.append(Shown("class token", note, row))
    return pictures


def _enlarged(image: Image.Image, side: int = 288) -> Image.Image:
    factor = max(1, -(-side // max(image.size)))
    return image.resize((factor * image.width, factor * image.height), Image.Resampling.NEAREST)


def where(values: torch.Tensor) -> str:
    """In words where a map (h, w) is largest, for those who cannot see it."""
    height, width = values.shape
    row, column = divmod(int(values.argmax()), width)
    vertical = ("top", "middle", "bottom")[min(2, 3 * row // height)]
    return f"largest at the {vertical} {('left', 'centre', 'right')[min(2, 3 * column // width)]}"
