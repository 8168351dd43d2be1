"""Views of one image: two global crops and several local ones, each with colours of its own.

The steps are those of the library lightly.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from timm.data.transforms import str_to_interp_mode
from torch import Tensor
from torchvision import transforms as tv
from torchvision.transforms import functional as F

from softless.data.images import MODES
from softless.data.pictures import Picture, resized, size_of
from softless.data.transforms import Normalised, Pipeline, Step, array_to_tensor
from softless.errors import UsageError, need
from softless.tasks.dino.settings import DinoSpec


def multi_crop(
    spec: DinoSpec,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    in_chans: int,
    *,
    deep: bool = False,
) -> Pipeline:
    """The pipeline image -> list of float tensors (C, S, S): two of `image_size`, then those of
    `spec.local_size`.

    Random resized crop, flip, colours (chance 0.8), grey, blur, for the second view solarisation;
    normalised by `mean` and `std`. Caron et al., DINO, arXiv:2104.14294, section 3.2 and the
    published code. `deep` images, of a declared range, go through the same steps as tensors: none
    rounds them to 8 bits.

    Raises:
        MissingExtra: lightly is not installed.
        UsageError: images that are neither grey nor RGB.
    """
    if in_chans not in MODES:
        raise UsageError(
            f"views change colours of grey or RGB images, and data.in_chans is {in_chans}"
        )
    need("lightly")
    from lightly.transforms.dino_transform import DINOViewTransform
    from lightly.transforms.multi_view_transform import MultiViewTransform

    def view(size: int, scale: tuple[float, float], blur: float, solarize: float = 0.0) -> Any:
        view_transform = DINOViewTransform(
            crop_size=size,
            crop_scale=scale,
            hf_prob=spec.hflip,
            vf_prob=spec.vflip,
            cj_strength=spec.color_jitter,
            random_gray_scale=spec.grayscale,
            gaussian_blur=blur,
            sigmas=spec.blur_sigma,
            solarization_prob=solarize,
            normalize={"mean": list(mean), "std": list(std)},
        )
        if deep:
            view_transform.transform.transforms = [
                _of_tensors(step) for step in view_transform.transform.transforms
            ]
        return view_transform

    first = view(image_size, spec.global_scale, spec.blur[0])
    second = view(image_size, spec.global_scale, spec.blur[1], spec.solarize)
    local = view(spec.local_size, spec.local_scale, spec.blur[2])
    head: list[Step] = [] if spec.reduce is None else [_Reduced(spec.reduce)]
    head += [array_to_tensor] if deep else []
    return Pipeline(
        head, [MultiViewTransform([first, second, *[local] * spec.local_crops])], fixed=False
    )


def one_crop(
    image_size: int | Sequence[int],
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    in_chans: int,
    *,
    deep: bool = False,
) -> Pipeline:
    """Random resized crop (0.08 to 1 of the area) and flip, normalised: the views that DINO trains
    its linear classifier on. A picture becomes (C, S, S), or (C, H, W) of height and width.
    """
    crop = tv.RandomResizedCrop(
        image_size, interpolation=str_to_interp_mode(interpolation), antialias=True
    )
    if in_chans in MODES and not deep:
        return Pipeline([], [crop, tv.RandomHorizontalFlip(), Normalised(mean, std)], fixed=False)
    return Pipeline(
        [array_to_tensor],
        [crop, tv.RandomHorizontalFlip(), tv.Normalize(list(mean), list(std))],
        fixed=False,
    )


def _of_tensors(step: Any) -> Step:
    """A step of lightly's views for tensors in 0..1; its own blur and solarisation go through 8-bit
    images.
    """
    name = type(step).__name__
    if name == "RandomResizedCrop":
        return tv.Compose([step, _within])  # cubic interpolation overshoots
    if name == "GaussianBlur":
        return _Sometimes(step.prob, _Blur(step.sigmas))
    if name == "RandomSolarization":
        return _Sometimes(step.prob, _solarised)
    return torch.nn.Identity() if name == "ToTensor" else step


def _within(image: Tensor) -> Tensor:
    return image.clamp(0, 1)


def _solarised(image: Tensor) -> Tensor:
    """128 of 255 and above is inverted, as Pillow does."""
    return torch.where(image >= 128 / 255, 1 - image, image)


class _Sometimes:
    """A step that a share of the views gets, drawn as lightly draws."""

    def __init__(self, share: float, step: Step) -> None:
        self.share, self.step = share, step

    def __call__(self, image: Tensor) -> Tensor:
        # seeded by the loader
        return self.step(image) if np.random.random_sample() < self.share else image  # noqa: NPY002

    def __repr__(self) -> str:
        return f"Sometimes({self.share}, {self.step})"


class _Blur:
    """A Gaussian blur of a width drawn from a range."""

    def __init__(self, sigmas: Sequence[float]) -> None:
        self.sigmas = sigmas

    def __call__(self, image: Tensor) -> Tensor:
        # seeded by the loader
        sigma = float(np.random.uniform(self.sigmas[0], self.sigmas[1]))  # noqa: NPY002
        reach = min(max(1, round(3 * sigma)), min(image.shape[-2:]) - 1)
        return F.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2)

    def __repr__(self) -> str:
        return f"Blur({self.sigmas})"


class _Reduced:
    """The image with a short side of at most so many pixels."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, image: Picture) -> Picture:
        share = self.side / min(size_of(image))
        if share >= 1:
            return image
        width, height = (max(1, round(share * pixels)) for pixels in size_of(image))
        return resized(image, width, height)

    def __repr__(self) -> str:
        return f"Reduced(short side {self.side})"
