"""The published attention of SimA, XCiT and CvT, written out a second time, beside ours in whole
models whose attention counts.

    SimA    q^ (k^^T v),                        x^ = x / max(|x|_1, eps) over tokens; eps 1e-12, in class attention 1e-6
    XCA     v softmax_e(t q^^T k^)^T,           x^ = x / max(|x|_2, 1e-12) over tokens, t learned per head
    CvT     softmax_m(q k^T / sqrt(dim)) v,     q, k, v by convolution, and sqrt of the full width

arXiv:2206.08898, 2106.09681 and 2103.15808, and their codes. A model as it is made says nothing of
its attention (layer scales of 1e-5, branches twenty times weaker than the tokens). So weights are
drawn here such that each branch has a third of its tokens' size.
"""
# B images, H heads, N tokens, M keys, D channels of a head, C channels

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.cait import ClassAttn
from torch import Tensor, nn

from softless.layers import Attention, ClassAttention
from softless.layers.conv_attention import ConvAttention
from softless.models import create_model

HOSTS: Mapping[str, tuple[str, ...]] = {  # an operator -> the hosts in which it was published
    "sima": (
        "deit_small_patch16_224",
        "xcit_small_12_p16_224",
        "xcit_small_24_p16_224",
        "cvt_13_224",
    ),
    "xca": ("xcit_small_12_p16_224", "xcit_small_24_p16_224"),
    "softmax": ("cvt_13_224",),
}
SHARE = 0.3  # RMS of an attention branch over that of the tokens it is given
# times the size of q and k that a random projection gives: a softmax of it is far from even
SHARP = 2.0
SIZES = ((224, 224), (96, 160))  # pixels (height, width)


@dataclass(frozen=True)
class Parity:
    """A model beside the published attention in its places; errors are relative, Frobenius, the
    larger of two sizes.
    """

    model: str
    operator: str
    blocks: int  # attention modules, class attention among them
    # by so much the logits move without it, the less of the sizes: the control
    without_attention: float
    logits_float32: float  # ours beside the published, float32 both
    # ours in float32 beside the published in float64: what the host's own rounding makes
    ours_float32: float
    published_float32: float  # the published in float32 beside itself in float64
    logits_float64: float
    branch_float32: float  # of the module that differs most, on the same tokens


@torch.no_grad()
def measured(op: str, host: str, **smaller: Any) -> Parity:
    """One model; `smaller` are arguments of its host."""
    torch.manual_seed(0)
    model = create_model(host, op=op, num_classes=10, **smaller).eval()
    draw = torch.Generator().manual_seed(1)
    images = [torch.randn(1, 3, *size, generator=draw) for size in SIZES]
    enlivened(model, images[0])
    single = [(model(x), *answer(model, x)) for x in images]
    model = model.double()
    double = [
        (model(x.double()), answer(model, x.double())[0], silenced(model, x.double()))
        for x in images
    ]
    return Parity(
        host,
        op,
        len(attentions(model)),
        min(distance(silent, published) for _, published, silent in double),
        max(distance(own, published) for own, published, _ in single),
        max(
            distance(own, exact) for (own, _, _), (_, exact, _) in zip(single, double, strict=True)
        ),
        max(
            distance(published, exact)
            for (_, published, _), (_, exact, _) in zip(single, double, strict=True)
        ),
        max(distance(own, published) for own, published, _ in double),
        max(branch for _, _, branch in single),
    )


def distance(computed: Tensor, want: Tensor) -> float:
    """|computed - want| / |want|, Frobenius, of two tensors of one shape."""
    return float((computed - want).norm() / want.norm())


def attentions(model: nn.Module) -> list[nn.Module]:
    """The modules that are compared, in the order of the pass."""
    return [
        module
        for module in model.modules()
        if isinstance(module, Attention | ClassAttention | ClassAttn)
    ]


