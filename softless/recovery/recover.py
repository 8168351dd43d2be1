"""`recover`: exchange the attention of a trained model and bring its accuracy back.

swap     the attentions are exchanged, their projections kept
refit    projections and last layers by least squares on the teacher's stream (convert.refit)
distil   a short training on the teacher's answers (recovery.distil)
"""

import copy
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softless.attention.checks import check_options
from softless.attention.record import Operator
from softless.attention.registry import get
from softless.convert.refit.refit import (
    LEAST,
    NOT_BETTER,
    FittedLayer,
    Refitted,
    Ridge,
    chunked,
    exchanged,
    refit,
)
from softless.convert.rehost import attends_with, rehosted
from softless.convert.swap import Swapped, swap
from softless.errors import UsageError, need_module, unknown
from softless.experiment.groups import AugmentSpec
from softless.measure.audit import audit
from softless.measure.findings import Audit
from softless.recovery.answers import Nearness, nearness
from softless.recovery.distil import NO_CHANGE, Distilled, distil
from softless.recovery.pictures import Gathered, from_folder
from softless.recovery.recovered import BARE, DISTIL, REFIT, STEPS, Recovered
from softless.recovery.views import with_views
from softless.tasks.distillation.samples import cut

_log = logging.getLogger("softless.recovery")
LR, GENTLE = 5e-4, 3e-5  # a refit with a weak ridge leaves large weights that cancel
# what follows such a refit sees the images as they are: changed ones take it away from its start
PLAIN = AugmentSpec(scale=(1.0, 1.0), ratio=(1.0, 1.0), **NO_CHANGE)
NUMBER = 256  # images of a folder
CALIBRATED = 32  # images on which a layer that cannot be fitted gets a number for each head


