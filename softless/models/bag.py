"""Models of bags: a slide as the features of its tiles in, a label out.

    tiles (B,N,D) -> linear to the width -> blocks with one operator -> norm -> pool -> head

`<op>_bag_{tiny,small,base}` for every operator that can work on a set of tiles, and three controls
without attention between tiles. They are no image models: timm does not know them.
"""

# B bags, N tiles of the longest, D features of a tile, W width, K classes

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from softless.attention.record import Operator
from softless.attention.recording import recording
from softless.attention.registry import OPERATORS
from softless.errors import UsageError, unknown
from softless.layers.plain import why_called
from softless.layers.recomputed import ChunkedFunction, spans_of
from softless.models.bag_parts import (
    BagBlock,
    ClassPool,
    FourierPosition,
    GatedPool,
    MaxPool,
    MeanPool,
    Pool,
    from_smallest,
)
from softless.models.construction import constructed
from softless.models.options import take_operator_options

PoolName = Literal["gated", "cls", "mean"]
PositionName = Literal["none", "fourier"]
CHUNK = 2048  # tiles at once, of all bags together, where nobody says
MANY = 8192  # tiles of all bags together from which that is
FEWEST = 16  # tiles of a bag at once: a norm of fewer says little of a channel
TILES = 1024  # that are counted where nobody says
HIDDEN = 128  # of the gates of abmil_bag: arXiv:1802.04712


@dataclass(frozen=True)
class BagSize:
    """Width, blocks and heads."""

    width: int
    depth: int
    num_heads: int


SIZES: Mapping[str, BagSize] = {
    "tiny": BagSize(128, 1, 4),
    "small": BagSize(256, 2, 4),
    "base": BagSize(512, 2, 8),
}
CONTROLS: Mapping[str, str] = {
    "abmil_bag": "gated attention over tiles (arXiv:1802.04712), no block: a control",
    "mean_bag": "mean of the embedded tiles: a control",
    "max_bag": "largest of each channel over the embedded tiles: a control",
}
JOIN = "_bag_"
# options of operators that are others here: as many tiles as there are, in no order
OF_SETS: Mapping[str, Any] = {"token_scale": "tokens", "reweight": False}


def why_no_bag(record: Operator, options: Mapping[str, Any]) -> str:
    """Why an operator cannot work on a set of tiles, as the end of a sentence; empty where it
    can.
    """
    if record.wants("grid", options):
        return "it needs a grid, and the tiles of a slide stand on none that is full"
    if record.wants("tokens", options):
        return "it learns a row for each token, and every slide has another number of tiles"
    if record.wants("tied_qk", options):
        return "its queries are its keys, of which it draws landmarks on a grid"
    if record.reduces and record.reduces(record.filled(options)) > 1:
        return "it makes keys few by windows of a grid, and tiles stand on none that is full"
    if record.streaming is None and record.name != "softmax":
        return f"it has no streaming form: {record.no_stream}"
    return ""


def bag_models() -> dict[str, str]:
    """Every model of bags by its name, with a line."""
    named = {
        f"{op}{JOIN}{size}": f"bags of tiles: {record.summary}"
        for op, record in OPERATORS.items()
        if not why_no_bag(record, {})
        for size in SIZES
    }
    return named | dict(CONTROLS)


def is_bag_name(name: str) -> bool:
    """Whether a name says that it is of a model of bags, known or not."""
    return name in CONTROLS or JOIN in name


def check_bag_name(name: str, op: str | None = None) -> None:
    """Whether there is such a model.

    Raises:
        UsageError: there is none (nearest offered), its operator cannot work on bags (the reason is
            given), or another operator was asked for.
    """
    known = bag_models()
    if name not in known:
        stem, _, size = name.partition(JOIN)
        if stem in OPERATORS and size in SIZES:
            raise UsageError(
                f"there is no '{name}': of operator '{stem}' there is no model of bags, since "
                f"{why_no_bag(OPERATORS[stem], {})}"
            )
        raise unknown("model", name, known)
    own = operator_of(name)
    if op is not None and op != own:
        raise UsageError(
            f"'{name}' has {f'operator {own!r}' if own else 'no operator'}: for op='{op}' name "
            f"'{op}{JOIN}small'"
        )


def operator_of(name: str) -> str | None:
    """The operator of a model of bags; None of a control."""
    return None if name in CONTROLS else name.partition(JOIN)[0]


