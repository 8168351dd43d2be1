"""What the page of segmenters shows: IoU and Dice with their intervals over test images, and label
images beside the truth.
"""

import base64
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softless.data.findings import Gathering
from softless.data.pictures import for_people
from softless.errors import DataError, SoftlessError
from softless.evaluation import spread
from softless.experiment.measures import MEASURES
from softless.experiment.ranges import Range
from softless.experiment.recipe import Recipe
from softless.report.groups import Group, without_places
from softless.report.html import Html, enlarged, tag
from softless.report.intervals import Strip, axis, draw
from softless.report.numbers import MINUS, THIN, duration, percent, points
from softless.report.statistics import ONE_SEED, ShareEstimate
from softless.report.tables import table
from softless.tasks.segmentation.layout import IGNORE, Layout, layout_of
from softless.tasks.segmentation.measure import COUNTS, FOLDER, Scores
from softless.tasks.segmentation.pictures import BLACK, colours, overlay
from softless.tasks.segmentation.samples import LabelImages, read_part
from softless.tasks.segmentation.values import read_values
from softless.words import counted

__all__ = ["SAMPLES", "further", "headline", "method", "samples"]

SAMPLES = (
    "The test images with the lowest, middle and highest scores: the photograph, the truth, "
    "and each model's answer."
)
SHOWN = 6
LONGEST = 460  # pixels of a picture's longer side


@dataclass(frozen=True)
class Counts:
    """What a run left of its test images."""

    counts: np.ndarray  # (n, K, 3)
    names: tuple[str, ...]


def headline(groups: Sequence[Group]) -> Html:
    """A sentence, and a card for each model and for each difference to the last one."""
    read = [_counts(group) for group in groups]
    if any(runs is None for runs in read):
        sentence = (
            "There is no test split: what follows was measured on validation images, which "
            "also chose the best epoch."
        )
        return tag(
            "div",
            tag("p", sentence, class_="verdict-line"),
            tag("div", [_validation_card(group) for group in groups], class_="cards"),
        )
    available = [runs for runs in read if runs is not None]
    measure = _measure(groups[0])
    drawn_of = [_draws(runs, measure) for runs in available]
    estimates = [
        _estimate(_value(runs, measure), drawn, len(runs[0].names))
        for runs, drawn in zip(available, drawn_of, strict=True)
    ]
    base, differences = groups[-1], []
    for group, runs, drawn in list(zip(groups, available, drawn_of, strict=True))[:-1]:
        if runs[0].names == available[-1][0].names:
            value = _value(runs, measure) - _value(available[-1], measure)
            differences.append((group, _apart(value, drawn - drawn_of[-1], len(runs[0].names))))
    sentence = _verdict(groups, estimates, differences)
    strips = [
        _strip(group, estimate)
        for group, estimate in zip(groups, estimates, strict=True)
        if estimate.drawn
    ]
    tick_values = axis(strips) if strips else []
    cards = [
        _card(group, runs, estimate, tick_values, f"strip-{number}")
        for number, (group, runs, estimate) in enumerate(
            zip(groups, available, estimates, strict=True)
        )
    ]
    apart = [_strip(group, estimate, base) for group, estimate in differences]
    cards += [
        _difference_card(strip, axis(apart), f"difference-{number}")
        for number, strip in enumerate(apart)
    ]
    return tag("div", tag("p", sentence, class_="verdict-line"), tag("div", cards, class_="cards"))


def samples(groups: Sequence[Group]) -> Html:
    """The pictures, or the sentence that says why there are none."""
    read = [_counts(group) for group in groups]
    if any(runs is None for runs in read):
        return tag("p", "There is no test split, so there are no answers to show.", class_="note")
    firsts = [runs[0] for runs in read if runs is not None]
    if any(first.names != firsts[0].names for first in firsts):
        return tag(
            "p",
            "The models were tested on different images, so no image can be shown side by side.",
            class_="note",
        )
    try:
        test, layout = _test_split(groups[0].first.recipe)
        index_of_key = {test.key(index): index for index in range(len(test))}
        rows = [
            _row(groups, firsts, index, test, index_of_key[firsts[0].names[index]], layout)
            for index in _chosen(firsts, _measure(groups[0]))
        ]
    except (SoftlessError, OSError, KeyError) as error:
        return tag(
            "p", f"The test images cannot be shown: {without_places(error, groups)}", class_="note"
        )
    return tag(
        "div",
        _legend(groups[0].first.classes),
        tag("div", rows, class_="samples", style="grid-template-columns:1fr"),
    )


