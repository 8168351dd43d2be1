"""How a host is cut into what the engine needs: blocks of patches, positions of some rows, layers,
and what follows the last of them.

Only what is known here is streamed: a class, a block or a module that is not is an error that names
it, since one that is not known might mix tokens in a way that chunks would lose.
"""

# D width of the tokens, h x w the whole grid of patches

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, GluMlp, Mlp, RmsNorm, SwiGLU
from timm.layers import LayerNorm as TimmLayerNorm
from timm.layers import PatchEmbed as TimmPatchEmbed
from timm.models import xcit as timm_xcit
from timm.models.deit import VisionTransformerDistilled
from timm.models.vision_transformer import Block as TimmBlock
from timm.models.vision_transformer import LayerScale, VisionTransformer
from torch import Tensor, nn

from softless.errors import UsageError
from softless.inference.blocks import PackedBlock, XcitBlock
from softless.inference.layers import (
    Added,
    KeptPositions,
    PackedAttention,
    PackedLPI,
    PackedMlp,
    PatchProjection,
)
from softless.inference.model import kind_of
from softless.layers import LPI, Attention, ClassAttention, ConvPatchEmbed
from softless.layers.attention import CLASSES
from softless.layers.patch_embed import check_size
from softless.layers.plain import computes_weight, hooks_on_all, refuse_parts, why_changed
from softless.layers.position import FourierPosition, fourier_table
from softless.models import vit, xcit

TOKEN_WISE = (
    nn.Identity,
    nn.LayerNorm,
    TimmLayerNorm,
    nn.RMSNorm,
    RmsNorm,
    Mlp,
    GluMlp,
    SwiGLU,
    PackedMlp,
)
KNOWN = (
    "a ViT or DeiT of timm (softless.create_model, or one that softless.swap has changed) or "
    "an XCiT, plain or from softless.optimize"
)
Branch = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Parts:
    """The modules of one layer: x += s1 attention(norm1 x); x += s3 lpi(norm3 x) where there is
    one; x += s2 mlp(norm2 x).
    """

    name: str
    norm1: nn.Module
    attention: Attention
    scale1: Tensor | None
    norm2: nn.Module
    mlp: nn.Module
    scale2: Tensor | None
    norm3: nn.Module | None = None
    # up to its second convolution, and that: (1,D,h,w) -> (1,D,h,w) each
    lpi: tuple[Branch, Branch] | None = None
    scale3: Tensor | None = None


class Host(ABC):
    """A model as the engine sees it."""

    prefix = 0  # tokens ahead of the patches in the residual stream
    margin = 0  # patches above and to the left that the embedding of a patch looks at

    def __init__(self, model: Any, parts: tuple[Parts, ...]) -> None:
        self.model, self.parts = model, parts
        first = next(model.parameters())
        self.dtype, self.device, self.dim = first.dtype, first.device, int(model.embed_dim)
        convolutions = (
            m for m in model.patch_embed.modules() if isinstance(m, nn.Conv2d | PatchProjection)
        )
        self.channels = int(next(convolutions).in_channels)
        side = model.patch_embed.patch_size
        self.patch: tuple[int, int] = (
            (side, side) if isinstance(side, int) else (int(side[0]), int(side[1]))
        )

    def check(self, height: int, width: int) -> None:
        """Refuse a size that the model itself refuses."""
        check_size(height, width, self.patch)

    @abstractmethod
    def positions(self, height: int, width: int) -> None:
        """Prepare the positions of a grid: of rows and of columns, never of both."""

    @abstractmethod
    def prefix_rows(self) -> Tensor:
        """The tokens ahead of the patches as they enter the first layer: (prefix, D)."""

    @abstractmethod
    def embed(self, pixels: Tensor, rows: slice, columns: slice) -> Tensor:
        """The tokens of a block of patches as they enter the first layer: (rows, columns, D).

        Args:
            pixels: (1, C, …) of the block, with `margin` patches more above and to the left where
                the image has them.
            rows: of the grid.
            columns: of the grid.
        """


