"""A run in every format that is installed here: does it work, is it right, what does it cost."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from softless.compare.record import processor, record_path, write_csv
from softless.compare.runtimes import BFLOAT16, EAGER, OF_TORCH, Call, of_file, of_torch
from softless.compare.timing import Spread, Timings, interleaved, threads_of
from softless.errors import SoftlessError, UsageError, located
from softless.exporting.export import files_of
from softless.exporting.formats.format import Format, Int8
from softless.exporting.formats.standing import missing
from softless.exporting.formats.table import FORMATS, format_named
from softless.exporting.loaded import load_exported
from softless.exporting.report import ExportedFile, kinds_of
from softless.exporting.source import Source, opened
from softless.words import counted, said_columns, table

WORKS, FAILS, ABSENT = "yes", "no", "not installed"
INT8: tuple[Int8, ...] = ("none", "weights", "static")


@dataclass(frozen=True)
class ExportRow:
    """A format in one kind of numbers, or the model in torch."""

    format: str  # of the table of formats; eager, optimized or bfloat16 of torch
    int8: Int8
    works: str  # yes, no, not installed
    why: tuple[str, ...] = ()  # sentences on what does not work
    file: ExportedFile | None = None
    milliseconds: Spread | None = None  # of one image; None where this machine cannot run it
    relative: Spread | None = None  # its time over that of eager torch, in pairs of each round

    @property
    def label(self) -> str:
        """Format and kind."""
        return self.format if self.int8 == "none" else f"{self.format}, int8 {self.int8}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON and CSV: one level."""
        file = self.file
        measured = None if file is None else file.measured
        low, high = (None, None) if measured is None or not measured.interval else measured.interval
        drop = None if measured is None else measured.drop
        return {
            "format": self.format,
            "int8": self.int8,
            "works": self.works,
            "why": " ".join(self.why),
            "form": None if file is None else file.form,
            "difference": None if file is None or not file.parity else file.parity.difference,
            "metric": None if measured is None else measured.metric,
            "value": None if measured is None else measured.value,
            "low": low,
            "high": high,
            "model_value": None if measured is None else measured.plain,
            "drop_low": None if drop is None else drop.low,
            "agreement": None if measured is None else measured.agreement,
            "images": None if measured is None else measured.images,
            "transcendentals": None if file is None or file.audit is None else kinds_of(file.audit),
            "delegated": None if file is None else file.shape.delegated,
            "outside": None if file is None else file.shape.outside,
            "bytes": None if file is None else file.bytes,
            **_spread("milliseconds", self.milliseconds),
            **_spread("relative", self.relative),
        }


@dataclass(frozen=True)
class Exports:
    """All of them; prints as a table."""

    source: str
    size: tuple[int, int]
    rows: tuple[ExportRow, ...]
    rounds: int
    threads: int
    machine: str
    out: Path | None = None  # where the files are
    recorded: Path | None = None

    @property
    def exit_code(self) -> int:
        """1 where a format that is installed does not work."""
        return int(any(row.works == FAILS for row in self.rows))

    def to_dict(self) -> dict[str, Any]:
        """Rows, and how they were measured."""
        return {
            "source": self.source,
            "size": list(self.size),
            "rows": [row.to_dict() for row in self.rows],
            "rounds": self.rounds,
            "threads": self.threads,
            "machine": self.machine,
            "out": None if self.out is None else str(self.out),
        }

    def __str__(self) -> str:
        timed = [row for row in self.rows if row.works != ABSENT]
        head = ["format", "works", "difference", "on test images", "model", "alike"]
        head += ["transcendental", "delegated + outside", "KiB", "ms", "quarters", "times eager"]
        columns = said_columns(head, [[_cell(row, name) for name in head] for row in timed])
        sentences = [f"{row.label}: {why}" for row in self.rows for why in row.why]
        images = {row.file.measured.images for row in timed if row.file and row.file.measured}
        how = [
            (
                f"one image of {self.size[0]} x {self.size[1]} at once, {self.machine}, "
                f"{counted(self.threads, 'thread')}, {counted(self.rounds, 'round')} in turns"
            ),
            *(f"{counted(number, 'test image')}, 95 % interval" for number in sorted(images)),
        ]
        return "\n".join([
            table(*columns),
            "",
            "; ".join(how),
            *sentences,
            *([f"files: {self.out}"] if self.out else []),
            *([f"recorded: {self.recorded}"] if self.recorded else []),
        ])


