"""The native sweep of sequence normalisation: means, squares and products about the means, and the
centred reading.
"""

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from softless.attention import OPERATORS
from softless.attention.choose import backend_of
from softless.attention.kernels import moments as kernel
from softless.attention.kernels import native
from softless.attention.streaming import Tokens
from softless.errors import BackendRefused, UsageError
from softless.layers import Attention
from softless.measure import TranscendentalCounter
from tests.ops.draw import SHAPES, assert_near, attend, draw, exact
from tests.ops.test_native import ALL_SHAPES, each_dtype, each_way, here, masks_of, tolerance

SEQNORM = OPERATORS["seqnorm"]
assert SEQNORM.streaming is not None
STREAM = SEQNORM.streaming


@here
@each_way
def test_every_way_equals_the_reference(dtype: torch.dtype, path: str) -> None:
    for name, shape in ALL_SHAPES.items():
        call, extras = draw(SEQNORM, shape, dtype)
        for kind in ("none", "keys", "queries", "both"):
            masks = masks_of(kind, shape[0], *shape[2:4])
            with native.using(path):
                o = attend(*call, op="seqnorm", backend="native", **extras, **masks)
            assert o.dtype == dtype
            bound = tolerance(SEQNORM, dtype, shape[4])
            assert_near(o, exact(SEQNORM, call, extras, **masks), bound, f"{path}, {name}, {kind}:")
            if "query_mask" in masks:
                assert not bool(o.transpose(1, 2)[~masks["query_mask"]].any())


@here
@each_way
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_the_moments_are_those_of_plain_torch(dtype: torch.dtype, path: str, masked: bool) -> None:
    """Of 1,300 tokens, in groups of 128, far from zero beside their spread."""
    call, _ = draw(SEQNORM, (2, 2, 1300, 900, 24, 20), torch.float32)
    q, k, v = ((x + 100).to(dtype) for x in call)
    masks = masks_of("both", 2, 1300, 900) if masked else {}
    with native.using(path):
        found = kernel.summed(q, k, v, masks.get("mask"), masks.get("query_mask"))
    whole = Tokens(q.double(), k.double(), v.double(), masks.get("mask"), masks.get("query_mask"))
    true = STREAM.sweeps[0].summarise(whole, None)
    for name, value in found.items():
        assert value.dtype == torch.float64
        assert_near(
            value, true[name].expand_as(value), 1e-7 if name.endswith("mean") else 2e-6, name
        )


@here
@each_way
@pytest.mark.parametrize("tokens", [1, 63, 65, 257, 2049, 8193])
def test_borders_of_panels_groups_and_threads(dtype: torch.dtype, path: str, tokens: int) -> None:
    """The same with one, two and three threads and beside another image, far from zero; and
    right.
    """
    call, extras = draw(SEQNORM, (2, 1, tokens, tokens, 16, 16), torch.float32)
    q, k, v = ((x + 50).to(dtype) for x in call)

    def run(*parts: Tensor) -> Tensor:
        return attend(*parts, op="seqnorm", backend="native", **extras)

    with native.using(path):
        whole = run(q, k, v)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(run(q, k, v), whole)
            assert torch.equal(run(q[1:], k[1:], v[1:]), whole[1:])
    assert_near(whole, exact(SEQNORM, (q, k, v), extras), tolerance(SEQNORM, dtype))


@here
@each_way
@pytest.mark.parametrize("far", [1e2, 1e4])
@pytest.mark.parametrize("few", [1, 64, 300])
def test_a_group_that_begins_elsewhere(dtype: torch.dtype, path: str, far: float, few: int) -> None:
    """Groups are centred on their first tokens: the worst for that are tokens unlike all that
    follow.
    """
    call, extras = draw(SEQNORM, (1, 2, 9000, 9000, 16, 16), torch.float32)
    call = tuple(x.to(dtype) for x in call)
    for x in call:
        x[:, :, :few] += far
        x[:, :, 1024 : 1024 + few] -= far
    with native.using(path):
        o = attend(*call, op="seqnorm", backend="native", **extras)
    assert_near(o, exact(SEQNORM, call, extras), tolerance(SEQNORM, dtype))


@here
@each_way
def test_what_a_mask_leaves_out_may_be_anything(dtype: torch.dtype, path: str) -> None:
    call, extras = draw(SEQNORM, (2, 2, 65, 65, 48, 48), dtype)
    masks = masks_of("both", 2, 65, 65)
    names = ("query_mask", "mask", "mask")
    spoiled = [
        x.masked_fill(~masks[name][:, None, :, None], float("nan"))
        for x, name in zip(call, names, strict=True)
    ]
    with native.using(path):
        whole, clean = (
            attend(*x, op="seqnorm", backend="native", **masks, **extras) for x in (spoiled, call)
        )
    assert torch.equal(whole, clean)


