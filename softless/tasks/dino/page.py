"""What the page of self-supervised runs shows: loss, spread of features, k-NN accuracy where labels
exist, and nearest neighbours of test images.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from softless.data.datasets import open_parts
from softless.data.loader import eval_loader
from softless.data.pictures import for_people
from softless.data.samples import Samples
from softless.errors import SoftlessError
from softless.evaluation.features import Probe, as_it_is, extract
from softless.evaluation.knn import K, nearest, neighbours
from softless.report.groups import Group, without_places
from softless.report.html import Html, tag
from softless.report.numbers import THIN, duration, percent, plain
from softless.report.pictures import inline
from softless.report.runs import read_run
from softless.tasks.dino.samples import open_unlabelled
from softless.tasks.dino.settings import DinoSpec
from softless.tasks.dino.task import COLLAPSED
from softless.tasks.loaded import load_run

__all__ = ["SAMPLES", "headline", "method", "samples"]

SAMPLES = (
    "Test images and the training images whose features are most similar, nearest first. "
    "Labels, where there are any, only colour the marks."
)
SHOWN = 10  # test images
NEIGHBOURS = 4


@dataclass(frozen=True)
class Retrieval:
    """What a run makes of the data it can still read."""

    train: Samples
    test: Samples
    classes: tuple[str, ...]  # empty without labels
    nearest: np.ndarray  # (n, NEIGHBOURS) positions in train of each test image
    similar: np.ndarray  # their cosine similarities
    probe: Probe | None


def headline(groups: Sequence[Group]) -> Html:
    """A sentence on whether features tell images apart and what their neighbours say, and a card
    for each model.
    """
    looks = [_looked(group.first.folder) for group in groups]
    text = " ".join(_sentence(group, look) for group, look in zip(groups, looks, strict=True))
    cards = [_card(group, look) for group, look in zip(groups, looks, strict=True)]
    return tag("div", tag("p", text, class_="verdict-line"), tag("div", cards, class_="cards"))


def samples(groups: Sequence[Group]) -> Html:
    """Test images, each with its nearest training images by every model's features."""
    looks = [_looked(group.first.folder) for group in groups]
    available = [look for look in looks if not isinstance(look, str)]
    if len(available) < len(looks):
        why = next(look for look in looks if isinstance(look, str))
        return tag(
            "p", f"Nearest neighbours cannot be shown: {without_places(why, groups)}", class_="note"
        )
    names = [[look.test.name(index) for index in range(len(look.test))] for look in available]
    if any(model_names != names[0] for model_names in names):
        return tag(
            "p",
            "The models have different test images, so none can be shown side by side.",
            class_="note",
        )
    indices = _spread_over(available[0].test.targets, SHOWN)
    return tag("div", [_retrieved(groups, available, index) for index in indices], class_="samples")


def method(_: Sequence[Group]) -> list[str]:
    """How the measures came about."""
    return [
        "The last epoch of the teacher is kept: no label and no validation score chooses it.",
        (
            "Spread is the mean deviation of the channels of features of length 1, times the "
            "square "
            "root of their number: about 1 where features point everywhere, 0 where all "
            "images have the same."
        ),
        (
            f"k-NN: {K} nearest training images by cosine of the backbone's output vote with "
            "weights "
            f"exp(similarity / 0.07); the interval is Wilson's at 95{THIN}%, of the first "
            "seed."
        ),
        (
            "Losses of different recipes cannot be compared: they depend on temperatures and "
            "outputs, "
            "and fall when the teacher collapses."
        ),
    ]


def _sentence(group: Group, look: Retrieval | str) -> str:
    last = group.first.epochs[-1]["val"]
    if last["spread"] < COLLAPSED:
        return (
            f"{group.label} has collapsed: all images have nearly the same features (spread "
            f"{plain(last['spread'])})."
        )
    if isinstance(look, str) or look.probe is None:
        return (
            f"The features of {group.label} tell images apart (spread {last['spread']:.2f}); "
            "there are no labelled test images to measure them on."
        )
    low, high = look.probe.interval
    return (
        f"By their {K} nearest neighbours the features of {group.label} get "
        f"{percent(look.probe.accuracy)} of the test images right "
        f"(95{THIN}% interval {100 * low:.1f} to {100 * high:.1f}), without having seen a label."
    )


