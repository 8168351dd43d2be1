"""COCO annotations (instances: boxes, polygons, run-length masks) read in one pass, every fault by
its annotation.

    {"images": [{"id", "file_name", "width", "height"}], "categories": [{"id", "name"}],
     "annotations": [{"id", "image_id", "category_id", "bbox": [x, y, w, h], "segmentation", "area", "iscrowd"}]}

Run-length masks are column by column, zeros first; as text, each run is written in base 32 from
character 48 on, less the run two before it. Both forms are decoded here, so nothing needs
pycocotools.
"""

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, TypeGuard

import numpy as np

from softless.data.findings import Gathering
from softless.data.images import TURNED, said_of_turned
from softless.data.pictures import size_of
from softless.data.progress import track
from softless.tasks.detection.annotation_files import LISTS, picture_folders
from softless.words import ALIKE, NO_TEXT, POINTED, POINTER, composed, counted, is_text

OUTSIDE = 0.5  # pixels a box or polygon may reach over the image's edge: rounding
# pixels between the sides of a box and of its mask, or 2 % of the box: vertices may be pixel
# centres
DISAGREE = 2.0

OUTLINES = frozenset({  # faults of masks, which a head without masks never looks at
    "mask",
    "polygon",
    "polygon not finite",
    "polygon outside",
    "run lengths",
    "mask size",
    "mask and box",
})
Extent = tuple[float, float, float, float]  # left, top, right, bottom


@dataclass(frozen=True)
class _ImageRecord:
    """An image of the file: what its annotations are held against."""

    name: str  # as the report calls it
    size: tuple[int, int] | None  # width, height; None where neither the json nor the file says it


def check_files(
    files: Sequence[Path], images: Path | None, findings: Gathering, *, masks: bool = True
) -> dict[Path, dict[str, list[Any]]]:
    """Check annotation files of one data set: each alone, and that their categories are the same.

    Args:
        files: the json files, that of the training images first.
        images: the folder their file names start from; looked for without it.
        findings: takes the faults.
        masks: whether masks are learnt; without, what is wrong with them is a warning.

    Returns:
        What the files that could be read hold: images, annotations and categories.
    """
    contents: dict[Path, dict[str, list[Any]]] = {}
    categories: dict[str, dict[Any, str]] = {}
    for file in files:
        content = _read(file, findings)
        if content is not None:
            contents[file] = content
            categories[file.name] = _check(file, content, images, findings, masks=masks)
    malformed = {fault.path for fault in findings.bad if fault.kind in {"json", "annotations"}}
    if (
        files
        and files[0] in contents
        and not contents[files[0]]["annotations"]
        and findings.name(files[0]) not in malformed
    ):
        findings.fault(files[0], "objects", "it has no annotation, so there is nothing to learn")
    first = next(iter(categories), "")
    expected = categories.get(first, {})
    for name, file_categories in categories.items():
        if file_categories != expected:
            differing = sorted({
                f"{key}: {value}" for key, value in file_categories.items() ^ expected.items()
            })
            text = (
                f"its categories are not those of {first}; they differ in "
                f"{', '.join(differing[:10])}"
            )
            findings.fault(name, "categories", text)
    return contents


def _read(file: Path, findings: Gathering) -> dict[str, list[Any]] | None:
    try:
        # some tools begin with a byte-order mark
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        pointer = error.doc.encode(errors="replace").startswith(POINTER)
        why = (
            f"it is {POINTED}"
            if pointer
            else f"it is no complete JSON: {error}; it was cut off or is another kind of file"
        )
        findings.fault(file, "json", why)
        return None
    except (OSError, ValueError, RecursionError) as error:
        findings.fault(file, "json", f"it cannot be read: {error}")
        return None
    if not isinstance(content, dict):
        findings.fault(
            file,
            "json",
            f"it holds a {type(content).__name__}, and COCO is an object with {', '.join(LISTS)}",
        )
        return None
    for key in LISTS:
        if not isinstance(content.get(key), list):
            actual = "missing" if key not in content else f"a {type(content[key]).__name__}"
            findings.fault(file, "json", f"'{key}' is {actual}, and must be a list")
    lists = {key: content[key] if isinstance(content.get(key), list) else [] for key in LISTS}
    for key, entries in lists.items():
        wrong = [index for index, entry in enumerate(entries) if not isinstance(entry, dict)]
        for index in wrong:
            findings.fault(file, key, f"{key}[{index}] is no object but {_short(entries[index])}")
        lists[key] = [entry for entry in entries if isinstance(entry, dict)]
    return lists


