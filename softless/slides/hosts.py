"""How a host is cut into what the engine needs: blocks of patches, positions of some rows, layers,
and what follows the last of them.

Only what is known here is streamed: a class, a block or a module that is not is an error that names
it, since one that is not known might mix tokens in a way that chunks would lose.
"""

# D width of the tokens, h x w the whole grid of patches

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, GluMlp, LayerScale, Mlp, RmsNorm, SwiGLU
from timm.layers import LayerNorm as TimmLayerNorm
from torch import Tensor, nn

from softless.errors import UsageError
from softless.inference.blocks import BLOCKS
from softless.inference.layers import (
    Added,
    KeptPositions,
    PackedAttention,
    PackedLPI,
    PackedMlp,
    PatchProjection,
)
from softless.inference.model import kind_of
from softless.layers.attention import CLASSES, Attention
from softless.layers.patch_embed import check_size
from softless.layers.plain import computes_weight, hooks_on_all, refuse_parts, why_changed
from softless.layers.position import fourier_table
from softless.models import vit
from softless.models.host import BlockKind, Branch, ClassBlocks, Host, KnownClasses, Modules, Pass
from softless.models.hosts import HOSTS, class_blocks, tokens_ahead

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
CUTS, KNOWS = "cuts {} into blocks alone", "knows {} alone"
BranchCall = Callable[[Tensor], Tensor]


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
    lpi: tuple[BranchCall, BranchCall] | None = None
    scale3: Tensor | None = None


class StreamedHost(ABC):
    """A model as the engine sees it.

    Args:
        model: of a host, plain or optimized.
        record: of its host.
        route: the way through the host that this model takes.

    Raises:
        UsageError: a block or a module that is not known; it is named.
    """

    def __init__(self, model: Any, record: Host, route: Pass) -> None:
        self.model, self.route = model, route
        if record.embedding is not None:
            _refuse_unknown("patch_embed", model.patch_embed, record.embedding, CUTS)
        if record.positions is not None and (position := _position(model)) is not None:
            _refuse_unknown("pos_embed", position, record.positions, KNOWS)
        self.parts = tuple(
            parts_of(f"blocks.{i}", block, record.blocks) for i, block in enumerate(model.blocks)
        )
        if route.pools and model.global_pool not in route.pools:
            raise UsageError(
                f"global_pool='{model.global_pool}' cannot be streamed: build the model with "
                f"global_pool={' or '.join(map(repr, route.pools))}"
            )
        self.averages = bool(route.pools) and model.global_pool == "avg"
        self.class_blocks = class_blocks(model) or []
        if record.class_blocks is not None:
            _check_class_blocks(self.class_blocks, record.class_blocks)
        for name in route.norms:
            _token_wise(name, model.get_submodule(name))
        # tokens ahead of the patches in the residual stream
        self.prefix = tokens_ahead(model) or 0
        # patches above and to the left that the embedding of a patch looks at
        self.margin = route.margin
        weight = next(model.parameters())
        self.dtype, self.device, self.dim = weight.dtype, weight.device, int(model.embed_dim)
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

    def prefix_rows(self) -> Tensor:
        """The tokens ahead of the patches as they enter the first layer: (prefix, D)."""
        tokens = [getattr(self.model, name, None) for name in self.route.prefix]
        rows = [token[0] for token in tokens if token is not None]
        if not rows:
            return torch.empty(0, self.dim, dtype=self.dtype, device=self.device)
        return self.placed(torch.cat(rows))

    def placed(self, x: Tensor) -> Tensor:
        """The tokens ahead of the patches (prefix, D) with their positions."""
        return x

    @abstractmethod
    def embed(self, pixels: Tensor, rows: slice, columns: slice) -> Tensor:
        """The tokens of a block of patches as they enter the first layer: (rows, columns, D).

        Args:
            pixels: (1, C, …) of the block, with `margin` patches more above and to the left where
                the image has them.
            rows: of the grid.
            columns: of the grid.
        """


def host_of(model: nn.Module) -> StreamedHost:
    """The model as the engine sees it.

    Raises:
        UsageError: a class, a block or a module that is not known; it is named.
    """
    refuse_parts(model, "stream")
    _unwatched(model)
    model_class = kind_of(model)
    for record in HOSTS.values():
        for route in record.passes:
            if route.taken_by(model_class) and "forward" not in vars(model):
                return ENGINES[route.positions](model, record, route)
    raise UsageError(f"{type(model).__name__} cannot be streamed: give {KNOWN}")


