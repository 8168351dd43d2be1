"""What a host is: the record that `optimize`, `stream`, `swap`, maps, features and weights read.

Each host's file gives one, `HOST`; `models/hosts.py` is their table. A reader asks the record for a
class or an attribute, so that a host is described once.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from torch import Tensor, nn

Modules = tuple[type[nn.Module], ...]


@dataclass(frozen=True)
class KnownClasses:
    """The classes that one part of a host may have, and what to call them in a message."""

    title: str
    classes: Modules


@dataclass(frozen=True)
class Branch:
    """One branch of a block, by its attributes: x += scale * module(norm(x))."""

    norm: str
    module: str
    scale: str | None = None  # a LayerScale, or a parameter (C,)
    # what may compute it besides ours where the block is rewritten
    classes: Modules = (nn.Module,)


@dataclass(frozen=True)
class BlockKind:
    """A kind of block whose branches add themselves one after the other, as they stand here."""

    accepted: KnownClasses
    # how it is called after the tokens: with a mask, the grid (prefix, h, w), or h and w
    call: Literal["mask", "grid", "sides"]
    attention: Branch
    mlp: Branch
    # between both: local patch interaction, where the block has it
    local: Branch | None = None
    drops: tuple[str, ...] = ()  # what does nothing in evaluation

    @property
    def scales(self) -> tuple[str, ...]:
        """The attributes of its layer scales."""
        branches = (self.attention, self.local, self.mlp)
        return tuple(branch.scale for branch in branches if branch is not None and branch.scale)


@dataclass(frozen=True)
class Pass:
    """A way through a host: a model takes it whose class is of the first kind, and whose methods
    are those of one of the kinds.
    """

    classes: Modules
    methods: tuple[str, ...]
    prefix: tuple[str, ...]  # tokens (1, n, C) ahead of the patches in every block, in order
    positions: Literal["table", "sines"]  # a table with a row per place, or sines of both axes
    norms: tuple[str, ...]  # of single tokens, outside the blocks
    pools: tuple[str, ...]  # values of global_pool that are read from the tokens; () asks for none
    margin: int = 0  # patches above and to the left that the embedding of a patch looks at

    def taken_by(self, model_class: type) -> bool:
        """Whether models of a class take it."""
        return issubclass(model_class, self.classes[0]) and all(
            getattr(model_class, method) in [getattr(kind, method) for kind in self.classes]
            for method in self.methods
        )


@dataclass(frozen=True)
class ClassBlocks:
    """Blocks behind the layers, in which the class token first meets the patches."""

    attribute: str  # of the model
    accepted: KnownClasses
    attentions: Modules  # of `attn`
    token_wise: tuple[str, ...]  # parts that look at single tokens


@dataclass(frozen=True)
class WeightLayout:
    """Names of a published code: those that tell it, and what they are called here (regular
    expressions).
    """

    name: str
    told_by: str
    renames: Sequence[tuple[str, str | Callable[[re.Match[str]], str]]] = ()
    # operators whose published function is another one than their default
    trained_as: tuple[str, ...] = ()


@dataclass(frozen=True)
class Host:
    """A family of models: how one is built, its parts, and what its weights are called."""

    name: str  # of the rows of `models/variants.py`
    build: Callable[..., nn.Module]
    first_conv: str  # its path, for timm
    models: Modules  # timm's class where it has one, and ours
    blocks: tuple[BlockKind, ...]
    # a tensor that tells it: the first host of the table with one in a state dict has built it
    tensor: str
    smallest: Mapping[str, Any]  # arguments of a small model with every kind of block
    passes: tuple[Pass, ...] = ()  # those that `stream` can go; () for a host that is not streamed
    embedding: KnownClasses | None = None  # of `patch_embed`, where the whole model has one
    positions: KnownClasses | None = None  # of `pos_embed`, where a module computes them
    class_blocks: ClassBlocks | None = None  # None: a class token stands ahead of the patches
    # timm's modules whose models are built with `attn_layer=`; () for one that is built here
    timm_modules: tuple[str, ...] = ()
    options: tuple[str, ...] = ()  # of `create_model`, for this host alone
    layouts: tuple[WeightLayout, ...] = field(default=(), repr=False)
    # pixels along a patch's side, by the tensors; None where they are no such host's
    patch_of: Callable[[Mapping[str, Tensor]], int | None] | None = None
