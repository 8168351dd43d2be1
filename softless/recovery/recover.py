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
from softless.convert.refit.checks import check_pass, check_settings, look_at
from softless.convert.refit.refit import (
    LEAST,
    NOT_BETTER,
    FittedLayer,
    Refitted,
    Ridge,
    chunked,
    exchanged,
    held_out_images,
    refit,
)
from softless.convert.rehost import attends_with, built_as, rehosted
from softless.convert.swap import Swapped, swap
from softless.errors import UsageError, need_module, unknown
from softless.evaluation.run import LoadedRun
from softless.experiment.groups import CLASSIFICATION, DataSpec
from softless.layers.attention import Attention
from softless.measure.audit import audit
from softless.measure.findings import Audit
from softless.models import digests
from softless.models.bag import refuse_bags
from softless.recovery.answers import Nearness, nearness
from softless.recovery.dense import AnswerVectors, Framed, features_in, fitted_part
from softless.recovery.distil import distil
from softless.recovery.distilled import Distilled
from softless.recovery.folder import RecoveryFolder, StoredRefit
from softless.recovery.light import AS_THEY_ARE
from softless.recovery.pictures import Framing, Gathered, from_folder
from softless.recovery.recovered import Recovered
from softless.recovery.steps import BARE, DISTIL, REFIT, STEPS
from softless.recovery.views import with_views
from softless.tasks.published import FEATURES

_log = logging.getLogger("softless.recovery")
# a refit with a weak ridge leaves large weights that cancel: changed images and the usual rate
# lead away from them faster than a short training comes back
BATCH_OF_MAPS = 4  # images of a step, whose maps are large
LR, GENTLE = 5e-4, 3e-5
NUMBER, MANY = 256, 1024  # images of a folder, without and with a distillation
VIEWS, ENOUGH = 4, 1024  # of an image at most; images that views add up to
TOKENS, DEAR = 196, 5e10  # images x tokens x weights: some seconds of one core
CALIBRATED = 32  # images on which a layer that cannot be fitted gets a number for each head


