"""The contract: every claim of every operator's record, measured in both directions by
`softless.testing`.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from softless.attention import OPERATORS, Operator
from softless.attention import ops as ops_package
from softless.testing import CHECKS, every_check, faults_of
from tests.ops.draw import SHAPES, assert_near, attend, draw, every, sides


def test_the_list_is_the_folder() -> None:
    folder = {path.stem for path in Path(ops_package.__path__[0]).glob("*.py")} - {"__init__"}
    assert folder == set(OPERATORS), (
        "softless/attention/ops/__init__.py must import the SPEC of each file under the file's name"
    )
    assert all(record.name == name for name, record in OPERATORS.items())


@every_check(*OPERATORS, quick=True)
def test_contract(check: Callable[[], None]) -> None:
    """What anybody's operator is measured by: `softless.testing.check_operator`."""
    assert check() is None  # type: ignore[func-returns-value]  # it raises


COMPILED = ("sima", "softmax", "seqnorm", "softnorm")  # in every run; the others are soak's
SLOW = [
    pytest.param(
        name, check, marks=pytest.mark.soak if check == "compiles" and name not in COMPILED else []
    )
    for name in OPERATORS
    for check in CHECKS
    if CHECKS[check].slow
]


@pytest.mark.parametrize(("name", "check"), SLOW)
def test_slow_contract(name: str, check: str) -> None:
    assert not [str(fault) for fault in faults_of(OPERATORS[name], (check,))]


@every
@pytest.mark.soak
def test_compiles_into_one_static_graph(op: Operator) -> None:
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=False)
    for shape in (SHAPES["square"], SHAPES["100"]):
        call, extras = draw(op, shape, torch.float32)
        leaves = [x.requires_grad_() for x in call]
        o = compiled(*leaves, op=op.name, **extras)
        assert_near(o, attend(*call, op=op, **extras), op.backends[0].tolerance[torch.float32])
        o.sum().backward()
        assert all(leaf.grad is not None for leaf in sides(op, leaves))
