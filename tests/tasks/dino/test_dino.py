"""DINO: its schedules, what moves and what does not, what collapses, and that a run continues and
divides.
"""

import json
import math
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from softless.errors import DataError, UsageError
from softless.experiment.groups import DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.tasks.dino.model import SelfDistillation, entropy, spread
from softless.tasks.dino.settings import DinoSpec
from softless.tasks.dino.task import Dino, Watched
from softless.tasks.loaded import load_run
from softless.tasks.table import open_task
from softless.tasks.task import TrainingProgress
from softless.training import fit
from softless.training.model import build_for
from softless.training.optim import optimizer
from tests.data.making import noise
from tests.processes import run_ranks
from tests.training.conftest import write_npz
from tests.training.ends import end_of
from tests.training.test_world import logged
from tests.training.zygote import Zygote


@pytest.fixture
def tiny(tmp_path: Path) -> Recipe:
    return tiny_recipe(write_npz(tmp_path / "images.npz"))


@pytest.fixture(scope="module")
def zygote() -> Iterator[Zygote]:
    parent = Zygote()
    yield parent
    parent.close()


def tiny_recipe(path: Path) -> Recipe:
    """Four steps an epoch of an XCiT with 4 tokens for a global crop and one for a local one."""
    args = {"embed_dim": 16, "depth": 2, "num_heads": 2, "cls_attn_layers": 2}
    return Recipe(
        name="tiny",
        summary="for tests",
        model=ModelSpec("xcit_nano_12_p8_224", "sima", args),
        data=DataSpec(source="npz", path=str(path), image_size=16, in_chans=1, crop_pct=1.0),
        optim=OptimSpec(lr=5e-3, base_batch=None, weight_decay=0.04, clip_grad=1.0),
        schedule=ScheduleSpec(epochs=3, warmup_epochs=1),
        dino=DinoSpec(
            outputs=32,
            hidden=16,
            bottleneck=8,
            momentum=(0.9, 1.0),
            local_crops=2,
            local_size=8,
            teacher_temp_epochs=2,
        ),
        batch_size=12,
        drop_path=0.1,
        metric="last",
        threads=1,
    )


def opened(recipe: Recipe) -> tuple[Dino, SelfDistillation]:
    task = open_task(recipe)
    assert isinstance(task, Dino)
    network = build_for(task)
    assert isinstance(network, SelfDistillation)
    return task, network


def batch_of(task: Dino, epoch: int = 0) -> tuple[list[Tensor], float]:
    loader = task.train_loader(0, 1)
    loader.set_epoch(epoch)
    return task.prepare(next(iter(loader)), torch.device("cpu"), epoch=epoch, step=0)


