"""A student learns its teacher's answers under the durable loop, and never ends below its start."""

import copy
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import softless
from softless.data.samples import ArraySamples
from softless.errors import DataError, DivergedError, ResumeMismatch, UsageError
from softless.experiment.candidates import best_of, better
from softless.experiment.groups import AugmentSpec, DataSpec
from softless.models.given import model_given
from softless.recovery.distil import Distilled, distil
from softless.report.runs import read_run
from softless.tasks.distillation.settings import DistillationSpec
from softless.tasks.distillation.task import DistillationLoss
from softless.tasks.loaded import load_run
from softless.training import loop
from tests.conftest import ROOT
from tests.training.ends import end_of
from tests.training.test_loop import lines

SIZE = (16, 24)
LAST = "blocks.1.*"


def teacher_of(classes: int = 4, channels: int = 1, seed: int = 0, **args: Any) -> nn.Module:
    """A ViT of six patches whose answers and attention differ from image to image."""
    torch.manual_seed(seed)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=SIZE,
        patch_size=8,
        embed_dim=24,
        depth=2,
        num_heads=2,
        num_classes=classes,
        in_chans=channels,
        **args,
    )
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if name.endswith("weight") and weight.ndim == 2:
                nn.init.normal_(weight, std=1.5 / weight.shape[1] ** 0.5)
    return model.eval()


def student_of(teacher: nn.Module, op: str = "sima", layers: str = "*") -> nn.Module:
    student = copy.deepcopy(teacher)
    softless.swap(student, op, layers=layers)
    return student


