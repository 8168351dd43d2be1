"""What tools write beside images: annotations that are named for what they are where something else
is read.
"""

import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from softless.data.images import IMAGE_TYPES

_FILES, _FOLDERS = 200, 10  # so many tell what a folder holds
_HEAD = 4096  # bytes of a file that tell what it is
_CONVERT = (
    "boxes are read from COCO json: let the tool export that, or convert them "
    "(supervision's DetectionDataset does)"
)
_OUTLINES = "boxes and outlines are read from COCO json: convert them with labelme2coco"
_TRAIN = "train a detector with a recipe for boxes (cards, nuclei)"


class Export(NamedTuple):
    """Annotations that a tool wrote."""

    title: str  # whose, as people call them
    file: str  # one of them, below the root
    way: str  # how they can be used

    def __str__(self) -> str:
        return f"{self.title} ({self.file}): {self.way}"


def export_in(root: Path) -> Export | None:
    """Boxes or outlines of objects that a tool wrote into a folder, its folders or theirs; the
    first kind that is found.
    """
    for folder in _near(root):
        for file in islice(_files(folder), _FILES):
            kind = _KINDS.get(file.suffix.lower())
            if kind and (description := kind(_head(file))):
                return Export(description[0], file.relative_to(root).as_posix(), description[1])
    return None


def _near(root: Path) -> Iterator[Path]:
    """A folder, its folders and theirs, as far as they are looked at."""
    yield root
    below = list(islice(_folders(root), _FOLDERS))
    yield from below
    for folder in below:
        yield from islice(_folders(folder), _FOLDERS)


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(entry for entry in folder.iterdir() if not entry.name.startswith("."))
    except OSError:  # whoever reads it says so
        return []


def _folders(folder: Path) -> Iterator[Path]:
    return (entry for entry in _entries(folder) if entry.is_dir())


def _files(folder: Path) -> Iterator[Path]:
    return (
        entry
        for entry in _entries(folder)
        if entry.suffix.lower() not in IMAGE_TYPES and entry.is_file()
    )


def _head(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(_HEAD)
    except OSError:
        return b""


def _json(head: bytes) -> tuple[str, str] | None:
    if b'"shapes"' in head:
        return "labelme's files", _OUTLINES
    if b'"_via_' in head or b'"regions"' in head:
        return "annotations of the VGG Image Annotator", "let it export COCO json"
    if b'"coordinates"' in head:
        return "annotations for CreateML", _CONVERT
    if b'"completed_by"' in head or b'"from_name"' in head:
        return "an export of Label Studio in its own json", "let it export COCO"
    coco = re.search(rb'"(images|annotations|categories|licenses|info)"\s*:\s*[\[{]', head)
    return ("annotations in COCO json", _TRAIN) if coco else None


def _text(head: bytes) -> tuple[str, str] | None:
    row = next(
        (line.split() for line in head.decode("ascii", "replace").splitlines() if line.strip()), []
    )
    numbers = len(row) >= 5 and all(re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", word) for word in row)
    return ("labels of YOLO", _CONVERT) if numbers else None


def _yaml(head: bytes) -> tuple[str, str] | None:
    keys = {
        match.decode() for match in re.findall(rb"^(names|train|val|path)\s*:", head, re.MULTILINE)
    }
    return ("labels of YOLO", _CONVERT) if "names" in keys and len(keys) > 1 else None


def _xml(head: bytes) -> tuple[str, str] | None:
    if b"<annotations>" in head:
        return "annotations of CVAT in its own xml", "let it export COCO 1.0"
    return ("annotations of Pascal VOC", _CONVERT) if b"<annotation" in head else None


def _csv(head: bytes) -> tuple[str, str] | None:
    columns = set(re.findall(r"\w+", head.decode("utf-8", "replace").partition("\n")[0].casefold()))
    return ("boxes in a table", _CONVERT) if {"xmin", "ymin", "xmax", "ymax"} <= columns else None


_KINDS: dict[str, Callable[[bytes], tuple[str, str] | None]] = {
    ".json": _json,
    ".txt": _text,
    ".yaml": _yaml,
    ".yml": _yaml,
    ".xml": _xml,
    ".csv": _csv,
}
