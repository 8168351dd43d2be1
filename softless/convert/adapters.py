"""One entry per foreign attention class: what stands in the way, and how ours is built around its
projections.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import Attention as TimmAttention
from timm.layers import AttentionRope
from timm.models.beit import Attention as BeitAttention
from timm.models.cait import Cait, ClassAttn, TalkingHeadAttn
from timm.models.eva import EvaAttention
from timm.models.pvt_v2 import Attention as PvtAttention
from timm.models.xcit import XCA
from torch import Tensor, nn

from softless.attention.record import Operator
from softless.convert.modules import (
    Joined,
    ReducedAttention,
    RopeAttention,
    Tied,
    WithBias,
    features_of,
)
from softless.layers.attention import Attention
from softless.layers.class_attention import ClassAttention
from softless.layers.plain import Weights, give, weights_of

Options = Mapping[str, Any]
Build = Callable[[Any, Operator, Options], nn.Module]


def nothing(*_: Any) -> str | None:
    """What stands in no way."""
    return None


@dataclass(frozen=True)
class Adapter:
    """How one class of attention is exchanged."""

    build: Build
    # why this operator has no place here
    cannot: Callable[[Any, Operator, Options], str | None] = nothing
    loses: Callable[[Any], str | None] = nothing  # what would be lost; `force` accepts it


def joined(layers: Sequence[nn.Module]) -> nn.Module:
    """One projection of several, their outputs one after the other; they are called where their
    weights may not be read.
    """
    weights = [_read(layer) for layer in layers]
    read = [part for part in weights if part is not None]
    whole = len(read) == len(weights) and len({part.W.device for part in read}) == 1
    return _row(read) if whole else Joined(layers)


def _read(layer: nn.Module) -> Weights | None:
    """What `weights_of` reads; of a model on "meta" too, which is swapped into the same layers as
    one that holds numbers.
    """
    return weights_of(layer) or weights_of(layer, torch.device("meta"))


def _row(parts: Sequence[Weights]) -> nn.Linear:
    """A layer of several weights, frozen where all of them are; an absent bias is 0 where another
    has one.
    """
    first, biased = parts[0].W, any(part.b is not None for part in parts)
    combined: nn.Linear = nn.utils.skip_init(  # what is drawn elsewhere does not depend on it
        nn.Linear,
        first.shape[1],
        sum(part.W.shape[0] for part in parts),
        bias=biased,
        device=first.device,
        dtype=first.dtype,
    )
    zeros = (part.W.new_zeros(part.W.shape[0]) for part in parts)
    biases = [none if part.b is None else part.b for part, none in zip(parts, zeros, strict=True)]
    give(combined, torch.cat([part.W for part in parts]), torch.cat(biases) if biased else None)
    trained = any(x.requires_grad for part in parts for x in part if x is not None)
    return combined.requires_grad_(trained)


def tied(qkv: nn.Module) -> nn.Module:
    """The projection of an operator with tied q and k: the mean of q's and k's, and v's."""
    weights = _read(qkv)
    if weights is None:
        return Tied(qkv)
    q, k, v = weights.W.chunk(3)
    if weights.b is None:
        return _row([Weights((q + k) / 2, None), Weights(v, None)])
    first, second, third = weights.b.chunk(3)
    return _row([Weights((q + k) / 2, (first + second) / 2), Weights(v, third)])


def _fit(replacement: Attention, original: Any, qkv: Any) -> Attention:
    """Give our module the foreign one's projections, norms, gate and dropout."""
    if len(replacement.parts) == 2:
        replacement.qv = tied(qkv)
    else:
        replacement.qkv = qkv
    replacement.proj, replacement.proj_drop = original.proj, original.proj_drop
    for name in ("q_norm", "k_norm", "norm", "gate"):
        if isinstance(module := getattr(original, name, None), nn.Module):
            setattr(replacement, name, module)
    if len(replacement.parts) == 2:
        replacement.k_norm = nn.Identity()
    if replacement.op.drops_weights:
        replacement.attn_drop = original.attn_drop.p
    return replacement


def _sizes(original: Any, qkv: nn.Module) -> dict[str, Any]:
    heads, (width, parts) = original.num_heads, features_of(qkv)
    return {
        "dim": width,
        "num_heads": heads,
        "attn_head_dim": parts // 3 // heads,
        "dim_out": features_of(original.proj)[1],
    }


def _plain(original: Any, op: Operator, options: Options) -> nn.Module:
    qkv = original.qkv
    replacement = _fit(Attention(op=op, **_sizes(original, qkv), **options), original, qkv)
    if isinstance(original, XCA) and op.name == "xca":
        replacement.learned.temperature = original.temperature
    return replacement


def _biased(original: Any) -> nn.Module:
    """q, k and v of a module whose biases stand apart (BEiT, EVA), or whose projections do."""
    if original.qkv is None:
        return joined([original.q_proj, original.k_proj, original.v_proj])
    qkv: nn.Module = original.qkv
    if getattr(original, "q_bias", None) is None:
        return qkv
    weights = _read(qkv)
    if weights is None:
        return WithBias(qkv, original.q_bias, original.v_bias)
    return _row([
        Weights(
            weights.W,
            torch.cat([original.q_bias, torch.zeros_like(original.q_bias), original.v_bias]),
        )
    ])


