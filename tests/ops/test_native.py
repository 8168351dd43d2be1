"""The native kernels behind `softless.attend`: every way of this processor, the choice of it, its
node in a graph, its gradients.

The kernels without Python, under sanitizers and with emulated tiles, are in tests/native.
"""

import importlib
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch.utils._python_dispatch import TorchDispatchMode

import softless
from softless.attention import OPERATORS, Operator, attend_packed, output_matrix
from softless.attention.choose import backend_of
from softless.attention.kernels import native
from softless.attention.packed import unpacked
from softless.errors import BackendRefused, UsageError
from softless.layers import Attention
from softless.measure import TranscendentalCounter
from softless.measure.flops import FlopCounter
from tests.building import no_kernels
from tests.ops.draw import CROSS, SHAPES, assert_near, attend, draw, error, exact, reference

# one product and two norms
FAMILY = [op for op in OPERATORS.values() if any(backend.packed for backend in op.backends)]
WAYS = [(dtype, path) for dtype, paths in native.PATHS.items() for path in paths]
# head widths of the hosts, and a head that is the whole width; 65 fills no vector
WIDTHS = {
    "48": (2, 2, 65, 65, 48, 48),
    "64": (1, 3, 70, 70, 64, 64),
    "65": (1, 2, 70, 70, 65, 65),
    "384": (1, 1, 50, 50, 384, 384),
}
ALL_SHAPES = SHAPES | CROSS | WIDTHS
# so few tokens that the other order is cheaper are left to eager, unless this one is asked for
CHANNELS: dict[str, Any] = {"order": "channels"}

here = pytest.mark.skipif(
    native.LIBRARY is None or not WAYS, reason=native.WHY_NOT or "no way of this processor"
)
each_family = pytest.mark.parametrize("op", FAMILY, ids=lambda op: op.name)
each_way = pytest.mark.parametrize(
    ("dtype", "path"),
    WAYS,
    ids=[f"{str(dtype).removeprefix('torch.')}-{path}" for dtype, path in WAYS],
)
each_dtype = pytest.mark.parametrize(
    "dtype", native.DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch.")
)


def tolerance(op: Operator, dtype: torch.dtype, width: int = 0) -> float:
    """The native backend's; twice that where one head is so wide that hundreds of products make one
    output.
    """
    return op.backends[0].tolerance[dtype] * (2 if width > 128 else 1)


def masks_of(kind: str, B: int, N: int, M: int) -> dict[str, Tensor]:
    """Masks of about two thirds of the tokens, of the last image's first three alone."""
    generator = torch.Generator().manual_seed(5)

    def make(tokens: int) -> Tensor:
        keep = torch.rand(B, tokens, generator=generator) < 0.65
        keep[:, :3] = True
        keep[-1, 3:] = False
        return keep

    lengths = {"mask": M, "query_mask": N}
    wanted = {"none": (), "keys": ("mask",), "queries": ("query_mask",), "both": tuple(lengths)}[
        kind
    ]
    return {name: make(lengths[name]) for name in wanted}


def gradients(inputs: Any, weight: Tensor, run: Any) -> tuple[Tensor, ...]:
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    return torch.autograd.grad((run(*leaves).double() * weight).sum(), leaves)


# Which backend


def test_the_library_is_here_where_it_can_be_built() -> None:
    """A compile error leaves a package without the library, on purpose; here it must not pass
    unseen.
    """
    if why := no_kernels():
        pytest.skip(why)
    assert native.LIBRARY is not None, f"{native.WHY_NOT}; `pip install --verbose` shows why"


@here
def test_the_ways_of_this_processor() -> None:
    assert {op.name for op in FAMILY} == {"sima", "sima_l2", "sima_none"}
    assert all(native.PATHS.values())
    assert set(native.PATHS[torch.float32]) <= set(native.PATHS[torch.bfloat16])
    for dtype, path in WAYS:
        with native.using(path):
            assert native.path_of(dtype, 64, 64) == path
            assert native.path_of(dtype, 63, 64), "an odd width goes another way"
    assert native.path_of(torch.float64, 64, 64) == ""
    with (
        pytest.raises(UsageError, match=r"no native path named 'neon'.* It has: .*avx2"),
        native.using("neon"),
    ):
        pass


