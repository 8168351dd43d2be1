"""How large the pixels of image files are, in micrometres, where the files say so: by a TIFF's
tags, a PNG's or a JPEG's density.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from softless.data import tiff_pages
from softless.data.images import DAMAGED, FORMATS
from softless.data.samples import FileSamples, Samples
from softless.data.tiff_pages import PLAUSIBLE, PRINTED

SAMPLE = 64  # files that are asked, spread over all
SAME = 0.01  # relative difference up to which two resolutions are one
INCH = 25_400.0  # micrometres


def micrometres(path: Path) -> tuple[float, float] | None:
    """Micrometres per pixel of an image file, down and across; None where it says none, or one that
    no microscope has.
    """
    file = tiff_pages.opened(path)
    if file is not None:
        with file, tiff_pages.silent():
            try:
                return tiff_pages.contents(file).resolution.mpp
            except tiff_pages.DAMAGED:
                return None
    try:
        with Image.open(path, formats=FORMATS) as image:
            density = image.info.get("dpi")
    except DAMAGED:
        return None
    if not density or not all(density):
        return None
    down, across = INCH / float(density[1]), INCH / float(density[0])
    return (
        (down, across) if all(PLAUSIBLE[0] <= side <= PRINTED for side in (down, across)) else None
    )


def seen_mpp(samples: Samples, shrinks: Callable[[int, int], float]) -> float | None:
    """Micrometres per pixel of what a model sees of its images; None where the files do not say, or
    differ.

    Args:
        samples: The images; up to 64 of them are asked.
        shrinks: Of an image's height and width, how many of its pixels make one that the model
            sees.
    """
    if not isinstance(samples, FileSamples) or not len(samples):
        return None
    paths = samples.paths()
    indices = np.unique(np.linspace(0, len(paths) - 1, SAMPLE).astype(int))
    sides = []
    for index in indices:
        mpp = micrometres(paths[index])
        if mpp is None:
            return None
        with Image.open(paths[index]) as image:
            width, height = image.size
        sides += [side * shrinks(height, width) for side in mpp]
    low, high = min(sides), max(sides)
    return (low + high) / 2 if high <= low * (1 + SAME) else None