def exports(
    run: str | Path,
    formats: Sequence[str] | None = None,
    *,
    int8: Sequence[str] | None = None,
    size: Sequence[int] | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    calibrate: str | Path | None = None,
    test: str | Path | None = None,
    rounds: int = 15,
    threads: int | None = None,
    record: bool = False,
) -> Exports:
    """Export a run in every format and kind of int8 that is installed here, and show them side by
    side: whether each works, is right, and what it takes.

    A format that fails is a line with its sentence, and the others go on. Times are of one image,
    in turns with the model in torch.

    Args:
        run: the folder of a run, or the name of a model.
        formats: of `softless list formats`; all by default.
        int8: none, weights, static: which of them; all that a format has by default.
        size: height and width in pixels, or the side of a square; the model's own by default.
        out: a folder that keeps the files; without it they are deleted again.
        overwrite: replace files of the same names in `out`.
        calibrate: a folder of images for int8; the run's training images by default.
        test: labelled images to measure on; the run's test split by default.
        rounds: how often each is timed.
        threads: of the processor, for every runtime; torch's own number by default.
        record: also write benchmarks/export_RUN.csv of the repository.

    Raises:
        UsageError: no such run or format, or a number below one.
        DataError: the run or the images cannot be read.
    """
    chosen, kinds = _asked(formats, int8, rounds, threads)
    source = opened(run)
    target = record_path(f"export_{source.name}") if record else None
    sides = source.pixels if size is None else _sides(size)
    work = nullcontext(located(out)) if out is not None else _gone_afterwards()
    with work as folder, threads_of(threads) as count:
        tries = _Tries(source, folder, sides, calibrate, test, overwrite=overwrite)
        for name in OF_TORCH:
            tries.torch(name)
        for target_format in chosen:
            for kind in kinds:
                if kind in {"none", *target_format.int8}:
                    tries.file(target_format, kind)
        timings = interleaved(tries.calls, rounds=rounds)
    rows = tuple(_timed(row, timings) for row in tries.rows)
    result = Exports(
        source.name,
        sides,
        rows,
        rounds,
        count,
        processor(),
        None if out is None else located(out),
        target,
    )
    if target is not None:
        # what is not installed says a path of this machine, and was not measured
        write_csv(target, [row.to_dict() for row in rows if row.works != ABSENT])
    return result


class _Tries:
    """Each format written, and what answers an image where it works."""

    def __init__(
        self,
        source: Source,
        folder: Path,
        sides: tuple[int, int],
        calibrate: str | Path | None,
        test: str | Path | None,
        *,
        overwrite: bool,
    ) -> None:
        self.source, self.folder, self.sides = source, folder, sides
        self.calibrate, self.test, self.overwrite = calibrate, test, overwrite
        self.shape = (1, int(source.best["in_chans"]), *sides)
        self.rows: list[ExportRow] = []
        self.calls: dict[str, Any] = {}

    def torch(self, name: str) -> None:
        """The model itself; what no processor here is fast at is left out."""
        try:
            call = of_torch(name, self.source.model, self.shape, torch.device("cpu"))
        except UsageError as error:
            if name == EAGER:
                raise
            if name != BFLOAT16:
                self.rows.append(ExportRow(name, "none", FAILS, (str(error),)))
            return
        self._add(ExportRow(name, "none", WORKS), call)

    def file(self, record: Format, kind: Int8) -> None:
        """One file, its checks, and what runs it."""
        if absent := missing(record, kind):
            if kind == "none" or not missing(record):
                self.rows.append(ExportRow(record.name, kind, ABSENT, (absent,)))
            return
        try:
            report = files_of(
                self.source,
                (record,),
                self.folder,
                size=self.sides,
                int8=kind,
                calibrate=self.calibrate if kind == "static" else None,
                test=self.test,
                overwrite=self.overwrite,
            )
        except SoftlessError as error:
            self.rows.append(ExportRow(record.name, kind, FAILS, (str(error),)))
            return
        file = report.files[0]
        row = ExportRow(
            record.name, kind, WORKS if file.ok else FAILS, (*file.faults, *file.notes), file
        )
        runs = record.open is not None and file.ok
        self._add(row, of_file(load_exported(file.path), self.shape) if runs else None)

    def _add(self, row: ExportRow, call: Call | None) -> None:
        self.rows.append(row)
        if call is not None:
            self.calls[row.label] = call.call


