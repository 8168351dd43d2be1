"""Bags measured: answers to slides, averaged per patient, and the table of them.

`predictions.csv` has a row for each slide: slide, patient, fold, label, the class that is answered,
and the probability of each class (`p NAME`). Of several labels there is what is true of each
(`true NAME`) and its probability; of survival time, event and risk (its logarithm).
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless import ranks
from softless.data.loader import EpochLoader
from softless.data.progress import track
from softless.data.samples import Samples
from softless.errors import DataError, DivergedError
from softless.evaluation.evaluate import autocast
from softless.evaluation.patients import PatientEvaluation, averaged
from softless.evaluation.survival import SurvivalEvaluation, cox_loss
from softless.models.durable import write_text
from softless.modes import evaluating
from softless.tasks.bags.tiles import SLIDES, TileNotes, write_tiles
from softless.tasks.bags.transforms import padded
from softless.words import as_cell, counted

PREDICTIONS = "predictions.csv"
Kind = Literal["class", "several", "survival"]
CHANCE, TRUE = "p ", "true "  # begin the columns of probabilities, and of labels


@dataclass(frozen=True)
class BagEvaluation:
    """The outcome on one split: what the model answers to slides and what is true of them, in order.

    Attributes:
        names: (n,) of the slides.
        patients: (n,) whose each is; None: each stands for itself.
        logits: (n, K) float32; of survival (n, 1), the logarithm of the risk.
        targets: (n,) class indices, (n, K) of 0 and 1, or (n, 2) time and event.
        classes: K names.
        expected: slides that there are.
        thresholds: of each class, as validation chose them.
        fold: which fold the slides were tested in, where there are folds.
        tiles: for notes of what tiles weigh.
    """

    names: tuple[str, ...]
    patients: tuple[str, ...] | None
    logits: np.ndarray
    targets: np.ndarray
    classes: tuple[str, ...]
    kind: Kind
    expected: int
    thresholds: tuple[float | None, ...] = ()
    fold: tuple[int | None, ...] = ()
    tiles: TileNotes | None = None

    @property
    def probabilities(self) -> np.ndarray:
        """(n, K) float64; of survival the risks as they are."""
        logits = torch.as_tensor(self.logits).double()
        if self.kind == "survival":
            return logits.numpy()
        chances = logits.softmax(1) if self.kind == "class" else logits.sigmoid()
        return chances.numpy()

    @cached_property
    def per_patient(self) -> PatientEvaluation | SurvivalEvaluation:
        """The numbers of patients."""
        return numbers(
            self.names,
            self.patients,
            self.probabilities,
            self.targets,
            self.classes,
            self.kind,
            self.thresholds,
        )

    @cached_property
    def loss(self) -> float:
        """The mean over the slides, without smoothing and weights; Cox's of survival."""
        logits, targets = torch.as_tensor(self.logits).double(), torch.as_tensor(self.targets)
        if self.kind == "survival":
            return float(cox_loss(logits[:, 0], targets[:, 0], targets[:, 1] > 0))
        if self.kind == "several":
            return float(F.binary_cross_entropy_with_logits(logits, targets.double()))
        return float(F.cross_entropy(logits, targets.long()))

    def summary(self) -> dict[str, Any]:
        """What a log keeps of an epoch; with the thresholds that these patients would choose."""
        per_patient = self.per_patient
        counts = {"seen": len(self.names), "expected": self.expected, "unit": "bags"}
        if isinstance(per_patient, SurvivalEvaluation):
            value = per_patient.concordance_value
            return {"loss": self.loss, "concordance": value, **counts}
        chosen = per_patient.choose()
        single = {} if self.kind == "several" else _single(per_patient)
        two = {"threshold": chosen[1]} if self.kind == "class" and len(self.classes) == 2 else {}
        return {
            "loss": self.loss,
            "auc": per_patient.mean_area,
            **single,
            **two,
            "thresholds": list(chosen),
            **counts,
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything but the answers; numbers are of patients, `slides` counts bags."""
        content = self.per_patient.to_dict()
        ends = content["intervals"].get("auc") or content["intervals"].get("concordance")
        return {
            **{
                name: value
                for name, value in self.summary().items()
                if name not in {"threshold", "thresholds"}
            },
            **{name: value for name, value in content.items() if name not in {"unit", "loss"}},
            "counted": content["unit"],
            "slides": len(self.names),
            "kind": self.kind,
            "classes": list(self.classes),
            "interval": ends,
        }

    def write(self, folder: Path, samples: Samples) -> None:  # noqa: ARG002
        """predictions.csv; and tiles.csv of a model that weighs tiles."""
        write_text(folder / PREDICTIONS, self.table())
        if self.tiles is not None and len(self.names) == len(self.tiles.dataset):
            rows = [(index, *self._said(index)) for index in self._telling()]
            whose = [self._patient(index) for index in self._telling()]
            write_tiles(folder, self.tiles, rows, whose)

    def _patient(self, row: int) -> str:
        return self.names[row] if self.patients is None else self.patients[row]

    def _said(self, row: int) -> tuple[str, str]:
        """What is true of a slide, and what is answered, in words."""
        answers = self.probabilities[row]
        if self.kind == "survival":
            time, event = self.targets[row]
            truth = f"{'event' if event else 'no event'} at {time:g}"
            return truth, f"logarithm of the risk {answers[0]:.2f}"
        if self.kind == "several":
            present = [
                name for name, there in zip(self.classes, self.targets[row], strict=True) if there
            ]
            likeliest = int(answers.argmax())
            return (
                ", ".join(present) or "no label",
                f"{self.classes[likeliest]} {answers[likeliest]:.0%}",
            )
        answer = self.classes.index(self._answered(self.probabilities)[row])
        return self.classes[int(self.targets[row])], f"{self.classes[answer]} {answers[answer]:.0%}"

    def _telling(self) -> list[int]:
        """Slides to be looked at: first those that are wrong with most confidence, then right ones;
        of survival those of the highest and the lowest risk.
        """
        chances = self.probabilities
        if self.kind == "class":
            own = chances[np.arange(len(chances)), self.targets.astype(int)]
        elif self.kind == "several":
            own = np.where(self.targets > 0, chances, 1 - chances).mean(1)
        else:
            own = chances[:, 0]
        order = np.argsort(own, kind="stable").tolist()
        first = order[: min(SLIDES // 2, len(order))]
        return [*first, *[row for row in reversed(order) if row not in first][: SLIDES // 2]]

    def table(self) -> str:
        """The rows of predictions.csv, with its header."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(header(self.kind, self.classes))
        chances = self.probabilities
        answered = self._answered(chances)
        for row, name in enumerate(self.names):
            patient = self._patient(row)
            fold = self.fold[row] if self.fold else None
            writer.writerow([
                as_cell(name),
                as_cell(patient),
                "" if fold is None else fold,
                *self._truth(row),
                *([as_cell(answered[row])] if answered else []),
                *(repr(float(value)) for value in chances[row]),
            ])
        return text.getvalue()

    def _truth(self, row: int) -> list[Any]:
        target = self.targets[row]
        if self.kind == "survival":
            return [repr(float(target[0])), int(target[1])]
        if self.kind == "several":
            return [int(value) for value in target]
        return [as_cell(self.classes[int(target)])]

    def _answered(self, chances: np.ndarray) -> list[str]:
        """The class that is said of each slide: of two the second from its threshold on."""
        if self.kind != "class":
            return []
        two = len(self.classes) == 2 and self.thresholds and self.thresholds[1] is not None
        index = chances[:, 1] >= self.thresholds[1] if two else chances.argmax(1)
        return [self.classes[int(k)] for k in index]

    def __str__(self) -> str:
        whose = counted(len(self.names), "slide")
        return f"{whose} of {self.expected:,}\n{self.per_patient}"


def _single(outcome: PatientEvaluation) -> dict[str, float | None]:
    """Accuracies of one class a patient."""
    accuracy, balanced = outcome.accuracy, outcome.balanced_accuracy
    return {
        "top1": None if accuracy is None else accuracy.value,
        "balanced_accuracy": None if balanced is None else balanced.value,
        "commonest": float(outcome.truth.sum(0).max() / len(outcome.truth)),
    }


def header(kind: Kind, classes: Sequence[str]) -> list[str]:
    """The columns of predictions.csv."""
    first = ["slide", "patient", "fold"]
    if kind == "survival":
        return [*first, "time", "event", "risk"]
    if kind == "several":
        return [*first, *(TRUE + name for name in classes), *(CHANCE + name for name in classes)]
    return [*first, "label", "class", *(f"{CHANCE}{name}" for name in classes)]


def numbers(
    names: Sequence[str],
    patients: Sequence[str] | None,
    answers: np.ndarray,
    targets: np.ndarray,
    classes: Sequence[str],
    kind: Kind,
    thresholds: Sequence[float | None] = (),
) -> PatientEvaluation | SurvivalEvaluation:
    """The numbers of patients, from answers to slides.

    Args:
        names: (n,) of slides.
        patients: (n,) whose each is.
        answers: (n, K) probabilities, or (n, 1) logarithms of the risk.
        targets: (n,), (n, K) or (n, 2).
        classes: K names.
        kind: which of the three.
        thresholds: of each class.
    """
    units = averaged(names, answers, targets, patients)
    if kind == "survival":
        return SurvivalEvaluation(units)
    return PatientEvaluation(units, tuple(classes), tuple(thresholds))


def with_thresholds(outcome: BagEvaluation, validated: Mapping[str, Any]) -> BagEvaluation:
    """The outcome with what validation chose."""
    return replace(outcome, thresholds=tuple(validated.get("thresholds") or ()))


@torch.no_grad()
def evaluate_bags(
    model: nn.Module,
    loader: EpochLoader,
    classes: Sequence[str],
    kind: Kind,
    *,
    amp: str = "none",
    label: str = "evaluating",
    fold: int | None = None,
) -> BagEvaluation:
    """Measure a model on what an `eval_loader` of bags yields; of several ranks all get the whole.

    Args:
        model: features (B, N, D), coordinates and mask to logits (B, K).
        loader: yields lists of `Tiles` and of targets.
        classes: names in index order.
        kind: of the targets.
        amp: "none", "bfloat16" or "float16".
        label: of the progress line.
        fold: that is tested.

    Raises:
        DivergedError: some logits are not finite.
    """
    device = next(model.parameters()).device
    logits, targets = [], []
    with evaluating(model):
        total = len(loader.positions)
        for bags, truth in track(loader, total, label, size=lambda batch: len(batch[1])):
            with autocast(device, amp):
                logits.append(answered(model, bags, device).float().cpu())
            targets += truth
    rows = list(
        zip(loader.positions, torch.cat(logits).numpy() if logits else [], targets, strict=True)
    )
    if loader.rounds is not None:
        rows = sorted((row for part in ranks.gather(rows) for row in part), key=lambda row: row[0])
    answers = np.stack([row[1] for row in rows])
    bad = int((~np.isfinite(answers)).any(1).sum())
    if bad:
        raise DivergedError(
            f"the model's output is not finite for {bad} of {len(answers)} bags: its weights "
            "diverged"
        )
    samples: Samples = loader.dataset.samples  # type: ignore[attr-defined]
    indices = [int(row[0]) for row in rows]
    groups = samples.groups
    return BagEvaluation(
        names=tuple(samples.name(index) for index in indices),
        patients=None if groups is None else tuple(str(groups[index]) for index in indices),
        logits=answers,
        targets=np.stack([np.asarray(row[2]) for row in rows]),
        classes=tuple(classes),
        kind=kind,
        expected=len(samples),
        fold=() if fold is None else (fold,) * len(rows),
        tiles=TileNotes(model, loader.dataset),
    )


def answered(model: nn.Module, bags: list[Any], device: torch.device) -> Tensor:
    """Logits (B, K) of bags, padded to the longest; coordinates where they were read."""
    features, coords, mask = padded(bags)
    logits: Tensor = model(
        features.to(device),
        coords.to(device) if coords.shape[2] else None,
        None if bool(mask.all()) else mask.to(device),
    )
    return logits


@dataclass(frozen=True)
class ReadPredictions:
    """predictions.csv, read: as of `BagEvaluation`, with probabilities in the place of logits."""

    names: tuple[str, ...]
    patients: tuple[str, ...]
    folds: tuple[str, ...]
    answers: np.ndarray  # (n, K)
    targets: np.ndarray
    classes: tuple[str, ...]
    kind: Kind

    def per_patient(
        self, thresholds: Sequence[float | None] = ()
    ) -> PatientEvaluation | SurvivalEvaluation:
        """The numbers of patients."""
        parts = self.names, self.patients, self.answers, self.targets, self.classes
        return numbers(*parts, self.kind, thresholds)


def read_predictions(path: Path) -> ReadPredictions:
    """Read predictions.csv.

    Raises:
        DataError: it is missing or damaged.
    """
    try:
        with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
            head, *rows = csv.reader(file)
        kinds: dict[str, Kind] = {"time": "survival", "label": "class"}
        kind = kinds.get(head[3], "several")
        classes = tuple(name.removeprefix(CHANCE) for name in head if name.startswith(CHANCE))
        first = 5 if kind != "several" else 3 + len(classes)
        answers = np.array([[float(cell) for cell in row[first:]] for row in rows])
        cells = [row[3:first] for row in rows]
        if kind == "class":
            written = [as_cell(name) for name in classes]
            targets = np.array([written.index(row[0]) for row in cells])
        else:
            targets = np.array([[float(cell) for cell in row] for row in cells])
    except (OSError, ValueError, IndexError) as error:
        raise DataError(
            f"{path} cannot be read as the answers of a run ({error}): train the run again"
        ) from error
    names, patients, folds = (tuple(row[index] for row in rows) for index in range(3))
    if kind == "survival":
        classes = ("risk",)
    return ReadPredictions(names, patients, folds, answers, targets, classes, kind)
