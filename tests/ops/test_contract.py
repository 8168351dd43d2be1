"""The contract: every claim of every operator's record, measured, in both directions."""

import contextlib
import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from softless.attention import OPERATORS, Dims, Operator, implied_matrix
from softless.attention import ops as ops_package
from softless.errors import BackendRefused, UsageError
from softless.layers.masks import token_mask
from softless.measure import TranscendentalCounter
from softless.measure.flops import FlopCounter
from tests.ops.draw import (
    CROSS,
    DTYPES,
    SHAPES,
    able,
    assert_near,
    attend,
    draw,
    error,
    every,
    exact,
    reference,
    sensitivity,
    sides,
)

each_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=list(SHAPES))
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


def dims(op: Operator, call: Any, extras: dict[str, Any]) -> Dims:
    options = op.filled({name: extras[name] for name in op.options if name in extras})
    q, k, v = call
    return Dims.of(q, k, v, extras.get("grid"), options)


def shapes_of(op: Operator) -> dict[str, Any]:
    return SHAPES | (CROSS if op.cross else {})


def test_the_list_is_the_folder() -> None:
    folder = {path.stem for path in Path(ops_package.__path__[0]).glob("*.py")} - {"__init__"}
    assert folder == set(OPERATORS), (
        "softless/attention/ops/__init__.py must import the SPEC of each file under the file's name"
    )
    assert all(record.name == name for name, record in OPERATORS.items())


# The reference


@every
@pytest.mark.parametrize("name", ["one token", "square", "short", "fewer queries", "other width"])
def test_gradients_of_the_reference(op: Operator, name: str) -> None:
    if name in CROSS and not op.cross:
        pytest.skip(f"{op.name} takes as many queries as keys, and v as wide as k")
    shape = {**SHAPES, **CROSS}[name]
    call, extras = draw(op, (1, shape[1], min(shape[2], 9), min(shape[3], 9), min(shape[4], 4), min(shape[5], 4)))
    learned = {key: x.requires_grad_() for key, x in extras.get("learned", {}).items()}
    inputs = [x.requires_grad_() for x in call]

    def run(q: Tensor, k: Tensor, v: Tensor, *own: Tensor) -> Tensor:
        named = {"learned": dict(zip(learned, own, strict=True))} if learned else {}
        return reference(op, q, k, v, **{**extras, **named})

    assert torch.autograd.gradcheck(run, (*inputs, *learned.values()), atol=1e-8, rtol=1e-6)


@every
def test_flops_claim(op: Operator) -> None:
    for shape in (*shapes_of(op).values(), (2, 2, 200, 200, 8, 8)):
        call, extras = draw(op, shape)
        with FlopCounter() as counter:
            op.reference(*call, **extras)
        assert counter.total == op.flops(dims(op, call, extras)), shape


@every
@pytest.mark.parametrize("backend", ["reference", "eager"])
def test_exponentials_claim(op: Operator, backend: str) -> None:
    for shape in shapes_of(op).values():
        call, extras = draw(op, shape, torch.float32)
        with TranscendentalCounter() as counter:
            attend(*call, op=op, backend=backend, **extras)
        assert sum(counter.kinds.values()) == op.exps(dims(op, call, extras)), shape


@every
def test_growth_claim(op: Operator) -> None:
    """Work and the largest tensor kept for the backward pass, at N and 4 N tokens with as many windows, landmarks and features."""

    def meters(tokens: int) -> tuple[int, int]:
        call, extras = draw(op, (1, 2, tokens, tokens, 8, 8), windows=8)
        saved = [0]

        def pack(x: Tensor) -> Tensor:
            saved.append(x.numel())
            return x

        hook = torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x)
        with FlopCounter() as counter, hook:
            op.reference(*(x.requires_grad_() for x in call), **extras)
        return counter.total, max(saved)

    (work, kept), (work4, kept4) = meters(128), meters(512)
    exponents = [round(math.log(ratio, 4)) for ratio in (work4 / work, kept4 / kept)]
    assert exponents == [{"N": 1, "N^2": 2}[op.growth]] * 2


