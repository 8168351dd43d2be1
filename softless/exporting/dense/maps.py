"""The modules that are recorded of detectors and segmenters."""

# B images, C channels, R regions, K classes, A anchors of a cell

from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import RetinaNet

from softless.attention.inverse import by_newton
from softless.exporting.dense.decoding import BOXES, LEVELS, MASKS, READ
from softless.models.features import pad
from softless.tasks.detection.model import Detector
from softless.tasks.segmentation.model import Segmenter


class DetectorMaps(nn.Module):
    """Images (B, C, h, w) to what a detector says at every place: of five maps the scores
    (B, A K, h_i, w_i), of five the offsets (B, 4 A, h_i, w_i), and where regions are looked at
    again the four maps that they are read from.

    Args:
        model: the detector.
        pads: whether images are filled up to the grid in here; else they lie on it.
    """

    def __init__(self, model: Detector, *, pads: bool) -> None:
        super().__init__()
        net: Any = model.net
        self.backbone, self.pads = net.backbone, pads
        self.divisor = int(net.transform.size_divisible)
        self.one_stage = isinstance(net, RetinaNet)
        self.head = net.head if self.one_stage else net.rpn.head

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it answers, in order; the finest map is 0."""
        further = () if self.one_stage else tuple(f"map_{level}" for level in range(READ))
        scores, offsets = (
            tuple(f"{name}_{level}" for level in range(LEVELS)) for name in ("scores", "offsets")
        )
        return (*scores, *offsets, *further)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Images (B, C, h, w) -> the maps, in the order of `outputs`."""
        images = pad(images, self.divisor) if self.pads else images
        maps = list(self.backbone(images).values())
        if not self.one_stage:
            scores, offsets = self.head(maps)
            return (*scores, *offsets, *maps[:READ])
        classes, sides = self.head.classification_head, self.head.regression_head
        return (
            *(classes.cls_logits(classes.conv(map_)) for map_ in maps),
            *(sides.bbox_reg(sides.conv(map_)) for map_ in maps),
        )


class RegionBoxes(nn.Module):
    """Regions (R, C, 7, 7) to logits (R, K + 1), the first of no class, and offsets
    (R, 4 (K + 1)).
    """

    outputs = ("logits", "offsets")

    def __init__(self, heads: Any) -> None:
        super().__init__()
        self.head, self.predictor = heads.box_head, heads.box_predictor

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Regions (R, C, 7, 7) -> logits (R, K + 1) and offsets (R, 4 (K + 1))."""
        logits, offsets = self.predictor(self.head(regions))
        return logits, offsets


class RegionMasks(nn.Module):
    """Regions (R, C, 14, 14) to logits of their pixels for each class (R, K + 1, 28, 28)."""

    outputs = ("masks",)

    def __init__(self, heads: Any) -> None:
        super().__init__()
        self.head, self.predictor = heads.mask_head, heads.mask_predictor

    def forward(self, regions: Tensor) -> Tensor:
        """Regions (R, C, 14, 14) -> logits (R, K + 1, 28, 28)."""
        masks: Tensor = self.predictor(self.head(regions))
        return masks


def later_stages(model: Detector) -> dict[str, nn.Module]:
    """The graphs behind the first of a detector's two stages, by name; none of RetinaNet."""
    if isinstance(model.net, RetinaNet):
        return {}
    heads: Any = model.net.roi_heads
    boxes = {BOXES: RegionBoxes(heads)}
    return {**boxes, MASKS: RegionMasks(heads)} if heads.has_mask() else {**boxes}


class Stepped(nn.Module):
    """A module whose inverses take so many of Newton's steps: SOFT's, where a graph holds no other
    way.
    """

    def __init__(self, module: nn.Module, steps: int) -> None:
        super().__init__()
        self.module, self.steps = module, steps

    def forward(self, images: Tensor) -> Any:
        """Images (B, C, h, w) -> what the module answers."""
        with by_newton(self.steps):
            return self.module(images)


class OnGrid(nn.Module):
    """Images (B, C, h, w) on the grid of a segmenter to logits (B, K, h, w): nothing is filled up
    in here, so that the graph holds for any such size.
    """

    def __init__(self, model: Segmenter) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, h, w) -> logits (B, K, h, w)."""
        logits: Tensor = self.model.head(self.model.decode(self.model.features(images)))
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)