def _refuse_unknown(name: str, module: nn.Module, accepted: KnownClasses, rule: str) -> None:
    """Refuse a module of another class than the host's own."""
    if type(module) not in accepted.classes:
        raise UsageError(
            f"{name} is a {type(module).__name__}, and the engine {rule.format(accepted.title)}"
        )


def _position(model: Any) -> Any:
    """The module that computes positions, behind the one in which an optimized model keeps them."""
    position = model.pos_embed
    return position.positions if type(position) is KeptPositions else position


def _check_class_blocks(blocks: list[nn.Module], record: ClassBlocks) -> None:
    """Refuse a class attention that is not the host's own."""
    for number, block in enumerate(blocks):
        name, attention = f"{record.attribute}.{number}", block.attn
        if type(block) not in record.accepted.classes or type(attention) not in record.attentions:
            raise UsageError(
                f"{name} is a {type(block).__name__} with {type(attention).__name__}, which "
                "the engine does not know"
            )
        for part in record.token_wise:
            _token_wise(f"{name}.{part}", block.get_submodule(part))


class TableHost(StreamedHost):
    """A host with a table of positions: timm's VisionTransformer and its distilled form, with our
    attention.
    """

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
        self.table, self.row_weights, self.column_weights = None, None, None
        if self.model.pos_embed is None:
            return
        old = tuple(self.model.patch_embed.grid_size)
        # (old h, old w, D)
        self.table = self.model.pos_embed[0, self._placed_prefix :].unflatten(0, old)
        if (height, width) != old:
            self.table = self.table.float()
            self.row_weights, self.column_weights = (
                _resampling(old[0], height, self.device),
                _resampling(old[1], width, self.device),
            )

    @property
    def _placed_prefix(self) -> int:
        """How many of the prefix tokens have a position."""
        return 0 if self.model.no_embed_class else self.prefix

    def _positions(self, rows: slice, columns: slice) -> Tensor | None:
        if self.table is None:
            return None
        if self.row_weights is None or self.column_weights is None:
            return self.table[rows, columns]
        # (rows, old w, D)
        of_rows = (self.row_weights[rows] @ self.table.flatten(1)).unflatten(
            1, self.table.shape[1:]
        )
        return (self.column_weights[columns] @ of_rows).to(self.model.pos_embed.dtype)

    def placed(self, x: Tensor) -> Tensor:
        """Tokens ahead of the patches (prefix, D), with positions if they have any, normalised."""
        model = self.model
        if model.pos_embed is not None and self._placed_prefix:
            x = x + model.pos_embed[0, : self.prefix]
        return model.norm_pre(x)

    def embed(self, pixels: Tensor, rows: slice, columns: slice) -> Tensor:
        """Pixels (1, C, …) to tokens with their positions, (rows, columns, D)."""
        model = self.model
        x = model.patch_embed.norm(model.patch_embed.proj(pixels)[0].permute(1, 2, 0))
        positions = self._positions(rows, columns)
        return model.norm_pre(x if positions is None else x + positions)


class SinesHost(StreamedHost):
    """A host whose positions are sines of both axes: our XCiT, and timm's after a swap, with and
    without local patch interaction.
    """

    def positions(self, height: int, width: int) -> None:
        """The sines and cosines of rows (features, h) and of columns (features, w)."""
        self.position = _position(self.model)
        features = 0 if self.position is None else self.position.token_projection.in_channels // 2
        self.row_sines = (
            fourier_table(height, 1, features, device=self.device)[0, :features, :, 0]
            if features
            else None
        )
        self.column_sines = (
            fourier_table(1, width, features, device=self.device)[0, features:, 0]
            if features
            else None
        )

    def embed(self, pixels: Tensor, rows: slice, columns: slice) -> Tensor:
        """Pixels (1, C, …) to tokens with their positions, (rows, columns, D)."""
        x = self.model.patch_embed.proj(pixels.contiguous(memory_format=torch.channels_last))
        down, across = rows.stop - rows.start, columns.stop - columns.start
        x = x[..., -down:, -across:]
        if self.row_sines is not None and self.column_sines is not None:
            sides = (
                self.row_sines[:, rows, None].expand(-1, -1, across),
                self.column_sines[:, None, columns].expand(-1, down, -1),
            )
            x = x + self.position.token_projection(torch.cat(sides)[None].to(self.dtype))
        return x[0].permute(1, 2, 0)


