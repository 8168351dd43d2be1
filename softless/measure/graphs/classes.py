"""What is known of a format's operators: each has a kind of function, or is known to have none.

A name in no list is opaque: a new operator is never called exp-free because nobody looked at it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from softless.measure.findings import KIND_NAMES, OPAQUE

LONGEST = 200  # characters of a name that is shown


@dataclass(frozen=True)
class Operators:
    """The operators of one format by name."""

    kinds: Mapping[str, str]  # operator -> kind of function
    plain: frozenset[str]  # products, sums, comparisons, moves; roots and divisions included
    roots: frozenset[str]
    divisions: frozenset[str]
    fused: frozenset[str]  # evaluations are not the elements of what comes out

    def kind(self, operator: str) -> str | None:
        """The kind of function, None for an operator without one, opaque for an unknown one."""
        return self.kinds.get(operator, None if operator in self.plain else OPAQUE)

    @property
    def known(self) -> frozenset[str]:
        return self.plain | self.kinds.keys()


def operators(
    *, plain: str, roots: str = "", divisions: str = "", fused: str = "", **kinds: str
) -> Operators:
    """Lists of names with spaces between; every keyword beside the first four is a kind."""
    of_kind: dict[str, str] = {}
    for kind, names in kinds.items():
        assert kind in KIND_NAMES, kind
        assert not of_kind.keys() & set(names.split()), kind
        of_kind |= dict.fromkeys(names.split(), kind)
    without = frozenset(plain.split())
    assert not without & of_kind.keys(), without & of_kind.keys()
    also = frozenset(roots.split()) | frozenset(divisions.split())
    return Operators(
        of_kind,
        (without | also) - of_kind.keys(),
        frozenset(roots.split()),
        frozenset(divisions.split()),
        frozenset(fused.split()),
    )


class Node(NamedTuple):
    """One operator of a file."""

    operator: str
    where: str
    kind: str | None
    evaluations: int | None = None  # None where the file tells no shape
    from_input: bool = True  # False: made of constants and shapes alone
    root: bool = False
    division: bool = False
    rank: int = 0  # most dimensions of what goes in and comes out
    dynamic: bool = False  # evaluations are those of an example of any size


def whole_or_half(exponent: float | None) -> bool:
    """Whether a constant exponent makes a power a product of factors and square roots."""
    return exponent is not None and float(2 * exponent).is_integer()
