"""Every registered model: forward, backward to every parameter, sizes, dtypes, state dict, golden
numbers, and a control without attention.
"""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import softless
from softless.models import ENTRIES
from softless.models.variants import VARIANTS, Variant
from tests.models.kinds import FEW_BLOCKS, FIRST_ENTRIES, kinds_of_entries
from tests.models.lively import lively, outputs, zeroed
from tests.ops.draw import assert_near, error

NAMES = [name for name, entry in ENTRIES.items() if entry.alias_of is None]
every_model = pytest.mark.parametrize("name", NAMES)
each_kind = pytest.mark.parametrize("name", [entry.name for entry in kinds_of_entries()])
GOLDEN = Path(__file__).with_name("golden.json")


def image(height: int = 64, width: int = 96, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, height, width, generator=torch.Generator().manual_seed(3))


def small(name: str) -> Any:
    """The named model at full width and few blocks."""
    torch.manual_seed(0)
    return lively(timm.create_model(name, **few_blocks(name)), image())


def few_blocks(name: str) -> dict[str, Any]:
    return {**FEW_BLOCKS[ENTRIES[name].variant.host], "num_classes": 10}


@pytest.mark.parametrize("row", VARIANTS, ids=lambda row: row.name)
def test_names_are_registered(row: Variant) -> None:
    """A row's operators multiply in, with the aliases that a published code gave them; no other
    name is registered.
    """
    names = {row.entry(op): op for op in row.operators} | ({row.name: row.own} if row.own else {})
    aliases = {alias: row.entry(op) for op, alias in row.aliases.items()}
    own = {name: entry for name, entry in ENTRIES.items() if entry.variant is row}
    assert {*names, *aliases} == own.keys() <= set(timm.list_models())
    assert {name: own[name].op for name in names} == names
    assert {name: own[name].alias_of for name in aliases} == aliases
    assert all(own[name].alias_of is None for name in names)


@every_model
def test_forward_and_backward(name: str) -> None:
    """At a size that is not square, every parameter gets a gradient that is finite and not zero."""
    model = small(name).train()
    logits = model(image())
    assert logits.shape == (2, 10)
    logits.square().sum().backward()
    dead = [
        key
        for key, p in model.named_parameters()
        if p.grad is None or not bool(p.grad.any()) or not bool(p.grad.isfinite().all())
    ]
    # a softmax row is its own: of the last block of CvT only the class token's row counts, and it
    # passes by the convolution of q
    unread = (
        "stage2.blocks.1.attn.conv_proj_q"
        if ENTRIES[name].variant.host == "cvt" and ENTRIES[name].op == "softmax"
        else "none"
    )
    assert [key for key in dead if not key.startswith(unread)] == []


@every_model
def test_control_without_attention(name: str) -> None:
    """The weights of these tests let the attention count: without it the logits are others, by far
    more than any tolerance here.
    """
    model = small(name)
    with torch.no_grad():
        whole = model(image())
        assert error(zeroed(copy.deepcopy(model))(image()), whole) > 0.1


@every_model
def test_state_dict_round_trip(name: str) -> None:
    model = small(name)
    other = timm.create_model(name, **few_blocks(name)).eval()
    assert error(other(image()), model(image())) > 0.1
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert other(image()).equal(model(image()))


@every_model
def test_golden_logits(name: str) -> None:
    """A few logits from fixed weights, and the size of every attention branch;
    `python -m tests.models.golden` writes them anew.
    """
    expected = json.loads(GOLDEN.read_text()).get(name)
    if expected is None:
        pytest.fail(f"{name} has no golden values yet: run `python -m tests.models.golden`")
    model = small(name).double()
    x = image().double()
    with torch.no_grad():
        assert_near(model(x)[0, :5], torch.tensor(expected["logits"], dtype=torch.float64), 2e-6)
    for branch, out in outputs(model, x).items():
        assert_near(
            out.square().mean().sqrt(),
            torch.tensor(expected["branches"][branch], dtype=torch.float64),
            2e-6,
            branch,
        )


@every_model
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(name: str, dtype: torch.dtype) -> None:
    """`.half()`, `.bfloat16()`, `.double()` and autocast; each branch against the same rounded
    weights in float64.
    """
    model = small(name).to(dtype)
    x = image().to(dtype)
    exact = copy.deepcopy(model).double()
    bound = {torch.float16: 1e-2, torch.bfloat16: 6e-2, torch.float64: 1e-12}[dtype]
    with torch.no_grad():
        logits = model(x)
    assert logits.dtype == dtype
    assert_near(logits, exact(x.double()), 3 * bound, "logits")
    for branch, out in outputs(model, x).items():
        assert_near(out, outputs(exact, x.double())[branch], bound, branch)


