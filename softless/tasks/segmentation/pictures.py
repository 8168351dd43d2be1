"""Class colours over an image, the outline of each area, and a legend."""

import colorsys
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain, count

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from softless.words import visible

Colour = tuple[int, int, int]
BLACK: Colour = (0, 0, 0)
STRENGTH = 0.6  # of the colour over the image; outlines are opaque
NAMED = ("background", "other", "unlabeled")  # not coloured: the photograph shows through
FIRST: tuple[Colour, ...] = (  # told apart by the colour-blind too (Okabe and Ito, 2008)
    (86, 180, 233),
    (240, 228, 66),
    (204, 121, 167),
    (0, 158, 115),
    (213, 94, 0),
    (0, 114, 178),
    (230, 159, 0),
)
LEGEND = 12  # classes in it at most


@lru_cache
def colours(names: tuple[str, ...]) -> tuple[Colour, ...]:
    """A colour for each class; black for a background."""
    further = (colorsys.hsv_to_rgb(0.618034 * index % 1, 0.75, 0.95) for index in count())
    bright = chain(FIRST, ((round(255 * r), round(255 * g), round(255 * b)) for r, g, b in further))
    return tuple(BLACK if name.casefold() in NAMED else next(bright) for name in names)


def palette(values: Sequence[int], chosen: Sequence[Colour]) -> list[int]:
    """256 colours of a palette image, 768 numbers: those of the classes at their values, black
    elsewhere.
    """
    table = np.zeros((256, 3), dtype=np.uint8)
    table[list(values)] = chosen
    return table.reshape(-1).tolist()


def overlay(
    image: Image.Image, classes: np.ndarray, names: Sequence[str], *, legend: bool = True
) -> Image.Image:
    """The image with its classes (h, w) in colour, outlined, and a legend of those that occur below
    it; indices that are none show the image.
    """
    photograph = np.asarray(image.convert("RGB")).astype(np.float32)
    chosen = colours(tuple(names))
    table = np.zeros((256, 3), dtype=np.float32)
    table[: len(names)] = chosen
    coloured = table.max(1) > 0
    strength = np.where(coloured, STRENGTH, 0.0)[classes]
    strength[outline(classes) & coloured[classes]] = 1.0
    mixed = photograph + strength[..., None] * (table[classes] - photograph)
    picture = Image.fromarray(mixed.round().astype(np.uint8))
    pixels = np.bincount(classes.reshape(-1), minlength=256) * coloured
    present = [int(index) for index in np.argsort(-pixels, kind="stable") if pixels[index]]
    return (
        _with_legend(picture, [(names[index], chosen[index]) for index in present])
        if legend
        else picture
    )


def outline(classes: np.ndarray) -> np.ndarray:
    """(h, w) bool: whether the pixel above or to the left has another class in `classes` (h, w)."""
    edge = np.zeros(classes.shape, dtype=bool)
    edge[1:] |= classes[1:] != classes[:-1]
    edge[:, 1:] |= classes[:, 1:] != classes[:, :-1]
    return edge


def _with_legend(picture: Image.Image, entries: Sequence[tuple[str, Colour]]) -> Image.Image:
    """A strip below the picture, with as many rows as the names need."""
    size = max(12, picture.width // 50)
    font, gap = ImageFont.load_default(size), size // 2
    rows: list[list[tuple[int, str, Colour]]] = [[]]
    x = gap
    remainder = (
        [(f"and {len(entries) - LEGEND} more", (255, 255, 255))] if len(entries) > LEGEND else []
    )
    for name, colour in (
        (visible(name), colour) for name, colour in [*entries[:LEGEND], *remainder]
    ):
        width = round(font.getlength(name)) + size + 2 * gap
        if rows[-1] and x + width > picture.width:
            rows.append([])
            x = gap
        rows[-1].append((x, name, colour))
        x += width + gap
    line = size + gap
    canvas = Image.new("RGB", (picture.width, picture.height + line * len(rows) + gap), "white")
    canvas.paste(picture, (0, 0))
    pen = ImageDraw.Draw(canvas)
    for number, row in enumerate(rows):
        top = picture.height + gap + line * number
        for x, name, colour in row:
            pen.rectangle((x, top, x + size, top + size), fill=colour)
            pen.text((x + size + gap, top + size / 2), name, fill="black", font=font, anchor="lm")
    return canvas
