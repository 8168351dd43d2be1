"""Detectors on any host: torchvision's Mask R-CNN, Faster R-CNN and RetinaNet over a feature
pyramid of `Features`.

    images -> Features (strides 4, 8, 16, 32) -> FPN (Lin et al., arXiv:1612.03144) -> heads

Mask R-CNN: He et al., arXiv:1703.06870, on P2 to P6; RetinaNet: Lin et al., arXiv:1708.02002, on P3
to P7, P6 and P7 from the host's last map.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.retinanet import RetinaNetHead
from torchvision.models.detection.roi_heads import expand_boxes, expand_masks, paste_mask_in_image
from torchvision.models.detection.transform import GeneralizedRCNNTransform, resize_boxes
from torchvision.ops.feature_pyramid_network import (
    FeaturePyramidNetwork,
    LastLevelMaxPool,
    LastLevelP6P7,
)

from softless.errors import UsageError, unknown
from softless.models.features import Features, pad

HEADS = ("maskrcnn", "fasterrcnn", "retinanet")
ANCHORS = (32, 64, 128, 256, 512)  # sides in pixels, one for each of the pyramid's five maps
RATIOS = (0.5, 1.0, 2.0)
OCTAVE = (1.0, 2 ** (1 / 3), 2 ** (2 / 3))  # RetinaNet has three sizes for each map
POOLED = 7  # side of what the box head sees of a region
LONGEST = 1333

# boxes (n, 4) as corners, labels (n,) from 0, masks (n, h, w) where the head has them, key ()
Target = Mapping[str, Tensor]


def detector(
    architecture: str,
    model_args: Mapping[str, Any],
    *,
    classes: int,
    head: str = "maskrcnn",
    layers: Sequence[int] | None = None,
    width: int = 256,
    norm: str = "none",
    anchors: Sequence[float] | None = None,
    proposals: int = 1000,
    regions: int = 512,
    detections: int = 100,
    min_score: float = 0.05,
    min_size: int | None = 800,
    max_size: int = LONGEST,
    categories: Sequence[int] | None = None,
) -> "Detector":
    """A detector on a host.

    Args:
        architecture: a registered model or a host.
        model_args: further arguments of `create_model`, among them `op` and `in_chans`.
        classes: objects' classes, without a background.
        head: "maskrcnn", "fasterrcnn" or "retinanet".
        layers: for hosts of one grid, the four layers (from 1) whose tokens are taken.
        width: of pyramid and heads; the box head's hidden layers have four times as many.
        norm: "none", or "group" for GroupNorm with eight channels a group in pyramid and
            convolutional heads.
        anchors: sides in pixels of the five maps' anchors, 32 to 512 by default.
        proposals: regions kept of an image after the first stage in evaluation; twice as many in
            training.
        regions: of them, those that the second stage learns from.
        detections: the most that are answered for an image.
        min_score: answers below it are left out.
        min_size: in evaluation, images are resized to this shorter side; None leaves them as they
            are.
        max_size: but not beyond this longer side.
        categories: what COCO's files call the classes, in order; 1, 2, … by default.

    Raises:
        UsageError: a head that does not exist, a host without maps, sizes that do not fit.
    """
    if head not in HEADS:
        raise unknown("detection head", head, HEADS)
    if norm not in {"none", "group"}:
        raise unknown("norm of detection heads", norm, ("none", "group"))
    sides = tuple(anchors or ANCHORS)
    if len(sides) != len(ANCHORS) or min(sides) <= 0:
        raise UsageError(
            f"anchors={sides}: give five positive sides in pixels, one for each map of the pyramid"
        )
    norm_layer = None if norm == "none" else _groups
    backbone = Backbone(
        Features(architecture, model_args, layers),
        width,
        norm_layer,
        strides_from_8=head == "retinanet",
    )
    if head == "retinanet":
        net = _retinanet(
            backbone,
            classes,
            width,
            norm_layer,
            sides,
            {"detections_per_img": detections, "score_thresh": min_score},
        )
    else:
        net = _rcnn(
            backbone,
            classes,
            width,
            norm_layer,
            sides,
            masks=head == "maskrcnn",
            limits={
                "rpn_pre_nms_top_n_train": 2 * proposals,
                "rpn_post_nms_top_n_train": 2 * proposals,
                "rpn_pre_nms_top_n_test": proposals,
                "rpn_post_nms_top_n_test": proposals,
                "box_batch_size_per_image": regions,
                "box_detections_per_img": detections,
                "box_score_thresh": min_score,
            },
        )
    net.transform = EvaluationSizes(min_size, max_size, max(32, backbone.features.divisor))
    return Detector(net, tuple(categories or range(1, classes + 1)))


class Detector(nn.Module):
    """Images to boxes, classes, scores and masks.

    Args:
        net: torchvision's.
        categories: what COCO's files call the classes, in order.
    """

    def __init__(self, net: Any, categories: tuple[int, ...]) -> None:
        super().__init__()
        self.net, self.categories = net, categories
        # torchvision's R-CNN counts one before the classes
        self.background = 0 if isinstance(net, RetinaNet) else 1
        for predictor in _predictors(net):
            predictor.register_forward_hook(_in_float32)

    @property
    def host(self) -> nn.Module:
        """The timm model under the pyramid, which a classifier's weights can start."""
        host: nn.Module = self.features.host
        return host

    @property
    def features(self) -> Features:
        """The host with its adapters."""
        features: Features = self.net.backbone.features
        return features

    def framed(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """Images of one size (B, C, h, w) as the host sees them: in evaluation resized, then filled
        up at the right and below.
        """
        net: Any = self.net
        framed: Tensor = net.transform(list(images))[0].tensors
        return framed

    def seen_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to which an image of so many pixels is resized in evaluation."""
        sizes: Any = self.net.transform
        if sizes.as_given:
            return height, width
        factor = min(sizes.min_size[-1] / min(height, width), sizes.max_size / max(height, width))
        return int(factor * height), int(factor * width)

    @property
    def masks(self) -> bool:
        """Whether it answers with masks too."""
        return isinstance(self.net, MaskRCNN)

    @property
    def not_counted(self) -> str:
        """What `counted` lacks, for whoever reads a count."""
        return (
            ""
            if isinstance(self.net, RetinaNet)
            else "what the box and mask heads do for each region, which depends on the image"
        )

    @property
    def counted(self) -> nn.Module:
        """The part whose work an image's size decides: host, pyramid and the head that looks
        everywhere, without what R-CNN does for each region.
        """
        head = self.net.head if isinstance(self.net, RetinaNet) else self.net.rpn.head
        return Everywhere(self.net.backbone, head, self.net.transform.size_divisible)

    def forward(self, images: Sequence[Tensor] | Tensor) -> list[dict[str, Tensor]]:
        """For each normalised image (C, h, w) its boxes (n, 4) as corners in its own pixels, labels
        (n,) from 0, scores (n,), and masks (n, h, w) bool.

        Each image runs by itself: padding to a batch mate's size would be seen by attention that is
        global.
        """
        answers = [self.net([image])[0] for image in images]
        return [{**answer, "labels": answer["labels"] - self.background} for answer in answers]

    def loss(self, images: Sequence[Tensor], targets: Sequence[Target]) -> Tensor:
        """The mean over the images of their losses (), of a model in training.

        Images of several sizes are padded at the right and below to the largest. What the two
        stages of R-CNN draw (anchors and regions to learn from) is seeded by each image's `key`,
        and each image's loss is divided by its own counts. Torchvision divides the masks' by those
        of the batch.
        """
        batch, sizes = self._together(images)
        maps = self.net.backbone(batch)
        counted_targets = [
            {**target, "labels": target["labels"] + self.background} for target in targets
        ]
        if isinstance(self.net, RetinaNet):
            return self._retinanet_loss(batch, sizes, list(maps.values()), counted_targets)
        parts = []
        for index, target in enumerate(counted_targets):
            with _seeded(int(target["key"]), batch.device):
                mine = {name: map_[index : index + 1] for name, map_ in maps.items()}
                parts.append(self._rcnn_loss(batch[index : index + 1], sizes[index], mine, target))
        return torch.stack(parts).mean()

    def _together(self, images: Sequence[Tensor]) -> tuple[Tensor, list[tuple[int, int]]]:
        sizes = [(int(image.shape[-2]), int(image.shape[-1])) for image in images]
        return self.net.transform.batch_images(
            list(images), self.net.transform.size_divisible
        ), sizes

    def _rcnn_loss(
        self, image: Tensor, size: tuple[int, int], maps: dict[str, Tensor], target: Target
    ) -> Tensor:
        net, listed = self.net, ImageList(image, [size])
        regions, first = net.rpn(listed, maps, [target])
        _, second = net.roi_heads(maps, regions, [size], [target])
        return torch.stack([*first.values(), *second.values()]).sum()

    def _retinanet_loss(
        self,
        batch: Tensor,
        sizes: list[tuple[int, int]],
        maps: list[Tensor],
        targets: list[dict[str, Tensor]],
    ) -> Tensor:
        net = self.net
        parts = net.compute_loss(
            targets, net.head(maps), net.anchor_generator(ImageList(batch, sizes), maps)
        )
        return torch.stack(list(parts.values())).sum()


class Backbone(nn.Module):
    """Host and pyramid, in the form torchvision's detectors take: images to named maps of one
    width.

    Args:
        features: the host's maps.
        width: of the pyramid.
        norm_layer: of the pyramid; None for none.
        strides_from_8: RetinaNet's maps, P3 to P7; else P2 to P6.
    """

    def __init__(
        self, features: Features, width: int, norm_layer: Any, *, strides_from_8: bool
    ) -> None:
        super().__init__()
        self.features, self.out_channels, self.first = features, width, int(strides_from_8)
        channels = list(features.channels)
        extra: Any = LastLevelMaxPool()
        if strides_from_8:
            features.adapters[0] = nn.Identity()  # nobody reads the map of stride 4
            extra = P6P7(channels[-1], width)
        self.fpn = FeaturePyramidNetwork(
            channels[self.first :], width, extra, norm_layer=norm_layer
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Images (B, C, h, w) -> five maps by name, (B, width, h / s, w / s) each."""
        maps = self.features(images)[self.first :]
        pyramid: dict[str, Tensor] = self.fpn(
            OrderedDict((str(index), map_) for index, map_ in enumerate(maps))
        )
        return pyramid


class Everywhere(nn.Module):
    """Images (B, C, h, w) to what a head says at all places of the pyramid."""

    def __init__(self, backbone: Backbone, head: nn.Module, divisor: int) -> None:
        super().__init__()
        self.backbone, self.head, self.divisor = backbone, head, divisor

    def forward(self, images: Tensor) -> Any:
        """Images (B, C, h, w), padded to multiples of the divisor -> what the head answers."""
        return self.head(list(self.backbone(pad(images, self.divisor)).values()))


class P6P7(LastLevelP6P7):
    """RetinaNet's two coarsest maps, from the host's last one and in float32.

    In bfloat16 the gradient of a kernel of side 3 and stride 2 on a map of one pixel holds what was
    in memory before (oneDNN of torch 2.15).
    """

    def forward(
        self, p: list[Tensor], c: list[Tensor], names: list[str]
    ) -> tuple[list[Tensor], list[str]]:
        """The maps p and c, of which the last of c (B, C, h, w) is read -> p with two more."""
        self.use_P5 = False
        with torch.autocast(c[-1].device.type, enabled=False):
            maps: tuple[list[Tensor], list[str]] = super().forward(p, [c[-1].float()], names)
        return maps


class EvaluationSizes(GeneralizedRCNNTransform):
    """torchvision's resizing in evaluation and back, of images that come normalised; masks become
    bool at once, as 300 of floats at 1,024 pixels are 1.3 GB.

    Args:
        min_size: the shorter side; None leaves images as they are.
        max_size: the longer side at most.
        divisor: sides are padded to multiples of it.
    """

    def __init__(self, min_size: int | None, max_size: int, divisor: int) -> None:
        super().__init__(min_size or max_size, max_size, [], [], size_divisible=divisor)
        self.as_given = min_size is None

    def normalize(self, image: Tensor) -> Tensor:
        """An image (C, h, w) as it is: it comes normalised."""
        return image

    def resize(self, image: Tensor, target: Any = None) -> tuple[Tensor, Any]:
        """An image (C, h, w), with its target, at the size of evaluation."""
        if self.as_given:
            return image, target
        resized: tuple[Tensor, Any] = super().resize(image, target)
        return resized

    def postprocess(
        self,
        result: list[dict[str, Tensor]],
        image_shapes: list[tuple[int, int]],
        original_image_sizes: list[tuple[int, int]],
    ) -> list[dict[str, Tensor]]:
        """Answers in the pixels of the original images: boxes (n, 4), masks (n, h, w) bool."""
        for answer, framed_size, size in zip(
            result, image_shapes, original_image_sizes, strict=True
        ):
            answer["boxes"] = resize_boxes(answer["boxes"], framed_size, size)
            if "masks" in answer:
                answer["masks"] = pasted(answer["masks"], answer["boxes"], size)
        return result


def pasted(masks: Tensor, boxes: Tensor, size: tuple[int, int]) -> Tensor:
    """Probabilities (n, 1, 28, 28) in boxes as masks (n, h, w) of the image."""
    pasted = torch.zeros((len(masks), *size), dtype=torch.bool, device=masks.device)
    larger, scale = expand_masks(masks, padding=1)
    for index, (mask, box) in enumerate(
        zip(larger, expand_boxes(boxes, scale).long(), strict=True)
    ):
        pasted[index] = paste_mask_in_image(mask[0], box, *size) > 0.5
    return pasted


def parameter_parts(model: Detector) -> dict[str, int]:
    """How many parameters each part of a detector has."""
    net = model.net
    parts: dict[str, nn.Module] = {
        "host": model.host,
        "adapters": net.backbone.features.adapters,
        "pyramid": net.backbone.fpn,
    }
    if isinstance(net, RetinaNet):
        parts |= {"class head": net.head.classification_head, "box head": net.head.regression_head}
    else:
        heads = net.roi_heads
        parts |= {
            "region proposals": net.rpn,
            "box head": heads.box_head,
            "box predictor": heads.box_predictor,
        }
        parts |= (
            {"mask head": nn.ModuleList([heads.mask_head, heads.mask_predictor])}
            if heads.has_mask()
            else {}
        )
    return {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in parts.items()
    }


def _rcnn(
    backbone: Backbone,
    classes: int,
    width: int,
    norm_layer: Any,
    sides: Sequence[float],
    *,
    masks: bool,
    limits: dict[str, Any],
) -> Any:
    hidden, outputs = 4 * width, classes + 1
    parts: dict[str, Any] = {
        "rpn_anchor_generator": AnchorGenerator(
            tuple((side,) for side in sides), (RATIOS,) * len(sides)
        ),
        "box_head": TwoMLPHead(width * POOLED**2, hidden),
        "box_predictor": FastRCNNPredictor(hidden, outputs),
    }
    if not masks:
        return FasterRCNN(backbone, **parts, **limits)
    parts |= {
        "mask_head": MaskRCNNHeads(width, (width,) * 4, 1, norm_layer=norm_layer),
        "mask_predictor": MaskRCNNPredictor(width, width, outputs),
    }
    return MaskRCNN(backbone, **parts, **limits)


def _retinanet(
    backbone: Backbone,
    classes: int,
    width: int,
    norm_layer: Any,
    sides: Sequence[float],
    limits: dict[str, Any],
) -> Any:
    sizes = tuple(tuple(side * step for step in OCTAVE) for side in sides)
    anchors = AnchorGenerator(sizes, (RATIOS,) * len(sides))
    head = RetinaNetHead(width, len(OCTAVE) * len(RATIOS), classes, norm_layer=norm_layer)
    return RetinaNet(backbone, classes, anchor_generator=anchors, head=head, **limits)


def _groups(channels: int) -> nn.Module:
    return nn.GroupNorm(channels // 8, channels)


def _predictors(net: Any) -> list[nn.Module]:
    """Whose outputs become coordinates and scores."""
    if isinstance(net, RetinaNet):
        return [net.head]
    heads = net.roi_heads
    return [
        net.rpn.head,
        heads.box_predictor,
        *([heads.mask_predictor] if heads.has_mask() else []),
    ]


def _in_float32(module: nn.Module, _: Any, output: Any) -> Any:
    """Under autocast, offsets of boxes would carry anchors down to 8 bits: two pixels at 500."""
    if isinstance(output, Tensor):
        return output.float()
    if isinstance(output, dict):
        return {name: _in_float32(module, _, value) for name, value in output.items()}
    return type(output)(_in_float32(module, _, value) for value in output)


@contextmanager
def _seeded(key: int, device: torch.device) -> Iterator[None]:
    """A stretch in which torch draws from a key; its generators are as before afterwards."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(key)
        yield


WITH_HEAD = detector