@here
@each_family
def test_auto_takes_native_for_what_it_runs(op: Operator) -> None:
    for dtype, taken in {
        torch.float32: "native",
        torch.bfloat16: "native",
        torch.float64: "eager",
        torch.float16: "eager",
    }.items():
        call, _ = draw(op, SHAPES["square"], dtype)
        assert backend_of(*call, op).name == taken
        if taken == "eager":
            with pytest.raises(
                BackendRefused, match=f"native: takes float32 and bfloat16, got {dtype}"
            ):
                attend(*call, op=op, backend="native")
    call, _ = draw(op, SHAPES["square"], torch.float32)
    assert backend_of(*call, op, order="tokens").name == "eager"
    with pytest.raises(
        BackendRefused, match=r"native: sums over tokens first, and order='tokens' was asked for"
    ):
        attend(*call, op=op, backend="native", order="tokens")
    few, _ = draw(op, SHAPES["short"], torch.float32)
    assert backend_of(*few, op).name == "eager"
    assert backend_of(*few, op, **CHANNELS).name == "native"
    with pytest.raises(
        BackendRefused,
        match=r"native: sums over tokens first, and q\^ k\^\^T is the cheaper product at this size",
    ):
        attend(*few, op=op, backend="native")
    q, k, v = (x.to("meta") for x in call)
    assert backend_of(q, k, v, op).name == "eager"
    with pytest.raises(BackendRefused, match="native: runs on the processor, got meta"):
        attend(q, k, v, op=op, backend="native")
    with pytest.raises(BackendRefused, match="native: there is nothing to sum"):
        attend(*(x[:, :, :0] for x in call), op=op, backend="native")


@pytest.fixture
def no_library(monkeypatch: pytest.MonkeyPatch) -> str:
    why = "no native library here"
    monkeypatch.setattr(native, "LIBRARY", None)
    monkeypatch.setattr(native, "WHY_NOT", why)
    monkeypatch.setattr(native, "PATHS", dict.fromkeys(native.DTYPES, ()))
    monkeypatch.setattr(importlib.import_module("softless.attention.choose"), "_plans", {})
    return why


@each_family
@each_dtype
def test_without_the_library(op: Operator, dtype: torch.dtype, no_library: str) -> None:
    """Plain torch, the same results, and the reason for whoever asks."""
    call, extras = draw(op, SHAPES["63"], dtype)
    assert backend_of(*call, op).name == "eager"
    assert_near(attend(*call, op=op), exact(op, call, extras), tolerance(op, dtype))
    with pytest.raises(BackendRefused, match=f"native: {no_library}; eager: can run"):
        attend(*call, op=op, backend="native")
    with pytest.raises(UsageError, match="It has: none"), native.using("avx2"):
        pass
    module = Attention(16, 2, op=op, dtype=dtype)
    assert module.path(torch.zeros(1, 5, 16, dtype=dtype)) == "eager, projection apart"
    assert module(torch.randn(1, 5, 16, dtype=dtype)).shape == (1, 5, 16)


def test_why_there_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(native, "NAME", "of_another_name.so")
    assert native._load()[0] is None
    assert "this installation has no native library" in native._load()[1]
    (tmp_path / "of_another_name.so").write_text("no library")
    monkeypatch.setattr(softless.attention.kernels, "__path__", [str(tmp_path)])
    assert native._load()[0] is None
    assert native._load()[1].startswith("the native library does not load: ")


# Values and gradients


@here
@each_family
@each_way
def test_every_way_equals_the_reference(op: Operator, dtype: torch.dtype, path: str) -> None:
    for name, shape in ALL_SHAPES.items():
        call, extras = draw(op, shape, dtype)
        for kind in ("none", "keys", "queries", "both"):
            masks = masks_of(kind, shape[0], *shape[2:4])
            with native.using(path):
                o = attend(*call, op=op, backend="native", **CHANNELS, **extras, **masks)
            assert o.dtype == dtype
            assert_near(
                o,
                exact(op, call, extras, **masks),
                tolerance(op, dtype, shape[4]),
                f"{path}, {name}, {kind}:",
            )
            if "query_mask" in masks:
                assert not bool(o.transpose(1, 2)[~masks["query_mask"]].any())