@each_kind
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast(name: str, dtype: torch.dtype) -> None:
    model = small(name)
    exact = copy.deepcopy(model).double()
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        logits = model(image())
    assert_near(logits, exact(image().double()), {torch.float16: 3e-2, torch.bfloat16: 2e-1}[dtype])


@each_kind
def test_batch_mates(name: str) -> None:
    """Alone, with others, or beside a NaN image: <= 1e-6 (reliability.md D8)."""
    model = small(name)
    x = image().repeat(4, 1, 1, 1) + torch.randn(8, 3, 64, 96)
    x[5] = float("nan")
    with torch.no_grad():
        many = model(x)
        for size in (1, 2):
            assert_near(many[:size], model(x[:size]), 2e-6)
    assert bool(many[6:].isfinite().all())


@each_kind
def test_gradient_checkpointing(name: str) -> None:
    model = small(name).train()
    plain = torch.autograd.grad(model(image()).square().sum(), list(model.parameters()))
    model.load_state_dict(small(name).state_dict())
    model.set_grad_checkpointing()
    kept = torch.autograd.grad(model(image()).square().sum(), list(model.parameters()))
    for (key, _), a, b in zip(model.named_parameters(), plain, kept, strict=True):
        assert_near(b, a, 1e-5, key)


# minutes each
COMPILED = [
    FIRST_ENTRIES[0],
    *(pytest.param(name, marks=pytest.mark.soak) for name in FIRST_ENTRIES[1:]),
]


@pytest.mark.parametrize("name", COMPILED)
def test_compiles_into_one_graph(name: str) -> None:
    torch._dynamo.reset()
    model = small(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        assert_near(compiled(image()), model(image()), 1e-5)
        assert_near(compiled(image(32, 64)), model(image(32, 64)), 1e-5)


@pytest.mark.slow
# inductor's own
@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning"
)
@pytest.mark.parametrize("name", COMPILED)
def test_inductor(name: str) -> None:
    torch._dynamo.reset()
    model = small(name)
    compiled = torch.compile(model, fullgraph=True)
    with torch.no_grad():
        assert_near(compiled(image()), model(image()), 1e-5)


@pytest.mark.parametrize("name", FIRST_ENTRIES)
def test_exports_with_any_batch(name: str) -> None:
    model = small(name)
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(model, (image(),), dynamic_shapes=[{0: batch}])
    x = torch.randn(5, 3, 64, 96)
    with torch.no_grad():
        assert_near(program.module()(x), model(x), 1e-5)


def test_softless_and_timm_make_the_same() -> None:
    for name in FIRST_ENTRIES:
        torch.manual_seed(0)
        a = timm.create_model(name, **few_blocks(name))
        torch.manual_seed(0)
        b = softless.create_model(name, **few_blocks(name))
        assert all(
            x.equal(y)
            for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True)
        )


def kept_tensors(model: torch.nn.Module) -> list[torch.Tensor]:
    """What the modules of a model hold beside parameters and buffers, in attributes and in the
    containers there.
    """
    found: list[torch.Tensor] = []

    def gather(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, dict | list | tuple):
            for one in value.values() if isinstance(value, dict) else value:
                gather(one)

    for module in model.modules():
        for name, value in vars(module).items():
            if name not in {"_parameters", "_buffers", "_modules"}:
                gather(value)
    return found


@each_kind
def test_a_model_that_answered_in_inference_mode_trains(name: str) -> None:
    """What a module keeps from its first forward pass is fit for any later one: gradients, another
    dtype, a copy.
    """
    model, twin, images = small(name), small(name), image(96, 64)  # a grid that neither has seen
    with torch.inference_mode():
        model.eval()(images)
    assert not [kept for kept in kept_tensors(model) if kept.is_inference() or kept.requires_grad]
    for one in (model, twin):
        one.train()(images).square().sum().backward()
    for (place, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours.grad, theirs.grad), place
    half = copy.deepcopy(model).eval().bfloat16()
    assert half(images.bfloat16()).dtype == torch.bfloat16