@here
@pytest.mark.filterwarnings("ignore:a sample has all its tokens masked")
def test_all_tokens_masked() -> None:
    call, extras = draw(SEQNORM, (2, 2, 65, 65, 16, 16), torch.float32)
    mask = torch.ones(2, 65, dtype=torch.bool)
    mask[1] = False
    for kinds in (("mask",), ("query_mask",), ("mask", "query_mask")):
        masks = dict.fromkeys(kinds, mask)
        ours, theirs = (
            attend(*call, op="seqnorm", backend=name, **masks, **extras)
            for name in ("native", "eager")
        )
        assert_near(ours, theirs, 1e-5)
        assert bool(ours[0].any())


@here
@each_dtype
def test_auto_takes_it_where_no_gradient_is_wanted(dtype: torch.dtype) -> None:
    module = Attention(48, 3, op="seqnorm", qkv_bias=True, dtype=dtype)
    x = torch.randn(2, 70, 48).to(dtype)
    assert module.path(x) == "eager, projection apart", "its own tensors are trained"
    slow = module(x)
    with torch.no_grad():
        assert module.path(x).startswith("native ")
        assert_near(module(x), slow, 2e-2 if dtype == torch.bfloat16 else 1e-5)
    call, extras = draw(SEQNORM, SHAPES["63"], dtype)
    assert backend_of(*call, "seqnorm", **extras).name == "native"
    call[2].requires_grad_()
    assert backend_of(*call, "seqnorm", **extras).name == "eager"
    with pytest.raises(BackendRefused, match=r"native: has no gradients: it is for torch\.no_grad"):
        attend(*call, op="seqnorm", backend="native", **extras)


@here
def test_a_gradient_through_the_node_itself_is_refused() -> None:
    q, k, v = (torch.randn(1, 1, 9, 4, requires_grad=True) for _ in range(3))
    with pytest.raises(
        UsageError, match='the native kernels of "seqnorm" have no gradient: pass backend="eager"'
    ):
        torch.ops.softless.moments(q, k, v, None, None).sum().backward()


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "LIBRARY", None)
    monkeypatch.setattr(native, "WHY_NOT", "no native library here")
    monkeypatch.setattr(importlib.import_module("softless.attention.choose"), "_plans", {})
    call, extras = draw(SEQNORM, SHAPES["63"], torch.float32)
    assert backend_of(*call, "seqnorm", **extras).name == "eager"
    with pytest.raises(BackendRefused, match="native: no native library here; eager: can run"):
        attend(*call, op="seqnorm", backend="native", **extras)


@here
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_the_operators_keep_torchs_rules(masked: bool) -> None:
    B, H, N, D, E = 2, 2, 9, 8, 5
    q, k, v = (torch.randn(B, N, H, width).transpose(1, 2) for width in (D, D, E))
    masks = [torch.rand(B, N) < 0.7 if masked else None for _ in range(2)]
    made: dict[str, Any] = {
        "middle": torch.randn(B, H, 1, D).double(),
        "matrix": torch.randn(B, H, D, E),
    }
    torch.library.opcheck(torch.ops.softless.moments.default, (q, k, v, *masks))
    given = (q, v, *made.values(), torch.randn(B, H, 1, E), masks[1])
    torch.library.opcheck(torch.ops.softless.centred.default, given)


@here
def test_a_compiled_module_gives_the_same() -> None:
    module = Attention(16, 2, op="seqnorm").eval()
    x = torch.randn(2, 40, 16)
    torch._dynamo.reset()
    with torch.no_grad():
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        assert_near(compiled(x), module(x), 1e-6)


@here
def test_counters_see_what_they_see_of_plain_torch() -> None:
    call, extras = draw(SEQNORM, (1, 2, 30, 50, 8, 5), torch.float32)
    counts = []
    for backend in ("native", "eager"):
        with (
            FlopCounterMode(display=False) as flops,
            TranscendentalCounter() as exps,
            torch.no_grad(),
        ):
            attend(*call, op="seqnorm", backend=backend, **extras)
        counts.append((flops.get_total_flops(), sum(exps.kinds.values())))
    assert counts[0] == counts[1]
    assert counts[0][0] > 0
