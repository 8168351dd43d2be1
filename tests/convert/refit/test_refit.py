"""The refit: what it must find, what it must leave, and controls that fail where it passes."""

import copy
import math
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import softless
from softless.convert.refit.refit import held_out_images, refit
from softless.convert.refit.ridge import Moments, solve
from softless.convert.swap import swap
from softless.errors import UsageError
from softless.layers.plain import give
from tests.convert.refit.small import (
    alike,
    copied,
    error,
    exchanged,
    images,
    lively,
    streams,
    vit,
)

EXACT = 1e-9  # a ridge that hides nothing
SIGNS = torch.tensor([1.0, -1.0]).repeat(12)
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    "vit_tiny_patch16_224": ({"depth": 2, "embed_dim": 24, "num_heads": 2}, 224),
    "vit_small_patch14_reg4_dinov2": (
        {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 56, "init_values": 0.7},
        56,
    ),
    "eva02_tiny_patch14_224": (
        {"depth": 2, "embed_dim": 48, "num_heads": 2, "img_size": 56},
        56,
    ),
    "deit3_small_patch16_224": (
        {"depth": 2, "embed_dim": 24, "num_heads": 2, "img_size": 48},
        48,
    ),
    "pvt_v2_b0": ({"depths": (1, 2, 1, 1)}, 64),
}


@pytest.mark.parametrize("ridge", ["held-out", 1e-3])
@pytest.mark.parametrize("name", FAMILIES)
def test_softmax_for_softmax_is_the_identity(name: str, ridge: Any):
    args, size = FAMILIES[name]
    teacher = lively(timm.create_model(name, num_classes=5, **args))
    student = exchanged(teacher, "softmax")
    x = images(12, 3, (size, size))
    refitted = refit(student, teacher, x, ridge=ridge, on_all=False)
    assert refitted.layers
    assert {layer.part for layer in refitted.layers} == {"attention", "mlp"}
    torch.testing.assert_close(student(x), teacher(x), rtol=1e-5, atol=1e-5)
    assert refitted.stream < 1e-5


def test_xca_for_its_own_class_is_the_identity():
    teacher = lively(timm.create_model("xcit_nano_12_p16_224", depth=2, num_classes=5))
    student = exchanged(teacher, "xca")
    x = images(10, 3, (64, 64))
    refitted = refit(student, teacher, x)
    assert refitted.layers
    torch.testing.assert_close(student(x), teacher(x), rtol=1e-5, atol=1e-5)


MAPPED: dict[str, dict[str, Any]] = {
    "plain": {},
    "layer scale": {"init_values": 0.5},
    "without bias": {"proj_bias": False},
    "registers": {"reg_tokens": 3},
}


@pytest.mark.parametrize("case", MAPPED)
def test_a_linear_map_of_the_projection_is_undone(case: str):
    """The student's attention is its teacher's but for a map of each projection: refit finds the
    teacher's weight and bias.
    """
    teacher = vit(3, **MAPPED[case])
    if case == "layer scale":
        with torch.no_grad():
            for block in teacher.blocks:
                block.ls1.gamma.copy_(torch.linspace(0.3, 2, 24)).mul_(SIGNS)
                block.ls2.gamma.copy_(torch.linspace(2, 0.3, 24)).mul_(SIGNS)
    student = exchanged(teacher, "softmax")
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for block in student.blocks:
            proj = block.attn.proj
            turn = torch.eye(24) + 0.3 * torch.randn(24, 24, generator=generator)
            proj.weight.copy_(turn @ proj.weight)
            if proj.bias is not None:
                proj.bias.add_(1)
    x = images(48)
    bare = error(student, teacher, "blocks.2", x)
    assert bare > 0.1
    refitted = refit(student, teacher, x, ridge=EXACT)
    assert all(layer.fitted for layer in refitted.layers if layer.part == "attention")
    for mine, theirs in zip(student.blocks, teacher.blocks, strict=True):
        torch.testing.assert_close(
            mine.attn.proj.state_dict(), theirs.attn.proj.state_dict(), rtol=1e-4, atol=1e-4
        )
    assert error(student, teacher, "blocks.2", images(20, seed=9)) < 1e-4