def _asked(
    formats: Sequence[str] | None, int8: Sequence[str] | None, rounds: int, threads: int | None
) -> tuple[tuple[Format, ...], tuple[Int8, ...]]:
    """Formats and kinds of int8, where the arguments make sense."""
    for name, number in {"rounds": rounds, "threads": threads}.items():
        if number is not None and number < 1:
            raise UsageError(f"{name}={number}: at least one")
    names = list(FORMATS) if formats is None else list(dict.fromkeys(formats))
    chosen = tuple(format_named(name) for name in names)
    for kind in int8 or ():
        if kind not in INT8:
            raise UsageError(f"--int8 {kind}: choose of {', '.join(INT8)}")
    return chosen, INT8 if int8 is None else tuple(kind for kind in INT8 if kind in int8)


def _sides(size: Sequence[int]) -> tuple[int, int]:
    if len(size) not in {1, 2}:
        raise UsageError(
            f"--size {' '.join(map(str, size))}: give height and width in pixels, or the side of a "
            "square"
        )
    return size[0], size[-1]


@contextmanager
def _gone_afterwards() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="softless-") as folder:
        yield Path(folder)


def _timed(row: ExportRow, timings: Timings) -> ExportRow:
    """A row with its time, where it has one."""
    if row.label not in timings.seconds:
        return row
    milliseconds = Spread.of([1000 * seconds for seconds in timings.seconds[row.label]])
    return replace(row, milliseconds=milliseconds, relative=timings.ratio(row.label, EAGER))


def _spread(name: str, spread: Spread | None) -> dict[str, float | None]:
    return {
        f"{name}{end}": None if spread is None else round(getattr(spread, part), 4)
        for end, part in (("", "median"), ("_low", "low"), ("_high", "high"))
    }


def _cell(row: ExportRow, column: str) -> str:
    """A cell of the table for people."""
    file, spread = row.file, row.milliseconds
    if column == "format":
        return row.label
    if column == "works":
        return row.works
    if column in {"ms", "quarters", "times eager"}:
        if spread is None or row.relative is None:
            return "-"
        return {
            "ms": f"{spread.median:.2f}",
            "quarters": f"{spread.low:.2f} to {spread.high:.2f}",
            "times eager": f"{row.relative.median:.2f}",
        }[column]
    return "-" if file is None else _cell_of(file, column)


def _cell_of(file: ExportedFile, column: str) -> str:
    measured = file.measured
    if column == "difference":
        return "-" if file.parity is None else f"{file.parity.difference:.1e}"
    if column == "transcendental":
        return "-" if file.audit is None else kinds_of(file.audit)
    if column == "delegated + outside":
        parts = (file.shape.delegated, file.shape.outside)
        return "-" if None in parts else f"{parts[0]} + {parts[1]}"
    if column == "KiB":
        return f"{file.bytes / 1024:,.0f}"
    if measured is None:
        return "-"
    if column == "model":
        return f"{measured.plain:.4f}"
    if column == "alike":
        return "-" if measured.agreement is None else f"{measured.agreement:.4f}"
    bounds = measured.interval
    interval = "" if bounds is None else f" ({bounds[0]:.3f} to {bounds[1]:.3f})"
    return f"{measured.metric} {measured.value:.4f}{interval}"
