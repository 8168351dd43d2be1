"""`softless data check`: a data set read once, every fault named before anything is trained on it."""

from pathlib import Path
from typing import Literal

from softless.data.findings import DataCheck


def data(
    what: Literal["check"],
    path: str | Path,
    *,
    images: Path | None = None,
    min_side: int | None = None,
    max_pixels: int | None = None,
    strict: bool = False,
) -> DataCheck:
    """Read a data set in full and list every bad file with its reason; the exit code is 0 where it is clean, 1 where something is bad.

    Also counted: images seen and good, files passed over because of their ending, hidden files, images that are read but perhaps not as
    meant (warnings), and the same pixels in two splits. The Python function is softless.data.check.check.

    Args:
        what: check.
        path: a folder of class folders, with or without splits, of COCO json files, or of images and label images; a COCO json; an npz file
            with MedMNIST's keys. docs/data.md has the layouts.
        images: folder that a COCO json's file names start from; the usual places are tried without it.
        min_side: report images with a shorter side below this; without it 8, or SOFTLESS_MIN_SIDE.
        max_pixels: report images with more pixels than this, undecoded; without it 89478485, or SOFTLESS_MAX_PIXELS.
        strict: warnings and duplicates make the exit code 1 too.

    Raises:
        DataError: nothing at `path` that can be checked.
        UsageError: an unknown `what`, or options that do not fit.
    """
    from softless.data.check import check
    from softless.errors import unknown

    if what != "check":
        raise unknown("use of `softless data`", what, ("check",))
    return check(path, images=images, min_side=min_side, max_pixels=max_pixels, strict=strict)
