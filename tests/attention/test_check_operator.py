"""`check_operator`: right on what is right, wrong on every false claim, with a sentence that names
the field.
"""

from dataclasses import replace
from typing import Any

import pytest
from torch import Tensor

import softless
from softless import OPERATORS, UsageError
from softless.attention import Operator
from softless.testing import CHECKS, ContractBroken, Row, check_operator, every_check, faults_of
from tests.attention.mutations import Made, mutations
from tests.attention.outside import linear, quadratic

HERE = ("sima", "softmax")  # in `make test`; the others are soak's
FIRST = {
    "flops": "flops",
    "exps": "exps",
    "growth": "growth",
    "normalises": "normalises",
    "scale_free": "scale_free",
    "masks": "masks",
    "equivariant": "equivariant",
    "implied_matrix": "implied_matrix",
    "cross": "cross",
    "linear_in_v": "linear_in_v",
    "drops_weights": "drops_weights",
    "resolution": "resolution",
    "exports_from": "exports",
    "half_refusal": "half_refusal",
    "half_lift": "half_refusal",
    "needs": "needs",
    "hat": "hat",
    "class_row": "class_row",
    "own": "bounds",
    "reduces": "needs",
    "limits": "limits",
    "learned": "learned",
    "streaming.holds": "words of the stream",
    "streaming.merges": "words of the stream",
}


def seen(name: str, make: Made) -> str:
    """The sentence of the first check that a false record fails; empty where it passes all."""
    try:
        record = make()
    except UsageError as refused:
        return str(refused)
    first = FIRST.get(name.split(maxsplit=1)[0])
    order = [
        "record",
        *([first] if first else []),
        *(one for one in CHECKS if one not in {"record", first, "mutants", "compiles"}),
    ]
    for check in order:
        if faults := faults_of(record, (check,)):
            return str(faults[0])
    return ""


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=[] if name in HERE else pytest.mark.soak) for name in OPERATORS],
)
def test_no_mutation_of_a_record_passes(name: str) -> None:
    made = mutations(OPERATORS[name])
    said = {what: seen(what, make) for what, make in made.items()}
    assert len(made) >= 60
    assert [what for what, sentence in said.items() if not sentence] == []


@pytest.mark.parametrize("record", [linear(), quadratic()], ids=lambda op: op.name)
def test_an_outside_operator_earns_its_row(record: Operator) -> None:
    row = check_operator(record, quick=True)
    assert isinstance(row, Row)
    assert f"| `{record.name}` | {record.summary} | {record.growth} |" in str(row)
    assert row.seconds < 60


def test_every_false_claim_is_listed_at_once() -> None:
    with pytest.raises(ContractBroken) as caught:
        check_operator(
            linear().changed(growth="N^2", equivariant=False, half_lift=lambda _: 3.0), quick=True
        )
    fields = {fault.field for fault in caught.value.faults}
    assert {"claims.growth", "claims.equivariant", "half.half_lift"} <= fields
    assert "claims.growth: the record says N^2; measured: work grows as N^1.0" in str(caught.value)
    assert "set growth='N'" in str(caught.value)
    assert caught.value.exit_code == 1


def maskless(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return q @ (k.mT @ v)


def test_what_is_no_operator() -> None:
    with pytest.raises(UsageError, match=r"no operator named 'smia'\. Did you mean 'sima'"):
        check_operator("smia")
    with pytest.raises(UsageError, match="takes a record or a name, and this is of type int"):
        check_operator(7)  # type: ignore[arg-type]
    with pytest.raises(ContractBroken, match="takes no keyword 'mask': write def reference"):
        check_operator(linear().changed(reference=maskless))
    assert softless.testing.check_operator is check_operator


@every_check(linear("decorated"), quick=True)
def test_the_decorator(check: Any) -> None:
    assert check() is None


def test_the_decorator_fails_where_the_contract_does() -> None:
    @every_check(linear().changed(growth="N^2"), quick=True)
    def somebodys(check: Any) -> None:
        check()

    (mark,) = somebodys.pytestmark  # type: ignore[attr-defined]
    case = next(one for one in mark.args[1] if one.id == "mine-growth")
    with pytest.raises(ContractBroken, match=r"claims.growth"):
        case.values[0]()


@pytest.mark.parametrize("name", ["inline", "mala"])
def test_averages_that_cannot_be_taken_apart_are_seen(name: str) -> None:
    """A chunk that is merged into a whole that holds it counts twice in an average, and not in a
    sum.
    """
    op = OPERATORS[name]
    assert op.streaming is not None
    sweeps = tuple(replace(sweep, without=None) for sweep in op.streaming.sweeps)
    broken = op.changed(streaming=replace(op.streaming, sweeps=sweeps))
    found = faults_of(broken, ("weights of the stream",))
    assert [fault.field for fault in found] == ["streaming.sweeps[-1].without"]
    assert not faults_of(op, ("weights of the stream",))
