"""What the page of detectors shows: average precision of boxes and masks on test images, and their
objects beside the truth.
"""

import base64
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from softless.data.pictures import for_people
from softless.errors import DataError, SoftlessError
from softless.experiment.measures import MEASURES
from softless.report.groups import Group
from softless.report.html import Html, enlarged, table, tag
from softless.report.numbers import MINUS, THIN, duration, percent, points
from softless.report.places import without_places
from softless.tasks.detection.measure import PREDICTIONS, Answer, average_precision
from softless.tasks.detection.pictures import SURE, draw
from softless.tasks.detection.samples import BoxSamples, open_boxes
from softless.tasks.detection.settings import DetectionSpec

__all__ = ["SAMPLES", "further", "headline", "method", "samples"]

SAMPLES = (
    "Test images from the lowest to the highest box AP50: the truth, and what each model "
    f"answers with a score of {SURE} or more."
)
SHOWN = 6
LONGEST = 460  # pixels of a picture's longer side

Answers = Mapping[int, Sequence[Answer]]  # by image


def headline(groups: Sequence[Group]) -> Html:
    """A sentence, and a card for each model and for each difference to the last one."""
    measure = _measure(groups[0])
    base, base_value = groups[-1], _value(groups[-1], measure)
    cards = [_card(group, measure) for group in groups]
    for group in groups[:-1]:
        value = _value(group, measure)
        if value is not None and base_value is not None:
            cards.append(_difference_card(group, base, measure, value - base_value))
    return tag(
        "div", tag("p", verdict(groups), class_="verdict-line"), tag("div", cards, class_="cards")
    )


def verdict(groups: Sequence[Group]) -> str:
    """What came out, and how far it carries."""
    if any(group.first.result.get("test") is None for group in groups):
        return (
            "There is no test split: what follows was measured on validation images, which may "
            "also have chosen the epoch."
        )
    measure = _measure(groups[0])
    parts = [f"{group.label} {percent(_value(group, measure))}" for group in groups]
    text = (
        f"{MEASURES[measure].title} on {groups[0].first.result['test']['seen']} test images: "
        f"{', '.join(parts)}."
    )
    if len(groups) == 1:
        return text
    seeds = min(len(group.runs) for group in groups)
    text += " Differences have no intervals:"
    return text + (
        " one seed each, and another may turn a small difference."
        if seeds == 1
        else f" means over {seeds} seeds at least, whose spread is below."
    )


def samples(groups: Sequence[Group]) -> Html:
    """The pictures, or the sentence that says why there are none."""
    if not all((group.first.folder / PREDICTIONS).is_file() for group in groups):
        return tag("p", "There is no test split, so there are no answers to show.", class_="note")
    try:
        test = _test_split(groups[0])
        answers = [_answers(group) for group in groups]
        rows = [_row(groups, answers, test, index) for index in _chosen(test, answers)]
    except (SoftlessError, OSError) as error:
        return tag(
            "p", f"The test images cannot be shown: {without_places(error, groups)}", class_="note"
        )
    return tag("div", rows, class_="samples", style="grid-template-columns:1fr")


def further(groups: Sequence[Group]) -> list[Html]:
    """AP of each class, where there are several."""
    tests = [
        (group, (group.first.result.get("test") or {}).get("per_class") or {}) for group in groups
    ]
    kinds = [kind for kind in ("box_ap", "mask_ap") if all(kind in scores for _, scores in tests)]
    if len(groups[0].first.classes) < 2 or not kinds:
        return []
    rows = [
        [name, *(percent(scores[kind].get(name)) for _, scores in tests for kind in kinds)]
        for name in groups[0].first.classes
    ]
    head = ["", *(f"{group.label} {MEASURES[kind].title}" for group, _ in tests for kind in kinds)]
    part = tag("h2", "Classes", id="classes"), table(head, rows, caption="Test images, first seed")
    return [tag("section", *part, aria_labelledby="classes")]


def method(groups: Sequence[Group]) -> list[str]:
    """How the measures came about."""
    detections = (groups[0].first.recipe.detection or DetectionSpec()).detections
    limit = (
        f"At most {detections} answers of an image "
        f"count{'' if detections == 100 else ', where COCO takes 100'}; answers in a crowd's "
        "region count neither way."
    )
    return [
        (
            "Intervals of AP are of a bootstrap over images (on the scale of the logit, with "
            "Student's t)."
        ),
        (
            "AP is COCO's, computed by pycocotools: the mean over IoU thresholds 0.50 to 0.95 and "
            "over classes of the precision at 101 recalls; AP50 and AP75 are of one threshold."
        ),
        limit,
        (
            "The cost is counted of host, pyramid and the head that looks at all places; what "
            "R-CNN "
            "does for each region depends on the image."
        ),
        (
            "Images are answered one by one, each at its own size or resized as the recipe says, "
            "without padding to another's."
        ),
    ]


def _measure(group: Group) -> str:
    """The measure that chose the epochs, where it is one of boxes or masks."""
    metric = group.first.recipe.metric
    return metric if metric.startswith(("box", "mask")) else "box_ap"


def _scores(group: Group) -> list[Mapping[str, Any]]:
    """Of each run, on test images where there are some."""
    return [run.result.get("test") or run.result["val"] for run in group.runs]


