"""Images in class folders: `root/{train,val,test}/class/*`, in any usual spelling of the splits, or
`root/class/*` alone.

`val` and `test` may be absent. Classes are the sorted folder names of the training part, and every
other part must have exactly these: an index never shifts because a folder is missing. Sub-folders
of a class belong to it, linked ones too.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from softless.data.findings import refusal
from softless.data.groups import groups_of, shared_groups
from softless.data.images import IMAGE_TYPES
from softless.data.notices import notice
from softless.data.places import LAYOUT, class_splits, folders_in
from softless.data.reading import is_image
from softless.data.samples import FileSamples
from softless.data.walks import listed
from softless.errors import DataError, SoftlessError, UsageError, located
from softless.experiment.ranges import Range
from softless.words import ALIKE, NO_TEXT, composed, few, is_text, twins_of, visible

AT_ONCE = 4  # folders that are listed at once: a disk far away takes its time for each


@dataclass(frozen=True)
class Listing:
    """What a folder and its sub-folders hold."""

    # images by their ending, sorted paths relative to the folder
    files: list[str] = field(default_factory=list)
    # ending -> files that are no images by it
    passed_over: Counter[str] = field(default_factory=Counter)
    hidden: int = 0  # files and folders whose name starts with a dot
    loops: int = 0  # links back to a folder that they lie in: not followed


@dataclass(frozen=True)
class ClassFiles:
    """What one folder of class folders holds: files per class relative to the folder, and what was
    passed over.
    """

    files: dict[str, list[str]]
    passed_over: Counter[str]  # ending -> files that are no images by it
    hidden: int  # files and folders whose name starts with a dot


def folder_parts(
    path: str | Path, channels: int, scale: Range | None = None, group: str | None = None
) -> tuple[dict[str, FileSamples], tuple[str, ...]]:
    """The parts a data folder holds ({"train", "val", "test"}, or {"all"} for class folders alone)
    and the class names.

    Args:
        path: the folder.
        channels: 1 or 3.
        scale: the declared range of the images' values.
        group: a regular expression whose capture group finds in the path of a file, class folder
            first, whose the image is.

    Raises:
        DataError: the folder is missing, a file or empty; there is only one class; a class has no
            images; class names differ between parts, or differ only in case; a group stands in two
            parts, or is not found in a path.
        UsageError: no regular expression with one capture group.
    """
    root = existing_folder(path)
    places = class_splits(root)
    if not places:
        scan = _scan(root)
        return {"all": _samples(root, "", scan, channels, scale, group)}, tuple(scan.files)
    if renamed := read_as(places):
        notice(f"{root}: {renamed}")
    _report_unused(root, places)
    scans = {part: _scan(root / folder) for part, folder in places.items()}
    classes = tuple(scans["train"].files)
    for part, scan in scans.items():
        class_places(
            classes, tuple(scan.files), f"{root / places['train']}", f"{root / places[part]}"
        )
    parts = {
        part: _samples(root, places[part], scan, channels, scale, group)
        for part, scan in scans.items()
    }
    if shared := list(shared_groups(parts, "group")):
        raise refusal(root, shared, "move the images of a group into one split")
    return parts, classes


def existing_folder(path: str | Path) -> Path:
    """The path as a folder.

    Raises:
        DataError: it does not exist, or is a file.
    """
    root = located(path)
    if not root.exists():
        raise DataError(f"no data folder at {root}: {LAYOUT}")
    if not root.is_dir():
        raise DataError(f"{root} is a file, not a folder: {LAYOUT}")
    return root


def class_places(
    expected: Sequence[str],
    present: Sequence[str],
    expected_in: str,
    present_in: str,
    *,
    partly: bool = False,
) -> tuple[int, ...]:
    """The position in `expected` of each class of `present`. A class is its name: order, index and
    id may differ.

    Args:
        expected: the classes of `expected_in`.
        present: the classes of `present_in`.
        expected_in: what `expected` belongs to, for the message.
        present_in: what `present` belongs to.
        partly: some of the classes are enough; which are missing is said.

    Raises:
        DataError: the names are not the same; missing and extra ones are listed.
    """
    position = {name: index for index, name in enumerate(expected)}
    if len(present) == len(expected) and set(present) == set(expected):
        return tuple(position[name] for name in present)
    missing = [name for name in expected if name not in present]
    extra = [name for name in present if name not in expected]
    if partly and present and not extra and len(set(present)) == len(present):
        notice(
            f"{present_in} has no images of {few(missing)}: the numbers are of the other classes "
            f"of {expected_in}"
        )
        return tuple(position[name] for name in present)
    lists = "; ".join(
        f"{kind}: {few(names)}" for kind, names in (("missing", missing), ("extra", extra)) if names
    )
    raise DataError(
        f"the classes of {present_in} are not those of {expected_in} "
        f"({lists or 'a name is given twice'}): they must be the same"
    )


def _refuse(error: OSError) -> None:
    raise DataError(f"cannot list the folder {error.filename}: {error.strerror}") from error


def listing(
    root: Path,
    failed: Callable[[OSError], None] = _refuse,
    apart: Path | None = None,
    accepts: Callable[[Path], bool] = is_image,
) -> Listing:
    """Everything below a folder; `failed` is called with a folder that cannot be listed, and raises
    by default.

    A folder `apart` below it is passed over. Images by their ending are looked for, and what
    `accepts` says of files with others.
    """
    left_out = None if apart is None else apart.resolve()
    files: list[str] = []
    passed_over: Counter[str] = Counter()
    hidden = loops = 0
    # a folder from the root on, and where it and those it lies in really are
    waiting: list[tuple[str, tuple[Path, ...]]] = [("", ())]
    while waiting:
        inside, chain = waiting.pop()
        try:
            with os.scandir(root / inside) as scanner:
                entries = list(scanner)
        except OSError as error:
            failed(error)
            continue
        for entry in entries:  # a path is built for few of them: a data set may hold millions
            name = entry.name
            if name[0] == ".":
                hidden += 1
            elif not entry.is_dir():
                ending = _ending(name)
                if ending in IMAGE_TYPES or accepts(Path(entry.path)):
                    files.append(inside + name)
                else:
                    passed_over[ending or "(no ending)"] += 1
            else:
                chain = chain or _chain(root)
                real = Path(entry.path).resolve()
                if real in chain:
                    loops += 1
                elif real != left_out:
                    waiting.append((f"{inside}{name}/", (*chain, real)))
    return Listing(sorted(files), passed_over, hidden, loops)


def _chain(folder: Path) -> tuple[Path, ...]:
    """Where a folder and those it lies in really are."""
    real = folder.resolve()
    return real, *real.parents


def _ending(name: str) -> str:
    """What follows the last dot of a name, and the dot, in small letters; as `PurePath.suffix` has
    it.
    """
    dot = name.rfind(".")
    return name[dot:].lower() if 0 < dot < len(name) - 1 else ""


def image_files(root: Path) -> tuple[list[str], Counter[str], int]:
    """All images below a folder as sorted relative paths, the other files by ending, and the number
    of hidden entries.
    """
    listed = listing(root)
    return listed.files, listed.passed_over, listed.hidden


def report_passed_over(root: Path, passed_over: Counter[str], hidden: int) -> None:
    """Say once how many files were not read, and why."""
    if passed_over:
        endings = ", ".join(f"{ending} {count}" for ending, count in passed_over.most_common(10))
        endings += ", …" if len(passed_over) > 10 else ""
        notice(
            f"{root}: {passed_over.total()} files are not images by their ending and are not read: "
            f"{endings} "
            f"(images end in {', '.join(sorted(IMAGE_TYPES))})"
        )
    if hidden:
        notice(f"{root}: {hidden} hidden files or folders (name starts with a dot) are not read")


def read_as(places: Mapping[str, str]) -> str:
    """What is said of splits that are called otherwise; nothing where none is."""
    renamed = [f"{folder} as {part}" for part, folder in places.items() if folder != part]
    return f"read as splits: {', '.join(renamed)}" if renamed else ""


def _report_unused(root: Path, places: Mapping[str, str]) -> None:
    split_folders = {folder.partition("/")[0] for folder in places.values()}
    unused = [name for name in folders_in(root) if name not in split_folders]
    if unused:
        notice(
            f"{root}: the folders {', '.join(unused)} beside {places['train']} are not read "
            "(splits are named train, val, test)"
        )


def _scan(root: Path) -> ClassFiles:
    folders = folders_in(root)
    if not folders:
        raise DataError(f"{root} holds no class folders: {LAYOUT}")
    if len(folders) == 1:
        inside = root / folders[0]
        deeper = f"; the data may be {inside}" if folders_in(inside) else ""
        raise DataError(
            f"{root} holds only one class ('{folders[0]}'): a classifier needs at least two class "
            f"folders{deeper}"
        )
    _refuse_no_text(root, folders)
    for name, twin in twins_of(folders).items():
        raise DataError(f"{root}: the classes '{twin}' and '{name}' {ALIKE}")
    files: dict[str, list[str]] = {}
    passed_over: Counter[str] = Counter()
    hidden = 0
    folders = sorted(folders, key=composed)  # the same order on every file system
    for name, found_in in zip(folders, _listings([root / name for name in folders]), strict=True):
        files[composed(name)] = [f"{name}/{file}" for file in found_in.files]
        passed_over, hidden = passed_over + found_in.passed_over, hidden + found_in.hidden
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise DataError(
            f"no images in {', '.join(str(root / name) for name in empty[:10])}: every class "
            "folder must hold at least one "
            f"({', '.join(sorted(IMAGE_TYPES))}); remove the folder or fill it"
        )
    report_passed_over(root, passed_over, hidden)
    return ClassFiles(files, passed_over, hidden)


def _listings(folders: Sequence[Path]) -> list[Listing]:
    """What each folder holds; several are walked at once, and those that were walked already are
    not.
    """
    before = [listed(folder) for folder in folders]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        walks = pool.map(
            listing, [folder for folder, known in zip(folders, before, strict=True) if not known]
        )
        return [known or next(walks) for known in before]


def class_listings(path: str | Path) -> dict[str, Listing]:
    """What each class folder below a data folder holds, by its path there; nothing where it has
    none, which `folder_parts` says.
    """
    root = Path(path)
    try:
        folders = [
            Path(place, name)
            for place in (class_splits(root) or {"": ""}).values()
            for name in folders_in(root / place)
        ]
        walks = _listings([root / folder for folder in folders])
    except (OSError, SoftlessError):  # said when the data are opened
        return {}
    return {folder.as_posix(): walk for folder, walk in zip(folders, walks, strict=True)}


def _refuse_no_text(root: Path, folders: list[str]) -> None:
    bad = [name for name in folders if not is_text(name)]
    if bad:
        raise DataError(f"{root}: the class folder '{visible(bad[0])}' has {NO_TEXT}")


def _samples(
    root: Path, part: str, scan: ClassFiles, channels: int, scale: Range | None, group: str | None
) -> FileSamples:
    listed = [file for class_files in scan.files.values() for file in class_files]
    groups = None if group is None else np.array(groups_of(listed, group), dtype=object)
    files = [f"{part}/{file}" if part else file for file in listed]
    targets = np.repeat(
        np.arange(len(scan.files)), [len(class_files) for class_files in scan.files.values()]
    )
    return FileSamples(root, files, targets, channels, scale, groups=groups)


def images_at(
    path: Path, channels: int, apart: Path | None = None, scale: Range | None = None, page: int = 0
) -> FileSamples:
    """The images of a folder and its sub-folders, or one image, without labels; see `files_at`."""
    root, files = files_at(path, apart)
    return FileSamples(root, files, [0] * len(files), channels, scale, page)


def files_at(path: Path, apart: Path | None = None) -> tuple[Path, list[str]]:
    """A folder, and the images in it and in its sub-folders by their paths below it, sorted; or one
    image and its folder.

    Args:
        path: a folder or an image.
        apart: where results will lie. What is there already is no image to look at: it is left out,
            which is said.

    Raises:
        DataError: nothing is there, or no image.
        UsageError: the results would lie among the images.
    """
    if not path.exists():
        raise DataError(f"no images at {path}: give a folder of images, or one image")
    if path.is_file():
        return path.parent, [path.name]
    if apart is not None and apart.resolve() == path.resolve():
        raise UsageError(
            f"--out {apart} is the folder of the images: give a folder of its own, as "
            f"{path / 'out'}"
        )
    listed = listing(path, apart=apart)
    inside = apart is not None and apart.is_dir() and apart.resolve().is_relative_to(path.resolve())
    left_out = len(listing(apart).files) if inside and apart is not None else 0
    if not listed.files:
        but = f" but for {apart}, the folder for the results" if left_out else ""
        raise DataError(f"no images in {path} or below{but} ({', '.join(sorted(IMAGE_TYPES))})")
    if left_out:
        notice(
            f"{path}: {left_out} images in {apart} are left out: it is the folder for the results"
        )
    report_passed_over(path, listed.passed_over, listed.hidden)
    return path, listed.files
