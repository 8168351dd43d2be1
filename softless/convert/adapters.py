"""One entry per foreign attention class: what stands in the way, and how ours is built around its
projections.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from timm.layers import Attention as TimmAttention
from timm.layers import AttentionRope
from timm.models.beit import Attention as BeitAttention
from timm.models.cait import Cait, ClassAttn, TalkingHeadAttn
from timm.models.convit import MHSA
from timm.models.crossvit import CrossAttention
from timm.models.efficientformer import Attention as EfficientFormerAttention
from timm.models.eva import EvaAttention
from timm.models.fastvit import Attention as FastVitAttention
from timm.models.hiera import MaskUnitAttention
from timm.models.hieradet_sam2 import MultiScaleAttention
from timm.models.metaformer import Attention as MetaFormerAttention
from timm.models.nest import Attention as NestAttention
from timm.models.nest import NestLevel
from timm.models.pvt_v2 import Attention as PvtAttention
from timm.models.tnt import Attention as TntAttention
from timm.models.twins import GlobalSubSampleAttn
from timm.models.vision_transformer_relpos import RelPosAttention
from timm.models.vision_transformer_sam import Attention as SamAttention
from timm.models.volo import Attention as VoloAttention
from timm.models.volo import ClassAttention as VoloClassAttention
from timm.models.xcit import XCA
from torch import nn

from softless.attention.record import Operator
from softless.convert.foreign import CUT, looks_like_attention
from softless.convert.layouts import (
    ByHeadAttention,
    ChannelsFirstAttention,
    MapAttention,
    OneBlockAttention,
    UnbiasedAttention,
)
from softless.convert.modules import (
    Joined,
    ReducedAttention,
    Reordered,
    RopeAttention,
    Tied,
    WithBias,
    features_of,
)
from softless.layers.attention import Attention
from softless.layers.class_attention import ClassAttention
from softless.layers.plain import Weights, give, weights_of

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Site:
    """A foreign attention, and the modules that hold it."""

    module: Any
    above: tuple[Any, ...]  # the nearest first: its block, …, the model

    @property
    def block(self) -> Any:
        """What calls it."""
        return self.above[0] if self.above else None


def nothing(*_: Any) -> str | None:
    """What stands in no way."""
    return None


@dataclass(frozen=True)
class Adapter:
    """How one class of attention is exchanged."""

    build: Callable[[Site, Operator, Options], nn.Module]
    # why this operator has no place here
    cannot: Callable[[Site, Operator, Options], str | None] = nothing
    loses: Callable[[Site], str | None] = nothing  # what would be lost; `force` accepts it


def sites(model: nn.Module) -> dict[str, Site]:
    """The foreign attention of a model by its paths, with adapters or without; of one that wraps
    another, the inner one.
    """
    modules = dict(model.named_modules())
    paths = [
        path
        for path, module in modules.items()
        if path and (type(module) in ADAPTERS or looks_like_attention(module))
    ]
    wrapping = {outer for outer in paths if any(path.startswith(f"{outer}.") for path in paths)}
    return {path: _site(modules, path) for path in paths if path not in wrapping}


def _site(modules: Mapping[str, nn.Module], path: str) -> Site:
    parts = path.split(".")
    above = (".".join(parts[:depth]) for depth in range(len(parts) - 1, -1, -1))
    return Site(modules[path], tuple(modules[one] for one in above))


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


def _fit(replacement: Attention, original: Any, qkv: Any) -> Any:
    """Give our module the foreign one's projections, norms, gate and dropout."""
    if len(replacement.parts) == 2:
        replacement.qv = tied(qkv)
    else:
        replacement.qkv = qkv
    return _rest(replacement, original)


def _rest(replacement: Attention, original: Any) -> Any:
    """All but the projection to q, k and v."""
    replacement.proj = original.proj
    for name in ("proj_drop", "q_norm", "k_norm", "norm", "gate"):
        if isinstance(module := getattr(original, name, None), nn.Module):
            setattr(replacement, name, module)
    if len(replacement.parts) == 2:
        replacement.k_norm = nn.Identity()
    if replacement.op.drops_weights:
        replacement.attn_drop = getattr(getattr(original, "attn_drop", None), "p", 0.0)
    return replacement


def _sizes(original: Any, qkv: nn.Module) -> dict[str, Any]:
    heads = original.heads if isinstance(original, MaskUnitAttention) else original.num_heads
    width, parts = features_of(qkv)
    return {
        "dim": width,
        "num_heads": heads,
        "attn_head_dim": parts // 3 // heads,
        "dim_out": features_of(original.proj)[1],
    }