def further(groups: Sequence[Group]) -> list[Html]:
    """IoU and Dice of each class, on the test images."""
    read = [(group, runs) for group in groups if (runs := _counts(group)) is not None]
    if not read:
        return []
    scores = [Scores(runs[0].counts.sum(0)) for _, runs in read]
    rows = [
        [
            name,
            *(
                cell
                for group_scores in scores
                for cell in (_percent(group_scores.iou[index]), _percent(group_scores.dice[index]))
            ),
        ]
        for index, name in enumerate(groups[0].first.classes)
    ]
    head = ["", *(f"{group.label} {measure}" for group, _ in read for measure in ("IoU", "Dice"))]
    return [
        tag(
            "section",
            tag("h2", "Classes", id="classes"),
            table(head, rows, caption="Test images, first seed"),
            aria_labelledby="classes",
        )
    ]


def method(groups: Sequence[Group]) -> list[str]:
    """How the measures came about."""
    dice = (
        "of the second class alone, the foreground"
        if len(groups[0].first.classes) == 2
        else "the mean over the classes that occur"
    )
    return [
        (
            "Every pixel of every test image at its own size, without tiling; ignored pixels count "
            f"nowhere. Pixels are summed over images before a ratio is taken. Dice is {dice}."
        ),
        (
            f"Intervals are of a bootstrap of {spread.REPLICATES:,} draws of seeds and images, the "
            "same images for both models of a difference. Pixels of one image are not "
            "independent, so images are drawn and not pixels; of fewer than ten images there "
            "is none."
        ),
    ]


def _counts(group: Group) -> list[Counts] | None:
    """Of each run; None where one has no test split."""
    files = [run.folder / FOLDER / COUNTS for run in group.runs]
    if not all(file.is_file() for file in files):
        return None
    return [_read(file) for file in files]


def _read(file: Path) -> Counts:
    with np.load(file, allow_pickle=False) as arrays:
        return Counts(arrays["counts"], tuple(str(name) for name in arrays["names"]))


def _measure(group: Group) -> str:
    """The measure that chose the epochs, where it is one of label images."""
    metric = group.first.recipe.metric
    return metric if metric in {"miou", "dice", "pixel_accuracy"} else "miou"


def _title(group: Group, measure: str) -> str:
    """What the measure is called: of two classes the Dice is that of the second."""
    classes = group.first.classes
    return (
        f"Dice of {classes[1]}"
        if measure == "dice" and len(classes) == 2
        else MEASURES[measure].title
    )


def _of(scores: Scores, measure: str) -> float:
    value = {
        "miou": scores.miou,
        "dice": scores.mean_dice,
        "pixel_accuracy": scores.pixel_accuracy,
    }[measure]
    return float("nan") if value is None else value


def _value(runs: Sequence[Counts], measure: str) -> float:
    """The mean over seeds."""
    return float(np.mean([_of(Scores(run.counts.sum(0)), measure) for run in runs]))


def _draws(runs: Sequence[Counts], measure: str) -> np.ndarray:
    """(R,) the measure when seeds and images are drawn with replacement; the same draws for every
    model of as many images.
    """
    rng = np.random.default_rng(0)
    weights = np.concatenate(list(spread.draws(len(runs[0].names))))
    # (seeds, R)
    by_seed = np.array([
        [
            _of(Scores(counts), measure)
            for counts in np.tensordot(weights, run.counts.astype(np.float64), axes=1)
        ]
        for run in runs
    ])
    seeds = rng.multinomial(len(runs), [1 / len(runs)] * len(runs), size=spread.REPLICATES) / len(
        runs
    )
    drawn: np.ndarray = (by_seed.T * seeds).sum(1)
    return drawn