def _check(
    file: Path,
    content: Mapping[str, list[Any]],
    images: Path | None,
    findings: Gathering,
    *,
    masks: bool,
) -> dict[Any, str]:
    """Returns the categories, id -> name."""
    part = file.stem
    names = _check_categories(file, content["categories"], findings)
    folder = images or image_folder(file, content["images"])
    entries = _check_images(file, content["images"], folder, findings)
    annotation_counts: Counter[Any] = Counter()
    crowds: Counter[Any] = Counter()
    annotation_ids: set[int] = set()
    boxes: dict[Any, Any] = {}
    for index, annotation in enumerate(content["annotations"]):
        findings.annotations += 1
        _Annotation(file, index, annotation, findings, masks=masks).check(
            entries, names, annotation_ids, boxes
        )
        category = annotation.get("category_id")
        name = names.get(category) if _is_id(category) else None
        annotation_counts[name] += 1
        crowds[name] += bool(annotation.get("iscrowd"))
    counts = {name: annotation_counts[name] for name in names.values()}
    findings.counts[part] = counts
    for name in (name for name in names.values() if not annotation_counts[name]):
        findings.warn(file, "categories", f"no annotation has the category '{name}'")
    _check_crowds(file, annotation_counts, crowds, findings)
    return names


def _check_crowds(
    file: Path, annotation_counts: Mapping[Any, int], crowds: Mapping[Any, int], findings: Gathering
) -> None:
    """Crowds are left out of training, so a category of crowds alone cannot be learnt."""
    why = (
        "which no detector learns from; where the tool writes it for every mask drawn with a "
        "brush (CVAT), set iscrowd to 0"
    )
    total = sum(annotation_counts.values())
    if total and sum(crowds.values()) == total:
        findings.fault(
            file, "crowds", f"all of its {counted(total, 'annotation')} have iscrowd 1, {why}"
        )
        return
    for name, count in annotation_counts.items():
        if count and crowds[name] == count:
            findings.warn(
                file,
                "crowds",
                f"all {counted(count, 'annotation')} of '{name}' have iscrowd 1, {why}",
            )


def _check_categories(
    file: Path, categories: Sequence[Mapping[str, Any]], findings: Gathering
) -> dict[Any, str]:
    names: dict[Any, str] = {}
    folded: dict[str, str] = {}
    if not categories:
        findings.fault(file, "categories", "there are no categories")
    for index, category in enumerate(categories):
        key, name = category.get("id"), category.get("name")
        if not _is_id(key):
            findings.fault(
                file,
                "categories",
                f"categories[{index}] has the id {_short(key)}; ids are whole numbers",
            )
            continue
        if not isinstance(name, str) or not name.strip():
            findings.fault(file, "categories", f"category {key} has the name {_short(name)}")
            name = str(key)
        elif not is_text(name):
            findings.fault(file, "categories", f"category {key} has {NO_TEXT}")
        if key in names:
            findings.fault(
                file,
                "duplicate id",
                f"category id {key} is given twice: '{names[key]}' and '{name}'",
            )
            continue
        twin = folded.setdefault(composed(name).casefold(), name)
        if name in names.values():
            findings.fault(file, "categories", f"the category name '{name}' is given twice")
        elif twin != name:
            findings.fault(file, "categories", f"the categories '{twin}' and '{name}' {ALIKE}")
        names[key] = name
    return names


def image_folder(file: Path, images: Sequence[Mapping[str, Any]]) -> Path:
    """Of the usual places the one that holds most of the first images; `annotations/x_train.json`
    has them in `images/train`.
    """
    names = [
        name
        for image in images[:50]
        if isinstance(name := image.get("file_name"), str) and "\0" not in name
    ]
    return max(
        picture_folders(file), key=lambda folder: sum((folder / name).is_file() for name in names)
    )


