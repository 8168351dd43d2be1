"""A TIFF as a plain image: judged by its tags before Pillow decodes it, and read tile by tile where
Pillow would change pixels or knows no codec for them.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from softless.data import tags, tiff_pages
from softless.data.tiff import Tiles, oriented

# codecs of its own, whatever its libtiff was built with
PILLOW = frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946})
ASSOCIATED = 1  # alpha that the colours are multiplied with: Pillow divides them by it
CHECKED = frozenset({8, 32946})  # zlib's own checksum
MODES = {1: "L", 3: "RGB"}


@dataclass(frozen=True)
class Tagged:
    """A TIFF that the table lets pass."""

    path: Path
    remarks: tuple[tuple[str, str], ...]
    single: bool  # whether nothing says what pages behind the first are
    as_pillow: bool  # whether Pillow hands over the samples as they are stored
    stored: tuple[int, int]  # width and height before the orientation
    unguarded: str  # the format, where nothing in the file tells altered pixels
    orientation: int  # 1 to 8


def tagged(path: Path, *, deep: bool = False) -> Tagged | None:
    """What the tags say of a file; None where it is no TIFF, or tifffile is not installed.

    Args:
        path: the file.
        deep: whether numbers of more than 8 bits are read as they are stored.

    Raises:
        tags.Refused: it is of a kind that is not read.
    """
    file = tiff_pages.opened(path)
    if file is None:
        return None
    with file, tiff_pages.silent():
        try:
            contents = tiff_pages.contents(file)
        except tiff_pages.DAMAGED:
            return None  # Pillow says what is wrong with it
        verdict = tags.judged(contents, choosable=False, values=_as_stored if deep else None)
        page = verdict.picture.first
        compression = int(page.compression)
        name = getattr(page.compression, "name", str(compression)).lower()
        return Tagged(
            path,
            verdict.remarks,
            single=len(verdict.picture.levels) == 1
            and not verdict.remarks
            and contents.maker != "Aperio",
            as_pillow=compression in PILLOW
            and ASSOCIATED not in page.extrasamples
            and page is file.pages[0]
            and not (deep and page.samplesperpixel > 1 and page.dtype != np.uint8),
            stored=(int(page.imagewidth), int(page.imagelength)),
            unguarded="" if compression in CHECKED else f"TIFF ({name})",
            orientation=oriented(page),
        )


def _as_stored(values: np.ndarray) -> np.ndarray:
    return values


def read_values(path: Path) -> tuple[np.ndarray, str]:
    """The numbers (h, w, 1 or 3) of the upright picture as they are stored, and why part of them
    cannot be read, or nothing.
    """
    file = tiff_pages.opened(path)
    assert file is not None, "tagged() opened it"
    with file:
        verdict = tags.judged(tiff_pages.contents(file), choosable=False, values=_as_stored)
        tiles = Tiles(file, verdict, 0, _as_stored)
        values, lost = tiles.read(0, 0, *tiles.size)
    return values, lost[0].reason if lost else ""


def read_tiles(path: Path, channels: int) -> tuple[Image.Image, str]:
    """The upright picture of 8 bits in mode "RGB" or "L" (`channels` 3 or 1), and why part of it
    cannot be read, or nothing.

    Raises:
        tags.Refused: its tags contradict each other.
    """
    file = tiff_pages.opened(path)
    assert file is not None, "tagged() opened it"
    with file:
        try:
            tiles = Tiles(file, tags.judged(tiff_pages.contents(file), choosable=False), 0)
            values, lost = tiles.read(0, 0, *tiles.size)
        except tiff_pages.DAMAGED as error:
            raise tags.Refused(
                "damaged", f"tags that cannot be ({error}); replace or remove the file"
            ) from error
    image = Image.fromarray(values[..., 0] if tiles.samples == 1 else values)
    return image.convert(MODES[channels]), lost[0].reason if lost else ""
