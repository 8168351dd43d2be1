"""Attention operators: pure functions with a record of claims about each (docs/architecture.md)."""

from softless.attention.attend import attend, attend_packed, attend_projected, output_matrix
from softless.attention.choice import use_backend
from softless.attention.chunks import attend_chunks, implied_matrix
from softless.attention.registry import OPERATORS, get
from softless.attention.spec import Backend, Dims, Operator, Tokens

__all__ = [
    "OPERATORS",
    "Backend",
    "Dims",
    "Operator",
    "Tokens",
    "attend",
    "attend_chunks",
    "attend_packed",
    "attend_projected",
    "get",
    "implied_matrix",
    "output_matrix",
    "use_backend",
]
