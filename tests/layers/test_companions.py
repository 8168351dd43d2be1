"""Rotary positions and gates against their equations in float64; both off by default, named in
every count.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import softless
from softless import UsageError
from softless.layers import Attention
from softless.layers.companions import GATES
from tests.ops.draw import assert_near

B, H, D, PREFIX, ROWS, COLUMNS = 2, 3, 8, 1, 4, 5
GRID = (PREFIX, ROWS, COLUMNS)
N = PREFIX + ROWS * COLUMNS
NEW = ("relu_linear", "inline", "focused", "mala")


def turned(x: Tensor) -> Tensor:
    """Pairs of channels as complex numbers, times e^(i angle); a class token ahead is not
    turned.
    """
    frequencies = 10000.0 ** -torch.linspace(0, 1, D // 4, dtype=torch.float64)
    row, column = torch.meshgrid(torch.arange(ROWS), torch.arange(COLUMNS), indexing="ij")
    angles = torch.cat([where.reshape(-1, 1) * frequencies for where in (row, column)], -1)
    angles = torch.cat([torch.zeros(PREFIX, D // 2, dtype=torch.float64), angles])
    pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], D // 2, 2))
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)


def module(op: str, **kwargs: Any) -> tuple[Attention, Tensor]:
    """A module in float64 that knows its grid, and tokens."""
    torch.manual_seed(0)
    made = Attention(H * D, H, op=op, **kwargs).double()
    made.set_grid(GRID)
    return made, torch.randn(B, N, H * D, dtype=torch.float64)


def joined(o: Tensor) -> Tensor:
    return o.transpose(1, 2).flatten(2)


@pytest.mark.parametrize("op", ["relu_linear", "inline", "focused", "sima", "softmax", "efficient"])
def test_rotary_positions(op: str) -> None:
    """q and k are turned before the operator, whatever it is."""
    made, x = module(op, rotary=True)
    q, k, v = made.project(x)
    assert k is not None
    expected = softless.attend(
        turned(q), turned(k), v, op=op, backend="reference", **made.extras(N)
    )
    assert_near(made(x), made.proj(joined(expected)), 1e-12)
    plain = Attention(H * D, H, op=op).double()
    plain.load_state_dict(made.state_dict())
    with torch.no_grad():
        assert float((made(x) - plain(x)).norm() / plain(x).norm()) > 1e-3


@pytest.mark.parametrize("gate", ["sigmoid", "linear", "silu"])
@pytest.mark.parametrize("op", NEW)
def test_gates(op: str, gate: str) -> None:
    """The output, the convolution of v included, times a projection of the input."""
    made, x = module(op, gated=gate, v_conv=3, v_conv_filters="channel")
    assert made.v_conv is not None
    assert made.gate is not None
    q, k, v = made.project(x)
    o = joined(
        softless.attend(q, k, v, op=op, backend="reference", **made.extras(N))
        + made.v_conv(v, None, GRID)
    )
    activation = {
        "sigmoid": torch.sigmoid,
        "linear": lambda y: y,
        "silu": lambda y: y * torch.sigmoid(y),
    }[gate]
    assert_near(
        made(x), made.proj(o * activation(F.linear(x, made.gate.weight, made.gate.bias))), 1e-12
    )
    assert set(GATES) == {"sigmoid", "linear", "silu"}


def test_true_is_the_gate_of_timm() -> None:
    made, x = module("sima", gated=True)
    named, _ = module("sima", gated="sigmoid")
    assert torch.equal(made(x), named(x))


@pytest.mark.parametrize("feature", ["elu", "relu"])
def test_mala_as_published(feature: str) -> None:
    """The N x M weights written out: turned features in the product, others in z; then lepe, then
    the gate.
    """
    made, x = module(
        "mala", feature=feature, rotate=True, gated="linear", v_conv=5, v_conv_filters="channel"
    )
    assert made.v_conv is not None
    assert made.gate is not None
    q, k, v = made.project(x)
    assert k is not None
    f_q, f_k = (F.elu(y) + 1 if feature == "elu" else y.relu() for y in (q, k))
    z = D**-0.5 * (f_q @ f_k.mT).mean(-1, keepdim=True)
    weights = (1 + 1 / (z + 1e-6)) * D**-0.5 * (turned(f_q) @ turned(f_k).mT) - z
    o = joined(weights @ v / N + made.v_conv(v, None, GRID)) * made.gate(x)
    assert_near(made(x), made.proj(o), 1e-12)
    assert float((weights.detach().mean(-1) - 1).abs().max()) > 1e-2, (
        "rows do not sum to one with the rotation"
    )


MADE: dict[str, tuple[str, dict[str, Any]]] = {
    "rotary": ("relu_linear", {"rotary": True}),
    "gate": ("inline", {"gated": "linear"}),
    "MALA": ("mala", {"rotate": True, "gated": "linear", "v_conv": 3, "v_conv_filters": "channel"}),
}


@pytest.mark.parametrize("case", MADE)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(case: str, dtype: torch.dtype) -> None:
    op, companions = MADE[case]
    made, x = module(op, **companions)
    with torch.no_grad():
        expected = made(x)
        found = made.to(dtype)(x.to(dtype))
    assert found.dtype == dtype
    assert float((found.double() - expected).norm() / expected.norm()) < 20 * torch.finfo(dtype).eps


@pytest.mark.parametrize("case", ["rotary", "MALA"])
def test_masked_tokens_keep_others_places(case: str) -> None:
    """A mask takes a token out, and those behind it stay where they are."""
    op, companions = MADE[case]
    companions = {
        name: value
        for name, value in companions.items()
        if name not in {"v_conv_filters", "v_conv"}
    }
    made, x = module(op, **companions)
    mask = torch.ones(B, N, dtype=torch.bool)
    mask[0, 3] = False
    changed = x.clone()
    changed[0, 3] = 7.0
    found = made(x, mask=mask)
    assert_near(made(changed, mask=mask), found, 1e-13)
    assert_near(found[1], made(x)[1], 1e-13)


@pytest.mark.parametrize("case", ["rotary", "MALA"])
def test_one_compiled_graph(case: str) -> None:
    op, companions = MADE[case]
    made, x = module(op, **companions)
    made, x = made.float(), x.float()
    compiled = torch.compile(made, fullgraph=True, backend="aot_eager")
    assert_near(compiled(x), made(x), 1e-5)


def model(case: str, **kwargs: Any) -> Any:
    op, companions = MADE[case]
    return softless.create_model(
        "deit_tiny_patch16_224", op=op, depth=2, img_size=64, num_classes=5, **companions, **kwargs
    )


@pytest.mark.parametrize("case", MADE)
def test_a_model_trains_and_its_copy_answers_alike(case: str) -> None:
    made, image = model(case), torch.randn(2, 3, 64, 96)
    made.train()(image).square().sum().backward()
    assert all(x.grad is not None for x in made.parameters())
    made.eval()
    with torch.no_grad():
        expected = made(image)
        assert_near(softless.optimize(made, dtype=torch.float32)(image), expected, 1e-5)


@pytest.mark.parametrize("case", MADE)
def test_every_count_names_them(case: str) -> None:
    made = model(case)
    said = {"rotary": "rotary positions", "gate": "gate (linear)", "MALA": "gate (linear)"}[case]
    counted = softless.cost(made, 64)
    assert said in counted.companions
    assert said in str(counted)
    assert said in repr(made.blocks[0].attn)
    for name, value in MADE[case][1].items():
        if name != "rotate":
            assert f"{name}={value!r}" in str(made.construction)
    listed = softless.list("operators", MADE[case][0])
    assert "'linear'" in listed["companion gated"]
    assert (
        softless.cost(
            softless.create_model("deit_tiny_patch16_224", op="mala", depth=1), 64
        ).companions
        == ()
    )


def test_the_work_of_a_gate_and_of_the_angles_is_counted() -> None:
    """A gate is N C^2 multiply-adds a block; the angles are a cosine and a sine for each row,
    column and pair of channels.
    """
    plain = softless.create_model("deit_tiny_patch16_224", op="inline", depth=2, img_size=64)
    gated = softless.create_model(
        "deit_tiny_patch16_224", op="inline", depth=2, img_size=64, gated="linear"
    )
    turning = softless.create_model(
        "deit_tiny_patch16_224", op="inline", depth=2, img_size=64, rotary=True
    )
    assert softless.cost(gated).macs - softless.cost(plain).macs == 2 * 17 * 192**2
    more = softless.cost(turning)
    assert more.macs == softless.cost(plain).macs
    blocks, kinds, sides, pairs_of_an_axis = 2, 2, 4 + 4, 16
    assert more.transcendentals["trigonometric"] == blocks * kinds * sides * pairs_of_an_axis


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown gate": (
        {"gated": "linaer"},
        r"no gate \(gated=\) named 'linaer'\. Did you mean 'linear'",
    ),
    "MALA's own": (
        {"op": "mala", "rotary": True},
        "operator 'mala' turns its features itself: pass rotate=True",
    ),
    "six channels": (
        {"attn_head_dim": 6, "rotary": True},
        "heads have 6 channels: choose a multiple of 4",
    ),
    "a reduction": (
        {"op": "linformer", "reduction": "grid", "ratio": 2, "rotary": True},
        "the reduction by 2 leaves k another grid than q",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_a_sentence(case: str) -> None:
    arguments, sentence = REFUSED[case]
    with pytest.raises(UsageError, match=sentence):
        Attention(H * D, H, **arguments)


def test_refused_without_a_grid_and_in_cvt() -> None:
    x = torch.randn(B, N, H * D)
    for made in (
        Attention(H * D, H, op="sima", rotary=True),
        Attention(H * D, H, op="mala", rotate=True),
    ):
        with pytest.raises(
            UsageError, match=r"(rotary|operator 'mala') needs the grid of the tokens.*set_grid"
        ):
            made(x)
    with pytest.raises(UsageError, match="rotary has no place in CvT"):
        softless.create_model("cvt_13_224", op="sima", rotary=True)
    with pytest.raises(UsageError, match="6 channels: choose a multiple of 4"):
        softless.attend(*(torch.randn(1, 1, 4, 6),) * 3, op="mala", rotate=True, grid=(0, 2, 2))
    with pytest.raises(UsageError, match="turns 3 queries and 4 keys by one grid"):
        softless.attend(
            torch.randn(1, 1, 3, 8),
            *(torch.randn(1, 1, 4, 8),) * 2,
            op="mala",
            rotate=True,
            grid=(0, 2, 2),
        )
