"""Boxes, masks and labels over an image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from softless.tasks.detection.samples import pixels_of, runs
from softless.tasks.segmentation.pictures import BLACK, Colour, colours, outline
from softless.words import visible

STRENGTH = 0.4  # of a mask's colour over the image; outlines are opaque
SURE = 0.3  # answers below this score are not drawn; RetinaNet's are low while it learns
LONGER = 640  # pixels that a picture's longer side has at least, so that labels can be read
CROWDED = (
    # of more objects those alone are labelled whose label fits over their box, and none where there
    # is one class
    25
)
WHITE: Colour = (255, 255, 255)


def draw(
    image: Image.Image,
    objects: Sequence[Mapping[str, Any]],
    classes: Mapping[int, str],
    *,
    longer: int = LONGER,
) -> Image.Image:
    """The image with its objects, surer ones on top: mask and its outline, box, and a label with
    the score where there is one.

    Args:
        image: any PIL image.
        objects: annotations or results of COCO: bbox in pixels, category_id, and score and
            segmentation where they have one; those with a score below SURE are left out.
        classes: COCO's category id -> name.
        longer: smaller images are enlarged to this longer side, by a whole number.

    Returns:
        An RGB image, whose sides are a whole multiple of the image's.
    """
    factor = max(1, -(-longer // max(image.size)))
    drawn = [annotation for annotation in objects if annotation.get("score", 1.0) >= SURE]
    drawn.sort(key=lambda annotation: annotation.get("score", 1.0))
    palette = {
        key: colour if colour != BLACK else WHITE
        for key, colour in zip(classes, colours(tuple(classes.values())), strict=True)
    }
    enlarged = image.convert("RGB").resize(
        (factor * image.width, factor * image.height), Image.Resampling.BICUBIC
    )
    picture = Image.fromarray(_masked(np.asarray(enlarged), drawn, palette, factor))
    pen = ImageDraw.Draw(picture)
    line = max(2, max(picture.size) // 300)
    font = ImageFont.load_default(max(11, max(picture.size) // 55))
    corners = [_corners(annotation["bbox"], factor) for annotation in drawn]
    for annotation, box in zip(drawn, corners, strict=True):
        pen.rectangle(box, outline=palette[annotation["category_id"]], width=line)
    for annotation, box in zip(drawn, corners, strict=True):
        label = visible(classes[annotation["category_id"]]) + (
            f" {annotation['score']:.0%}" if "score" in annotation else ""
        )
        fits = len(classes) > 1 and pen.textlength(label, font) <= box[2] - box[0]
        if len(drawn) <= CROWDED or fits:
            _label(pen, picture.size, box, label, palette[annotation["category_id"]], font)
    return picture


def _masked(
    pixels: np.ndarray,
    objects: Sequence[Mapping[str, Any]],
    palette: Mapping[int, Colour],
    factor: int,
) -> np.ndarray:
    mixed = pixels.astype(np.float32)
    height, width = (side // factor for side in pixels.shape[:2])
    for annotation in objects:
        if not annotation.get("segmentation"):
            continue
        mask = pixels_of([runs(annotation["segmentation"], height, width)])[..., 0].astype(bool)
        mask = mask.repeat(factor, 0).repeat(factor, 1)
        colour = np.array(palette[annotation["category_id"]], dtype=np.float32)
        mixed[mask] += STRENGTH * (colour - mixed[mask])
        mixed[outline(mask)] = colour
    return mixed.round().astype(np.uint8)


def _corners(box: Sequence[float], factor: int) -> tuple[float, float, float, float]:
    left, top, width, height = (factor * value for value in box)
    return left, top, max(left, left + width - 1), max(top, top + height - 1)


def _label(
    pen: ImageDraw.ImageDraw,
    size: tuple[int, int],
    box: Sequence[float],
    text: str,
    colour: Colour,
    font: Any,
) -> None:
    """A chip of the class's colour above the box, or inside it at the picture's edge."""
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left + 6, bottom - top + 6
    x = min(max(box[0], 0), size[0] - width)
    y = box[1] - height if box[1] >= height else box[1]
    pen.rectangle((x, y, x + width, y + height), fill=colour)
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] > 110
    pen.text((x + 3 - left, y + 3 - top), text, fill=BLACK if dark else WHITE, font=font)
