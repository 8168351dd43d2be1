"""From an image to the tensor a model takes: a fixed head, which may be computed once and kept, and
a tail.

Recipes with a random crop use timm's `create_transform` unchanged, so that the list of steps is the
reference's. Recipes with `augment.affine` (small images, where a crop would lose the object) frame
the image as in evaluation and then shift, turn and scale it.
"""

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.auto_augment import rand_augment_transform
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import ResizeKeepRatio, str_to_interp_mode, str_to_pil_interp
from torchvision import transforms as tv

from softless.data.images import MODES
from softless.data.pictures import Picture, scaled, tensor_of
from softless.errors import UsageError
from softless.experiment.augmentation import check_augmentation
from softless.experiment.groups import DENSE, RunFields
from softless.models.sides import sides

Step = Callable[[Any], Any]


class Pipeline:
    """Steps applied in order. `head` has no randomness and can be cached; with `fixed`, neither has
    the tail.

    A pipeline that is `joint` takes and returns pairs, (image, target): what moves pixels moves
    boxes and label images too.
    """

    joint = False

    def __init__(self, head: Sequence[Step], tail: Sequence[Step], *, fixed: bool) -> None:
        self.head = tuple(head)
        self.tail = tuple(tail)
        self.fixed = fixed

    @property
    def transforms(self) -> list[Step]:
        """All steps in order, as torchvision's Compose names them."""
        return [*self.head, *self.tail]

    def prepare(self, image: Any) -> Any:
        """What is the same in every epoch: everything if the pipeline is fixed, else the head."""
        for step in self.transforms if self.fixed else self.head:
            image = step(image)
        return image

    def finish(self, prepared: Any, *, cached: bool = True) -> Any:
        """The rest: the tail, or what `prepare` made, a copy of it where it is kept."""
        if self.fixed and not cached:
            return prepared
        if self.fixed:
            return copy.deepcopy(prepared) if self.joint else prepared.clone()
        for step in self.tail:
            prepared = step(prepared)
        return prepared

    def __call__(self, image: Any) -> Any:
        return self.finish(self.prepare(image), cached=False)

    def __repr__(self) -> str:
        return "Pipeline(\n" + "".join(f"    {step}\n" for step in self.transforms) + ")"


def build_transforms(
    recipe: RunFields, mean: Sequence[float], std: Sequence[float], *, train: bool
) -> Pipeline:
    """The pipeline image -> float tensor (C, S, S), normalised by `mean` and `std` (of pixels
    scaled to 0..1).

    Raises:
        UsageError: a setting that cannot be used with these images.
    """
    data = recipe.data
    if not train:
        return eval_transform(
            data.image_size,
            data.crop_pct,
            data.interpolation,
            mean,
            std,
            data.in_chans,
            deep=_deep(recipe),
        )
    check_augmentation(recipe)
    if recipe.augment.affine is not None:
        return _affine_pipeline(recipe, mean, std)
    if data.in_chans in MODES and not _deep(recipe):
        return _timm_pipeline(recipe, mean, std)
    return _tensor_pipeline(recipe, mean, std)


def _deep(recipe: RunFields) -> bool:
    """Whether images are floats in 0..1 in place of 8 bits."""
    return recipe.data.range is not None


def eval_transform(
    image_size: int | Sequence[int],
    crop_pct: float,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    in_chans: int,
    *,
    deep: bool = False,
    crop_mode: str = "center",
) -> Pipeline:
    """Resize the short side to image_size / crop_pct, crop the centre, normalise: timm's evaluation
    transform.

    Of height and width: resize until both are covered, and cut the rest off.

    Images become (C, S, S) float32, or (C, H, W) of height and width. Those of other channels than
    one or three, and `deep` ones of a declared range, go the same way as tensors. `crop_mode` is
    timm's: "squash" and "border" keep the edges that "center" cuts off.

    Raises:
        UsageError: `crop_pct` outside (0, 1], or a crop mode that such images have not.
    """
    if not 0 < crop_pct <= 1:
        raise UsageError(
            f"data.crop_pct={crop_pct}: the share of the side that the centre crop keeps lies in "
            "(0, 1]"
        )
    if deep or in_chans not in MODES:
        if crop_mode != "center":
            raise UsageError(
                f"crop_mode={crop_mode}: images of 8 bits and 1 or 3 channels alone are framed so; "
                "set it to center"
            )
        frame = _frame(image_size, crop_pct, interpolation)
        return Pipeline(
            [array_to_tensor, *frame], [tv.Normalize(list(mean), list(std))], fixed=True
        )
    steps = create_transform(
        (in_chans, *sides(image_size)),
        is_training=False,
        interpolation=interpolation,
        mean=tuple(mean),
        std=tuple(std),
        crop_pct=crop_pct,
        crop_mode=crop_mode,
    ).transforms
    return Pipeline(steps, [], fixed=True)


