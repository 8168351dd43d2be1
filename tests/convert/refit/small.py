"""Small teachers whose branches are as large as their streams, and images that differ."""

import copy
from collections.abc import Sequence
from typing import Any

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import softless
from softless.modes import in_evaluation

TINY: dict[str, Any] = {
    "img_size": (16, 24),
    "patch_size": 8,
    "embed_dim": 24,
    "num_heads": 2,
    "num_classes": 5,
    "in_chans": 1,
}


def lively(model: nn.Module, seed: int = 0) -> Any:
    """Weights as a training leaves them: what a block adds is no trifle."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            drawn = torch.randn(weight.shape, generator=generator)
            if weight.ndim in {2, 4}:
                weight.copy_(1.5 * drawn / weight[0].numel() ** 0.5)
            elif weight.ndim == 3 or name.endswith("bias"):
                weight.copy_(0.1 * drawn)
    return model.eval()


def vit(depth: int = 2, seed: int = 0, name: str = "vit_tiny_patch16_224", **args: Any) -> Any:
    """A ViT of six patches."""
    return lively(timm.create_model(name, depth=depth, **{**TINY, **args}), seed)


def images(count: int = 32, channels: int = 1, size: Any = (16, 24), seed: int = 1) -> Tensor:
    """(n, C, h, w), smooth and noisy."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(count, channels, 2, 3, generator=generator)
    noise = torch.randn(count, channels, *size, generator=generator)
    return F.interpolate(base, size, mode="bilinear") + 0.2 * noise


def exchanged(teacher: nn.Module, op: str = "sima", layers: str = "*", **options: Any) -> Any:
    """A copy of the teacher with another attention."""
    student = copy.deepcopy(teacher)
    softless.swap(student, op, layers=layers, **options)
    return student


def copied(model: nn.Module) -> dict[str, Tensor]:
    """Its state, apart."""
    return {name: value.clone() for name, value in model.state_dict().items()}


def alike(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Whether two states are the same to the bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def streams(model: nn.Module, paths: Sequence[str], x: Tensor) -> dict[str, Tensor]:
    """What modules answer in a pass of the whole model."""
    answers: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(path).register_forward_hook(
            lambda _, __, output, path=path: answers.__setitem__(path, output.detach().clone())
        )
        for path in paths
    ]
    try:
        with in_evaluation(model), torch.no_grad():
            model(x)
    finally:
        for hook in hooks:
            hook.remove()
    return answers


def error(student: nn.Module, teacher: nn.Module, path: str, x: Tensor) -> float:
    """Relative distance of what both answer at a path."""
    mine, theirs = (streams(model, [path], x)[path] for model in (student, teacher))
    return float((mine - theirs).norm() / theirs.norm())


def hooks_of(model: nn.Module) -> int:
    """Hooks that are set on a model and its modules."""
    return sum(
        len(hooks)
        for module in model.modules()
        for hooks in (module._forward_hooks, module._forward_pre_hooks)
    )