def _beit(original: Any, op: Operator, options: Options) -> nn.Module:
    qkv = _biased(original)
    return _Beit(_fit(Attention(op=op, **_sizes(original, qkv), **options), original, qkv))


class _Beit(nn.Module):
    """Called as BEiT's blocks call theirs; a bias shared by the layers is dropped, as `force`
    accepted.
    """

    def __init__(self, inner: Attention) -> None:
        super().__init__()
        self.inner = inner

    # the block passes it
    def forward(self, x: Tensor, shared_rel_pos_bias: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """Attention over the tokens x (B,N,dim)."""
        return self.inner(x)


def _rope(original: Any, op: Operator, options: Options) -> nn.Module:
    qkv = _biased(original)
    rope_options = {
        "prefix": original.num_prefix_tokens,
        "rotate_half": getattr(original, "rotate_half", False),
    }
    return _fit(
        RopeAttention(op=op, **_sizes(original, qkv), **rope_options, **options), original, qkv
    )


def _class(original: Any, op: Operator, options: Options) -> nn.Module:
    qkv, scale = joined([original.q, original.k, original.v]), options.get("token_scale")
    replacement: Any = ClassAttention(
        features_of(qkv)[0], original.num_heads, op, token_scale=scale, **op.of_row(options)
    )
    replacement.qkv, replacement.proj, replacement.attn_drop, replacement.proj_drop = (
        qkv,
        original.proj,
        original.attn_drop,
        original.proj_drop,
    )
    return replacement


def _pvt(original: Any, op: Operator, options: Options) -> nn.Module:
    replacement = ReducedAttention(original.dim, original.num_heads, op, **options).take(original)
    replacement.proj_drop = original.proj_drop
    return replacement


def _needs_pairs(_: Any, op: Operator, options: Options) -> str | None:
    if not op.cross or op.wants("tied_qk", options):
        return (
            f"many queries attend to few keys here, and operator '{op.name}' needs as many of both"
        )
    if op.wants("tokens", options):
        return (
            f"operator '{op.name}' has a row per token, and this model's tokens change from "
            "stage to stage"
        )
    return None


def _has_class_row(_: Any, op: Operator, __: Options) -> str | None:
    return None if op.class_row else f"operator '{op.name}' has no form for class attention"


def _bias(original: Any) -> str | None:
    biased = getattr(original, "relative_position_bias_table", None) is not None
    return (
        "its relative position bias is added to scores, which a sum over tokens does not have"
        if biased
        else None
    )


def _turns(_: Any, op: Operator, options: Options) -> str | None:
    reduced = op.reduces is not None and op.reduces(op.filled(options)) > 1
    return (
        f"its keys are turned by their positions, and '{op.name}' attends to reduced ones, which "
        "have none"
        if reduced
        else None
    )


def _groups(original: Any) -> str | None:
    return (
        "its keys and values are shared by groups of heads"
        if getattr(original, "num_kv_groups", 1) > 1
        else None
    )


ADAPTERS: Mapping[type, Adapter] = {
    TimmAttention: Adapter(_plain),
    EvaAttention: Adapter(_rope, cannot=_turns),
    AttentionRope: Adapter(_rope, cannot=lambda *args: _groups(args[0]) or _turns(*args)),
    BeitAttention: Adapter(_beit, loses=_bias),
    XCA: Adapter(_plain),
    TalkingHeadAttn: Adapter(
        _plain,
        loses=lambda _: (
            "it mixes the weights of its heads (talking heads), and a sum over tokens has none to "
            "mix"
        ),
    ),
    ClassAttn: Adapter(_class, cannot=_has_class_row),
    PvtAttention: Adapter(_pvt, cannot=_needs_pairs),
}

# foreign models whose class token joins behind the layers; a host's record says it of its own
CLASS_TOKEN_LATER = (Cait,)
WINDOWS = "it attends within windows that its blocks cut and shift, so it never sees all tokens"
BIASED = "a bias by relative position is added to its scores, which a sum over tokens does not have"
FOREIGN: Mapping[str, str] = {  # classes without an adapter, by name (or module and name), and why
    "WindowAttention": WINDOWS,
    "WindowMultiHeadAttention": WINDOWS,
    "AttentionCl": WINDOWS,
    "PartitionAttentionCl": WINDOWS,
    "PartitionAttention2d": WINDOWS,
    "timm.models.levit.Attention": BIASED,
    "timm.models.levit.AttentionDownsample": BIASED,
    "Attention2d": WINDOWS,
    "CrossCovarianceAttn": "its channels attend to channels inside a block that has no place for "
    "tokens",
}


def no_adapter(module: nn.Module) -> str:
    """Why a class without an adapter is kept."""
    name = type(module).__name__
    qualified_name = f"{type(module).__module__}.{name}"
    return FOREIGN.get(qualified_name, FOREIGN.get(name, f"no adapter for {qualified_name}"))


def looks_like_attention(module: nn.Module) -> bool:
    """Whether a module that has no adapter is one a user would expect to be told of."""
    name = type(module).__name__
    converted = isinstance(module, Attention | ClassAttention | _Beit)
    return (
        not converted
        and ("attention" in name.lower() or name.endswith("Attn"))
        and "block" not in name.lower()
    )
