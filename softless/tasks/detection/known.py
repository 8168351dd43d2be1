"""The ids that images and categories have in a COCO file of the user's: answers with them can be
scored against it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from softless.errors import DataError, located
from softless.models.records import read_json
from softless.words import counted, few

LARGEST = 1 << 34  # bytes of an annotation file
MEND = "name COCO's json file of these images"


@dataclass(frozen=True)
class CocoIds:
    """Ids of images and of classes, each in the order asked for."""

    images: tuple[int, ...]
    categories: tuple[int, ...]


def known_ids(path: str | Path, files: Sequence[str], classes: Sequence[str]) -> CocoIds:
    """The ids of these images and classes in an annotation file.

    Args:
        path: COCO's json file; its annotations are not read.
        files: names of the images. A name is found whole, or by its last part where that is unique.
        classes: names of the categories.

    Raises:
        DataError: no such file, not COCO's, or one that lacks an image or a class.
    """
    file = located(path)
    content = read_json(file, largest=LARGEST, mend=MEND)
    images = _table(content, "images", "file_name", file)
    categories = _table(content, "categories", "name", file)
    lacking = [name for name in classes if name not in categories]
    if lacking:
        raise DataError(
            f"{file} has no category {few(lacking)}: the run answers with {few(classes)}; {MEND}"
        )
    last = {PurePosixPath(name).name: value for name, value in images.items()}
    shared = {
        name
        for name, count in Counter(PurePosixPath(file_name).name for file_name in images).items()
        if count > 1
    }
    image_ids = [
        images.get(name, None if (own := PurePosixPath(name).name) in shared else last.get(own))
        for name in files
    ]
    missing = [name for name, image_id in zip(files, image_ids, strict=True) if image_id is None]
    if missing:
        raise DataError(
            f"{file} does not list {counted(len(missing), 'image')} of {len(files)}, the first "
            f"{missing[0]}: {MEND}"
        )
    ids = [image_id for image_id in image_ids if image_id is not None]
    if len(set(ids)) < len(ids):
        twice = next(
            name for name, image_id in zip(files, ids, strict=True) if ids.count(image_id) > 1
        )
        raise DataError(f"{file} lists {twice} under an id that another image has too: {MEND}")
    return CocoIds(tuple(ids), tuple(categories[name] for name in classes))


def _table(content: Mapping[str, Any], key: str, name: str, file: Path) -> dict[str, int]:
    """The ids of a list of COCO's by name."""
    rows = content.get(key)
    good = isinstance(rows, list) and all(
        isinstance(row, dict) and type(row.get("id")) is int and isinstance(row.get(name), str)
        for row in rows
    )
    if not good:
        raise DataError(
            f"{file} is not COCO's: {key} is no list of entries with id and {name}; {MEND}"
        )
    assert isinstance(rows, list)
    ids = {row[name]: row["id"] for row in rows}
    if len(ids) < len(rows):
        twice = next(
            entry_name
            for entry_name, count in Counter(row[name] for row in rows).items()
            if count > 1
        )
        raise DataError(f"{file} lists {twice} twice under {key}: {MEND}")
    return ids
