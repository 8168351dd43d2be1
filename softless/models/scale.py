"""How large an image is for a model, in pixels and tokens, beside what the model was trained at.

A model learns among so many tokens. Among many more or many fewer its attention sums are others
than any that it learnt from, whatever the operator. SimA's branch in the paper's scale shrinks
besides as tokens are added (docs/results.md). So a size that is far away is said.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from softless.attention.checks import check_options
from softless.errors import UsageError
from softless.layers.attention import Attention
from softless.layers.class_attention import ClassAttention
from softless.modes import evaluating

FOREIGN = 4.0  # times as many tokens as in training, or as few, beyond which a size is foreign
APART = 1.25  # times another resolution, beyond which it is said
TRAINING = "training"  # as a size, or as a token_scale: that of the training
OPTION = "token_scale"


@dataclass(frozen=True)
class Scale:
    """An image for a model: its size in pixels, and its tokens on the finest grid."""

    height: int
    width: int
    tokens: int
    mpp: float | None = None  # micrometres per pixel, where somebody said so

    def __str__(self) -> str:
        return f"{self.tokens:,} tokens ({self.width:,} x {self.height:,} pixels)"

    def to_dict(self) -> dict[str, Any]:
        return {"pixels": [self.height, self.width], "tokens": self.tokens}


@dataclass(frozen=True)
class Foreign:
    """An image whose number of tokens is far from that of the training."""

    image: Scale
    trained: Scale
    rescales: bool  # token_scale would keep the size of the attention's branch

    @property
    def factor(self) -> float:
        """Tokens of the image over those of the training."""
        return self.image.tokens / self.trained.tokens

    def to_dict(self) -> dict[str, Any]:
        return {
            "image": self.image.to_dict(),
            "trained": self.trained.to_dict(),
            "factor": self.factor,
        }

    def __str__(self) -> str:
        times = f"{self.factor:,.3g}" if self.factor < 1000 else f"{self.factor:,.0f}"
        return (
            f"this image has {self.image}, {times} times the {self.trained} of the training. "
            "Answers so far from it are often wrong"
        )

    def advice(self) -> str:
        """The sentence with the ways out that `slide`, `explain` and `stream` have."""
        way_out = (
            " --token-scale training keeps the attention as strong as it was in training."
            if self.rescales
            else ""
        )
        return (
            f"{self}. --resize training (resize='training' in Python) brings the image to the "
            f"training's number of tokens.{way_out}"
        )


def scale_of(model: Any, height: int, width: int) -> Scale | None:
    """An image of so many pixels for a model, as its host sees it; None for a model without
    attention.

    Of a detector that resizes images, the size to which it does.
    """
    if hasattr(model, "seen_size"):
        height, width = model.seen_size(height, width)
    side = token_side(getattr(model, "host", model))
    return (
        None
        if side is None
        else Scale(height, width, math.ceil(height / side) * math.ceil(width / side))
    )


def token_side(model: Any) -> int | None:
    """Pixels along a side of a token, in the first stage of a pyramid; None where there is no
    attention, or nothing says it.
    """
    info = getattr(model, "feature_info", None)
    attends = any("attn" in name or "attention" in name for name, _ in model.named_modules())
    if not info or not attends:
        return None
    first: Mapping[str, Any] = info[0] if isinstance(info, list | tuple) else info.get_dicts()[0]
    return int(first["reduction"])


def set_training_size(model: nn.Module, height: int, width: int, mpp: float | None = None) -> None:
    """Let the model know at which size of images its weights were trained, and with how many
    micrometres per pixel.
    """
    scale = scale_of(model, height, width)
    model.trained_at = None if scale is None else replace(scale, mpp=mpp)  # type: ignore[assignment]


def trained_as_configured(model: Any) -> None:
    """The same of weights whose configuration says it: `input_size` of the model's
    `pretrained_cfg`.
    """
    size = model.pretrained_cfg.get("input_size")
    if size is not None:
        set_training_size(model, size[1], size[2])


def training_scale(model: nn.Module) -> Scale | None:
    """What the model knows of it; None where nobody said."""
    scale = getattr(model, "trained_at", None)
    return scale if isinstance(scale, Scale) else None


def foreign(model: nn.Module, height: int, width: int) -> Foreign | None:
    """Whether an image of so many pixels is far from what the model was trained at; None where it
    is not, or nobody knows.
    """
    trained, image = training_scale(model), scale_of(model, height, width)
    if trained is None or image is None or 1 / FOREIGN <= image.tokens / trained.tokens <= FOREIGN:
        return None
    rescales = any(
        OPTION in module.op.options and module.options.get(OPTION) is None
        for module in scaled(model)
    )
    return Foreign(image, trained, rescales)


def trained_mpp(model: nn.Module) -> float:
    """Micrometres per pixel that the model saw in training.

    Raises:
        UsageError: nobody said.
    """
    trained = training_scale(model)
    if trained is None or trained.mpp is None:
        raise UsageError(
            "mpp=training: this model does not know the resolution of its training images, since "
            "their files did not say "
            "one; give micrometres per pixel"
        )
    return trained.mpp


def other_resolution(model: nn.Module, mpp: tuple[float, float] | None) -> str:
    """A sentence where an image is looked at with a resolution far from that of the training; empty
    where it is not, or nobody knows.
    """
    trained = training_scale(model)
    if trained is None or trained.mpp is None or mpp is None:
        return ""
    if all(1 / APART <= side / trained.mpp <= APART for side in mpp):
        return ""
    return (
        f"this image is looked at with {mpp[1]:.3g} micrometres per pixel, and the model was "
        f"trained with {trained.mpp:.3g}. "
        "--mpp training (mpp='training' in Python) looks as in training."
    )


def farthest(model: nn.Module, sizes: Sequence[tuple[int, int]]) -> str:
    """A sentence on those of several images (height, width) that are far from the training size;
    empty where none is.
    """
    far = [distance for size in sizes if (distance := foreign(model, *size)) is not None]
    if not far:
        return ""
    worst = max(far, key=lambda distance: abs(math.log(distance.factor)))
    return (
        f"{len(far)} of {len(sizes)} images are far from the training size; of the farthest: "
        f"{worst}. Give images nearer to it, or train at theirs"
    )


def scaled(model: nn.Module) -> list[Attention | ClassAttention]:
    """The attention modules."""
    return [module for module in model.modules() if isinstance(module, Attention | ClassAttention)]


def set_token_scale(model: nn.Module, scale: str | float | None) -> None:
    """Give every attention whose operator has it another token_scale, in place.

    Args:
        model: not an optimized one.
        scale: None, "tokens", a number, or "training": for each layer its tokens at the training
            size, where the model stays as it is.

    Raises:
        UsageError: no operator of the model has it, another value, or the training size is not
            known.
    """
    takers = [module for module in scaled(model) if OPTION in module.op.options]
    if not takers:
        raise UsageError(
            f"token_scale={scale}: no attention of this {type(model).__name__} has it; it is an "
            "option of operator 'sima'"
        )
    numbers: Mapping[nn.Module, int] = {}
    if scale == TRAINING:
        trained = training_scale(model)
        if trained is None:
            raise UsageError(
                "token_scale=training: this model does not know at which size it was trained; "
                "give the number of tokens of its training"
            )
        numbers = queries(model, trained.height, trained.width)
        takers = [module for module in takers if module in numbers]
    for module in takers:
        module.options = check_options(
            module.op, {**module.options, OPTION: numbers.get(module, scale)}
        )


@torch.no_grad()
def queries(model: Any, height: int, width: int) -> dict[nn.Module, int]:
    """How many tokens each attention counts for token_scale in an image of so many pixels: counted
    on an empty one.

    A class attention counts the patches, without the class token.
    """
    counts: dict[nn.Module, int] = {}

    def note(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        counts[module] = inputs[0].shape[1] - isinstance(module, ClassAttention)

    hooks = [module.register_forward_pre_hook(note) for module in scaled(model)]
    first = next(model.parameters())
    channels = next(
        (int(layer.in_channels) for layer in model.modules() if isinstance(layer, nn.Conv2d)), 3
    )
    empty = torch.zeros(1, channels, height, width, dtype=first.dtype, device=first.device)
    try:
        with evaluating(model):
            looks = model.features if hasattr(model, "framed") else model
            looks(model.framed(empty) if hasattr(model, "framed") else empty)
    finally:
        for hook in hooks:
            hook.remove()
    return counts
