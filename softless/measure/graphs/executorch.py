"""Reads .pte of ExecuTorch: the calls of kernels, and what is handed to a backend.

The schema is executorch/schema/program.fbs. Operators hide in the parts of backends: XNNPACK's are
opened, all others are opaque.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from softless.measure.findings import OPAQUE
from softless.measure.graphs import xnnpack
from softless.measure.graphs.aten import DIVISIONS, ROOTS, kind_of, plain
from softless.measure.graphs.classes import LONGEST, Node
from softless.measure.graphs.flatbuffer import Flat, Table
from softless.measure.graphs.limits import Damaged, mapped

# numbers of the unions' members
INT, DOUBLE, TENSOR = 2, 4, 5
KERNEL, DELEGATE, MOVE, JUMP, FREE = 1, 2, 3, 4, 5
INLINE, SEGMENT = 0, 1
EXTENDED = b"eh00"  # a header behind the identifier, with where segments begin


def read(path: Path) -> Iterator[Node]:
    """Every kernel's call of every method, and the nodes of XNNPACK's parts.

    Raises:
        Damaged: not a program of ExecuTorch.
    """
    with mapped(path) as view:
        flat = Flat(view)
        if flat.identifier[:2] != b"ET":
            raise Damaged("it does not begin as one")
        program = flat.root()
        plans = program.tables(1)
        if not plans:
            raise Damaged("it holds no method")
        for plan in plans:
            place = f"{plan.text(0)[:LONGEST]}/" if len(plans) > 1 else ""
            yield from _Method(flat, program, plan, place).nodes()


class _Method:
    """One method of a program.

    What depends on its inputs cannot be told: values that share memory stand for each other, with
    no instruction between. So everything counts as evaluated for an image.
    """

    def __init__(self, flat: Flat, program: Table, plan: Table, place: str) -> None:
        self.flat, self.program, self.place = flat, program, place
        self.values, self.number = plan.vector(2, 4)
        self.chains = plan.tables(5)
        self.kernels = [each.text(0) for each in plan.tables(6)]
        self.delegates = plan.tables(7)

    def nodes(self) -> Iterator[Node]:
        calls = [each for chain in self.chains for each in chain.tables(2)]
        for number, instruction in enumerate(calls):
            kind, call = instruction.integer(0, "B"), instruction.table(1)
            if call is None:
                raise Damaged("an instruction says nothing")
            if kind == KERNEL:
                yield self._kernel(call.integer(0), call.integers(1), number)
            elif kind == DELEGATE:
                yield from self._delegate(call.integer(0))
            elif kind not in {MOVE, JUMP, FREE}:
                yield Node(f"instruction {kind}", f"{self.place}instruction {number}", OPAQUE, 1)

    def _value(self, index: int) -> Table:
        if not 0 <= index < self.number:
            raise Damaged("a call takes a value that is not there")
        return self.flat.table(self.values + 4 * index)

    def _argument(self, index: int) -> Any:
        """An argument as the counters take it: numbers, and tensors without storage."""
        value = self._value(index)
        kind, held = value.integer(0, "B"), value.table(1)
        if held is None:
            return None
        if kind == TENSOR:
            sizes = [max(size, 0) for size in held.integers(2)]
            try:
                return torch.empty((), device="meta").expand(sizes)
            except RuntimeError as error:
                raise Damaged("a tensor is larger than any can be") from error
        if kind == INT:
            return held.integer(0, "q")
        return held.real(0) if kind == DOUBLE else None

    def _kernel(self, index: int, args: list[int], number: int) -> Node:
        if not 0 <= index < len(self.kernels):
            raise Damaged("a call names a kernel that is not there")
        library, _, name = self.kernels[index].partition("::")
        values = tuple(map(self._argument, args))
        tensors = [value for value in values if isinstance(value, torch.Tensor)]
        found = kind_of(library, name, values) if tensors else _without_tensors(library, name)
        kind, evaluations = found or (None, None)
        return Node(
            self.kernels[index][:LONGEST],
            f"{self.place}instruction {number}",
            kind,
            evaluations,
            root=library == "aten" and plain(name) in ROOTS,
            division=library == "aten" and plain(name) in DIVISIONS,
            rank=max((tensor.dim() for tensor in tensors), default=0),
        )

    def _delegate(self, index: int) -> Iterator[Node]:
        if not 0 <= index < len(self.delegates):
            raise Damaged("a call names a delegate that is not there")
        delegate = self.delegates[index]
        name, part = delegate.text(0), delegate.table(1)
        where = f"{self.place}delegate {index}"
        if name != xnnpack.BACKEND or part is None:
            yield Node(name[:LONGEST] or "delegate", where, OPAQUE, 1)
            return
        yield Node(xnnpack.BACKEND, where, None)
        start, size = self._payload(part.integer(0, "b"), part.integer(1, "I"))
        yield from xnnpack.nodes(self.flat.view, start, size, where, self.flat.budget)

    def _payload(self, location: int, index: int) -> tuple[int, int]:
        """Where the part of a delegate begins in the file, and its bytes."""
        parts = self.program.tables(3 if location == INLINE else 4)
        if index >= len(parts) or location not in {INLINE, SEGMENT}:
            raise Damaged("a delegate names a part that is not there")
        if location == INLINE:
            return parts[index].vector(0, 1)
        if bytes(self.flat.view[8:12]) != EXTENDED:
            raise Damaged("it does not say where its segments begin")
        base = self.flat.read("Q", 24)
        return base + parts[index].integer(0, "Q"), parts[index].integer(1, "Q")


def _without_tensors(library: str, name: str) -> tuple[str, int] | None:
    """An operator on sizes alone: known or opaque, and nothing to count."""
    found = kind_of(library, name, (torch.empty((), device="meta"),) * 3)
    return found if found is not None and found[0] == OPAQUE else None