def prepared_as(best: Mapping[str, Any]) -> Pipeline:
    """image -> (C, H, W), as best.json says that images are prepared in evaluation: those of a
    detector or segmenter whole.
    """
    deep = best.get("range") is not None
    framing = (best["image_size"], best["crop_pct"], best["interpolation"])
    numbers = (best["mean"], best["std"], best["in_chans"])
    if best.get("task") in DENSE:
        return plain_transform(*framing, *numbers, deep=deep)
    mode = best.get("crop_mode") or "center"
    return eval_transform(*framing, *numbers, deep=deep, crop_mode=mode)


def plain_transform(
    image_size: int | Sequence[int],
    crop_pct: float,
    interpolation: str,
    mean: Sequence[float],
    std: Sequence[float],
    in_chans: int,
    *,
    deep: bool = False,
) -> Pipeline:
    """The whole image, (C, h, w), normalised and of its own size: for models that take any.

    The first three arguments have no effect.
    """
    del image_size, crop_pct, interpolation
    if deep or in_chans not in MODES:
        return Pipeline([array_to_tensor], [tv.Normalize(list(mean), list(std))], fixed=True)
    return Pipeline([Normalised(mean, std)], [], fixed=True)


def _timm_pipeline(recipe: RunFields, mean: Sequence[float], std: Sequence[float]) -> Pipeline:
    data, augment = recipe.data, recipe.augment
    compose = create_transform(
        (data.in_chans, *sides(data.image_size)),
        is_training=True,
        scale=augment.scale,
        ratio=augment.ratio,
        hflip=augment.hflip,
        vflip=augment.vflip,
        # timm annotates it narrower than it is
        color_jitter=augment.color_jitter or None,  # type: ignore[arg-type]
        auto_augment=augment.auto_augment,
        interpolation=augment.interpolation,
        mean=tuple(mean),
        std=tuple(std),
        re_prob=augment.reprob,
        re_mode=augment.remode,
        re_count=augment.recount,
    )
    return Pipeline([], [_mended(step) for step in compose.transforms], fixed=False)


def _affine_pipeline(recipe: RunFields, mean: Sequence[float], std: Sequence[float]) -> Pipeline:
    data, augment = recipe.data, recipe.augment
    assert augment.affine is not None
    flips = _flips(recipe)
    tail: list[Step]
    if data.in_chans not in MODES or _deep(recipe):
        head: list[Step] = [
            array_to_tensor,
            *_frame(data.image_size, data.crop_pct, data.interpolation),
        ]
        affine = _tensor_affine(augment.affine)
        tail = [
            affine,
            *flips,
            *_colours(recipe),
            tv.Normalize(list(mean), list(std)),
            *_erasing(recipe),
        ]
        return Pipeline(head, tail, fixed=False)
    head = _frame(data.image_size, data.crop_pct, data.interpolation)
    fill = tuple(min(255, round(255 * x)) for x in mean)
    tail = [RandomAffine(*augment.affine, interpolation=augment.interpolation), *flips]
    if augment.auto_augment:
        options = {
            "translate_const": int(min(sides(data.image_size)) * 0.45),
            "img_mean": fill,
            "interpolation": str_to_pil_interp(augment.interpolation),
        }
        tail.append(_mended(rand_augment_transform(augment.auto_augment, options)))
    else:
        tail += _colours(recipe)
    return Pipeline(head, [*tail, Normalised(mean, std), *_erasing(recipe)], fixed=False)


def _tensor_pipeline(recipe: RunFields, mean: Sequence[float], std: Sequence[float]) -> Pipeline:
    augment = recipe.augment
    crop = tv.RandomResizedCrop(
        sides(recipe.data.image_size),
        scale=augment.scale,
        ratio=augment.ratio,
        interpolation=str_to_interp_mode(augment.interpolation),
        antialias=True,
    )
    normalised = tv.Normalize(list(mean), list(std))
    tail: list[Step] = [crop, *_flips(recipe), *_colours(recipe), normalised, *_erasing(recipe)]
    return Pipeline([array_to_tensor], tail, fixed=False)


def _frame(size: int | Sequence[int], crop_pct: float, interpolation: str) -> list[Step]:
    """What evaluation sees of the image: the short side resized (or both sides covered), the centre
    cropped.
    """
    if not isinstance(size, int):
        covered = tuple(math.floor(side / crop_pct) for side in sides(size))
        return [ResizeKeepRatio(covered, interpolation=interpolation), tv.CenterCrop(sides(size))]
    resize = tv.Resize(
        math.floor(size / crop_pct), interpolation=str_to_interp_mode(interpolation), antialias=True
    )
    return [resize, tv.CenterCrop(size)]


def _flips(recipe: RunFields) -> list[Step]:
    chances = (
        (recipe.augment.hflip, tv.RandomHorizontalFlip),
        (recipe.augment.vflip, tv.RandomVerticalFlip),
    )
    return [flip(p=chance) for chance, flip in chances if chance > 0]


def _colours(recipe: RunFields) -> list[Step]:
    strength = recipe.augment.color_jitter
    return [tv.ColorJitter(*[strength] * 3)] if strength else []