def create_bag_model(name: str, **kwargs: Any) -> "BagModel":
    """A model of bags by its name.

    Raises:
        UsageError: no such model, or an argument that it does not take.
    """
    check_bag_name(name)
    op = operator_of(name)
    taken = dict(kwargs)
    if op is None:
        known, fixed = CONTROL_ARGUMENTS, {"pool": name.removesuffix("_bag"), "depth": 0}
        fixed |= {"hidden": HIDDEN} if name == "abmil_bag" else {}
        options: dict[str, Any] = {}
    else:
        options = take_operator_options(op, taken)
        record, size = OPERATORS[op], SIZES[name.partition(JOIN)[2]]
        for key, value in OF_SETS.items():
            if key in record.options:
                options.setdefault(key, value)
        if why := why_no_bag(record, options):
            raise UsageError(f"'{name}' with {options}: {why}")
        known = (*ARGUMENTS, *record.options)
        fixed = {"width": size.width, "depth": size.depth, "num_heads": size.num_heads}
    for key in taken:
        if key not in known:
            raise unknown(f"option of '{name}'", key, known)
    model = BagModel(op, options, **{**fixed, **taken})
    constructed(model, name, None, kwargs)
    return model


def refuse_bags(model: object, action: str) -> None:
    """Refuse a model of bags where one of images is meant.

    Raises:
        UsageError: it is one.
    """
    if isinstance(getattr(model, "_orig_mod", model), BagModel):
        raise UsageError(
            f"{action}: this is a model of bags, which takes features of tiles and no images: ask "
            "it by softless.stream(model, softless.Bag.open(path)), or call it"
        )


