"""Four maps at strides 4, 8, 16 and 32 from any host: what detection and segmentation heads are
built on.

Hosts whose stages halve the grid (SOFT, CvT, PVTv2, Swin, …) give the maps they have. Hosts of one
grid (ViT, XCiT) give their tokens after four layers, 4, 6, 8 and 12 of 12, each brought to its
stride by an adapter: two transposed convolutions with BN and GELU between them (x4), one (x2),
nothing (x1), or max-pooling. El-Nouby et al., XCiT, arXiv:2106.09681, detection; the same in SimA,
arXiv:2206.08898, section 4.2.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from softless.errors import UsageError
from softless.models.create import create_model
from softless.models.hosts import class_token_unread
from softless.models.options import activation

STRIDES = (4, 8, 16, 32)
NOT_THE_HOSTS = ("num_classes", "global_pool")


class Features(nn.Module):
    """Images (B, C, h, w), h and w multiples of `divisor`, to four maps (B, channels[i], h / 4, w /
    4), …, (B, channels[3], h / 32, w / 32), floored.

    Args:
        architecture: a registered model or a host.
        model_args: further arguments of `create_model`, among them `op`.
        layers: for hosts of one grid, the four layers (counted from 1) whose tokens are taken; None
            takes 1/3, 1/2, 2/3 and all of them.

    Raises:
        UsageError: a host without maps, or layers that it does not have.
    """

    def __init__(
        self, architecture: str, model_args: Mapping[str, Any], layers: Sequence[int] | None = None
    ) -> None:
        super().__init__()
        arguments = {name: value for name, value in model_args.items() if name not in NOT_THE_HOSTS}
        host: Any = create_model(architecture, num_classes=0, **arguments)
        if not hasattr(host, "forward_intermediates") or not getattr(host, "feature_info", None):
            raise UsageError(
                f"'{architecture}' gives no maps of its layers, so nothing can be detected or "
                "segmented on it: choose a ViT, XCiT, CvT, SOFT or "
                "another timm model with forward_intermediates"
            )
        feature_maps = [(int(info["reduction"]), int(info["num_chs"])) for info in _infos(host)]
        self.one_grid = len({reduction for reduction, _ in feature_maps}) == 1
        if self.one_grid:
            self.indices = _layers(architecture, len(feature_maps), layers)
        else:
            if layers is not None:
                raise UsageError(
                    f"'{architecture}' has stages of its own: layers={tuple(layers)} is for hosts "
                    "of one grid"
                )
            last = {reduction: index for index, (reduction, _) in enumerate(feature_maps)}
            self.indices = [last[stride] for stride in sorted(last) if stride in STRIDES]
            if feature_maps[self.indices[0]][0] != STRIDES[0] or not 3 <= len(self.indices) <= 4:
                raise UsageError(
                    f"'{architecture}' has maps at strides {sorted(last)}: heads are built on 4, "
                    "8, 16 and 32, of which the last may be missing"
                )
        act = activation(arguments.get("act") or "gelu")
        chosen = [feature_maps[index] for index in self.indices]
        self.channels = tuple(width for _, width in chosen) + (chosen[-1][1],) * (
            len(STRIDES) - len(chosen)
        )
        self.divisor = max(reduction for reduction, _ in chosen)
        self.host = cut_behind(host, self.indices)
        reductions = [reduction for reduction, _ in chosen] + [chosen[-1][0]] * (
            len(STRIDES) - len(chosen)
        )
        self.adapters = nn.ModuleList(
            adapter(width, reduction, stride, act)
            for width, reduction, stride in zip(self.channels, reductions, STRIDES, strict=True)
        )

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images (B, C, h, w) -> four maps (B, channels[i], h / s, w / s), s of `STRIDES`."""
        maps = list(
            self.host.forward_intermediates(images, indices=self.indices, intermediates_only=True)
        )
        maps += [maps[-1]] * (len(STRIDES) - len(maps))
        return [adapt(map_) for adapt, map_ in zip(self.adapters, maps, strict=True)]


def cut_behind(host: Any, indices: list[int]) -> Any:
    """A host without what no map of these layers needs, in place."""
    if hasattr(host, "prune_intermediate_layers"):
        host.prune_intermediate_layers(indices, prune_norm=True, prune_head=True)
    if class_token_unread(host):
        host.cls_token = None  # timm below 1.0.31 leaves it there
    return host


def without_cut_parts(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state without what no map of this model needs: a run of another timm may have kept it."""
    places = [
        name
        for name, module in model.named_modules()
        if isinstance(module, Features) and getattr(module.host, "cls_token", None) is None
    ]
    cut = {f"{path}.host.cls_token".lstrip(".") for path in places}
    return {name: tensor for name, tensor in state.items() if name not in cut}


def adapter(width: int, reduction: int, stride: int, act: type[nn.Module]) -> nn.Module:
    """A map of one token per `reduction` pixels as one of `stride`."""
    layers: list[nn.Module] = []
    while reduction > stride:
        if layers:
            layers += [nn.BatchNorm2d(width), act()]
        layers.append(nn.ConvTranspose2d(width, width, kernel_size=2, stride=2))
        reduction //= 2
    while reduction < stride:
        layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
        reduction *= 2
    return nn.Sequential(*layers) if layers else nn.Identity()


def pad(images: Tensor, divisor: int) -> Tensor:
    """Images (B, C, h, w) with zeros at the right and below up to multiples of the divisor:
    normalised pixels, so the mean colour.
    """
    height, width = images.shape[-2:]
    return (
        F.pad(images, (0, -width % divisor, 0, -height % divisor))
        if height % divisor or width % divisor
        else images
    )


def _infos(host: Any) -> Sequence[Mapping[str, Any]]:
    info = host.feature_info
    return list(info) if isinstance(info, list | tuple) else list(info.get_dicts())


def _layers(architecture: str, depth: int, layers: Sequence[int] | None) -> list[int]:
    if layers is None:
        if depth < 4:
            raise UsageError(
                f"'{architecture}' has {depth} layers, and four maps are taken from four of them: "
                "choose a deeper one"
            )
        layers = [round(depth / 3), round(depth / 2), round(2 * depth / 3), depth]
    if (
        len(layers) != len(STRIDES)
        or sorted(set(layers)) != list(layers)
        or not 1 <= layers[0] <= layers[-1] <= depth
    ):
        raise UsageError(
            f"layers={tuple(layers)}: give four rising numbers of the {depth} layers of "
            f"'{architecture}'"
        )
    return [layer - 1 for layer in layers]
