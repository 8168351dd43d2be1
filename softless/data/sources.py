"""Images to be answered: a folder with its sub-folders, an image, several of these at once, or
the images of an npz file.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from softless import ranks
from softless.data.arrays import unlabelled_npz
from softless.data.folder import files_at, images_at
from softless.data.notices import notice
from softless.data.samples import FileSamples, Samples
from softless.errors import DataError, UsageError, located
from softless.experiment.ranges import Range
from softless.words import counted

Found = TypeVar("Found")


def images_of(
    sources: str | Path | Sequence[str | Path],
    channels: int,
    apart: Path | None = None,
    scale: Range | None = None,
    page: int = 0,
) -> Samples:
    """The images of one source or of several, without labels. Several are named from the folder
    that holds them all.

    Args:
        sources: folders, images, or one npz file.
        channels: of the images.
        apart: where results will lie: what is there is no image to look at.
        scale: the declared range of the images' values.
        page: which frame of a DICOM file.

    Raises:
        DataError: nothing is there, or no image.
        UsageError: no source, an npz file beside others or with a page, or results that would lie
            among the images.
    """
    named = [sources] if isinstance(sources, str | Path) else list(sources)
    paths = [located(source) for source in named]
    if not paths:
        raise UsageError("no images are named: give a folder, an image, or several of them")
    packed = [path for path in paths if path.suffix.lower() == ".npz"]
    if packed and len(paths) > 1:
        raise UsageError(
            f"{packed[0]} is an npz file, and {counted(len(paths), 'source')} are given: give it "
            "alone"
        )
    if packed:
        if page:
            raise UsageError(
                f"page={page}: {packed[0]} is an npz file, and only DICOM files have pages"
            )
        return unlabelled_npz(packed[0], channels, scale)
    if len(paths) == 1:
        return images_at(paths[0], channels, apart, scale, page)
    return _together(paths, channels, apart, scale, page)


def images_for_all(
    sources: str | Path | Sequence[str | Path],
    channels: int,
    apart: Path | None = None,
    scale: Range | None = None,
    page: int = 0,
) -> Samples:
    """As `images_of`, on every rank: folders are listed by rank 0 alone, an npz file is opened by
    each.
    """
    named = [sources] if isinstance(sources, str | Path) else list(sources)
    packed = any(Path(source).suffix.lower() == ".npz" for source in named)
    samples = opened_for_all(
        lambda: images_of(named, channels, apart, scale, page), in_memory=packed
    )
    if paths := samples.paths()[:1]:
        ranks.together(lambda: _seen(paths[0]))
    return samples


def opened_for_all(work: Callable[[], Found], *, in_memory: bool) -> Found:
    """What is opened of images, on all ranks: rank 0 lists and checks files for all; what lies in
    memory every rank opens.
    """
    return ranks.together(work) if in_memory else ranks.first(work)


def _seen(path: Path) -> None:
    """A rank on another machine may not have the folder that rank 0 listed."""
    if not path.parent.is_dir():
        raise DataError(
            f"there is no folder {path.parent} here: let every rank see the same images"
        )


def _together(
    paths: Sequence[Path], channels: int, apart: Path | None, scale: Range | None, page: int
) -> FileSamples:
    """Files of several sources, each once."""
    listings = [files_at(path, apart) for path in paths]
    files = [(root / name).absolute() for root, names in listings for name in names]
    once = list(dict.fromkeys(files))
    if len(once) < len(files):
        notice(
            f"{counted(len(files) - len(once), 'image')} lie in two of the sources and are "
            "answered once"
        )
    try:
        base = Path(os.path.commonpath([root.absolute() for root, _ in listings]))
    except ValueError as error:
        raise UsageError(
            "the sources lie on several drives: answer those of each drive alone"
        ) from error
    names = [file.relative_to(base).as_posix() for file in once]
    return FileSamples(base, names, [0] * len(names), channels, scale, page)