def _check_images(
    file: Path, images: Sequence[Mapping[str, Any]], folder: Path, findings: Gathering
) -> dict[Any, _ImageRecord]:
    entries: dict[Any, _ImageRecord] = {}
    files: dict[str, Any] = {}
    for index, image in enumerate(track(images, len(images), f"reading images of {file.name}")):
        key, name = image.get("id"), image.get("file_name")
        if not _is_id(key):
            findings.fault(
                file, "images", f"images[{index}] has the id {_short(key)}; ids are whole numbers"
            )
        elif key in entries:
            findings.fault(
                file,
                "duplicate id",
                f"image id {key} is given twice: {entries[key].name} and {_short(name)}",
            )
        size = _stated_size(image)
        if not isinstance(name, str) or not name or "\0" in name:
            findings.fault(file, "images", f"image {_short(key)} has the file name {_short(name)}")
            name = None
        elif why := _misplaced(name, folder):
            findings.fault(file, "images", f"image {_short(key)} {why}")
            name = None
        elif name in files:
            findings.fault(
                file,
                "duplicate file",
                f"the file {name} is both image {files[name]} and image {_short(key)}",
            )
        if name is None:
            entry = _ImageRecord(file.name, size)
        else:
            files.setdefault(name, key)
            entry = _check_file(folder / name, file.stem, image, size, findings)
        if _is_id(key):
            entries.setdefault(key, entry)
    return entries


def _misplaced(name: str, folder: Path) -> str:
    """What is wrong with where an image is said to lie; nothing where it is below the folder."""
    if Path(name).is_absolute() or PureWindowsPath(name).is_absolute():
        return f"has an absolute path: {name}; write it from the image folder on"
    if "\\" in name and not (folder / name).is_file():
        return f"has backslashes in its path, as Windows writes them: {name}; write /"
    return f"lies outside the image folder: {name}" if ".." in Path(name).parts else ""


def _stated_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    width, height = image.get("width"), image.get("height")
    return (
        (width, height) if _is_id(width) and _is_id(height) and width > 0 and height > 0 else None
    )


def _check_file(
    path: Path,
    part: str,
    image: Mapping[str, Any],
    size: tuple[int, int] | None,
    findings: Gathering,
) -> _ImageRecord:
    name = findings.name(path)
    if size is None:
        stated = f"{_short(image.get('width'))} x {_short(image.get('height'))}"
        findings.fault(path, "image size", f"its width and height in the json are {stated}")
    decoded = findings.image(path, part, "")
    if decoded is None:
        return _ImageRecord(name, size)
    if decoded.silently_turned:
        findings.warn(path, TURNED, said_of_turned("boxes and masks were"))
    actual = size_of(decoded.image)
    if size is not None and size != actual:
        turned = size == decoded.stored_size
        why = (
            "; the json has the size before the EXIF orientation, so boxes and masks lie beside "
            "the upright image"
        )
        findings.fault(
            path,
            "image size",
            f"it is {actual[0]} x {actual[1]}, and the json says {size[0]} x {size[1]}"
            + (why if turned else ""),
        )
    return _ImageRecord(name, size or actual)