def recover(
    model: nn.Module | LoadedRun,
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
    views: int | None = None,
    only: Literal["all", "attention", "lora"] = "all",
    number: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: bool = True,
    **options: Any,
) -> Recovered:
    """Exchange the attention of a trained model and bring its accuracy back, without labels.

    The refit needs a few hundred images and no gradient. Block after block, the projection of the
    attention and the last layer of the MLP are fitted to the teacher's stream. A distillation
    after it is a run of the trainer, whose best epoch is kept, the state before the first step
    among them.

    Args:
        model: a trained model of timm or of `create_model`, a segmenter or detector on such a host,
            whose head stays as it is, or a run of `load_run` that trained one of them, whose
            images are framed as its evaluation does; it is copied, and never changed.
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
        views: of each image that the refit uses: itself, and copies that are changed a little. By
            default as many as make a thousand images, four at most; one of a model or of images
            that are so large that copies would take minutes.
        only: what a distillation moves.
        number: images of a folder that the refit uses; 256, or 1,024 where a distillation reads
            them all anyway.
        seed: which images are held out; of the distillation.
        out: a folder for what comes out: recover.json, report.html, model/, and the run of the
            distillation.
        resume: go on with what was interrupted in `out`, to the same weights.
        overwrite: delete what `out` holds of a recovery before.
        progress: say what is under way.
        **options: of the operator. SOFT takes its bottleneck from pools of tokens unless `sampling`
            is given.

    Returns:
        The model, (B, C, h, w) to (B, K) as it was, and how near each step brought it. Nearness is
        told on images that the told weights were not fitted on.

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
    run, network = _opened(model)
    _check_steps(steps, ridge, out)
    check_settings(ridge, class_weight)
    original = network if teacher is None else teacher
    need_module(original, "recover")
    _refuse_labels(original, labels, classes)
    folder = None if out is None else RecoveryFolder(out, resume=resume, overwrite=overwrite)
    names = tuple(classes) or (() if run is None or not run.named else run.classes)
    framing = None
    if isinstance(images, str | Path):
        framing = Framing.of(original if run is None else run, names)
    learns = DISTIL in steps
    chosen = (MANY if learns else NUMBER) if number is None else number
    gathered = _gathered(images, framing, labels, chosen, held_out, seed, learns=learns)
    work = _Work(original, gathered, held_out, seed, views=views, progress=progress)
    student = _Student.of(
        work.teacher,
        network if teacher is not None else None,
        op,
        options,
        layers=layers,
        force=force,
    )
    request = {
        "model": type(original).__name__ if run is None else run.path.name,
        "attention": _attention_of(original),
        "op": student.op,
        "options": dict(student.options),
        "layers": layers,
        "force": force,
        "steps": list(steps),
        "epochs": epochs,
        "lr": lr,
        "ridge": ridge,
        "labels": labels is True,
        "classes": list(names),
        "held_out": held_out,
        "class_weight": class_weight,
        "refit_mlp": refit_mlp,
        "views": views,
        "only": only,
        "number": chosen,
        "seed": seed,
        "images": gathered.digest(),
        "teacher_sha256": _digest(original),
        "student_sha256": _digest(student.model),
    }
    if folder is not None:
        folder.begin(request)
    audits = _audits(original, student.model, gathered)
    near = {BARE: work.nearness(student.model)}
    seconds: dict[str, float] = {}
    refitted = None
    before = None if folder is None or REFIT not in steps else folder.refit()
    if before is not None:
        student, refitted = student.refitted_before(before, work)
        near[REFIT], seconds[REFIT] = before.nearness, before.seconds
    elif REFIT in steps:
        start = time.process_time()
        student, refitted = work.refit(student, ridge, class_weight, refit_mlp)
        seconds[REFIT] = time.process_time() - start
        near[REFIT] = work.nearness(student.model)
        if DISTIL not in steps and not gathered.apart:
            refitted = work.on_all(student, refitted, class_weight, refit_mlp)
        if folder is not None:
            folder.keep_refit(
                student.model,
                refitted,
                near[REFIT],
                seconds[REFIT],
                student.swapped,
                tuple(work.notes),
            )
    kept, distilled = (REFIT if REFIT in steps else BARE), None
    if DISTIL in steps:
        assert folder is not None
        start, resumed = time.process_time(), folder.has_run
        fragile = REFIT in steps and ridge == "held-out"
        distilled = _distilled(
            student.model,
            work,
            folder,
            None if framing is None else framing.data,
            classes=names,
            epochs=epochs,
            lr=(GENTLE if fragile else LR) if lr is None else lr,
            augment=AS_THEY_ARE if fragile else None,
            only=only,
            labels=labels is True,
        )
        seconds[DISTIL] = time.process_time() - start
        if resumed:
            seconds[DISTIL] = distilled.run.seconds
            work.notes.append("the distillation was resumed: its seconds are those of a clock")
        near[DISTIL] = work.nearness(student.model)
        kept = kept if distilled.kept_start else DISTIL
    recovered = Recovered(
        student.restored(original).eval().train(original.training),
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
        out=None if folder is None else folder.path,
    )
    if folder is not None:
        said = folder.finish(recovered.model, names, recovered.to_dict(), request)
        recovered = replace(recovered, notes=(*recovered.notes, *said))
    return recovered


def _opened(model: nn.Module | LoadedRun) -> tuple[LoadedRun | None, nn.Module]:
    """The run, where it is one, and its model.

    Raises:
        UsageError: no model, or a run of another task.
    """
    if not isinstance(model, LoadedRun):
        need_module(model, "recover")
        refuse_bags(model, "recover")
        return None, model
    if model.task not in {CLASSIFICATION, FEATURES} and features_in(model.model) is None:
        raise UsageError(
            f"{model.path} was trained for {model.task}, and recover takes classifiers, segmenters "
            "and detectors: name a run of one, or give softless.recover its backbone"
        )
    return model, model.model


def _attention_of(model: nn.Module) -> str:
    """What a model attends with: operators of ours, or a foreign model's softmax."""
    names = {module.op.name for module in model.modules() if isinstance(module, Attention)}
    return " and ".join(sorted(names)) or "softmax"


def _digest(model: nn.Module) -> str:
    """SHA-256 of the weights."""
    return digests.of_texts({
        name: digests.of_tensor(value) for name, value in model.state_dict().items()
    })


def _refuse_labels(model: nn.Module, labels: Tensor | bool, classes: Sequence[str]) -> None:
    """Labels of images say nothing to a segmenter or a detector.

    Raises:
        UsageError: it has some.
    """
    if features_in(model) is not None and (labels is not False or classes):
        raise UsageError(
            f"labels and classes are of classifiers, and this is a {type(model).__name__}: leave "
            "them out"
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
    images: Any,
    framing: Framing | None,
    labels: Tensor | bool,
    number: int,
    share: float,
    seed: int,
    *,
    learns: bool,
) -> Gathered:
    targets = labels if isinstance(labels, Tensor) else None
    if framing is not None:
        if targets is not None:
            raise UsageError(
                "labels of a folder are its class folders: give classes=, not a tensor"
            )
        return from_folder(images, framing, number, share=share, seed=seed, learns=learns)
    if not isinstance(images, Tensor | Sequence):
        raise UsageError(
            f"images is a {type(images).__name__}: give a tensor (n, C, h, w), chunks of such, or "
            "a folder"
        )
    chunks = chunked(images)
    count = look_at(chunks).count
    if count < LEAST:
        raise UsageError(f"{count} images are too few to fit on: give at least {LEAST}")
    if targets is not None and targets.shape != (count,):
        raise UsageError(f"labels are {tuple(targets.shape)} for {count} images: give one for each")
    return Gathered(chunks, (), targets, None, apart=False)


