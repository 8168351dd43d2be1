"""Pictures inside the page."""

import base64
import io

from PIL import Image

from softless.report.html import Html, enlarged, tag

THUMB = 144  # pixels of the longer side


def inline(image: Image.Image, alternative: str, *, class_: str | None = None) -> Html:
    """An <img> that carries its PNG and is enlarged by a click.

    Small images keep their pixels and are enlarged by the browser; photographs are cut to 256
    colours.
    """
    small = max(image.size) < THUMB
    thumbnail = image.convert("RGB")
    if not small:
        thumbnail.thumbnail((THUMB, THUMB), Image.Resampling.LANCZOS)
    if max(thumbnail.size) > 64:
        # a third of the bytes, and nothing visible at this size
        thumbnail = thumbnail.quantize(256, dither=Image.Dither.NONE)
    buffer = io.BytesIO()
    thumbnail.save(buffer, "PNG", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    look = " ".join(word for word in (class_, "pixels" if max(image.size) < 64 else None) if word)
    picture = tag(
        "img",
        src=f"data:image/png;base64,{data}",
        alt=alternative,
        width=image.width,
        height=image.height,
        class_=look or None,
    )
    return enlarged(picture, alternative)
