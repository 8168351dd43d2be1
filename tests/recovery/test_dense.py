"""Segmenters and detectors recover too: their host attends, and what stands on it does not move."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import softless
from softless.convert.rehost import rehosted
from softless.errors import UsageError
from softless.models.scale import set_training_size, training_scale
from softless.recipes import get_recipe
from softless.recovery.dense import AnswerVectors, tile
from softless.recovery.pictures import Framing, Tiles, from_folder
from softless.tasks.detection.model import detector
from softless.tasks.loaded import load_run
from softless.tasks.segmentation.model import segmenter
from softless.training.loop import fit
from tests.convert.refit.small import alike, copied, hooks_of, images, lively, streams

SMALL: dict[str, Any] = {
    "op": "softmax",
    "embed_dim": 24,
    "depth": 4,
    "num_heads": 2,
    "in_chans": 1,
}
QUIET: dict[str, Any] = {"progress": False, "views": 1}


def segmenting(decoder: str = "dpt", name: str = "xcit_tiny_12_p16_224", **args: Any) -> Any:
    torch.manual_seed(0)
    model = segmenter(name, {**SMALL, **args}, classes=3, decoder=decoder, width=16)
    return lively(model)


def detecting(head: str = "retinanet", **settings: Any) -> Any:
    torch.manual_seed(0)
    args = {**SMALL, "patch_size": 8} | settings.pop("args", {})
    return lively(detector("xcit_tiny_12_p8_224", args, classes=2, width=16, head=head, **settings))


MODELS: dict[str, Any] = {
    "dpt": segmenting,
    "upernet": lambda: segmenting("upernet"),
    "retinanet": lambda: detecting(min_size=None),
    "maskrcnn, resized": lambda: detecting("maskrcnn", min_size=96),
}


@pytest.mark.parametrize("name", ["dpt", "upernet", "retinanet", "maskrcnn, resized"])
def test_the_maps_come_near_and_the_head_stays(name: str):
    teacher = MODELS[name]()
    teacher.features.host.blocks[0].norm1.weight.requires_grad_(False)
    set_training_size(teacher, 64, 96)
    before = copied(teacher)
    x = images(40, size=(72, 60))  # no multiple of anything
    recovered = softless.recover(teacher, "sima", images=x, **QUIET)
    assert alike(teacher.state_dict(), before)
    assert hooks_of(recovered.model) == hooks_of(teacher)
    student: Any = recovered.model
    inside = [key for key in before if "features.host." not in key]
    assert inside
    assert all(torch.equal(student.state_dict()[key], before[key]) for key in inside)
    assert student.host.construction.op == "sima"
    assert teacher.host.construction.op == "softmax"
    assert training_scale(student) == training_scale(teacher)
    assert not student.features.host.blocks[0].norm1.weight.requires_grad
    near = recovered.nearness
    assert near["refit"].cosine > near["bare"].cosine
    if name in {"dpt", "upernet"}:
        assert near["refit"].kl < near["bare"].kl
        assert near["refit"].agreement > near["bare"].agreement
        assert student(x[:2]).shape == (2, 3, 72, 60)
    else:
        assert near["refit"].agreement is None
        assert set(student(x[:1])[0]) == set(teacher(x[:1])[0])


def test_the_told_stream_is_that_of_the_model_as_it_sees_images():
    """A detector that resizes its images is fitted on resized ones."""
    teacher = detecting(min_size=96)
    x = images(24, size=(64, 64))
    recovered = softless.recover(teacher, "sima", images=x, **QUIET)
    grids: list[int] = []
    hook = teacher.features.host.blocks[0].register_forward_hook(
        lambda _, args, __: grids.append(args[0].shape[1])
    )
    teacher(x[:1])
    hook.remove()
    assert grids == [144], "96 x 96 pixels in patches of 8"
    assert recovered.refit is not None
    bare, _ = rehosted(teacher, "sima", {})
    path, new = "features.host.blocks.3", images(16, size=(64, 64), seed=7)

    def apart(model: Any) -> float:
        framed = teacher.framed(new)
        mine, goal = (
            streams(each.features, [path.removeprefix("features.")], framed)[
                path.removeprefix("features.")
            ]
            for each in (model, teacher)
        )
        return float((mine - goal).norm() / goal.norm())

    assert apart(recovered.model) < apart(bare)


def test_answers_as_vectors_are_compared_by_a_mean_over_pixels():
    model, other = segmenting(), segmenting()
    with torch.no_grad():
        for weight in other.decoder.parameters():
            weight.mul_(1.1)
        x = images(3, size=(64, 64))
        first, second = (AnswerVectors(each)(x) for each in (model, other))
        cosine = torch.nn.functional.cosine_similarity(first, second, dim=1)
        shares = [each(x).softmax(1) for each in (model, other)]
    coefficient = (shares[0] * shares[1]).sqrt().sum(1).mean((1, 2))
    torch.testing.assert_close(cosine, coefficient, rtol=1e-5, atol=1e-5)
    assert float(coefficient.max()) < 0.9999


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dpt", "retinanet"])
def test_a_distillation_brings_them_nearer(name: str, tmp_path: Path):
    teacher = MODELS[name]()
    x = images(24, size=(64, 64))
    before = copied(teacher)
    recovered = softless.recover(
        teacher,
        "sima",
        images=x,
        steps=("distil",),
        epochs=3,
        lr=3e-3,
        out=tmp_path / "run",
        **QUIET,
    )
    near = recovered.nearness
    assert recovered.kept == "distil"
    measure = "kl" if name == "dpt" else "cosine"
    sign = -1 if name == "dpt" else 1
    assert sign * getattr(near["distil"], measure) > sign * getattr(near["bare"], measure)
    assert alike(teacher.state_dict(), before)
    assert type(recovered.model) is type(teacher)
    assert not recovered.model.training


def photographs(folder: Path, count: int = 8) -> Path:
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(count):
        pixels = generator.integers(0, 255, (50 + 20 * number, 90), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def test_images_of_several_sizes_are_cut_into_tiles_of_the_training_size(tmp_path: Path):
    folder = photographs(tmp_path / "images")
    teacher = segmenting()
    teacher.pretrained_cfg = {"input_size": (1, 64, 96), "mean": (0.5,), "std": (0.5,)}
    with pytest.raises(UsageError, match="does not know at which size it was trained"):
        softless.recover(teacher, "sima", images=folder, **QUIET)
    set_training_size(teacher, 64, 96)
    gathered = from_folder(folder, Framing.of(teacher), 20)
    fit, measured = gathered.fit, gathered.measure
    assert isinstance(fit, Tiles)
    assert isinstance(measured, Tiles)
    assert (sum(map(len, fit)), sum(map(len, measured))) == (20, 10)
    files = [{tiles.samples.files[row] for row in tiles.chosen} for tiles in (fit, measured)]
    assert (len(files[0]), len(files[1]), len(files[0] & files[1])) == (6, 2, 0)
    assert {tuple(chunk.shape[1:]) for chunk in fit} == {(1, 64, 96)}
    assert all(torch.equal(a, b) for a, b in zip(fit, fit, strict=True))
    assert len({float(image.sum()) for chunk in fit for image in chunk}) > 12
    recovered = softless.recover(teacher, "sima", images=folder, number=20, **QUIET)
    assert recovered.refit is not None
    assert (recovered.refit.images, recovered.nearness["refit"].images) == (20, 10)
    again = softless.recover(teacher, "sima", images=folder, number=20, **QUIET)
    assert alike(recovered.model.state_dict(), again.model.state_dict())


@pytest.mark.parametrize("size", [(20, 30), (50, 30), (20, 90), (64, 96)])
def test_a_tile_lies_within_its_image_or_is_filled_up(size: tuple[int, int]):
    image = 1 + torch.arange(50 * 90.0).reshape(1, 50, 90)
    places = [tile(image, size, key) for key in range(12)]
    for part in places:
        assert part.shape == (1, *size)
        height, width = min(size[0], 50), min(size[1], 90)
        seen: Tensor = part[0, :height, :width]
        assert bool((seen > 0).all())
        assert int((part > 0).sum()) == height * width
        if width > 1:
            assert torch.equal(seen[:, 1:] - seen[:, :-1], torch.ones(height, width - 1))
    free = size[0] < 50 or size[1] < 90
    assert (len({float(part[0, 0, 0]) for part in places}) > 1) == free


@pytest.mark.parametrize(
    "settings", [{"labels": True}, {"labels": torch.zeros(24)}, {"classes": ("a", "b", "c")}]
)
def test_labels_of_images_are_none_of_pixels(settings: dict[str, Any]):
    with pytest.raises(UsageError, match="labels and classes are of classifiers"):
        softless.recover(segmenting(), "sima", images=images(24), **settings, **QUIET)


def test_a_model_of_maps_that_came_exchanged():
    teacher = segmenting()
    student, _ = rehosted(teacher, "relu_linear", {})
    before = copied(student)
    recovered = softless.recover(student, teacher=teacher, images=images(24), **QUIET)
    assert recovered.op == "relu_linear"
    assert alike(student.state_dict(), before)
    near = recovered.nearness
    assert near["refit"].cosine > near["bare"].cosine


def test_a_host_under_a_head_is_cut_as_the_old_one_was():
    """Blocks that no map needs are not there, in either."""
    teacher = segmenter(
        "xcit_tiny_12_p16_224", {**SMALL, "depth": 6}, classes=2, width=16, layers=(1, 2, 3, 4)
    )
    student, unseen = rehosted(copy.deepcopy(teacher).eval(), "sima", {})
    assert not unseen
    assert len(student.features.host.blocks) == 4  # type: ignore[union-attr,arg-type]
    assert list(student.state_dict()) == list(teacher.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vessels", "nuclei"])
def test_a_run_recovers_on_the_images_that_it_was_trained_on(name: str, tmp_path: Path):
    """What lies beside the images and the images of its test are left alone."""
    recipe = get_recipe(name).quick(tmp_path / "data")
    fit(recipe, tmp_path / "run", device="cpu", progress=False)
    run, data = load_run(tmp_path / "run"), Path(str(recipe.data.path))
    before = copied(run.model)
    recovered = softless.recover(
        run, "relu_linear", images=data, number=8, out=tmp_path / "out", **QUIET
    )
    assert alike(run.model.state_dict(), before)
    read = from_folder(data, Framing.of(run), 8)
    assert isinstance(read.fit, Tiles)
    files = read.fit.samples.files
    assert {Path(file).name for file in files} == {
        path.name for path in (data / "images/train").iterdir()
    }
    near = recovered.nearness
    assert near["refit"].cosine > near["bare"].cosine
    assert (tmp_path / "out/report.html").is_file()
    state = load_file(tmp_path / "out/model.safetensors")
    assert alike(recovered.model.state_dict(), state)
