"""Where a stained slide holds tissue: Otsu's threshold on the saturation of a small picture of it.

Glass is nearly without colour, and a stain is not (CLAM, Lu et al. 2021, takes the same threshold).
The picture has 8 micrometres a pixel; specks and holes smaller than 50 x 50 micrometres go.
"""

# h x w pixels

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from softless.data.notices import notice
from softless.errors import DataError, MissingExtra
from softless.saliency.viewer import Picture
from softless.slides.files import Choice
from softless.slides.lattice import Lattice
from softless.slides.masks import HALF, Mask, shares
from softless.slides.thumbnails import small_picture

MICROMETRES = 8.0  # of a pixel of the picture
UNKNOWN = 1024  # pixels of its longer side, where nothing says how large they are
LEAST, MOST = 64, 4096  # pixels of its longer side
SMALLEST = 2500.0  # square micrometres of what stays: a speck of tissue, or a hole in it
SHARE = 1e-4  # of the picture, in place of that where nothing says how large pixels are
DARK = 64  # of 255, below which a hue is noise
MEDIAN = 3  # pixels along a side
GLASS, STAIN = 12, 20  # of 255: medians of saturation, glass at most and tissue at least


def tissue_of(image: Picture, lattice: Lattice, choice: Choice | None = None) -> Mask:
    """The patches (h,w) of which at least half is tissue.

    Args:
        image: A slide, an image file, a PIL image or bytes (H,W,3).
        lattice: The patches of what is read of it.
        choice: What was chosen of a file that holds several things.

    Raises:
        DataError: it holds no tissue that saturation tells, or is grey.
        MissingExtra: what finds connected regions is not installed.
    """
    name = _name(image)
    tissue = tissue_picture(image, lattice, choice)
    rows, columns = (
        lattice.spans(axis) * (tissue.shape[axis] / lattice.extent[axis]) for axis in (0, 1)
    )
    patches = shares(tissue, rows, columns) >= HALF
    if not patches.any():
        raise DataError(
            f"{name} shows no tissue: no patch of it is stained; --tissue none looks at all of "
            "it, --mask FILE at a part"
        )
    return patches


def tissue_picture(image: Picture, lattice: Lattice, choice: Choice | None = None) -> Mask:
    """Which pixels (h,w) of a small picture of the whole are tissue; specks and holes are gone.

    Raises:
        DataError: it is grey.
        MissingExtra: what finds connected regions is not installed.
    """
    _needs_skimage()
    mpp = lattice.placement.mpp
    side = (
        UNKNOWN
        if mpp is None
        else max(lattice.size[0] * mpp[0], lattice.size[1] * mpp[1]) / MICROMETRES
    )
    small, lost = small_picture(image, 3, side=round(min(MOST, max(LEAST, side))), choice=choice)
    area = SHARE * lost.size
    if mpp is not None:
        area = SMALLEST / (
            mpp[0] * lattice.size[0] / lost.shape[0] * mpp[1] * lattice.size[1] / lost.shape[1]
        )
    name = _name(image)
    tissue = stained(small, lost, name)
    if tissue is None:
        notice(f"{name}: its whole picture is stained, so all of it counts as tissue")
        return np.ones(lost.shape, dtype=bool)
    return _without_small(tissue, area)


def _name(image: Picture) -> str:
    return str(image) if isinstance(image, str | Path) else "the image"


def stained(picture: NDArray[np.uint8], lost: Mask, name: str) -> Mask | None:
    """Which pixels (h,w) of a picture (h,w,3) are stained; None where all are.

    Raises:
        DataError: it is grey.
    """
    saturation = _saturation(picture)
    readable = saturation[~lost]
    if not readable.size or readable.max() == 0:
        raise DataError(
            f"{name} has no colour, and tissue is told by it: give --mask FILE, or --tissue none"
        )
    threshold = _otsu(readable)
    low, high = readable[readable <= threshold], readable[readable > threshold]
    if np.median(low) > GLASS:
        return None
    if not high.size or np.median(high) < STAIN:  # the noise of glass
        return np.zeros_like(lost)
    mask: Mask = (saturation > threshold) & ~lost
    return mask


def _saturation(picture: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """That of HSV in 0..255, of what is not so dark that its hue is noise; smoothed by a median."""
    values = picture.astype(np.int16)
    brightest, darkest = values.max(-1), values.min(-1)
    unsmoothed = Image.fromarray(
        ((brightest - darkest) * 255 // np.maximum(brightest, DARK)).astype(np.uint8)
    )
    return np.asarray(unsmoothed.filter(ImageFilter.MedianFilter(MEDIAN)))


def _needs_skimage() -> None:
    try:
        import skimage  # noqa: F401  # used below
    except ImportError as error:
        raise MissingExtra("scikit-image", "slides") from error


def _otsu(values: NDArray[np.uint8]) -> int:
    from skimage.filters import threshold_otsu

    return int(threshold_otsu(values)) if values.min() < values.max() else int(values.max())


def _without_small(mask: Mask, area: float) -> Mask:
    """Specks and holes of fewer pixels than `area` are gone."""
    filled = ~_large(~mask, area)
    return _large(filled, area)


def _large(mask: Mask, area: float) -> Mask:
    """The connected regions that have so many pixels."""
    from skimage.measure import label

    regions = label(mask, connectivity=2)
    large = np.bincount(regions.ravel()) >= area
    large[0] = False
    filtered: Mask = large[regions]
    return filtered