def _plain(
    site: Site, op: Operator, options: Options, kind: type[Attention] = Attention, **more: Any
) -> Any:
    """A module of ours in the place of one with a projection `qkv`, of the class that takes the
    tokens as the block passes them.
    """
    original, qkv = site.module, site.module.qkv
    return _fit(kind(op=op, **_sizes(original, qkv), **more, **options), original, qkv)


def _xca(site: Site, op: Operator, options: Options) -> nn.Module:
    replacement: Any = _plain(site, op, options)
    if op.name == "xca":
        replacement.learned.temperature = site.module.temperature
    return replacement


def _hiera(site: Site, op: Operator, options: Options) -> nn.Module:
    replacement: Any = _plain(site, op, options)
    replacement.q_stride = site.module.q_stride  # the block asks for it
    return replacement


def _nest(site: Site, op: Operator, options: Options) -> nn.Module:
    side, heads = _level(site).block_size, site.module.num_heads
    replacement: Any = _plain(site, op, options, OneBlockAttention, side=side)
    replacement.proj = Reordered(site.module.proj, heads)  # NesT joins its heads channel by channel
    return replacement


def _level(site: Site) -> Any:
    """The level of NesT that holds a layer."""
    return next(module for module in site.above if isinstance(module, NestLevel))


def _tnt(site: Site, op: Operator, options: Options) -> nn.Module:
    original = site.module
    qkv = joined([original.qk, original.v])
    return _fit(Attention(op=op, **_sizes(original, qkv), **options), original, qkv)


def _efficientformer(site: Site, op: Operator, options: Options) -> nn.Module:
    original = site.module
    replacement: Any = ByHeadAttention(
        features_of(original.qkv)[0],
        original.num_heads,
        op,
        attn_head_dim=original.key_dim,
        value_dim=original.val_dim,
        **options,
    )
    replacement.qkv = original.qkv
    return _rest(replacement, original)


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


def _beit(site: Site, op: Operator, options: Options) -> nn.Module:
    original, qkv = site.module, _biased(site.module)
    sizes = _sizes(original, qkv)
    return _fit(UnbiasedAttention(op=op, **sizes, **options), original, qkv)


def _rope(site: Site, op: Operator, options: Options) -> nn.Module:
    original, qkv = site.module, _biased(site.module)
    rope_options = {
        "prefix": original.num_prefix_tokens,
        "rotate_half": getattr(original, "rotate_half", False),
    }
    replacement = RopeAttention(op=op, **_sizes(original, qkv), **rope_options, **options)
    return _fit(replacement, original, qkv)


def _class(
    site: Site, op: Operator, options: Options, parts: Sequence[str] = ("q", "k", "v")
) -> nn.Module:
    """Attention of a class token, whose projections have these names."""
    original = site.module
    qkv = joined([getattr(original, part) for part in parts])
    scale = options.get("token_scale")
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


def _reduced(site: Site, op: Operator, options: Options) -> nn.Module:
    original = site.module
    replacement = ReducedAttention(original.dim, original.num_heads, op, **options).take(original)
    return _rest_of_reduced(replacement, original)


def _rest_of_reduced(replacement: ReducedAttention, original: Any) -> nn.Module:
    replacement.proj_drop = original.proj_drop
    if replacement.op.drops_weights:
        replacement.attn_drop = original.attn_drop.p
    return replacement


def _needs_pairs(_: Site, op: Operator, options: Options) -> str | None:
    if not op.cross or op.wants("tied_qk", options):
        return (
            f"many queries attend to few keys here, and operator '{op.name}' needs as many of both"
        )
    return _has_rows(_, op, options)


def _has_rows(_: Site, op: Operator, options: Options) -> str | None:
    return (
        f"operator '{op.name}' has a row per token, and this model's tokens change from "
        "stage to stage"
        if op.wants("tokens", options)
        else None
    )


def _has_class_row(_: Site, op: Operator, __: Options) -> str | None:
    return None if op.class_row else f"operator '{op.name}' has no form for class attention"


def _narrow_class(site: Site, op: Operator, options: Options) -> str | None:
    original = site.module
    inner = features_of(original.proj)[0]
    width = features_of(original.q)[0]
    return _has_class_row(site, op, options) or (
        f"its heads are {inner} channels wide together and its tokens {width}, and class attention "
        "has one width"
        if inner != width
        else None
    )


BIAS = "relative position bias is added to scores, which a sum over tokens does not have"


def _bias(site: Site) -> str | None:
    """BEiT's and relpos ViTs' bias, of a layer or shared by all of them."""
    tables = ("relative_position_bias_table", "rel_pos")
    if any(getattr(site.module, table, None) is not None for table in tables):
        return f"its {BIAS}"
    shared = ("rel_pos_bias", "shared_rel_pos")
    if any(getattr(model, table, None) is not None for model in site.above for table in shared):
        return f"the layers' common {BIAS}"
    return None


