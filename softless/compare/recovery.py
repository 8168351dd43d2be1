"""One trained model with several operators in place of its own: what each step of a recovery brings
back.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from softless.attention.registry import get
from softless.compare.record import processor, record_path, write_csv
from softless.data.progress import track
from softless.errors import (
    DataError,
    ResumeMismatch,
    StorageError,
    UsageError,
    located,
    unknown,
)
from softless.evaluation.intervals import wilson
from softless.recovery.answers import Nearness
from softless.recovery.folder import RecoveryFolder
from softless.recovery.recover import MANY, NUMBER, recover
from softless.recovery.recovered import Recovered
from softless.recovery.steps import BARE, DISTIL, REFIT, STEPS
from softless.tasks.trained import trained_model
from softless.words import counted, table

OPERATORS = ("sima", "seqnorm", "soft", "relu_linear", "cosformer", "efficient", "inline")
# of the operators where their defaults are for another use
OPTIONS: Mapping[str, Mapping[str, Any]] = {"sima": {"token_scale": "tokens"}}
NUMBERS = ("top1", "teacher_top1", "agreement", "kl", "cosine")


@dataclass(frozen=True)
class RecoveryRow:
    """One operator after one step: means over seeds."""

    op: str
    step: str = ""  # bare, refit, distil
    seeds: int = 0
    images: int = 0  # that were measured on
    top1: float | None = None
    low: float | None = None  # Wilson's 95 % interval of top1; of agreement where there is none
    high: float | None = None
    teacher_top1: float | None = None
    agreement: float | None = None
    kl: float | None = None
    cosine: float | None = None
    seconds: float | None = None  # of the processor
    exponentials: int | None = None  # evaluations of one image that are left
    why: str = ""  # why there are no numbers

    @property
    def share(self) -> float | None:
        """Of the teacher's accuracy."""
        if self.top1 is None or not self.teacher_top1:
            return None
        return self.top1 / self.teacher_top1

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "share": self.share}


@dataclass(frozen=True)
class RecoveryTable:
    """All of them; prints as a table."""

    model: str
    rows: tuple[RecoveryRow, ...]
    number: int
    machine: str
    out: Path
    recorded: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        return {
            "model": self.model,
            "rows": [row.to_dict() for row in self.rows],
            "number": self.number,
            "machine": self.machine,
            "out": str(self.out),
        }

    def __str__(self) -> str:
        head = ["operator", "step", "top1", "95 %", "of the teacher", "agreement", "KL", "cosine"]
        head += ["exponentials left", "CPU s"]
        cells = [_cells(row) for row in self.rows if not row.why]
        measured = [row for row in self.rows if not row.why]
        how = [f"refits on {counted(self.number, 'image')} at most, {self.machine}"]
        if measured:
            first = measured[0]
            how.insert(0, f"{self.model}, measured on {counted(first.images, 'image')}")
            how.append(counted(first.seeds, "seed"))
            if first.teacher_top1 is not None:
                how.append(f"teacher {first.teacher_top1:.1%}")
        return "\n".join([
            table(head, cells),
            "",
            "; ".join(how),
            *(f"{row.op}: {row.why}" for row in self.rows if row.why),
            f"recoveries: {self.out}",
            *([f"recorded: {self.recorded}"] if self.recorded else []),
        ])


def _cells(row: RecoveryRow) -> list[str]:
    def shown(value: float | None, form: str) -> str:
        return "" if value is None else format(value, form)

    interval = "" if row.low is None else f"{row.low:.1%} to {row.high:.1%}"
    return [
        row.op,
        row.step,
        shown(row.top1, ".1%"),
        interval,
        shown(row.share, ".1%"),
        shown(row.agreement, ".1%"),
        shown(row.kl, ".3f"),
        shown(row.cosine, ".3f"),
        shown(row.exponentials, ",d"),
        shown(row.seconds, ".1f"),
    ]


