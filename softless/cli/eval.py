"""`softless eval`: what the best epoch of a run is worth on a split of data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from softless.data.datasets import open_parts, open_splits
from softless.data.given import data_given, is_dataset, parts_of
from softless.data.loader import shared_loader
from softless.data.notices import notice
from softless.data.samples import Samples
from softless.data.sources import opened_for_all
from softless.errors import UsageError, located, need, unknown
from softless.evaluation.evaluate import Evaluation, evaluate
from softless.evaluation.features import Probe, as_it_is, extract, output
from softless.evaluation.knn import nearest
from softless.evaluation.linear import LinearSettings, probe
from softless.evaluation.run import MOST_AT_ONCE, LoadedRun
from softless.experiment.assignments import assignments
from softless.experiment.folder import SPLITS as SPLITS_FILE
from softless.experiment.groups import CLASSIFIES, LISTED
from softless.experiment.measures import MEASURES, beside
from softless.exporting.dense.worth import of_normalised
from softless.exporting.names import is_file
from softless.exporting.use import (
    amp_for,
    check_named,
    device_for,
    precision_for,
    run_or_file,
)
from softless.models.durable import write_text
from softless.models.given import model_given
from softless.tasks.dino.transforms import one_crop
from softless.tasks.labelled import (
    HELD,
    EvaluationSource,
    check_there,
    refuse_labels,
    samples_of,
    source_of,
)
from softless.tasks.multilabel.measure import evaluate_labels
from softless.tasks.multilabel.settings import MultilabelSpec
from softless.tasks.table import TASKS, dense_samples
from softless.tasks.task import Outcome
from softless.training.machine import IN_MEMORY
from softless.training.sharing import sharing
from softless.training.split_table import learnt_from
from softless.training.world import World
from softless.words import as_cell, counted, visible

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch
    from torch import nn
    from torch.utils.data import Dataset


T = TypeVar("T")

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class RunEvaluation:
    """An evaluation with what was evaluated on what; prints as a table."""

    run: str
    data: str
    split: str
    evaluation: Evaluation
    precision: str  # float32, bfloat16 or float16; int8 of a file

    def to_dict(self) -> dict[str, Any]:
        return {**_head(self), **self.evaluation.to_dict()}

    def __str__(self) -> str:
        parts = [_title(self), "", str(self.evaluation)]
        if len(self.evaluation.classes) <= 20:
            parts += ["", self.evaluation.by_class(), "", confusion_table(self.evaluation)]
        return "\n".join(parts)


@dataclass(frozen=True)
class DenseEvaluation:
    """What a detector, a segmenter or a classifier of several labels is worth."""

    run: str
    data: str
    split: str
    outcome: Outcome
    precision: str  # float32, bfloat16 or float16; int8 of a file

    def to_dict(self) -> dict[str, Any]:
        return {**_head(self), **self.outcome.to_dict()}

    def __str__(self) -> str:
        return f"{_title(self)}\n\n{self.outcome}"


@dataclass(frozen=True)
class FeatureEvaluation:
    """What the frozen features of a run are worth: classifiers over those of labelled images."""

    run: str
    data: str
    split: str
    probes: tuple[Probe, ...]
    precision: str = "float32"

    def to_dict(self) -> dict[str, Any]:
        return {**_head(self), **{probe.measure: probe.to_dict() for probe in self.probes}}

    def __str__(self) -> str:
        lines = [f"frozen features of {_title(self)}", ""]
        for frozen in self.probes:
            low, high = frozen.interval
            baseline = beside(frozen.commonest, 1 / len(frozen.classes))
            name = (
                f"{frozen.how.split()[0]}-NN"
                if frozen.measure == "knn"
                else MEASURES[frozen.measure].title
            )
            lines.append(
                f"{name:<22} {frozen.accuracy:.4f}  (95 % interval {low:.4f} to {high:.4f}; "
                f"{len(frozen.targets)} images)"
            )
            lines.append(
                f"{'':<22} balanced {frozen.balanced_accuracy:.4f}; {baseline}; {frozen.width} "
                f"features; {frozen.how}"
            )
        return "\n".join(lines)


def eval(
    run: str | Path,
    data: "str | Path | Dataset[Any] | Mapping[str, Dataset[Any]] | None" = None,
    *,
    model: "nn.Module | None" = None,
    table: str | Path | None = None,
    split: Literal["train", "val", "test"] = "test",
    knn: int | None = None,
    linear: bool = False,
    set: Sequence[str] = (),
    device: str = "auto",
    batch_size: int | None = None,
    workers: int = 0,
    amp: Literal["none", "bfloat16", "float16"] | None = None,
    predictions: str | Path | None = None,
) -> Any:
    """Measure the best epoch of a run: a classifier's accuracy, a detector's AP, a segmenter's
    Dice, or what frozen features are worth.

    Of a classifier: accuracy with its 95 % interval beside what always the commonest class and
    chance get, balanced accuracy, AUC, Brier score, calibration error, precision and recall of each
    class, confusion. Of two classes also sensitivity and specificity at the threshold that the run
    chose on its validation images. AP and Dice have intervals over images. Numbers of bags are of
    patients: AUC with a bootstrap over patients and DeLong's interval, or concordance. With --knn or --linear,
    of any run but detectors and segmenters: accuracy of a classifier over frozen features, those of
    the train folder against those of the split. A run of DINO alone has no classes, and is measured
    by its 20 nearest neighbours where nothing else is asked for.

    An exported file is measured by what it says of itself, in float32 and on the data that are
    named. So is a folder of `softless.save_weights`, with class folders matched by name; where it
    names no classes, those of the data are taken in their order.

    Args:
        run: the run's folder, a folder of `save_weights` or `local-dir:FOLDER`, or a file of
            `softless export`.
        data: a folder or npz file with classes of the run, all or some, in place of the run's own
            data; class folders without splits are taken whole. Frozen features take any labelled
            data with a train part. In Python also datasets, as `softless.train` takes them.
        model: the module in Python, built as it was, of a run whose model was given so.
        table: a CSV file that lists the images, with the columns that the run names, or file,
            label and split; its files start from `data`, or from
            its own folder. Without the column split all images are taken.
        split: which part of the data.
        knn: how many nearest neighbours vote, weighted by their similarity; 20 in the papers.
        linear: train a linear classifier as the papers do (100 epochs of random crops: hours on a
            CPU for large data).
        set: fields of that training as field=value: lr, epochs, batch, weight_decay, seed, and
            views=fixed, which computes the features of each image once and so takes seconds for
            small data.
        device: auto, cpu, cuda, mps.
        batch_size: images at once; by default as in training (of classifiers at most 256), and 256
            for features.
        workers: processes that load images; 0 loads in this one.
        amp: what matrix products are computed in: none is float32. By default as the run was
            trained and tested, so that result.json, `eval` and `predict` agree; features are always
            read in float32.
        predictions: of bags: a CSV file to be written with slide, patient, label, class and the
            probability of each class.

    Returns:
        The measures of the task, with intervals; as text, and `to_dict()` for machines.

    Raises:
        DataError: the run or the data cannot be read, or its classes are not the run's.
        UsageError: no such split, device or field, or features of a detector or segmenter.

    Examples:
        >>> scores = softless.eval("runs/digits").to_dict()
        >>> 0 <= scores["top1"] <= 1
        True
    """
    built = is_dataset(data)
    own = HELD if built else cast("str | Path | None", data)
    with model_given(model), data_given(parts_of(data) if built else None):
        return _measured(
            run,
            own,
            table,
            split,
            knn,
            linear,
            set,
            device,
            batch_size,
            workers,
            amp,
            predictions,
        )


def _measured(
    run: str | Path,
    data: str | Path | None,
    table: str | Path | None,
    split: str,
    knn: int | None,
    linear: bool,
    set: Sequence[str],
    device: str,
    batch_size: int | None,
    workers: int,
    amp: str | None,
    predictions: str | Path | None,
) -> Any:
    """`eval`, of data in files or of those that are held."""
    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if batch_size is not None and batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: at least one image at once")
    if set and not linear:
        raise UsageError("--set changes how the linear classifier is trained: give --linear too")
    arguments = {
        "run": run,
        "data": data,
        "table": table,
        "split": split,
        "knn": knn,
        "linear": linear,
        "set": set,
        "amp": amp,
    }
    device = device_for(run, device)
    with sharing(device, arguments | {"batch_size": batch_size}) as world:
        job = world.together(
            lambda: _job(
                run,
                world.device,
                data,
                table,
                knn=knn,
                linear=linear,
                set=set,
                amp=amp,
                tabled=predictions is not None,
            )
        )
        loaded, source = job.loaded, job.source
        origin = str(loaded.path), source.where, f"the {split} split"
        if knn is not None or linear or loaded.task == "dino":
            return FeatureEvaluation(
                *origin, _probes(job, split, batch_size or MOST_AT_ONCE, workers)
            )
        if loaded.task in CLASSIFIES:
            return _classified(job, split, batch_size, workers)
        outcome = _by_task(
            job, world, None if data is None else str(data), split, batch_size, workers
        )
        if predictions is not None:
            answers: Any = outcome
            world.first(lambda: write_text(located(predictions), answers.table()))
        return DenseEvaluation(*origin, outcome, precision_for(job.amp, loaded))


@dataclass(frozen=True)
class EvaluationJob:
    """What is measured of a run."""

    loaded: LoadedRun
    source: EvaluationSource
    amp: str
    knn: int | None  # neighbours that vote
    linear: LinearSettings | None


def _job(
    run: str | Path,
    device: "torch.device",
    data: str | Path | None,
    table: str | Path | None,
    *,
    knn: int | None,
    linear: bool,
    set: Sequence[str],
    amp: str | None,
    tabled: bool = False,
) -> EvaluationJob:
    """The run and what is asked of it, which go together.

    Raises:
        DataError: the run cannot be read, or its data are not where they were.
        UsageError: it is not measured so.
    """
    loaded = run_or_file(run, device)
    need(*TASKS[loaded.task].needs)
    precise = amp_for(amp, loaded)
    if is_file(run) or loaded.stored:
        check_named(loaded, data, table)
    if is_file(run):
        _check_features(loaded, knn=knn, linear=linear)
    check_there(loaded, data, table)
    source = source_of(loaded, data, table)
    features = knn is not None or linear
    featureless = loaded.task not in {*CLASSIFIES, "dino"}
    if featureless and features:
        raise UsageError(
            f"{loaded.path} is a run of {loaded.task}: frozen features are measured of "
            "classifiers and of dino"
        )
    if loaded.task not in {*LISTED, "dino"} and table is not None:
        raise UsageError(
            f"--table lists images with classes, and {loaded.path} is a run of {loaded.task}: "
            "leave it out"
        )
    if tabled and loaded.task not in LISTED - CLASSIFIES:
        raise UsageError(
            f"--predictions is a table of slides, and {loaded.path} is a run of {loaded.task}: "
            "leave it out; `softless predict` answers images"
        )
    if loaded.task == "multilabel" and features:
        raise UsageError(
            f"{loaded.path} knows several labels an image: neighbours and linear classifiers vote "
            "for single ones"
        )
    if amp is not None and (features or loaded.task == "dino"):
        raise UsageError(f"amp={amp}: frozen features are read in float32; leave --amp out")
    return EvaluationJob(
        loaded,
        source,
        precise,
        20 if knn is None and not linear else knn,
        _linear(set) if linear else None,
    )


def _check_features(loaded: LoadedRun, *, knn: int | None, linear: bool) -> None:
    """Whether a file holds the features that are asked for.

    Raises:
        UsageError: it does not.
    """
    if linear or (knn is not None and loaded.task != "dino"):
        raise UsageError(
            f"{'--linear' if linear else '--knn'} reads features of a model's layers, and "
            f"{loaded.path.name} holds a graph: name the run's folder"
        )


def _classified(
    job: EvaluationJob, split: str, batch_size: int | None, workers: int
) -> RunEvaluation | DenseEvaluation:
    """A classifier, of one label an image or of several."""
    loaded, source, amp = job.loaded, job.source, job.amp
    images = _opened(source, lambda: samples_of(loaded, source, split))
    loader = shared_loader(
        images.samples, loaded.transform, batch=batch_size or loaded.batch_size, workers=workers
    )
    origin = str(loaded.path), source.where, images.part
    if loaded.task == "multilabel":
        threshold = (loaded.recipe.multilabel or MultilabelSpec()).threshold
        labels = evaluate_labels(loaded.model, loader, images.classes, threshold=threshold, amp=amp)
        return DenseEvaluation(*origin, labels, precision_for(amp, loaded))
    outcome = evaluate(loaded, loader, images.classes, amp=amp)
    outcome = replace(outcome, threshold=loaded.threshold)
    return RunEvaluation(*origin, outcome, precision_for(amp, loaded))


def _opened(source: EvaluationSource, work: "Callable[[], T]") -> T:
    """What is opened of labelled images, on all ranks."""
    return opened_for_all(work, in_memory=source.spec.source in IN_MEMORY)


def _head(evaluation: Any) -> dict[str, Any]:
    """What was evaluated on what, and how."""
    return {name: getattr(evaluation, name) for name in ("run", "data", "split", "precision")}


def _title(evaluation: Any) -> str:
    return visible(
        f"{evaluation.run} on {evaluation.split} of {evaluation.data}, computed in "
        f"{evaluation.precision}"
    )


def confusion_table(evaluation: Evaluation) -> str:
    """Rows are the truth, columns the prediction."""
    names = [
        name if len(name) <= 14 else name[:13] + "…" for name in map(visible, evaluation.classes)
    ]
    width = max(len(name) for name in names) + 2
    columns = [max(len(name), 5) for name in names]
    lines = [
        "truth \\ said".ljust(max(width, 14))
        + "  ".join(n.rjust(w) for n, w in zip(names, columns, strict=True))
    ]
    for name, row in zip(names, evaluation.metrics.confusion.tolist(), strict=True):
        lines.append(
            name.ljust(max(width, 14))
            + "  ".join(str(c).rjust(w) for c, w in zip(row, columns, strict=True))
        )
    return "\n".join(lines)


def _by_task(
    job: EvaluationJob,
    world: World,
    data: str | None,
    split: str,
    batch_size: int | None,
    workers: int,
) -> Outcome:
    """Measured by the run's own task on the data asked for, scaled as in training."""
    loaded = job.loaded
    task, samples = world.together(
        lambda: dense_samples(
            loaded,
            data,
            split,
            table=None if job.source.own else job.source.table,
            batch_size=batch_size,
            workers=workers,
        )
    )
    loader = task.eval_loader(samples, world.rank, world.size)
    model = of_normalised(loaded.model)
    outcome = task.to(world.device).evaluate(model, loader, amp=job.amp, label="evaluating")
    if not job.source.own and loaded.task in LISTED:
        _say_learnt(loaded, samples)
    return task.decided(outcome, loaded.best)