def host_of(model: nn.Module) -> Host:
    """The model as the engine sees it.

    Raises:
        UsageError: a class, a block or a module that is not known; it is named.
    """
    refuse_parts(model, "stream")
    _unwatched(model)
    if _does_as(
        model,
        (VisionTransformer, vit.ViT),
        "forward",
        "forward_features",
        "pool",
        "_pos_embed",
        "forward_head",
    ):
        return ViTHost(model)
    distilled = ("_pos_embed", "forward_head")
    if _does_as(model, (VisionTransformerDistilled,), *distilled) and _does_as(
        model, (VisionTransformer, vit.ViT), "forward_features"
    ):
        return ViTHost(model)
    if _does_as(model, (timm_xcit.Xcit, xcit.Xcit), "forward", "forward_features", "forward_head"):
        return XcitHost(model)
    raise UsageError(f"{type(model).__name__} cannot be streamed: give {KNOWN}")


def _does_as(model: nn.Module, kinds: tuple[type, ...], *methods: str) -> bool:
    """Whether a model, or the one that it was optimized from, is of the first kind, each method as
    in one of them: ours differ on no images alone.
    """
    own = kind_of(model)
    if not issubclass(own, kinds[0]) or "forward" in vars(model):
        return False
    return all(
        getattr(own, method) in [getattr(kind, method) for kind in kinds] for method in methods
    )


class ViTHost(Host):
    """timm's VisionTransformer and its distilled form, with our attention."""

    def __init__(self, model: Any) -> None:
        embed = model.patch_embed
        if type(embed) not in {TimmPatchEmbed, vit.PatchEmbed}:
            raise UsageError(
                f"patch_embed is a {type(embed).__name__}, and the engine cuts timm's PatchEmbed "
                "into blocks alone"
            )
        super().__init__(
            model, tuple(parts_of(f"blocks.{i}", block) for i, block in enumerate(model.blocks))
        )
        self.distilled = isinstance(model, VisionTransformerDistilled)
        self.prefix = model.num_prefix_tokens
        if not self.distilled and model.global_pool not in {"token", "avg"}:
            raise UsageError(
                f"global_pool='{model.global_pool}' cannot be streamed: build the model with "
                "global_pool='token' or 'avg'"
            )
        for name in ("norm_pre", "norm", "fc_norm", "patch_embed.norm"):
            _token_wise(name, model.get_submodule(name))

    def check(self, height: int, width: int) -> None:
        """Refuse a size that the model itself refuses."""
        super().check(height, width)
        if not self.model.dynamic_img_size and (height, width) != tuple(
            self.model.patch_embed.img_size
        ):
            own = " x ".join(map(str, self.model.patch_embed.img_size))
            raise UsageError(
                f"image is {height} x {width} and this model takes {own} alone: build it with "
                "dynamic_img_size=True, or call "
                f"model.set_input_size(({height}, {width}))"
            )

    def positions(self, height: int, width: int) -> None:
        """Timm's antialiased bicubic resampling as the two matrices that it is, one for rows and
        one for columns.
        """
        self.place, self.rows, self.columns = None, None, None
        if self.model.pos_embed is None:
            return
        old = tuple(self.model.patch_embed.grid_size)
        # (old h, old w, D)
        self.place = self.model.pos_embed[0, self._placed_prefix :].unflatten(0, old)
        if (height, width) != old:
            self.place = self.place.float()
            self.rows, self.columns = (
                _resampling(old[0], height, self.device),
                _resampling(old[1], width, self.device),
            )

    @property
    def _placed_prefix(self) -> int:
        """How many of the prefix tokens have a position."""
        return 0 if self.model.no_embed_class else self.prefix

    def _positions(self, rows: slice, columns: slice) -> Tensor | None:
        if self.place is None:
            return None
        if self.rows is None or self.columns is None:
            return self.place[rows, columns]
        # (rows, old w, D)
        some = (self.rows[rows] @ self.place.flatten(1)).unflatten(1, self.place.shape[1:])
        return (self.columns[columns] @ some).to(self.model.pos_embed.dtype)

    def prefix_rows(self) -> Tensor:
        model = self.model
        names = ("cls_token", "dist_token") if self.distilled else ("cls_token", "reg_token")
        rows = [getattr(model, name)[0] for name in names if getattr(model, name, None) is not None]
        if not rows:
            return torch.empty(0, self.dim, dtype=self.dtype, device=self.device)
        x = torch.cat(rows)
        if model.pos_embed is not None and self._placed_prefix:
            x = x + model.pos_embed[0, : self.prefix]
        return model.norm_pre(x)

    def embed(self, pixels: Tensor, rows: slice, columns: slice) -> Tensor:
        model = self.model
        x = model.patch_embed.norm(model.patch_embed.proj(pixels)[0].permute(1, 2, 0))
        place = self._positions(rows, columns)
        return model.norm_pre(x if place is None else x + place)


