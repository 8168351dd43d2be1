"""Attention in its edge form: q, k and v by layers of their own with the norm before them folded in,
the operator, and the output projection with the layer scale.
"""

# B batch, N tokens, C channels, H heads, D features of a head, h x w grid

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Attention as TimmAttention
from torch import Tensor, nn

from softless.attention.record import Grid
from softless.attention.registry import get
from softless.exporting.forms.core import Core, Heads, Site
from softless.exporting.forms.operators import core_form
from softless.exporting.forms.parts import (
    LAYER_NORMS,
    NOTHING,
    Affine,
    NoForm,
    Setting,
    conv,
    copied,
    linear,
    refuse_acting,
    split,
    to_map,
    to_tokens,
    tokens_of,
    within,
)
from softless.layers.attention import Attention
from softless.layers.companions import GATES, HeadConv, Reduction
from softless.layers.conv_attention import ConvAttention
from softless.layers.plain import give, is_nothing, watched

CHANGED = "it has hooks, or a forward or a weight that was replaced"
# what a class of attention may not have of its own
METHODS = (
    "forward",
    "sides",
    "placed",
    "project",
    "standing",
    "grid_of",
    "key_grid",
    "extras",
    "_heads",
    "_self_attention",
    "_project_out",
)


def attention_form(
    attention: nn.Module,
    norm: nn.Module | None,
    scale: Tensor | None,
    grid: Grid,
    setting: Setting,
) -> "AttentionForm":
    """The branch of an attention, its norm included: (B,N,C) -> (B,N,C), the residual not added.

    Args:
        attention: ours, or timm's `Attention`.
        norm: what stands before it; None for nothing.
        scale: the layer scale (C,) behind it; None for nothing.
        grid: where its tokens stand: (prefix tokens, height, width).
        setting: of the form.

    Raises:
        NoForm: it is another class, or a part of it has no form.
    """
    if why := why_not(attention):
        raise NoForm(why)
    refuse_acting(attention, "proj_drop", "attn_drop")
    reduction = getattr(attention, "reduction", None)
    if reduction is None:
        core = core_form(site_of(attention, grid, tokens_of(grid), setting))
        return AttentionForm(attention, core, norm, scale, grid)
    with within("reduction"):
        streams = ReducedStreams(reduction, grid)
    core = core_form(site_of(attention, grid, attention.keys_of(*grid), setting))  # type: ignore[operator]
    return AttentionForm(attention, core, norm, scale, grid, streams)


def why_not(attention: nn.Module) -> str:
    """Why an attention has no form, as the end of a sentence; empty where it may have one."""
    if watched(attention):
        return CHANGED
    if isinstance(attention, Attention):
        changed = [
            name
            for name in METHODS
            if getattr(type(attention), name) is not getattr(Attention, name)
        ]
        if changed:
            return f"{type(attention).__name__} has a way of its own ({', '.join(changed)})"
        return "it turns q and k by rotary positions" if attention.rotary else ""
    if type(attention) is not TimmAttention:
        return f"it is a {type(attention).__name__}"
    return ""


def site_of(attention: Any, grid: Grid | None, keys: int, setting: Setting) -> Site:
    """Where the operator of an attention stands: ours, or timm's, whose operator is softmax.

    Args:
        attention: the module.
        grid: of the queries.
        keys: how many there are.
        setting: of the form.

    Raises:
        NoForm: it lacks tensors that the operator learns.
    """
    ours = isinstance(attention, Attention)
    record = attention.op if ours else get("softmax")
    options = (
        record.filled(attention.options) if ours else record.filled({"scale": attention.scale})
    )
    learned: dict[str, Tensor] = {}
    if ours and record.own_tensors(attention.options):
        if not hasattr(attention, "learned"):
            raise NoForm(f"operator '{record.name}' was not told how many tokens there are")
        learned = {name: x.detach().clone() for name, x in attention.learned().items()}
    return Site(
        record,
        Heads(attention.num_heads, setting.batch),
        attention.head_dim,
        keys if grid is None else tokens_of(grid),
        keys,
        options,
        learned,
        grid,
        setting.steps,
    )


def _whole(norm: nn.Module | None) -> nn.Module:
    """A norm with its affine."""
    return nn.Identity() if norm is None else copied(norm)


