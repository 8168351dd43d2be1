"""What looks at an image: a model or a run, with the transform that its images go through,
and what its host sees of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn

from softless.data import pictures
from softless.data.images import MODES
from softless.data.reading import read_image
from softless.data.transforms import eval_transform, plain_transform
from softless.errors import UsageError, located
from softless.evaluation.run import LoadedRun
from softless.experiment.ranges import Range
from softless.inference.layers import PatchProjection
from softless.models import config
from softless.models.bag import refuse_bags
from softless.models.scale import TRAINING, Scale, training_scale
from softless.modes import unwrapped

Picture = Tensor | Image.Image | np.ndarray | str | Path  # an image in the forms that are looked at

Size = int | str  # "training", or pixels of the longer side


@dataclass(frozen=True)
class Viewer:
    """A model with what it needs to look at an image and to show what it saw."""

    model: nn.Module
    transform: Callable[[Any], Tensor]
    in_chans: int
    mean: Sequence[float]
    std: Sequence[float]
    scale: Range | None = None  # the declared range of the images' values

    def read(self, path: str | Path, page: int = 0) -> pictures.Picture:
        """An image file, of several frames one, as the transform takes it."""
        return read_image(located(path), self.in_chans, self.scale, page=page)

    def resized(self, size: Size) -> "Viewer":
        """The same looking at images of another size: "training", or pixels of the longer side.

        Raises:
            UsageError: a size that is none, or a training size that is not known.
        """
        checked_size(size)
        if hasattr(self.model, "framed"):
            return replace(self, transform=Resized(self.model, size, self.transform))
        if size == TRAINING:
            scale = needed_scale(self.model)
            size = max(scale.height, scale.width)
        config: dict[str, Any] = dict(getattr(self.model, "pretrained_cfg", {}))
        framing = {name: config[name] for name in ("crop_pct", "interpolation") if name in config}
        framed = {"crop_pct": 1.0, "interpolation": "bicubic", **framing}
        transform = eval_transform(
            int(size),
            framed["crop_pct"],
            framed["interpolation"],
            self.mean,
            self.std,
            self.in_chans,
            deep=self.scale is not None,
        )
        return replace(self, transform=transform)


@dataclass(frozen=True)
class Resized:
    """A whole image brought to another size, ahead of a transform to (C, H, W)."""

    model: nn.Module
    size: Size
    after: Callable[[Any], Tensor]

    def __call__(self, image: Any) -> Tensor:
        if isinstance(image, np.ndarray) and image.dtype == np.uint8:
            raise UsageError(
                "resize= is for images of one or three channels of bytes: resize this one before"
            )
        image_width, image_height = pictures.size_of(image)
        height, width = size_of(self.model, self.size, image_height, image_width)
        return self.after(pictures.resized(image, width, height))


def checked_size(size: Size) -> None:
    """Refuse what is no size.

    Raises:
        UsageError: neither "training" nor a positive number of pixels.
    """
    if size != TRAINING and (isinstance(size, str | bool) or int(size) != size or size < 1):
        raise UsageError(
            f"resize={size}: give 'training', or pixels of the longer side, for example 512"
        )


def needed_scale(model: nn.Module) -> Scale:
    """The training size of a model.

    Raises:
        UsageError: it is not known.
    """
    scale = training_scale(model)
    if scale is None:
        raise UsageError(
            "resize=training: this model does not know at which size it was trained; give the "
            "pixels of the longer side"
        )
    return scale


def size_of(model: nn.Module, size: Size, height: int, width: int) -> tuple[int, int]:
    """Height and width that an image of so many pixels is brought to; its sides keep their ratio.

    Raises:
        UsageError: the training size is asked for and not known.
    """
    checked_size(size)
    if size == TRAINING:
        scale = needed_scale(model)
        factor = (scale.height * scale.width / (height * width)) ** 0.5
    else:
        factor = float(size) / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))


def viewer_of(model: nn.Module | LoadedRun) -> Viewer:
    """A viewer of a model, left where it lies, or of a run.

    Raises:
        UsageError: a model of bags.
    """
    refuse_bags(model.model if isinstance(model, LoadedRun) else model, "looking at an image")
    if isinstance(model, LoadedRun):
        best = model.best
        return Viewer(
            model.model, model.transform, model.in_chans, best["mean"], best["std"], model.scale
        )
    model = unwrapped(model)
    mean, std = normalisation(model)
    return Viewer(
        model, evaluation_transform(model), channels_of(model), mean, std, declared(model)
    )


def evaluation_transform(model: nn.Module) -> Callable[[Any], Tensor]:
    """Timm's evaluation transform for a model, to (C, H, W), from its `pretrained_cfg`; the whole
    image for a detector or a segmenter.
    """
    import timm.data

    deep = declared(model) is not None
    if hasattr(model, "framed"):
        return plain_transform(0, 1.0, "", *normalisation(model), channels_of(model), deep=deep)
    if deep:
        data_config = timm.data.resolve_model_data_config(model)
        mean, std = normalisation(model)
        return eval_transform(
            max(data_config["input_size"][1:]),
            data_config["crop_pct"],
            data_config["interpolation"],
            mean,
            std,
            channels_of(model),
            deep=True,
        )
    transform = timm.data.create_transform(
        **timm.data.resolve_model_data_config(model), is_training=False
    )
    assert callable(transform)
    return transform


def normalisation(model: nn.Module) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of the images that a model takes, from its `pretrained_cfg`."""
    import timm.data

    data_config = timm.data.resolve_model_data_config(model)
    return tuple(data_config["mean"]), tuple(data_config["std"])


