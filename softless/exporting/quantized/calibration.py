"""The images that ranges of activations are measured on: which they are, and that they are no test
images.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from softless.data.loader import eval_loader
from softless.data.notices import notice
from softless.data.samples import Samples
from softless.data.transforms import Pipeline
from softless.errors import DataError
from softless.exporting.source import FEWEST, Source, tensors
from softless.models import digests
from softless.words import counted

SEED = 0  # of the draw, in `Source.calibration_images`


@dataclass(frozen=True)
class Calibration:
    """Images for the ranges of activations, without their labels."""

    images: Tensor  # (n, C, H, W), prepared as in evaluation
    names: tuple[str, ...]  # as their data set calls them: no path of a machine
    digests: tuple[str, ...]  # SHA-256 of the prepared pixels of each

    def description(self) -> Mapping[str, Any]:
        """What a file says of them."""
        content = dict(zip(self.names, self.digests, strict=True))
        return {
            "images": len(self.names),
            "seed": SEED,
            "names": list(self.names),
            "sha256": digests.of_texts(content),
        }


def calibrated(
    source: Source, path: str | Path | None, tested: Samples | None
) -> Calibration | None:
    """At most 256 images of a folder, or of the run's training images, framed as in evaluation.

    A file that was fitted to the images that it is measured on would be told better than it is. So
    test images in a folder are refused, and of the training images those are left out that the data
    set holds twice.

    Args:
        source: what is exported, at the size of the file.
        path: a folder of images; the run's training images without one.
        tested: what the file will be measured on.

    Returns:
        None where there are neither.

    Raises:
        DataError: they cannot be read, are fewer than 32, or are test images.
    """
    samples = source.calibration_images(path)
    if samples is None:
        return None
    images = tensors(samples, source.transform)
    of_each = [digests.of_tensor(image) for image in images]
    known = set() if tested is None else _digests(tested, source.transform)
    kept = [place for place, digest in enumerate(of_each) if digest not in known]
    shared = len(of_each) - len(kept)
    if shared and path is not None:
        raise DataError(
            f"{shared} of {counted(len(of_each), 'image')} to calibrate with, "
            f"{samples.name(_first(of_each, known))} first, "
            f"{'is a test image' if shared == 1 else 'are test images'}: give others with "
            "--calibrate FOLDER"
        )
    if shared:
        notice(f"{counted(shared, 'training image')} left out of the calibration: a test image too")
    if len(kept) < FEWEST:
        raise DataError(
            f"{counted(len(kept), 'image')} to calibrate with, and {FEWEST} are the fewest: give "
            "more with --calibrate FOLDER"
        )
    return Calibration(
        images[kept], tuple(samples.name(k) for k in kept), tuple(of_each[k] for k in kept)
    )


def _first(of_each: list[str], known: set[str]) -> int:
    return next(place for place, digest in enumerate(of_each) if digest in known)


def _digests(samples: Samples, transform: Pipeline) -> set[str]:
    """Of the prepared pixels of every image."""
    loader = eval_loader(samples, transform, batch=64, workers=0, keep=False)
    return {digests.of_tensor(image) for images, _ in loader for image in images}
