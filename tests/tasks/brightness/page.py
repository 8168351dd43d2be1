"""What the page of brightness shows beside what all tasks show."""

from collections.abc import Sequence

from softless.report.groups import Group
from softless.report.html import Html, tag

SAMPLES = "None are shown."


def headline(groups: Sequence[Group]) -> Html:
    """The error on test images."""
    return tag("p", f"The brightness is off by {groups[0].first.result['test']['off']:.3f}.")


def samples(groups: Sequence[Group]) -> Html:
    """How many images were measured."""
    return tag("p", f"{groups[0].first.result['test']['seen']} images")


def method(groups: Sequence[Group]) -> list[str]:
    """How the measure came about."""
    del groups
    return ["The error is the mean absolute difference over the images."]
