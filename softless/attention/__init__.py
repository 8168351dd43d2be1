"""Attention operators: pure functions with a record of claims about each (docs/architecture.md).

Who writes a record of an operator of one's own finds all of its parts here.
"""

from softless.attention import ops, registry
from softless.attention.attend import attend, attend_packed, attend_projected, output_matrix
from softless.attention.choice import use_backend
from softless.attention.chunks import attend_chunks, implied_matrix
from softless.attention.norms import TokenNorm, keep, product
from softless.attention.options import Learned, Option, Sizes
from softless.attention.record import (
    Backend,
    Bounds,
    Claims,
    Dims,
    Half,
    HostNeeds,
    Identity,
    Operator,
    Roads,
    Views,
)
from softless.attention.registry import OPERATORS, get
from softless.attention.streaming import ChunkPosition, Streaming, Sweep, Tokens

__all__ = [
    "OPERATORS",
    "Backend",
    "Bounds",
    "ChunkPosition",
    "Claims",
    "Dims",
    "Half",
    "HostNeeds",
    "Identity",
    "Learned",
    "Operator",
    "Option",
    "Roads",
    "Sizes",
    "Streaming",
    "Sweep",
    "TokenNorm",
    "Tokens",
    "Views",
    "attend",
    "attend_chunks",
    "attend_packed",
    "attend_projected",
    "get",
    "implied_matrix",
    "keep",
    "output_matrix",
    "product",
    "use_backend",
]

for _name in ops.__all__:
    registry.add(getattr(ops, _name))