def declared(model: nn.Module) -> Range | None:
    """The range of the values of a model's images, where it was trained with one."""
    return Range.of(config.declared(dict(getattr(model, "pretrained_cfg", {}))))


def channels_of(model: nn.Module) -> int:
    """How many channels the model's images have: what its first convolution takes."""
    convolutions = (
        module for module in model.modules() if isinstance(module, nn.Conv2d | PatchProjection)
    )
    return next((int(module.in_channels) for module in convolutions), 3)


def in_range(image: Any, channels: int, scale: Range) -> np.ndarray:
    """An array (H, W) or (H, W, 1 or 3) of stored values, or a PIL image of them, as float32
    (H, W, C) in 0..1.
    """
    values = np.asarray(image) if isinstance(image, Image.Image | np.ndarray) else np.empty(0)
    values = values[..., None] if values.ndim == 2 else values
    if (
        values.dtype.kind not in "biuf"
        or values.ndim != 3
        or values.shape[-1] not in MODES
        or not values.size
    ):
        raise UsageError(
            f"image is a {type(image).__name__}, and the model takes values in {scale}: give a "
            "path, or an array of numbers (height, width) or "
            "(height, width, 3)"
        )
    if values.dtype == np.uint8 and scale.beyond_bytes:
        raise UsageError(
            f"image holds bytes, and {scale} reaches beyond: give the values that were stored"
        )
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise UsageError(f"image holds NaN or infinity, which have no place in {scale}")
    return pictures.with_channels(scale.applied(values), channels)


def eyes(model: Any, batch: Tensor) -> tuple[nn.Module, Tensor]:
    """The part of a model that looks at images, and the batch (B, C, h, w) as it sees them: of a
    detector or a segmenter the host.
    """
    if not hasattr(model, "framed"):
        return model, batch
    return model.features, model.framed(batch)


def tensor_of(
    images: Picture, transform: Callable[[Any], Tensor], channels: int, scale: Range | None = None
) -> Tensor:
    """Images in any form as a batch (B, C, H, W); `scale` is the declared range of files and
    arrays.

    Raises:
        UsageError: a shape, a dtype or a class that is no image.
        DataError: the path is no readable image.
    """
    if isinstance(images, Tensor):
        if images.ndim not in {3, 4}:
            raise UsageError(
                f"images have shape {tuple(images.shape)}: give (B, C, H, W) or (C, H, W)"
            )
        return images if images.ndim == 4 else images[None]
    return transform(picture_of(images, channels, scale))[None]


def picture_of(image: Any, channels: int, scale: Range | None = None) -> Any:
    """One image as a transform takes it, from a file, a PIL image or bytes (H, W, C); with a range,
    from an array of any numbers.

    Raises:
        UsageError: a shape, a dtype or a class that is no image.
        DataError: the path is no readable image.
    """
    if isinstance(image, str | Path):
        return read_image(located(image), channels, scale)
    if scale is not None:
        return in_range(image, channels, scale)
    if isinstance(image, np.ndarray):
        flat = image[..., 0] if image.ndim == 3 and image.shape[-1] == 1 else image
        if (
            flat.dtype != np.uint8
            or not flat.size
            or not (flat.ndim == 2 or (flat.ndim == 3 and flat.shape[-1] == 3))
        ):
            raise UsageError(
                f"image is an array {image.shape} of {image.dtype}: give bytes (uint8) of shape "
                "(height, width) or (height, width, 3), "
                "or a tensor as the model takes it"
            )
        image = Image.fromarray(np.ascontiguousarray(flat))
    if not isinstance(image, Image.Image):
        raise UsageError(
            f"image is a {type(image).__name__}: give a path, a PIL image, a numpy array of bytes "
            "or a tensor"
        )
    if channels not in MODES:
        raise UsageError(
            f"the model takes {channels} channels, and a PIL image or an array of bytes has one "
            "or three: give a tensor or a path"
        )
    return image.convert(MODES[channels])
