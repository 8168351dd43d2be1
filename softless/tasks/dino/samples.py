"""Images whose labels are not used: class folders, arrays, or one folder of images without
classes.
"""

from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np

from softless.data.datasets import (
    Splits,
    fingerprint,
    left_out_of,
    open_splits,
    scaling,
    stratified_cut,
)
from softless.data.folder import existing_folder, images_at, read_as
from softless.data.notices import notice
from softless.data.places import by_part
from softless.data.readable import sift
from softless.data.reading import is_image
from softless.data.samples import FileSamples
from softless.errors import DataError, UsageError, located
from softless.experiment.groups import DataSpec
from softless.experiment.ranges import Range


def open_unlabelled(spec: DataSpec, seed: int) -> Splits:
    """The splits of `open_splits`; and, without classes, those of `root/*` or
    `root/{train,val,test}/*`, where images lie in the folder itself.

    Images in folders below such a folder are taken too. Its targets are all zero, and `classes` is
    empty.

    Raises:
        DataError: whatever is wrong with the data, with its path.
        UsageError: a field of `spec` that cannot be used.
    """
    root = located(spec.path) if spec.path else None
    if spec.source != "folder" or root is None:
        return _without_several(open_splits(spec, seed))
    existing_folder(root)
    places = without_classes(root)
    if not places:
        return open_splits(spec, seed)
    samples_by_part = {
        part: _below(root, folder, spec.in_chans, Range.of(spec.range))
        for part, folder in places.items()
    }
    if (renamed := read_as(places)) and places["train"]:
        notice(f"{root}: {renamed}")
    parts = sift(root, samples_by_part, spec.faults)
    train = parts["train"]
    if "val" in parts:
        val = parts["val"]
    elif len(train) > 1:
        remaining, cut = stratified_cut(train.targets, spec.val_fraction, seed)
        train, val = train.take(remaining), train.take(cut)
    else:
        raise DataError(f"{root} holds one image: self-supervision compares several")
    if spec.limit is not None:
        if spec.limit < 1:
            raise UsageError(
                f"data.limit={spec.limit}: keep at least one training image, or none for no limit"
            )
        train = train.take(
            np.sort(np.random.default_rng(seed).permutation(len(train))[: spec.limit])
        )
    mean, std = scaling(spec, train)
    test = parts.get("test")
    identity = fingerprint(spec.source, (), {"train": train, "val": val, "test": test})
    return Splits(train, val, test, (), spec.in_chans, mean, std, identity, left_out_of(parts))


def _without_several(splits: Splits) -> Splits:
    """Several labels an image are no classes that neighbours could vote for: they are left out,
    which is said.
    """
    if splits.train.targets.ndim == 1:
        return splits
    notice(
        "the images have several labels each, which are not used: nearest neighbours vote for "
        "single ones"
    )
    parts = {}
    for part in ("train", "val", "test"):
        samples = copy(getattr(splits, part))
        if samples is not None:
            samples.targets = np.zeros(len(samples), dtype=np.int64)
        parts[part] = samples
    return replace(splits, classes=(), **parts)


def without_classes(root: Path) -> dict[str, str]:
    """Where the images of a folder without classes lie: part -> folder below it, "" for the folder
    itself; empty where it has classes.
    """
    if _holds_images(root):
        return {"train": ""}
    places = by_part(root)
    return places if "train" in places and _holds_images(root / places["train"]) else {}


def _holds_images(folder: Path) -> bool:
    return folder.is_dir() and any(
        not entry.name.startswith(".") and entry.is_file() and is_image(entry)
        for entry in folder.iterdir()
    )


def _below(root: Path, folder: str, channels: int, scale: Range | None) -> FileSamples:
    images = images_at(root / folder, channels)
    files = [(Path(folder) / file).as_posix() for file in images.files]
    return FileSamples(root, files, images.targets, channels, scale)