def _resampling(old: int, new: int, device: torch.device) -> Tensor:
    """(new, old): what one axis of timm's resampling does, read off the unit vectors."""
    # two columns: of one, torch 2.15 takes the channels for the columns and resamples those
    units = torch.eye(old, device=device)[None, :, :, None].repeat(1, 1, 1, 2)
    return F.interpolate(units, size=(new, 2), mode="bicubic", antialias=True)[
        0, :, :, 0
    ].T.contiguous()


def parts_of(name: str, block: Any) -> Parts:
    """The modules of a block of timm's ViT, plain or optimized.

    Raises:
        UsageError: another block, or a module that may mix tokens; it is named.
    """
    if type(block) is PackedBlock:
        return _parts(name, block, None, None)
    if type(block) is not TimmBlock:
        raise UsageError(
            f"{name} is a {type(block).__name__}, and the engine knows timm's Block alone (norm, "
            "attention, norm, MLP)"
        )
    scales = []
    for side in ("ls1", "ls2"):
        scale = getattr(block, side)
        if type(scale) not in {LayerScale, nn.Identity}:
            raise UsageError(
                f"{name}.{side} is a {type(scale).__name__}, and the engine knows LayerScale alone"
            )
        scales.append(scale.gamma if isinstance(scale, LayerScale) else None)
    return _parts(name, block, scales[0], scales[1])


class XcitHost(Host):
    """Our XCiT, and timm's after a swap, with and without local patch interaction."""

    margin = 1  # a patch of the stem sees 15 pixels beyond its own, above and to the left

    def __init__(self, model: Any) -> None:
        embed = model.patch_embed
        if type(embed) not in {ConvPatchEmbed, timm_xcit.ConvPatchEmbed}:
            raise UsageError(
                f"patch_embed is a {type(embed).__name__}, and the engine cuts XCiT's "
                "ConvPatchEmbed into blocks alone"
            )
        self.place: Any = (
            model.pos_embed.positions if type(model.pos_embed) is KeptPositions else model.pos_embed
        )
        if self.place is not None and type(self.place) not in {
            FourierPosition,
            timm_xcit.PositionalEncodingFourier,
        }:
            raise UsageError(
                f"pos_embed is a {type(self.place).__name__}, and the engine knows XCiT's Fourier "
                "positions alone"
            )
        super().__init__(
            model, tuple(_xcit_parts(f"blocks.{i}", block) for i, block in enumerate(model.blocks))
        )
        if model.global_pool not in {"token", "avg"}:
            raise UsageError(
                f"global_pool='{model.global_pool}' cannot be streamed: build the model with "
                "global_pool='token' or 'avg'"
            )
        for number, block in enumerate(model.cls_attn_blocks):
            name = f"cls_attn_blocks.{number}"
            if type(block) is not timm_xcit.ClassAttentionBlock or type(block.attn) not in {
                ClassAttention,
                timm_xcit.ClassAttn,
            }:
                raise UsageError(
                    f"{name} is a {type(block).__name__} with {type(block.attn).__name__}, which "
                    "the engine does not know"
                )
            for part in ("norm1", "norm2", "mlp"):
                _token_wise(f"{name}.{part}", getattr(block, part))
        _token_wise("norm", model.norm)

    def positions(self, height: int, width: int) -> None:
        """The sines and cosines of rows (features, h) and of columns (features, w)."""
        features = 0 if self.place is None else self.place.token_projection.in_channels // 2
        self.rows = (
            fourier_table(height, 1, features, device=self.device)[0, :features, :, 0]
            if features
            else None
        )
        self.columns = (
            fourier_table(1, width, features, device=self.device)[0, features:, 0]
            if features
            else None
        )

    def prefix_rows(self) -> Tensor:
        return torch.empty(0, self.dim, dtype=self.dtype, device=self.device)

    def embed(self, pixels: Tensor, rows: slice, columns: slice) -> Tensor:
        x = self.model.patch_embed.proj(pixels.contiguous(memory_format=torch.channels_last))
        down, across = rows.stop - rows.start, columns.stop - columns.start
        x = x[..., -down:, -across:]
        if self.rows is not None and self.columns is not None:
            sides = (
                self.rows[:, rows, None].expand(-1, -1, across),
                self.columns[:, None, columns].expand(-1, down, -1),
            )
            x = x + self.place.token_projection(torch.cat(sides)[None].to(self.dtype))
        return x[0].permute(1, 2, 0)


