"""The folder that a verb leaves its results in: names of pictures, what the run before left, and
nothing of the user's overwritten.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any

from softless import ranks
from softless.data.notices import notice
from softless.errors import StorageError, UsageError
from softless.models.durable import delete, delete_folder, make_folder, write_text
from softless.words import counted

# bytes of a name: file systems take 255, and an ending and `.tmp` follow
LONGEST, SHORTENED = 240, 200
WRITTEN = "written.json"  # verb -> the files that its last run left, relative to the folder


class Results:
    """As a context manager: what the verb's last run left and this one does not write goes, and the
    files are listed in `written.json`.

    Args:
        folder: made if missing.
        verb: whose results they are; other verbs' files in the folder stay.
        inputs: the files that are read.

    Raises:
        UsageError: the folder cannot be made, or is that of the images.
    """

    def __init__(self, folder: Path, verb: str, inputs: Sequence[Path]) -> None:
        self.folder, self.verb = folder, verb
        self.written: dict[str, None] = {}  # in order
        # texts, which are a quarter of a path
        self.inputs = {os.path.realpath(path) for path in inputs}
        make_folder(folder)
        self.before = _listed(folder / WRITTEN)

    def __enter__(self) -> "Results":  # noqa: PYI034 - Self came with Python 3.11
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if ranks.rank() > 0:  # all say what they write, and the first keeps the list
            return
        own = list(self.before.get(self.verb, []))
        if kind is None:
            self._clear([name for name in own if name not in self.written])
            own = []
        existing = [name for name in self.written if (self.folder / name).exists()]
        content = {**self.before, self.verb: sorted({*own, *existing})}
        if content[self.verb]:
            try:
                write_text(self.folder / WRITTEN, json.dumps(content))
            except StorageError:
                if kind is None:  # the error under way says more
                    raise

    def file(self, name: str) -> Path:
        """A file of the folder that will be written.

        Raises:
            UsageError: it is one of those that are read.
        """
        path = self.folder / name
        if os.path.realpath(path) in self.inputs:
            raise UsageError(
                f"{path} is an image to be read and would be overwritten: choose another --out"
            )
        self.written[PurePosixPath(name).as_posix()] = None
        return path

    def pictures(self, names: Sequence[str], below: str = "") -> list[Path]:
        """A PNG file for each image, `below/NAME.png`; said before the first is written.

        Raises:
            UsageError: one of them is an image that is read.
        """
        paths = [
            self.file((PurePosixPath(below) / name).as_posix()) for name in picture_names(names)
        ]
        if changed := sum(
            writable(part) != part
            for name in names
            for part in PurePosixPath(name).with_suffix("").parts
        ):
            notice(
                f"{counted(changed, 'name')} of images or folders "
                f"{'is' if changed == 1 else 'are'} too long for the "
                "pictures' own, or hold signs that are not seen: those are shortened or _, and "
                "end in a digest"
            )
        if below and (self.folder / below).is_dir():
            listed = {*self.written, *(name for names in self.before.values() for name in names)}
            present = (
                path.relative_to(self.folder).as_posix()
                for path in (self.folder / below).rglob("*")
                if path.is_file()
            )
            if strange := sum(name not in listed for name in present):
                notice(
                    f"{self.folder / below} holds files that `softless {self.verb}` did not list "
                    f"there: {strange} stay"
                )
        return paths

    def _clear(self, names: Sequence[str]) -> None:
        gone = 0
        for name in names:
            path = self.folder / name
            if path.is_file() and os.path.realpath(path) not in self.inputs:
                delete(path)
                gone += 1
                for parent in path.relative_to(self.folder).parents[:-1]:
                    if any((self.folder / parent).iterdir()):
                        break
                    delete_folder(self.folder / parent)
        if gone:
            notice(
                f"{self.folder}: {gone} files that the last `softless {self.verb}` left there are "
                "removed"
            )


def picture_names(files: Sequence[str]) -> list[str]:
    """`a/b.jpg` is drawn as `a/b.png`. Where two images have one name but for the ending,
    `a/b.jpg.png` and `a/b.tif.png`.

    Names that are too long or hold signs that are not seen are changed (`writable`).
    """
    stems = [PurePosixPath(file).with_suffix("").as_posix() for file in files]
    uses = Counter([stem.casefold() for stem in stems])
    uses.update(file.casefold() for file in files)
    names = [
        stem if uses[stem.casefold()] == 1 else file
        for stem, file in zip(stems, files, strict=True)
    ]
    return [
        PurePosixPath(*map(writable, PurePosixPath(name).parts)).as_posix() + ".png"
        for name in names
    ]


def writable(name: str) -> str:
    r"""A name for a file or folder made from another's: `_` for signs that are not seen or no text,
    and at most LONGEST bytes.

    What is changed ends in a digest of the name as it was, so two never meet.

    >>> writable("cat"), writable("c\x1bat")
    ('cat', 'c_at-9755beddd3a2')
    """
    printable = "".join(sign if sign.isprintable() else "_" for sign in name)
    if printable == name and len(name.encode()) <= LONGEST:
        return name
    digest = hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=6).hexdigest()
    return f"{printable.encode()[:SHORTENED].decode(errors='ignore')}-{digest}"


def _listed(file: Path) -> dict[str, list[str]]:
    """What is in `written.json`; nothing where there is none or it is another's file."""
    try:
        content: Any = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(
            f"cannot read {file}: {error}; remove it, or choose another --out"
        ) from error
    is_valid = isinstance(content, dict) and all(
        isinstance(names, list) and all(isinstance(name, str) and _inside(name) for name in names)
        for names in content.values()
    )
    if not is_valid:
        raise UsageError(f"{file} lists no results of softless: remove it, or choose another --out")
    return content


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts
