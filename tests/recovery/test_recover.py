"""`softless.recover`: a copy with another attention, near its teacher, and nothing else moved."""

import copy
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import softless
from softless.convert.refit.refit import held_out_images, refit
from softless.errors import UsageError
from tests.convert.refit.small import (
    alike,
    copied,
    error,
    exchanged,
    hooks_of,
    images,
    lively,
    vit,
)

QUIET: dict[str, Any] = {"progress": False}


def state_of(model: nn.Module) -> Any:
    """Everything of a model that a caller could miss."""
    return (
        [module.training for module in model.modules()],
        [weight.requires_grad for weight in model.parameters()],
        hooks_of(model),
        [type(module) for module in model.modules()],
    )


def test_softmax_comes_back_as_it_was():
    teacher = vit()
    x = images(32)
    recovered = softless.recover(teacher, "softmax", images=x, **QUIET)
    torch.testing.assert_close(recovered.model(x), teacher(x), rtol=1e-5, atol=1e-5)
    near = recovered.nearness["refit"]
    assert near.agreement == 1
    assert near.kl == pytest.approx(0, abs=1e-6)
    assert near.cosine == pytest.approx(1, abs=1e-5)


def test_nearness_is_that_of_held_out_images_and_the_teacher_is_as_it_was():
    teacher = vit(3)
    teacher.train()
    teacher.blocks[1].norm1.eval()
    teacher.blocks[0].attn.qkv.weight.requires_grad_(False)
    before, theirs = copied(teacher), state_of(teacher)
    x = images(64)
    labels = torch.arange(64) % 5
    recovered = softless.recover(teacher, "sima", images=x, labels=labels, seed=2, **QUIET)
    assert alike(teacher.state_dict(), before)
    assert state_of(teacher) == theirs
    assert all(weight.grad is None for weight in teacher.parameters())
    held = held_out_images(64, 0.25, 2)
    bare = exchanged(teacher, "sima").eval()
    teacher.eval()
    with torch.no_grad():
        first, mine = teacher(x[held]).argmax(1), bare(x[held]).argmax(1)
    near = recovered.nearness["bare"]
    assert near.images == 16
    assert near.agreement == pytest.approx(float((first == mine).float().mean()))
    assert near.top1 == pytest.approx(float((mine == labels[held]).float().mean()))
    assert near.teacher_top1 == pytest.approx(float((first == labels[held]).float().mean()))
    after = recovered.nearness["refit"]
    assert after.kl < near.kl
    assert after.cosine > near.cosine
    assert error(recovered.model, teacher, "blocks.2", images(48, seed=9)) < error(
        bare, teacher, "blocks.2", images(48, seed=9)
    )
    assert recovered.model.training
    json.dumps(recovered.to_dict())
    assert "the weights of 'refit' are kept" in str(recovered)


def test_the_model_is_fitted_on_all_images_and_its_errors_on_those_that_were_not():
    """What is told is of a fit that had not seen the held-out images; the weights have seen all."""
    teacher = vit()
    x = images(48)
    recovered = softless.recover(teacher, "sima", images=x, views=1, **QUIET)
    assert recovered.refit is not None
    apart, whole = exchanged(teacher, "sima"), exchanged(teacher, "sima")
    told = refit(apart, teacher, x, on_all=False)
    strengths = {layer.path: layer.strength for layer in told.layers if layer.strength is not None}
    refit(whole, teacher, x, ridge=strengths)
    assert [layer.stream_after for layer in recovered.refit.layers] == [
        layer.stream_after for layer in told.layers
    ]
    assert recovered.refit.stream == told.stream
    assert alike(recovered.model.state_dict(), whole.state_dict())
    assert not alike(recovered.model.state_dict(), apart.state_dict())


@pytest.mark.parametrize("views", [1, 3])
def test_the_same_seed_gives_the_same_bits(views: int):
    teacher = vit()
    states = []
    for number in (1, 2):
        torch.manual_seed(number)
        random = torch.get_rng_state()
        recovered = softless.recover(teacher, "sima", images=images(24), views=views, **QUIET)
        assert torch.equal(torch.get_rng_state(), random)
        states.append(copied(recovered.model))
    assert alike(*states)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_written_back(dtype: torch.dtype):
    teacher = vit().to(dtype)
    before = copied(teacher)
    recovered = softless.recover(teacher, "sima", images=images(48), **QUIET)
    assert {p.dtype for p in recovered.model.parameters()} == {dtype}
    assert alike(teacher.state_dict(), before)
    said = any("computed in float32" in note for note in recovered.notes)
    assert said == (dtype != torch.float64)
    near = recovered.nearness
    assert near["refit"].kl < near["bare"].kl
    answer = recovered.model(images(2).to(dtype))
    assert answer.dtype == dtype
    assert bool(answer.isfinite().all())