@every
def test_rows_claim(op: Operator) -> None:
    """With v = 1 every row gives one, or zero, exactly if the operator normalises rows."""
    for shape in (SHAPES["square"], SHAPES["63"]):
        (q, k, v), extras = draw(op, shape)
        o = op.reference(q, k, torch.ones_like(v), **extras)
        let_through = o != 0  # a query that no feature lets through gives 0
        assert bool(let_through.double().mean() > 0.9)
        assert bool((o - 1)[let_through].abs().max() < 1e-9) == (op.normalises == "rows")


@every
def test_scale_free_claim(op: Operator) -> None:
    (q, k, v), extras = draw(op, SHAPES["square"])
    factors = torch.rand(q.shape[-1], dtype=q.dtype) * 10 + 0.1
    moved = op.reference(q * factors, k / factors.flip(0), v, **extras)
    assert (error(moved, op.reference(q, k, v, **extras)) < 1e-9) == op.scale_free


@every
def test_equivariance_claim(op: Operator) -> None:
    (q, k, v), extras = draw(op, SHAPES["square"])
    order = torch.randperm(q.shape[-2])
    moved = op.reference(*(x[..., order, :] for x in (q, k, v)), **extras)
    assert (error(moved, op.reference(q, k, v, **extras)[..., order, :]) < 1e-9) == op.equivariant


@every
def test_implied_matrix_claim(op: Operator) -> None:
    """The operator with v = 1 gives a matrix A with o = A v, exactly if it claims one."""
    (q, k, v), extras = draw(op, (1, 2, 8, 8, 8, 8))
    eye = torch.eye(8, dtype=v.dtype).expand(1, 2, -1, -1)
    matrix = op.reference(q, k, eye, **extras)
    assert (error(matrix @ v, op.reference(q, k, v, **extras)) < 1e-9) == op.implied_matrix
    if op.implied_matrix:
        assert_near(implied_matrix(q, k, op, **extras), matrix, 1e-12)
    else:
        with pytest.raises(UsageError, match="does not weigh tokens"):
            implied_matrix(q, k, op, **extras)


@every
def test_linear_in_v_claim(op: Operator) -> None:
    (q, k, v), extras = draw(op, SHAPES["square"])
    four = op.reference(q, k, 4 * v, **extras)
    assert (error(four, 4 * op.reference(q, k, v, **extras)) < 1e-12) == op.linear_in_v


@every
def test_cross_claim(op: Operator) -> None:
    """The reference itself takes another number of queries than keys, exactly if the record says so."""
    call, extras = draw(op, CROSS["fewer queries"])
    try:
        op.reference(*call, **extras)
    except RuntimeError:
        assert not op.cross
    else:
        assert op.cross
    if op.cross:
        assert_near(attend(*call, op=op, **extras), op.reference(*call, **extras), 1e-12)
    else:
        with pytest.raises(UsageError, match=r"as many queries as keys|k and v in tokens"):
            attend(*call, op=op, **extras)


@every
def test_mask_kinds_claim(op: Operator) -> None:
    """Pairwise and causal masks are honoured or refused, never ignored."""
    x = torch.randn(2, 5, 8)
    ragged = torch.ones(5, 5, dtype=torch.bool).tril()
    for kind, arguments in {"pairwise": (ragged, False), "causal": (None, True)}.items():
        if kind in op.masks:
            _, taken = token_mask(op, x, *arguments, None)
            call, extras = draw(op, (1, 2, 5, 5, 4, 4))
            alone = op.reference(call[0][..., :1, :], call[1][..., :1, :], call[2][..., :1, :], **extras)
            assert_near(attend(*call, op=op, **extras, **taken)[..., :1, :], alone, 1e-12, kind)
        else:
            with pytest.raises(UsageError, match="token masks"):
                token_mask(op, x, *arguments, None)


@every
def test_dropout_claim(op: Operator) -> None:
    call, extras = draw(op, SHAPES["square"])
    if op.drops_weights:
        assert error(attend(*call, op=op, dropout=0.5, **extras), attend(*call, op=op, **extras)) > 0.1
    else:
        with pytest.raises(UsageError, match=r"no option.* named 'dropout'"):
            attend(*call, op=op, dropout=0.5, **extras)


