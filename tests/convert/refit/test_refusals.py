"""Each bad input is refused in one sentence, and both models are as they were."""

import copy
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from softless.convert.refit.refit import refit
from softless.errors import UsageError
from tests.convert.refit.small import alike, copied, exchanged, hooks_of, images, vit


def with_nan(x: Tensor) -> Tensor:
    x = x.clone()
    x[11, 0, 3, 4] = torch.nan
    return x


def broken(model: Any, value: float) -> Any:
    with torch.no_grad():
        model.blocks[1].mlp.fc1.weight[0, 0] = value
    return model


X = images(24)
CASES: dict[str, tuple[Any, str]] = {
    "no images": (X[:0], "0 images are too few to fit on: give at least 8"),
    "an empty list": ([], "0 images are too few"),
    "seven": (X[:7], "7 images are too few to fit on: give at least 8"),
    "an empty chunk": ([X[:0], X], "chunk 0 holds no image"),
    "whole numbers": ((X * 50).to(torch.uint8), "images are uint8 .*floating-point"),
    "chunks of whole numbers": ([(X * 50).to(torch.uint8)], "images are uint8 .*floating-point"),
    "three sides": (X[:, 0], r"images are float32 \(24, 16, 24\)"),
    "chunks of three sides": ([X[:, 0]], r"images are float32 \(24, 16, 24\)"),
    "single images": (list(X), r"images are float32 \(1, 16, 24\)"),
    "numbers": ([1, 2, 3, 4, 5, 6, 7, 8], "chunks of images are int"),
    "a generator": ((chunk for chunk in X.split(8)), "asked for again"),
    "a string": ("photographs", "images is a str"),
    "two sizes": ([X, images(8, size=(16, 16))], r"\(1, 16, 24\) and of \(1, 16, 16\)"),
    "another size": (images(12, size=(32, 24)), r"VisionTransformer does not take .*\(1, 32, 24\)"),
    "another number of channels": (images(12, 3), r"does not take .*\(3, 16, 24\)"),
    "a NaN pixel": (with_nan(X), "images hold NaN or infinity, first in chunk 0"),
    "an infinite one": ([X[:8], X[8:] / 0], "first in chunk 1"),
}


def refused(student: Any, teacher: Any, x: Any, pattern: str, **settings: Any) -> None:
    """One sentence, and nothing moved."""
    for model in (student, teacher):
        model.train()
        model.blocks[0].norm1.eval()
        model.blocks[0].norm2.weight.requires_grad_(False)
    states = [copied(model) for model in (student, teacher)]
    flags = [told(model) for model in (student, teacher)]
    with pytest.raises(UsageError) as caught:
        refit(student, teacher, x, **settings)
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert "\n" not in message
    for model, state, before in zip((student, teacher), states, flags, strict=True):
        if not any(bool(value.isnan().any()) for value in state.values()):
            assert alike(model.state_dict(), state)
        assert told(model) == before
        assert hooks_of(model) == 0
        assert not any("forward" in vars(module) for module in model.modules())


def told(model: nn.Module) -> Any:
    """Modes, and what may move."""
    return (
        [module.training for module in model.modules()],
        [weight.requires_grad for weight in model.parameters()],
    )


@pytest.mark.parametrize("case", CASES)
def test_images(case: str):
    teacher = vit()
    refused(exchanged(teacher, "sima"), teacher, *CASES[case])


@pytest.mark.parametrize(
    ("settings", "pattern"),
    [
        ({"held_out": 0}, "held_out=0: give a share between 0 and 1"),
        ({"held_out": 1.0}, "held_out=1.0"),
        ({"held_out": float("nan")}, "held_out=nan"),
        ({"ridge": 0}, "ridge=0: give 'held-out', or a positive number"),
        ({"ridge": -1.0}, "ridge=-1.0"),
        ({"ridge": float("inf")}, "ridge=inf"),
        ({"ridge": "strong"}, "ridge='strong'"),
        ({"ridge": True}, "ridge=True"),
        ({"ridge": {"blocks.0.attn.proj": "strong"}}, "ridge=.*positive number"),
        ({"class_weight": "much"}, "class_weight='much': give 'auto', or a number from 0 on"),
        ({"class_weight": -1}, "class_weight=-1"),
        ({"class_weight": float("nan")}, "class_weight=nan"),
    ],
)
def test_settings(settings: dict[str, Any], pattern: str):
    teacher = vit()
    refused(exchanged(teacher, "sima"), teacher, X, pattern, **settings)


def test_models():
    teacher = vit()
    student = exchanged(teacher, "sima")
    refused(copy.deepcopy(teacher), teacher, X, "nothing to fit: .* softless.swap")
    refused(
        student, broken(vit(), torch.nan), X, r"the teacher's blocks.1.mlp.fc1.weight holds NaN"
    )
    refused(broken(exchanged(teacher), torch.inf), teacher, X, "the student's blocks.1.mlp.fc1")
    refused(student, vit(mlp_ratio=2), X, r"another model: blocks.0.mlp.fc1.weight is \(48, 24\)")
    refused(student, vit(3), X, "another model: blocks.2.* absent in the student")
    refused(
        copy.deepcopy(student).half(), teacher, X, r"student's .* is float16: .*model.float\(\)"
    )
    refused(student, vit().bfloat16(), X, "the teacher's .* is bfloat16")
    refused(
        student.double(), teacher, X, "student is float64 on cpu and the teacher float32 on cpu"
    )


def test_a_student_that_shares_a_weight_would_move_its_teacher():
    teacher = vit()
    student = exchanged(teacher, "sima")
    student.blocks[1].mlp.fc2.weight = teacher.blocks[1].mlp.fc2.weight
    refused(student, teacher, X, "share blocks.1.mlp.fc2.weight")


def test_a_grid_operator_that_cannot_run_on_the_images():
    teacher = vit(patch_size=8)
    student = exchanged(teacher, "linformer")
    refused(student, teacher, images(10, size=(8, 8)), "does not take")


def test_a_failure_within_the_walk_leaves_the_student(monkeypatch):
    teacher = vit(3)
    student = exchanged(teacher, "sima")
    before = copied(student)

    def stop(layer: Any) -> None:
        if layer.path.startswith("blocks.1"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        refit(student, teacher, X, on_layer=stop)
    assert alike(student.state_dict(), before)
    assert hooks_of(student) == hooks_of(teacher) == 0


def test_images_that_are_all_alike_are_fitted_by_the_strong_ridge_and_said():
    teacher = vit()
    student = exchanged(teacher, "sima")
    refitted = refit(student, teacher, X[:1].expand(12, -1, -1, -1))
    assert {layer.strength for layer in refitted.layers if layer.fitted} <= {1.0}
    assert any("alike" in note for note in refitted.notes)
    assert "alike" in str(refitted)
    assert all(bool(value.isfinite().all()) for value in student.state_dict().values())


def test_a_matrix_that_is_singular_is_solved_by_a_ridge_that_grows():
    """Eight images of one shade, and a ridge that is lost in rounding."""
    teacher = vit()
    student = exchanged(teacher, "softmax")
    with torch.no_grad():
        student.blocks[0].attn.proj.weight.mul_(0.5)
        teacher.pos_embed.zero_()
        student.pos_embed.zero_()
    shades = torch.linspace(-1, 1, 8)[:, None, None, None].expand(8, 1, 16, 24)
    refitted = refit(student, teacher, shades, ridge=1e-300)
    assert any("ridge grew" in note for note in refitted.notes)
    assert all(bool(value.isfinite().all()) for value in student.state_dict().values())