class _Annotation:
    """One annotation and where its faults go."""

    def __init__(
        self,
        file: Path,
        index: int,
        content: Mapping[str, Any],
        findings: Gathering,
        *,
        masks: bool,
    ) -> None:
        self.file, self.content, self.findings, self.masks = file, content, findings, masks
        key = content.get("id")
        self.id: Any = key if _is_id(key) else f"annotations[{index}]"
        self.location: Path | str = file

    def fault(self, kind: str, reason: str) -> None:
        tell = self.findings.fault if self.masks or kind not in OUTLINES else self.findings.warn
        tell(self.location, kind, reason, self.id)

    def check(
        self,
        images: Mapping[Any, _ImageRecord],
        categories: Mapping[Any, str],
        earlier_ids: set[int],
        boxes: dict[Any, Any],
    ) -> None:
        """Report all that is wrong with it; `earlier_ids` and `boxes` are those of the annotations
        before.
        """
        key, image, category = (
            self.content.get(field) for field in ("id", "image_id", "category_id")
        )
        entry = images.get(image) if _is_id(image) else None
        self.location = self.file if entry is None else entry.name
        if not _is_id(key):
            self.fault("annotations", f"its id is {_short(key)}; ids are whole numbers")
        elif key in earlier_ids:
            self.fault("duplicate id", f"the annotation id {key} is given more than once")
        else:
            earlier_ids.add(key)
        if entry is None:
            self.fault("unknown image", f"no image has the id {_short(image)}")
        if not _is_id(category) or category not in categories:
            category_ids = ", ".join(map(str, list(categories)[:20]))
            self.fault(
                "unknown category",
                f"no category has the id {_short(category)}; known: {category_ids or 'none'}",
            )
        size = None if entry is None else entry.size
        box = self.check_box(size)
        self.check_numbers()
        mask = self.check_segmentation(size)
        if box is not None and mask is not None:
            self.check_agreement(box, mask)
        if box is not None and _is_id(image) and _is_id(category):
            twin = boxes.setdefault((image, category, box), self.id)
            if twin != self.id:
                self.findings.warn(
                    self.location,
                    "repeated box",
                    f"the same box and category as annotation {twin}",
                    self.id,
                )

    def check_box(self, size: tuple[int, int] | None) -> Extent | None:
        """Its sides, if they make a box."""
        box = self.content.get("bbox")
        if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
            self.fault(
                "box", f"its bbox is {_short(box)}; a box is four numbers, [x, y, width, height]"
            )
            return None
        if not all(map(math.isfinite, box)):
            self.fault("box not finite", f"its bbox is {box}: NaN or infinite")
            return None
        left, top, width, height = box
        if width <= 0 or height <= 0:
            self.fault(
                "empty box",
                f"its bbox {box} has the width {width} and height {height}; both must be positive",
            )
            return None
        extent = (left, top, left + width, top + height)
        self.check_inside("box", f"its bbox {box}", extent, size)
        return extent

    def check_inside(
        self, kind: str, text: str, extent: Extent, size: tuple[int, int] | None
    ) -> None:
        if size is None:
            return
        left, top, right, bottom = extent
        if min(left, top) < -OUTSIDE or right > size[0] + OUTSIDE or bottom > size[1] + OUTSIDE:
            self.fault(
                f"{kind} outside",
                f"{text} reaches outside the image of {size[0]} x {size[1]} pixels",
            )

    def check_numbers(self) -> None:
        area, crowd = self.content.get("area", 1), self.content.get("iscrowd", 0)
        if not _is_number(area) or not math.isfinite(area) or area < 0:
            self.fault("area", f"its area is {_short(area)}; it is a number of pixels")
        if crowd not in {0, 1} if _is_number(crowd) else True:
            self.fault("iscrowd", f"its iscrowd is {_short(crowd)}; it is 0 or 1")

    def check_segmentation(self, size: tuple[int, int] | None) -> Extent | None:
        """The box around its mask, if there is one."""
        mask = self.content.get("segmentation")
        if mask is None or mask == []:
            return None
        if isinstance(mask, list) and all(map(_is_number, mask)):
            self.fault(
                "mask",
                "its segmentation is a flat list of numbers; it is a list of such lists, one per "
                "polygon",
            )
            return None
        if isinstance(mask, list):
            extents = [
                self.check_polygon(index, polygon, size) for index, polygon in enumerate(mask)
            ]
            valid = [extent for extent in extents if extent is not None]
            return _around(valid) if len(valid) == len(extents) else None
        if isinstance(mask, dict):
            return self.check_runs(mask, size)
        self.fault(
            "mask",
            f"its segmentation is {_short(mask)}; it is a list of polygons or a run-length mask",
        )
        return None

    def check_polygon(
        self, index: int, polygon: Any, size: tuple[int, int] | None
    ) -> Extent | None:
        text = f"polygon {index} of its segmentation"
        if not isinstance(polygon, list) or not all(map(_is_number, polygon)):
            self.fault(
                "polygon",
                f"{text} is {_short(polygon)}; a polygon is a list of numbers, [x, y, x, y, ...]",
            )
            return None
        if len(polygon) % 2 or len(polygon) < 6:
            points = (
                f"{len(polygon)} numbers" if len(polygon) % 2 else f"{len(polygon) // 2} points"
            )
            self.fault("polygon", f"{text} has {points}; it needs at least 3 points of two numbers")
            return None
        points_N2 = np.asarray(polygon, dtype=np.float64).reshape(-1, 2)
        if not np.isfinite(points_N2).all():
            self.fault("polygon not finite", f"{text} holds NaN or infinite numbers")
            return None
        (left, top), (right, bottom) = points_N2.min(0).tolist(), points_N2.max(0).tolist()
        extent = (left, top, right, bottom)
        self.check_inside("polygon", text, extent, size)
        if left == right or top == bottom:
            self.fault("polygon", f"{text} has no area: all its points lie on one line")
            return None
        return extent

    def check_runs(self, mask: Mapping[str, Any], size: tuple[int, int] | None) -> Extent | None:
        stated = mask.get("size")
        if (
            not isinstance(stated, list)
            or len(stated) != 2
            or not all(_is_id(s) and 0 < s < 2**31 for s in stated)
        ):
            self.fault(
                "run lengths", f"the size of its mask is {_short(stated)}; it is [height, width]"
            )
            return None
        height, width = stated
        if size is not None and size != (width, height):
            text = f"its mask is {width} x {height}, and the image {size[0]} x {size[1]}"
            self.fault(
                "mask size",
                f"{text} (size is [height, width])" if size == (height, width) else text,
            )
            return None
        try:
            runs = run_lengths(mask.get("counts"))
        except ValueError as error:
            self.fault("run lengths", f"the counts of its mask are malformed: {error}")
            return None
        if sum(runs) != height * width:
            self.fault(
                "run lengths",
                f"the counts of its mask add up to {sum(runs)}, and its size to {height * width}",
            )
            return None
        extent = _runs_extent(runs, height)
        if extent is None:
            self.fault("mask", "its mask is empty")
        return extent

    def check_agreement(self, box: Extent, mask: Extent) -> None:
        slack = (
            max(DISAGREE, 0.02 * (box[2] - box[0])),
            max(DISAGREE, 0.02 * (box[3] - box[1])),
        ) * 2
        if any(
            abs(box_side - mask_side) > limit
            for box_side, mask_side, limit in zip(box, mask, slack, strict=True)
        ):
            around = [round(x, 2) for x in (mask[0], mask[1], mask[2] - mask[0], mask[3] - mask[1])]
            self.fault(
                "mask and box",
                f"its bbox is {self.content['bbox']}, and the box around its mask is {around}",
            )