def recoveries(
    model: str,
    *,
    images: str | Path,
    ops: Sequence[str] = OPERATORS,
    steps: Sequence[str] = STEPS,
    weights: str | Path | None = None,
    pretrained: bool = False,
    num_classes: int | None = None,
    in_chans: int | None = None,
    image_size: int | None = None,
    number: int | None = None,
    epochs: int = 5,
    seeds: int = 1,
    out: str | Path | None = None,
    resume: bool = False,
    overwrite: bool = False,
    record: bool = False,
) -> RecoveryTable:
    """Exchange the attention of one trained model for several operators, and tell what each step of
    a recovery brings back.

    The steps are those of `softless recover`: the bare swap, the refit, the distillation. Numbers
    are of images that the step was not fitted on. An operator that does not fit the model is a line
    with the reason.

    Args:
        model: the folder of a run (a classifier) or of `save_weights`, or the name of a model with
            --weights or --pretrained.
        images: a folder of images; class folders of the model's class names tell accuracy too.
        ops: operators.
        steps: refit, distil, or both in this order; the bare swap is told in any case.
        weights: a checkpoint for a model of that name.
        pretrained: start from the weights that timm knows for the name (downloads).
        num_classes: classes of a model of one's own, as --weights has them.
        in_chans: channels of its images.
        image_size: pixels of their side.
        number: how many images the refit uses; without it 256, or 1,024 where a distillation
            follows.
        epochs: of the distillation.
        seeds: how many, from 0 on: of the images that are held out, and of the distillation.
        out: folder of the recoveries, a folder each; runs/MODEL-recover by default.
        resume: go on with those that are there, finished ones included.
        overwrite: delete those that are there.
        record: also write benchmarks/recover_MODEL.csv of the repository.

    Raises:
        UsageError: no such model, operator or step, or a number below one.
        DataError: weights or images that cannot be read, or too few images.
    """
    names = _asked(ops, steps, seeds)
    sizes = {"num_classes": num_classes, "in_chans": in_chans, "img_size": image_size}
    network, _ = trained_model(
        model,
        weights,
        {name: value for name, value in sizes.items() if value is not None},
        pretrained=pretrained,
    )
    label = Path(model).name
    target = record_path(f"recover_{label}") if record else None
    folder = located(Path("runs") / f"{label}-recover" if out is None else out)
    planned = [(op, seed) for op in names for seed in range(seeds)]
    places = {pair: folder / f"{pair[0]}-seed{pair[1]}" for pair in planned}
    for place in places.values():  # said before any work
        RecoveryFolder(place, resume=resume, overwrite=overwrite)
    most = (MANY if DISTIL in steps else NUMBER) if number is None else number
    by_operator: dict[str, list[Recovered]] = {op: [] for op in names}
    reasons: dict[str, str] = {}
    for op, seed in track(planned, len(planned), "recovering"):
        if op in reasons:
            continue
        outcome = _recovered(
            network,
            op,
            images=located(images),
            steps=tuple(steps),
            epochs=epochs,
            number=most,
            seed=seed,
            out=places[op, seed],
            resume=resume,
            overwrite=overwrite,
        )
        if isinstance(outcome, str):
            reasons[op] = outcome
        else:
            by_operator[op].append(outcome)
    if len(reasons) == len(names):
        raise UsageError(reasons[names[0]])
    rows = tuple(
        row
        for op in names
        for row in (
            [RecoveryRow(op, why=reasons[op])]
            if op in reasons
            else list(_rows(op, by_operator[op]))
        )
    )
    if target is not None:
        write_csv(target, [row.to_dict() for row in rows])
    return RecoveryTable(label, rows, most, processor(), folder, target)


def _asked(ops: Sequence[str], steps: Sequence[str], seeds: int) -> list[str]:
    """The operators by name, where the arguments make sense."""
    if seeds < 1 or not ops:
        raise UsageError(f"seeds={seeds}, ops={tuple(ops)}: at least one of each")
    for step in steps:
        if step not in STEPS:
            raise unknown("step", step, STEPS)
    return list(dict.fromkeys(get(op).name for op in ops))


def _recovered(model: Any, op: str, **settings: Any) -> Recovered | str:
    """What came out, or why the operator does not fit the model."""
    try:
        return recover(model, op, progress=False, **settings, **OPTIONS.get(op, {}))
    except (DataError, ResumeMismatch, StorageError):
        raise
    except UsageError as error:
        return str(error)


def _rows(op: str, recovered: Sequence[Recovered]) -> Iterator[RecoveryRow]:
    """A row for each step, of the recoveries of one operator."""
    first = recovered[0]
    for step in (BARE, REFIT, DISTIL):
        if step not in first.nearness:
            continue
        near = [each.nearness[step] for each in recovered]
        means: dict[str, Any] = {name: _mean(near, name) for name in NUMBERS}
        share = means["agreement"] if means["top1"] is None else means["top1"]
        images = near[0].images
        low, high = (None, None) if share is None else wilson(round(share * images), images)
        seconds = [each.seconds[step] for each in recovered if step in each.seconds]
        yield RecoveryRow(
            op=op,
            step=step,
            seeds=len(recovered),
            images=images,
            low=low,
            high=high,
            seconds=fmean(seconds) if seconds else None,
            exponentials=None if first.after is None else sum(first.after.kinds.values()),
            **means,
        )


def _mean(near: Sequence[Nearness], name: str) -> float | None:
    values = [value for each in near if (value := getattr(each, name)) is not None]
    return fmean(values) if values else None