def _estimate(value: float, drawn: np.ndarray, images: int) -> ShareEstimate:
    """Of a measure, as `softless eval` has it."""
    valid = drawn[~np.isnan(drawn)]
    estimated = spread.estimate(
        None if np.isnan(value) else value,
        float(valid.std()) if len(valid) > 1 else 0.0,
        images,
        why="no pixel counts",
    )
    if estimated.low is None or estimated.high is None:
        return ShareEstimate(value, float("nan"), float("nan"), how=estimated.why)
    return ShareEstimate(
        value, estimated.low, estimated.high, how=f"bootstrap over {counted(images, 'image')}"
    )


def _apart(value: float, drawn: np.ndarray, images: int) -> ShareEstimate:
    """Of a difference of two models on the same images."""
    low, high = spread.apart(value, float(np.nanstd(drawn)), images)
    return ShareEstimate(value, low, high, how=f"paired bootstrap over {counted(images, 'image')}")


def _verdict(
    groups: Sequence[Group],
    estimates: Sequence[ShareEstimate],
    differences: Sequence[tuple[Group, ShareEstimate]],
) -> str:
    title = _title(groups[0], _measure(groups[0]))
    (first, share), *remaining = zip(groups, estimates, strict=True)
    text = f"{first.label} reaches {percent(share.value)} {title} on the test images"
    text += (
        "".join(f", {group.label} {percent(estimate.value)}" for group, estimate in remaining) + "."
    )
    for group, estimate in differences:
        span = f"95{THIN}% interval {points(estimate.low)} to {points(estimate.high)}"
        if estimate.low <= 0 <= estimate.high:
            text += (
                f" The difference of {group.label} to {groups[-1].label} is "
                f"{points(estimate.value)} points; its {span} contains zero: no winner."
            )
        else:
            side = "ahead of" if estimate.value > 0 else "behind"
            text += (
                f" {group.label} is {side} {groups[-1].label} by "
                f"{100 * abs(estimate.value):.1f} points ({span})."
            )
    if differences and min(len(group.runs) for group in groups) == 1:
        text += ONE_SEED
    return text


def _strip(group: Group, estimate: ShareEstimate, base: Group | None = None) -> Strip:
    write: Callable[[float], str] = percent if base is None else points
    name = group.label if base is None else f"{group.label} {MINUS} {base.label}"
    text = (
        f"{name}: {write(estimate.value)}, 95 % interval {write(estimate.low)} to "
        f"{write(estimate.high)} ({estimate.how})"
    )
    return Strip(
        text, group.colour, estimate.value, estimate.low, estimate.high, zero=base is not None
    )


def _card(
    group: Group,
    runs: Sequence[Counts],
    estimate: ShareEstimate,
    tick_values: Sequence[float],
    identifier: str,
) -> Html:
    span = (
        f"95{THIN}% interval {100 * estimate.low:.1f} to {100 * estimate.high:.1f}"
        if estimate.drawn
        else f"no interval: {estimate.how}"
    )
    rows: list[tuple[str, Any]] = [
        (_title(group, name), percent(_value(runs, name)))
        for name in ("miou", "dice", "pixel_accuracy")
    ]
    rows.append(("seeds" if len(group.seeds) > 1 else "seed", ", ".join(map(str, group.seeds))))
    rows.append(("best epoch", group.best_epochs))
    rows.append((
        "training",
        duration(sum(run.result["seconds"] for run in group.runs) / len(group.runs)),
    ))
    return tag(
        "article",
        tag("h3", tag("span", class_=f"swatch {group.colour}"), group.label),
        tag("p", f"{100 * estimate.value:.1f}", tag("span", f"{THIN}%"), class_="big"),
        tag("p", f"{_title(group, _measure(group))} on test, {span}", class_="under"),
        draw(_strip(group, estimate), tick_values, identifier) if estimate.drawn else None,
        tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows]),
        class_="card",
    )


def _difference_card(strip: Strip, tick_values: Sequence[float], identifier: str) -> Html:
    return tag(
        "article",
        tag("h3", strip.text.partition(":")[0]),
        tag("p", points(strip.middle), tag("span", " points"), class_="big"),
        tag("p", f"95{THIN}% interval {points(strip.low)} to {points(strip.high)}", class_="under"),
        draw(strip, tick_values, identifier),
        class_="card difference",
    )


