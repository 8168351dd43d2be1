"""Models of bags in chunks: the values and gradients of the whole, and less memory."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import softless
from softless.errors import UsageError
from softless.layers.streamed import looked_at, reads_affinely
from softless.models import bag as bags
from softless.models.bag import CONTROLS
from tests.models.bags import bag_model, coordinates, features, operators, relative
from tests.models.lively import branches

NAMES = [f"{op}_bag_tiny" for op in operators()] + list(CONTROLS)
CASES = [
    (name, pool)
    for name in NAMES
    for pool in (("gated", "cls", "mean") if name not in CONTROLS else ("",))
]


def model_of(name: str, pool: str) -> Any:
    return bag_model(name, **({"pool": pool, "position": "fourier"} if pool else {}))


def step(model: Any, x: Tensor, mask: Tensor | None, chunk: int | None) -> tuple[Tensor, Tensor]:
    """Logits, and all gradients side by side."""
    model.chunk = chunk
    model.zero_grad()
    x = x.clone().requires_grad_()
    logits = model(x, coordinates(x.shape[1], len(x)), mask)
    logits.square().sum().backward()
    gradients = [p.grad for p in model.parameters()] + [x.grad]
    return logits.detach(), torch.cat([g.flatten() for g in gradients if g is not None])


@pytest.mark.parametrize("chunk", [1, 7, 64, 149])
@pytest.mark.parametrize(("name", "pool"), CASES)
def test_chunks_have_the_values_and_gradients_of_the_whole(
    name: str, pool: str, chunk: int
) -> None:
    model, x = model_of(name, pool), features(150, 2)
    mask = torch.arange(150) < torch.tensor([[150], [70]])
    logits, gradients = step(model, x, mask, 0)
    in_chunks, of_chunks = step(model, x, mask, chunk)
    assert relative(in_chunks, logits) < 1e-6
    assert relative(of_chunks, gradients) < 1e-5


@pytest.mark.parametrize("op", [op for op in operators() if op != "softmax"])
def test_each_parameter_in_double_precision_has_its_gradient(op: str) -> None:
    model, x = model_of(f"{op}_bag_tiny", "gated").double(), features(90).double()
    of = []
    for chunk in (0, 17):
        step(model, x, None, chunk)
        of.append({name: p.grad.clone() for name, p in model.named_parameters()})
    size = max(float(g.norm()) for g in of[0].values())
    for name, gradient in of[0].items():
        assert float((of[1][name] - gradient).norm()) < 1e-8 * max(
            float(gradient.norm()), 1e-4 * size
        )


def test_a_fault_in_the_merge_would_show(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x = model_of("seqnorm_bag_tiny", "gated"), features(150)
    _, gradients = step(model, x, None, 0)

    def first(summaries: Any, _: Any) -> Any:
        return summaries[0]

    monkeypatch.setattr("softless.layers.recomputed.merged", first)
    assert relative(step(model, x, None, 50)[1], gradients) > 1e-2


@pytest.mark.parametrize("op", [op for op in operators() if op != "softmax"])
def test_gradients_without_attention_are_others(op: str) -> None:
    model, x = model_of(f"{op}_bag_tiny", "gated"), features(150)
    _, gradients = step(model, x, None, 50)
    with torch.no_grad():
        for module in branches(model).values():
            module.proj.weight.zero_()  # type: ignore[union-attr, operator]
    assert relative(step(model, x, None, 50)[1], gradients) > 1e-2


def test_large_bags_are_worked_on_in_chunks_and_small_ones_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bags, "MANY", 100)
    monkeypatch.setattr(bags, "CHUNK", 64)
    monkeypatch.setattr(bags, "FEWEST", 16)
    model: Any = softless.create_model("sima_bag_tiny", in_dim=4)
    assert model._spans(1, 99) is None
    assert [s.stop for s in model._spans(1, 100)] == [50, 100]
    assert [s.stop for s in model._spans(2, 64)] == [32, 64]
    assert len(model._spans(8, 64)) == 4
    model.chunk = 0
    assert model._spans(1, 10**6) is None
    model.chunk = 50
    assert len(model._spans(1, 60)) == 2
    model.chunk = 1
    assert len(model._spans(1, 160)) == 10


def test_frozen_parts_and_autocast_in_chunks() -> None:
    model, x = model_of("seqnorm_bag_tiny", "gated"), features(150)
    model.embed.requires_grad_(requires_grad=False)
    model.blocks[0].requires_grad_(requires_grad=False)
    of = []
    for chunk in (0, 64):
        model.chunk = chunk
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(x, coordinates(150)).float().square().sum()
        loss.backward()
        of.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert len(of[0]) == len(of[1])
    assert relative(*(torch.cat([g.flatten() for g in gradients]) for gradients in of)) < 3e-2


def test_parameters_that_are_exchanged_before_the_backward_pass_are_noticed() -> None:
    model = model_of("sima_bag_tiny", "gated")
    model.chunk = 50
    logits = model(features(150), coordinates(150))
    model.blocks[0].norm1.weight = nn.Parameter(torch.ones(32))
    with pytest.raises(UsageError, match="exchanged"):
        logits.sum().backward()


def test_a_hook_is_called_in_chunks_too() -> None:
    model = model_of("sima_bag_tiny", "gated")
    model.chunk, shapes = 50, []
    for module in (model.blocks[0].attn, model.blocks[1], model.pool):
        module.register_forward_hook(lambda _, __, y: shapes.append(tuple(y.shape)))
    model(features(150), coordinates(150))
    assert shapes == [(1, 150, 32), (1, 150, 32), (1, 32)]


def test_what_operators_look_at_is_found_by_looking() -> None:
    assert looked_at(softless.OPERATORS["sima"], ()) == ("qkv", "q")
    assert looked_at(softless.OPERATORS["xca"], ()) == ("qk", "v")
    assert looked_at(softless.OPERATORS["nystrom"], ()) == ("qkv", "kv", "q")


def test_what_is_affine_is_found_by_trying() -> None:
    affine = {
        op for op in operators() if op != "softmax" and reads_affinely(softless.OPERATORS[op], ())
    }
    assert affine == {"sima", "sima_l2", "sima_none", "seqnorm", "inline", "xca"}


MEMORY = """
import torch, softless
from pathlib import Path
torch.set_num_threads(1)
def told(word):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(word)) / 1024
def taken(chunk):
    model = softless.create_model("seqnorm_bag_small", in_dim=64, width=128, chunk=chunk)
    model(torch.randn(1, 600, 64)).sum().backward()
    x = torch.randn(1, 12000, 64)
    Path("/proc/self/clear_refs").write_text("5")
    before = told("VmRSS")
    model(x).sum().backward()
    return told("VmHWM") - before
print(taken(1024), taken(0))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads the peak of a process from /proc")
def test_chunks_take_a_third_of_the_memory() -> None:
    done = subprocess.run(
        [sys.executable, "-c", MEMORY], capture_output=True, text=True, check=True
    )
    chunked, whole = map(float, done.stdout.split())
    assert chunked < whole / 3