@every
def test_learned_tensors_are_learned(op: Operator) -> None:
    call, extras = draw(op, SHAPES["square"], torch.float32)
    for name, tensor in extras.get("learned", {}).items():
        if not op.learned[name].trained:
            continue
        tensor.requires_grad_()
        attend(*call, op=op, **extras).square().sum().backward()
        assert tensor.grad is not None, name
        assert bool(tensor.grad.any()), name
    if not op.learned:
        op.reference(*call, **extras)
        with pytest.raises(UsageError, match="learned tensors: none"):
            attend(*call, op=op, **{**extras, "learned": {"temperature": torch.ones(1)}})


# Backends


@every
@each_shape
@each_dtype
def test_backends_equal_the_reference(op: Operator, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    call, extras = draw(op, shape, dtype, gain=1.0)
    expected = exact(op, call, extras)
    for backend in able(op, call, extras):
        o = attend(*call, op=op, backend=backend.name, **extras)
        assert o.dtype == dtype
        assert_near(o, expected, backend.tolerance[dtype], backend.name)


@every
@each_dtype
def test_gradients_of_the_backends(op: Operator, dtype: torch.dtype) -> None:
    """At most twice the error of the reference run in the same precision, for q, k and v alike (reliability.md D6)."""
    call, extras = draw(op, SHAPES["63"], dtype)
    weight = torch.randn_like(call[0]).double()

    def gradients(inputs: Any, run: Any) -> list[Tensor]:
        leaves = [x.detach().clone().requires_grad_() for x in inputs]
        (run(*leaves).double() * weight).sum().backward()
        return [leaf.grad for leaf in sides(op, leaves) if leaf.grad is not None]

    truth = gradients([x.double() for x in call], lambda *x: exact(op, x, extras))
    plain = gradients(call, lambda *x: reference(op, *x, **extras))
    for backend in able(op, call, extras):
        run = partial(attend, op=op, backend=backend.name, **extras)
        if not backend.differentiable:
            with pytest.raises(BackendRefused, match=f"{backend.name}: has no gradients"):
                gradients(call, run)
            continue
        ours = gradients(call, run)
        names = "qkv" if len(ours) == 3 else "qv"
        for name, own, rough, exactly in zip(names, ours, plain, truth, strict=True):
            floor = 32 * torch.finfo(dtype).eps
            assert error(own, exactly) <= max(2 * error(rough, exactly), floor), f"{backend.name}: gradient of {name}"


@every
@each_dtype
def test_out_dtype(op: Operator, dtype: torch.dtype) -> None:
    """A wider output is worth its name: computed from widened inputs, not from a rounded result."""
    call, extras = draw(op, SHAPES["63"], dtype)
    for out in (torch.float32, torch.float64):
        o = attend(*call, op=op, out_dtype=out, **extras)
        assert o.dtype == out
        assert_near(o, exact(op, call, extras), op.backends[0].tolerance[torch.float32])


@every
@pytest.mark.parametrize("gain", [1e-12, 1e-4, 30.0, 1e4, 1e12])
def test_extreme_inputs_stay_right(op: Operator, gain: float) -> None:
    """Finite and right wherever the exact result fits the dtype."""
    call, extras = draw(op, SHAPES["square"], torch.float32, gain=gain)
    expected = exact(op, call, extras)
    if not bool((expected.abs() < torch.finfo(torch.float32).max).all()):
        pytest.skip(f"{op.name}: the exact result exceeds float32")
    o = attend(*call, op=op, **extras)
    assert bool(o.isfinite().all())
    if expected.abs().max() < torch.finfo(torch.float32).tiny:
        assert o.abs().max() <= torch.finfo(torch.float32).tiny
        return
    bound = max(op.backends[0].tolerance[torch.float32], 16 * sensitivity(op, call, extras))  # an exp of large scores
    if bound < 1:
        assert_near(o, expected, bound)


@every
def test_zeros(op: Operator) -> None:
    """A zero channel and all-zero tokens: finite value and gradient in every dtype (reliability.md D5)."""
    for dtype in DTYPES:
        (q, k, v), extras = draw(op, SHAPES["square"], dtype)
        q[..., 0] = 0
        k[..., 1] = 0
        for inputs in (
            (q, k, v),
            (torch.zeros_like(q), k, v),
            (torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)),
        ):
            leaves = [x.clone().requires_grad_() for x in inputs]
            o = attend(*leaves, op=op, **extras)
            o.float().sum().backward()
            assert bool(o.isfinite().all())
            assert all(bool(leaf.grad.isfinite().all()) for leaf in leaves if leaf.grad is not None)


