"""Distillation: a student learns to answer images as its teacher does; both are modules that were
built in Python.

    answers:   loss = T^2 KL(softmax(t / T) || softmax(s / T)) + w cross-entropy(s, labels)
    features:  loss = |s / |s| - t / |t||^2 = 2 - 2 cos(s, t)

s and t are the answers of student and teacher to the same prepared image; the teacher is in
evaluation mode and gets no gradient. Hinton et al., "Distilling the Knowledge in a Neural Network",
arXiv:1503.02531. The state before the first step is measured as epoch 0 and may be the one that is
kept, so a run never ends below its start.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless import ranks
from softless.convert.parts import attentions, projections
from softless.data.datasets import Splits
from softless.data.loader import EpochLoader
from softless.data.progress import track
from softless.data.samples import Samples
from softless.data.transforms import Pipeline, build_transforms
from softless.errors import UsageError
from softless.evaluation.evaluate import autocast
from softless.experiment.recipe import Recipe
from softless.layers.lora import LowRank
from softless.models.given import given_teacher
from softless.models.sides import sides
from softless.modes import evaluating
from softless.tasks.distillation.samples import (
    UNLABELLED,
    TensorSamples,
    open_images,
    with_outputs,
)
from softless.tasks.distillation.settings import DistillationSpec
from softless.tasks.distillation.transforms import of_tensors
from softless.tasks.task import Task, TrainingProgress

KEPT = 1 << 24  # numbers of a teacher's answers to held-out images that are held between epochs


@dataclass(frozen=True)
class Likeness:
    """How alike student and teacher answer one split: means over its images."""

    agreement: float | None  # share of equal first answers; None of features
    kl: float | None  # KL(teacher || student) in nats, at temperature 1; None of features
    cosine: float | None  # of features; None of answers
    top1: float | None  # the student's accuracy over the images with labels, where there are some
    teacher_top1: float | None
    loss: float  # kl, or 2 - 2 cosine: the lower wins among epochs that agree as often
    seen: int
    expected: int

    def summary(self) -> dict[str, Any]:
        return asdict(self)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def write(self, folder: Path, samples: Samples) -> None:
        """Nothing: the answers are the models' own."""

    def __str__(self) -> str:
        rows = {
            "images": f"{self.seen} of {self.expected}",
            "agreement": self.agreement,
            "KL(teacher || student)": self.kl,
            "cosine of features": self.cosine,
            "student's accuracy": self.top1,
            "teacher's accuracy": self.teacher_top1,
        }
        return "\n".join(
            f"{name:<22} {value if isinstance(value, str) else format(value, '.4f')}"
            for name, value in rows.items()
            if value is not None
        )