@here
@each_family
@each_way
def test_gradients_of_every_way(op: Operator, dtype: torch.dtype, path: str) -> None:
    """At most twice the error of the reference in the same precision, as in the contract.

    A lone token is left to tests/native/check.cpp, which measures by the size of the terms: under a
    norm it has no gradient but q's and k's own rounding.
    """
    for name, shape in ALL_SHAPES.items():
        if name == "one token":
            continue
        call, extras = draw(op, shape, dtype)
        weight = torch.randn(*shape[:3], shape[5], dtype=torch.float64)
        for kind in ("none", "keys", "both"):
            masks = masks_of(kind, shape[0], *shape[2:4])
            truth = gradients(
                [x.double() for x in call],
                weight,
                lambda *x, more=extras | masks: exact(op, x, more),
            )
            rough = gradients(
                call, weight, lambda *x, more=extras | masks: reference(op, *x, **more)
            )
            with native.using(path):
                ours = gradients(
                    call,
                    weight,
                    lambda *x, more=extras | masks: attend(
                        *x, op=op, backend="native", **CHANNELS, **more
                    ),
                )
            for what, own, plain, exactly in zip("qkv", ours, rough, truth, strict=True):
                bound = max(2 * error(plain, exactly), 32 * torch.finfo(dtype).eps)
                assert_near(own, exactly, bound, f"{path}, {name}, {kind}: gradient of {what}")


@here
@each_family
@each_way
def test_a_channel_next_to_nothing_gets_no_gradient(
    op: Operator, dtype: torch.dtype, path: str
) -> None:
    """One of q and another of k, as the reference has it (design: a share of the median norm below
    which the gradient is zero).
    """
    (q, k, v), extras = draw(op, SHAPES["63"], dtype)
    q[..., 0] *= 1e-9
    k[..., 1] *= 1e-9
    weight = torch.randn(v.shape, dtype=torch.float64)
    truth = gradients([q.double(), k.double(), v.double()], weight, lambda *x: exact(op, x, extras))
    assert bool(truth[0][..., 0].any()) == bool(truth[1][..., 1].any()) == (op.name == "sima_none")
    with native.using(path):
        ours = gradients(
            (q, k, v), weight, lambda *x: attend(*x, op=op, backend="native", **extras)
        )
    for what, own, exactly in zip("qkv", ours, truth, strict=True):
        assert_near(own, exactly, 2 * tolerance(op, dtype), f"gradient of {what}")
        assert torch.equal(own[..., :2] != 0, exactly[..., :2] != 0)


@here
@each_way
def test_what_a_mask_leaves_out_may_be_anything(dtype: torch.dtype, path: str) -> None:
    op = OPERATORS["sima"]
    call, _ = draw(op, WIDTHS["48"], dtype)
    masks = masks_of("both", 2, 65, 65)
    weight = torch.randn(2, 2, 65, 48, dtype=torch.float64)
    run = lambda *x: attend(*x, op=op, backend="native", **masks)  # noqa: E731
    spoiled = [
        x.masked_fill(~masks[name][:, None, :, None], float("nan"))
        for x, name in zip(call, ("query_mask", "mask", "mask"), strict=True)
    ]
    with native.using(path):
        assert torch.equal(run(*spoiled), run(*call))
        for own, clean in zip(
            gradients(spoiled, weight, run), gradients(call, weight, run), strict=True
        ):
            assert torch.equal(own, clean)


@here
@each_dtype
@pytest.mark.parametrize(
    "kinds", [("mask",), ("query_mask",), ("mask", "query_mask")], ids=["keys", "queries", "both"]
)
@pytest.mark.filterwarnings("ignore:a sample has all its tokens masked")
def test_all_tokens_masked(dtype: torch.dtype, kinds: tuple[str, ...]) -> None:
    """Of one image: its norms are zero, and neither its output nor its gradients are anything
    else.
    """
    call, _ = draw(OPERATORS["sima"], WIDTHS["48"], dtype)
    mask = torch.ones(2, 65, dtype=torch.bool)
    mask[1] = False
    masks = dict.fromkeys(kinds, mask)
    weight = torch.randn(2, 2, 65, 48, dtype=torch.float64)
    run = lambda *x: attend(*x, backend="native", **masks)  # noqa: E731
    assert bool(run(*call)[0].any())
    assert not bool(run(*call)[1].any())
    for slope in gradients(call, weight, run):
        assert bool(slope[0].any())
        assert not bool(slope[1].any())