def _xcit_parts(name: str, block: Any) -> Parts:
    if type(block) not in {xcit.Block, timm_xcit.XCABlock, XcitBlock}:
        raise UsageError(
            f"{name} is a {type(block).__name__}, and the engine knows XCiT's blocks alone"
        )
    scales = [getattr(block, f"gamma{side}", None) for side in (1, 2, 3)]
    if block.local_mp is None:
        return _parts(name, block, scales[0], scales[1])
    _token_wise(f"{name}.norm3", block.norm3)
    lpi, scale = _branch(block.local_mp, scales[2])
    return _parts(
        name,
        block,
        scales[0],
        scales[1],
        norm3=block.norm3,
        lpi=_convolutions(f"{name}.local_mp", lpi),
        scale3=scale,
    )


def _convolutions(name: str, lpi: Any) -> tuple[Branch, Branch]:
    """Local patch interaction up to its second convolution, and that convolution."""
    if type(lpi) is PackedLPI:
        return lpi.ahead, lpi.second
    if type(lpi) not in {LPI, timm_xcit.LPI}:
        raise UsageError(
            f"{name} is a {type(lpi).__name__}, and the engine knows XCiT's local patch "
            "interaction alone"
        )
    return lambda grid: lpi.bn(lpi.act(lpi.conv1(grid))), lpi.conv2


def _branch(module: Any, scale: Tensor | None) -> tuple[Any, Tensor | None]:
    """A branch and its layer scale, which in an optimized model lie in one module where the scale
    could not be folded.
    """
    if not isinstance(module, Added):
        return module, scale
    return module.branch, module.scale


def _parts(
    name: str, block: Any, scale1: Tensor | None, scale2: Tensor | None, **more: Any
) -> Parts:
    attention, scale1 = _branch(block.attn, scale1)
    mlp, scale2 = _branch(block.mlp, scale2)
    if type(attention) not in {Attention, PackedAttention, *CLASSES.values()}:
        raise UsageError(
            f"{name}.attn is a {type(attention).__name__}: only softless attention is streamed; "
            "exchange it with softless.swap(model, op=…)"
        )
    for companion in ("v_conv", "reduction"):
        if getattr(attention, companion) is not None:
            raise UsageError(
                f"{name}.attn has {companion}, a convolution over the whole grid, which is not "
                "streamed: build it without"
            )
    for part, module in (("norm1", block.norm1), ("norm2", block.norm2), ("mlp", mlp)):
        _token_wise(f"{name}.{part}", module)
    return Parts(name, block.norm1, attention, scale1, block.norm2, mlp, scale2, **more)


def _token_wise(name: str, module: nn.Module) -> None:
    """Refuse a module that may look at more than one token at a time."""
    convolved = isinstance(module, Mlp | GluMlp) and any(
        isinstance(one, nn.Conv2d) for one in module.fc1.modules()
    )
    if type(module) not in TOKEN_WISE or convolved:
        raise UsageError(
            f"{name} is a {type(module).__name__}, which may mix tokens: the engine knows norms "
            "and MLPs of single tokens"
        )


def _unwatched(model: nn.Module) -> None:
    """Refuse hooks: they would be given chunks, or nothing, in place of the whole. So would what
    was changed and is not called here.

    Hooks that compute a weight (weight_norm, pruning) look at no token, and no backward pass
    follows.
    """
    if hooks_on_all():
        raise UsageError(
            "hooks are set on all modules, and would see chunks in place of the whole: remove "
            "them before streaming"
        )
    for name, module in model.named_modules():
        path = name or type(model).__name__
        hooks = [*module._forward_hooks.values(), *module._forward_pre_hooks.values()]
        if not all(map(computes_weight, hooks)):
            raise UsageError(
                f"{path} has hooks, which would see chunks in place of the whole: remove them "
                "before streaming"
            )
        called = type(module) in TOKEN_WISE or not (
            module._modules or isinstance(module, LayerScale | DropPath)
        )
        if "forward" in vars(module) and not called:
            raise UsageError(
                f"{path}: {why_changed(module)}, and streaming does what it did over chunks "
                "without calling it: give a model whose forward is "
                "its own, with all weights in memory"
            )