def _card(group: Group, look: Retrieval | str) -> Html:
    epochs, result = group.first.epochs, group.first.result
    probe = None if isinstance(look, str) else look.probe
    if probe is None:
        big: Any = f"{epochs[-1]['val']['spread']:.2f}"
        under = "spread of features; no labelled test images"
    else:
        low, high = probe.interval
        big = [f"{100 * probe.accuracy:.1f}", tag("span", f"{THIN}%")]
        under = (
            f"{K}-NN accuracy on test images, 95{THIN}% interval {100 * low:.1f} to "
            f"{100 * high:.1f}"
        )
    last = epochs[-1]["val"]
    rows: list[tuple[str, Any]] = [
        ("spread of features", f"{last['spread']:.3f}"),
        *(
            [("teacher's entropy", f"{last['entropy']:.3f} of its largest")]
            if last.get("entropy") is not None
            else []
        ),
        (
            "loss, last epoch",
            f"{epochs[-1]['train_loss']:.3f} (largest {math.log(_outputs(group)):.2f})",
        ),
        ("epochs", str(result["epochs"])),
        ("training", duration(sum(run.result["seconds"] for run in group.runs) / len(group.runs))),
    ]
    listed = tag("dl", [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows])
    heading = tag("h3", tag("span", class_=f"swatch {group.colour}"), group.label)
    return tag(
        "article",
        heading,
        tag("p", big, class_="big"),
        tag("p", under, class_="under"),
        listed,
        class_="card",
    )


def _outputs(group: Group) -> int:
    return (group.first.recipe.dino or DinoSpec()).outputs


def _retrieved(groups: Sequence[Group], looks: Sequence[Retrieval], index: int) -> Html:
    look = looks[0]
    truth = look.classes[int(look.test.targets[index])] if look.classes else None
    words = [
        tag("span", "test image", class_="eyebrow"),
        tag("strong", truth) if truth else None,
        tag("span", look.test.name(index), class_="name"),
    ]
    picture = inline(
        _picture(look.test, index), f"test image {look.test.name(index)}", class_="original"
    )
    answers = [_neighbours(group, each, index) for group, each in zip(groups, looks, strict=True)]
    return tag("article", tag("header", picture, tag("div", words)), answers, class_="sample")


def _neighbours(group: Group, look: Retrieval, index: int) -> Html:
    figures = []
    for position, similarity in zip(
        look.nearest[index].tolist(), look.similar[index].tolist(), strict=True
    ):
        name = look.train.name(position)
        mark: Any = f"{similarity:.2f}"
        if look.classes:
            correct = look.train.targets[position] == look.test.targets[index]
            class_name = look.classes[int(look.train.targets[position])]
            mark = tag(
                "span",
                "✓ " if correct else "✗ ",
                class_name,
                class_="said right" if correct else "said wrong",
            )
        figures.append(
            tag(
                "figure",
                inline(_picture(look.train, position), f"training image {name}"),
                tag("figcaption", mark),
            )
        )
    who = tag(
        "div",
        tag("span", class_=f"swatch {group.colour}"),
        tag("span", group.label, class_="who"),
        class_="verdict",
    )
    return tag("div", who, tag("div", figures, class_="maps"), class_="answer")


def _picture(samples: Samples, index: int) -> Any:
    image = for_people(samples.image(index)).convert("RGB")
    image.thumbnail((96, 96))
    return image


def _spread_over(targets: np.ndarray, count: int) -> list[int]:
    """So many positions, evenly over the list, which is ordered by class where there are
    classes.
    """
    return sorted({
        int(position)
        for position in np.linspace(0, len(targets) - 1, min(count, len(targets))).round()
    })


@cache
def _looked(folder: Path) -> Retrieval | str:
    """The run's own data through its features, or why that cannot be."""
    try:
        return _look(folder)
    except (SoftlessError, OSError) as error:
        return str(error)


def _look(folder: Path) -> Retrieval | str:

    loaded, run = load_run(folder, "cpu"), read_run(folder)
    recipe = run.recipe
    splits = open_unlabelled(recipe.data, recipe.seed)
    train, test, classes = splits.train, splits.test, splits.classes
    if classes:
        parts: Mapping[str, Samples] = open_parts(recipe.data)[0]
        train = parts.get("train", train)
    if test is None:
        return "the data have no test split."
    bank, queries = (
        extract(
            loaded.model,
            eval_loader(samples, loaded.transform, batch=64),
            as_it_is,
            label="features for the page",
        )
        for samples in (train, test)
    )
    similar, positions = neighbours(bank[0], queries[0], min(NEIGHBOURS, len(train)))
    probe = nearest(bank, queries, classes, min(K, len(train))) if classes else None
    return Retrieval(train, test, classes, positions.numpy(), similar.numpy(), probe)
