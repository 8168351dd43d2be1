"""The list of operators: every record that `softless.attention.ops` holds, put here when
`softless.attention` is imported, and those that `softless.register` adds.

Examples:
    >>> "sima" in softless.OPERATORS, softless.OPERATORS["sima"].paper
    (True, 'arXiv:2206.08898')
    >>> softless.OPERATORS["sima"].options["token_scale"].values
    "None, 'tokens' or a positive number of tokens"
"""

import copyreg
from collections.abc import Callable, Mapping
from types import MappingProxyType

from softless.attention.record import Operator
from softless.errors import UsageError, unknown

# filled by the package, once the operators' files are there
_records: dict[str, Operator] = {}
OPERATORS: Mapping[str, Operator] = MappingProxyType(_records)


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


def registered(op: str | Operator) -> Operator:
    """The record of a name, or the record itself where the list holds it: what goes on by its name
    alone.

    Raises:
        UsageError: no operator of that name, or a record that is not in the list.
    """
    record = get(op)
    if OPERATORS.get(record.name) is not record:
        hint = " (another record has that name)" if record.name in OPERATORS else ""
        raise UsageError(
            f"operator '{record.name}' is not registered{hint}: call softless.register(record) "
            "first, "
            "for models, classes and pickles know an operator by its name"
        )
    return record


def add(record: Operator) -> None:
    """Put a record into the list; `softless.register` checks it first."""
    _records[record.name] = record


def remove(name: str) -> None:
    """Take a record out of the list again."""
    del _records[name]


def unpickled(name: str) -> Operator:
    """The record that a pickle names.

    Raises:
        UsageError: this process has not registered it.
    """
    if name not in OPERATORS:
        raise UsageError(
            f"this was saved with operator '{name}', which this process has not registered: "
            "import the module that calls "
            "softless.register first, or install its package with the entry point "
            "'softless.operators'"
        )
    return OPERATORS[name]


def _by_name(record: Operator) -> tuple[Callable[[str], Operator], tuple[str]]:
    """Pickles of a model refer to the record by name: it holds functions, and there is one of
    it.
    """
    return unpickled, (registered(record).name,)


copyreg.pickle(Operator, _by_name)
