"""One picture per image: what the model saw, query map, key map and the class token's signed row
where there is one.
"""

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from softless.saliency.colours import colourise
from softless.saliency.overlay import overlay
from softless.saliency.saliency import Saliency
from softless.words import visible

SIDE = 360  # pixels of a panel's longer side
MARGIN, HEAD, FOOT = 24, 84, 58
INK, FAINT, PAPER = (28, 30, 36), (108, 112, 122), (255, 255, 255)


def figure(
    image: Image.Image,
    saliency: Saliency,
    index: int = 0,
    *,
    title: str = "",
    seen_size: tuple[int, int] | None = None,
) -> Image.Image:
    """The panels for image `index` of the batch, side by side with titles and colour bars.

    `seen_size` is the width and height of what the model saw, in pixels.
    """
    width, height = seen_size or image.size
    size = _panel_size(image.size)
    enlarged = image.convert("RGB").resize(
        size, Image.Resampling.NEAREST if max(image.size) < 96 else Image.Resampling.BICUBIC
    )
    coarser = saliency.key.shape[-2:]  # where keys are reduced
    note = "norm of k^ per token" if saliency.normalised else "norm of k per token"
    panels = [
        ("what the model sees", f"{width} x {height} pixels", enlarged, None),
        (
            "query map",
            "norm of q^ per token" if saliency.normalised else "norm of q per token",
            overlay(enlarged, saliency.query[index]),
            False,
        ),
        (
            "key map",
            note
            if tuple(coarser) == saliency.query.shape[-2:]
            else f"{note}, {coarser[0]} x {coarser[1]} of them",
            overlay(enlarged, saliency.key[index]),
            False,
        ),
    ]
    if saliency.class_row is not None:
        row = overlay(enlarged, saliency.class_row[index], signed=True)
        panels.append(("class token", "its attention to each token, signed", row, True))
    return _compose(panels, size, visible(title or saliency.caption))


def _panel_size(size: tuple[int, int]) -> tuple[int, int]:
    scale = SIDE / max(size)
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _compose(
    panels: list[tuple[str, str, Image.Image, bool | None]], size: tuple[int, int], title: str
) -> Image.Image:
    width = MARGIN + len(panels) * (size[0] + MARGIN)
    sheet = Image.new("RGB", (width, HEAD + size[1] + FOOT), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text(
        (MARGIN, 18), fitting(draw, title, width - 2 * MARGIN, font(19)), fill=INK, font=font(19)
    )
    for number, (name, note, image, signed) in enumerate(panels):
        left = MARGIN + number * (size[0] + MARGIN)
        draw.text((left, HEAD - 30), name, fill=INK, font=font(16))
        sheet.paste(image, (left, HEAD))
        draw.text(
            (left, HEAD + size[1] + 8),
            fitting(draw, note, size[0], font(13)),
            fill=FAINT,
            font=font(13),
        )
        if signed is not None:
            colour_bar(sheet, draw, (left, HEAD + size[1] + 30), size[0], signed=signed)
    return sheet


def colour_bar(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    width: int,
    *,
    signed: bool,
    ends: tuple[str, str] | None = None,
) -> None:
    """Colours from low to high, between their names, along so many pixels."""
    words = ends or (("-", "+") if signed else ("low", "high"))
    room = 34
    ramp: ArrayLike = np.linspace(-1 if signed else 0, 1, width - 2 * room)
    bar = (
        np
        .repeat(colourise(np.asarray(ramp), signed=signed)[None], 8, axis=0)
        .round()
        .astype(np.uint8)
    )
    sheet.paste(Image.fromarray(bar), (corner[0] + room, corner[1] + 5))
    draw.text((corner[0] + room - 6, corner[1]), words[0], fill=FAINT, font=font(13), anchor="ra")
    draw.text((corner[0] + width - room + 6, corner[1]), words[1], fill=FAINT, font=font(13))


def fitting(
    draw: ImageDraw.ImageDraw,
    text: str,
    width: int,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> str:
    """The text, shortened in the middle until it fits: both ends of a path tell something."""
    if draw.textlength(text, font) <= width:
        return text
    for keep in range(len(text) - 1, 2, -1):
        short = f"{text[: keep // 2]}…{text[-(keep - keep // 2) :]}"
        if draw.textlength(short, font) <= width:
            return short
    return "…"


def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The typeface of pictures, so many pixels high."""
    return ImageFont.load_default(size=size)