class ReducedStreams(nn.Module):
    """What q, k and v are projected from where k and v are of windows of the grid: (B,N,C) ->
    (B,N,C), and (B,M,C) twice.
    """

    def __init__(self, reduction: nn.Module, grid: Grid) -> None:
        super().__init__()
        if type(reduction) is not Reduction:
            raise NoForm(f"it is a {type(reduction).__name__}")
        self.prefix, self.height, self.width = grid
        if min(self.height, self.width) < reduction.side:
            raise NoForm(f"the grid {self.height} x {self.width} has no window of its side")
        self.conv, self.norm = conv(reduction.conv), copied(reduction.norm)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (B,N,C) -> those of q, of k and of v."""
        patches = x[:, self.prefix :] if self.prefix else x
        reduced = self.norm(to_tokens(self.conv(to_map(patches, self.height, self.width))))
        reduced = torch.cat([x[:, : self.prefix], reduced], dim=1) if self.prefix else reduced
        return x, reduced, reduced


class AttentionForm(nn.Module):
    """x -> proj(core(q(norm x), k(norm x), v(norm x))), with what else the module has between.

    Args:
        attention: ours or timm's, which has been asked `why_not`.
        core: its operator.
        norm: what stands before it; None for nothing.
        scale: the layer scale (C,) behind it; None for nothing.
        grid: where its tokens stand.
        streams: makes of the tokens, whose norm keeps its affine, those of q, of k and of v; None
            where they are the same.
    """

    q: nn.Linear
    k: nn.Linear  # where it is not tied to q
    v: nn.Linear
    streams: nn.Module | None

    def __init__(
        self,
        attention: Any,
        core: Core,
        norm: nn.Module | None,
        scale: Tensor | None,
        grid: Grid,
        streams: nn.Module | None = None,
    ) -> None:
        super().__init__()
        ours, heads = isinstance(attention, Attention), attention.num_heads
        parts = attention.parts if ours else ("q", "k", "v")
        inner, name = heads * attention.head_dim, "".join(parts)
        self.norm, affine = split(norm) if streams is None else (_whole(norm), NOTHING)
        self.streams = streams
        self.tied = len(parts) == 2
        # a norm of q stands between its layer and the operator, and takes the operator's factor
        factors = {"q": core.before if is_nothing(attention.q_norm) else 1.0}
        nothing_between = all(map(is_nothing, (attention.q_norm, attention.k_norm)))
        unread = core.centres and nothing_between and not (ours and attention.v_conv is not None)
        for number, part in enumerate(parts):
            path, rows = name, slice(number * inner, (number + 1) * inner)
            if isinstance(attention, ConvAttention):
                path, rows = f"proj_{part}", slice(None)
            with within(path):
                source, factor = getattr(attention, path), factors.get(part, 1.0)
                self.add_module(part, linear(source, affine, factor, rows, biased=not unread))
        self.q_norm = head_norm(attention.q_norm, heads, core.before)
        self.k_norm = head_norm(attention.k_norm, heads)
        v_conv = attention.v_conv if ours else None
        self.v_conv = None if v_conv is None else ValueConv(v_conv, attention, grid)
        gate = getattr(attention, "gate", None)
        with within("gate"):
            self.gate = None if gate is None else linear(gate, affine)
        self.gating = GATES[attention.gate_kind if ours else "sigmoid"] if self.gate else None
        between = getattr(attention, "norm", None)
        with within("norm"):
            self.between = nn.Identity() if between is None else copied(between)
        folds = self.v_conv is None and is_nothing(self.between)
        self.gain = 1.0 if folds else core.after
        with within("proj"):
            self.proj = linear(attention.proj, Affine(core.after if folds else 1.0, 0.0), scale)
        self.core = core.to(next(self.proj.parameters()).dtype)  # its constants are made in float32

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B,N,C) -> (B,N,C)."""
        x = self.norm(x)
        of_q, of_k, of_v = (x, x, x) if self.streams is None else self.streams(x)
        q, v = self.q_norm(self.q(of_q)), self.v(of_v)
        o = self.core(q, None if self.tied else self.k_norm(self.k(of_k)), v)
        o = o if self.gain == 1.0 else o * self.gain
        o = o if self.v_conv is None else o + self.v_conv(v)
        o = self.between(o)
        o = o if self.gate is None or self.gating is None else o * self.gating(self.gate(x))
        y: Tensor = self.proj(o)
        return y


def head_norm(norm: nn.Module, heads: int, factor: float = 1.0) -> nn.Module:
    """A norm of q or k, of heads apart, for joined heads (B,N,H D); what it gives is multiplied by a
    factor.

    Raises:
        NoForm: it is no LayerNorm.
    """
    if is_nothing(norm):
        return nn.Identity()
    if type(norm) not in LAYER_NORMS:
        raise NoForm(f"q and k go through a {type(norm).__name__}")
    bare, (weight, bias) = split(norm)
    if not isinstance(weight, Tensor):
        raise NoForm("q and k go through a LayerNorm without weights")
    shift = bias if isinstance(bias, Tensor) else torch.zeros_like(weight)
    like = next(norm.parameters())
    whole = nn.LayerNorm(len(weight), bare.eps, device=like.device, dtype=like.dtype)  # type: ignore[arg-type]
    give(whole, weight * factor, shift * factor)
    return HeadNorm(whole, heads)


class HeadNorm(nn.Module):
    """A norm of the features of each head: (B,N,H D) -> (B,N,H D)."""

    def __init__(self, norm: nn.Module, heads: int) -> None:
        super().__init__()
        self.norm, self.heads = norm, heads

    def forward(self, x: Tensor) -> Tensor:
        """Joined heads (B,N,H D) -> (B,N,H D)."""
        tokens, width = x.shape[1], x.shape[2]
        apart = x.reshape(-1, tokens, self.heads, width // self.heads)
        return self.norm(apart).reshape(-1, tokens, width)


class ValueConv(nn.Module):
    """The depthwise convolution of v over the grid, one filter a channel; tokens ahead of the grid
    get 0: (B,N,C) -> (B,N,C).
    """

    weight: Tensor

    def __init__(self, filters: HeadConv, attention: Attention, grid: Grid) -> None:
        super().__init__()
        self.prefix, self.height, self.width = grid
        if type(filters) is not HeadConv:
            raise NoForm(f"it is a {type(filters).__name__}", "v_conv")
        heads, width = attention.num_heads, attention.head_dim
        own = next(filters.parameters()).detach()  # it has no other, and nobody waits for its call
        one_each = {
            "head": lambda: own.repeat_interleave(width, 0),
            "channel": own.clone,
            "shared": lambda: own.repeat(heads, 1, 1, 1),
        }
        self.register_buffer("weight", one_each[filters.filters]())

    def forward(self, v: Tensor) -> Tensor:
        """v (B,N,C) -> (B,N,C)."""
        image = to_map(v[:, self.prefix :] if self.prefix else v, self.height, self.width)
        side = self.weight.shape[-1]
        y = to_tokens(F.conv2d(image, self.weight, padding=side // 2, groups=len(self.weight)))
        return F.pad(y, (0, 0, self.prefix, 0)) if self.prefix else y
