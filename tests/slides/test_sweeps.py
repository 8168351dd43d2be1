"""Sums that join without a trace of their order, and a layer by itself over chunks."""

import pytest
import torch
from timm.models.vision_transformer import Block

from lab.speed.rivals import Published, share_weights
from softless.attention.streaming import add
from softless.layers import operator_class
from softless.slides.layer import TokenSequence, joined
from softless.slides.sweeps import layer_in_chunks
from tests.slides.models import STREAMED, apart


def test_many_parts_join_as_if_they_were_summed_exactly() -> None:
    """Ten thousand float32 parts in either order: joined in float32 they would be 1e-5 apart."""
    parts = torch.rand(10_000, 1, generator=torch.Generator().manual_seed(0))

    def total(values: torch.Tensor) -> torch.Tensor:
        found = {"sum": values[0]}
        for value in values[1:]:
            found = joined(found, {"sum": value}, add)
        return found["sum"]

    exact = parts.double().sum(0)
    assert apart(total(parts), exact) < 1e-12
    assert apart(total(parts.flip(0)), total(parts)) < 1e-12


@pytest.mark.parametrize(
    "op",
    [
        op
        for op in STREAMED
        if op not in {"soft", "softnorm", "cosformer2d", "linformer", "nystrom"}
    ],
)
def test_a_layer_in_chunks_is_the_layer(op: str) -> None:
    torch.manual_seed(0)
    block = Block(48, 4, qkv_bias=True, attn_layer=operator_class(op)).eval()
    x = torch.randn(500, 48)
    with torch.no_grad():
        wanted = block(x[None])[0]
        assert apart(layer_in_chunks(block, x.clone(), 64), wanted) < 1e-6


def test_a_streamed_layer_is_the_published_one() -> None:
    torch.manual_seed(0)
    ours = Block(48, 4, qkv_bias=True, attn_layer=operator_class("sima")).eval()
    theirs = Block(48, 4, qkv_bias=True, attn_layer=Published).eval()
    share_weights(ours, theirs)
    x = torch.randn(500, 48)
    with torch.no_grad():
        for block in (ours, theirs):
            # the attention of 500 tokens is small at the start
            block.attn.proj.weight *= 1000  # type: ignore[union-attr, operator]
        wanted = theirs(x[None])[0]
        assert apart(wanted, x) > 0.1
        assert apart(layer_in_chunks(ours, x.clone(), 64), wanted) < 1e-5


def test_the_place_of_a_chunk_counts_the_tokens_ahead_of_it_that_count() -> None:
    whole = TokenSequence(6, (0, 2, 3))
    whole.know(torch.tensor([True, False, True, True, False, True]))
    for _ in range(2):
        mask, place = whole.part(slice(3, 6))
        assert mask is not None
        assert place.before is not None
        assert place.counted is not None
        assert (mask.tolist(), place.start, int(place.before), int(place.counted)) == (
            [[True, False, True]],
            3,
            2,
            4,
        )
    whole.know(torch.ones(6, dtype=torch.bool))
    place = whole.part(slice(3, 6))[1]
    assert place.before is not None
    assert int(place.before) == 3
