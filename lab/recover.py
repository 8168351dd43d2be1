"""What recovery brings back: trained softmax models with other operators in place, step by step,
pooled over their seeds.
"""

import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lab.kept import answer_in
from softless.attention.registry import registered
from softless.compare.record import record_path, write_csv
from softless.convert.calibrate import branches, fitted, multiplied
from softless.convert.refit.refit import exchanged
from softless.convert.rehost import attends_with, rehosted
from softless.data.progress import track
from softless.errors import UsageError, located, unknown
from softless.evaluation.intervals import Interval, bootstrap_mean, paired_bootstrap
from softless.experiment.recipe import Recipe
from softless.exporting.source import Source, opened, tensors
from softless.models.durable import make_folder, write_text
from softless.modes import in_evaluation
from softless.recovery.recover import recover
from softless.tasks.labelled import samples_of, source_of
from softless.tasks.loaded import load_run
from softless.training.loop import fit
from softless.words import table

STEPS = ("bare", "calibrate", "refit", "distil", "scratch")
OPERATORS = ("sima", "seqnorm", "soft", "relu_linear", "cosformer", "efficient", "inline")
# of the operators where their defaults are for another use
OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "sima": {"token_scale": "tokens"},
    "soft": {"sampling": "pool", "ratio": 1},
}
TIMED = ("distil", "scratch")  # held against what the teacher's training takes
EPOCHS = 5  # of the distillation, and from scratch
CALIBRATED_ON = 64  # images, which the gains of heads are fitted on
AT_ONCE = 128  # images of a pass
NONE = "softmax"
SHOWN = (  # columns of the printed table
    "data",
    "teacher",
    "seeds",
    "teacher_top1",
    "op",
    "step",
    "top1",
    "share",
    "difference_low",
    "difference_high",
    "agreement",
    "kl",
    "cosine",
    "cpu_seconds",
    "bar",
    "held",
)
# least share of the teacher's accuracy on handwritten digits: of good teachers, and of weak ones
GOOD, WEAK = 0.95, 0.80
BARS: Mapping[str, Mapping[str, float]] = {
    "refit": {
        "relu_linear": 0.96,
        "cosformer": 0.96,
        "efficient": 0.96,
        "sima": 0.93,
        "seqnorm": 0.93,
        "soft": 0.93,
    },
    "distil": {"relu_linear": 0.985, "sima": 0.97, "seqnorm": 0.97},
}
BAR_OF_WEAK = 0.88  # after refit
MOST_SECONDS = 10.0  # of a refit
MOST_OF_TRAINING = 0.2  # of the teacher's, for the distillation


@dataclass(frozen=True)
class Answers:
    """One teacher, one operator, one step, on the teacher's test images."""

    teacher: str  # the folder that the teachers lie in
    data: str
    host: str
    seed: int
    op: str
    step: str
    images: int  # without labels, that the step was given
    right: list[bool]
    right_teacher: list[bool]
    agreement: float  # share of test images with the teacher's answer
    kl: float  # of the teacher's probabilities to the model's, nats
    cosine: float  # of the features, mean over tokens
    seconds: float  # of the processor; of a distillation those of the refit ahead are left out
    teacher_seconds: float | None  # that its training would take here; of TIMED steps alone