@pytest.mark.slow
@here
@each_way
@pytest.mark.parametrize("tokens", [31, 32, 33, 255, 256, 257, 2047, 2049, 8191, 8193])
def test_borders_of_tiles_groups_and_threads(dtype: torch.dtype, path: str, tokens: int) -> None:
    """The same bits with one, two and three threads and beside another image; and the right
    ones.
    """
    op = OPERATORS["sima"]
    call, extras = draw(op, (2, 1, tokens, tokens, 16, 16), dtype)
    weight = torch.randn(2, 1, tokens, 16, dtype=torch.float64)
    run = lambda *x: attend(*x, op=op, backend="native", token_scale="tokens")  # noqa: E731
    with native.using(path):
        whole, slopes = run(*call), gradients(call, weight, run)
        for threads in (2, 3):
            torch.set_num_threads(threads)
            assert torch.equal(run(*call), whole)
            assert all(map(torch.equal, gradients(call, weight, run), slopes))
            one = [x[1:] for x in call]
            assert torch.equal(run(*one), whole[1:])
            assert all(
                map(torch.equal, gradients(one, weight[1:], run), (slope[1:] for slope in slopes))
            )
    assert_near(whole, exact(op, call, {**extras, "token_scale": "tokens"}), tolerance(op, dtype))


@here
@each_family
def test_the_matrix_alone_has_no_gradient(op: Operator) -> None:
    qkv = torch.randn(1, 200, 3 * 16, requires_grad=True)
    matrix = output_matrix(qkv, 2, op)
    assert matrix is not None
    with pytest.raises(
        UsageError, match=r"sums over tokens have no gradient of their own: take softless\.attend"
    ):
        matrix.sum().backward()
    eager = output_matrix(qkv, 2, op, backend="eager")
    assert eager is not None
    assert_near(eager, matrix, 1e-5)
    eager.sum().backward()


# The buffer of q, k and v


UNTIED = [op for op in OPERATORS.values() if not op.wants("tied_qk", {})]


@pytest.mark.parametrize("op", UNTIED, ids=lambda op: op.name)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_the_buffer_gives_what_its_parts_give(op: Operator, masked: bool) -> None:
    for dtype in native.DTYPES:
        B, H, N, D = 2, 3, 36, 8
        _, extras = draw(op, (B, H, N, N, D, D), dtype)
        qkv = torch.randn(B, N, 3 * H * D, dtype=torch.float64).to(dtype)
        mask = masks_of("both", B, N, N)["mask"] | (torch.arange(N) < 4) if masked else None
        weight = torch.randn(B, N, H * D, dtype=torch.float64)

        def by_parts(x: Tensor, mask: Tensor | None = mask, extras: Any = extras) -> Tensor:
            o = softless.attend(*unpacked(x, 3), op=op, mask=mask, query_mask=mask, **extras)
            return o.transpose(1, 2).flatten(2)

        def at_once(x: Tensor, mask: Tensor | None = mask, extras: Any = extras) -> Tensor:
            return attend_packed(x, 3, op, mask, **extras)

        assert torch.equal(at_once(qkv), by_parts(qkv))
        (ours,), (theirs,) = gradients([qkv], weight, at_once), gradients([qkv], weight, by_parts)
        assert bool(ours.any())
        assert torch.equal(ours, theirs)


def test_a_buffer_of_tied_q_and_k_is_refused() -> None:
    tied = next(op for op in OPERATORS.values() if op.wants("tied_qk", {}))
    with pytest.raises(UsageError, match="tied q and k"):
        attend_packed(torch.randn(1, 9, 48), 2, tied)


