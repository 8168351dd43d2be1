"""Self-attention with both its projections in one node, which training on many tokens takes:
values, gradients, what it keeps, who forbids it.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd
from torch.utils.flop_counter import FlopCounterMode

from softless.attention import Operator, attend_projected
from softless.attention.kernels import projected
from softless.layers import Attention
from tests.ops.draw import assert_near
from tests.ops.test_native import apart, each_dtype, each_family, here

pytestmark = here
BOUND = {torch.float32: 3e-5, torch.bfloat16: 2e-2}
TOKENS = 300


def attention(
    op: Any = "sima", dtype: torch.dtype = torch.float32, *, inside: bool = True, **options: Any
) -> Attention:
    """A module of width 48 whose biases count."""
    torch.manual_seed(0)
    module = Attention(48, 3, op=op, qkv_bias=True, dtype=dtype, **options)
    for bias in (module.qkv.bias, module.proj.bias):
        nn.init.normal_(bias, std=0.2)
    module.projected_from = TOKENS if inside else 1e9  # type: ignore[misc]  # this one alone
    return module


def tokens(dtype: torch.dtype = torch.float32, count: int = TOKENS) -> Tensor:
    return (
        torch
        .randn(2, count, 48, generator=torch.Generator().manual_seed(1))
        .to(dtype)
        .requires_grad_()
    )


def slopes(run: Callable[[Tensor], Tensor], x: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(x.dtype)
    return torch.autograd.grad(
        run(x), leaves, weight.double() if leaves[0].dtype == torch.float64 else weight
    )


def leaves_of(module: nn.Module, x: Tensor) -> list[Tensor]:
    return [x, *module.parameters()]


@each_family
@each_dtype
@pytest.mark.parametrize("scale", [None, "tokens", 100.0])
def test_value_and_gradients_are_those_of_the_formula(
    op: Operator, dtype: torch.dtype, scale: Any
) -> None:
    if scale is not None and "token_scale" not in op.options:
        pytest.skip(f"{op.name} has no token_scale")
    module = attention(op, dtype, **({} if scale is None else {"token_scale": scale}))
    # so that the paper's scale counts too
    module.proj.weight.data.mul_(1.0 if scale == "tokens" or op.name == "sima_none" else TOKENS)
    x = tokens(dtype)
    assert module.path(x).endswith("both projections inside")
    wide, x_wide = (
        attention(op, torch.float64, **module.options),
        x.detach().double().requires_grad_(),
    )
    wide.load_state_dict({name: value.double() for name, value in module.state_dict().items()})
    true = apart(wide, x_wide)
    assert_near(module(x), true, BOUND[dtype])
    found = slopes(module, x, leaves_of(module, x))
    expected = torch.autograd.grad(
        true,
        leaves_of(wide, x_wide),
        torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(dtype).double(),
    )
    for name, ours, theirs in zip(
        ("x", *(name for name, _ in module.named_parameters())), found, expected, strict=True
    ):
        assert ours.dtype == dtype
        assert_near(ours, theirs, BOUND[dtype], name)


@pytest.mark.parametrize("op", ["sima", "sima_l2"])
def test_a_channel_that_is_next_to_nothing_gets_no_gradient(op: str) -> None:
    """As it is defined (docs/fidelity.md), and as the other ways have it; for q, for k and for one
    that is zero.
    """
    module, other = attention(op), attention(op, inside=False)
    for one in (module, other):
        one.qkv.weight.data[[3, 48 + 20, 48 + 40]] *= 1e-9
        one.qkv.weight.data[30] = 0
        one.qkv.bias.data[[3, 30, 48 + 20, 48 + 40]] = 0
    x = tokens()
    found, expected = (slopes(one, x, leaves_of(one, x)) for one in (module, other))
    for ours, theirs in zip(found, expected, strict=True):
        assert_near(ours, theirs, 3e-5)
    assert found[1][[3, 30, 48 + 20, 48 + 40]].abs().max() == 0
    assert found[1][[2, 48 + 21]].abs().min() > 0


@each_dtype
def test_the_length_of_a_stretch_changes_nothing(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, x = attention(dtype=dtype), tokens(dtype)
    whole = slopes(module, x, leaves_of(module, x))
    monkeypatch.setattr(projected, "STRETCH", 137)
    for ours, theirs in zip(slopes(module, x, leaves_of(module, x)), whole, strict=True):
        assert_near(ours, theirs, 1e-6 if dtype == torch.float32 else 1e-2)


def test_what_is_kept_for_the_backward_pass() -> None:
    """x, the weights and biases, the buffer of q, k and v, and the sums: no output of the
    operator.
    """
    module, x = attention(), tokens()
    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda one: kept.append(one) or one,  # type: ignore[func-returns-value]
        lambda one: one,
    ):
        module(x)
    shapes = sorted(tuple(one.shape) for one in kept)
    assert shapes == sorted([
        (2, TOKENS, 48),
        (144, 48),
        (144,),
        (48, 48),
        (48,),
        (2, TOKENS, 144),
        (2, 3, 16),
        (2, 3, 16),
        (2, 3, 16, 16),
    ])


@pytest.mark.parametrize("frozen", ["x", "weights", "qkv"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    module, other = attention(), attention(inside=False)
    x = tokens().requires_grad_(frozen != "x")
    for one in (module, other):
        for name, parameter in one.named_parameters():
            parameter.requires_grad_(
                frozen == "x" or (frozen == "qkv" and not name.startswith("qkv"))
            )
        assert (one.path(x).endswith("inside")) is (one is module)
        one(x).square().sum().backward()
        if x.grad is not None and one is module:
            first = x.grad
            x.grad = None
    if frozen != "x":
        assert x.grad is not None
        assert_near(first, x.grad, 3e-5)
    for ours, theirs in zip(module.parameters(), other.parameters(), strict=True):
        assert (ours.grad is None) is (theirs.grad is None) is not ours.requires_grad
        if ours.grad is not None and theirs.grad is not None:
            assert_near(ours.grad, theirs.grad, 3e-5)


def test_autocast_projects_in_its_dtype() -> None:
    module, other, x = attention(), attention(inside=False), tokens()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert module.path(x).endswith("inside")
        y = module(x)
        assert y.dtype == torch.bfloat16
        assert_near(y, other(x), BOUND[torch.bfloat16])
        # the backward pass under autocast too, as some write it
        found = slopes(module, x, leaves_of(module, x))
    expected = slopes(other, x, leaves_of(other, x))
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.float32
        assert_near(ours, theirs, BOUND[torch.bfloat16])


def test_who_watches_a_projection_sees_it_called() -> None:
    module, x = attention(), tokens()
    for projection in (module.qkv, module.proj):
        seen: list[int] = []
        for watch in (
            "forward_hook",
            "forward_pre_hook",
            "full_backward_hook",
            "full_backward_pre_hook",
        ):
            handle = getattr(projection, f"register_{watch}")(lambda *_, seen=seen: seen.append(1))
            assert module.path(x).endswith("projection apart")
            module(x).sum().backward()
            handle.remove()
        assert len(seen) == 4
    assert module.path(x).endswith("inside")


def test_what_cannot_go_this_way_goes_the_other() -> None:
    x = tokens()
    assert attention("softmax").path(x).endswith("projection apart")
    assert attention("seqnorm").path(x).endswith("projection apart")
    assert attention(gated=True).path(x).endswith("projection apart")
    assert attention().path(tokens(count=TOKENS - 1)).endswith("projection apart")
    module = attention()
    mask = torch.ones(2, TOKENS, dtype=torch.bool)
    mask[:, 100:] = False
    assert_near(module(x, mask=mask)[:, :100], attention(inside=False)(x[:, :100]), 3e-5)
    half = [one.half() for one in (x, module.qkv.weight, module.proj.weight)]
    assert attend_projected(half[0], (half[1], None), (half[2], None), 3) is None
    assert attend_projected(x, (half[1], None), (half[2], None), 3) is None  # of different dtypes


def test_from_how_many_tokens_on() -> None:
    """By the number alone: what is saved is what exceeds a few stretches."""
    for width, heads in ((24, 3), (48, 1)):
        module = Attention(width, heads, op="sima")
        assert not module.path(torch.zeros(1, 4 * projected.STRETCH - 1, width)).endswith("inside")
        assert module.path(torch.zeros(1, 4 * projected.STRETCH, width)).endswith(
            "both projections inside"
        )
        with torch.no_grad():
            assert module.path(torch.zeros(1, 4 * projected.STRETCH, width)).endswith(
                "merged projection"
            )


def test_shapes_alone() -> None:
    """On a device without autocast, as whoever counts a model has it."""
    module = Attention(24, 3, op="sima", device="meta")
    assert module(torch.zeros(1, 4 * projected.STRETCH, 24, device="meta")).shape == (
        1,
        4 * projected.STRETCH,
        24,
    )


def test_one_node_of_a_compiled_graph() -> None:
    module, x = attention(), tokens()
    targets: list[str] = []

    def keep(graph: Any, _: Any) -> Any:
        targets.extend(
            str(node.target) for node in graph.graph.nodes if "softless" in str(node.target)
        )
        return make_boxed_func(graph.forward)

    torch._dynamo.reset()
    compiled = torch.compile(
        module, fullgraph=True, backend=aot_autograd(fw_compiler=keep, bw_compiler=keep)
    )
    found, expected = (slopes(run, x, leaves_of(module, x)) for run in (compiled, module))
    assert targets == [
        "softless.self_attention.default",
        "softless.self_attention_backward.default",
    ]
    assert all(map(torch.equal, found, expected))


@each_dtype
# opcheck's own
@pytest.mark.filterwarnings(
    r"ignore:The \.grad attribute of a Tensor that is not a leaf:UserWarning"
)
def test_the_nodes_are_what_they_say(dtype: torch.dtype) -> None:
    """Fake form, schema and gradient agree with the kernel."""
    module, x = attention(dtype=dtype), tokens(dtype)
    arguments = (
        x,
        module.qkv.weight,
        module.qkv.bias,
        module.proj.weight,
        module.proj.bias,
        3,
        1,
        None,
        1e-12,
    )
    torch.library.opcheck(torch.ops.softless.self_attention.default, arguments)
    found = torch.ops.softless.self_attention(*arguments)
    for for_x, for_weights in ((True, True), (True, False), (False, True)):
        torch.library.opcheck(
            torch.ops.softless.self_attention_backward.default,
            (
                found[0].detach(),
                *(one.detach() for one in (x, module.qkv.weight, module.proj.weight, *found[1:])),
                1,
                None,
                1e-12,
                for_x,
                for_weights,
            ),
            test_utils=("test_schema", "test_faketensor"),
        )


def test_products_are_counted() -> None:
    """No more of them than without, but for the few of the small matrices."""
    counts = []
    for inside in (True, False):
        module, x = attention(inside=inside), tokens()
        with FlopCounterMode(display=False) as counter:
            module(x).sum().backward()
        counts.append(counter.get_total_flops())
    assert 0.8 < counts[0] / counts[1] < 1.0
