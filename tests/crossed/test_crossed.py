"""The crossed table: what people do to a layer x every place where its weight could be read behind
its back.

A right answer is that of the same model with the adapter merged into the weight, relative to its
size; the control has no adapter and must differ. One operator of each family here, all by
`make crossed`.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch.distributed as dist

from softless.attention import OPERATORS, get
from tests.crossed.adapters import ADAPTERS, absent
from tests.crossed.table import cell
from tests.crossed.uses import uses_of

FAMILIES = ("sima", "soft", "linformer")  # sums over tokens, landmarks, learned rows
REFUSED = {  # docs/timm.md lists them; what has no numbers is refused everywhere
    "stream": {"forward hook", "pre-hook", "global hook", "accelerate offload", "FSDP2"},
    "optimize": {"FSDP2"},
    "LPI": {"FSDP2"},
}


@pytest.fixture(scope="module", autouse=True)
def one_rank() -> Iterator[None]:
    """A group of one process, for weights that are sharded."""
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(
            "gloo", init_method=f"file://{Path(folder) / 'store'}", rank=0, world_size=1
        )
        yield
        dist.destroy_process_group()


CELLS = [
    pytest.param(name, row, column, marks=() if name in FAMILIES else pytest.mark.soak)
    for name, op in OPERATORS.items()
    for row in ADAPTERS
    for column in uses_of(op)
]


@pytest.mark.parametrize(("op", "row", "column"), CELLS)
@pytest.mark.filterwarnings("ignore")  # of the packages that the adapters are from
def test_an_answer_counts_the_adapter(op: str, row: str, column: str) -> None:
    if absent(ADAPTERS[row]):
        pytest.skip(
            f"{ADAPTERS[row].needs} is not installed: .ci/run builds an environment that has it"
        )
    found = cell(row, column, get(op))
    assert found.outcome != "wrong", found.told
    refused = found.outcome == "refused"
    assert refused == (not ADAPTERS[row].answers or row in REFUSED.get(column, ())), found.told
