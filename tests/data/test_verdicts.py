"""Every layout of these tests, read by every kind of recipe: the check with that recipe refuses
what its training refuses, and nothing else.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from softless.data import open_splits
from softless.errors import SoftlessError
from softless.experiment.groups import DataSpec
from softless.tasks.check import Reading, check
from softless.tasks.detection.samples import open_boxes
from softless.tasks.dino.samples import open_unlabelled
from softless.tasks.segmentation.samples import open_label_images
from tests.data import test_exports, test_places
from tests.data.making import class_folders, medmnist, split_folders
from tests.tasks.segmentation import test_layouts as test_label_layouts

SCALE: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.2,) * 3, "val_fraction": 0.3}
COUNTS = {"a": 4, "b": 4}


def npz(**replaced: Any) -> Callable[[Path], object]:
    return lambda root: medmnist(root / "data.npz", channels=3, **replaced)


MADE: Mapping[str, Callable[[Path], object]] = {
    "classes": lambda root: class_folders(root, COUNTS),
    "splits": lambda root: split_folders(root, {"Training": COUNTS, "valid": COUNTS}),
    "splits of other classes": lambda root: split_folders(
        root, {"train": COUNTS, "val": {"a": 2, "c": 2}}
    ),
    "images alone": lambda root: class_folders(root, {"train": 4, "val": 2}),
    "one folder of images": lambda root: class_folders(root.parent, {root.name: 4}),
    "npz": npz(),
    "npz without labels": npz(train_labels=None),
    **{f"no classes: {name}": make for name, (make, _) in test_places.WRONG.items()},
    **{f"boxes: {name}": make for name, (make, _) in test_exports.READ.items()},
    **{f"a tool: {name}": make for name, (make, _) in test_exports.REFUSED.items()},
    **{f"labels: {name}": make for name, (make, _) in test_label_layouts.LAYOUTS.items()},
}
KINDS: Mapping[str, tuple[Reading, Callable[[Path], object]]] = {
    "classes": (
        Reading("folder"),
        lambda root: open_splits(DataSpec("folder", str(root), **SCALE), 0),
    ),
    "no classes": (
        Reading("folder", classes=False),
        lambda root: open_unlabelled(DataSpec("folder", str(root), **SCALE), 0),
    ),
    "npz": (Reading("npz"), lambda root: open_splits(DataSpec("npz", str(root), **SCALE), 0)),
    "boxes": (
        Reading("coco", masks=False),
        lambda root: open_boxes(DataSpec("coco", str(root), **SCALE), 0, masks=False),
    ),
    "masks": (
        Reading("coco"),
        lambda root: open_boxes(DataSpec("coco", str(root), **SCALE), 0, masks=True),
    ),
    "label images": (
        Reading("masks"),
        lambda root: open_label_images(DataSpec("masks", str(root), **SCALE), 0),
    ),
}


def refused(read: Callable[[], Any]) -> str:
    try:
        found = read()
    except SoftlessError as error:
        return str(error)
    return str(found.bad[0]) if getattr(found, "bad", ()) else ""


@pytest.mark.parametrize("name", MADE)
def test_check_and_training_agree(tmp_path: Path, name: str):
    root = tmp_path / "data"
    root.mkdir()
    MADE[name](root)
    said = {
        kind: (refused(partial(train, root)), refused(partial(check, root, reading=reading)))
        for kind, (reading, train) in KINDS.items()
    }
    assert not {kind: pair for kind, pair in said.items() if bool(pair[0]) != bool(pair[1])}