class Called(TorchDispatchMode):
    """The names of the operations that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(str(func))
        return func(*args, **(kwargs or {}))


@here
@each_dtype
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
def test_what_the_buffer_keeps_for_its_gradient(dtype: torch.dtype, masked: bool) -> None:
    """Nothing but itself, the norms and k^T v; and its gradient is one tensor that one operation
    writes.
    """
    B, H, N, D = 2, 3, 100, 16
    qkv = torch.randn(B, N, 3 * H * D, dtype=torch.float64).to(dtype).requires_grad_()
    mask = masks_of("both", B, N, N)["mask"] if masked else None
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        kept[x.data_ptr()] = x.numel() * x.element_size()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        o = attend_packed(qkv, H, "sima", mask)
    sums = 4 * B * H * (2 * D + D * D)
    assert sum(kept.values()) == qkv.numel() * qkv.element_size() + sums + (B * N if masked else 0)
    slope = torch.ones_like(o)
    with Called() as called:
        torch.autograd.grad(o, qkv, slope)
    ran = [name for name in called.names if not name.startswith("aten.detach")]
    assert ran == ["softless.attend_packed_backward.default"]


# One node of a graph


@here
@pytest.mark.parametrize(
    ("norm", "token_scale"), [(0, None), (1, 0.0), (2, None)], ids=["none", "l1", "l2"]
)
@pytest.mark.parametrize("masked", [False, True], ids=["all", "masked"])
# opcheck's own
@pytest.mark.filterwarnings(
    r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning"
)
def test_the_operators_keep_torchs_rules(
    norm: int, token_scale: float | None, masked: bool
) -> None:
    """Schema, fake form, autograd and tracing, as `torch.library.opcheck` measures them."""
    dtype = torch.bfloat16 if masked else torch.float32
    B, H, N, D, E = 2, 2, 9, 8, 5
    q, k, v = (
        torch.randn(B, N, H, width).to(dtype).transpose(1, 2).requires_grad_()
        for width in (D, D, E)
    )
    qkv = torch.randn(B, N, 3 * H * D).to(dtype).requires_grad_()
    masks = [torch.rand(B, N) < 0.7 if masked else None for _ in range(2)]
    rule = (norm, token_scale, 1e-12)
    ops = torch.ops.softless
    torch.library.opcheck(ops.sums.default, (q.detach(), k.detach(), v.detach(), *masks, norm))
    torch.library.opcheck(ops.attend.default, (q, k, v, *masks, *rule))
    torch.library.opcheck(ops.attend_packed.default, (qkv, H, masks[0], *rule))
    with torch.no_grad():
        o, *found = ops.attend(q, k, v, *masks, *rule)
        packed, *sums = ops.attend_packed(qkv, H, masks[0], *rule)
    given = (q.detach(), k.detach(), v.detach(), *masks, *found, *rule)
    torch.library.opcheck(ops.attend_backward.default, (torch.randn_like(o), *given))
    given = (qkv.detach(), H, masks[0], *sums, *rule)
    torch.library.opcheck(ops.attend_packed_backward.default, (torch.randn_like(packed), *given))


@here
@each_family
def test_one_node_of_a_compiled_graph(op: Operator) -> None:
    graphs: dict[str, list[str]] = {}

    def keep(which: str) -> Any:
        def compiler(graph: Any, _: Any) -> Any:
            graphs[which] = [
                str(node.target) for node in graph.graph.nodes if node.op == "call_function"
            ]
            return make_boxed_func(graph.forward)

        return compiler

    backend = aot_autograd(fw_compiler=keep("forward"), bw_compiler=keep("backward"))
    call, _ = draw(op, SHAPES["100"], torch.float32)
    leaves = [x.requires_grad_() for x in call]
    torch._dynamo.reset()
    o = torch.compile(attend, fullgraph=True, backend=backend)(*leaves, op=op.name)
    assert_near(o, attend(*call, op=op), 1e-7)
    ours = torch.autograd.grad(o.square().sum(), leaves)
    theirs = torch.autograd.grad(attend(*leaves, op=op).square().sum(), leaves)
    assert all(map(torch.equal, ours, theirs))
    counted = {
        which: [name for name in names if not name.startswith("<built-in")]
        for which, names in graphs.items()
    }
    assert counted == {
        "forward": ["softless.attend.default"],
        "backward": ["softless.attend_backward.default"],
    }

    qkv = torch.randn(2, 20, 3 * 16, requires_grad=True)
    torch._dynamo.reset()
    torch.compile(attend_packed, fullgraph=True, backend=backend)(qkv, 2, op.name).sum().backward()
    counted = {
        which: [name for name in names if "softless" in name] for which, names in graphs.items()
    }
    assert counted == {
        "forward": ["softless.attend_packed.default"],
        "backward": ["softless.attend_packed_backward.default"],
    }


@here
@each_family
@pytest.mark.parametrize(
    "shape", [(2, 3, 40, 40, 8, 8), (1, 2, 30, 50, 8, 5)], ids=["self", "cross"]
)
def test_counters_see_what_they_see_of_plain_torch(op: Operator, shape: tuple[int, ...]) -> None:
    call, _ = draw(op, shape, torch.float32)
    counts = {}
    for backend in ("native", "eager"):
        leaves = [x.clone().requires_grad_() for x in call]
        with FlopCounter() as forward:
            o = attend(*leaves, op=op, backend=backend)
        with FlopCounter() as backward:
            o.sum().backward()
        with TranscendentalCounter() as exps, torch.no_grad():
            attend(*call, op=op, backend=backend)
        counts[backend] = forward.total, backward.total, sum(exps.kinds.values())
    assert counts["native"] == counts["eager"]
    assert counts["native"][0] > 0


@here
@each_family
def test_counters_see_the_buffer_alike(op: Operator) -> None:
    counts = []
    for backend in ("native", "eager"):
        qkv = torch.randn(2, 40, 3 * 2 * 8, requires_grad=True)
        with FlopCounter() as counter:
            attend_packed(qkv, 2, op, backend=backend).sum().backward()
        counts.append(counter.total)
    assert counts[0] == counts[1] > 0


# The merged output projection


def apart(module: Attention, x: Tensor) -> Tensor:
    """The module's value in float64, q, k and v and the projection by the book."""
    weight, bias = module.qkv.weight.double(), module.qkv.bias
    qkv = x.double() @ weight.T + (0 if bias is None else bias.double())
    q, k, v = unpacked(qkv, module.num_heads)
    o = (
        softless
        .attend(q, k, v, op=module.op, backend="reference", **module.options)
        .transpose(1, 2)
        .flatten(2)
    )
    return o @ module.proj.weight.double().T + (
        0 if module.proj.bias is None else module.proj.bias.double()
    )