# Masks: masking is removal


@every
@each_dtype
def test_masked_tokens_are_gone(op: Operator, dtype: torch.dtype) -> None:
    """Norms, sums and other tokens' outputs as without them, whatever they hold; their own rows are 0 (reliability.md D9).

    Without a grid masking is removal: ranks, segments and the number of tokens are those of the tokens that count.
    """
    (q, k, v), extras = draw(op, SHAPES["square"], dtype)
    keep = torch.rand(33) < 0.6
    keep[0] = True
    mask = keep.expand(2, -1)
    if op.wants("grid", {}):  # the others keep their places; what that means is tested operator by operator
        cleared = [x.masked_fill(~keep[:, None], 0) for x in (q, k, v)]
        expected = exact(op, cleared, extras, mask=mask, query_mask=mask)[..., keep, :]
        without = exact(op, (q, k, v), extras)[..., keep, :]
        assert error(without, expected) > 1e-2, "the mask changes nothing"
    else:
        expected = exact(op, (q[..., keep, :], k[..., keep, :], v[..., keep, :]), extras)
    q, k, v = (x.masked_fill(~keep[:, None], float("nan")) for x in (q, k, v))
    for backend in able(op, (q, k, v), extras):
        o = attend(q, k, v, op=op, mask=mask, query_mask=mask, backend=backend.name, **extras)
        assert_near(o[..., keep, :], expected, backend.tolerance[dtype], backend.name)
        assert not bool(o[..., ~keep, :].any())


@every
def test_masks_of_each_sample(op: Operator) -> None:
    """One left, and none left: the latter gives 0 with a notice, and neither touches the other sample."""
    (q, k, v), extras = draw(op, SHAPES["square"], torch.float32)
    mask = torch.zeros(2, 33, dtype=torch.bool)
    mask[0, 7] = True
    with pytest.warns(UserWarning, match="all its tokens masked"):
        o = attend(q, k, v, op=op, mask=mask, query_mask=mask, **extras)
    if op.wants("grid", {}):
        alone = exact(op, (q[:1], k[:1], v[:1]), extras, mask=mask[:1], query_mask=mask[:1])[:, :, 7:8]
    else:
        alone = exact(op, (q[:1, :, 7:8], k[:1, :, 7:8], v[:1, :, 7:8]), extras)
    assert_near(o[:1, :, 7:8], alone, op.backends[0].tolerance[torch.float32])
    assert not bool(o[1].any())


@every
def test_gradients_pass_no_mask(op: Operator) -> None:
    call, extras = draw(op, SHAPES["square"])
    mask = (torch.rand(2, 33) < 0.5).index_fill(1, torch.tensor([0]), value=True)
    leaves = [x.requires_grad_() for x in call]
    attend(*leaves, op=op, mask=mask, query_mask=mask, **extras).square().sum().backward()
    for leaf in sides(op, leaves):
        assert leaf.grad is not None
        assert not bool(leaf.grad.transpose(1, 2)[~mask].any())
        assert bool(leaf.grad.transpose(1, 2)[mask].any())


# Neighbours


@every
@each_dtype
def test_batch_mates_change_nothing(op: Operator, dtype: torch.dtype) -> None:
    """Bitwise, alone or among 2, 8 or 33, with a NaN image beside it (reliability.md D8)."""
    call, extras = draw(op, (33, 2, 20, 20, 8, 8), dtype)
    for x in call:
        x[5] = float("nan")
    whole = attend(*call, op=op, **extras)
    for size in (1, 2, 8):
        few = attend(*(x[:size] for x in call), op=op, **extras)
        assert torch.equal(few.nan_to_num(7.0), whole[:size].nan_to_num(7.0))
    assert bool(whole[6:].isfinite().all())