@torch.no_grad()
def enlivened(model: nn.Module, images: Tensor) -> None:
    """Give a model weights on which its attention counts, block by block as a pass over images
    (B, 3, h, w) comes to them.
    """
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if "gamma" in name or name.endswith("temperature"):
            parameter.copy_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
        elif parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            if name.endswith(("proj_q.weight", "proj_k.weight")):
                parameter.mul_(SHARP)
        elif "bias" in name or "token" in name:
            parameter.normal_(std=0.1, generator=generator)

    def enliven(module: Any, args: Any, kwargs: Any) -> None:
        branch = module.forward(*args, **kwargs) - module.proj.bias
        module.proj.weight *= SHARE * args[0].square().mean().sqrt() / branch.square().mean().sqrt()

    handles = [
        module.register_forward_pre_hook(enliven, with_kwargs=True) for module in attentions(model)
    ]
    model(images)
    for handle in handles:
        handle.remove()


def by_hand(module: Any, x: Tensor, grid: Any = None) -> Tensor:
    """What the published code answers for tokens x (B, N, C): all of them, (B, N, C), or the class
    token's row, (B, 1, C).
    """
    if isinstance(module, ClassAttn):
        return _class_softmax(module, x)
    q, k, v = _sides(module, x, grid)
    if isinstance(module, ClassAttention):
        q, k = (F.normalize(side, p=1.0, dim=-2, eps=1e-6) for side in (q, k))
        o = (q[:, :, :1] @ k.mT) @ v
    elif module.op.name == "sima":
        o = F.normalize(q, p=1.0, dim=-2) @ (F.normalize(k, p=1.0, dim=-2).mT @ v)
    elif module.op.name == "xca":
        q, k = (F.normalize(side, dim=-2) for side in (q, k))
        o = v @ torch.softmax(module.learned.temperature * (q.mT @ k), dim=-1).mT
    else:
        o = torch.softmax(x.shape[-1] ** -0.5 * (q @ k.mT), dim=-1) @ v
    output: Tensor = module.proj(o.transpose(1, 2).flatten(2))
    return output


def _sides(module: Any, x: Tensor, grid: Any) -> list[Tensor]:
    """q (B,H,N,D), k and v (B,H,M,D)."""
    if isinstance(module, ConvAttention):
        sides = []
        for part in "qkv":
            convolved = getattr(module, f"conv_proj_{part}")(x, grid)
            sides.append(getattr(module, f"proj_{part}")(convolved))
    else:
        sides = list(module.qkv(x).chunk(3, -1))
    return [side.unflatten(-1, (module.num_heads, -1)).transpose(1, 2) for side in sides]


def _class_softmax(module: Any, x: Tensor) -> Tensor:
    """XCiT's class attention: softmax of the class token's row, (B,1,C)."""
    q, k, v = (
        projection(y).unflatten(-1, (module.num_heads, -1)).transpose(1, 2)
        for projection, y in ((module.q, x[:, :1]), (module.k, x), (module.v, x))
    )
    o = torch.softmax(q @ k.mT * q.shape[-1] ** -0.5, dim=-1) @ v
    output: Tensor = module.proj(o.transpose(1, 2).flatten(2))
    return output


@torch.no_grad()
def answer(model: nn.Module, images: Tensor) -> tuple[Tensor, float]:
    """What a model answers for images (B, 3, h, w) with the published attention in its places.

    Returns:
        Logits (B, classes), and the largest relative distance of an attention's own answer from
        the published one's on the same tokens, biases of the projections apart.
    """
    apart: list[float] = []

    def publish(module: Any, args: Any, kwargs: Any, output: Tensor) -> Tensor:
        published = by_hand(module, args[0], kwargs.get("grid"))
        apart.append(float((output - published).norm() / (published - module.proj.bias).norm()))
        return published

    handles = [
        module.register_forward_hook(publish, with_kwargs=True) for module in attentions(model)
    ]
    logits: Tensor = model(images)
    for handle in handles:
        handle.remove()
    return logits, max(apart)


@torch.no_grad()
def silenced(model: nn.Module, images: Tensor) -> Tensor:
    """The control: what the model answers for images (B, 3, h, w) with its attention switched off,
    (B, classes).
    """

    def silence(module: Any, _: Any, output: Tensor) -> Tensor:
        bias: Tensor = module.proj.bias
        return bias.expand_as(output)

    handles = [module.register_forward_hook(silence) for module in attentions(model)]
    logits: Tensor = model(images)
    for handle in handles:
        handle.remove()
    return logits