def recover(
    model: nn.Module,
    op: str | Operator | None = None,
    *,
    images: Tensor | Sequence[Tensor] | str | Path,
    teacher: nn.Module | None = None,
    layers: str | Sequence[str] = "*",
    force: str | Sequence[str] = (),
    steps: Sequence[str] = (REFIT,),
    epochs: int = 5,
    lr: float | None = None,
    ridge: float | Literal["held-out"] = "held-out",
    labels: Tensor | bool = False,
    classes: Sequence[str] = (),
    held_out: float = 0.25,
    class_weight: float | Literal["auto"] = "auto",
    refit_mlp: bool = True,
    views: int = 4,
    only: Literal["all", "attention", "lora"] = "all",
    number: int = NUMBER,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> Recovered:
    """Exchange the attention of a trained model and bring its accuracy back, without labels.

    The refit needs a few hundred images and no gradient: block after block, the projection of the
    attention and the last layer of the MLP are fitted to the teacher's stream. A distillation
    after it is a run of the trainer, whose best epoch is kept, the state before the first step
    among them.

    Args:
        model: a trained model of timm or of `create_model`; it is copied, and never changed.
        op: the operator; None where `teacher` is given and the model is exchanged already.
        images: what they learn on: (n, C, h, w) prepared as the model takes them, chunks of such,
            or a folder of images, of which `number` are used by the refit and all by a
            distillation.
        teacher: the model before its attentions were exchanged; the model itself by default.
        layers: patterns of the paths of attention modules ("blocks.[0-5].*"); the others are kept.
        force: patterns of the paths at which what would be lost may be lost.
        steps: "refit", "distil" or both, in this order.
        epochs: of the distillation.
        lr: its rate. None: 3e-5 after a refit that chose its ridge, whose weights are fragile, else
            5e-4.
        ridge: strength of the refit, as a share of the mean diagonal; "held-out" chooses it for
            each layer. A rate of 5e-4 afterwards asks for 0.01 or more.
        labels: targets (n), with which accuracy is told; True teaches them too in a distillation.
        classes: names of the model's classes, by which class folders have labels.
        held_out: share of the images that choose the ridge and on which nearness is told.
        class_weight: what a token ahead of the patches counts beside a patch.
        refit_mlp: fit the last layer of each MLP too.
        views: of each image that the refit uses: itself, and copies that are changed a little;
            fewer where images and copies together are above 1,024.
        only: what a distillation moves.
        number: images of a folder that the refit uses.
        seed: which images are held out; of the distillation.
        out: a folder for the run of the distillation.
        resume: continue a distillation in `out`.
        overwrite: delete what `out` holds of one.
        progress: say what is under way.
        **options: of the operator. SOFT takes its bottleneck from pools of tokens unless `sampling`
            is given.

    Returns:
        The model and how near each step brought it. Nearness is told on images that the told
        weights were not fitted on.

    Raises:
        UsageError: arguments, images or models that cannot be used; the first tensor in which
            model and teacher differ.
        DataError: images that cannot be read.

    Examples:
        >>> import timm
        >>> model = timm.create_model("deit_tiny_patch16_224", depth=2, img_size=64)
        >>> recovered = softless.recover(model, "sima", images=torch.randn(16, 3, 64, 64))
        >>> recovered.model(torch.zeros(1, 3, 64, 64)).shape
        torch.Size([1, 1000])
    """
    need_module(model, "recover")
    _check_steps(steps, ridge, out)
    original = model if teacher is None else teacher
    need_module(original, "recover")
    gathered = _gathered(images, original, labels, classes, number)
    work = _Work(original, gathered, held_out, seed, views=views, progress=progress)
    student = _Student.of(
        work.teacher,
        model if teacher is not None else None,
        op,
        options,
        layers=layers,
        force=force,
    )
    audits = _audits(original, student.model, gathered)
    near = {BARE: work.nearness(student.model)}
    seconds: dict[str, float] = {}
    refitted = None
    if REFIT in steps:
        start = time.process_time()
        student, refitted = work.refit(student, ridge, class_weight, refit_mlp)
        seconds[REFIT] = time.process_time() - start
        near[REFIT] = work.nearness(student.model)
        if DISTIL not in steps and not gathered.apart:
            refitted = work.on_all(student, refitted, class_weight, refit_mlp)
    kept, distilled = (REFIT if REFIT in steps else BARE), None
    if DISTIL in steps:
        gentle = REFIT in steps and ridge == "held-out"
        start = time.process_time()
        distilled = _distilled(
            student.model,
            work,
            images,
            labels,
            classes,
            out=out,
            epochs=epochs,
            lr=(GENTLE if gentle else LR) if lr is None else lr,
            augment=PLAIN if gentle else None,
            only=only,
            resume=resume,
            overwrite=overwrite,
        )
        seconds[DISTIL] = time.process_time() - start
        near[DISTIL] = work.nearness(student.model)
        kept = kept if distilled.kept_start else DISTIL
    return Recovered(
        student.restored(model).eval().train(model.training),
        student.op,
        student.options,
        student.swapped,
        refitted,
        distilled,
        near,
        seconds,
        kept,
        *audits,
        notes=(*work.notes, *(() if refitted is None else refitted.notes)),
    )


def _check_steps(steps: Sequence[str], ridge: Any, out: str | Path | None) -> None:
    if isinstance(steps, str):
        raise UsageError(f"steps={steps!r}: give a sequence, as ('{steps}',)")
    for step in steps:
        if step not in STEPS:
            raise unknown("step", step, STEPS)
    if list(steps) != [step for step in STEPS if step in steps] or not steps:
        raise UsageError(f"steps={tuple(steps)}: give 'refit', 'distil', or both in this order")
    if ridge != "held-out" and REFIT not in steps:
        raise UsageError(f"ridge={ridge} is of the refit, which is not among the steps")
    if DISTIL in steps and out is None:
        raise UsageError("a distillation is a run: name a folder for it with out=")


def _gathered(
    images: Any, model: nn.Module, labels: Tensor | bool, classes: Sequence[str], number: int
) -> Gathered:
    targets = labels if isinstance(labels, Tensor) else None
    if isinstance(images, str | Path):
        if targets is not None:
            raise UsageError(
                "labels of a folder are its class folders: give classes=, not a tensor"
            )
        return from_folder(images, model, number, classes)
    if not isinstance(images, Tensor | Sequence):
        raise UsageError(
            f"images is a {type(images).__name__}: give a tensor (n, C, h, w), chunks of such, or "
            "a folder"
        )
    chunks = chunked(images)
    count = sum(len(chunk) for chunk in chunks)
    if count < LEAST:
        raise UsageError(f"{count} images are too few to fit on: give at least {LEAST}")
    if targets is not None and targets.shape != (count,):
        raise UsageError(f"labels are {tuple(targets.shape)} for {count} images: give one for each")
    return Gathered(chunks, (), targets, None, apart=False)


def _held_out(gathered: Gathered, share: float, seed: int) -> Tensor:
    """Which images are held out (n): the same as in a distillation, whose start would be flattered
    on images that it was fitted on.
    """
    labels = None if gathered.fit_labels is None else gathered.fit_labels.cpu().numpy()
    _, positions = cut(gathered.count, labels, share, seed)
    held = torch.zeros(gathered.count, dtype=torch.bool)
    held[torch.from_numpy(positions)] = True
    return held


class _Work:
    """The teacher in float32, and what is measured of students."""

    def __init__(
        self,
        teacher: nn.Module,
        gathered: Gathered,
        share: float,
        seed: int,
        *,
        views: int,
        progress: bool,
    ) -> None:
        if views < 1:
            raise UsageError(f"views={views}: an image has itself at least")
        self.gathered, self.share, self.seed, self.progress = gathered, share, seed, progress
        self.notes: list[str] = []
        dtypes = {p.dtype for p in teacher.parameters() if p.is_floating_point()}
        low = dtypes - {torch.float32, torch.float64}
        self.teacher = teacher
        if low:
            self.teacher = copy.deepcopy(teacher).float()
            names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in low))
            self.notes.append(f"computed in float32 and written back in {names}")
        self.held = _held_out(gathered, share, seed)
        self.images, self.marked = with_views(gathered.fit, self.held, views, seed)

    def nearness(self, student: nn.Module) -> Nearness:
        """On images that nothing was fitted on."""
        if self.gathered.apart:
            return nearness(
                student, self.teacher, self.gathered.measure, self.gathered.measure_labels
            )
        start, chunks = 0, []
        for chunk in self.gathered.fit:
            held = self.held[start : start + len(chunk)]
            start += len(chunk)
            if bool(held.any()):
                chunks.append(chunk[held])
        labels = self.gathered.fit_labels
        return nearness(
            student, self.teacher, chunks, None if labels is None else labels[self.held]
        )

    def refit(
        self, student: "_Student", ridge: Ridge, class_weight: Any, refit_mlp: bool
    ) -> "tuple[_Student, Refitted]":
        """A student that is fitted on the images that are not held out; where others are measured
        on, on all. Attentions that cannot be fitted are calibrated first.
        """
        fitted = self._fitted(student, ridge, class_weight, refit_mlp, on_all=self.gathered.apart)
        unfit = [
            layer.path
            for layer in fitted.layers
            if layer.part == "attention" and layer.kept not in {"", NOT_BETTER}
        ]
        again = student.calibrated(self.teacher, unfit, self.gathered) if unfit else None
        if again is None:
            return student, fitted
        self.notes.append(
            f"{', '.join(unfit)}: one number a head in place of a fit ({len(unfit)} layers)"
        )
        fitted = self._fitted(again, ridge, class_weight, refit_mlp, on_all=self.gathered.apart)
        return again, fitted

    def on_all(
        self, student: "_Student", refitted: Refitted, class_weight: Any, refit_mlp: bool
    ) -> Refitted:
        """Fit once more with the strengths that were chosen, on the held-out images too. Errors
        stay those of the first time.
        """
        strengths = {
            layer.path: layer.strength for layer in refitted.layers if layer.strength is not None
        }
        student.reset()
        again = self._fitted(student, strengths, class_weight, refit_mlp, on_all=True)
        return replace(refitted, seconds=refitted.seconds + again.seconds)

    def _fitted(
        self,
        student: "_Student",
        ridge: Ridge,
        class_weight: Any,
        refit_mlp: bool,
        *,
        on_all: bool,
    ) -> Refitted:
        def told(layer: FittedLayer) -> None:
            if self.progress:
                _log.info("%s: %s", layer.path, layer.kept or f"ridge {layer.strength:g}")

        return refit(
            student.model,
            self.teacher,
            self.images,
            ridge=ridge,
            held_out=self.marked,
            class_weight=class_weight,
            refit_mlp=refit_mlp,
            on_all=on_all,
            seed=self.seed,
            on_layer=told,
        )