@each_family
@each_dtype
@pytest.mark.parametrize("scale", [None, "tokens", 100.0])
def test_the_merged_projection(op: Operator, dtype: torch.dtype, scale: Any) -> None:
    """Without a bias, so that what is small in the paper's scale is compared by its own size."""
    if scale is not None and "token_scale" not in op.options:
        pytest.skip(f"{op.name} has no token_scale")
    options = {} if scale is None else {"token_scale": scale}
    module = Attention(48, 3, op=op, proj_bias=False, qkv_bias=True, dtype=dtype, **options)
    for tokens in (575, 576, 700):
        x = torch.randn(2, tokens, 48).to(dtype)
        merges = tokens >= 12 * 48
        with torch.no_grad():
            assert module.path(x).endswith("merged projection" if merges else "projection apart")
            y = module(x)
        assert module.path(x).endswith("projection apart")  # a gradient wants every step
        # three roundings of a projection's outputs beside the operator's own
        bound = 20 * tolerance(op, dtype)
        assert_near(
            y, apart(module, x), 3e-5 if dtype == torch.float32 else bound, f"{tokens} tokens"
        )
        assert_near(y, module(x), 3e-5 if dtype == torch.float32 else bound)


@here
def test_the_merged_projection_adds_its_bias() -> None:
    module = Attention(48, 3, op="sima", token_scale="tokens")
    torch.nn.init.normal_(module.proj.bias)
    x = torch.randn(1, 600, 48)
    with torch.no_grad():
        assert module.path(x).endswith("merged projection")
        assert_near(module(x), apart(module, x), 1e-5)
        y = module(x)
        module.proj.bias.zero_()
        assert error(module(x), y) > 0.1


@here
def test_who_watches_the_projection_sees_it_called() -> None:
    module = Attention(48, 3, op="sima", proj_bias=False)
    x, seen = torch.randn(1, 200, 48), []
    with torch.no_grad():
        merged = module(x)
        for watch in (module.proj.register_forward_hook, module.proj.register_forward_pre_hook):
            handle = watch(lambda *_: seen.append(1))
            assert module.path(x).endswith("projection apart")
            assert_near(module(x), merged, 1e-5)
            handle.remove()
        assert len(seen) == 2
        mask = torch.ones(1, 200, dtype=torch.bool)
        assert_near(module(x, mask=mask), merged, 1e-5)
