"""Bags in a folder, each with the slide it is of.

A file is looked for by the name of its slide: below the folder at any depth, with any ending that a
bag may have. Two files for one slide, bags of other widths or encoders, a slide without a file: all
is said at once.
"""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from softless.bags.bag import Bag
from softless.bags.files import ENDINGS
from softless.bags.many import bag_in, holds_many, names_in
from softless.bags.names import bare
from softless.bags.table import BagTable
from softless.data.csv_tables import ALONE
from softless.data.findings import Fault, refusal
from softless.data.notices import notice
from softless.data.progress import track
from softless.data.samples import Samples
from softless.errors import DataError, located
from softless.words import counted, few

# folders of tools that hold other things than features
OTHERS = frozenset({
    "patches",
    "masks",
    "stitches",
    "tiles",
    "slide_embeddings",
    "patient_embeddings",
    "hierarchical_embeddings",
})
OF_SLIDES = "slide_features_"  # begins TRIDENT's folders of one vector a slide


class BagSamples(Samples):
    """Slides as samples: `image(i)` is the bag, `name(i)` the slide, `groups` are the patients.

    Attributes:
        bags: (n,) of the slides.
        targets: (n,) int64 class indices, (n, K) labels of 0 and 1, or (n,) events of survival.
        times: (n,) float64 of survival, else None.
        classes: names in index order; of survival none.
        kind: "class", "several" or "survival".
        parts: (n,) that the table declares, or None.
        width: D of the features.
        encoder: that made all of them, where they say it.
    """

    channels = 0

    def __init__(
        self,
        root: Path,
        bags: Sequence[Bag],
        targets: np.ndarray,
        *,
        groups: np.ndarray | None = None,
        times: np.ndarray | None = None,
        classes: tuple[str, ...] = (),
        kind: str = "class",
        parts: Sequence[str] | None = None,
    ) -> None:
        self.root, self.bags, self.targets = root, tuple(bags), targets
        self.groups, self.times, self.classes, self.kind = groups, times, classes, kind
        self.parts = None if parts is None else np.array(parts, dtype=object)

    @property
    def width(self) -> int:
        return self.bags[0].features.shape[1]

    @property
    def encoder(self) -> str | None:
        return next((bag.encoder for bag in self.bags if bag.encoder is not None), None)

    def paths(self) -> list[Path]:
        """The files, each once."""
        return list(dict.fromkeys(bag.path for bag in self.bags if bag.path is not None))

    def target(self, index: int) -> Any:
        """Class index, labels (K,), or (time, event) of survival."""
        if self.times is not None:
            return float(self.times[index]), int(self.targets[index])
        return super().target(index)

    def image(self, index: int) -> Any:
        """The bag of a slide; its features are read when they are asked for."""
        return self.bags[index]

    def name(self, index: int) -> str:
        return self.bags[index].slide

    def update(self, digest: Any) -> None:
        super().update(digest)
        if self.times is not None:
            digest.update(np.ascontiguousarray(self.times).tobytes())
        for bag in self.bags:
            digest.update(f"{bag.features.shape} {bag.features.dtype}\n".encode())

    def take(self, indices: Sequence[int] | np.ndarray) -> "BagSamples":
        """The slides at these positions, `indices` (m,), in this order; nothing is read."""
        chosen = np.asarray(indices, dtype=np.int64)
        subset = copy(self)
        subset.bags = tuple(self.bags[index] for index in chosen.tolist())
        subset.targets = self.targets[chosen]
        subset.groups = None if self.groups is None else self.groups[chosen]
        subset.times = None if self.times is None else self.times[chosen]
        subset.parts = None if self.parts is None else self.parts[chosen]
        return subset

    def part_of(self, index: int) -> str:
        """The part that the table declares for a slide, or "all"."""
        return ALONE if self.parts is None else str(self.parts[index])


def open_bags(folder: str | Path, table: BagTable | None = None, **options: Any) -> BagSamples:
    """The bags of a folder, or of one file of many, in the order of the table.

    Args:
        folder: of the files, at any depth; or an npz of many bags (`features`, `offsets`, `bag_id`).
        table: slides and what is to be learnt of them; without it all bags, with targets of 0.
        options: what `Bag.open` takes, for all bags: unit, slide_mpp, tile, overlap, layout.

    Raises:
        DataError: bags cannot be read or do not fit together (all in one error).
    """
    samples, faults, remarks = gathered_bags(folder, table, **options)
    root = located(folder)
    for remark in remarks:
        notice(f"{root}: {remark}")
    if len(faults) == 1:
        raise DataError(f"{root}: {faults[0]}")
    if faults:
        raise refusal(root, faults, "mend them, or take them out of the table")
    if samples is None:
        raise DataError(f"{root} holds no bags: a bag is a file that ends in {', '.join(ENDINGS)}")
    return samples


def gathered_bags(
    folder: str | Path, table: BagTable | None = None, **options: Any
) -> tuple[BagSamples | None, list[Fault], list[str]]:
    """The bags that can be used, what is wrong with the others, and what should be known.

    Raises:
        DataError: there is no such folder, or no bag in it.
    """
    root = located(folder)
    openers = _openers(root)
    names = list(openers) if table is None else list(table.slides)
    faults: list[Fault] = []
    bags: list[Bag] = []
    usable: list[int] = []
    for index, slide in enumerate(track(names, len(names), "opening bags")):
        files = _of_slide(openers, slide, root)
        if table is not None and not files:
            faults.append(_without_file(table, index, root))
            continue
        if len(files) > 1:
            listed = few((_below(file, root) for file in files), 3)
            faults.append(
                Fault(
                    slide,
                    f"{len(files)} files are of this slide ({listed}): keep one, or name the "
                    "folder of one encoder",
                    "two files",
                )
            )
            continue
        settings = dict(options)
        if table is not None and table.mpp is not None:
            settings["slide_mpp"] = float(table.mpp[index])
        try:
            bags.append(_opened(files[0], slide, settings))
            usable.append(index)
        except DataError as error:
            faults.append(Fault(_below(files[0], root), reason_of(error, files[0]), "unreadable"))
    faults += _different(bags, root)
    remarks = _unlisted(openers, table)
    if not bags:
        return None, faults, remarks
    if table is None:
        targets = np.zeros(len(bags), dtype=np.int64)
        return BagSamples(root, bags, targets), faults, remarks
    listed = table.take(usable)
    samples = BagSamples(
        root,
        bags,
        listed.targets,
        groups=listed.patients,
        times=listed.times,
        classes=table.classes,
        kind=table.kind,
        parts=listed.parts,
    )
    return samples, faults, remarks


