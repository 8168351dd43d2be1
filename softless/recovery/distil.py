"""`distil`: a student learns to answer images as its teacher does, by the durable trainer.

A recipe is built from the arguments and trained by `training.loop.fit`: checkpoints, signals,
resumption to the bit, log and page are those of every run. Student and teacher are held in this
process; the folder holds the student's weights and notes the teacher by its digest.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Literal, TypeAlias

import numpy as np
import timm.data
import torch
from torch import Tensor, nn

from softless.data.samples import Samples
from softless.errors import (
    DivergedError,
    Interrupted,
    ResumeMismatch,
    UsageError,
    located,
    need_module,
)
from softless.experiment.epochs import of_epoch
from softless.experiment.folder import REPORT, WEIGHTS, RunFolder
from softless.experiment.groups import AugmentSpec, DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.models.given import GIVEN, model_given, noted, noted_teacher, teacher_given
from softless.models.state import fill, read_weights
from softless.recovery.distilled import Distilled
from softless.recovery.light import light
from softless.saliency.viewer import channels_of, declared, normalisation
from softless.tasks import page
from softless.tasks.distillation.samples import GivenImages, TensorSamples, images_given
from softless.tasks.distillation.settings import DistillationSpec
from softless.tasks.distillation.task import outputs_of
from softless.training.loop import fit

Images: TypeAlias = Tensor | tuple[Tensor, Tensor] | Samples | str | Path
PARTS = ("all", "attention", "lora")
MIN_STEPS = 64  # a run on few images has more epochs until it has so many
BATCH = 64


def distil(
    student: nn.Module,
    teacher: nn.Module,
    images: Images,
    *,
    out: str | Path,
    epochs: int = 5,
    lr: float = 5e-4,
    only: Literal["all", "attention", "lora"] = "all",
    temperature: float = 2.0,
    labels: bool = False,
    label_weight: float = 1.0,
    held_out: float = 0.25,
    measured: Tensor | tuple[Tensor, Tensor] | Samples | None = None,
    rank: int = 8,
    batch_size: int = BATCH,
    min_steps: int | None = MIN_STEPS,
    augment: AugmentSpec | None = None,
    data: DataSpec | None = None,
    classes: Sequence[str] = (),
    limit: int | None = None,
    amp: Literal["none", "bfloat16", "float16"] = "none",
    device: str = "auto",
    seed: int = 0,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> Distilled:
    """Train a student to answer as its teacher, in place; the best epoch on held-out images is
    kept.

    Both models see the same prepared images. The state before the first step stands for election
    too, so the student never ends below its start. Models without classes (num_classes=0) are
    compared by their features. A run that was interrupted anywhere continues with `resume=True`
    and the same arguments, to the same bits.

    Args:
        student: (B, C, h, w) to (B, K); trained itself. On an error before training it is as it
            was.
        teacher: the same, with as many outputs; it is never changed.
        images: tensor (n, C, h, w) as the models take it, or (images, targets) with -1 where there
            is no label; a folder of images or of class folders; or samples.
        out: the run folder.
        epochs: passes over the images; more where they are fewer than `min_steps`.
        lr: rate at the top of a cosine with AdamW.
        only: what of the student moves: "all", the "attention", or "lora", updates of low rank
            that are merged in the end.
        temperature: of both models' answers in the loss.
        labels: whether the images' labels teach too.
        label_weight: weight of their cross-entropy beside the teacher's answers.
        held_out: share of the images that is measured and not learned from; a folder with a val
            part has its own.
        measured: images to measure on in place of that share, as `images` are.
        rank: of the updates of "lora".
        batch_size: images of a step; halved where an epoch would have fewer than two.
        min_steps: least number of steps; None counts epochs alone.
        augment: how training images are changed; None turns, shifts and scales small grey images
            a little, and crops others lightly.
        data: how pictures become tensors, for folders and samples; None asks the teacher's
            `pretrained_cfg`.
        classes: names of the outputs in order, where class folders have others or another order;
            needed where labels of class folders teach.
        limit: images to learn from at most, over all classes.
        amp: compute in bfloat16 or float16 where that is safe.
        device: auto, cpu, cuda, …
        seed: of order, changes and the cut.
        resume: continue the run in the folder; a finished one is read.
        overwrite: delete the run in the folder first.
        progress: show a bar, or lines where stderr is no terminal.

    Returns:
        The student with the weights that were kept, and its measures before and after.

    Raises:
        UsageError: models, images (DataError) or arguments cannot be used; a run to resume has
            another teacher (ResumeMismatch).
        DivergedError: loss or weights are not finite; the student has the best weights before.
        Interrupted: a signal came; the state is saved.
    """
    need_module(student, "distil")
    need_module(teacher, "distil")
    _check_arguments(epochs=epochs, only=only, label_weight=label_weight)
    _check_models(student, teacher)
    folder = located(out)
    in_memory = _given(images, measured)
    prepared = in_memory is not None and isinstance(in_memory.samples, TensorSamples)
    spec = _data(images, in_memory, student, teacher, data)
    spec = replace(spec, val_fraction=held_out, limit=limit)
    features = getattr(student, "num_classes", None) == 0
    recipe = Recipe(
        name="distil",
        summary="a student learns its teacher's answers",
        model=ModelSpec(name=GIVEN, args=noted(student)),
        data=spec,
        augment=light(spec) if augment is None else augment,
        optim=OptimSpec(lr=lr, base_batch=None, clip_grad=1.0),
        schedule=ScheduleSpec(
            epochs=epochs,
            warmup_epochs=int(epochs > 1),
            warmup_lr=lr / 100,
            min_lr=lr / 100,
            min_steps=min_steps,
            min_epoch_steps=2,
        ),
        distillation=DistillationSpec(
            teacher=noted_teacher(teacher),
            compared="features" if features else "answers",
            temperature=temperature,
            labels=label_weight if labels else 0.0,
            classes=tuple(classes),
            trained=only,
            rank=rank,
            prepared=prepared,
        ),
        batch_size=batch_size,
        metric="cosine" if features else "agreement",
        amp=amp,
        seed=seed,
    )
    _check_alike(student, teacher, recipe)
    if resume:
        _check_same_teacher(folder, recipe)
    with (
        model_given(student),
        teacher_given(teacher),
        images_given(in_memory),
        _as_they_were(student, teacher),
    ):
        try:
            reached = fit(
                recipe,
                folder,
                resume=resume,
                overwrite=overwrite,
                device=device,
                progress=progress,
            )
        except DivergedError:
            if (folder / WEIGHTS).is_file():
                _fill(student, folder)
            raise
        except Interrupted as error:
            message = str(error).partition("; continue with")[0]
            raise Interrupted(
                f"{message}; continue with the same call and resume=True", error.exit_code
            ) from error
        _fill(student, folder)
        if os.environ.get("RANK", "0") == "0":
            page.write([folder], folder / REPORT)
    lines = RunFolder(folder).epochs()
    return Distilled(student, reached, lines[0]["val"], of_epoch(lines, reached.best_epoch)["val"])


def _check_arguments(*, epochs: int, only: str, label_weight: float) -> None:
    if epochs < 1:
        raise UsageError(
            f"epochs={epochs}: a distillation has one at least; without any, leave it out of the "
            "steps"
        )
    if only not in PARTS:
        raise UsageError(f"only={only!r}: what moves is one of {', '.join(PARTS)}")
    if label_weight <= 0:
        raise UsageError(
            f"label_weight={label_weight:g}: it is above 0; labels=False leaves labels alone"
        )


def _check_models(student: nn.Module, teacher: nn.Module) -> None:
    """Two models of finite numbers that share no weight.

    Raises:
        UsageError: they are not; the first such tensor is named.
    """
    taken_by_teacher = {
        weight.data_ptr() for weight in teacher.state_dict().values() if weight.numel()
    }
    if student is teacher:
        raise UsageError(
            "student and teacher are the same module: give a copy of it as the teacher"
        )
    for name, weight in student.named_parameters():
        if weight.numel() and weight.data_ptr() in taken_by_teacher:
            raise UsageError(
                f"student and teacher share {name}, so the teacher would move: give a deep copy"
            )
        if weight.dtype != torch.float32:
            raise UsageError(
                f"{name} of the student is {weight.dtype}, and it is trained in float32: give "
                "student.float(), with amp='bfloat16' where that is to be fast"
            )
    for role, model in (("student", student), ("teacher", teacher)):
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
                raise UsageError(f"{name} of the {role} has numbers that are not finite")


def _check_alike(student: nn.Module, teacher: nn.Module, recipe: Recipe) -> None:
    """Both answer such images with as many numbers.

    Raises:
        UsageError: they do not.
    """
    classless = [getattr(model, "num_classes", None) == 0 for model in (student, teacher)]
    learned, taught = (
        outputs_of(model, recipe, role)
        for model, role in ((student, "student"), (teacher, "teacher"))
    )
    if learned != taught or classless[0] != classless[1]:
        counts = [
            f"{count} {'features' if none else 'classes'}"
            for count, none in zip((learned, taught), classless, strict=True)
        ]
        raise UsageError(
            f"the student answers {counts[0]} and the teacher {counts[1]}: give a teacher with "
            "the student's own"
        )


def _check_same_teacher(folder: Path, recipe: Recipe) -> None:
    stored = RunFolder(folder).recipe()
    before = None if stored is None else stored.distillation
    assert recipe.distillation is not None
    if before is not None and dict(before.teacher) != dict(recipe.distillation.teacher):
        raise ResumeMismatch(
            f"cannot resume {folder}: it learns from another teacher, by its class or its "
            "weights; give the one that it began with, or another out"
        )


def _given(images: Images, measured: Images | None) -> GivenImages | None:
    """Images that lie in memory or were opened already; None of a folder.

    Raises:
        UsageError: something else.
    """
    if isinstance(images, str | Path):
        if measured is not None:
            raise UsageError("measured=… goes with images in memory: a folder has a val part")
        return None
    samples, labelled = _samples(images)
    others = None if measured is None else _samples(measured)
    if others is not None and type(others[0]) is not type(samples):
        raise UsageError(
            f"images are {type(samples).__name__} and measured {type(others[0]).__name__}: give "
            "both alike"
        )
    return GivenImages(samples, labelled, None if others is None else others[0])


def _samples(images: Images) -> tuple[Samples, bool]:
    """Images as samples, and whether their targets are labels."""
    if isinstance(images, Tensor):
        return TensorSamples(images), False
    if isinstance(images, tuple) and len(images) == 2:
        return TensorSamples(*images), True
    if isinstance(images, Samples):
        return images, images.targets.ndim == 1 and len(np.unique(images.targets)) > 1
    raise UsageError(
        f"images is a {type(images).__name__}: give a tensor (n, C, h, w), (images, targets), a "
        "folder, or samples"
    )


def _data(
    images: Images,
    in_memory: GivenImages | None,
    student: nn.Module,
    teacher: nn.Module,
    data: DataSpec | None,
) -> DataSpec:
    """Where the images are, and how they become what both models take.

    Raises:
        UsageError: nothing says how, or the models do not agree.
    """
    if in_memory is not None and isinstance(in_memory.samples, TensorSamples):
        if data is not None:
            raise UsageError(
                "data=… says how pictures become tensors, and the images are tensors: leave it out"
            )
        channels, height, width = in_memory.samples.images.shape[1:]
        return DataSpec(
            source="given",
            image_size=height if height == width else (height, width),
            in_chans=channels,
            mean=(0.0,) * channels,
            std=(1.0,) * channels,
            workers=0,
        )
    source = _preparation(student, teacher) if data is None else data
    if in_memory is not None:
        return replace(source, source="given", path=None, workers=0)
    return replace(source, source="folder" if data is None else data.source, path=str(images))


def _preparation(student: nn.Module, teacher: nn.Module) -> DataSpec:
    """What the teacher's `pretrained_cfg` says of its images, which is the student's too."""
    mean, std = normalisation(teacher)
    channels, scale = channels_of(teacher), declared(teacher)
    if (mean, std, scale) != (*normalisation(student), declared(student)):
        raise UsageError(
            "student and teacher prepare their images in different ways (mean, std or range in "
            "their pretrained_cfg), and both see the same: give data=DataSpec(…)"
        )
    if len(mean) != channels:
        raise UsageError(
            f"the teacher's pretrained_cfg has the mean of {len(mean)} channels, and it takes "
            f"{channels}: give data=DataSpec(in_chans={channels}, mean=…, std=…)"
        )
    config = timm.data.resolve_model_data_config(teacher)
    built = getattr(getattr(teacher, "patch_embed", None), "img_size", None)
    height, width = built if isinstance(built, tuple) else config["input_size"][1:]
    return DataSpec(
        image_size=height if height == width else (height, width),
        in_chans=channels,
        mean=mean,
        std=std,
        range=None if scale is None else scale.text,
        interpolation=config["interpolation"],
        crop_pct=config["crop_pct"],
    )


@contextmanager
def _as_they_were(student: nn.Module, teacher: nn.Module) -> Iterator[None]:
    """Modes, frozen weights and devices of both as they were."""
    modes = [
        (module, module.training) for model in (student, teacher) for module in model.modules()
    ]
    moving = [(weight, weight.requires_grad) for weight in student.parameters()]
    devices = [_device(model) for model in (student, teacher)]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
        for weight, requires_grad in moving:
            weight.requires_grad_(requires_grad)
            weight.grad = None
        for model, device in zip((student, teacher), devices, strict=True):
            if _device(model) != device:
                model.to(device)


def _device(model: nn.Module) -> torch.device:
    return next((weight.device for weight in model.parameters()), torch.device("cpu"))


def _fill(student: nn.Module, folder: Path) -> None:
    """The weights that the run kept."""
    fill(student, read_weights(folder / WEIGHTS), folder / WEIGHTS)