@dataclass(frozen=True)
class Pooled:
    """The answers of one step over the seeds."""

    answers: tuple[Answers, ...]

    @property
    def first(self) -> Answers:
        return self.answers[0]

    @cached_property
    def teacher(self) -> Interval:
        return bootstrap_mean([each.right_teacher for each in self.answers])

    @cached_property
    def accuracy(self) -> Interval:
        return bootstrap_mean([each.right for each in self.answers])

    @cached_property
    def difference(self) -> Interval:
        """To the teachers, seeds and images drawn together."""
        return paired_bootstrap(
            [each.right for each in self.answers], [each.right_teacher for each in self.answers]
        )

    @property
    def share(self) -> float:
        """Of the teachers' accuracy."""
        return self.accuracy.value / self.teacher.value

    @property
    def bar(self) -> float | None:
        """The least share that is asked of it."""
        if self.first.data != "digits":
            return None
        if self.teacher.value >= GOOD:
            return BARS.get(self.first.step, {}).get(self.first.op)
        if self.teacher.value >= WEAK and self.first.step == "refit":
            return BAR_OF_WEAK if self.first.op in BARS["refit"] else None
        return None

    @property
    def in_time(self) -> bool:
        """Whether the step took no longer than it may."""
        if self.first.step == "distil":
            return all(
                each.seconds <= MOST_OF_TRAINING * (each.teacher_seconds or 0)
                for each in self.answers
            )
        return self.first.step != "refit" or all(
            each.seconds <= MOST_SECONDS for each in self.answers
        )

    @property
    def holds(self) -> bool:
        return self.bar is None or (self.share >= self.bar and self.in_time)

    def mean(self, name: str) -> float:
        return float(np.mean([getattr(each, name) for each in self.answers]))

    def row(self) -> dict[str, Any]:
        """For the CSV file."""
        first = self.first
        return {
            "data": first.data,
            "teacher": first.teacher,
            "host": first.host,
            "seeds": len(self.answers),
            "test_images": len(first.right),
            "teacher_top1": round(self.teacher.value, 4),
            "op": first.op,
            "step": first.step,
            "images": first.images,
            "top1": round(self.accuracy.value, 4),
            "top1_low": round(self.accuracy.low, 4),
            "top1_high": round(self.accuracy.high, 4),
            "share": round(self.share, 4),
            "difference": round(self.difference.value, 4),
            "difference_low": round(self.difference.low, 4),
            "difference_high": round(self.difference.high, 4),
            "least_share": round(
                min(np.mean(each.right) / np.mean(each.right_teacher) for each in self.answers), 4
            ),
            "agreement": round(self.mean("agreement"), 4),
            "kl": round(self.mean("kl"), 4),
            "cosine": round(self.mean("cosine"), 4),
            "cpu_seconds": round(self.mean("seconds"), 2),
            "teacher_cpu_seconds": round(self.mean("teacher_seconds"), 1)
            if first.step in TIMED
            else "",
            "bar": "" if self.bar is None else self.bar,
            "held": "" if self.bar is None else ("met" if self.holds else "missed"),
        }


@dataclass(frozen=True)
class Recoveries:
    """All of them."""

    pooled: tuple[Pooled, ...]
    recorded: Path | None = None

    @property
    def exit_code(self) -> int:
        return 0 if all(pooled.holds for pooled in self.pooled) else 1

    def rows(self) -> list[dict[str, Any]]:
        return [pooled.row() for pooled in self.pooled]

    def to_dict(self) -> list[dict[str, Any]]:
        return self.rows()

    def __str__(self) -> str:
        cells = [[row[name] for name in SHOWN] for row in self.rows()]
        footer = f"\n\nrecorded: {self.recorded}" if self.recorded else ""
        return table(SHOWN, cells) + footer


def recoveries(
    runs: Sequence[str] = (),
    *,
    ops: Sequence[str] = OPERATORS,
    steps: Sequence[str] = STEPS,
    out: str | Path = "runs/recover",
    resume: bool = False,
    kept: bool = False,
    record: bool = False,
    threads: int = 1,
) -> Recoveries:
    """Exchange the attention of trained softmax classifiers, recover it step by step, and pool the
    answers over their seeds.

    Steps: `bare`, the exchange alone; `calibrate`, a number for each head; `refit`, from at most
    256 images without labels; `distil`, the refit and five epochs of the teacher's answers;
    `scratch`, the operator trained on labels for those five epochs.

    Args:
        runs: folders of `softless train` with softmax; those that lie in one folder are pooled.
        ops: operators.
        steps: some of the steps.
        out: a folder for the answers.
        resume: keep the answers that are there.
        kept: tell those alone, and measure nothing.
        record: also write benchmarks/recover.csv of the repository.
        threads: of the processor, whose seconds are counted.

    Raises:
        UsageError: no runs, an unknown operator or step, a run that is no softmax classifier,
            answers that are there already.
    """
    target = record_path("recover") if record else None
    if not runs:
        raise UsageError("no runs: name folders of `softless train` with model.op=softmax")
    for step in steps:
        if step not in STEPS:
            raise unknown("step", step, STEPS)
    names = [registered(op).name for op in ops]
    torch.set_num_threads(threads)
    cells = _Cells(located(out), resume=resume or kept)
    planned = [
        (run, op, step)
        for run in map(located, runs)
        for op in names
        for step in STEPS
        if step in steps and (not kept or cells.path(run, op, step).exists())
    ]
    if not planned:
        raise UsageError(f"no answers of these runs in {out}: leave --kept out to measure them")
    groups: dict[tuple[str, ...], list[Answers]] = {}
    for run, op, step in track(planned, len(planned), "recovering"):
        answers = cells.answers(run, op, step)
        key = answers.data, answers.teacher, answers.op, answers.step
        groups.setdefault(key, []).append(answers)
    pooled = tuple(Pooled(tuple(together)) for together in groups.values())
    if target is not None:
        write_csv(target, [each.row() for each in pooled])
    return Recoveries(pooled, target)


