"""What `softless export` did: a row for each file, and why a file must not be used."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from softless.exporting.formats.format import Shape
from softless.exporting.measured import Measured, Parity
from softless.measure.audit import Audit
from softless.words import counted, said_columns, table

FAILED = ".failed"


@dataclass(frozen=True)
class ExportedFile:
    """One file, and what was measured of it."""

    format: str
    path: Path  # ends in .failed where a check failed; None of its parts is left where a tool did
    form: str  # edge or plain
    why: str  # why plain, where the edge form was possible to ask for
    parity: Parity | None  # None where this machine cannot run the format, or in eight bits
    audit: Audit | None
    measured: Measured | None
    shape: Shape
    bytes: int
    int8: str = "none"  # the recipe of quantisation that was kept
    tried: Mapping[str, str] = field(default_factory=dict)  # recipe -> why it was not kept
    faults: tuple[str, ...] = ()  # sentences
    notes: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        """Whether every check passed."""
        return not self.faults

    @property
    def alike(self) -> float:
        """Share of the test images that the file answers as the model does; 0 where nothing was
        measured.
        """
        agreement = None if self.measured is None else self.measured.agreement
        return agreement or 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "format": self.format,
            "path": str(self.path),
            "ok": self.ok,
            "faults": list(self.faults),
            "form": self.form,
            "why": self.why,
            "int8": self.int8,
            "tried": dict(self.tried),
            "parity": None if self.parity is None else self.parity.to_dict(),
            "exp_free": None if self.audit is None else self.audit.exp_free,
            "transcendentals": None if self.audit is None else dict(self.audit.kinds),
            "measured": None if self.measured is None else self.measured.to_dict(),
            "bytes": self.bytes,
            "nodes": dict(self.shape.nodes),
            "rank": self.shape.rank,
            "delegated": self.shape.delegated,
            "outside": self.shape.outside,
            "notes": list(self.notes),
        }


@dataclass(frozen=True)
class Exported:
    """All files of one call; prints as a table."""

    source: str
    size: tuple[int, int]
    files: tuple[ExportedFile, ...]
    dynamic: str | None = None  # what is free in the graphs
    pixels: str = "normalised"  # what they take, or uint8

    @property
    def path(self) -> Path:
        """The file, or the first of several."""
        return self.files[0].path

    @property
    def ok(self) -> bool:
        """Whether every check of every file passed."""
        return all(file.ok for file in self.files)

    @property
    def exit_code(self) -> int:
        """1 where a check failed."""
        return 0 if self.ok else 1

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "source": self.source,
            "size": list(self.size),
            "ok": self.ok,
            "files": [file.to_dict() for file in self.files],
        }

    def __str__(self) -> str:
        metrics = {file.measured.metric for file in self.files if file.measured}
        head = ["file", "checks", "form", "eight bits", "difference", "transcendental"]
        head += [" or ".join(sorted(metrics)) or "top1", "interval", "model", "alike", "KiB"]
        columns = said_columns(head, [_cells(file) for file in self.files])
        lines = [f"{self.source} {self._sizes()}", "", table(*columns), ""]
        images = {file.measured.images for file in self.files if file.measured}
        compared = {file.parity.images for file in self.files if file.parity}
        how = [
            *(f"compared on {counted(number, 'image')}" for number in sorted(compared)),
            *(f"measured on {counted(number, 'test image')}" for number in sorted(images)),
        ]
        lines += [", ".join(how)] if how else []
        for file in self.files:
            if file.why:
                lines.append(f"{file.path.name} has the plain form: {file.why}")
            lines += [f"{file.path.name}: {note}" for note in file.notes]
            lines += [
                f"{file.path.name}: tried before and not kept: {name} ({why})"
                for name, why in file.tried.items()
            ]
            lines += [f"{file.path.name} FAILED, do not use it: {fault}" for fault in file.faults]
        return "\n".join([*lines, f"in {self.path.parent}"])

    def _sizes(self) -> str:
        """What the graphs take, in words."""
        height, width = self.size
        free = {"batch": ", any number at once", "size": ", or any other size"}
        free["both"] = "".join((free["size"], free["batch"]))
        of_bytes = ", taken as bytes" if self.pixels == "uint8" else ""
        return f"at {height} x {width} pixels{of_bytes}{free.get(self.dynamic or '', '')}"


def _cells(file: ExportedFile) -> list[str]:
    measured = file.measured
    interval = None if measured is None else measured.interval
    return [
        file.path.name,
        "passed" if file.ok else "FAILED",
        file.form,
        "-" if file.int8 == "none" else file.int8,
        "-" if file.parity is None else f"{file.parity.difference:.1e}",
        "-" if file.audit is None else kinds_of(file.audit),
        "-" if measured is None else f"{measured.value:.4f}",
        "-" if interval is None else f"{interval[0]:.3f} to {interval[1]:.3f}",
        "-" if measured is None else f"{measured.plain:.4f}",
        "-" if measured is None or measured.agreement is None else f"{measured.agreement:.4f}",
        f"{file.bytes / 1024:,.0f}",
    ]


def kinds_of(audit: Audit) -> str:
    """What is left in a file that is no sum, product or root, by kind with how often."""
    kinds = sorted(audit.kinds.items())
    return ", ".join(f"{kind} {number:,}" for kind, number in kinds) or "none"


def as_row(report: Exported, file: ExportedFile) -> dict[str, Any]:
    """A file as the folder of a run keeps it: its name in place of its path."""
    content = file.to_dict()
    request = {"size": list(report.size), "dynamic": report.dynamic, "pixels": report.pixels}
    return {"file": file.path.name, **request, **{name: content[name] for name in KEPT}}


def same_file(row: Mapping[str, Any], later: Mapping[str, Any]) -> bool:
    """Whether a later export of the same kind replaces an earlier one: a file that failed had
    another name.
    """
    kinds = ("size", "dynamic", "pixels", "form")
    names = [str(each["file"]).removesuffix(FAILED) for each in (row, later)]
    return names[0] == names[1] and all(row.get(kind) == later.get(kind) for kind in kinds)


# of a file's entries, in a run's folder
KEPT = (
    "format",
    "ok",
    "faults",
    "form",
    "why",
    "int8",
    "tried",
    "parity",
    "exp_free",
    "transcendentals",
    "measured",
    "bytes",
    "rank",
    "delegated",
    "outside",
    "notes",
)
