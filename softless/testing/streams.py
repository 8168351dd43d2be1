"""Meters of the streaming form: any split of the tokens, in any order, with any of them masked,
gives the whole result.
"""

from collections.abc import Iterator
from functools import reduce
from typing import Any

import torch

from softless.attention.chunks import attend_chunks, implied_matrix, split
from softless.attention.kernels import native
from softless.attention.record import Operator
from softless.attention.samples import draw, given_options
from softless.attention.streaming import Tokens
from softless.attention.weights import pull, row
from softless.errors import UsageError
from softless.testing.comparing import DTYPES, error, exact
from softless.testing.faults import Fault
from softless.testing.values import given, variants


def words(op: Operator) -> Iterator[Fault]:
    """A form says what it holds and how summaries join; without one there is a reason."""
    if op.streaming is None:
        call, extras = draw(op, (1, 2, 9, 9, 4, 4))
        try:
            attend_chunks([Tokens(*call)], op, **extras)
        except UsageError:
            return
        yield Fault("streaming", "no streaming form", "chunks are taken", "give the form")
        return
    for name in ("holds", "merges"):
        if not isinstance(getattr(op.streaming, name), str) or not getattr(op.streaming, name):
            yield Fault(
                f"streaming.{name}",
                repr(getattr(op.streaming, name)),
                "nothing to read",
                "say it in words",
            )
    if not op.streaming.sweeps:
        yield Fault("streaming.sweeps", "no sweep", "a form has one or more", "give one")


def chunks(op: Operator) -> Iterator[Fault]:
    """Splits with empty chunks, orders and masks, in float64; the dtype is kept in the others."""
    if op.streaming is None:
        return
    generator = torch.Generator().manual_seed(6)
    for sizes in ([40], [13, 27], [0, 7, 1, 32], [10, 10, 10, 10]):
        call, extras = draw(op, (2, 2, 40, 40, 4, 4))
        for share in (1.1, 0.6):
            mask = torch.rand(2, 40, generator=generator) < share
            mask[:, 3] = True
            parts = split(Tokens(*call, mask, mask), sizes)
            order = torch.randperm(len(parts), generator=generator).tolist()
            outputs = attend_chunks([parts[i] for i in order], op, **extras)
            joined = torch.cat([outputs[order.index(i)] for i in range(len(parts))], dim=2)
            apart = error(joined, exact(op, call, extras, mask=mask, query_mask=mask))
            if apart > 1e-11:
                yield Fault(
                    "streaming",
                    "the whole answer from chunks",
                    f"off by {apart:.1e} in chunks of {sizes}",
                    "mend summarise, merge, finish or read",
                )
    for dtype in DTYPES[1:]:
        call, extras = draw(op, (1, 2, 600, 600, 8, 8), dtype)
        outputs = torch.cat(
            attend_chunks(split(Tokens(*call), [200, 300, 100]), op, **extras), dim=2
        )
        apart = error(outputs, exact(op, call, extras))
        if apart > op.backends[0].tolerance[dtype]:
            yield Fault(
                "streaming",
                f"the bar of the first backend in {str(dtype)[6:]}",
                f"{apart:.1e}",
                "sum in float32, in blocks",
            )


def options(op: Operator) -> Iterator[Fault]:
    """Other options stream too, or are refused in a sentence."""
    if op.streaming is None:
        return
    for changed in variants(op):
        call, drawn = draw(op, (1, 2, 40, 40, 4, 4))
        extras = given(op, drawn, changed)
        if extras is None:
            continue
        try:
            outputs = attend_chunks(split(Tokens(*call), [15, 25]), op, **extras)
        except UsageError as refused:
            if not changed:
                yield Fault(
                    "streaming.refuses",
                    "a form of the defaults",
                    f"refused: {refused}"[:160],
                    "refuse less, or set streaming=None",
                )
            continue
        apart = error(torch.cat(outputs, dim=2), exact(op, call, extras))
        if apart > 1e-9:
            yield Fault(
                "streaming.refuses",
                f"a form for {changed}",
                f"off by {apart:.1e}",
                "refuse these options, or mend the form",
            )


def summaries(op: Operator) -> Iterator[Fault]:
    """Summaries join in any order; the native ones are the same."""
    if op.streaming is None:
        return
    call, drawn = draw(op, (1, 2, 30, 30, 8, 8))
    extras = op.filled({}) | drawn
    a, b, c = split(Tokens(*call), [10, 10, 10])
    reader: Any = None
    for number, sweep in enumerate(op.streaming.sweeps):
        x, y, z = (sweep.summarise(part, reader, **extras) for part in (a, b, c))
        total = reduce(sweep.merge, (x, y, z))
        for regrouped in (sweep.merge(x, sweep.merge(y, z)), sweep.merge(sweep.merge(z, x), y)):
            for name, value in total.items():
                if error(regrouped[name], value) > 1e-12:
                    yield Fault(
                        f"streaming.sweeps[{number}].merge",
                        "any order of chunks",
                        f"'{name}' is off by {error(regrouped[name], value):.1e}",
                        "make it associative and commutative",
                    )
        if sweep.native is not None:
            yield from _native(op, number, drawn)
        reader = sweep.finish(total, **extras)


def weights(op: Operator) -> Iterator[Fault]:
    """The first query's weights over all keys, chunk by chunk, are the first row of the implied
    matrix.
    """
    if op.streaming is None or not op.implied_matrix:
        return
    call, drawn = draw(op, (1, 2, 30, 30, 8, 8))
    extras, parts = op.filled({}) | drawn, split(Tokens(*call), [10, 7, 13])
    reader: Any = None
    for sweep in op.streaming.sweeps:
        before, total = (
            reader,
            reduce(sweep.merge, [sweep.summarise(part, reader, **extras) for part in parts]),
        )
        reader = sweep.finish(total, **extras)
    first = split(Tokens(*call), [1, 29])[0]
    pulled = pull(op.streaming, first, total, extras)
    weights_BHN = torch.cat(
        [row(op.streaming, part, total, pulled, before, extras) for part in parts], dim=-1
    )
    expected = implied_matrix(call[0], call[1], op, **drawn)[:, :, 0]
    if (apart := error(weights_BHN, expected)) > 1e-9:
        yield Fault(
            "streaming.sweeps[-1].without",
            "the first token's weights from chunks",
            f"off by {apart:.1e}",
            "give without(whole, part), which undoes merge",
        )


def _native(op: Operator, number: int, drawn: dict[str, Any]) -> Iterator[Fault]:
    assert op.streaming is not None
    sweep = op.streaming.sweeps[number]
    call, extras = draw(op, (1, 2, 50, 50, 16, 16), torch.float32)
    settings = op.filled(given_options(op, drawn)) | {
        name: extras[name] for name in extras if name not in op.options
    }
    if native.refuses(*call):
        return
    assert sweep.native is not None
    own, expected = (
        sweep.native(Tokens(*call), **settings),
        sweep.summarise(Tokens(*call), None, **settings),
    )
    for name, value in expected.items():
        actual, reference = torch.broadcast_tensors(own[name].double(), value.double())
        if error(actual, reference) > 2e-6:
            yield Fault(
                f"streaming.sweeps[{number}].native",
                "the same sums",
                f"'{name}' is off by {error(actual, reference):.1e}",
                "mend it, or take it out",
            )
