"""`check_operator`: the contract that the operators of this library hold to, for anybody's
operator.
"""

import re
import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

import torch

from softless.attention.admission import check_record
from softless.attention.record import Operator
from softless.attention.registry import get
from softless.errors import UsageError
from softless.testing import claims, graphs, modules, mutants, streams, values
from softless.testing.faults import ContractBroken, Fault, Meter, measured
from softless.testing.row import Row, row_of


class Check(NamedTuple):
    """A meter, the field that it is about, and whether it takes seconds."""

    field: str
    meter: Meter
    slow: bool = False


def admitted(op: Operator) -> Iterator[Fault]:
    """What `softless.register` would refuse."""
    try:
        check_record(op)
    except UsageError as refused:
        named = re.search(
            r"(identity|claims|streaming|options|learned|half|host|views|own|reference)"
            r"(\.\w+|\[[^\]]+\](\.\w+)?)?",
            str(refused),
        )
        yield Fault(
            named[0] if named else "record",
            "a record of an operator",
            str(refused),
            "write what is shown",
        )


CHECKS: Mapping[str, Check] = MappingProxyType({
    "record": Check("record", admitted),
    "gradients of the reference": Check("reference", claims.reference_has_gradients),
    "limits": Check("claims.limits", claims.limits),
    "flops": Check("claims.flops", claims.flops),
    "exps": Check("claims.exps", claims.exps),
    "growth": Check("claims.growth", claims.growth),
    "normalises": Check("claims.normalises", claims.normalises),
    "scale_free": Check("claims.scale_free", claims.scale_free),
    "equivariant": Check("claims.equivariant", claims.equivariant),
    "implied_matrix": Check("claims.implied_matrix", claims.has_implied_matrix),
    "linear_in_v": Check("claims.linear_in_v", claims.linear_in_v),
    "cross": Check("claims.cross", claims.cross),
    "masks": Check("claims.masks", claims.masks),
    "drops_weights": Check("claims.drops_weights", claims.drops_weights),
    "resolution": Check("claims.resolution", claims.resolution),
    "needs": Check("host.needs", claims.needs),
    "learned": Check("learned", claims.learned),
    "hat": Check("views.hat", claims.hat),
    "class_row": Check("views.class_row", claims.class_row),
    "half_refusal": Check("half.half_refusal", values.half_refusal),
    "bounds": Check("own", values.bounds),
    "values": Check("own", values.values),
    "out_dtype": Check("own", values.out_dtype),
    "half precision": Check("own", values.half),
    "gradients": Check("own", values.gradients),
    "masked tokens": Check("reference", values.masked),
    "neighbours": Check("reference", values.neighbours),
    "extremes": Check("own", values.extremes),
    "roads": Check("own", values.roads),
    "words of the stream": Check("streaming", streams.words),
    "chunks": Check("streaming", streams.chunks),
    "options of the stream": Check("streaming.refuses", streams.options),
    "summaries": Check("streaming", streams.summaries),
    "weights of the stream": Check("streaming", streams.weights),
    "module": Check("own", modules.module),
    "options": Check("options", modules.options),
    "compiles": Check("own", graphs.compiles, slow=True),
    "exports": Check("claims.exports_from", graphs.exports, slow=True),
    "mutants": Check("own", mutants.mutants, slow=True),
})


def faults_of(op: Operator, names: Iterator[str] | tuple[str, ...] = tuple(CHECKS)) -> list[Fault]:
    """Every fault that these checks find."""
    return [
        fault for name in names for fault in measured(CHECKS[name].field, CHECKS[name].meter, op)
    ]


def check_operator(record_or_name: Operator | str, quick: bool = False) -> Row:
    """Measure every claim of an operator's record, in both directions: a false «no» fails like a
    false «yes».

    Values and gradients in four dtypes, masks, chunks, batch mates, permutations, FLOPs,
    exponentials, growth, extremes, half precision, threads, options, learned tensors, the module
    with adapters, one compiled and one exported graph, and deliberate faults in the operator that
    must be seen.

    Args:
        record_or_name: A record, registered or not, or a name in `softless.OPERATORS`.
        quick: Leave out compile, export and mutants: seconds in place of a minute.

    Returns:
        The row of the table that the record has earned; it prints as one.

    Raises:
        ContractBroken: some claims are false: for each the claim, the number measured and the field
            to change.
        UsageError: no operator of that name; no record.
    """
    if not isinstance(record_or_name, Operator | str):
        raise UsageError(
            "check_operator takes a record or a name, and this is of type "
            f"{type(record_or_name).__name__}"
        )
    op = get(record_or_name)
    names = tuple(name for name, check in CHECKS.items() if not (quick and check.slow))
    state, start = torch.get_rng_state(), time.process_time()
    faults = faults_of(op, ("record",)) or faults_of(op, names[1:])
    torch.set_rng_state(state)
    if faults:
        raise ContractBroken(op.name, tuple(faults))
    return row_of(op, len(names), time.process_time() - start)


Test = TypeVar("Test", bound=Callable[..., Any])


def every_check(*records: Operator | str, quick: bool = False) -> Callable[[Test], Test]:
    """Parametrises a pytest test over the checks of operators: the test is given `check`, a
    function that raises `ContractBroken`.

        @every_check(RECORD)
        def test_contract(check):
            check()

    Raises:
        MissingExtra: pytest is not installed.
    """
    import pytest

    cases = [
        pytest.param(lambda op=op, name=name: _raise(get(op), name), id=f"{get(op).name}-{name}")
        for op in records
        for name, check in CHECKS.items()
        if not (quick and check.slow)
    ]
    return pytest.mark.parametrize("check", cases)


def _raise(op: Operator, name: str) -> None:
    if faults := faults_of(op, (name,)):
        raise ContractBroken(op.name, tuple(faults))
