"""The list of operators: every record that `softless.attention.ops` holds."""

from collections.abc import Mapping
from types import MappingProxyType

from softless.attention import ops
from softless.attention.spec import Operator
from softless.errors import unknown

OPERATORS: Mapping[str, Operator] = MappingProxyType(
    {name: record for name in ops.__all__ if isinstance(record := getattr(ops, name), Operator)},
)


def get(op: str | Operator) -> Operator:
    """The record of a name.

    Raises:
        UsageError: no operator of that name; the nearest one is offered.
    """
    if isinstance(op, Operator):
        return op
    if op not in OPERATORS:
        raise unknown("operator", op, OPERATORS)
    return OPERATORS[op]
