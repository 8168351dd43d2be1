"""Streams that are walked block by block: what they cost, and what cannot be walked is left alone
and said.
"""

import copy
import weakref
from typing import Any

import pytest
import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import softless
from softless.convert.refit import streams
from softless.convert.refit.refit import held_out_images, refit
from softless.convert.refit.streams import Walk, stations
from tests.convert.refit.small import alike, copied, error, exchanged, images, lively, vit


class Living(TorchDispatchMode):
    """The most bytes that tensors born in its block held at once."""

    def __init__(self, *ahead: Tensor) -> None:
        super().__init__()
        self.now = self.most = 0
        self.known = {tensor.untyped_storage().data_ptr() for tensor in ahead}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = func(*args, **(kwargs or {}))
        for tensor in answer if isinstance(answer, list | tuple) else [answer]:
            if isinstance(tensor, Tensor):
                self._note(tensor.untyped_storage())
        return answer

    def _note(self, storage: Any) -> None:
        pointer = storage.data_ptr()
        if pointer == 0 or pointer in self.known:
            return
        self.known.add(pointer)
        self.now += storage.nbytes()
        self.most = max(self.most, self.now)
        weakref.finalize(storage, self._gone, pointer, storage.nbytes())

    def _gone(self, pointer: int, size: int) -> None:
        self.known.discard(pointer)
        self.now -= size


DEPTH = 4


def streams_an_image(run: Any) -> float:
    """Streams (7, 24) of float32 that each further image costs at the peak, for images that pass in
    fours.
    """
    teacher = vit(DEPTH)
    most = []
    for count in (32, 64):
        student = exchanged(teacher, "sima")
        chunks = list(images(count).split(4))
        run(copy.deepcopy(student), copy.deepcopy(teacher), chunks[:4])  # what is kept for good
        with Living(*chunks) as living:
            run(student, teacher, chunks)
        most.append(living.most)
    return (most[1] - most[0]) / 32 / (7 * 24 * 4)


def test_many_images_cost_two_streams():
    cost = streams_an_image(refit)
    assert 1.9 < cost < 2.2, cost


def test_a_walk_that_keeps_what_it_leaves_costs_more(monkeypatch):
    """The control of the measure."""
    kept: list[Tensor] = []
    leave = Walk.leave

    def hoard(self: Walk, path: str, answers: Any) -> None:
        leave(self, path, answers)
        kept.extend(call.stream for call in self.calls)

    monkeypatch.setattr(Walk, "leave", hoard)

    def run(*models: Any) -> None:
        kept.clear()
        refit(*models)

    assert streams_an_image(run) > 2 * DEPTH - 2


def walked_truly(student: Any, teacher: Any, x: Tensor, last: str) -> Any:
    """Refit, and what it says of the stream is what a pass of the whole model shows."""
    held = held_out_images(len(x), 0.25, 0)
    bare = error(student, teacher, last, x[held])
    refitted = refit(student, teacher, x, on_all=False, class_weight=1)
    after = error(student, teacher, last, x[held])
    assert refitted.stream == pytest.approx(after, rel=2e-3, abs=1e-6)
    assert after < bare
    return refitted


def test_a_pyramid_is_walked_through_its_stages():
    teacher = lively(timm.create_model("pvt_v2_b0", depths=(1, 2, 1, 1), num_classes=5))
    student = exchanged(teacher, "sima")
    refitted = walked_truly(student, teacher, images(24, 3, (64, 96)), "stages.3.blocks.0")
    paths = [layer.path for layer in refitted.layers]
    assert [path.partition(".mlp")[0].partition(".attn")[0] for path in paths[::2]] == [
        "stages.0.blocks.0",
        "stages.1.blocks.0",
        "stages.1.blocks.1",
        "stages.2.blocks.0",
        "stages.3.blocks.0",
    ]
    assert all("NaN" not in str(layer) for layer in refitted.layers)


def test_mobilevit_is_fitted_where_its_patches_are_rows():
    teacher = lively(timm.create_model("mobilevit_xxs", num_classes=5))
    student = exchanged(teacher, "sima")
    x = images(10, 3, (64, 64))
    held = held_out_images(10, 0.25, 0)
    bare = error(student, teacher, "final_conv", x[held])
    refitted = refit(student, teacher, x, on_all=False)
    assert len(refitted.layers) >= 9
    assert error(student, teacher, "final_conv", x[held]) < bare
    assert any(layer.fitted for layer in refitted.layers)


def test_class_attention_blocks_write_the_class_token_alone():
    teacher = lively(
        timm.create_model("cait_xxs24_224", depth=2, img_size=48, num_classes=5, init_values=0.5)
    )
    student = exchanged(teacher, "sima", force="*")
    x = images(24, 3, (48, 48))
    held = held_out_images(24, 0.25, 0)
    bare = error(student, teacher, "head", x[held])
    refitted = refit(student, teacher, x, on_all=False)
    paths = {layer.path.partition(".attn")[0] for layer in refitted.layers}
    assert {"blocks_token_only.0", "blocks_token_only.1"} <= paths or not softless_swaps(student)
    assert error(student, teacher, "head", x[held]) < bare


def softless_swaps(model: Any) -> bool:
    """Whether the class attentions of a CaiT were exchanged."""
    return any(
        isinstance(module, softless.Attention) or "softless" in type(module).__module__
        for module in model.blocks_token_only.modules()
    )


def test_crossvit_whose_blocks_take_lists_is_left_or_right():
    teacher = lively(timm.create_model("crossvit_9_240", num_classes=5))
    student = exchanged(teacher, "sima")
    before = copied(student)
    refitted = refit(student, teacher, images(8, 3, (240, 240)))
    moved = {
        name.rpartition(".")[0]
        for name, value in student.state_dict().items()
        if not torch.equal(value, before[name])
    }
    assert moved == {layer.path for layer in refitted.layers if layer.fitted}
    assert all(layer.kept or layer.stream_after < layer.stream_before for layer in refitted.layers)


