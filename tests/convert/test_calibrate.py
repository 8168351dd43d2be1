"""Calibrated branches are as near to the old ones as one number a head brings them, and never
farther than a bare swap leaves them.
"""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from softless import OPERATORS
from softless.convert import swap
from softless.data.reading import read_image
from tests.convert.backbone import dinov2
from tests.ops.draw import assert_near

SIDE = 32
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
HOSTS: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": {
        "patch_size": 4,
        "img_size": SIDE,
        "embed_dim": 48,
        "depth": 3,
        "num_heads": 3,
    },
    "eva02_tiny_patch14_224": {
        "patch_size": 4,
        "img_size": SIDE,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
    },
    "xcit_nano_12_p16_224": {
        "patch_size": 8,
        "img_size": SIDE,
        "embed_dim": 48,
        "depth": 2,
        "num_heads": 3,
    },
}


def digits(first: int, number: int, step: int = 1) -> tuple[Tensor, Tensor]:
    """Handwritten digits, three channels of 32 pixels; they lie writer by writer, so a step takes
    some of many.
    """
    found = load_digits()
    part = slice(first, first + number * step, step)
    images = torch.as_tensor(found.images[part], dtype=torch.float32)[:, None] / 8 - 1
    return nn.functional.interpolate(images, SIDE).expand(-1, 3, -1, -1).clone(), torch.as_tensor(
        found.target[part]
    )


@pytest.fixture(scope="module", params=HOSTS)
def trained(request: pytest.FixtureRequest) -> Any:
    """A model whose attention has learned something: a minute of steps on digits."""
    torch.manual_seed(0)
    model = timm.create_model(request.param, num_classes=10, **HOSTS[request.param])
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    for step in range(60):
        images, labels = digits(32 * (step % 20), 32)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()


def outputs(model: nn.Module, images: Tensor, like: nn.Module | None = None) -> dict[str, Tensor]:
    """What each attention answers on the tokens that it, or the same place of another model, is
    given.
    """
    given: dict[str, Any] = {}
    source = model if like is None else like
    places = [path for path, _ in source.named_modules() if path.endswith(".attn")]
    hooks = [
        source.get_submodule(path).register_forward_pre_hook(
            lambda _, args, kwargs, path=path: given.__setitem__(path, (args, kwargs)),
            with_kwargs=True,
        )
        for path in places
    ]
    with torch.no_grad():
        source(images)
        for hook in hooks:
            hook.remove()
        if like is not None:
            model(images)  # which tells the grid
        return {
            path: model.get_submodule(path)(*args, **kwargs)
            for path, (args, kwargs) in given.items()
        }


def errors(model: nn.Module, original: nn.Module, images: Tensor) -> dict[str, float]:
    expected, found = outputs(original, images), outputs(model, images, original)
    return {
        path: float((found[path] - one).norm() / (one - one.mean((0, 1))).norm())
        for path, one in expected.items()
    }


FEW = {"linformer": {"projected": 16}, "performer": {"features": 32}, "nystrom": {"landmarks": 16}}


@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_never_farther_than_a_bare_swap_on_images_that_were_not_shown(
    trained: Any, op: str
) -> None:
    options: dict[str, Any] = {
        name: value for name, value in FEW.get(op, {}).items() if name in OPERATORS[op].options
    }
    bare, calibrated = copy.deepcopy(trained), copy.deepcopy(trained)
    swap(bare, op, **options)
    found = swap(calibrated, op, calibrate=digits(700, 32, 30)[0], **options)
    shown = digits(715, 32, 30)[0]
    without, with_ = errors(bare, trained, shown), errors(calibrated, trained, shown)
    assert {
        path: (with_[path], without[path])
        for path in found.swapped
        if with_[path] > without[path] * 1.01 + 1e-5
    } == {}
    assert all(error <= bare for bare, error in found.errors.values())


@pytest.fixture(scope="module")
def pretrained() -> nn.Module:
    """What trained on photographs for months: its branches are far larger than those of a minute's
    training.
    """
    return dinov2(98)


def photographs(root: Path, first: int, number: int) -> Tensor:
    """Photographs of all classes, 98 pixels a side, scaled as ImageNet's."""
    files = sorted(root.glob("clothing10/train/*/*"))
    pixels = [read_image(file) for file in files[first :: len(files) // number][:number]]
    images = torch.stack([
        torch.as_tensor(np.array(one.resize((98, 98)))).permute(2, 0, 1) for one in pixels
    ])
    return (images / 255 - torch.tensor(MEAN).reshape(3, 1, 1)) / torch.tensor(STD).reshape(3, 1, 1)


@pytest.mark.soak
@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_a_real_backbone_is_never_farther_either(
    pretrained: nn.Module, data_root: Path, op: str
) -> None:
    options: dict[str, Any] = {
        name: value for name, value in FEW.get(op, {}).items() if name in OPERATORS[op].options
    }
    bare, calibrated = copy.deepcopy(pretrained), copy.deepcopy(pretrained)
    swap(bare, op, **options)
    found = swap(calibrated, op, calibrate=photographs(data_root, 0, 32), **options)
    shown = photographs(data_root, 5, 32)
    without, with_ = errors(bare, pretrained, shown), errors(calibrated, pretrained, shown)
    print(op, *(f"{without[path]:.3f}>{with_[path]:.3f}" for path in found.swapped))
    assert len(found.swapped) == 12
    assert {
        path: (with_[path], without[path])
        for path in without
        if with_[path] > without[path] * 1.01 + 1e-5
    } == {}


def test_the_numbers_are_those_of_least_squares(trained: Any) -> None:
    """Against a solver of its own on the branches of single heads."""
    model, images = copy.deepcopy(trained), digits(700, 16)[0]
    bare = copy.deepcopy(trained)
    swap(bare, "sima")
    path = next(path for path, _ in trained.named_modules() if path.endswith(".attn"))
    found = swap(model, "sima", calibrate=images, layers=path)
    bias = trained.get_submodule(path).proj.bias.detach()
    r = outputs(trained, images[:8])[path] - bias
    attention: Any = bare.get_submodule(path)
    alone = []
    for head in range(3):
        kept = torch.zeros(48).index_fill(0, torch.arange(16 * head, 16 * head + 16), 1)
        hook = attention.proj.register_forward_pre_hook(
            lambda _, inputs, kept=kept: inputs[0] * kept
        )
        alone.append((outputs(bare, images[:8], trained)[path] - bias).flatten())
        hook.remove()
    best = torch.linalg.lstsq(
        torch.stack(alone, 1).double(), r.flatten()[:, None].double()
    ).solution[:, 0]
    steps = (torch.tensor(found.gains[path], dtype=torch.float64) - 1) / (best - 1)
    assert_near(steps, steps.mean().expand(3), 1e-3)
    assert min(abs(float(steps.mean()) - strength) for strength in (0, 0.25, 0.5, 0.75, 1)) < 1e-3


def test_one_image_is_enough(trained: Any) -> None:
    found = swap(copy.deepcopy(trained), "sima", calibrate=digits(700, 1)[0])
    assert all(error <= bare for bare, error in found.errors.values())
    assert "error" in str(found)