def state(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def at(update: int, total: int = 12, epoch: int = 0) -> TrainingProgress:
    return TrainingProgress(update, total, epoch, 3, update % 4)


def test_views_are_two_global_and_the_local_ones(tiny: Recipe):
    views, temperature = batch_of(open_task(tiny))  # type: ignore[arg-type]
    assert [tuple(view.shape) for view in views] == [(12, 1, 16, 16)] * 2 + [(12, 1, 8, 8)] * 2
    assert temperature == 0.04
    again, _ = batch_of(open_task(tiny))  # type: ignore[arg-type]
    assert all(torch.equal(a, b) for a, b in zip(views, again, strict=True)), (
        "drawn from seed, epoch and position"
    )
    other, _ = batch_of(open_task(tiny), epoch=1)  # type: ignore[arg-type]
    assert not torch.equal(views[0], other[0])


def test_schedules_are_their_formulas(tiny: Recipe):
    task, network = opened(tiny)
    assert [task.teacher_temp(epoch) for epoch in range(4)] == pytest.approx([
        0.04,
        0.055,
        0.07,
        0.07,
    ])
    mover = optimizer(tiny, network)
    fixed = [group["weight_decay"] == 0 for group in mover.param_groups]
    assert any(fixed)
    assert not all(fixed)
    for update in range(12):
        task.before_step(network, mover, at(update))
        cosine = (1 + math.cos(math.pi * update / 11)) / 2
        found = [group["weight_decay"] for group in mover.param_groups]
        expected = 0.4 - (0.4 - 0.04) * cosine
        assert found == pytest.approx([0.0 if still else expected for still in fixed])
        student, before = dict(network.student.named_parameters()), state(network.teacher)
        with torch.no_grad():
            student["head.layers.0.weight"].add_(0.1)
        task.after_step(network, at(update))
        momentum = 1.0 - (1.0 - 0.9) * cosine
        for name, value in network.teacher.named_parameters():
            torch.testing.assert_close(
                value, momentum * before[name] + (1 - momentum) * student[name]
            )


def test_the_teacher_starts_as_the_student_and_has_no_gradient(tiny: Recipe):
    task, network = opened(tiny)
    for (name, ours), theirs in zip(
        network.student.named_parameters(), network.teacher.parameters(), strict=True
    ):
        assert torch.equal(ours, theirs), name
    network(*batch_of(task)).backward()
    assert all(parameter.grad is None for parameter in network.teacher.parameters())
    still = [
        name
        for name, value in network.student.named_parameters()
        if value.requires_grad and value.grad is None
    ]
    assert still == []
    moved = {
        id(value) for group in optimizer(tiny, network).param_groups for value in group["params"]
    }
    assert moved == {id(value) for value in network.student.parameters() if value.requires_grad}


def test_the_loss_and_the_centre_are_the_papers(tiny: Recipe):
    """Written out: every pair of a global view of the teacher and another view of the student; then
    the centre moves.
    """
    task, network = opened(replace(tiny, drop_path=0.0))
    views, _ = batch_of(task)
    network.loss.center.copy_(torch.linspace(-0.1, 0.1, 32))
    before = network.loss.center.clone()
    with torch.no_grad():
        taught = network.teacher(torch.cat(views[:2])).chunk(2)
        said = [
            *network.student(torch.cat(views[:2])).chunk(2),
            *network.student(torch.cat(views[2:])).chunk(2),
        ]
    terms = [
        -(((t - before[0]) / 0.05).softmax(-1) * (s / 0.1).log_softmax(-1)).sum(-1)
        for i, t in enumerate(taught)
        for j, s in enumerate(said)
        if i != j
    ]
    assert len(terms) == 6
    torch.testing.assert_close(network(views, 0.05), torch.stack(terms).mean())
    mean = torch.cat(taught).mean(0)
    torch.testing.assert_close(network.loss.center[0, 0], 0.9 * before[0, 0] + 0.1 * mean)


def test_the_last_layer_waits(tiny: Recipe):
    task, network = opened(tiny)
    mover = optimizer(tiny, network)
    for epoch, frozen in ((0, True), (1, False)):
        network(*batch_of(task)).backward()
        task.before_step(network, mover, at(0, epoch=epoch))
        last = network.student.head.last_layer  # type: ignore[union-attr]
        assert (last.weight_v.grad is None) == frozen  # type: ignore[union-attr]


def test_what_is_kept_is_the_teachers_backbone(tiny: Recipe, tmp_path: Path):
    result = fit(tiny, tmp_path / "run", device="cpu", progress=False)
    assert result.best_epoch == 3
    assert result.test is not None
    assert result.test["seen"] == result.test["expected"] == 15
    loaded = load_run(tmp_path / "run")
    assert loaded.task == "dino"
    assert loaded.model(torch.zeros(1, 1, 16, 16)).shape == (1, 16)
    assert loaded.model(torch.zeros(1, 1, 24, 8)).shape == (1, 16)
    line = logged(tmp_path / "run")[-1]["val"]
    assert 0 < line["entropy"] <= 1
    assert 0 < line["used"] <= 1
    import timm

    published = timm.create_model(f"local-dir:{tmp_path / 'run/model'}", pretrained=True).eval()
    with torch.no_grad():
        image = torch.randn(2, 1, 16, 16)
        torch.testing.assert_close(published(image), loaded.model(image))


def test_collapse_is_seen():
    apart = torch.randn(200, 64)
    assert spread(apart) == pytest.approx(1.0, abs=0.05)
    alike = torch.randn(1, 64) + 1e-4 * apart
    assert spread(alike) < 1e-3
    even = torch.full((5, 8), 1 / 8)
    torch.testing.assert_close(entropy(even), torch.ones(5))
    torch.testing.assert_close(entropy(torch.eye(8)), torch.zeros(8))
    assert not Watched(0.5, 0.5, 0.9, 9, 9).collapsed
    assert Watched(0.001, 0.5, 0.9, 9, 9).collapsed, "one feature for all"
    assert Watched(0.5, 1.0, 1.0, 9, 9).collapsed, "all outputs alike"
    assert Watched(0.5, 1e-4, 1e-4, 9, 9).collapsed, "one output for all"
    assert not Watched(0.5, None, None, 9, 9).collapsed


def test_without_centre_and_sharpening_it_collapses(tiny: Recipe):
    """The negative control: with the teacher's temperature at the student's ten and no centre,
    every answer is uniform.
    """
    task, network = opened(tiny.with_fields(**{"dino.teacher_temp": (10.0, 10.0)}))
    features = network.teacher.backbone(batch_of(task)[0][0])  # type: ignore[operator]
    assert float(entropy(network.said_of(features, 10.0)).mean()) > 0.999
    assert float(entropy(network.said_of(features, 0.004)).mean()) < 0.95


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"ema_decay": 0.9}, "average of the weights already"),
        (
            {"optim.weight_decay": 0.0},
            r"weight decay rises from optim.weight_decay=0.0 to dino.weight_decay_end=0.4",
        ),
        ({"optim.layer_decay": 0.7}, "layer_decay is for fine-tuning"),
        (
            {"dino.momentum": (0.9, 1.1)},
            r"dino.momentum=\(0.9, 1.1\) is out of range: .* in \[0, 1\]",
        ),
        ({"dino.teacher_temp": (0.0, 0.07)}, "dino.teacher_temp"),
        ({"dino.local_scale": (0.5, 0.1)}, "dino.local_scale"),
        ({"batch_size": 100}, "48 training images are fewer than a step takes"),
        ({"metric": "top1"}, "no measure of dino named 'top1'"),
        ({"augment.mixup": 0.5}, "the fields of augment are for classification"),
    ],
)
def test_settings_without_effect_are_refused(tiny: Recipe, fields: dict, said: str):
    with pytest.raises(UsageError, match=said):
        open_task(tiny.with_fields(**fields))


