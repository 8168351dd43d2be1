"""What a check of data gathers in its one pass, and the report it becomes."""

import hashlib
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from softless.data import progress
from softless.data.cores import on_all_cores
from softless.data.images import BadImage, Decoded
from softless.data.notices import notice
from softless.data.pictures import size_of
from softless.data.reading import read_whole
from softless.errors import DataError, Faults
from softless.experiment.ranges import Outside, Range
from softless.words import counted, visible

REFUSED = 50  # lines of faults in an error
NAMED = 3  # places of a sentence that more share
SLENDER = 10  # times as long as wide: of such an image a square model sees a fraction, or a smear
SHOWN = 20  # warnings and duplicates of one kind in the printed report; to_dict has all
_ENDINGS = {  # what Pillow calls the content of a file that ends so
    ".jpg": {"JPEG", "MPO"},
    ".jpeg": {"JPEG", "MPO"},
    ".png": {"PNG"},
    ".bmp": {"BMP"},
    ".webp": {"WEBP"},
    ".tif": {"TIFF"},
    ".tiff": {"TIFF"},
    ".ppm": {"PPM"},
    ".pgm": {"PPM"},
    ".dcm": {"DICOM"},
    ".dicom": {"DICOM"},
}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, and where."""

    path: str  # relative to what was checked, if it lies in it
    reason: str
    kind: str  # the reason in a word or two, to count by
    annotation: int | str | None = None  # id of a COCO annotation; None for a file

    def row(self, *, annotated: bool) -> list[Any]:
        """[path, reason], or [path, annotation, reason]."""
        return [self.path, self.annotation, self.reason] if annotated else [self.path, self.reason]

    @property
    def place(self) -> str:
        return (
            self.path if self.annotation is None else f"{self.path}, annotation {self.annotation}"
        )

    def __str__(self) -> str:
        return visible(f"{self.place}: {self.reason}")


@dataclass(frozen=True)
class DataCheck:
    """What was found in one pass over a data set; prints as a report."""

    path: str
    layout: str  # splits of class folders, class folders, images, npz, COCO
    seen: int  # images
    good: int  # images that are read without an error; faults of annotations are counted apart
    annotations: int  # of COCO
    bad: tuple[Fault, ...]  # what keeps a file or an annotation from being used
    warnings: tuple[Fault, ...]  # what is read, but perhaps not as meant
    # the same pixels in two splits, or in two classes of one
    duplicates: tuple[tuple[str, str], ...]
    passed_over: Mapping[str, int]  # ending -> files not read because of it
    hidden: int  # files and folders whose name starts with a dot
    counts: Mapping[str, Mapping[str, int]]  # part -> class -> images, or annotations of COCO
    strict: bool = False  # warnings and duplicates fail the check too
    # format without checksums -> images that were read
    unguarded: Mapping[str, int] = field(default_factory=dict)
    noun: str = "image"  # what was seen

    @property
    def by_reason(self) -> Mapping[str, int]:
        """How many faults of each kind."""
        return dict(Counter(fault.kind for fault in self.bad).most_common())

    @property
    def exit_code(self) -> int:
        return 1 if self.bad or (self.strict and (self.warnings or self.duplicates)) else 0

    def to_dict(self) -> dict[str, Any]:
        annotated = self.layout == "COCO"
        return {
            "path": self.path,
            "layout": self.layout,
            "clean": self.exit_code == 0,
            "seen": self.seen,
            "good": self.good,
            "annotations": self.annotations,
            "bad": [fault.row(annotated=annotated) for fault in self.bad],
            "by_reason": self.by_reason,
            "warnings": [fault.row(annotated=annotated) for fault in self.warnings],
            "duplicates": [list(twins) for twins in self.duplicates],
            "passed_over": dict(self.passed_over),
            "hidden": self.hidden,
            "counts": {part: dict(classes) for part, classes in self.counts.items()},
            "strict": self.strict,
            "unguarded": dict(self.unguarded),
        }

    def __str__(self) -> str:
        total = f"{counted(self.seen, self.noun)} seen, {self.good:,} good"
        total += f", {counted(self.annotations, 'annotation')}" if self.layout == "COCO" else ""
        lines = [visible(f"{self.path} ({self.layout}): {total}")]
        lines += [
            visible(f"  {part}: {_classes(classes)}") for part, classes in self.counts.items()
        ]
        lines += _section("bad", grouped(self.bad, SHOWN), self.by_reason)
        lines += _section("warnings", *_shortened(self.warnings))
        pairs = [visible(f"{name} = {twin}") for name, twin in self.duplicates]
        lines += _section("the same pixels in two splits or two classes", _cut(pairs))
        if self.passed_over:
            lines += [
                "",
                "not read because of their ending: " + visible(_counted(self.passed_over)),
            ]
        if self.hidden:
            lines += ["", f"hidden files and folders, not read: {self.hidden:,}"]
        if self.unguarded:
            formats = _counted(self.unguarded)
            lines += [
                "",
                visible(
                    f"formats without checksums, in which altered pixels are not seen: {formats}"
                ),
            ]
        return "\n".join([*lines, "", self._verdict()])

    def _verdict(self) -> str:
        if self.bad:
            return f"not clean: {counted(len(self.bad), 'fault')}"
        doubts = (
            f"{counted(len(self.warnings), 'warning')}, "
            f"{counted(len(self.duplicates), 'pair')} of duplicates"
        )
        if not (self.warnings or self.duplicates):
            return "clean"
        return (
            f"not clean: {doubts}, and the check is strict"
            if self.strict
            else f"clean, with {doubts}"
        )


class _Read(NamedTuple):
    """An image that was read in full."""

    decoded: Decoded
    size: tuple[int, int]  # width and height
    digest: bytes  # of its pixels


@dataclass
class Gathering:
    """What has been found so far."""

    root: Path  # paths are given relative to it
    max_pixels: int | None = None
    min_side: int | None = None
    scale: Range | None = None  # the declared range of values
    noun: str = "image"  # what is counted
    image_count: int = 0
    good: int = 0
    annotations: int = 0
    bad: list[Fault] = field(default_factory=list)
    warnings: list[Fault] = field(default_factory=list)
    duplicates: list[tuple[str, str]] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)
    hidden: int = 0
    unguarded: Counter[str] = field(default_factory=Counter)
    counts: dict[str, dict[str, int]] = field(default_factory=dict)
    # part -> values outside the declared range
    outside: dict[str, Outside] = field(default_factory=dict)
    # digest -> part -> (name, class)
    first: dict[bytes, dict[str, tuple[str, str]]] = field(default_factory=dict)

    def name(self, path: Path) -> str:
        """How the report calls a file."""
        return named(path, self.root)

    def fault(
        self, path: Path | str, kind: str, reason: str, annotation: int | str | None = None
    ) -> None:
        """Something that cannot be used."""
        self.bad.append(Fault(self._named(path), reason, kind, annotation))

    def warn(
        self, path: Path | str, kind: str, reason: str, annotation: int | str | None = None
    ) -> None:
        """Something that is read, but perhaps not as meant."""
        self.warnings.append(Fault(self._named(path), reason, kind, annotation))

    def say(self, root: Path, kinds: Collection[str]) -> None:
        """The warnings of some kinds as notices, those that share a sentence in one line."""
        for line in grouped([fault for fault in self.warnings if fault.kind in kinds]):
            notice(f"{root}: {line}")

    def image(self, path: Path, part: str, label: str) -> Decoded | None:
        """Read an image file in full; None if it cannot be."""
        return self._take(self._read(path), path, part, label)

    def images(self, files: Sequence[tuple[Path, str]], part: str, progress_text: str) -> None:
        """Read the image files of a part in full, each with its label, on all cores.

        Args:
            files: each with its class, or what else labels it.
            part: that they belong to.
            progress_text: what the progress line says.
        """
        with closing(on_all_cores(self._glance, [file for file, _ in files])) as reads:
            for (file, label), read in zip(
                files, progress.track(reads, len(files), progress_text), strict=True
            ):
                self._take(read, file, part, label)

    def content(
        self, pixels: bytes, shape: tuple[int, ...], name: str, part: str, label: str
    ) -> None:
        """Remember the pixels, and pair them with the same ones in another split, or in another
        class of this one.
        """
        self._pair(_digest(pixels, shape), name, part, label)

    def _read(self, path: Path) -> _Read | BadImage:
        """An image read in full, or why it cannot be."""
        try:
            decoded = read_whole(
                path, 3, self.scale, max_pixels=self.max_pixels, min_side=self.min_side
            )
        except BadImage as error:
            return error
        size = size_of(decoded.image)
        return _Read(decoded, size, _digest(decoded.image.tobytes(), size))

    def _glance(self, path: Path) -> _Read | BadImage:
        """`_read` without keeping the pixels, of which thousands may wait."""
        read = self._read(path)
        return (
            read
            if isinstance(read, BadImage)
            else read._replace(decoded=replace(read.decoded, image=None))
        )

    def _take(self, read: _Read | BadImage, path: Path, part: str, label: str) -> Decoded | None:
        """Count an image that was read, and say what there is to say of it."""
        self.image_count += 1
        if isinstance(read, BadImage):
            self.fault(path, read.kind, read.reason)
            return None
        self.good += 1
        decoded, (width, height) = read.decoded, read.size
        for kind, text in decoded.remarks:
            self.warn(path, kind, text)
        if decoded.unguarded:
            self.unguarded[decoded.unguarded] += 1
        self.outside.setdefault(part, Outside()).add(decoded.outside)
        if max(width, height) >= SLENDER * min(width, height):
            self.warn(
                path,
                "slender",
                f"it is {width} x {height} pixels: a square model sees a part of it, or a smear",
            )
        if decoded.format not in _ENDINGS.get(path.suffix.lower(), {decoded.format}):
            self.warn(
                path,
                "wrong ending",
                f"it is a {decoded.format} file by its content, and is read as one",
            )
        self._pair(read.digest, self.name(path), part, label)
        return decoded

    def _pair(self, digest: bytes, name: str, part: str, label: str) -> None:
        places = self.first.setdefault(digest, {})
        twins = [twin for other_part, (twin, _) in places.items() if other_part != part]
        if not twins and part in places and places[part][1] != label:
            twins = [places[part][0]]
        if twins:
            self.duplicates.append((twins[0], name))
        places.setdefault(part, (name, label))

    def report(self, path: Path, layout: str, *, strict: bool) -> DataCheck:
        for part, counts in self.outside.items():
            if self.scale is not None and (sentence := counts.sentence(part, self.scale)):
                self.warn(part, "outside the range", sentence)
        return DataCheck(
            path=str(path),
            layout=layout,
            seen=self.image_count,
            good=self.good,
            annotations=self.annotations,
            bad=tuple(self.bad),
            warnings=tuple(self.warnings),
            duplicates=tuple(self.duplicates),
            passed_over=dict(self.passed_over.most_common()),
            hidden=self.hidden,
            counts=self.counts,
            strict=strict,
            unguarded=dict(self.unguarded.most_common()),
            noun=self.noun,
        )

    def _named(self, path: Path | str) -> str:
        return path if isinstance(path, str) else self.name(path)


def _digest(pixels: bytes, shape: tuple[int, ...]) -> bytes:
    """What tells pixels of a size from all others; SHA-256 is the fastest where processors have
    instructions for it.
    """
    digest = hashlib.sha256(repr(shape).encode())
    digest.update(pixels)
    return digest.digest()[:16]


def named(path: Path, root: Path) -> str:
    """A path relative to the root it lies in."""
    inside, around = path.as_posix(), f"{root.as_posix().rstrip('/')}/"
    if inside.startswith(around):  # by the text, since each image of a check is named
        return inside.removeprefix(around)
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def refusal(root: Path, faults: Sequence[Fault], way: str) -> Faults:
    """All faults in one error: the number, the way out, and as many as a person reads, those that
    share a sentence in one line.
    """
    lines = [f"  {line}" for line in grouped(faults)]
    if len(lines) > REFUSED:
        lines = [
            *lines[:REFUSED],
            (
                f"  … and {len(lines) - REFUSED:,} more lines: `softless data check {root} --json` "
                "lists all"
            ),
        ]
    return Faults(f"{root}: {counted(len(faults), 'fault')} before the first step; {way}:", lines)


def grouped(faults: Sequence[Fault], limit: int = NAMED) -> list[str]:
    """A line for each fault; one for all that share a sentence, if more than `limit` do, with their
    number and the first of them.

    >>> grouped(
    ...     [Fault(f"{name}.png", "it is empty", "empty") for name in "abcd"]
    ...     + [Fault("e.png", "it is cut off", "damaged")]
    ... )
    ['4 times: it is empty (a.png, b.png, c.png, …)', 'e.png: it is cut off']
    """
    shared = Counter(fault.reason for fault in faults)
    lines: dict[str, list[Fault]] = {}
    for fault in faults:
        lines.setdefault(fault.reason if shared[fault.reason] > limit else str(fault), []).append(
            fault
        )
    return [
        _together(sharing) if len(sharing) > limit else str(sharing[0])
        for sharing in lines.values()
    ]


def _together(faults: Sequence[Fault]) -> str:
    places = ", ".join(fault.place for fault in faults[:NAMED])
    return visible(f"{len(faults):,} times: {faults[0].reason} ({places}, …)")


def not_there(path: Path) -> DataError:
    """For a path that leads nowhere."""
    return DataError(
        f"no data at {path}: give a folder of class folders, a COCO json file, or an npz file "
        "with MedMNIST's keys"
    )


def _counted(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{name}: {count:,}" for name, count in counts.items())


def _classes(classes: Mapping[str, int]) -> str:
    total = f"{sum(classes.values()):,} in {len(classes)} class{'es' if len(classes) != 1 else ''}"
    return f"{total} ({_counted(classes)})" if 0 < len(classes) <= SHOWN else total


def _cut(lines: list[str]) -> list[str]:
    excess = len(lines) - SHOWN
    return [*lines[:SHOWN], f"… and {excess:,} more (--json lists all)"] if excess > 0 else lines


def _shortened(warnings: tuple[Fault, ...]) -> tuple[list[str], Mapping[str, int]]:
    by_kind: dict[str, list[str]] = {}
    for warning in warnings:
        by_kind.setdefault(warning.kind, []).append(str(warning))
    return [line for lines in by_kind.values() for line in _cut(lines)], {
        k: len(v) for k, v in by_kind.items()
    }


def _section(title: str, lines: list[str], counts: Mapping[str, int] | None = None) -> list[str]:
    if not lines:
        return []
    return [
        "",
        f"{title}: {_counted(counts)}" if counts else f"{title}:",
        *(f"  {line}" for line in lines),
    ]
