"""From an image and its objects to tensors: torchvision's joint transforms, drawn from the
generators that the loader seeds.

Two ways to several sizes. On a **canvas**, a window of canvas / s pixels is cut, s being drawn,
resized to the canvas and, where the image ends, filled up: all images of a batch have one size, so
none sees another's. The **shortest side** drawn from a list, half the time after a crop, is DETR's
(Carion et al., arXiv:2005.12872, section 4), which XCiT's and SimA's detectors were trained with:
images keep their shape, and a batch is padded to its largest.
"""

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.ops import masks_to_boxes
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from softless.data.pictures import Picture, scaled, size_of, tensor_of
from softless.data.transforms import Normalised, Pipeline, Step
from softless.tasks.detection.samples import pixels_of
from softless.tasks.detection.settings import DetectionSpec

CROP_AFTER = (400, 500, 600)  # DETR: the shortest side before its crop,
CROP_SIDES = (384, 600)  # and the range of the crop's sides
KEYS = 2**62

Pair = tuple[Any, dict[str, Any]]


class BoxPipeline(Pipeline):
    """(image, target of `BoxSamples`) to (tensor (C, h, w) normalised, target of
    `tasks.detection.model`).
    """

    joint = True


def train_pipeline(spec: DetectionSpec, mean: Sequence[float], std: Sequence[float]) -> BoxPipeline:
    """Sizes, flips, quarter turns, colours, as the recipe says.

    Raises:
        UsageError: a setting that cannot be used.
    """
    spec.check()
    steps: list[Step] = (
        [Window(spec.canvas, spec.scale)] if spec.canvas else [decoded, *_shortest_side(spec)]
    )
    chances = ((spec.hflip, v2.RandomHorizontalFlip), (spec.vflip, v2.RandomVerticalFlip))
    steps += [Both(flip(chance)) for chance, flip in chances if chance > 0]
    steps += [quarter_turn] if spec.quarter_turns else []
    steps += [Both(v2.RandomPhotometricDistort())] if spec.photometric else []
    return BoxPipeline(
        [as_tensors], [*steps, Cleaned(), Finished(mean, std, spec.canvas)], fixed=False
    )


def eval_pipeline(mean: Sequence[float], std: Sequence[float]) -> BoxPipeline:
    """The whole image, normalised, at its own size; who measures reads the objects from the
    samples.
    """
    return BoxPipeline([Whole(mean, std)], [], fixed=True)


def as_tensors(sample: tuple[Picture, Mapping[str, Any]]) -> Pair:
    """Types by which torchvision tells pixels, boxes and masks apart; masks stay run-length codes
    until a window is chosen.

    The image becomes (C, h, w), uint8 or float32 in 0..1; boxes stay (n, 4) as corners in pixels,
    cut to the image, and labels (n,).
    """
    image, target = sample
    width, height = size_of(image)
    boxes = tv_tensors.BoundingBoxes(
        torch.from_numpy(target["boxes"]), format="XYXY", canvas_size=(height, width)
    )
    tensors = {
        **target,
        "boxes": F.clamp_bounding_boxes(boxes),
        "labels": torch.from_numpy(target["labels"]),
    }
    return tv_tensors.Image(tensor_of(image)), tensors


def decoded(sample: Pair) -> Pair:
    """Run-length codes, where there are any, as masks (n, h, w) uint8 of the size of the image
    (C, h, w).
    """
    image, target = sample
    if "runs" not in target:
        return sample
    rest = {name: value for name, value in target.items() if name != "runs"}
    masks = torch.zeros((len(target["runs"]), *image.shape[-2:]), dtype=torch.uint8)
    if target["runs"]:
        masks = torch.from_numpy(pixels_of(target["runs"])).permute(2, 0, 1)
    return image, {**rest, "masks": tv_tensors.Mask(masks)}


class Both:
    """A transform of torchvision as a step that takes a pair: image (C, h, w), and its target."""

    def __init__(self, transform: Any) -> None:
        self.transform = transform

    def __call__(self, sample: Pair) -> Pair:
        moved: Pair = self.transform(*sample)
        return moved

    def __repr__(self) -> str:
        return repr(self.transform)


class Window:
    """A random window of `canvas` / s pixels, s drawn from `scale`, resized by s: torchvision's
    ScaleJitter and a crop, but masks outside are never decoded.

    The image (C, h, w) becomes (C, H', W') with H' and W' at most those of the canvas. Of an image
    that is smaller than the window all is taken; `Finished` fills it up.
    """

    def __init__(self, canvas: tuple[int, int], scale: tuple[float, float]) -> None:
        self.canvas, self.scale = canvas, scale

    def __call__(self, sample: Pair) -> Pair:
        image, target = sample
        factor = random.uniform(*self.scale)
        sizes = [
            min(full, round(side / factor))
            for full, side in zip(image.shape[-2:], self.canvas, strict=True)
        ]
        top, left = (
            random.randint(0, full - size)
            for full, size in zip(image.shape[-2:], sizes, strict=True)
        )
        low = torch.tensor([left, top])
        boxes = target["boxes"].as_subclass(Tensor)
        inside = ((boxes[:, 2:] > low) & (boxes[:, :2] < low + torch.tensor(sizes[::-1]))).all(1)
        sample = decoded((image, _chosen(target, inside)))
        sample = (
            F.crop(sample[0], top, left, *sizes),
            {name: _cropped(value, top, left, sizes) for name, value in sample[1].items()},
        )
        target_size = [
            min(side, max(1, round(size * factor)))
            for side, size in zip(self.canvas, sizes, strict=True)
        ]
        return Both(v2.Resize(target_size, antialias=True))(sample)

    def __repr__(self) -> str:
        return f"Window({self.canvas}, scale={self.scale})"