@every
def test_same_bits_twice(op: Operator) -> None:
    """Same input, same bits, with one thread and with two (reliability.md D20)."""
    call, extras = draw(op, (2, 2, 500, 500, 8, 8), torch.float32)
    for threads in (1, 2):
        torch.set_num_threads(threads)
        assert torch.equal(attend(*call, op=op, **extras), attend(*call, op=op, **extras))


# Graphs


@every
@pytest.mark.parametrize(
    "dynamic", [pytest.param(False, id="static", marks=pytest.mark.extra), pytest.param(True, id="dynamic")]
)
def test_compiles_into_one_graph(op: Operator, dynamic: bool) -> None:
    if dynamic and op.resolution == "grid":
        pytest.skip("the grid is a constant of the graph: no number of tokens is dynamic")
    torch._dynamo.reset()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    for shape in (SHAPES["square"], SHAPES["100"]):
        call, extras = draw(op, shape, torch.float32)
        leaves = [x.requires_grad_() for x in call]
        o = compiled(*leaves, op=op.name, **extras)
        assert_near(o, attend(*call, op=op, **extras), op.backends[0].tolerance[torch.float32])
        o.sum().backward()
        assert all(leaf.grad is not None for leaf in sides(op, leaves))


class Module(torch.nn.Module):
    def __init__(self, op: Operator, extras: dict[str, Any]) -> None:
        super().__init__()
        self.op, self.extras = op, extras

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return attend(q, k, v, op=self.op, **self.extras)


@every
def test_exports(op: Operator) -> None:
    """One graph without a branch on N serves every number of tokens that the record says; on a grid it serves that grid."""
    length = 40
    call, extras = draw(op, (1, 2, length, length, 8, 8), torch.float32)
    fewest = op.exports_from(op.filled({name: extras[name] for name in op.options if name in extras}))
    most = {"any": 4096, "fixed": length, "grid": None}[op.resolution]
    shapes = [{2: torch.export.Dim("tokens", min=fewest, max=most)}] * 3 if most else None
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        program = torch.export.export(Module(op, extras), call, dynamic_shapes=shapes)
    for other in {"any": (fewest, 40, 333), "fixed": (fewest, 40), "grid": (40,)}[op.resolution]:
        inputs, _ = draw(op, (1, 2, other, other, 8, 8), torch.float32, seed=other)
        expected = exact(op, inputs, extras)
        assert_near(program.module()(*inputs), expected, op.backends[0].tolerance[torch.float32], f"N={other}")


@every
def test_resolution_claim(op: Operator) -> None:
    """Other numbers of tokens than those the tensors were made for: served, or refused in a sentence."""
    _, extras = draw(op, (1, 2, 40, 40, 8, 8))
    longer, _ = draw(op, (1, 2, 60, 60, 8, 8))
    if op.resolution == "fixed":
        with pytest.raises(UsageError, match="40"):
            attend(*longer, op=op, **extras)
    elif op.resolution == "grid":
        with pytest.raises(UsageError, match="grid"):
            attend(*longer, op=op, **extras)
        other = {**extras, "grid": (0, 6, 10)}
        assert_near(attend(*longer, op=op, **other), exact(op, longer, other), 1e-11)
        assert error(attend(*longer, op=op, **other), attend(*longer, op=op, **{**extras, "grid": (0, 10, 6)})) > 1e-3
    else:
        assert_near(attend(*longer, op=op, **extras), exact(op, longer, extras), 1e-11)
    if op.resolution != "fixed":
        with contextlib.suppress(UsageError):  # fewer than one window
            few, _ = draw(op, (1, 2, 9, 9, 8, 8))
            assert attend(*few, op=op, **{**extras, **({"grid": (0, 3, 3)} if "grid" in extras else {})}).shape[2] == 9


# Options


@every
def test_options_are_checked(op: Operator) -> None:
    call, extras = draw(op, SHAPES["short"])
    with pytest.raises(UsageError, match=r"no option.* named 'colour'"):
        attend(*call, op=op, colour="red", **extras)
    for name, option in op.options.items():
        assert option.accepts(option.default), name
        with pytest.raises(UsageError, match=name):
            attend(*call, op=op, **{**extras, name: object()})
