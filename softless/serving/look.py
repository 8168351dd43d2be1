"""What was seen in one image: the answer, the pictures, and what it cost."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from softless.measure.cost import Cost
from softless.serving.subject import Served


@dataclass(frozen=True)
class Answer:
    """What a model says of an image."""

    task: str
    body: dict[str, Any]  # for JSON
    chances: Mapping[str, float] = field(default_factory=dict)  # of classes, or shares of pixels
    labels: Sequence[str] = ()
    boxes: Sequence[Mapping[str, Any]] = ()
    overlay: Image.Image | None = None  # boxes or areas over the picture
    label_image: Image.Image | None = None


@dataclass(frozen=True)
class Measured:
    """A model's part of the table of costs."""

    served: Served
    answer: Answer
    milliseconds: float
    cost: Cost | None
    tokens: int | None


@dataclass(frozen=True)
class Shown:
    """A picture of the page with what is said of it."""

    name: str
    note: str
    image: Image.Image
    small: bool = False  # whether its pixels are shown as squares
    large: bool = False  # whether it takes the whole width


@dataclass(frozen=True)
class Look:
    """All that the page shows of one image."""

    size: tuple[int, int]  # width and height of the picture
    model_size: tuple[int, int]  # height and width of what the model takes
    rows: Sequence[Measured]
    pictures: Sequence[Shown]
    why_no_maps: str = ""
    sizes: str = ""  # trained at …, this is …
    foreign: str = ""
    truth: str | None = None

    @property
    def answer(self) -> Answer:
        """Of the model that is served."""
        return self.rows[0].answer


def png(image: Image.Image) -> bytes:
    """A picture as a PNG file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
