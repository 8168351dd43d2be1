"""Where layers might be read in place of being called: each use builds a model that is small, and
says which layers count and what it answers.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import timm
import torch
from torch import Tensor, nn

import softless
from softless.attention import Operator
from softless.layers import Attention, ClassAttention
from softless.models.create import create_model
from tests.models.lively import lively
from tests.ops.draw import SMALL

DIM, HEADS = 16, 2
BOTH = ("qkv", "proj")


@dataclass(frozen=True)
class Use:
    """One column of the crossed table."""

    build: Callable[[Operator], nn.Module]
    paths: Sequence[str]
    answer: Callable[[Any], Tensor]
    dtype: torch.dtype = torch.float32


def small(op: Operator) -> dict[str, Any]:
    return {name: value for name, value in {**SMALL, "ratio": 2}.items() if name in op.options}


def tokens(number: int, dtype: torch.dtype = torch.float32, dim: int = DIM) -> Tensor:
    return torch.randn(1, number, dim, generator=torch.Generator().manual_seed(1)).to(dtype)


class Alone(nn.Module):
    """An attention of softless by itself; what is called `qv` elsewhere is a path here too."""

    def __init__(self, attn: nn.Module) -> None:
        super().__init__()
        self.attn = attn

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.attn(x)
        return y


def alone(op: Operator, side: int, **more: Any) -> Alone:
    """Attention over a grid of `side` x `side` tokens whose output is not small beside its bias."""
    made = Attention(DIM, HEADS, op, qkv_bias=True, tokens=side * side, **small(op) | more)
    made.set_grid((0, side, side))
    with torch.no_grad():
        made.proj.bias.mul_(0.01 if op.normalises != "rows" else 1)
    return Alone(made)


def attention(side: int, **settings: Any) -> Callable[[Operator], Alone]:
    def build(op: Operator) -> Alone:
        made = alone(op, side)
        for name, value in settings.items():
            setattr(made.attn, name, value)
        return made

    return build


def inferred(side: int, dtype: torch.dtype = torch.float32) -> Callable[[Any], Tensor]:
    def answer(model: Any) -> Tensor:
        with torch.no_grad():
            return without_bias(model.eval(), tokens(side * side, dtype))

    return answer


def without_bias(model: Any, x: Tensor) -> Tensor:
    """The answer as it is: the bias of the projection was made small."""
    y: Tensor = model(x)
    return y.double()


def trained(side: int) -> Callable[[Any], Tensor]:
    def answer(model: Any) -> Tensor:
        x = tokens(side * side).requires_grad_()
        y = model.train()(x)
        weights = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        (grad,) = torch.autograd.grad((y * weights).sum(), x)
        return torch.cat([
            part.detach().double() / part.detach().double().norm().clamp_min(1e-30) * size
            for part, size in ((y, 1), (grad, grad.norm()))
        ])

    return answer


def class_attention(op: Operator) -> Alone:
    return Alone(ClassAttention(DIM, HEADS, op, qkv_bias=True))


def reduced(op: Operator) -> Alone:
    return alone(op, 6, reduction="grid", ratio=2)


def image(size: int = 32) -> Tensor:
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(3))


def vit(op: Operator) -> nn.Module:
    made = create_model(
        "deit_tiny_patch16_224",
        op=op.name,
        depth=2,
        embed_dim=32,
        num_heads=2,
        num_classes=5,
        img_size=64,
        **small(op),
    )
    return alive(made, op)


def alive(made: nn.Module, op: Operator) -> nn.Module:
    """The model with weights on which its attention counts; a kernel of q and k falls to nothing on
    large ones.
    """
    if not op.wants("tied_qk", {}):
        return lively(made, image(64))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.ndim > 1 and "learned" not in name:
                parameter.normal_(
                    std=0.4 * parameter[0].numel() ** -0.5,
                    generator=torch.Generator().manual_seed(4),
                )
            elif "gamma" in name:
                parameter.fill_(1)
    return made.eval()


def xcit(op: Operator) -> nn.Module:
    given = {**small(op), "depth": 1, "embed_dim": 32, "num_heads": 2, "num_classes": 5}
    return alive(create_model("xcit_nano_12_p16_224", op=op.name, **given), op)


def timms(op: Operator) -> nn.Module:
    made = timm.create_model(
        "deit_tiny_patch16_224", depth=2, embed_dim=32, num_heads=2, num_classes=5, img_size=64
    ).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 2:
                size = 0.4 if op.wants("tied_qk", {}) else 1.0
                parameter.normal_(
                    std=size * parameter.shape[1] ** -0.5,
                    generator=torch.Generator().manual_seed(4),
                )
    return made


def optimized(model: Any) -> Tensor:
    with torch.no_grad():
        return softless.optimize(model.eval(), torch.float32)(image(64)).double()


def plain_and_optimized(model: Any) -> Tensor:
    with torch.no_grad():
        plain = model.eval()(image(64)).double()
    return torch.cat([plain, optimized(model)])


def streamed(model: Any) -> Tensor:
    return softless.stream(
        model.eval(), image(64), chunk=8, quiet=True, saliency=False
    ).logits.double()


def swapped(op: Operator) -> Callable[[Any], Tensor]:
    def answer(model: Any) -> Tensor:
        torch.manual_seed(7)  # some operators draw tensors of their own
        softless.swap(model, op.name, calibrate=image(64), **small(op))
        with torch.no_grad():
            return model.eval()(image(64)).double()

    return answer


BLOCKS = ("blocks.0.attn.qkv", "blocks.1.attn.proj")
USES: dict[str, Callable[[Operator], Use]] = {
    "few tokens": lambda _: Use(attention(4), ("attn.qkv", "attn.proj"), inferred(4)),
    "merged": lambda _: Use(attention(14), ("attn.qkv", "attn.proj"), inferred(14)),
    "projected": lambda _: Use(
        attention(6, projected_from=1), ("attn.qkv", "attn.proj"), trained(6)
    ),
    "half": lambda _: Use(
        attention(46), ("attn.qkv", "attn.proj"), inferred(46, torch.float16), torch.float16
    ),
    "class attention": lambda _: Use(class_attention, ("attn.qkv", "attn.proj"), inferred(7)),
    "LPI": lambda _: Use(
        xcit, ("blocks.0.local_mp.conv1", "blocks.0.local_mp.conv2"), plain_and_optimized
    ),
    "reduction": lambda _: Use(reduced, ("attn.qkv", "attn.proj"), inferred(6)),
    "optimize": lambda _: Use(vit, BLOCKS, optimized),
    "swap": lambda op: Use(timms, BLOCKS, swapped(op)),
    "stream": lambda _: Use(vit, BLOCKS, streamed),
}

HAS: dict[str, Callable[[Operator], bool]] = {  # uses that not every operator has
    "class attention": lambda op: op.class_row is not None,
    "LPI": lambda op: not op.wants("tokens", op.filled({})),
    "reduction": lambda op: op.reduces is not None,
    "stream": lambda op: op.streaming is not None,
}


def uses_of(op: Operator) -> list[str]:
    """The columns of an operator."""
    return [name for name in USES if name not in HAS or HAS[name](op)]


def named(paths: Sequence[str], model: nn.Module) -> list[str]:
    """The paths as they are called in a model: q and k that are tied have one projection `qv`."""
    there = dict(model.named_modules())
    return [path if path in there else path.replace("qkv", "qv") for path in paths]