def _say_learnt(loaded: LoadedRun, samples: Samples) -> None:
    """A line where a run is measured on what it learnt from."""
    learnt = learnt_from(loaded.path / SPLITS_FILE)
    known = sum(as_cell(samples.name(index)) in learnt for index in range(len(samples)))
    if known:
        notice(
            f"{known:,} of {counted(len(samples), 'slide')} were in the training or validation "
            f"part of {loaded.path}: numbers of them say nothing of new ones"
        )


def _probes(job: EvaluationJob, split: str, batch: int, workers: int) -> tuple[Probe, ...]:
    """Classifiers over the features of the train part, asked about those of the split."""
    loaded = job.loaded
    train, probed, classes = _opened(job.source, lambda: _bank(loaded, job.source, split))
    probes = []
    reading = as_it_is if is_file(loaded.path) else output
    if job.knn is not None:
        bank, queries = (
            extract(
                loaded.model,
                shared_loader(samples, loaded.transform, batch=batch, workers=workers),
                reading,
            )
            for samples in (train, probed)
        )
        probes.append(nearest(bank, queries, classes, job.knn))
    if job.linear is not None:
        best = loaded.best
        views = one_crop(
            loaded.image_size,
            best["interpolation"],
            best["mean"],
            best["std"],
            loaded.in_chans,
            deep=loaded.scale is not None,
        )
        probes.append(
            probe(
                loaded.model,
                train,
                probed,
                classes,
                views=views,
                transform=loaded.transform,
                settings=job.linear,
                batch_size=batch,
                workers=workers,
            )
        )
    return tuple(probes)