def test_a_float64_model_is_fitted_in_float64():
    teacher = vit().double()
    recovered = softless.recover(teacher, "softmax", images=images(16).double(), **QUIET)
    x = images(8, seed=3).double()
    torch.testing.assert_close(recovered.model(x), teacher(x), rtol=1e-12, atol=1e-12)


def test_a_model_that_came_exchanged():
    teacher = vit(2)
    student = exchanged(teacher, "relu_linear")
    before, theirs = copied(student), copied(teacher)
    recovered = softless.recover(student, teacher=teacher, images=images(48), **QUIET)
    assert recovered.op == "relu_linear"
    assert alike(student.state_dict(), before)
    assert alike(teacher.state_dict(), theirs)
    same = softless.recover(teacher, "relu_linear", images=images(48), **QUIET)
    assert alike(recovered.model.state_dict(), same.model.state_dict())


def test_a_model_without_classes_is_compared_by_its_features():
    teacher = vit(num_classes=0)
    recovered = softless.recover(teacher, "sima", images=images(32), **QUIET)
    near = recovered.nearness
    assert near["bare"].agreement is None
    assert near["refit"].cosine > near["bare"].cosine


def test_chosen_layers_and_options():
    teacher = vit(3)
    recovered = softless.recover(
        teacher, "soft", images=images(24), layers="blocks.[12].*", ratio=2, **QUIET
    )
    assert recovered.options == {"ratio": 2, "sampling": "pool"}
    assert recovered.swapped is not None
    assert set(recovered.swapped.swapped) == {"blocks.1.attn", "blocks.2.attn"}
    assert type(recovered.model.get_submodule("blocks.0.attn")) is type(teacher.blocks[0].attn)


def test_the_first_class_token_of_a_create_model_host_with_another_operator():
    """Built anew: its registers, positions and head are the old ones."""
    torch.manual_seed(0)
    teacher: Any = lively(
        softless.create_model(
            "deit_tiny_patch16_224",
            op="softmax",
            img_size=(16, 24),
            patch_size=8,
            depth=2,
            num_classes=5,
            in_chans=1,
            embed_dim=24,
            num_heads=2,
        )
    )
    before = copied(teacher)
    for op in ("sima", "seqnorm", "soft"):
        recovered = softless.recover(teacher, op, images=images(48), **QUIET)
        near = recovered.nearness
        assert near["refit"].kl < near["bare"].kl
        assert recovered.model.construction.op == op
    assert alike(teacher.state_dict(), before)