@dataclass
class _Student:
    """The copy whose attentions are exchanged, and how that was done."""

    model: nn.Module
    op: str
    options: Mapping[str, Any]
    swapped: Swapped | None
    layers: str | Sequence[str]
    force: str | Sequence[str]
    start: dict[str, Tensor]  # its weights before any step

    @staticmethod
    def of(
        teacher: nn.Module,
        exchanged_before: nn.Module | None,
        op: str | Operator | None,
        options: Mapping[str, Any],
        *,
        layers: str | Sequence[str],
        force: str | Sequence[str],
    ) -> "_Student":
        """A copy of the teacher with another attention; of a model that came exchanged, a copy.

        Raises:
            UsageError: nothing can be exchanged, or the model is not its teacher's.
        """
        if exchanged_before is not None:
            model = copy.deepcopy(exchanged_before)
            first = next(teacher.parameters())
            model.to(first.device, first.dtype)
            paths = exchanged(model, teacher)
            inner: Any = model.get_submodule(paths[0])
            record = getattr(getattr(inner, "inner", inner), "op", None)
            name = getattr(record, "name", type(inner).__name__)
            return _Student(model, name, {}, None, layers, force, _state(model))
        if op is None:
            raise UsageError("recover needs an operator: op='sima', or a teacher beside the model")
        record, filled = get(op), dict(options)
        check_options(record, filled)
        if "sampling" in record.options:
            filled.setdefault("sampling", "pool")
        if attends_with(teacher) is not None and layers == "*":
            model, _ = rehosted(teacher, record.name, filled)
            return _Student(model, record.name, filled, None, layers, force, _state(model))
        model = copy.deepcopy(teacher)
        swapped = swap(model, record, layers=layers, force=force, **filled)
        return _Student(model, record.name, filled, swapped, layers, force, _state(model))

    def calibrated(
        self, teacher: nn.Module, paths: Sequence[str], gathered: Gathered
    ) -> "_Student | None":
        """The student before any step, with numbers for the heads of some attentions; None where
        they cannot be had.
        """
        if self.swapped is None:
            self.reset()
            return None
        model = copy.deepcopy(teacher)
        few = gathered.fit[0][:CALIBRATED].to(next(model.parameters()))
        record = get(self.op)
        try:
            numbers = swap(
                model, record, layers=paths, force=self.force, calibrate=few, **self.options
            )
            rest = [path for path in self.swapped.swapped if path not in paths]
            if rest:
                swap(model, record, layers=rest, force=self.force, **self.options)
        except UsageError:
            self.reset()
            return None
        swapped = replace(self.swapped, gains=numbers.gains, errors=numbers.errors)
        return _Student(
            model, self.op, self.options, swapped, self.layers, self.force, _state(model)
        )

    def reset(self) -> None:
        """Its weights as they were before any step."""
        self.model.load_state_dict(self.start)

    def restored(self, like: nn.Module) -> nn.Module:
        """The model in the dtype of another."""
        dtype = next(like.parameters()).dtype
        return self.model.to(dtype)


def _state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def _audits(
    teacher: nn.Module, student: nn.Module, gathered: Gathered
) -> tuple[Audit | None, Audit | None]:
    """The exponentials of both on one image; None where a model cannot be watched."""
    size = tuple(gathered.fit[0].shape[1:])
    return _audited(teacher, size), _audited(student, size)


def _audited(model: nn.Module, size: tuple[int, ...]) -> Audit | None:
    try:
        return audit(model, size)
    except UsageError:
        return None


def _distilled(
    student: nn.Module,
    work: _Work,
    images: Any,
    labels: Tensor | bool,
    classes: Sequence[str],
    *,
    out: str | Path | None,
    **settings: Any,
) -> Distilled:
    """The step with gradients, on all images that there are."""
    assert out is not None
    if isinstance(images, str | Path):
        source: Any = images
    else:
        pictures = torch.cat(list(work.gathered.fit))
        source = (
            pictures
            if work.gathered.fit_labels is None
            else (
                pictures,
                work.gathered.fit_labels,
            )
        )
    return distil(
        student,
        work.teacher,
        source,
        out=out,
        labels=labels is not False and (labels is True),
        classes=tuple(classes),
        held_out=work.share,
        seed=work.seed,
        progress=work.progress,
        **settings,
    )
