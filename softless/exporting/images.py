"""The images that exported files are compared and measured on."""

from pathlib import Path

import torch
from torch import Tensor

from softless.data.samples import Samples
from softless.errors import DataError, UsageError
from softless.exporting.dense.recorded import (
    compared_images,
    is_dense,
)
from softless.exporting.forms.steps import inverts
from softless.exporting.preparing import as_bytes
from softless.exporting.quantized.calibration import Calibration, calibrated
from softless.exporting.request import Images, Request
from softless.exporting.source import (
    Source,
    of_split,
    tensors,
)
from softless.tasks.table import dense_samples, open_task
from softless.tasks.task import Task

PARITY_IMAGES = 16
STEP_IMAGES = 64
NOISE = 1 << 22  # pixels that a model is compared on where there are no images


def gathered(
    source: Source,
    request: Request,
    calibrate: str | Path | None,
    test: str | Path | None,
    *,
    measuring: bool,
) -> Images:
    """What files are compared and measured on.

    Raises:
        UsageError: int8 without images.
    """
    if is_dense(source.model):
        if calibrate is not None:
            raise UsageError("--calibrate is for --int8, which is of classifiers: leave it out")
        return _dense_images(source, request, test, measuring=measuring)
    tested = source.test_images(test) if measuring else None
    if request.int8 != "none" and tested is None:
        raise UsageError(
            f"--int8 {request.int8} is measured on labelled test images, and there are none of "
            f"{source.name}: give --test FOLDER"
        )
    measures = request.int8 == "static" or inverts(source.model)
    if calibrate is not None and not measures:
        raise UsageError(
            f"--calibrate is of --int8 static, and --int8 is {request.int8}: leave it out"
        )
    calibration = None
    if request.int8 == "static" or calibrate is not None:
        calibration = calibrated(source, calibrate, tested)
        if calibration is None:
            raise UsageError(
                "--int8 static measures the range of every activation on images: give --calibrate "
                "FOLDER"
            )
    real: Samples | None = tested
    if real is None and source.task == "dino":
        real = _unlabelled(source)
    if real is not None:
        compared = tensors(real, source.transform, PARITY_IMAGES)
        pixels = compared
        if request.pixels == "uint8":
            pixels = tensors(real, as_bytes(source.transform), PARITY_IMAGES)
        steps = _step_images(source, compared, calibration)
        return Images(compared, pixels, steps, tested, calibration)
    compared, pixels = _noise(source, request)
    return Images(compared, pixels, compared, None, calibration, noise=True)


def _dense_images(
    source: Source, request: Request, test: str | Path | None, *, measuring: bool
) -> Images:
    """The same of a detector or a segmenter: those test images that the graph takes."""
    found = _dense_task(source, test) if measuring else None
    task, tested = (None, None) if found is None else found
    compared = compared_images(
        source.model,
        tested,
        source.transform,
        request.size,
        PARITY_IMAGES,
        any_size=request.dynamic in {"size", "both"},
        as_they_are=request.pixels == "uint8",
    )
    if noise := compared is None:
        compared, pixels = _noise(source, request)
    else:
        # a graph of any number is not recorded with one
        compared = compared if len(compared) > 1 else torch.cat([compared, compared])
        pixels = compared if request.pixels == "normalised" else bytes_of(source, compared)
    return Images(compared, pixels, compared, tested, None, task, noise=noise)


def _dense_task(source: Source, test: str | Path | None) -> tuple[Task, Samples] | None:
    """The task of a detector or segmenter with its test images; None where there are none."""
    run, place = source.run, None if test is None else str(test)
    if run is None:
        source.test_images(test)  # says that a model by itself has none
        return None
    if place is None and not source.is_there():
        return None
    return of_split(place, lambda split: dense_samples(run, place, split))


def _unlabelled(source: Source) -> Samples | None:
    """Images of the validation of a run that learned without labels, where they are there."""
    if source.run is None or not source.is_there():
        return None
    return open_task(source.run.recipe).splits.val


def _noise(source: Source, request: Request) -> tuple[Tensor, Tensor]:
    """Noise (n, C, H, W) as the model takes it, and as the file does."""
    generator = torch.Generator().manual_seed(0)
    shape = (_images_of_noise(request.size), int(source.best["in_chans"]), *request.size)
    if request.pixels == "normalised":
        noise = torch.randn(shape, generator=generator)
        return noise, noise
    levels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    mean, std = (
        torch.tensor(list(source.best[name]), dtype=torch.float64)[:, None, None]
        for name in ("mean", "std")
    )
    return ((levels.double() / 255 - mean) / std).float(), levels


def bytes_of(source: Source, images: Tensor) -> Tensor:
    """Normalised images (B, C, H, W) of bytes as those bytes."""
    mean, std = (torch.tensor(list(source.best[name]))[:, None, None] for name in ("mean", "std"))
    return (255 * (images.double() * std + mean)).round().clamp(0, 255).to(torch.uint8)


def _images_of_noise(size: tuple[int, int]) -> int:
    """As many as a machine of ordinary memory answers at once."""
    return max(2, min(PARITY_IMAGES, NOISE // (size[0] * size[1])))


def _step_images(source: Source, compared: Tensor, calibration: Calibration | None) -> Tensor:
    """Prepared images (n, C, H, W) that say how many steps an inverse takes: those of the training
    where it inverts and they are there.
    """
    if not inverts(source.model):
        return compared
    if calibration is not None:
        return calibration.images[:STEP_IMAGES]
    try:
        samples = source.calibration_images(None)
    except DataError:
        return compared
    return compared if samples is None else tensors(samples, source.transform, STEP_IMAGES)