def affordable(model: nn.Module, gathered: Gathered) -> int:
    """Views of each image: a thousand images fit as well as more, and copies of large ones are
    dear.
    """
    if features_in(model) is not None:
        return 1
    tokens = getattr(getattr(model, "patch_embed", None), "num_patches", None) or TOKENS
    size = sum(weight.numel() for weight in model.parameters())
    if gathered.count * int(tokens) * size > DEAR:
        return 1
    return max(1, min(VIEWS, ENOUGH // gathered.count))


class _Work:
    """The teacher in float32, and what is measured of students."""

    def __init__(
        self,
        teacher: nn.Module,
        gathered: Gathered,
        share: float,
        seed: int,
        *,
        views: int | None,
        progress: bool,
    ) -> None:
        if views is not None and views < 1:
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
        check_pass(self.teacher, gathered.fit[0][:2].to(next(self.teacher.parameters())))
        self.held = held_out_of(gathered, share, seed)
        copies = affordable(teacher, gathered) if views is None else views
        self.images, self.marked = with_views(gathered.fit, self.held, copies, seed)
        if features_in(self.teacher) is not None:
            self.images = Framed(self.teacher, self.images)

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
        dense = features_in(self.teacher)
        inside = [path for path, module in self.teacher.named_modules() if module is dense]
        unfit = [
            ".".join([*inside, layer.path])
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
            fitted_part(student.model),
            fitted_part(self.teacher),
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
        _refuse_the_same(teacher, record, filled)
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
            return None
        swapped = replace(self.swapped, gains=numbers.gains, errors=numbers.errors)
        return _Student(
            model, self.op, self.options, swapped, self.layers, self.force, _state(model)
        )

    def refitted_before(self, before: StoredRefit, work: _Work) -> "tuple[_Student, Refitted]":
        """The student as a refit left it that was finished before."""
        self.model.load_state_dict(dict(before.state))
        work.notes += [note for note in before.notes if note not in work.notes]
        swapped = None if self.swapped is None else replace(self.swapped, **before.numbers)
        return replace(self, swapped=swapped), before.refitted

    def reset(self) -> None:
        """Its weights as they were before any step."""
        self.model.load_state_dict(self.start)

    def restored(self, like: nn.Module) -> nn.Module:
        """The model in the dtype of another."""
        dtype = next(like.parameters()).dtype
        return self.model.to(dtype)


def _refuse_the_same(teacher: nn.Module, record: Operator, options: Mapping[str, Any]) -> None:
    """A model has another operator than it gets, or other options of it.

    Raises:
        UsageError: it has this one.
    """
    if attends_with(teacher) != record.name:
        return
    built: Any = built_as(teacher)
    own = {name: value for name, value in built.arguments.items() if name in record.options}
    if {**record.options, **own} == {**record.options, **options}:
        raise UsageError(
            f"nothing to exchange in this {type(teacher).__name__}: its attention is {record.name} "
            "already; name another operator"
        )


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


def held_out_of(gathered: Gathered, share: float, seed: int) -> Tensor:
    """Which of the images to fit on choose and measure, (n,) of truth; of tiles, all of a file.

    Raises:
        UsageError: too few images, or a share that leaves none on one side.
    """
    held = held_out_images(gathered.count, share, seed)
    if gathered.sources is None or len(gathered.sources.unique()) < LEAST:
        return held
    files, of_file = gathered.sources.unique(return_inverse=True)
    return held_out_images(len(files), share, seed)[of_file]


def _distilled(
    student: nn.Module,
    work: _Work,
    folder: RecoveryFolder,
    data: DataSpec | None,
    **settings: Any,
) -> Distilled:
    """The step with gradients: on all images but those on which nearness is told."""
    images = work.gathered
    network, goal = student, work.teacher
    learned: Any = images.learned
    measured: Any = images.held
    if features_in(student) is not None:
        tiles = torch.cat(list(Framed(goal, images.fit)))
        learned, measured = tiles[~work.held], tiles[work.held]
        if images.apart:
            learned, measured = tiles, torch.cat(list(Framed(goal, images.measure)))
        network, goal = AnswerVectors(student), AnswerVectors(goal)
        settings["batch_size"] = BATCH_OF_MAPS
    elif learned is None:
        pictures, held = torch.cat(list(images.fit)), work.held
        learned, measured = pictures[~held], pictures[held]
        if images.fit_labels is not None:
            learned = (learned, images.fit_labels[~held])
            measured = (measured, images.fit_labels[held])
    return distil(
        network,
        goal,
        learned,
        measured=measured,
        out=folder.run,
        data=data,
        seed=work.seed,
        resume=folder.has_run,
        overwrite=not folder.has_run,
        progress=work.progress,
        **settings,
    )