class BagModel(nn.Module):
    """A transformer over the tiles of a slide, or a control without blocks.

    Tiles that do not count are as if they were not there. So bags of different lengths batch by
    padding, with a mask, and each has the logits that it has alone.

    Args:
        op: The operator of the blocks; None for a control.
        options: Of the operator.
        in_dim: Features of a tile.
        num_classes: Of the head; 0 leaves it out.
        pool: "gated" attention over the tiles, a class token ("cls") ahead of them, or their
            "mean"; of controls "abmil", "mean" or "max".
        position: "fourier" adds where a tile stands, in micrometres; "none" does not look.
        chunk: Tiles of a bag at once. Training keeps then one tensor (B,N,W) a block, and computes
            the rest again for its gradients, which are exact. None works on 2,048 tiles at once
            where all bags have 8,192 and more; 0 on all of them always. They are 16 at least.
        width: W.
        depth: Blocks.
        num_heads: Of the attention.
        mlp_ratio: Width of the hidden layer of a block over W.
        act: Activation of that layer.
        init_values: Start of the layer scales.
        hidden: Width of the gates; W / 2 by default.

    Raises:
        UsageError: a pool or a position that there is not, sizes that do not divide.
    """

    def __init__(
        self,
        op: str | None,
        options: Mapping[str, Any],
        *,
        in_dim: int = 1024,
        num_classes: int = 2,
        pool: str = "gated",
        position: PositionName = "none",
        chunk: int | None = None,
        width: int = 256,
        depth: int = 2,
        num_heads: int = 4,
        mlp_ratio: float = 2.0,
        act: str = "gelu",
        init_values: float = 0.1,
        hidden: int | None = None,
    ) -> None:
        super().__init__()
        _check(pool, position, chunk, controls=op is None)
        self.in_dim, self.num_classes, self.num_features = in_dim, num_classes, width
        self.chunk = chunk
        self.embed = nn.Linear(in_dim, width)
        self.act = nn.ReLU() if op is None else nn.Identity()
        self.position = FourierPosition(width) if position == "fourier" else None
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width)) if pool == "cls" else None
        self.blocks = nn.ModuleList(
            BagBlock(
                width,
                num_heads,
                op,
                dict(options),
                mlp_ratio=mlp_ratio,
                act=act,
                init_values=init_values,
            )
            for _ in range(depth)
            if op is not None
        )
        norm: nn.Module = nn.Identity() if op is None else nn.LayerNorm(width)
        self.pool = _pool(pool, norm, width, hidden or max(width // 2, 1))
        self.head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        self.pretrained_cfg: dict[str, Any] = {}
        self._start()

    @property
    def first_weight(self) -> Tensor:
        """A weight of the dtype and on the device that the model computes in, (W,D)."""
        return next(p for p in self.embed.parameters() if p.ndim == 2)

    def _start(self) -> None:
        """Truncated normal weights in the linear layers, as timm's ViT."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                for name, parameter in module.named_parameters():
                    if name == "weight":
                        nn.init.trunc_normal_(parameter, std=module.in_features**-0.5)
                    else:
                        nn.init.zeros_(parameter)
        if self.cls_token is not None:
            nn.init.normal_(self.cls_token, std=0.02)

    def bag_size(self, size: int | Sequence[int] | None) -> tuple[int, int, int]:
        """The shape of the input that `softless.cost` and `audit` mean by a size: so many tiles,
        (N, D) or (1, N, D); 1,024 tiles where nothing is said.

        Raises:
            UsageError: another shape.
        """
        asked = (size,) if isinstance(size, int) else tuple(size or (TILES,))
        if len(asked) == 3 and asked[0] == 1:
            asked = asked[1:]
        if not 1 <= len(asked) <= 2 or asked[1:] not in {(), (self.in_dim,)} or asked[0] < 1:
            raise UsageError(
                f"input_size={size}: of a model of bags give the number of tiles, or (tiles, "
                f"{self.in_dim})"
            )
        tiles = asked[0]
        return 1, tiles, self.in_dim

    @property
    def counted(self) -> nn.Module:
        """What `softless.cost` and `audit` call with features alone."""
        return self if self.position is None else _Somewhere(self)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that take no weight decay."""
        return {"cls_token"} if self.cls_token is not None else set()

    def forward(
        self, features: Tensor, coords_um: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Logits of bags.

        Args:
            features: (B,N,D) of the tiles, of any floating dtype.
            coords_um: (B,N,2) x and y of each tile in micrometres; looked at with
                position="fourier" alone.
            mask: (B,N) boolean, True where a tile counts.

        Returns:
            (B,K).

        Raises:
            UsageError: shapes or dtypes that do not fit, a bag without a tile that counts, or no
                coordinates where they are needed.
        """
        logits: Tensor = self.head(self.forward_features(features, coords_um, mask))
        return logits

    def forward_features(
        self, features: Tensor, coords_um: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """What the head is given: (B,N,D) -> (B,W)."""
        x, mask, spans = self._tiles(features, coords_um, mask)
        if spans is None or why_called(self.pool):
            bags: Tensor = self.pool(x, mask)
            return bags
        return self.pool.in_chunks(x, mask, spans)

    def tile_scores(
        self, features: Tensor, coords_um: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The gated weight of each tile: (B,N,D) -> (B,N), which sums to 1 over the tiles that
        count.

        Raises:
            UsageError: a model without a gated pool.
        """
        pool = self.pool
        if not isinstance(pool, GatedPool):
            raise UsageError(
                "this model weighs no tiles: it has no gated pool; build it with pool='gated'"
            )
        x, mask, spans = self._tiles(features, coords_um, mask)
        scores = ChunkedFunction(
            [], lambda tokens, _, __: pool.scores(pool.norm(tokens)), pool.parameters
        )(x, spans or [slice(0, x.shape[1])])[..., 0]
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1)

    def _tiles(
        self, features: Tensor, coords: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Sequence[slice] | None]:
        """The tokens ahead of the pool (B,N,W), the mask of them, and their chunks where there are
        some.
        """
        self._check(features, coords, mask)
        if self.position is not None:
            assert coords is not None
            coords = from_smallest(coords, mask)
        # what is counted is the model as it is written
        fake = isinstance(features, FakeTensor)
        spans = None if fake else self._spans(*features.shape[:2])
        embed = ChunkedFunction(
            [], lambda x, span, _: self.embedded(x, coords, mask, span), self._ahead_of_blocks
        )
        if spans is None:
            x = self.embedded(features, coords, mask, slice(0, features.shape[1]))
        else:
            x = embed(features, spans)
        if self.cls_token is not None:
            x = torch.cat([self.cls_token.expand(len(x), -1, -1).to(x.dtype), x], 1)
            if mask is not None:
                mask = torch.cat([mask.new_ones(len(mask), 1), mask], 1)
            spans = None if spans is None else spans_of(x.shape[1], spans[0].stop)
        for block in self.blocks:
            assert isinstance(block, BagBlock)
            in_chunks = spans is not None and block.streams
            x = block.in_chunks(x, mask, spans) if in_chunks and spans else block(x, mask)
        return x, mask, spans

    def _ahead_of_blocks(self) -> list[Tensor]:
        """The parameters of what stands ahead of the blocks."""
        position = [] if self.position is None else [*self.position.parameters()]
        return [*self.embed.parameters(), *position]

    def embedded(
        self, features: Tensor, coords: Tensor | None, mask: Tensor | None, span: slice
    ) -> Tensor:
        """Features (B,n,D) of a chunk as tokens (B,n,W) for the first block.

        Args:
            features: of its tiles.
            coords: of all tiles (B,N,2), from the bag's smallest; looked at with positions alone.
            mask: of all tiles (B,N).
            span: where the chunk stands among them.
        """
        x = features.to(self.first_weight.dtype)
        if mask is not None:  # padding may hold anything
            x = x.masked_fill(~mask[:, span, None], 0)
        x = self.embed(x)
        if self.position is not None:
            assert coords is not None
            x = x + self.position(coords[:, span]).to(x.dtype)
        tokens: Tensor = self.act(x)
        return tokens

    def _spans(self, bags: int, tiles: int) -> list[slice] | None:
        """Which tiles are worked on at once; None: all."""
        if self.chunk == 0 or recording() or torch.compiler.is_compiling():
            return None
        if self.chunk is None and bags * tiles < MANY:
            return None
        chunk = max(CHUNK // bags if self.chunk is None else self.chunk, FEWEST)
        return spans_of(tiles, chunk) if tiles > chunk else None

    def _check(self, features: Tensor, coords: Tensor | None, mask: Tensor | None) -> None:
        """Refuse what is no batch of bags.

        Raises:
            UsageError: the shape is repeated.
        """
        shape = tuple(features.shape)
        if features.ndim != 3 or shape[2] != self.in_dim or not features.is_floating_point():
            raise UsageError(
                f"features is {features.dtype} {shape}: this model takes bags of tiles, floating "
                f"(B, N, {self.in_dim}); a single bag is features[None]"
            )
        if not shape[1]:
            raise UsageError("a bag has no tiles: leave it out")
        if mask is not None:
            if mask.dtype != torch.bool or tuple(mask.shape) != shape[:2]:
                raise UsageError(
                    f"mask is {mask.dtype} {tuple(mask.shape)}: it must be torch.bool of shape "
                    f"{shape[:2]}, True where a tile counts"
                )
            looks = not (recording() or torch.compiler.is_compiling() or mask.is_meta)
            if looks and not mask.any(1).all():
                raise UsageError("mask leaves a bag without a tile that counts: leave it out")
        if self.position is not None:
            if coords is None:
                raise UsageError(
                    "position='fourier' looks at where tiles stand: pass coords_um (B, N, 2) in "
                    "micrometres, or build the model with position='none'"
                )
            if tuple(coords.shape) != (*shape[:2], 2):
                raise UsageError(
                    f"coords_um has shape {tuple(coords.shape)}: it must be {(*shape[:2], 2)}, x "
                    "and y of each tile in micrometres"
                )

    def extra_repr(self) -> str:
        """What no part says."""
        return f"in_dim={self.in_dim}, chunk={self.chunk}"


class _Somewhere(nn.Module):
    """A model that looks at places, with all tiles at one."""

    def __init__(self, model: BagModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, features: Tensor) -> Tensor:
        """(B,N,D) -> (B,K)."""
        logits: Tensor = self.model(features, features.new_zeros(*features.shape[:2], 2))
        return logits


ARGUMENTS = (
    "in_dim",
    "num_classes",
    "pool",
    "position",
    "chunk",
    "width",
    "depth",
    "num_heads",
    "mlp_ratio",
    "act",
    "init_values",
)
CONTROL_ARGUMENTS = ("in_dim", "num_classes", "chunk", "width")


def _check(pool: str, position: str, chunk: int | None, *, controls: bool) -> None:
    pools = ("abmil", "mean", "max") if controls else get_args(PoolName)
    if pool not in pools:
        raise unknown("pool", str(pool), pools)
    if position not in get_args(PositionName):
        raise unknown("position", str(position), get_args(PositionName))
    if chunk is not None and (isinstance(chunk, bool) or not isinstance(chunk, int) or chunk < 0):
        raise UsageError(f"chunk={chunk!r}: a number of tiles at once, 0 for all, or None")


def _pool(name: str, norm: nn.Module, width: int, hidden: int) -> Pool:
    if name in {"gated", "abmil"}:
        return GatedPool(norm, width, hidden)
    return {"cls": ClassPool, "mean": MeanPool, "max": MaxPool}[name](norm)