class SizedCrop:
    """A crop whose sides are drawn from `low` to `high` pixels, as far as the image (C, h, w)
    reaches (DETR's RandomSizeCrop).
    """

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def __call__(self, sample: Pair) -> Pair:
        sides = [
            min(side, random.randint(min(self.low, side), min(self.high, side)))
            for side in sample[0].shape[-2:]
        ]
        return Both(v2.RandomCrop(sides))(sample)

    def __repr__(self) -> str:
        return f"SizedCrop({self.low}, {self.high})"


class Sometimes:
    """Steps that a share of the images (C, h, w) gets, each image with its target."""

    def __init__(self, share: float, *steps: Step) -> None:
        self.share, self.steps = share, steps

    def __call__(self, sample: Pair) -> Pair:
        for step in self.steps if random.random() < self.share else ():
            sample = step(sample)
        return sample

    def __repr__(self) -> str:
        return f"Sometimes({self.share}, {self.steps})"


def quarter_turn(sample: Pair) -> Pair:
    """The image (C, h, w) and its target turned by 0, 90, 180 or 270 degrees; 90 and 270 give
    (C, w, h).
    """
    turns = random.randrange(4)
    image, target = sample
    for _ in range(turns):  # transposed and mirrored: a turn to the left
        image, target = _turned(image), {name: _turned(value) for name, value in target.items()}
    return image, target


class Cleaned:
    """Objects of which less than a pixel is left go; boxes lie around what is left of the masks.

    Boxes (n, 4), labels (n,) and masks (n, h, w) become those of the m <= n objects that stay.
    """

    def __init__(self) -> None:
        self.sanitize = v2.SanitizeBoundingBoxes(min_size=1, labels_getter=_labels)

    def __call__(self, sample: Pair) -> Pair:
        # resizing may end a hair outside, which counts as no box
        rounded = {
            **sample[1],
            "boxes": F.clamp_bounding_boxes(sample[1]["boxes"]),
        }
        image, target = self.sanitize(sample[0], rounded)
        if "masks" not in target:
            return image, target
        target = _chosen(target, target["masks"].as_subclass(Tensor).bool().flatten(1).any(1))
        if len(target["masks"]):
            corners = masks_to_boxes(target["masks"].as_subclass(Tensor)) + torch.tensor([
                0.0,
                0.0,
                1.0,
                1.0,
            ])
            target["boxes"] = tv_tensors.wrap(corners, like=target["boxes"])
        return image, target

    def __repr__(self) -> str:
        return "Cleaned()"


class Finished:
    """Pixels scaled to 0..1 and normalised, filled up to the canvas with zeros (the mean colour),
    plain tensors, and a key that the loss draws from.

    The image is (C, H, W) of the canvas, or (C, h, w) without one. Boxes (n, 4) are corners in
    pixels, labels (n,), masks (n, H, W) like the image, the key a whole number ().
    """

    def __init__(
        self, mean: Sequence[float], std: Sequence[float], canvas: tuple[int, int] | None
    ) -> None:
        self.mean, self.std, self.canvas = list(mean), list(std), canvas

    def __call__(self, sample: Pair) -> tuple[Tensor, dict[str, Tensor]]:
        image = F.normalize(
            scaled(sample[0].as_subclass(Tensor)), self.mean, self.std, inplace=True
        )
        target = {name: value.as_subclass(Tensor) for name, value in sample[1].items()}
        if self.canvas is not None:
            height, width = self.canvas
            fill = (0, width - image.shape[-1], 0, height - image.shape[-2])
            image = torch.nn.functional.pad(image, fill)
            if "masks" in target:
                target["masks"] = torch.nn.functional.pad(target["masks"], fill)
        return image, {**target, "key": torch.randint(KEYS, ())}

    def __repr__(self) -> str:
        return f"Finished({self.canvas})"


class Whole:
    """The image as (C, h, w) float32, normalised, of its own size, and no target."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self.normalised = Normalised(mean, std)

    def __call__(self, sample: tuple[Picture, Any]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.normalised(sample[0]), {}

    def __repr__(self) -> str:
        return "Whole()"


def _shortest_side(spec: DetectionSpec) -> list[Step]:
    def resized(sides: Sequence[int]) -> Step:
        return Both(v2.RandomShortestSize(list(sides), max_size=spec.longest))

    return [
        Sometimes(spec.crop_share, resized(CROP_AFTER), SizedCrop(*CROP_SIDES)),
        resized(spec.shortest),
    ]


def _labels(sample: Pair) -> Tensor:
    """Named, so that a data set can be pickled for a worker that is spawned."""
    labels: Tensor = sample[1]["labels"]
    return labels


def _chosen(target: Mapping[str, Any], selected: Tensor) -> dict[str, Any]:
    """The objects that are kept, of each kind of entry."""
    return {name: _of(value, selected) for name, value in target.items()}


def _of(value: Any, selected: Tensor) -> Any:
    if isinstance(value, list):
        return [entry for entry, keep in zip(value, selected.tolist(), strict=True) if keep]
    return (
        tv_tensors.wrap(value[selected], like=value)
        if isinstance(value, tv_tensors.TVTensor)
        else value[selected]
    )


def _cropped(value: Any, top: int, left: int, sizes: Sequence[int]) -> Any:
    return F.crop(value, top, left, *sizes) if isinstance(value, tv_tensors.TVTensor) else value


def _turned(value: Any) -> Any:
    return F.rotate(value, 90, expand=True) if isinstance(value, tv_tensors.TVTensor) else value