def _value(group: Group, measure: str) -> float | None:
    """The mean over seeds."""
    values = [scores.get(measure) for scores in _scores(group)]
    return None if any(value is None for value in values) else float(np.mean(values))  # type: ignore[arg-type]


def _card(group: Group, measure: str) -> Html:
    split = "test" if group.first.result.get("test") else "validation: no test split"
    rows = [
        (MEASURES[name].title, percent(_value(group, name)))
        for name in _scores(group)[0]
        if name in MEASURES
    ]
    if len(group.runs) > 1:
        rows.append((
            "seeds",
            ", ".join(
                f"{run.seed}: {percent(scores[measure])}"
                for run, scores in zip(group.runs, _scores(group), strict=True)
            ),
        ))
    else:
        rows.append(("seed", str(group.first.seed)))
    rows.append(("best epoch", group.best_epochs))
    rows.append((
        "training",
        duration(sum(run.result["seconds"] for run in group.runs) / len(group.runs)),
    ))
    value = _value(group, measure)
    return tag(
        "article",
        tag("h3", tag("span", class_=f"swatch {group.colour}"), group.label),
        tag(
            "p",
            "–" if value is None else f"{100 * value:.1f}",
            tag("span", f"{THIN}%"),
            class_="big",
        ),
        tag(
            "p", f"{MEASURES[measure].title} on {split}{_interval(group, measure)}", class_="under"
        ),
        tag("dl", [tag("div", tag("dt", name), tag("dd", text)) for name, text in rows]),
        class_="card",
    )


def _interval(group: Group, measure: str) -> str:
    """The interval over images of a single run, or why there is none; nothing of runs of an older
    softless.
    """
    test = group.first.result.get("test") or {}
    if len(group.runs) > 1 or "intervals" not in test:
        return ""
    ends = test["intervals"].get(measure)
    if ends is None:
        return f", no interval: {test.get('reasons', {}).get(measure, '')}"
    return f", 95{THIN}% interval {100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def _difference_card(group: Group, base: Group, measure: str, difference: float) -> Html:
    return tag(
        "article",
        tag("h3", f"{group.label} {MINUS} {base.label}"),
        tag("p", points(difference), tag("span", " points"), class_="big"),
        tag("p", f"of {MEASURES[measure].title}", class_="under"),
        class_="card difference",
    )


def _test_split(group: Group) -> BoxSamples:
    recipe, best = group.first.recipe, group.first.best
    data = replace(recipe.data, mean=tuple(best["mean"]), std=tuple(best["std"]))
    spec = recipe.detection
    assert spec is not None
    masks = spec.head == "maskrcnn"
    test = open_boxes(data, recipe.seed, masks=masks, faults=spec.faults).test
    if not isinstance(test, BoxSamples):
        raise DataError("the data no longer hold a test split")
    return test


def _answers(group: Group) -> Answers:
    by_image: dict[int, list[Answer]] = defaultdict(list)
    for answer in json.loads((group.first.folder / PREDICTIONS).read_text(encoding="utf-8")):
        by_image[answer["image_id"]].append(answer)
    return by_image


def _chosen(test: BoxSamples, answers: Sequence[Answers]) -> list[int]:
    """Places of test images with objects, spread evenly from the lowest to the highest score of all
    models together. No choice is random.
    """
    scores = {}
    for position, entry in enumerate(test.entries):
        document = test.take([position]).document()
        values = [
            average_precision(document, by_image.get(entry.id, ()), masks=False)[0]["box_ap50"]
            for by_image in answers
        ]
        if None not in values:
            scores[position] = float(np.mean(values))  # type: ignore[arg-type]
    order = sorted(scores, key=lambda position: scores[position])
    return [
        order[index]
        for index in np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)
    ]


def _row(
    groups: Sequence[Group], answers: Sequence[Answers], test: BoxSamples, position: int
) -> Html:
    entry, image, document = (
        test.entries[position],
        for_people(test.image(position)),
        test.take([position]).document(),
    )
    truth = [annotation for annotation in entry.annotations if not annotation.get("iscrowd")]
    figures = [
        _figure(
            draw(image, truth, test.categories, longer=LONGEST),
            f"the truth of {entry.file}",
            f"truth: {len(truth)}",
        )
    ]
    for group, by_image in zip(groups, answers, strict=True):
        image_answers = by_image.get(entry.id, ())
        sure = sum(answer["score"] >= SURE for answer in image_answers)
        score = average_precision(document, image_answers, masks=False)[0]["box_ap50"]
        caption = f"{group.label}: {sure}, box AP50 {percent(score)}"
        figures.append(
            _figure(
                draw(image, image_answers, test.categories, longer=LONGEST),
                f"{caption} on {entry.file}",
                caption,
            )
        )
    style = f"grid-template-columns:repeat({len(figures)}, minmax(0, 1fr))"
    return tag(
        "article",
        tag("p", entry.file, class_="under"),
        tag("div", figures, class_="maps", style=style),
        class_="sample",
    )


def _figure(image: Image.Image, alternative: str, caption: str) -> Html:
    thumbnail = image.convert("RGB")
    thumbnail.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=85)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    source = f"data:image/jpeg;base64,{data}"
    picture = tag(
        "img",
        src=source,
        alt=alternative,
        width=thumbnail.width,
        height=thumbnail.height,
        style="aspect-ratio:auto",
    )
    return tag("figure", enlarged(picture, alternative), tag("figcaption", caption))