def images_of(count: int = 64, channels: int = 1, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(count, channels, 4, 6, generator=generator)
    return F.interpolate(base, SIZE, mode="bilinear") + 0.1 * torch.randn(
        count, channels, *SIZE, generator=generator
    )


QUICK: dict[str, Any] = {
    "epochs": 3,
    "batch_size": 8,
    "lr": 2e-3,
    "min_steps": None,
    "device": "cpu",
    "progress": False,
}


def run(
    out: Path, student: nn.Module, teacher: nn.Module, images: Any = None, **fields: Any
) -> Distilled:
    images = images_of() if images is None else images
    return distil(student, teacher, images, out=out, **{**QUICK, **fields})


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def alike(a: Any, b: Any) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_learns_and_the_student_holds_what_was_kept(tmp_path: Path):
    teacher = teacher_of()
    student = student_of(teacher)
    before, theirs = copied(student), copied(teacher)
    student.blocks[0].norm1.bias.requires_grad_(False)  # type: ignore[index,union-attr]
    reached = run(tmp_path / "run", student, teacher, epochs=8)
    log = lines(tmp_path / "run")
    assert [line["epoch"] for line in log] == list(range(9))
    assert log[0]["start"]
    assert "train_loss" not in log[0]
    assert reached.start == log[0]["val"]
    assert reached.best["kl"] < 0.8 * reached.start["kl"]
    assert reached.best["agreement"] >= reached.start["agreement"]
    assert not reached.kept_start
    kept = load_file(tmp_path / "run/best.safetensors")
    assert alike(student.state_dict(), kept)
    assert alike(teacher.state_dict(), theirs), "the teacher is never changed"
    moved = {name for name in before if not torch.equal(before[name], kept[name])}
    frozen = {"blocks.0.norm1.bias"}
    assert moved == {name for name, _ in student.named_parameters()} - frozen
    assert {name for name, p in student.named_parameters() if not p.requires_grad} == frozen
    assert all(p.requires_grad for p in teacher.parameters())
    assert not student.training
    assert "is kept" in str(reached)
    json.dumps(reached.to_dict())


def test_a_run_that_only_spoils_keeps_its_start_to_the_bit(tmp_path: Path):
    teacher = teacher_of()
    student = student_of(teacher, layers=LAST)
    before = copied(student)
    reached = run(tmp_path / "run", student, teacher, lr=1.0)
    assert reached.kept_start
    assert reached.run.best_epoch == 0
    assert reached.best == reached.start
    assert alike(student.state_dict(), before)
    assert alike(load_file(tmp_path / "run/best.safetensors"), before)
    assert [line["kept"] for line in lines(tmp_path / "run")] == [True, False, False, False]
    with model_given(student_of(teacher, layers=LAST)):
        assert alike(load_run(tmp_path / "run").model.state_dict(), before)
    assert "no epoch was better than the start" in (tmp_path / "run/report.html").read_text()
    other = student_of(teacher_of(seed=5), layers=LAST)
    again = run(tmp_path / "run", other, teacher, lr=1.0, resume=True)
    assert again.run == reached.run
    assert alike(other.state_dict(), before), "a finished run is read"


def test_of_epochs_that_agree_as_often_the_lower_divergence_wins():
    def line(epoch: int, agreement: float, loss: float) -> dict[str, Any]:
        return {"epoch": epoch, "val": {"agreement": agreement, "loss": loss}}

    start = best_of(line(0, 0.9, 0.2), "agreement")
    assert better(best_of(line(1, 0.9, 0.1), "agreement"), start)
    assert not better(best_of(line(1, 0.9, 0.2), "agreement"), start), "the start stays"
    assert not better(best_of(line(1, 0.8, 0.1), "agreement"), start)


def test_a_state_that_explodes_leaves_the_start_in_the_student(tmp_path: Path, monkeypatch):
    teacher = teacher_of()
    student = student_of(teacher)
    before = copied(student)
    monkeypatch.setattr(
        DistillationLoss,
        "forward",
        lambda self, images, *_: self.model(images).sum() * float("nan"),
    )
    with pytest.raises(DivergedError):
        run(tmp_path / "run", student, teacher)
    assert alike(student.state_dict(), before)


@pytest.mark.parametrize(("only", "step"), [("all", 1), ("all", 12), ("attention", 9), ("lora", 9)])
def test_a_run_that_was_cut_ends_with_the_same_bits(
    tmp_path: Path, monkeypatch, only: str, step: int
):
    teacher = teacher_of()
    fields = {"only": only, "rank": 4}
    whole = student_of(teacher, "seqnorm")
    run(tmp_path / "whole", whole, teacher, **fields)
    inner, calls = loop.train_step, []

    def dies(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == step:
            raise KeyboardInterrupt
        return inner(*args)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dies)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", student_of(teacher, "seqnorm"), teacher, **fields)
    other = student_of(teacher_of(seed=5), "seqnorm")  # its weights do not matter any more
    again = run(tmp_path / "cut", other, teacher, resume=True, **fields)
    assert end_of(tmp_path / "whole") == end_of(tmp_path / "cut")
    assert alike(other.state_dict(), whole.state_dict())
    assert (
        again.run.best_epoch
        == json.loads((tmp_path / "whole/result.json").read_text())["best_epoch"]
    )


@pytest.mark.parametrize("when", ["measuring", "before its checkpoint"])
def test_a_start_that_was_cut_is_measured_again(tmp_path: Path, monkeypatch, when: str):
    teacher = teacher_of()
    run(tmp_path / "whole", student_of(teacher), teacher)
    name = "validate" if when == "measuring" else "checkpoint"

    def dies(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        if name == "validate":
            patch.setattr(loop, "validate", dies)
        else:
            patch.setattr(softless.training.keep.checkpoint, "save", dies)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", student_of(teacher), teacher)
    run(tmp_path / "cut", student_of(teacher), teacher, resume=True)
    assert end_of(tmp_path / "whole") == end_of(tmp_path / "cut")


CHILD = """
import sys, torch
torch.set_num_threads(1)
from pathlib import Path
from tests.recovery.test_distil import images_of, run, student_of, teacher_of
import softless.training.loop as loop
inner = loop.train_step
def slow(*args):
    import time
    time.sleep(0.05)
    return inner(*args)
if "slow" in sys.argv:
    loop.train_step = slow
teacher = teacher_of()
run(Path(sys.argv[1]), student_of(teacher), teacher, resume="resume" in sys.argv)
"""


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_process_that_was_killed_ends_with_the_same_bits(tmp_path: Path, number: signal.Signals):
    def child(folder: str, *words: str) -> Any:
        return subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path / folder), *words],
            stderr=subprocess.DEVNULL,
            cwd=ROOT,
        )

    assert child("whole").wait() == 0
    process = child("cut", "slow")
    log, deadline = tmp_path / "cut/log.jsonl", time.monotonic() + 120
    while time.monotonic() < deadline and (not log.exists() or log.read_text().count("\n") < 2):
        time.sleep(0.01)
    time.sleep(0.12)  # within the second epoch
    process.send_signal(number)
    assert process.wait() in {-signal.SIGKILL, 1, 130}
    assert not (tmp_path / "cut/result.json").exists()
    assert child("cut", "resume").wait() == 0
    assert end_of(tmp_path / "whole") == end_of(tmp_path / "cut")


