"""Views of one image: two global crops and several local ones, each with colours of its own. The steps are those of the library lightly."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from PIL import Image
from timm.data.transforms import str_to_interp_mode
from torchvision import transforms as tv

from softless.data.images import MODES
from softless.data.transforms import Normalised, Pipeline, array_to_tensor
from softless.errors import UsageError, need

if TYPE_CHECKING:  # the recipe lives above this layer (softless.training)
    from softless.training.recipe import DinoSpec


def multi_crop(
    spec: "DinoSpec", image_size: int, mean: Sequence[float], std: Sequence[float], in_chans: int
) -> Pipeline:
    """The pipeline image -> list of float tensors (C, S, S): two of `image_size`, then those of `spec.local_size`.

    Random resized crop, flip, colours (chance 0.8), grey, blur, for the second view solarisation; normalised by `mean` and `std`.
    Caron et al., DINO, arXiv:2104.14294, section 3.2 and the published code.

    Raises:
        MissingExtra: lightly is not installed.
        UsageError: images that are neither grey nor RGB.
    """
    if in_chans not in MODES:
        raise UsageError(f"views change colours of grey or RGB images, and data.in_chans is {in_chans}")
    need("lightly")
    from lightly.transforms.dino_transform import DINOViewTransform
    from lightly.transforms.multi_view_transform import MultiViewTransform

    def view(size: int, scale: tuple[float, float], blur: float, solarize: float = 0.0) -> Any:
        return DINOViewTransform(
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

    first = view(image_size, spec.global_scale, spec.blur[0])
    second = view(image_size, spec.global_scale, spec.blur[1], spec.solarize)
    local = view(spec.local_size, spec.local_scale, spec.blur[2])
    head = [] if spec.reduce is None else [_Reduced(spec.reduce)]
    return Pipeline(head, [MultiViewTransform([first, second, *[local] * spec.local_crops])], fixed=False)


def one_crop(
    image_size: int, interpolation: str, mean: Sequence[float], std: Sequence[float], in_chans: int
) -> Pipeline:
    """Random resized crop (0.08 to 1 of the area) and flip, normalised: the views that DINO trains its linear classifier on."""
    crop = tv.RandomResizedCrop(image_size, interpolation=str_to_interp_mode(interpolation), antialias=True)
    if in_chans in MODES:
        return Pipeline([], [crop, tv.RandomHorizontalFlip(), Normalised(mean, std)], fixed=False)
    return Pipeline(
        [array_to_tensor], [crop, tv.RandomHorizontalFlip(), tv.Normalize(list(mean), list(std))], fixed=False
    )


class _Reduced:
    """The image with a short side of at most so many pixels."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, image: Image.Image) -> Image.Image:
        share = self.side / min(image.size)
        if share >= 1:
            return image
        width, height = (max(1, round(share * pixels)) for pixels in image.size)
        return image.resize((width, height), Image.Resampling.BICUBIC)

    def __repr__(self) -> str:
        return f"Reduced(short side {self.side})"
