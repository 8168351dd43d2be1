"""What is asked of an export, and the images that its files are compared and measured on."""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from softless.data.samples import Samples
from softless.exporting.formats.format import Format, Int8
from softless.exporting.graph import Dynamic
from softless.exporting.quantized.calibration import Calibration
from softless.tasks.task import Task

Pixels = Literal["normalised", "uint8"]
Form = Literal["auto", "plain", "edge"]


@dataclass(frozen=True)
class Request:
    """What is asked for, checked."""

    formats: tuple[Format, ...]
    form: Form
    size: tuple[int, int]
    dynamic: Dynamic | None
    int8: Int8
    pixels: Pixels
    opset: int | None


@dataclass(frozen=True)
class Images:
    """The images that files are compared and measured on."""

    compared: Tensor  # (n, C, H, W), prepared
    pixels: Tensor  # the same as the file takes them: normalised, or bytes
    steps: Tensor  # on which Newton's steps are chosen, where there is something to invert
    tested: Samples | None
    calibration: Calibration | None
    task: Task | None = None  # that measures a detector or segmenter on `tested`
    noise: bool = False  # whether the images are noise, since there are none