# by how a host knows positions (`softless.models.host.Pass.positions`)
ENGINES: Mapping[str, type[StreamedHost]] = {"table": TableHost, "sines": SinesHost}


def _resampling(old: int, new: int, device: torch.device) -> Tensor:
    """(new, old): what one axis of timm's resampling does, read off the unit vectors."""
    # two columns: of one, torch 2.15 takes the channels for the columns and resamples those
    units = torch.eye(old, device=device)[None, :, :, None].repeat(1, 1, 1, 2)
    return F.interpolate(units, size=(new, 2), mode="bicubic", antialias=True)[
        0, :, :, 0
    ].T.contiguous()


def parts_of(name: str, block: Any, kinds: Sequence[BlockKind] = vit.HOST.blocks) -> Parts:
    """The modules of a block, plain or optimized.

    Args:
        name: what to call it in a message.
        block: the block.
        kinds: those that its host has; timm's ViT's by default.

    Raises:
        UsageError: another block, or a module that may mix tokens; it is named.
    """
    kind = next(
        (
            kind
            for kind in kinds
            if type(block) is BLOCKS[kind.call] or type(block) in kind.accepted.classes
        ),
        None,
    )
    if kind is None:
        raise UsageError(
            f"{name} is a {type(block).__name__}, and the engine knows {kinds[0].accepted.title} "
            "alone"
        )
    local = _local(name, block, kind.local) if kind.local is not None else {}
    attention, scale1 = _branch(name, block, kind.attention)
    mlp, scale2 = _branch(name, block, kind.mlp)
    path = f"{name}.{kind.attention.module}"
    if type(attention) not in {Attention, PackedAttention, *CLASSES.values()}:
        raise UsageError(
            f"{path} is a {type(attention).__name__}: only softless attention is streamed; "
            "exchange it with softless.swap(model, op=…)"
        )
    for companion in ("v_conv", "reduction"):
        if getattr(attention, companion) is not None:
            raise UsageError(
                f"{path} has {companion}, a convolution over the whole grid, which is not "
                "streamed: build it without"
            )
    norm1, norm2 = getattr(block, kind.attention.norm), getattr(block, kind.mlp.norm)
    token_wise = {kind.attention.norm: norm1, kind.mlp.norm: norm2, kind.mlp.module: mlp}
    for part, module in token_wise.items():
        _token_wise(f"{name}.{part}", module)
    return Parts(name, norm1, attention, scale1, norm2, mlp, scale2, **local)


def _local(name: str, block: Any, branch: Branch) -> dict[str, Any]:
    """The parts of local patch interaction, where a block has it."""
    if getattr(block, branch.module) is None:
        return {}
    norm = getattr(block, branch.norm)
    _token_wise(f"{name}.{branch.norm}", norm)
    lpi, scale = _branch(name, block, branch)
    path = f"{name}.{branch.module}"
    return {"norm3": norm, "lpi": _convolutions(path, lpi, branch.classes), "scale3": scale}


def _convolutions(name: str, lpi: Any, classes: Modules) -> tuple[BranchCall, BranchCall]:
    """Local patch interaction up to its second convolution, and that convolution."""
    if type(lpi) is PackedLPI:
        return lpi.ahead, lpi.second
    if type(lpi) not in classes:
        raise UsageError(
            f"{name} is a {type(lpi).__name__}, and the engine knows XCiT's local patch "
            "interaction alone"
        )
    return lambda grid: lpi.bn(lpi.act(lpi.conv1(grid))), lpi.conv2


def _branch(name: str, block: Any, branch: Branch) -> tuple[Any, Tensor | None]:
    """The module of a branch and its layer scale (D,), which in an optimized model lie in one
    module where the scale could not be folded.
    """
    module = getattr(block, branch.module)
    if isinstance(module, Added):
        return module.branch, module.scale
    scale = None if branch.scale is None else getattr(block, branch.scale, None)
    if not isinstance(scale, nn.Module):
        return module, scale
    if type(scale) not in {LayerScale, nn.Identity}:
        raise UsageError(
            f"{name}.{branch.scale} is a {type(scale).__name__}, and the engine knows LayerScale "
            "alone"
        )
    return module, scale.gamma if isinstance(scale, LayerScale) else None


def _token_wise(name: str, module: nn.Module) -> None:
    """Refuse a module that may look at more than one token at a time."""
    convolved = isinstance(module, Mlp | GluMlp) and any(
        isinstance(layer, nn.Conv2d) for layer in module.fc1.modules()
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