def photographs(folder: Path, count: int = 12) -> Path:
    generator = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            pixels = generator.integers(0, 255, (40 + number, 50), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


def test_a_folder_is_fitted_on_some_of_its_images_and_measured_on_others(tmp_path: Path):
    teacher = vit()
    prepared = {"input_size": (1, 16, 24), "mean": (0.5,), "std": (0.5,)}
    teacher.pretrained_cfg = {**teacher.pretrained_cfg, **prepared}
    folder = photographs(tmp_path / "images")
    recovered = softless.recover(
        teacher, "sima", images=folder, number=12, classes=("dogs", "x", "y", "z", "cats"), **QUIET
    )
    assert recovered.refit is not None
    assert recovered.nearness["refit"].images == 12, "those that are left of 24"
    assert recovered.nearness["refit"].teacher_top1 is not None


X = images(24)


def nan(value: float = torch.nan) -> torch.Tensor:
    x = X.clone()
    x[11, 0, 3, 4] = value
    return x


BAD: dict[str, tuple[dict[str, Any], str]] = {
    "no images": ({"images": X[:0]}, "0 images are too few"),
    "seven": ({"images": X[:7]}, "7 images are too few"),
    "an empty list": ({"images": []}, "0 images are too few"),
    "a NaN pixel": ({"images": nan()}, "NaN or infinity"),
    "an infinite one": ({"images": nan(torch.inf)}, "NaN or infinity"),
    "another size": ({"images": images(12, size=(32, 24))}, "does not take"),
    "other channels": ({"images": images(12, 3)}, "does not take"),
    "whole numbers": ({"images": (X * 50).to(torch.uint8)}, "uint8"),
    "chunks of whole numbers": ({"images": [(X * 50).to(torch.uint8)]}, "uint8"),
    "single images": ({"images": list(X)}, "images are float32"),
    "two sizes": ({"images": [X, images(8, size=(16, 16))]}, "one size"),
    "an empty chunk": ({"images": [X[:0], X]}, "chunk 0 holds no image"),
    "numbers": ({"images": [1, 2, 3]}, "chunks of images are int"),
    "nothing": ({"images": None}, "images is a NoneType"),
    "no folder": ({"images": "no/such/folder"}, "no/such/folder"),
    "no operator": ({"op": None}, "needs an operator"),
    "an unknown operator": ({"op": "smia"}, "Did you mean 'sima'"),
    "an unknown option": ({"ratoi": 2}, "ratoi"),
    "patterns that fit nothing": ({"layers": "stages.*"}, "no attention module fits"),
    "unknown steps": ({"steps": ("refti",)}, "step.*refti"),
    "steps as a string": ({"steps": "refit"}, "give a sequence"),
    "no steps": ({"steps": ()}, "steps="),
    "no folder for the run": ({"steps": ("refit", "distil")}, "name a folder"),
    "ridge": ({"ridge": 0.0}, "ridge=0.0"),
    "a negative ridge": ({"ridge": -1.0}, "ridge=-1.0"),
    "held_out": ({"held_out": 1.5}, "held_out=1.5"),
    "class weight": ({"class_weight": "big"}, "class_weight='big'"),
    "views": ({"views": 0}, "views=0"),
    "labels": ({"labels": torch.zeros(3)}, r"labels are \(3,\) for 24 images"),
    "the operator that it has": ({"teacher": vit(3), "op": None}, "nothing to fit"),
    "an equal teacher": ({"teacher": vit(), "op": None}, "nothing to fit"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_in_a_sentence_and_moves_nothing(case: str):
    arguments, pattern = BAD[case]
    teacher = vit()
    teacher.train()
    before, flags = copied(teacher), state_of(teacher)
    settings = {"op": "sima", "images": X, **QUIET, **arguments}
    with pytest.raises(UsageError) as caught:
        softless.recover(teacher, settings.pop("op"), **settings)
    message = str(caught.value)
    assert re.search(pattern, message), message
    assert "\n" not in message
    assert alike(teacher.state_dict(), before)
    assert state_of(teacher) == flags


def test_broken_weights_are_named():
    teacher = vit()
    with torch.no_grad():
        teacher.blocks[1].mlp.fc1.weight[0, 0] = torch.nan
    with pytest.raises(UsageError, match=r"blocks\.1\.mlp\.fc1\.weight holds NaN"):
        softless.recover(teacher, "sima", images=X, **QUIET)


def test_a_teacher_of_another_layout_is_named():
    with pytest.raises(UsageError, match=r"another model: blocks\.2\..* absent in the student"):
        softless.recover(exchanged(vit()), teacher=vit(3), images=X, **QUIET)


def test_a_model_without_attention_is_refused():
    with pytest.raises(UsageError, match="no attention module"):
        softless.recover(timm.create_model("resnet10t"), "sima", images=images(8, 3), **QUIET)


def test_hooks_of_the_caller_stay_and_see_nothing_of_the_copy():
    teacher = vit()
    calls: list[int] = []
    hook = teacher.head.register_forward_hook(lambda *_: calls.append(1))
    recovered = softless.recover(copy.deepcopy(teacher), "sima", images=images(16), **QUIET)
    assert hooks_of(teacher) == 1
    hook.remove()
    assert recovered.refit is not None


def test_a_model_that_came_exchanged_keeps_its_fit_where_some_attention_cannot_be_fitted():
    """CaiT's class attention is left as it is; the layers ahead of it are fitted all the same."""
    torch.manual_seed(0)
    teacher = timm.create_model(
        "cait_xxs24_224",
        img_size=32,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=5,
        in_chans=1,
        init_values=0.5,
    ).eval()
    student = exchanged(teacher, "sima", force="*", token_scale="tokens")
    x = torch.randn(32, 1, 32, 32, generator=torch.Generator().manual_seed(1))
    recovered = softless.recover(student, teacher=teacher, images=x, views=1, **QUIET)
    assert recovered.refit is not None
    left = [
        layer.path for layer in recovered.refit.layers if layer.kept and "token_only" in layer.path
    ]
    assert left == ["blocks_token_only.0.attn", "blocks_token_only.1.attn"]
    near = recovered.nearness
    assert near["refit"] != near["bare"]
    fitted = [layer for layer in recovered.refit.layers if layer.fitted]
    assert fitted
    for layer in fitted:
        before = student.get_parameter(f"{layer.path}.weight")
        assert not torch.equal(recovered.model.get_parameter(f"{layer.path}.weight"), before)
