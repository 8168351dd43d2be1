"""Counts are those of the shapes: no device, no version of torch and no fused kernel changes them,
and what has no formula is named.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import flop_counter

import softless
from softless.measure import FlopCounter, cost
from tests.models.kinds import FIRST


@pytest.mark.parametrize("size", [224, 1536])
def test_fused_attention_counts_on_the_processor(size: int) -> None:
    """DeiT-S: 4.599 G at 224 pixels, 981 G at 1,536, most of it in the products of N x N."""
    model = softless.create_model("deit_small_patch16_224", dynamic_img_size=True)
    assert cost(model, size).macs / 1e9 == pytest.approx({224: 4.599, 1536: 980.9}[size], rel=1e-3)


@pytest.mark.parametrize("op", ["softmax", "sima", "performer"])
def test_processor_and_meta_count_alike(op: str) -> None:
    found = []
    for device in ("cpu", "meta"):
        with torch.device(device):
            found.append(cost(softless.create_model("deit_tiny_patch16_224", op=op, depth=2), 64))
    assert found[0] == found[1]


@pytest.mark.parametrize("host", FIRST)
def test_every_operator_that_runs_has_a_formula_or_no_product(host: str) -> None:
    """Of every host with every operator that has a place in it, with gradients and without."""
    unknown: dict[str, set[str]] = {}
    for op in softless.OPERATORS:
        try:
            with torch.device("meta"):
                model = softless.create_model(host, op=op).eval()
        except softless.UsageError:
            continue
        for gradients in (True, False):
            with torch.set_grad_enabled(gradients), FlopCounter() as counter:
                model(torch.empty(1, 3, 224, 224, device="meta"))
            assert counter.total > 0
            unknown |= {op: counter.uncounted} if counter.uncounted else {}
    assert not unknown


class Opaque(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return torch.cdist(image, image).sum() + torch.fft.rfft(image).real.sum()


def test_what_has_no_formula_is_named() -> None:
    found = cost(Opaque(), (1, 8, 8))
    assert "aten::_fft_r2c" in found.uncounted
    assert "warning: " in str(found)
    assert "register_flop_formula" in str(found)
    assert cost(nn.Flatten(), 8).uncounted == ()


def test_a_formula_that_its_owner_gave_to_torch_is_taken() -> None:
    @torch.library.custom_op("softless_tests::product", mutates_args=())
    def product(x: Tensor) -> Tensor:
        return x @ x

    product.register_fake(torch.empty_like)
    x = torch.randn(4, 4)
    with FlopCounter() as before:
        torch.ops.softless_tests.product(x)
    assert before.uncounted == {"softless_tests::product"}
    flop_counter.register_flop_formula(torch.ops.softless_tests.product)(
        lambda shape, **_: 2 * shape[0] ** 3
    )
    with FlopCounter() as after:
        torch.ops.softless_tests.product(x)
    assert (after.total, after.uncounted) == (128, set())


CALLS = [
    (lambda x: x @ x, 2 * 8**3),
    (lambda x: torch.baddbmm(x[None], x[None], x[None]), 2 * 8**3),
    (lambda x: torch.addmm(x, x, x), 2 * 8**3),
    (lambda x: x @ x[0], 2 * 8**2),
    (lambda x: torch.einsum("ij,kj->ik", x, x), 2 * 8**3),
    (lambda x: F.linear(x, x, x[0]), 2 * 8**3),
    (lambda x: F.conv2d(x[None, None], torch.ones(5, 1, 3, 3)), 2 * 5 * 6 * 6 * 9),
    (
        lambda x: F.conv2d(x[None].expand(4, 8, 8), torch.ones(4, 1, 3, 3), groups=4),
        2 * 4 * 6 * 6 * 9,
    ),
    (
        lambda x: F.conv_transpose2d(x[None, None], torch.ones(1, 5, 2, 2), stride=2),
        2 * 8 * 8 * 5 * 4,
    ),
    (lambda x: F.scaled_dot_product_attention(*[x[None, None]] * 3), 4 * 8**3),
    (lambda x: nn.functional.layer_norm(x, (8,)).softmax(-1) * x, 0),
]


@pytest.mark.parametrize(("call", "flops"), CALLS)
@pytest.mark.parametrize("inference", [False, True])
def test_formulas_by_hand(call: object, flops: int, inference: bool) -> None:
    x = torch.randn(8, 8)
    with torch.inference_mode(inference), FlopCounter() as counter:
        call(x)  # type: ignore[operator]
    assert (counter.total, counter.uncounted) == (flops, set())


def test_the_gradient_of_fused_attention_by_hand() -> None:
    q = torch.randn(1, 2, 8, 4, requires_grad=True)
    with FlopCounter() as counter:
        F.scaled_dot_product_attention(q, q, q).sum().backward()
    assert counter.total == (2 + 5) * 2 * 2 * 8 * 8 * 4


def test_memory_by_hand() -> None:
    """float32: the image of 48 numbers, its flat view, then ten numbers and the ten of ReLU alive
    at once.
    """
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10), nn.ReLU(), nn.Linear(10, 2))
    weights = 4 * (48 * 10 + 10 + 10 * 2 + 2)
    found = cost(model, 4)
    assert found.weight_bytes == weights
    assert found.peak_bytes == weights + 4 * 48 + 4 * (10 + 10)
    assert "peak inference memory" in str(found)


def test_an_optimized_model_has_its_packed_weights() -> None:
    model = softless.create_model("sima_deit_tiny_patch16_224", depth=2)
    plain, packed = cost(model, 64), cost(softless.optimize(model, torch.float32), 64)
    assert packed.parameters == pytest.approx(plain.parameters, rel=0.01)
    assert packed.weight_bytes == pytest.approx(plain.weight_bytes, rel=0.01)
    assert packed.activation_bytes is None
    assert "no gradients" in str(packed)


def test_a_detector_is_counted_and_says_what_is_left_out() -> None:
    from softless.tasks.detection.model import detector

    model = detector(
        "deit_tiny_patch16_224",
        {"op": "sima", "depth": 4, "dynamic_img_size": True},
        classes=2,
        width=32,
    )
    found = cost(model, 64)
    assert found.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert found.macs > 0
    assert found.uncounted == ()
    assert "for each region" in str(found)
    assert softless.audit(model, 64).kinds["gelu"] > 0
