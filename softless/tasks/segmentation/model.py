"""Segmenters: four maps of any host, and a decoder of segmentation-models-pytorch on them.

    upernet   Xiao et al., arXiv:1807.10221: pooled pyramid and FPN over strides 4 to 32; logits at
              stride 4. One-grid hosts get their strides by the adapters of `features` (a simple
              pyramid).
    dpt       Ranftl et al., arXiv:2103.13413: tokens of four layers, reassembled and fused from
              coarse to fine; logits at stride 2, which thin structures need. It takes the tokens
              themselves, so no adapters stand before it.

Where a decoder has BatchNorm, GroupNorm stands here: a batch is one or a few whole images, so that
a channel pooled to 1 x 1 has no variance over it, and an image's answer would depend on its batch
mates. The number of parameters is the same.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from softless.errors import UsageError, need, unknown
from softless.models.features import STRIDES, Features, pad

DECODERS = ("upernet", "dpt")
WIDTH = 256  # of the decoder, as in smp and DPT


class Segmenter(nn.Module):
    """Images (B, C, h, w) of any size to logits (B, classes, h, w) of each pixel.

    Images are padded at the right and below to multiples of `divisor`; logits are brought to their
    size bilinearly, and the padding's are cut off.

    Args:
        features: the host.
        decoder: a name of `DECODERS`.
        classes: number of logits per pixel.
        width: channels of the decoder.
        values: what label images call the classes, in index order; None is 0, 1, …
    """

    def __init__(
        self,
        features: Features,
        decoder: str,
        classes: int,
        width: int = WIDTH,
        values: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if decoder not in DECODERS:
            raise unknown("decoder", decoder, DECODERS)
        if width < 4 or width % 4:
            raise UsageError(
                f"a decoder of width {width}: its channels are normalised in groups, so give a "
                "multiple of 4"
            )
        if values is not None and len(values) != classes:
            raise UsageError(
                f"{len(values)} label values for {classes} classes: each class has one"
            )
        self.features = features
        self.values = tuple(range(classes)) if values is None else tuple(values)
        self.decoder, self.head = (_upernet if decoder == "upernet" else _dpt)(
            features, classes, width
        )
        grouped(self.decoder)
        grouped(self.head)
        self.needs_prefix = decoder == "dpt"
        self.divisor = (
            features.divisor if decoder == "upernet" else max(features.divisor, STRIDES[-1])
        )

    @property
    def host(self) -> nn.Module:
        """The timm model that sees the images."""
        return self.features.host

    def framed(self, images: Tensor) -> Tensor:
        """Images (B, C, h, w) as the host sees them: filled up at the right and below."""
        return pad(images, self.divisor if min(images.shape[-2:]) > STRIDES[-1] else STRIDES[-1])

    def forward(self, images: Tensor) -> Tensor:
        """Images (B, C, h, w) -> logits (B, classes, h, w)."""
        height, width = images.shape[-2:]
        padded = self.framed(images)
        logits = self.head(self.decode(self.features(padded)))
        if logits.shape[-2:] != padded.shape[-2:]:
            logits = F.interpolate(
                logits, size=padded.shape[-2:], mode="bilinear", align_corners=False
            )
        return logits[..., :height, :width]

    def decode(self, maps: list[Tensor]) -> Tensor:
        """Maps (B, C_i, h_i, w_i) of the host to one map (B, C, h', w'), which the head reads."""
        fused: Tensor = (
            self.decoder(maps, [None] * len(maps))
            if self.needs_prefix
            else self.decoder([None, None, *maps])
        )
        return fused

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Keep less of the host for the backward pass, and compute it again."""
        host: Any = self.host
        host.set_grad_checkpointing(enable)


def segmenter(
    architecture: str,
    model_args: Mapping[str, Any],
    *,
    classes: int,
    decoder: str = "upernet",
    layers: Sequence[int] | None = None,
    width: int = WIDTH,
    values: Sequence[int] | None = None,
) -> Segmenter:
    """A segmenter by names.

    Args:
        architecture: a registered model or a host.
        model_args: further arguments of `create_model`, among them `op`.
        classes: number of logits per pixel.
        decoder: "upernet", or "dpt".
        layers: for hosts of one grid, the four layers (counted from 1) whose tokens are taken; None
            takes 1/3, 1/2, 2/3 and all of them.
        width: channels of the decoder.
        values: what label images call the classes, in index order; None is 0, 1, …

    Raises:
        UsageError: no such decoder, or a host without maps.
        MissingExtra: segmentation-models-pytorch is not installed.
    """
    return Segmenter(Features(architecture, model_args, layers), decoder, classes, width, values)


def parameter_parts(model: Segmenter) -> dict[str, int]:
    """How many parameters each part of a segmenter has."""
    parts = {
        "host": model.host,
        "adapters": model.features.adapters,
        "decoder": model.decoder,
        "classes": model.head,
    }
    return {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in parts.items()
    }


def grouped(module: nn.Module) -> None:
    """Put GroupNorm of up to 32 groups into the place of each BatchNorm2d, in place."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            groups = next(
                groups
                for groups in (32, 16, 8, 4, 2, 1)
                if child.num_features % (2 * groups) == 0 or groups == 1
            )
            setattr(module, name, nn.GroupNorm(groups, child.num_features))
        else:
            grouped(child)


def _upernet(features: Features, classes: int, width: int) -> tuple[nn.Module, nn.Module]:
    need("segmentation_models_pytorch")
    from segmentation_models_pytorch.decoders.upernet.decoder import UPerNetDecoder

    decoder = UPerNetDecoder(
        (0, 0, *features.channels), encoder_depth=len(STRIDES) + 1, decoder_channels=width
    )
    return decoder, nn.Conv2d(width, classes, kernel_size=1)


def _dpt(features: Features, classes: int, width: int) -> tuple[nn.Module, nn.Module]:
    """DPT reassembles tokens to strides by itself, so that the maps come to it as the host gives
    them.
    """
    need("segmentation_models_pytorch")
    from segmentation_models_pytorch.decoders.dpt.decoder import DPTDecoder, DPTSegmentationHead

    features.adapters = nn.ModuleList(nn.Identity() for _ in STRIDES)
    strides = [
        features.divisor if features.one_grid else min(stride, features.divisor)
        for stride in STRIDES
    ]
    decoder = DPTDecoder(
        encoder_out_channels=features.channels,
        encoder_output_strides=strides,
        encoder_has_prefix_tokens=False,
        readout="ignore",
        intermediate_channels=[width * share for share in (1, 2, 4, 4)],
        fusion_channels=width,
    )
    head = DPTSegmentationHead(width, classes, upsampling=1.0)
    for module in head.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # what it drops would depend on the number of processes
    return decoder, head


WITH_HEAD = segmenter