def _openers(root: Path) -> dict[str, list[Path]]:
    """Slide -> its files; a slide in a folder is known by its path and by its name."""
    if root.is_file():
        return {name: [root] for name in _many(root)} or {bare(root.name): [root]}
    if not root.is_dir():
        raise DataError(f"no folder at {root}: name the folder of the bags with --data")
    by_name: dict[str, list[Path]] = {}
    for file in bag_files(root):
        try:
            names = _many(file) or (bare(file.name),)
        except DataError:  # it is said where the bag is opened
            names = (bare(file.name),)
        for name in names:
            by_name.setdefault(name, []).append(file)
    return by_name


def reason_of(error: DataError, called: object) -> str:
    """What an error says of a file, without its name, which stands ahead of it."""
    sentence = str(error)
    if sentence.startswith(f"{called} "):
        return f"it{sentence.removeprefix(str(called))}"
    return sentence.removeprefix(f"{called}: ")


def bag_files(root: Path, also: Collection[str] = ()) -> Iterator[Path]:
    """Files below a folder that may hold bags, sorted, and those of some endings more; a zarr is
    one of them, and is not looked into.
    """
    endings = (*ENDINGS, *also)
    for folder, folders, names in os.walk(root):
        folders[:] = sorted(
            name
            for name in folders
            if name not in OTHERS and name[0] != "." and not name.startswith(OF_SLIDES)
        )
        stores = [name for name in folders if name.lower().endswith(".zarr")]
        folders[:] = [name for name in folders if name not in stores]
        for name in sorted([*names, *stores]):
            if name.lower().endswith(endings) and name[0] != ".":
                yield Path(folder, name)


def _many(file: Path) -> tuple[str, ...]:
    """The names of the bags in a file of many; none where it holds one."""
    return tuple(names_in(file)) if holds_many(file) else ()


def _opened(file: Path, slide: str, options: Mapping[str, Any]) -> Bag:
    """The bag of a slide under the name of the table; that a file names another is a remark."""
    if holds_many(file):
        return bag_in(file, slide)
    bag = Bag.open(file, **options)
    if bag.slide == Path(slide).name:
        return replace(bag, slide=slide)
    remark = f"the file says that it is of the slide '{bag.slide}'"
    return replace(bag, slide=slide, remarks=(*bag.remarks, remark))


def _of_slide(openers: Mapping[str, list[Path]], slide: str, root: Path) -> list[Path]:
    """The files of a slide; of a name with folders, those that lie in such folders."""
    files = openers.get(Path(slide).name, [])
    if "/" in slide:
        end = f"/{slide}"
        files = [file for file in files if f"/{bare(_below(file, root))}".endswith(end)]
    return _without_twins(files)


def _without_twins(files: list[Path]) -> list[Path]:
    """CLAM writes each slide twice: the one with coordinates is taken."""
    if len(files) != 2:
        return files
    by_folder = {file.parent.name: file for file in files}
    if by_folder.keys() == {"h5_files", "pt_files"} and len({f.parent.parent for f in files}) == 1:
        return [by_folder["h5_files"]]
    return files


def _without_file(table: BagTable, index: int, root: Path) -> Fault:
    return Fault(
        f"row {table.rows[index]}, {table.slides[index]}",
        f"no file below {root} is of this slide: a file is called as its slide, with one of the "
        f"endings {', '.join(ENDINGS)}",
        "missing file",
    )


def _different(bags: Sequence[Bag], root: Path) -> Iterator[Fault]:
    """A fault for each bag whose features are not those of most others."""
    for kind, phrase, of in (
        ("width", "features a tile", lambda bag: bag.features.shape[1]),
        ("encoder", "as encoder", lambda bag: bag.encoder),
    ):
        values = Counter(of(bag) for bag in bags if of(bag) is not None)
        if len(values) < 2:
            continue
        usual, count = values.most_common(1)[0]
        for bag in bags:
            if of(bag) not in {None, usual}:
                name = bag.slide if bag.path is None else _below(bag.path, root)
                yield Fault(
                    name,
                    f"it has {of(bag)} {phrase}, and {counted(count, 'other bag')} {usual}: all "
                    "bags of a run are of one encoder",
                    kind,
                )


def _unlisted(openers: Mapping[str, list[Path]], table: BagTable | None) -> list[str]:
    """A remark on the files that no row of the table names."""
    if table is None:
        return []
    listed = {Path(slide).name for slide in table.slides}
    unlisted = [name for name in openers if name not in listed]
    if not unlisted:
        return []
    counts = f"{counted(len(unlisted), 'bag')} of {len(openers):,}"
    return [f"{counts} are in no row of {table.path.name} and are left out: {few(unlisted, 5)}"]


def _below(file: Path, root: Path) -> str:
    return (
        file.relative_to(root).as_posix()
        if file.is_relative_to(root) and file != root
        else file.name
    )