def _bank(
    loaded: LoadedRun, source: EvaluationSource, split: str
) -> tuple[Samples, Samples, tuple[str, ...]]:
    """The images whose features answer, those that are asked about, and their classes."""
    spec = source.spec
    parts, classes = open_parts(spec, source.table)
    refuse_labels(loaded, parts, source.where)
    if split == "train" or (split == "test" and not {"train", "test"} <= parts.keys()):
        raise UsageError(
            f"features of a train part answer a val or test part: {source.where} has "
            f"{', '.join(parts)} and --split {split} was asked for"
        )
    if split == "test":
        return parts["train"], parts["test"], classes
    splits = open_splits(replace(spec, limit=None), loaded.recipe.seed, source.table)
    return splits.train, splits.val, classes


def _linear(pairs: Sequence[str]) -> LinearSettings:
    """The papers' settings with these fields changed."""
    kinds = {
        field.name: type(getattr(LinearSettings(), field.name)) for field in fields(LinearSettings)
    }
    settings: dict[str, Any] = {}
    for name, text in assignments(pairs).items():
        if name not in kinds:
            raise unknown("field of the linear classifier", name, kinds)
        try:
            settings[name] = kinds[name](text)
        except ValueError:
            raise UsageError(
                f"{name}={text} does not fit: the field takes "
                f"{'a whole number' if kinds[name] is int else 'a number'}"
            ) from None
    if settings.get("views", "fixed") not in {"random", "fixed"}:
        raise unknown("kind of views", settings["views"], ("random", "fixed"))
    return LinearSettings(**settings)