class _Cells:
    """The answers of each run, operator and step, measured where they are not kept."""

    def __init__(self, folder: Path, *, resume: bool) -> None:
        self.folder, self.resume, self.benches = folder, resume, Benches()

    def path(self, run: Path, op: str, step: str) -> Path:
        """Where the answers of a step are kept."""
        return self.folder / f"{run.parent.name}-{run.name}-{op}-{step}.json"

    def answers(self, run: Path, op: str, step: str) -> Answers:
        measure = partial(self._measured, run, op, step)
        return answer_in(self.path(run, op, step), Answers, measure, resume=self.resume)

    def _measured(self, run: Path, op: str, step: str) -> Answers:
        bench = self.benches.of(run)
        return bench.measured(op, step, self._training_seconds(bench) if step in TIMED else None)

    def _training_seconds(self, bench: "Bench") -> float:
        """What the teacher's training takes, from one epoch of it on this machine."""
        path = self.folder / f"{bench.path.parent.name}-{bench.path.name}-teacher.json"
        if not path.exists():
            make_folder(self.folder)
            write_text(path, json.dumps(bench.training_seconds()))
        return float(json.loads(path.read_text(encoding="utf-8")))


class Benches:
    """The run under way; each is opened once, where runs come one after the other."""

    def __init__(self) -> None:
        self.bench: Bench | None = None

    def of(self, run: Path) -> "Bench":
        """That of a run."""
        if self.bench is None or self.bench.path != run:
            self.bench = Bench(run)
        return self.bench