class Twice(nn.Module):
    """A ViT whose second block is called twice."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        x = self.model._pos_embed(self.model.patch_embed(x))
        for number in (0, 1, 1, 2):
            x = self.model.blocks[number](x)
        answer: Tensor = self.model.forward_head(self.model.norm(x))
        return answer


def test_a_block_that_is_called_twice_is_left():
    teacher = Twice(vit(3)).eval()
    student = exchanged(teacher, "sima", layers="model.blocks.1.*")
    before = copied(student)
    refitted = refit(student, teacher, images(24))
    told = {layer.path: layer for layer in refitted.layers}
    assert "more than once" in told["model.blocks.1.attn"].kept
    for name, value in student.state_dict().items():
        if ".blocks.1." in name:
            assert torch.equal(value, before[name]), name


def test_a_weight_of_two_layers_is_left():
    teacher = vit(3)
    for block in teacher.blocks[1:]:
        block.attn.proj.weight = teacher.blocks[0].attn.proj.weight
        block.mlp.fc2.bias = teacher.blocks[0].mlp.fc2.bias
    student = exchanged(teacher, "sima")
    before = copied(student)
    refitted = refit(student, teacher, images(24))
    assert {layer.kept for layer in refitted.layers} == {"its weight is that of another layer too"}
    assert alike(student.state_dict(), before)


class Between(nn.Module):
    """A ViT that adds to its stream between two blocks, in the tensor that the first answered."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model
        self.more = nn.Parameter(torch.linspace(-2, 2, 24))

    def forward(self, x: Tensor) -> Tensor:
        x = self.model._pos_embed(self.model.patch_embed(x))
        x = self.model.blocks[0](x)
        x += self.more
        x = self.model.blocks[1](x)
        answer: Tensor = self.model.forward_head(self.model.norm(x))
        return answer


def test_a_walked_stream_that_is_wrong_is_caught():
    """The second block is given the very tensor of the first, with other numbers in it."""
    teacher = Between(vit(2)).eval()
    student = exchanged(teacher, "sima")
    before = copied(student)
    refitted = refit(student, teacher, images(24))
    told = {layer.path: layer for layer in refitted.layers}
    assert told["model.blocks.0.attn.proj"].fitted
    assert "hangs on more" in told["model.blocks.1.attn"].kept
    for name, value in student.state_dict().items():
        if ".blocks.1." in name:
            assert torch.equal(value, before[name]), name


def test_without_the_guard_it_would_be_fitted_to_a_wrong_stream(monkeypatch):
    """The control of the test above."""
    teacher = Between(vit(2)).eval()
    student = exchanged(teacher, "sima")
    monkeypatch.setattr(streams, "SAME", 1e9)
    refitted = refit(student, teacher, images(24))
    assert any(layer.path.startswith("model.blocks.1.attn") for layer in refitted.layers)
    assert not any("hangs on more" in layer.kept for layer in refitted.layers)


class Shaded(Block):
    """A block that adds a second tensor."""

    def forward(self, x: Tensor, shade: Tensor) -> Tensor:  # type: ignore[override]
        answer: Tensor = super().forward(x) + shade
        return answer


class Second(nn.Module):
    """A ViT whose blocks are given something of the images beside their stream."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        shade = x.mean((1, 2, 3))[:, None, None]
        x = self.model._pos_embed(self.model.patch_embed(x))
        for block in self.model.blocks:
            x = block(x, shade)
        answer: Tensor = self.model.forward_head(self.model.norm(x))
        return answer


def test_a_second_tensor_of_the_images_is_seen_where_the_first_two_are_alike():
    """The images that the walk is tried on have to differ."""
    teacher = Second(vit(2, block_fn=Shaded)).eval()
    x = images(24)
    x[1] = x[0]
    with torch.no_grad():
        walked, passed = stations(teacher, ["model.blocks.0"], x[[0, 2]])
    assert not walked
    assert "second tensor" in passed["model.blocks.0"]
    student = exchanged(teacher, "sima")
    before = copied(student)
    refitted = refit(student, teacher, x)
    assert not any(layer.fitted for layer in refitted.layers)
    assert alike(student.state_dict(), before)


class Numbered(nn.Module):
    """A ViT whose blocks are given a tensor each beside their stream."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        x = self.model._pos_embed(self.model.patch_embed(x))
        for number, block in enumerate(self.model.blocks):
            x = block(x, shade=torch.full((1, 1, 24), 1.0 * number))
        answer: Tensor = self.model.forward_head(self.model.norm(x))
        return answer


def test_each_block_is_given_its_own_beside_the_stream():
    """The stream goes from block to block, and what is beside it is no block's but its own."""
    teacher = Numbered(vit(3, block_fn=Shaded)).eval()
    with torch.no_grad():
        walked, passed = stations(teacher, [f"model.blocks.{n}" for n in range(3)], images(2))
    assert not passed
    assert [station.direct for station in walked] == [False, False, False]
    student = exchanged(teacher, "sima")
    refitted = walked_truly(student, teacher, images(64), "model.blocks.2")
    assert sum(layer.fitted for layer in refitted.layers) >= 3


def test_rotary_positions_of_each_block():
    teacher = lively(
        timm.create_model(
            "vit_small_patch16_rope_mixed_224", depth=3, embed_dim=24, num_heads=2, img_size=48
        )
    )
    student = exchanged(teacher, "sima")
    walked_truly(student, teacher, images(24, 3, (48, 48)), "blocks.2")