RANK = """
import sys
from pathlib import Path
from tests.recovery.test_distil import run, student_of, teacher_of
teacher = teacher_of()
run(Path(sys.argv[1]), student_of(teacher), teacher, only="lora", rank=4)
"""


@pytest.mark.slow
def test_two_processes_reach_what_one_does(tmp_path: Path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    two = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    for name, words in (("one", []), ("two", two)):
        subprocess.run(
            [sys.executable, *words, str(script), str(tmp_path / name)],
            check=True,
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        )
    for alone, shared in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert shared["epoch"] == alone["epoch"]
        assert shared["val"]["kl"] == pytest.approx(alone["val"]["kl"], rel=1e-4)
    one, two_ranks = (load_file(tmp_path / name / "best.safetensors") for name in ("one", "two"))
    for name, value in one.items():
        torch.testing.assert_close(two_ranks[name], value, atol=1e-4, rtol=1e-3)


def test_a_run_continues_with_its_own_teacher_alone(tmp_path: Path, monkeypatch):
    teacher = teacher_of()
    with monkeypatch.context() as patch:
        patch.setattr(loop, "run_epoch", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "run", student_of(teacher), teacher)
    other = copy.deepcopy(teacher)
    with torch.no_grad():
        other.head.bias[0] += 1e-3  # type: ignore[index,union-attr,operator]
    with pytest.raises(ResumeMismatch, match=r"cannot resume .*: it learns from another teacher"):
        run(tmp_path / "run", student_of(teacher), other, resume=True)
    with pytest.raises(ResumeMismatch, match="the data changed since"):
        run(tmp_path / "run", student_of(teacher), teacher, images_of(seed=2), resume=True)
    assert run(tmp_path / "run", student_of(teacher), teacher, resume=True).run.epochs == 3


def test_both_models_see_the_same_prepared_images(tmp_path: Path):
    teacher = teacher_of(channels=3)
    student = student_of(teacher)
    seen: dict[str, list[Tensor]] = {"student": [], "teacher": []}
    for name, model in (("student", student), ("teacher", teacher)):
        model.patch_embed.register_forward_pre_hook(  # type: ignore[union-attr]
            lambda _, args, name=name: seen[name].append(args[0].clone())
        )
    images = images_of(channels=3)
    run(tmp_path / "run", student, teacher, images, epochs=1)
    steps = [batch for batch in seen["teacher"] if len(batch) == 8 and batch.abs().sum() > 0]
    trained = steps[2:] if len(steps) > 8 else steps
    learned = [batch for batch in seen["student"] if len(batch) == 8]
    assert len(trained) >= 6
    assert all(any(torch.equal(batch, mine) for mine in learned) for batch in steps)
    changed = [b for b in trained if not any(torch.equal(b[0], image) for image in images)]
    assert len(changed) >= 6, "training images are changed"


def test_the_teacher_answers_as_in_evaluation_and_stays_in_its_mode(tmp_path: Path):
    """Its dropout never speaks; where the student is a copy of it, both agree at the start."""
    teacher = teacher_of(proj_drop_rate=0.5).train()
    student = copy.deepcopy(teacher)
    answers: list[tuple[Tensor, Tensor]] = []
    teacher.register_forward_hook(lambda _, args, answer: answers.append((args[0], answer)))
    reached = run(tmp_path / "run", student, teacher, epochs=1)
    assert reached.start["agreement"] == 1.0
    assert reached.start["kl"] == pytest.approx(0, abs=1e-9)
    twin = teacher_of(proj_drop_rate=0.5)
    with torch.no_grad():
        assert all(torch.equal(twin(images), answer) for images, answer in answers)
    assert not any(answer.requires_grad for _, answer in answers)
    assert teacher.training
    assert student.training


def test_the_loss_is_that_of_the_paper():
    torch.manual_seed(0)
    s, t, labels = torch.randn(5, 4), torch.randn(5, 4), torch.tensor([0, 3, -1, 1, -1])
    loss = DistillationLoss(nn.Identity(), DistillationSpec(temperature=2.0, labels=0.5))
    p, q = (t / 2).softmax(1), (s / 2).softmax(1)
    expected = 4 * (p * (p.log() - q.log())).sum(1).mean()
    known = labels >= 0
    truth = -(s.log_softmax(1)[known].gather(1, labels[known, None])).sum() / 5
    torch.testing.assert_close(loss(s, t, labels), expected + 0.5 * truth)
    features = DistillationLoss(nn.Identity(), DistillationSpec(compared="features"))
    distance = (F.normalize(s, dim=1) - F.normalize(t, dim=1)).square().sum(1).mean()
    torch.testing.assert_close(features(s, t, labels), distance)


@pytest.mark.parametrize("only", ["attention", "lora"])
def test_only_the_part_that_was_named_moves(tmp_path: Path, only: str):
    teacher = teacher_of()
    student = student_of(teacher)
    before = copied(student)
    reached = run(tmp_path / "run", student, teacher, only=only, rank=4, epochs=6)
    assert not reached.kept_start
    moved = {n for n, value in student.state_dict().items() if not torch.equal(value, before[n])}
    attention = {n for n in before if ".attn." in n}
    expected = attention if only == "attention" else {n for n in attention if n.endswith("weight")}
    assert moved == expected
    assert list(student.state_dict()) == list(before)
    assert all(p.requires_grad for p in student.parameters())
    assert reached.best["kl"] < reached.start["kl"]


def test_models_without_classes_are_compared_by_features(tmp_path: Path):
    teacher = teacher_of(classes=0)
    reached = run(tmp_path / "run", student_of(teacher), teacher, epochs=6)
    assert reached.best["cosine"] > reached.start["cosine"] + 0.02
    assert reached.best["agreement"] is None
    assert reached.run.metric == "cosine"


def test_labels_teach_and_tell_the_accuracy(tmp_path: Path):
    teacher = teacher_of()
    images = images_of(96)
    with torch.no_grad():
        truth = teacher(images).argmax(1)
    shifted = (truth + 1) % 4  # labels that contradict the teacher
    silent = run(tmp_path / "silent", student_of(teacher), teacher, (images, truth), epochs=4)
    assert silent.best["teacher_top1"] == 1.0
    assert silent.best["top1"] == silent.best["agreement"]
    student = student_of(teacher)
    fields = {"labels": True, "label_weight": 100.0, "epochs": 8}
    taught = run(tmp_path / "taught", student, teacher, (images, shifted), **fields)
    assert taught.best["teacher_top1"] == 0.0
    last = lines(tmp_path / "taught")[-1]["val"]
    assert last["top1"] > last["agreement"]


def class_folders(root: Path, names: tuple[str, ...], count: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for label, name in enumerate(names):
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = rng.integers(0, 90, (*SIZE, 3)) + 40 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index}.png")
    return root


COLOUR = DataSpec(image_size=SIZE, mean=(0.4,) * 3, std=(0.2,) * 3, crop_pct=1.0, workers=0)


def test_folders_stream_with_labels_or_without(tmp_path: Path):
    teacher = teacher_of(channels=3)
    root = class_folders(tmp_path / "images", ("b", "a", "d", "c"))
    labelled = run(tmp_path / "labelled", student_of(teacher), teacher, root, data=COLOUR)
    assert labelled.best["top1"] is not None
    assert labelled.best["seen"] == 8  # two of each class
    other = class_folders(tmp_path / "other", ("b", "a", "c"))
    foreign = run(tmp_path / "foreign", student_of(teacher), teacher, other, data=COLOUR)
    assert foreign.best["top1"] is None
    named = run(
        tmp_path / "named",
        student_of(teacher),
        teacher,
        other,
        data=COLOUR,
        classes=("c", "x", "b", "a"),
    )
    assert named.best["top1"] is not None
    with pytest.raises(UsageError, match="nothing says which class each output stands for"):
        run(tmp_path / "no", student_of(teacher), teacher, root, data=COLOUR, labels=True)
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        path.rename(flat / f"{number}.png")
    bare = run(tmp_path / "bare", student_of(teacher), teacher, flat, data=COLOUR)
    assert bare.best["top1"] is None
    assert bare.best["seen"] == 6


def test_samples_are_prepared_as_the_teacher_says(tmp_path: Path):
    teacher = teacher_of()
    teacher.pretrained_cfg = {  # type: ignore[assignment]
        "input_size": (1, *SIZE),
        "mean": (0.3,),
        "std": (0.2,),
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    pixels = (255 * torch.rand(40, *SIZE, generator=torch.Generator().manual_seed(0))).byte()
    samples = ArraySamples(pixels.numpy(), np.zeros(40), 1)
    student = student_of(teacher)
    run(tmp_path / "run", student, teacher, samples)
    best = json.loads((tmp_path / "run/best.json").read_text())
    assert (best["mean"], best["std"], best["image_size"]) == ([0.3], [0.2], list(SIZE))
    student.pretrained_cfg = {**teacher.pretrained_cfg, "std": (0.5,)}  # type: ignore[dict-item,assignment]
    with pytest.raises(UsageError, match="prepare their images in different ways"):
        run(tmp_path / "other", student, teacher, samples)


def test_targets_of_samples_that_no_output_has_are_left_alone(tmp_path: Path):
    teacher = teacher_of()
    samples = ArraySamples(np.zeros((16, *SIZE), np.uint8), np.arange(16), 1)
    reached = run(tmp_path / "run", student_of(teacher), teacher, samples, data=GREY)
    assert reached.best["top1"] is None


def test_a_longer_run_goes_on_and_the_first_lines_are_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    teacher = teacher_of()
    fields = {"only": "lora", "rank": 4, "progress": True}
    run(tmp_path / "run", student_of(teacher), teacher, epochs=4, **fields)
    shown = capsys.readouterr().err
    assert "epoch 0/4  the start  val loss" in shown
    assert "from three trial steps" in shown
    longer = run(tmp_path / "run", student_of(teacher), teacher, epochs=6, resume=True, **fields)
    assert longer.run.extended_from == [4]
    assert [line["epoch"] for line in lines(tmp_path / "run")] == list(range(7))


def test_the_page_and_the_list_of_runs_know_epoch_0(tmp_path: Path):
    teacher = teacher_of()
    run(tmp_path / "run", student_of(teacher), teacher, epochs=2)
    record = read_run(tmp_path / "run")
    assert [line["epoch"] for line in record.epochs] == [0, 1, 2]
    page = (tmp_path / "run/report.html").read_text()
    assert "Epoch 0 is the state before the first step" in page
    assert "Beside the teacher" in page
    state = softless.runs(tmp_path).runs[0]
    assert (state.state, state.epoch, state.epochs) == ("finished", 2, 2)
    assert state.metric == "agreement"


def test_few_images_have_more_epochs(tmp_path: Path):
    teacher = teacher_of()
    reached = run(tmp_path / "run", student_of(teacher), teacher, images_of(24), min_steps=10)
    assert reached.run.epochs == 5  # of two steps
    again = run(
        tmp_path / "small", student_of(teacher), teacher, images_of(8), epochs=2, batch_size=64
    )
    assert again.run.epochs == 2


def nan_in(images: Tensor) -> Tensor:
    images[5, 0, 0, 0] = torch.nan
    return images


def frozen(model: nn.Module) -> nn.Module:
    return model.requires_grad_(requires_grad=False)


def with_nan(model: nn.Module) -> nn.Module:
    with torch.no_grad():
        model.head.bias[1] = torch.nan  # type: ignore[union-attr,operator]
    return model


GREY = DataSpec(image_size=SIZE, in_chans=1, mean=(0.4,), std=(0.2,), crop_pct=1.0, workers=0)
BAD: dict[str, tuple[Callable[[nn.Module], dict[str, Any]], str]] = {
    "classes": (
        lambda _: {"teacher": teacher_of(classes=5)},
        "the student answers 4 classes and the teacher 5 classes",
    ),
    "features": (
        lambda _: {"teacher": teacher_of(classes=0)},
        "the student answers 4 classes and the teacher 24 features",
    ),
    "nan": (lambda _: {"images": nan_in(images_of())}, "image 5 has a value that is not finite"),
    "none": (lambda _: {"images": images_of()[:0]}, r"shape \(0, 1, 16, 24\)"),
    "few": (lambda _: {"images": images_of(7)}, "7 images are too few"),
    "size": (
        lambda _: {"images": images_of()[..., :16]},
        "the student takes no images of 1 channels and 16 x 16 pixels",
    ),
    "channels": (lambda _: {"images": images_of(channels=3)}, "takes no images of 3 channels"),
    "bytes": (lambda _: {"images": images_of().byte()}, "the images are torch.uint8"),
    "list": (lambda _: {"images": [1, 2]}, "images is a list: give a tensor"),
    "epochs": (lambda _: {"epochs": 0}, "epochs=0: a distillation has one at least"),
    "lr": (lambda _: {"lr": 0.0}, r"optim.lr"),
    "only": (lambda _: {"only": "head"}, "only='head': what moves is one of all, attention, lora"),
    "held_out": (lambda _: {"held_out": 1.0}, "data.val_fraction"),
    "rank": (lambda _: {"only": "lora", "rank": 24}, "rank=24: the layer blocks.0.attn.qkv"),
    "frozen": (
        lambda student: {"student": frozen(student), "only": "lora"},
        "blocks.0.attn.qkv of the student is frozen",
    ),
    "all frozen": (
        lambda student: {"student": frozen(student)},
        r"nothing in the student \(VisionTransformer\) may move",
    ),
    "nan weights": (
        lambda student: {"student": with_nan(student)},
        "head.bias of the student has numbers that are not finite",
    ),
    "nan teacher": (
        lambda _: {"teacher": with_nan(teacher_of())},
        "head.bias of the teacher has numbers that are not finite",
    ),
    "same": (lambda student: {"teacher": student}, "student and teacher are the same module"),
    "shared": (
        lambda student: {"teacher": copy.copy(student)},
        "student and teacher share cls_token",
    ),
    "half": (
        lambda student: {"student": student.half()},
        "cls_token of the student is torch.float16",
    ),
    "labels": (
        lambda _: {"labels": True},
        "labels are to teach the student, and they are not there",
    ),
    "targets": (
        lambda _: {"images": (images_of(), torch.arange(64) % 5)},
        "a target is class 4 and the models have 4 outputs",
    ),
    "classes named": (
        lambda _: {"classes": ("a", "b")},
        "2 classes are named and the models have 4",
    ),
    "mixup": (
        lambda _: {"augment": replace(AugmentSpec(), cutmix=0.0)},
        "augment.mixup=0.8 changes labels",
    ),
    "folder": (lambda _: {"images": "nowhere", "data": GREY}, "nowhere"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_what_cannot_be_is_one_sentence_and_touches_nothing(tmp_path: Path, name: str):
    change, message = BAD[name]
    student = student_of(teacher_of())
    parts = {"student": student, "teacher": teacher_of(), "images": images_of(), **change(student)}
    before, modes = copied(parts["student"]), [m.training for m in parts["student"].modules()]
    moving = [p.requires_grad for p in parts["student"].parameters()]
    chosen = [parts.pop(key) for key in ("student", "teacher", "images")]
    with pytest.raises((UsageError, DataError), match=message) as caught:
        run(tmp_path / "run", *chosen, **parts)
    assert "\n" not in str(caught.value)
    for key, value in before.items():
        assert torch.equal(chosen[0].state_dict()[key].nan_to_num(), value.nan_to_num())
    assert [m.training for m in chosen[0].modules()] == modes
    assert [p.requires_grad for p in chosen[0].parameters()] == moving
    assert not (tmp_path / "run/log.jsonl").exists()
