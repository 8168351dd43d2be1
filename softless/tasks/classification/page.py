"""What the page of classifiers shows beside what all tasks show: accuracy with its interval, test
images, confusion.
"""

from collections.abc import Sequence

from softless.report.groups import Group
from softless.report.headline import headline
from softless.report.html import Html, section, tag
from softless.report.measured import draw_numbers as numbers
from softless.tasks.classification.confusion import confusion, draw_confusion
from softless.tasks.classification.gallery import draw_samples as samples

__all__ = ["SAMPLES", "further", "headline", "method", "numbers", "samples"]

SAMPLES = (
    "First the mistakes made with most confidence, then right answers class by class. "
    "Bright is where the last layer's queries and keys are large."
)


SPREAD = (
    "The interval of an area under the ROC curve is of a bootstrap over images (on the scale of "
    "the logit, with Student's t). "
    "Where too few images carry it, or every draw gives the same value, there is none."
)


def method(groups: Sequence[Group]) -> list[str]:
    """How the measures came about."""
    paired = (
        "The interval of a difference is a paired bootstrap: both models' answers to the "
        "same images, under the same seeds, are drawn together."
    )
    return [
        (
            "The interval of a single run's accuracy is Wilson's at 95 %. Over several seeds it "
            "is a "
            "bootstrap that draws seeds and images together."
        ),
        *([paired] if len(groups) > 1 else []),
        SPREAD,
        (
            "Brier score: the mean squared distance of the probabilities from the truth, of two "
            "classes for the second alone. Calibration error: the mean gap in the bins of the "
            "calibration curve, by the images in them."
        ),
        (
            "Query and key maps are the l2 norm over channels of each token of q^ and k^ in the "
            "last "
            "attention layer, rescaled to 0..1 per image."
        ),
        "They show where queries and keys are large, not why an answer was given.",
    ]


def further(groups: Sequence[Group]) -> list[Html]:
    """Sections behind the test images."""
    matrices = [draw_confusion(group, confusion(group)) for group in groups]
    lead = "All seeds together." if len(groups[0].runs) > 1 else None
    return [section("confusion", "Confusion", tag("div", matrices, class_="matrices"), lead=lead)]