def run_lengths(counts: Any) -> list[int]:
    """The runs of a mask, zeros first, from a list of numbers or from COCO's text.

    >>> run_lengths("52203")
    [5, 2, 2, 2, 5]

    Raises:
        ValueError: what is wrong with them.
    """
    if isinstance(counts, list):
        return _whole(counts)
    return _written(counts if isinstance(counts, str) else "")


def _whole(counts: list[Any]) -> list[int]:
    wrong = [run for run in counts if not _is_id(run) or run < 0]
    if wrong or not counts:
        raise ValueError(f"{_short(wrong[0])} is no length of a run" if wrong else "there are none")
    return counts


def _written(counts: str) -> list[int]:
    runs: list[int] = []
    value = shift = 0
    for index, character in enumerate(counts):
        code = ord(character) - 48
        if not 0 <= code < 64:
            raise ValueError(f"character {index} is {character!r}, which no run is written with")
        value |= (code & 31) << shift
        shift += 5
        if code & 32:
            continue
        if code & 16:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            raise ValueError(f"run {len(runs) - 1} has the length {runs[-1]}")
        value = shift = 0
    if shift or not runs:
        raise ValueError(
            "the text ends within a run" if shift else "there are no runs in a list or a text"
        )
    return runs


def _runs_extent(runs: Sequence[int], height: int) -> Extent | None:
    """The box around the ones of a mask stored column by column."""
    ends = np.cumsum(np.asarray(runs, dtype=np.int64))
    starts, stops = ends[:-1:2], ends[1::2] - 1  # first and last pixel of each run of ones
    nonempty = stops >= starts[: len(stops)]
    starts, stops = starts[: len(stops)][nonempty], stops[nonempty]
    if not len(starts):
        return None
    # it goes on in the next column: bottom row and top row are in it
    across = starts // height != stops // height
    top = int(np.where(across, 0, starts % height).min())
    bottom = int(np.where(across, height - 1, stops % height).max())
    return (
        float(starts.min() // height),
        float(top),
        float(stops.max() // height + 1),
        float(bottom + 1),
    )


def _around(extents: Sequence[Extent]) -> Extent:
    left, top, right, bottom = zip(*extents, strict=True)
    return min(left), min(top), max(right), max(bottom)


def _is_id(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**53


def _is_number(value: Any) -> bool:
    return _is_id(value) or isinstance(value, float)


def _short(value: Any) -> str:
    text = "missing" if value is None else repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
