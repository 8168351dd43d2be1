"""The additive form: any split of the tokens into chunks, in any order, with any of them masked,
gives the whole result.
"""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from softless.attention import OPERATORS, Operator, Tokens
from softless.attention.chunks import split, wide
from softless.attention.kernels import native
from softless.attention.streaming import ChunkPosition
from softless.errors import UsageError
from tests.ops.draw import CROSS, DTYPES, assert_near, attend, attend_chunks, draw, every, exact

streamed = pytest.mark.parametrize(
    "op", [op for op in OPERATORS.values() if op.streaming], ids=lambda op: op.name
)


@every
def test_a_form_or_a_reason(op: Operator) -> None:
    call, extras = draw(op, (1, 2, 9, 9, 4, 4))
    if op.streaming is None:
        assert op.sweeps is None
        with pytest.raises(UsageError, match=op.no_stream[:20]):
            attend_chunks([Tokens(*call)], op, **extras)
    else:
        assert op.sweeps == len(op.streaming.sweeps) >= 1
        assert op.streaming.holds
        assert op.streaming.merges
        assert_near(attend_chunks([Tokens(*call)], op, **extras)[0], exact(op, call, extras), 1e-12)


@streamed
@given(data=st.data())
def test_any_split_gives_the_whole(op: Operator, data: st.DataObject) -> None:
    # of one token the answer may be exactly 0, and no error is relative to that
    tokens = data.draw(st.integers(2, 60), "tokens")
    cuts = sorted(data.draw(st.lists(st.integers(0, tokens), max_size=6), "cuts"))
    # zero-length chunks too
    sizes = [b - a for a, b in zip([0, *cuts], [*cuts, tokens], strict=True)]
    call, extras = draw(
        op, (2, 2, tokens, tokens, 4, 4), seed=data.draw(st.integers(0, 99), "seed")
    )
    mask = torch.rand(2, tokens) < data.draw(st.sampled_from([1.1, 0.7, 0.2]), "kept")
    mask[:, data.draw(st.integers(0, tokens - 1), "certain")] = True
    chunks = split(Tokens(*call, mask, mask), sizes)
    order = list(range(len(chunks)))
    random.Random(data.draw(st.integers(0, 99), "order")).shuffle(order)
    outputs = attend_chunks([chunks[i] for i in order], op, **extras)
    joined = torch.cat([outputs[order.index(i)] for i in range(len(chunks))], dim=2)
    assert_near(joined, exact(op, call, extras, mask=mask, query_mask=mask), 1e-11)


@pytest.mark.parametrize(
    "op",
    [op for op in OPERATORS.values() if op.streaming and op.streaming.sweeps[0].native],
    ids=lambda op: op.name,
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("scale", [None, "tokens"])
def test_native_sums_are_the_sums(op: Operator, dtype: torch.dtype, scale: str | None) -> None:
    """Every entry, under masks that differ and under none, so that chunks summed either way
    join.
    """
    (q, k, v), _ = draw(op, (2, 3, 50, 50, 16, 16), dtype)
    if scale and "token_scale" not in op.options:
        pytest.skip(f"{op.name} has no token_scale")
    if why := native.refuses(q, k, v):
        pytest.skip(why[0])
    extras = op.filled({"token_scale": scale} if scale else {})
    assert op.streaming is not None
    (sweep,) = op.streaming.sweeps
    assert sweep.native is not None
    mask, query_mask = torch.rand(2, 2, 50, generator=torch.Generator().manual_seed(1)) < 0.6
    for masks in ((None, None), (mask, query_mask)):
        tokens = Tokens(q, k, v, *masks)
        found, wanted = (
            sweep.native(tokens, **extras),
            sweep.summarise(wide(tokens), None, **extras),
        )
        assert found.keys() == wanted.keys()
        for name, value in wanted.items():
            ours, theirs = torch.broadcast_tensors(found[name].double(), value.double())
            assert_near(ours, theirs, 1e-6, name)


@streamed
@pytest.mark.parametrize("parts", [1, 2, 7, 64])
def test_float32_does_not_feel_the_chunks(op: Operator, parts: int) -> None:
    """No more than the operator's own float32 bar between the whole and 1 to 64 parts, forwards and
    backwards (reliability.md D11).
    """
    call, extras = draw(op, (1, 2, 4096, 4096, 16, 16), torch.float32)
    sizes = [4096 // parts] * parts
    sizes[-1] += 4096 - sum(sizes)
    chunks = split(Tokens(*call), sizes)
    whole = attend(*call, op=op, **extras)
    for step in (1, -1):
        outputs = attend_chunks(chunks[::step], op, **extras)[::step]
        bound = op.backends[0].tolerance[torch.float32]
        assert_near(torch.cat(outputs, dim=2), whole, bound, f"{parts} parts, step {step}")


@streamed
def test_fixed_order_is_bitwise(op: Operator) -> None:
    call, extras = draw(op, (1, 2, 100, 100, 8, 8), torch.float32)
    chunks = split(Tokens(*call), [30, 50, 20])
    first, second = (torch.cat(attend_chunks(chunks, op, **extras), dim=2) for _ in range(2))
    assert torch.equal(first, second)


@streamed
@pytest.mark.parametrize("dtype", DTYPES)
def test_chunks_keep_the_dtype(op: Operator, dtype: torch.dtype) -> None:
    call, extras = draw(op, (1, 2, 50, 50, 8, 8), dtype)
    outputs = torch.cat(attend_chunks(split(Tokens(*call), [20, 30]), op, **extras), dim=2)
    assert outputs.dtype == dtype
    assert_near(outputs, exact(op, call, extras), op.backends[0].tolerance[dtype])


@pytest.mark.parametrize(
    "op", [op for op in OPERATORS.values() if op.streaming and op.cross], ids=lambda op: op.name
)
def test_queries_and_keys_come_apart(op: Operator) -> None:
    """Chunks of queries alone and of keys alone: the summary of an empty set adds nothing."""
    (q, k, v), extras = draw(op, CROSS["fewer queries"])
    queries, keys = ChunkPosition(0, q.shape[2]), ChunkPosition(0, k.shape[2])
    chunks = [
        Tokens(q, k[..., :0, :], v[..., :0, :], keys=keys, queries=queries),
        Tokens(q[..., :0, :], k, v, keys=keys, queries=queries),
    ]
    assert_near(attend_chunks(chunks, op, **extras)[0], exact(op, (q, k, v), extras), 1e-12)


@streamed
def test_merge_is_associative_and_commutative(op: Operator) -> None:
    call, extras = draw(op, (1, 2, 30, 30, 8, 8))
    extras = op.filled({}) | extras
    a, b, c = split(Tokens(*call), [10, 10, 10])
    reader = None
    assert op.streaming is not None
    for sweep in op.streaming.sweeps:
        x, y, z = (sweep.summarise(part, reader, **extras) for part in (a, b, c))
        for other in (sweep.merge(x, sweep.merge(y, z)), sweep.merge(sweep.merge(z, x), y)):
            for name, value in sweep.merge(sweep.merge(x, y), z).items():
                assert_near(other[name], value, 1e-12, name)
        reader = sweep.finish(sweep.merge(sweep.merge(x, y), z), **extras)


def test_no_chunks() -> None:
    with pytest.raises(UsageError, match="no chunks"):
        attend_chunks([])