def _sam_bias(site: Site) -> str | None:
    return (
        "a bias by its queries and relative positions is added to scores, which a sum over tokens "
        "does not have"
        if site.module.use_rel_pos
        else None
    )


def _turns(_: Site, op: Operator, options: Options) -> str | None:
    reduced = op.reduces is not None and op.reduces(op.filled(options)) > 1
    return (
        f"its keys are turned by their positions, and '{op.name}' attends to reduced ones, which "
        "have none"
        if reduced
        else None
    )


def _groups(site: Site) -> str | None:
    return (
        "its keys and values are shared by groups of heads"
        if getattr(site.module, "num_kv_groups", 1) > 1
        else None
    )


def _sam(site: Site, op: Operator, options: Options) -> str | None:
    if site.block is not None and site.block.window_size > 0:
        return CUT
    if site.module.rope is not None:
        return "it turns its queries and keys itself by tables that fit one size of images"
    return _has_rows(site, op, options)


def _hieradet(site: Site, op: Operator, options: Options) -> str | None:
    if site.block is not None and site.block.is_windowed:
        return CUT
    if site.module.q_pool is not None:
        return "it pools its queries, so that fewer tokens leave it than enter"
    return _has_rows(site, op, options)


def _mask_units(site: Site, op: Operator, options: Options) -> str | None:
    if site.module.use_mask_unit_attn:
        return "it attends within mask units, so it never sees all tokens"
    if site.module.q_stride > 1:
        return "it pools its queries, so that fewer tokens leave it than enter"
    if not op.equivariant or op.wants("grid", options):
        return (
            f"its tokens stand in the order of mask units, and operator '{op.name}' asks where a "
            "token stands"
        )
    return _has_rows(site, op, options)


def _blocks_of_image(site: Site, op: Operator, options: Options) -> str | None:
    blocks = _level(site).pos_embed.shape[1]
    if blocks > 1:
        return f"it attends within {blocks} blocks of the image, so it never sees all tokens"
    return _has_rows(site, op, options)


def _wider_values(_: Site, op: Operator, options: Options) -> str | None:
    return _has_rows(_, op, options) or (
        None
        if op.implied_matrix
        else f"its values are wider than its keys, and operator '{op.name}' needs one width"
    )


def _within_patches(site: Site, _: Operator, __: Options) -> str | None:
    if getattr(site.block, "attn_in", None) is site.module:
        return "it attends to the pixels of one patch, so it never sees all tokens"
    return (
        "its values have another width than its queries"
        if features_of(site.module.qk)[1] != 2 * features_of(site.module.v)[1]
        else None
    )


ADAPTERS: Mapping[type, Adapter] = {
    TimmAttention: Adapter(_plain),
    EvaAttention: Adapter(_rope, cannot=_turns),
    AttentionRope: Adapter(_rope, cannot=lambda *args: _groups(args[0]) or _turns(*args)),
    BeitAttention: Adapter(_beit, loses=_bias),
    RelPosAttention: Adapter(partial(_plain, kind=UnbiasedAttention), loses=_bias),
    SamAttention: Adapter(partial(_plain, kind=MapAttention), cannot=_sam, loses=_sam_bias),
    MultiScaleAttention: Adapter(partial(_plain, kind=MapAttention), cannot=_hieradet),
    MaskUnitAttention: Adapter(_hiera, cannot=_mask_units),
    VoloAttention: Adapter(partial(_plain, kind=MapAttention), cannot=_has_rows),
    FastVitAttention: Adapter(partial(_plain, kind=ChannelsFirstAttention), cannot=_has_rows),
    NestAttention: Adapter(_nest, cannot=_blocks_of_image),
    MetaFormerAttention: Adapter(_plain, cannot=_has_rows),
    EfficientFormerAttention: Adapter(
        _efficientformer,
        cannot=_wider_values,
        loses=lambda _: f"its {BIAS}",
    ),
    MHSA: Adapter(_plain),
    TntAttention: Adapter(_tnt, cannot=_within_patches),
    XCA: Adapter(_xca),
    TalkingHeadAttn: Adapter(
        _plain,
        loses=lambda _: (
            "it mixes the weights of its heads (talking heads), and a sum over tokens has none to "
            "mix"
        ),
    ),
    ClassAttn: Adapter(_class, cannot=_has_class_row),
    CrossAttention: Adapter(partial(_class, parts=("wq", "wk", "wv")), cannot=_has_class_row),
    VoloClassAttention: Adapter(partial(_class, parts=("q", "kv")), cannot=_narrow_class),
    PvtAttention: Adapter(_reduced, cannot=_needs_pairs),
    GlobalSubSampleAttn: Adapter(_reduced, cannot=_needs_pairs),
}

# foreign models whose class token joins behind the layers; a host's record says it of its own
CLASS_TOKEN_LATER = (Cait,)