def _erasing(recipe: RunFields) -> list[Step]:
    augment = recipe.augment
    if not augment.reprob:
        return []
    return [
        RandomErasing(augment.reprob, mode=augment.remode, max_count=augment.recount, device="cpu")
    ]


def _mended(step: Step) -> Step:
    """The step with `_posterize` in the place of timm's in each of its operations."""
    groups = [*getattr(step, "policy", ()), getattr(step, "ops", ())]
    for operation in (operation for group in groups for operation in group):
        if getattr(operation, "aug_fn", None) is auto_augment.posterize:
            operation.aug_fn = _posterize
    return step


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    """timm's posterize, with 0 bits giving black as in the papers' runs.

    The strongest magnitude of "PosterizeIncreasing" asks for 0 bits; Pillow 13 refuses that where
    older versions returned a black image, and timm 1.0.31 passes it on.
    """
    return auto_augment.posterize(image, bits) if bits else Image.new(image.mode, image.size)


class RandomAffine:
    """Turn by up to `degrees`, shift by up to `shift` of the side, scale by 1 - change to 1 +
    change, about the centre.

    The same map as torchvision's `affine` (tested), drawn from Python's generator and handed to
    Pillow directly: on 32 x 32 pixels torchvision's checks take longer than the picture. What comes
    from outside the image is black.
    """

    def __init__(
        self, degrees: float, shift: float, change: float, *, interpolation: str = "bilinear"
    ) -> None:
        self.degrees, self.shift, self.change = degrees, shift, change
        self.interpolation = interpolation
        modes = str_to_pil_interp(interpolation)  # "random" is a choice of two
        self.modes = modes if isinstance(modes, tuple) else (modes,)

    def __call__(self, image: Image.Image) -> Image.Image:
        """The image, of the same size and mode, under a map drawn anew."""
        uniform = random.uniform
        angle = uniform(-self.degrees, self.degrees)
        scale = uniform(1 - self.change, 1 + self.change)
        width, height = image.size
        x = uniform(-self.shift, self.shift) * width
        y = uniform(-self.shift, self.shift) * height
        mode = random.choice(self.modes) if len(self.modes) > 1 else self.modes[0]
        matrix = inverse_affine(angle, scale, x, y, width, height)
        return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=mode)

    def __repr__(self) -> str:
        return (
            f"RandomAffine({self.degrees}, {self.shift}, {self.change}, "
            f"interpolation={self.interpolation!r})"
        )


def inverse_affine(
    angle: float, scale: float, x: float, y: float, width: int, height: int
) -> tuple[float, ...]:
    """Pillow's six numbers, from output to input pixels, for: turn by `angle` degrees clockwise,
    scale, shift by x, y.
    """
    cos, sin = math.cos(math.radians(angle)) / scale, math.sin(math.radians(angle)) / scale
    centre_x, centre_y = width * 0.5, height * 0.5
    out_x, out_y = -centre_x - x, -centre_y - y
    return (
        cos,
        sin,
        cos * out_x + sin * out_y + centre_x,
        -sin,
        cos,
        -sin * out_x + cos * out_y + centre_y,
    )


def _tensor_affine(affine: tuple[float, float, float]) -> Step:
    """Bilinear whatever `augment.interpolation` says: torchvision turns tensors in no finer way."""
    degrees, shift, change = affine
    return tv.RandomAffine(
        degrees,
        translate=(shift, shift),
        scale=(1 - change, 1 + change),
        interpolation=tv.InterpolationMode.BILINEAR,
        fill=0,
    )


class Normalised:
    """torchvision's ToTensor and Normalize in one, by a table of the 256 grey levels per channel.

    A picture (h, w) or (h, w, C) becomes (C, h, w) float32; `mean` and `std` are of pixels in 0..1.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        levels = torch.arange(256, dtype=torch.float32).div(255)[None]
        centre, spread = (
            torch.tensor(tuple(values), dtype=torch.float32)[:, None] for values in (mean, std)
        )
        self.table = levels.sub(centre).div(spread).numpy()  # (C, 256)
        self.centre, self.spread = centre[..., None], spread[..., None]

    def __call__(self, image: Picture) -> torch.Tensor:
        pixels = np.asarray(image)
        if pixels.dtype != np.uint8:  # of a declared range
            return tensor_of(pixels).sub(self.centre).div(self.spread)
        if pixels.ndim == 2:
            return torch.from_numpy(self.table[0].take(pixels)[None])
        return torch.from_numpy(
            np.stack([row.take(pixels[..., c]) for c, row in enumerate(self.table)])
        )

    def __repr__(self) -> str:
        return f"Normalised(channels={len(self.table)})"


def array_to_tensor(pixels: np.ndarray) -> torch.Tensor:
    """An array (H, W, C) of bytes, or of floats in 0..1, as a float tensor (C, H, W) in 0..1."""
    return scaled(tensor_of(pixels))