class Bench:
    """One trained softmax classifier with its images, on which recoveries are measured."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.source: Source = opened(path)
        run = self.source.run
        if run is None or self.source.task != "classification" or attends_with(run.model) != NONE:
            raise UsageError(f"{path} is no classifier that was trained with model.op={NONE}")
        self.teacher = self.source.model
        test = self.source.test_images(None)
        few = self.source.calibration_images(None)
        if test is None or few is None:
            raise UsageError(f"the images of {path} are not where they were")
        self.test = tensors(test, self.source.transform)
        self.labels = torch.as_tensor(np.asarray(test.targets))
        self.images = tensors(few, self.source.transform)
        self.logits, self.features = outputs(self.teacher, self.test)

    @property
    def recipe(self) -> Recipe:
        assert self.source.run is not None
        return self.source.run.recipe

    @cached_property
    def training_images(self) -> Tensor:
        """All that the teacher was trained on, prepared as in evaluation."""
        return self._part("train")

    @cached_property
    def held_out(self) -> Tensor:
        """The validation images of its run, which no step is given."""
        return self._part("val")

    def _part(self, name: str) -> Tensor:
        assert self.source.run is not None
        own = source_of(self.source.run, None, None)
        return tensors(samples_of(self.source.run, own, name).samples, self.source.transform)

    def student(self, op: str, **changed: Any) -> nn.Module:
        """The teacher's host with another operator and its weights; `changed` of its options."""
        return rehosted(self.teacher, op, {**OPTIONS.get(op, {}), **changed})[0].eval()

    def measured(self, op: str, step: str, training_seconds: float | None) -> Answers:
        """What a step comes to."""
        start = time.process_time()
        student, images, own_seconds = self._stepped(op, step)
        seconds = own_seconds or time.process_time() - start
        logits, features = outputs(student, self.test)
        recipe = self.recipe
        return Answers(
            self.path.parent.name,
            Path(recipe.data.path).stem if recipe.data.path else recipe.data.source,
            str(recipe.model.name),
            recipe.seed,
            op,
            step,
            images,
            (logits.argmax(1) == self.labels).tolist(),
            (self.logits.argmax(1) == self.labels).tolist(),
            agreement(self.logits, logits),
            divergence(self.logits, logits),
            cosine(self.features, features),
            seconds,
            training_seconds,
        )

    def _stepped(self, op: str, step: str) -> tuple[nn.Module, int, float | None]:
        """The model after a step, how many images without labels it was given, and its seconds
        where they are not those of all that was done.
        """
        if step == "scratch":
            return self._from_scratch(op), 0, None
        if step == "bare":
            return self.student(op), 0, None
        if step == "calibrate":
            student = self.student(op)
            calibrate(student, self.teacher, self.images[:CALIBRATED_ON])
            return student, len(self.images[:CALIBRATED_ON]), None
        return self._recovered(op, step)

    def _recovered(self, op: str, step: str) -> tuple[nn.Module, int, float | None]:
        """What `softless.recover` comes to by its own settings."""
        options = OPTIONS.get(op, {})
        if step == "refit":
            ended = recover(self.teacher, op, images=self.images, progress=False, **options)
            return ended.model.eval(), len(self.images), None
        with tempfile.TemporaryDirectory() as folder:
            ended = recover(
                self.teacher,
                op,
                images=self.training_images,
                steps=("refit", "distil"),
                epochs=EPOCHS,
                seed=self.recipe.seed,
                out=Path(folder) / "run",
                progress=False,
                **options,
            )
        return ended.model.eval(), len(self.training_images), ended.seconds["distil"]

    def _from_scratch(self, op: str) -> nn.Module:
        """The operator trained on labels, for as many steps as the distillation takes."""
        fields = {
            "model.op": op,
            **{f"model.args.{name}": value for name, value in OPTIONS.get(op, {}).items()},
        }
        with tempfile.TemporaryDirectory() as folder:
            fit(_short(self.recipe.with_fields(**fields), EPOCHS), Path(folder) / "run")
            return load_run(Path(folder) / "run").model

    def training_seconds(self) -> float:
        """Of the processor, for the teacher's training: one epoch less none, times its epochs."""
        spent = []
        for epochs in (1, 2):
            start = time.process_time()
            with tempfile.TemporaryDirectory() as folder:
                fit(_short(self.recipe, epochs), Path(folder) / "run")
            spent.append(time.process_time() - start)
        return (spent[1] - spent[0]) * self.recipe.schedule.epochs


def _short(recipe: Recipe, epochs: int) -> Recipe:
    schedule = replace(
        recipe.schedule, epochs=epochs, warmup_epochs=min(1, epochs - 1), min_steps=None
    )
    return replace(recipe, schedule=schedule)


def calibrate(student: nn.Module, teacher: nn.Module, images: Tensor) -> None:
    """Multiply each head of a student by the number that `swap(calibrate=)` would give it."""
    paths = exchanged(student, teacher)
    calls = branches(teacher, paths, images, resting(teacher))
    with torch.no_grad():
        student(images[:1])  # tells the grid
    for path in paths:
        module: Any = student.get_submodule(path)
        numbers = fitted(module, calls[path], resting(student)).gains
        holder = getattr(module, "inner", module)
        holder.proj = multiplied(holder.proj, numbers, images)


@contextmanager
def resting(model: nn.Module) -> Iterator[None]:
    with in_evaluation(model), torch.no_grad():
        yield


@torch.no_grad()
def outputs(model: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (n, classes) and features behind the last norm (n, tokens, C)."""
    logits, features = [], []
    for chunk in images.split(AT_ONCE):
        features.append(model.forward_features(chunk))
        logits.append(model.forward_head(features[-1]))
    return torch.cat(logits), torch.cat(features)


def agreement(theirs: Tensor, mine: Tensor) -> float:
    """Share of images (n, classes) with the same first answer."""
    return float((theirs.argmax(1) == mine.argmax(1)).double().mean())


def divergence(theirs: Tensor, mine: Tensor) -> float:
    """Mean over images of KL(theirs || mine) in nats, from logits (n, classes)."""
    p, q = theirs.double().log_softmax(1), mine.double().log_softmax(1)
    return float((p.exp() * (p - q)).sum(1).mean())


def cosine(theirs: Tensor, mine: Tensor) -> float:
    """Mean over images and tokens of the cosine of features (n, tokens, C)."""
    return float(nn.functional.cosine_similarity(theirs.double(), mine.double(), dim=-1).mean())