def _validation_card(group: Group) -> Html:
    measure = _measure(group)
    return tag(
        "article",
        tag("h3", tag("span", class_=f"swatch {group.colour}"), group.label),
        tag("p", percent(group.first.result.get("val", {}).get(measure)), class_="big"),
        tag("p", f"{_title(group, measure)} on validation: no test split", class_="under"),
        class_="card",
    )


def _chosen(firsts: Sequence[Counts], measure: str) -> list[int]:
    """Indices of test images spread evenly from the lowest to the highest mean score.

    No choice is random.
    """
    by_image = np.mean(
        [[_of(Scores(counts), measure) for counts in run.counts] for run in firsts], axis=0
    )
    order = np.argsort(by_image, kind="stable")
    positions = np.linspace(0, len(order) - 1, min(SHOWN, len(order))).round().astype(int)
    return [int(order[position]) for position in positions]


def _test_split(recipe: Recipe) -> tuple[LabelImages, Layout]:
    spec, data = recipe.segmentation, recipe.data
    assert spec is not None
    assert data.path is not None
    root = Path(data.path).expanduser()
    if not root.is_dir():
        raise DataError(f"the data are no longer at {root}")
    gathering = Gathering(root, scale=Range.of(data.range))
    layout = layout_of(root, gathering, spec.labels, spec.ignore, spec.values)
    if "test" not in layout.parts:
        raise DataError("the data no longer hold a test split")
    return read_part(layout, "test", gathering, data.in_chans, spec.fov), layout


def _row(
    groups: Sequence[Group],
    firsts: Sequence[Counts],
    index: int,
    test: LabelImages,
    position: int,
    layout: Layout,
) -> Html:
    key, image = firsts[0].names[index], for_people(test.image(position))
    names, truth = groups[0].first.classes, test.target(position)
    measure = _measure(groups[0])
    figures = [
        _figure(image, f"test image {key}", key),
        _figure(overlay(image, truth, names, legend=False), f"the truth of {key}", "truth"),
    ]
    for group, first in zip(groups, firsts, strict=True):
        answer = layout.lookup[read_values(group.first.folder / FOLDER / f"{key}.png")]
        answer[truth == IGNORE] = IGNORE  # what counts nowhere is not shown
        score = (
            f"{_title(groups[0], measure)} {_percent(_of(Scores(first.counts[index]), measure))}"
        )
        figures.append(
            _figure(
                overlay(image, answer, names, legend=False),
                f"{group.label} on {key}: {score}",
                f"{group.label}: {score}",
            )
        )
    style = f"grid-template-columns:repeat({len(figures)}, minmax(0, 1fr))"
    return tag("article", tag("div", figures, class_="maps", style=style), class_="sample")


def _legend(names: Sequence[str]) -> Html:
    """The colours of the classes; a background has none."""
    entries = []
    for name, (red, green, blue) in zip(names, colours(tuple(names)), strict=True):
        if (red, green, blue) != BLACK:
            style = (
                f"background:rgb({red},{green},{blue});display:inline-block;width:.8em;"
                "height:.8em;border-radius:2px;margin-right:.4em"
            )
            entries.append(
                tag(
                    "span",
                    tag("span", style=style),
                    name,
                    style="margin-right:1.2em;white-space:nowrap",
                )
            )
    return tag("p", entries, class_="lead")


def _figure(image: Image.Image, alternative: str, caption: str) -> Html:
    thumbnail = image.convert("RGB")
    thumbnail.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    thumbnail.save(buffer, "JPEG", quality=82)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    picture = tag(
        "img",
        src=f"data:image/jpeg;base64,{data}",
        alt=alternative,
        width=thumbnail.width,
        height=thumbnail.height,
        style="aspect-ratio:auto",
    )
    return tag("figure", enlarged(picture, alternative), tag("figcaption", caption))


def _percent(value: float) -> str:
    return "–" if np.isnan(value) else percent(float(value))
