"""The grid of test images: truth, each model's answer and confidence, and where its queries and
keys are large.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from softless.data.datasets import cut_parts, open_parts
from softless.data.samples import Samples
from softless.errors import DataError, SoftlessError
from softless.experiment.recipe import Recipe
from softless.report.choose import chosen
from softless.report.groups import Group, without_places
from softless.report.html import Html, tag
from softless.report.numbers import percent
from softless.report.pictures import inline
from softless.report.runs import HeldOutPredictions
from softless.saliency.maps import explain
from softless.saliency.overlay import overlay, picture
from softless.saliency.saliency import Saliency
from softless.tasks.loaded import load_run


@dataclass(frozen=True)
class Looks:
    """What one model makes of the chosen images."""

    group: Group
    answers: HeldOutPredictions
    inputs: torch.Tensor  # (n, C, S, S)
    maps: Saliency | None
    why_no_maps: str = ""


class Wording:
    """How answers become words: one class an image."""

    sure = "confidence"  # what the share beside an answer is

    def chosen(self, answers: Sequence[HeldOutPredictions], count: int) -> list[int]:
        """Which images are shown."""
        return chosen(answers, count)

    def truth(self, group: Group, answers: HeldOutPredictions, index: int) -> str:
        """The classes of an image."""
        return group.first.classes[int(answers.targets[index])]

    def answer(
        self, group: Group, answers: HeldOutPredictions, index: int
    ) -> tuple[str, bool, float]:
        """The answer, whether it is right, and how sure it is."""
        answer = group.first.classes[int(np.argmax(answers.logits[index]))]
        return (
            answer,
            answer == self.truth(group, answers, index),
            float(answers.probabilities[index].max()),
        )


def draw_samples(groups: Sequence[Group], count: int = 12, wording: Wording | None = None) -> Html:
    """The grid, or the sentence that says why there is none (data moved, no test split)."""
    wording = wording or Wording()
    answers = [group.first.predictions for group in groups]
    predictions = [answer for answer in answers if answer is not None]
    if len(predictions) < len(groups) or not predictions[0].names:
        return tag("p", "There is no test split, so there are no answers to show.", class_="note")
    if not all(predictions[0].same_images(answer) for answer in predictions):
        return tag(
            "p",
            "The models were tested on different images, so no image can be shown side by side.",
            class_="note",
        )
    indices = wording.chosen(predictions, count)
    try:
        looks = [
            _look(group, answer, indices) for group, answer in zip(groups, predictions, strict=True)
        ]
    except (SoftlessError, OSError) as error:
        return tag(
            "p", f"The test images cannot be shown: {without_places(error, groups)}", class_="note"
        )
    cards = [_card(looks, position, index, wording) for position, index in enumerate(indices)]
    missing = {f"{look.group.label}: {look.why_no_maps}" for look in looks if look.why_no_maps}
    notes = [tag("p", f"No saliency maps for {text}", class_="note") for text in sorted(missing)]
    return tag("div", tag("div", cards, class_="samples"), notes)


def _look(group: Group, answers: HeldOutPredictions, indices: Sequence[int]) -> Looks:
    loaded = load_run(group.first.folder, "cpu")
    test = _test_split(group.first.recipe)
    by_name = {test.name(index): index for index in range(len(test))}
    positions = [by_name.get(answers.names[index]) for index in indices]
    if None in positions:
        raise DataError("the data no longer hold the images that the run was tested on")
    inputs = torch.stack([
        loaded.transform(test.image(position)) for position in positions if position is not None
    ])
    try:
        return Looks(group, answers, inputs, explain(loaded.model, inputs))
    except SoftlessError as error:
        return Looks(group, answers, inputs, None, without_places(error, [group]))


def _test_split(recipe: Recipe) -> Samples:
    spec = recipe.data
    parts, classes = open_parts(spec, recipe.table)
    if spec.folds is not None:
        parts = cut_parts(parts, classes, spec, recipe.seed)
    if "test" not in parts:
        raise DataError("the data no longer hold a test split")
    return parts["test"]


def _card(looks: Sequence[Looks], position: int, index: int, wording: Wording) -> Html:
    first = looks[0]
    truth = wording.truth(first.group, first.answers, index)
    best = first.group.first.best
    image = picture(first.inputs[position], best["mean"], best["std"])
    return tag(
        "article",
        tag(
            "header",
            inline(
                image, f"test image {first.answers.names[index]}, class {truth}", class_="original"
            ),
            tag(
                "div",
                tag("span", "truth", class_="eyebrow"),
                tag("strong", truth),
                tag("span", first.answers.names[index], class_="name"),
            ),
        ),
        [_answer(look, position, index, wording) for look in looks],
        class_="sample",
    )


def _answer(look: Looks, position: int, index: int, wording: Wording) -> Html:
    answer, correct, sure = wording.answer(look.group, look.answers, index)
    verdict = tag(
        "div",
        tag("span", class_=f"swatch {look.group.colour}"),
        tag("span", look.group.label, class_="who"),
        tag(
            "span",
            "✓ " if correct else "✗ ",
            answer,
            class_="said right" if correct else "said wrong",
        ),
        tag("span", percent(sure, 0), class_="sure", title=f"{wording.sure} {100 * sure:.1f} %"),
        class_="verdict",
    )
    meter = tag(
        "div",
        tag("span", style=f"width:{100 * sure:.1f}%"),
        class_="meter " + look.group.colour,
        aria_hidden="true",
    )
    return tag("div", verdict, meter, _maps(look, position) if look.maps else None, class_="answer")


def _maps(look: Looks, position: int) -> Html:
    assert look.maps is not None
    best = look.group.first.best
    image = picture(look.inputs[position], best["mean"], best["std"])
    image = (
        image.resize((max(96, image.width), max(96, image.height)))
        if max(image.size) < 96
        else image
    )
    figures = []
    for name, values in (("queries", look.maps.query), ("keys", look.maps.key)):
        height, width = values[position].shape
        laid = inline(
            overlay(image, values[position], smooth=False),
            f"{name} of {look.group.label} over the image: {_where(values[position])}",
        )
        figures.append(tag("figure", laid, tag("figcaption", f"{name}, {height} × {width}")))
    return tag("div", figures, class_="maps")


def _where(values: torch.Tensor) -> str:
    """In words where a map is largest, for those who cannot see it."""
    height, width = values.shape
    row, column = divmod(int(values.argmax()), width)
    vertical = ("top", "middle", "bottom")[min(2, 3 * row // height)]
    return f"largest at the {vertical} {('left', 'centre', 'right')[min(2, 3 * column // width)]}"