def test_told_errors_are_those_of_the_model():
    """What a layer is said to err is what a pass of the whole model shows on held-out images."""
    teacher = vit(3, class_token=False, global_pool="avg")
    student = exchanged(teacher, "sima")
    x = images(40)
    held = held_out_images(40, 0.25, seed=3)
    bare = error(student, teacher, "blocks.0", x[held])
    refitted = refit(student, teacher, x, on_all=False, seed=3)
    assert int(held.sum()) == refitted.held_out == 10
    told = {layer.path: layer for layer in refitted.layers}
    assert told["blocks.0.mlp.fc2"].stream_before < bare, "the attention came first"
    for path, at in (("blocks.0.mlp.fc2", "blocks.0"), ("blocks.2.mlp.fc2", "blocks.2")):
        assert told[path].stream_after == pytest.approx(
            error(student, teacher, at, x[held]), rel=1e-3
        )
    assert refitted.stream == pytest.approx(error(student, teacher, "blocks.2", x[held]), rel=1e-3)


def alike_inside(count: int, seed: int = 1) -> Tensor:
    """Images of one shade each: all tokens of an image are alike."""
    shades = torch.randn(count, 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    return shades.expand(count, 3, 16, 24).contiguous()


def test_a_ridge_chosen_on_held_out_images_passes_where_a_weak_ridge_fails():
    """16 images of one shade are 16 samples of 24 channels, however many tokens they have."""
    teacher = vit(4, in_chans=3)
    with torch.no_grad():
        teacher.pos_embed.zero_()
    bare, weak, chosen = (exchanged(teacher, "relu_linear") for _ in range(3))
    x, new = alike_inside(16), alike_inside(64, seed=5)
    refit(weak, teacher, x, ridge=1e-4)
    refit(chosen, teacher, x)
    start, fixed, held = (error(model, teacher, "blocks.3", new) for model in (bare, weak, chosen))
    assert held < start < fixed, (start, fixed, held)


def fit_branches(student: Any, teacher: Any, x: Tensor) -> None:
    """The control: each projection answers its teacher's branch, on the student's own input."""
    held = held_out_images(len(x), 0.25, 0)
    for number, block in enumerate(student.blocks):
        path = f"blocks.{number}.attn.proj"
        goal = streams(teacher, [path], x)[path]
        kept: list[Tensor] = []
        hook = block.attn.proj.register_forward_pre_hook(lambda _, args, k=kept: k.append(args[0]))
        with torch.no_grad():
            student(x)
        hook.remove()
        fit, apart = Moments.zeros(24, 24, goal.device), Moments.zeros(24, 24, goal.device)
        for moments, rows in ((fit, ~held), (apart, held)):
            o, y = kept[0][rows].flatten(0, 1), goal[rows].flatten(0, 1)
            moments.add(o, y, torch.ones(len(o)))
        W0, b0 = block.attn.proj.weight.detach().double(), block.attn.proj.bias.detach().double()
        solution = solve(fit, apart, W0, b0, important=torch.ones(24, dtype=torch.float64))
        give(block.attn.proj, solution.W.float(), solution.b.float())


def test_the_stream_is_a_better_target_than_the_branch():
    """What earlier blocks left over is mended where it has gathered."""
    teacher = vit(5, seed=3)
    x, new = images(256), images(64, seed=7)
    stream, branch = (exchanged(teacher, "sima") for _ in range(2))
    refit(stream, teacher, x, refit_mlp=False, class_weight=1)
    fit_branches(branch, teacher, x)
    mine, control = (error(model, teacher, "blocks.4", new) for model in (stream, branch))
    assert mine < 0.92 * control, (mine, control)


@pytest.mark.parametrize("op", softless.OPERATORS)
def test_no_operator_ends_farther_from_its_teacher(op: str):
    """Layer by layer on held-out images, and behind the last block."""
    teacher = vit(2)
    try:
        student = exchanged(teacher, op)
    except UsageError as refused:
        pytest.skip(str(refused))
    x = images(40)
    held = held_out_images(40, 0.25, 0)
    bare = error(student, teacher, "blocks.1", x[held])
    refitted = refit(student, teacher, x, on_all=False, class_weight=1)
    for layer in refitted.layers:
        assert not layer.stream_after > layer.stream_before, layer
        if layer.strength is not None:
            assert layer.stream_after < layer.stream_before
    after = error(student, teacher, "blocks.1", x[held])
    assert after <= bare * (1 + 1e-6)
    assert bare < 1e-5 or after < 0.95 * bare, "nothing was gained"
    assert refitted.stream == pytest.approx(after, rel=1e-3, abs=1e-6)


def test_the_gain_of_a_branch_that_has_nothing_to_do_with_it_is_nearly_zero():
    """Least squares, and not the ratio of two sizes, which is 1 here."""
    generator = torch.Generator().manual_seed(0)
    o, y = (torch.randn(4000, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    fit, held = Moments.zeros(6, 6, o.device), Moments.zeros(6, 6, o.device)
    fit.add(o[:3000], y[:3000], torch.ones(3000))
    held.add(o[3000:], y[3000:], torch.ones(1000))
    eye = torch.eye(6, dtype=torch.float64)
    solution = solve(fit, held, eye, None, important=torch.ones(6, dtype=torch.float64))
    assert abs(solution.gain) < 0.05
    assert float(solution.W.norm()) < 0.2
    assert solution.after < 1.01 < solution.before


def class_error(student: nn.Module, teacher: nn.Module, path: str, x: Tensor) -> float:
    """Relative distance of the class tokens at a path."""
    mine, theirs = (streams(model, [path], x)[path][:, 0] for model in (student, teacher))
    return float((mine - theirs).norm() / theirs.norm())


def test_the_class_token_counts_where_the_head_reads_it():
    size = (64, 96)  # 96 patches beside one class token
    teacher = vit(3, img_size=size)
    x, new = images(48, size=size), images(64, size=size, seed=8)
    errors = {}
    weighed: float | str
    for weighed in ("auto", 96, 1):
        student = exchanged(teacher, "sima")
        refit(student, teacher, x, class_weight=weighed)  # type: ignore[arg-type]
        errors[weighed] = class_error(student, teacher, "blocks.2", new)
    assert errors["auto"] == errors[96], "as much as 96 patches"
    assert errors["auto"] < errors[1]


def test_the_class_token_is_one_of_many_where_the_head_reads_the_mean():
    teacher = vit(2, global_pool="avg", class_token=True)
    first, second = exchanged(teacher), exchanged(teacher)
    refit(first, teacher, images())
    refit(second, teacher, images(), class_weight=1)
    assert alike(first.state_dict(), second.state_dict())


@pytest.mark.parametrize("near_zero", [0.0, 1e-6])
def test_layer_scale_of_mixed_sign_and_near_zero(near_zero: float):
    teacher = vit(3, init_values=1.0)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for block in teacher.blocks:
            for scale in (block.ls1.gamma, block.ls2.gamma):
                scale.copy_(torch.randn(24, generator=generator))
                scale[::5] = near_zero
    student = exchanged(teacher, "sima")
    x, new = images(64), images(48, seed=6)
    bare = error(student, teacher, "blocks.2", new)
    refitted = refit(student, teacher, x)
    assert all(layer.fitted for layer in refitted.layers)
    assert error(student, teacher, "blocks.2", new) < 0.8 * bare
    for layer in refitted.layers:
        mine, theirs = (model.get_submodule(layer.path) for model in (student, teacher))
        assert bool(mine.weight.isfinite().all())
        left = mine.weight[::5]
        torch.testing.assert_close(left, layer.gain * theirs.weight[::5], rtol=1e-4, atol=1e-5)
        assert torch.equal(mine.bias[::5], theirs.bias[::5])


def test_a_layer_scale_of_nothing_leaves_the_layers():
    teacher = vit(2, init_values=1.0)
    with torch.no_grad():
        for block in teacher.blocks:
            block.ls1.gamma.zero_()
    student = exchanged(teacher, "sima")
    before = copied(student)
    refitted = refit(student, teacher, images())
    assert not any(layer.fitted for layer in refitted.layers)
    assert alike(student.state_dict(), before)


def test_the_same_seed_gives_the_same_bits_and_another_seed_others():
    teacher = vit()
    states = []
    for seed in (0, 0, 1):
        student = exchanged(teacher, "sima")
        torch.manual_seed(seed + 17)
        random = torch.get_rng_state()
        refitted = refit(student, teacher, images(), on_all=False, seed=seed)
        assert torch.equal(torch.get_rng_state(), random), "no draw of the caller's is taken"
        states.append((copied(student), [layer.stream_after for layer in refitted.layers]))
    assert alike(states[0][0], states[1][0])
    assert states[0][1] == states[1][1]
    assert not alike(states[0][0], states[2][0])


@pytest.mark.parametrize("sizes", [(1, 7, 3, 29), (40,), (39, 1)])
def test_the_cut_into_chunks_does_not_count(sizes: tuple[int, ...]):
    teacher = vit()
    x = images(40)
    once, cut = exchanged(teacher, "sima"), exchanged(teacher, "sima")
    first = refit(once, teacher, x)
    second = refit(cut, teacher, list(x.split(sizes)))
    assert error(cut, once, "blocks.1", images(16, seed=2)) < 1e-6
    assert [layer.strength for layer in first.layers] == [one.strength for one in second.layers]
    assert second.images == 40


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_in_other_dtypes_and_orders_in_memory(dtype: torch.dtype):
    teacher = vit().to(dtype)
    x = images(24)
    plain, turned = exchanged(teacher, "sima"), exchanged(teacher, "sima")
    refit(plain, teacher, x)
    folded = x.double().transpose(2, 3).contiguous().transpose(2, 3)
    assert not folded.is_contiguous()
    refit(turned, teacher, folded)
    assert alike(plain.state_dict(), turned.state_dict())
    assert all(value.dtype == dtype for value in plain.state_dict().values())


def test_blocks_ahead_of_the_first_exchange_are_left_and_those_behind_mended():
    teacher = vit(4)
    student = exchanged(teacher, "sima", layers="blocks.1.*")
    before, theirs = copied(student), copied(teacher)
    refitted = refit(student, teacher, images(96))
    moved = {n for n, value in student.state_dict().items() if not torch.equal(value, before[n])}
    parts = {name.rpartition(".")[0] for name in moved}
    assert {"blocks.1.attn.proj", "blocks.1.mlp.fc2"} < parts, "blocks behind it too"
    assert not any(part.startswith("blocks.0.") for part in parts)
    assert parts == {layer.path for layer in refitted.layers if layer.fitted}
    assert alike(teacher.state_dict(), theirs)


def test_a_mapping_of_strengths_writes_what_was_chosen():
    """Fitted again on all images with the strengths of a first time: those it leaves out stay."""
    teacher = vit()
    chosen = exchanged(teacher, "sima")
    refitted = refit(chosen, teacher, images(96), on_all=False)
    strengths = {layer.path: layer.strength for layer in refitted.layers[:1]}
    student = exchanged(teacher, "sima")
    before = copied(student)
    refit(student, teacher, images(96), ridge=strengths, on_all=False)  # type: ignore[arg-type]
    moved = {n for n, value in student.state_dict().items() if not torch.equal(value, before[n])}
    assert {name.rpartition(".")[0] for name in moved} == set(strengths)
    assert torch.equal(student.blocks[0].attn.proj.weight, chosen.blocks[0].attn.proj.weight)


def test_training_flags_frozen_weights_and_hooks_are_as_they_were():
    teacher = vit(drop_path_rate=0.3, proj_drop_rate=0.2)
    student = exchanged(teacher, "sima")
    plain = copy.deepcopy(student)
    for model in (student, teacher):
        model.train()
        model.blocks[0].norm1.eval()
        model.blocks[1].attn.proj.weight.requires_grad_(False)
    flags = [
        ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
        for model in (student, teacher)
    ]
    refit(student, teacher, images())
    assert flags == [
        ([m.training for m in model.modules()], [p.requires_grad for p in model.parameters()])
        for model in (student, teacher)
    ]
    assert all(p.grad is None and p.is_leaf for p in student.parameters())
    refit(plain, teacher, images())
    assert alike(plain.state_dict(), student.state_dict()), "drop path has no say in a refit"


def test_swap_is_what_refit_reads_and_calibrated_students_too():
    teacher = vit()
    student = copy.deepcopy(teacher)
    swap(student, "sima", calibrate=images(8))
    x = images(64)
    bare = error(student, teacher, "blocks.1", images(32, seed=3))
    refit(student, teacher, x)
    assert error(student, teacher, "blocks.1", images(32, seed=3)) < bare


def test_no_error_is_told_of_images_that_were_fitted_on():
    teacher = vit(2)
    refitted = refit(exchanged(teacher, "sima"), teacher, images(24))
    assert math.isnan(refitted.stream)