def test_a_local_size_that_does_not_fit_is_refused(tiny: Recipe):
    with pytest.raises(UsageError, match=r"takes no local crops of 12 pixels .* patches are 8 x 8"):
        opened(tiny.with_fields(**{"dino.local_size": 12}))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "resnet18", "cvt_13_224"])
def test_other_hosts_take_views_of_several_sizes(tiny: Recipe, name: str):
    small: dict[str, Any] = {
        "vit_tiny_patch16_224": {"patch_size": 8, "embed_dim": 16, "depth": 1, "num_heads": 2},
        "cvt_13_224": {"embed_dims": (8, 16, 16), "depths": (1, 1, 1), "num_heads": (1, 1, 1)},
    }
    fields = {"data.image_size": 32, "dino.local_size": 16}
    recipe = replace(tiny, model=ModelSpec(name, None, small.get(name, {}))).with_fields(**fields)
    task, network = opened(recipe)
    assert network(*batch_of(task)).isfinite()
    assert json.dumps(task.construction())


def test_images_without_classes(tmp_path: Path):
    for index in range(12):
        noise(seed=index).save(_made(tmp_path / "plain") / f"{index:02}.png")
        noise(seed=index).save(
            _made(tmp_path / "parts/train/deeper" if index > 8 else tmp_path / "parts/train")
            / f"{index:02}.png"
        )
        noise(seed=99 + index).save(_made(tmp_path / "parts/test") / f"{index:02}.png")
    recipe = tiny_recipe(tmp_path)
    data = replace(
        recipe.data, source="folder", in_chans=3, path=str(tmp_path / "plain"), val_fraction=0.25
    )
    splits = open_task(replace(recipe, data=data, batch_size=4)).splits
    assert (len(splits.train), len(splits.val), splits.test, splits.classes) == (9, 3, None, ())
    limited = open_task(replace(recipe, data=replace(data, limit=5), batch_size=4)).splits
    assert len(limited.train) == 5
    parts = open_task(
        replace(recipe, data=replace(data, path=str(tmp_path / "parts")), batch_size=4)
    ).splits
    assert parts.test is not None
    assert (len(parts.train), len(parts.val), len(parts.test)) == (9, 3, 12)
    assert parts.test.name(0) == "test/00.png"
    with pytest.raises(DataError, match="no data folder at"):
        open_task(replace(recipe, data=replace(data, path=str(tmp_path / "gone"))))


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.slow
def test_an_interrupted_run_ends_as_one_that_was_not(tiny: Recipe, tmp_path: Path, zygote: Zygote):
    """Killed while it saved, and later told to stop: teacher, centre and schedules continue bit for
    bit.
    """
    recipe = tiny.with_fields(**{"save.every_steps": 3, "schedule.epochs": 5})
    assert zygote.run(tmp_path / "whole", recipe) == 0
    assert zygote.run(tmp_path / "cut", recipe, "die in save") == -9
    assert zygote.run(tmp_path / "cut", recipe, "step", resume=True) == 143
    assert zygote.run(tmp_path / "cut", recipe, resume=True) == 0, (
        tmp_path / "cut/said.txt"
    ).read_text()
    assert end_of(tmp_path / "cut/run") == end_of(tmp_path / "whole/run")


@pytest.mark.slow
def test_two_processes_train_like_one(tiny: Recipe, tmp_path: Path):
    """The same global batches: losses, spread and the teacher's entropy agree; XCiT's BatchNorm and
    the centre see both ranks.
    """
    recipe = replace(tiny, drop_path=0.0)
    one = fit(recipe, tmp_path / "one", device="cpu", progress=False)
    (tmp_path / "recipe.pickle").write_bytes(pickle.dumps(recipe))
    run_ranks("-c", SCRIPT, str(tmp_path))
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-4)
        for name in ("spread", "entropy", "used"):
            assert b["val"][name] == pytest.approx(a["val"][name], rel=2e-3), name
        assert b["val"]["seen"] == b["val"]["expected"] == 18
    two = json.loads((tmp_path / "two/result.json").read_text())["test"]
    assert one.test is not None
    assert two["spread"] == pytest.approx(one.test["spread"], rel=2e-3)
    assert two["seen"] == 15


SCRIPT = """
import pickle, sys
from pathlib import Path
from softless.training import fit
folder = Path(sys.argv[1])
fit(pickle.loads((folder / "recipe.pickle").read_bytes()), folder / "two", device="cpu", progress=False)
"""
