"""SOFT's pyramids with kernels that count: `parity=True` beside the published formulas written out
a second time, and the default beside it.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lab import fidelity, published
from lab.__main__ import run
from softless import UsageError, create_model
from softless.cli.main import main
from tests.ops.test_soft import published_inverse, published_norm_inverse

SMALL: dict[str, Any] = {
    "depths": (1, 2, 2, 1),
    "embed_dims": (32, 64, 64, 64),
    "num_heads": (1, 2, 2, 2),
}
both = pytest.mark.parametrize("op", ["soft", "softnorm"])


def by_hand(module: Any, x: Tensor, grid: tuple[int, int, int]) -> Tensor:
    """Attention of SOFT's code on tokens (B,N,C): soft.md, section 1, its convolution of v
    included.
    """
    heads, width = module.num_heads, module.head_dim
    _, height, across = grid
    q, v = (
        part.unflatten(-1, (heads, width)).transpose(1, 2) for part in module.qv(x).chunk(2, -1)
    )
    q = q / width**0.25
    image = q.flatten(0, 1).mT.unflatten(2, (height, across))
    few = (
        F
        .conv2d(image, module.learned.conv, stride=module.options["ratio"])
        .flatten(2)
        .mT.unflatten(0, (-1, heads))
    )
    few = F.gelu(F.layer_norm(few, (width,), module.learned.norm_weight, module.learned.norm_bias))
    p, a = (
        torch.exp(-(few[..., :, None, :] - other[..., None, :, :]).square().sum(-1) / 2)
        for other in (q, few)
    )
    if module.op.name == "soft":
        middle = published_inverse(a)
    else:
        root = a.sum(-1, keepdim=True) ** -0.5
        middle = root * published_norm_inverse(a) * root.mT
    o = (p.mT @ middle) @ (p @ v)
    beside = v.permute(0, 3, 1, 2).reshape(-1, heads, height, across)
    beside = F.conv2d(
        beside, module.v_conv.weight, padding=module.v_conv.weight.shape[-1] // 2, groups=heads
    )
    o = o + beside.reshape(len(x), width, heads, -1).permute(0, 2, 3, 1)
    found: Tensor = module.proj(o.transpose(1, 2).flatten(2))
    return found


@both
@torch.no_grad()
def test_parity_is_the_published_function_where_kernels_count(op: str) -> None:
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    model = create_model(f"{op}_tiny_224", num_classes=5, parity=True, **SMALL).eval()
    shares = fidelity.enlivened(model, images)
    assert 0.6 < min(shares) <= max(shares) < 1.3  # above one where the convolution takes from it
    for dtype, bar in ((torch.float32, 4e-6), (torch.float64, 1e-10)):
        model, images = model.to(dtype), images.to(dtype)
        expected = model(images)
        hand = lambda module, args, kwargs, _: by_hand(module, args[0], kwargs["grid"])  # noqa: E731
        held = [
            one.register_forward_hook(hand, with_kwargs=True) for one in fidelity.gaussian(model)
        ]
        assert fidelity.distance(model(images), expected) < bar
        for one in held:
            one.remove()
    assert fidelity.distance(fidelity.silenced(model, images), expected) > 0.3  # the control


@both
def test_the_default_is_another_function(op: str) -> None:
    found = fidelity.measured(f"{op}_tiny_224", **SMALL)
    assert found.blocks == 5
    assert found.without_kernels > 0.3
    assert found.parity_float32 < 4e-6
    assert 1e-6 < found.logits < 0.3
    assert found.branch > 1e-6


def test_far_apart_the_published_steps_reach_the_inverse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Why `NEAR` is what it is: bottleneck tokens farther from each other tell nothing of SOFT's
    default.
    """
    monkeypatch.setattr(fidelity, "NEAR", 0.6)
    assert fidelity.measured("soft_tiny_224", **SMALL).logits < 1e-12


FEW: dict[str, dict[str, Any]] = {
    "deit_small_patch16_224": {"depth": 2, "embed_dim": 48, "num_heads": 3},
    "xcit_small_12_p16_224": {"depth": 2, "embed_dim": 48, "num_heads": 3},
    "xcit_small_24_p16_224": {"depth": 2, "embed_dim": 48, "num_heads": 3, "tokens_norm": False},
    "cvt_13_224": {"depths": (1, 1, 1), "embed_dims": (16, 32, 48), "num_heads": (1, 2, 3)},
}


@pytest.mark.parametrize(
    ("op", "host"), [(op, host) for op, hosts in published.HOSTS.items() for host in hosts]
)
def test_attention_that_counts_is_the_published_one(op: str, host: str) -> None:
    found = published.measured(op, host, **FEW[host])
    assert found.logits_float32 < 2e-6
    assert found.branch_float32 < 2e-6
    # rounding of the host, and no more
    assert found.ours_float32 < max(2e-6, 1.5 * found.published_float32)
    assert found.logits_float64 < 1e-12
    assert found.without_attention > 0.1  # the control


def test_the_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = fidelity.measured
    monkeypatch.setattr(fidelity, "SIZES", ("tiny_224",))
    monkeypatch.setattr(fidelity, "measured", lambda name: real(name, **SMALL))
    monkeypatch.setattr(published, "HOSTS", {"xca": ("xcit_nano_12_p16_224",)})
    assert main(["fidelity", "--ops", "soft", "xca"], run=run) == 0
    said = capsys.readouterr().out
    assert "soft_tiny_224" in said
    assert "xcit_nano_12_p16_224" in said
    with pytest.raises(UsageError, match="nothing published as 'sima'"):
        fidelity.fidelity(ops=["sima"])
    with pytest.raises(UsageError, match="nothing published as 'tiny_96'"):
        fidelity.fidelity(["tiny_96"])