class Distillation(Task):
    """Images (B, C, H, W) and the teacher's answers to them, to the loss of a student.

    Args:
        recipe: with its group `distillation`.
        splits: of images, with a class name for each output of the models.
        teacher: answers (B, K), or features (B, D).
        outputs: K or D.
        labelled: whether the targets say which output is right.
    """

    name = "distillation"
    needs: ClassVar[tuple[str, ...]] = ()
    measures: ClassVar[tuple[str, ...]] = ("agreement", "cosine", "loss")
    measured_first: ClassVar[bool] = True

    def __init__(
        self, recipe: Recipe, splits: Splits, teacher: nn.Module, outputs: int, *, labelled: bool
    ) -> None:
        assert recipe.distillation is not None
        self.recipe, self.splits, self.teacher = recipe, splits, teacher
        self.spec: DistillationSpec = recipe.distillation
        self.labelled, self._outputs = labelled, outputs
        self._answers: tuple[Tensor, ...] = ()  # the teacher's to the held-out images, by batch

    @classmethod
    def open(cls, recipe: Recipe) -> "Distillation":
        """Open the images of the recipe and try its teacher on one.

        Raises:
            UsageError: no teacher, another one than the recipe notes, or one that does not take
                such images.
            DataError: whatever is wrong with the images.
        """
        spec = recipe.distillation
        assert spec is not None
        teacher = given_teacher(spec.teacher)
        splits, labelled = open_images(recipe.data, recipe.seed)
        outputs = outputs_of(teacher, recipe, "teacher")
        splits, labelled = with_outputs(splits, spec, outputs, labelled=labelled)
        return cls(recipe, splits, teacher, outputs, labelled=labelled)

    @property
    def outputs(self) -> int:
        return self._outputs

    def construction(self) -> dict[str, Any]:
        return {
            "architecture": self.recipe.model.name,
            "model_args": dict(self.recipe.model.args),
        }

    def surround(self, model: nn.Module) -> nn.Module:
        """The student with what does not move frozen; of low-rank updates, the module that holds
        them.

        Raises:
            UsageError: nothing of it would move.
        """
        trainable = {name for name, weight in model.named_parameters() if weight.requires_grad}
        kind = type(model).__name__
        if self.spec.trained == "lora":
            paths = projections(model)
            if not paths:
                raise UsageError(f"{kind} has no projections of attention that lora could move")
            frozen = [path for path in paths if f"{path}.weight" not in trainable]
            if frozen:
                raise UsageError(
                    f"lora moves the projections of attention, and {frozen[0]} of the student is "
                    "frozen: thaw it, or choose only='all'"
                )
            return LowRank(model, paths, rank=self.spec.rank, seed=self.recipe.seed)
        if self.spec.trained == "attention":
            inside = tuple(f"{path}." for path in attentions(model))
            trainable = {name for name in trainable if name.startswith(inside)}
        if not trainable:
            part = "the attention of " if self.spec.trained == "attention" else ""
            raise UsageError(f"nothing in {part}the student ({kind}) may move: thaw some of it")
        for name, weight in model.named_parameters():
            weight.requires_grad_(name in trainable)
        return model

    def learner(self, model: nn.Module) -> nn.Module:
        return DistillationLoss(model, self.spec)

    def transform(self, *, train: bool) -> Pipeline:
        """An image to a float tensor (C, H, W), the same for both models."""
        samples = self.splits.train
        if isinstance(samples, TensorSamples):
            return of_tensors(self.recipe, samples.lowest(), train=train)
        augment = self.recipe.augment
        changed = augment.affine is not None or augment.hflip or augment.vflip
        whole = tuple(augment.scale) == (1.0, 1.0)  # framed as in evaluation
        train = train and bool(changed or not whole)
        return build_transforms(self.recipe, self.splits.mean, self.splits.std, train=train)

    def to(self, device: torch.device) -> "Distillation":
        """Move the teacher."""
        self.teacher.to(device)
        return self

    def prepare(
        self,
        batch: Any,
        device: torch.device,
        *,
        epoch: int,  # noqa: ARG002
        step: int,  # noqa: ARG002
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images (B, C, H, W), the teacher's answers (B, K) and labels (B,), -1 where there is
        none.
        """
        images, targets = (part.to(device, non_blocking=True) for part in batch)
        labels = targets if self.labelled else torch.full_like(targets, UNLABELLED)
        return images, self._taught(images), labels

    @torch.no_grad()
    def _taught(self, images: Tensor) -> Tensor:
        """The teacher's answers (B, K) float32."""
        dtype = next((weight.dtype for weight in self.teacher.parameters()), images.dtype)
        with evaluating(self.teacher), autocast(images.device, self.recipe.amp):
            answers: Tensor = self.teacher(images.to(dtype))
        return answers.float()

    def after_step(self, model: nn.Module, progress: TrainingProgress) -> None:  # noqa: ARG002
        if isinstance(model, LowRank):
            model.moved()

    def evaluated(self, model: nn.Module) -> nn.Module:
        """The student itself, low-rank updates merged into its weights."""
        return model.merged() if isinstance(model, LowRank) else model

    def published(self, model: nn.Module) -> nn.Module:
        return model

    def composition(self, samples: Samples) -> dict[str, int]:
        """Images of each class, where they have labels."""
        if not self.labelled:
            return {}
        labels = samples.targets[samples.targets >= 0]
        counts = np.bincount(labels, minlength=len(self.splits.classes)).tolist()
        return dict(zip(self.splits.classes, counts, strict=True))

    def evaluate(self, model: nn.Module, loader: EpochLoader, *, amp: str, label: str) -> Likeness:
        """How alike both answer; a batch at a time."""
        return self._likeness(model, loader, amp, label, ())[0]

    def validate(self, model: nn.Module, loader: EpochLoader, *, amp: str) -> dict[str, Any]:
        likeness, self._answers = self._likeness(model, loader, amp, "validating", self._answers)
        return likeness.summary()

    @torch.no_grad()
    def _likeness(
        self,
        model: nn.Module,
        loader: EpochLoader,
        amp: str,
        label: str,
        before: tuple[Tensor, ...],
    ) -> tuple[Likeness, tuple[Tensor, ...]]:
        """The measures, and the teacher's answers by batch where they are few."""
        device = next(model.parameters()).device
        sums, taught = torch.zeros(len(SUMS), dtype=torch.float64), list(before)
        small = len(loader.positions) * self._outputs <= KEPT
        with evaluating(model):
            batches = track(loader, len(loader.positions), label, size=lambda batch: len(batch[1]))
            for number, (batch, targets) in enumerate(batches):
                images = batch.to(device, non_blocking=True)
                if number < len(taught):
                    answers = taught[number].to(device)
                else:
                    answers = self._taught(images)
                    if small:
                        taught.append(answers.cpu())
                with autocast(device, amp):
                    learned = model(images).float()
                labels = targets if self.labelled else torch.full_like(targets, UNLABELLED)
                compare = _features if self.spec.compared == "features" else _answers
                sums += compare(
                    learned.cpu(), answers.cpu(), labels
                )  # not all devices have float64
        if loader.rounds is not None:
            sums = torch.stack(ranks.gather(sums)).sum(0)
        expected = len(loader.dataset)  # type: ignore[arg-type]
        totals = dict(zip(SUMS, sums.tolist(), strict=True))
        features = self.spec.compared == "features"
        return _means(totals, expected, features=features), tuple(taught)


SUMS = ("images", "agreeing", "kl", "cosine", "labelled", "right", "teacher_right")


def _answers(learned: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
    """The sums of a batch, (7,) float64 in the order of SUMS."""
    student_answers, teacher_answers, has_label = learned.argmax(1), taught.argmax(1), labels >= 0
    kl = F.kl_div(
        learned.double().log_softmax(1),
        taught.double().log_softmax(1),
        log_target=True,
        reduction="sum",
    )
    correct, teacher_correct = (
        (answer == labels) & has_label for answer in (student_answers, teacher_answers)
    )
    none = torch.zeros_like(kl)
    agreeing = (student_answers == teacher_answers).sum()
    of_labels = [has_label.sum(), correct.sum(), teacher_correct.sum()]
    counts = [agreeing, kl, none, *of_labels]
    return torch.stack([none + len(learned), *(count.double() for count in counts)])


def _features(learned: Tensor, taught: Tensor, labels: Tensor) -> Tensor:
    """The same of features (B, D)."""
    cosine = F.cosine_similarity(learned.double(), taught.double(), dim=1).sum()
    none = torch.zeros_like(cosine)
    return torch.stack([none + len(labels), none, none, cosine, none, none, none])


def _means(sums: dict[str, float], expected: int, *, features: bool) -> Likeness:
    images, labelled = sums["images"], sums["labelled"]
    kl, cosine = sums["kl"] / images, sums["cosine"] / images
    return Likeness(
        agreement=None if features else sums["agreeing"] / images,
        kl=None if features else kl,
        cosine=cosine if features else None,
        top1=sums["right"] / labelled if labelled else None,
        teacher_top1=sums["teacher_right"] / labelled if labelled else None,
        loss=2 - 2 * cosine if features else kl,
        seen=int(images),
        expected=expected,
    )


class DistillationLoss(nn.Module):
    """Images (B, C, H, W), the teacher's answers (B, K) and labels (B,) to the loss (), a mean over
    the images.

    Args:
        model: the student.
        spec: temperature, weight of the labels, and what is compared.
    """

    def __init__(self, model: nn.Module, spec: DistillationSpec) -> None:
        super().__init__()
        self.model, self.spec = model, spec

    def forward(self, images: Tensor, answers: Tensor, labels: Tensor) -> Tensor:
        """The loss (), in float32."""
        learned = self.model(images).float()
        if self.spec.compared == "features":
            return (2 - 2 * F.cosine_similarity(learned, answers, dim=1)).mean()
        heat = self.spec.temperature
        loss = heat**2 * F.kl_div(
            (learned / heat).log_softmax(1),
            (answers / heat).log_softmax(1),
            log_target=True,
            reduction="batchmean",
        )
        if self.spec.labels:
            truth = F.cross_entropy(learned, labels, ignore_index=UNLABELLED, reduction="sum")
            loss = loss + self.spec.labels * truth / len(images)
        return loss


@torch.no_grad()
def outputs_of(model: nn.Module, recipe: Recipe, role: str) -> int:
    """How many numbers a model answers an image of the recipe's size with.

    Args:
        model: student or teacher, as it lies.
        recipe: whose images it is to take.
        role: what it is called in the message.

    Raises:
        UsageError: it takes no such image, answers no vector, or no finite one.
    """
    height, width = sides(recipe.data.image_size)
    first = next(model.parameters(), torch.zeros(()))
    blank = torch.zeros(2, recipe.data.in_chans, height, width, device=first.device)
    wanted = f"images of {recipe.data.in_chans} channels and {height} x {width} pixels"
    try:
        with evaluating(model):
            answer = model(blank.to(first.dtype))
    except Exception as error:
        raise UsageError(
            f"the {role} takes no {wanted} ({' '.join(str(error).split())[:300]}): give images of "
            "the size and channels that it was built for"
        ) from error
    if not isinstance(answer, Tensor) or answer.ndim != 2:
        shape = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
        raise UsageError(
            f"the {role} answers {shape} for 2 images: distillation compares one vector an image, "
            "logits or pooled features"
        )
    if not bool(answer.isfinite().all()):
        raise UsageError(f"the {role} answers a black image with numbers that are not finite")
    return int(answer.shape[1])


TASK = Distillation
