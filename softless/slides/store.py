"""Where the residual stream lies while layer after layer goes over it, and the journal that lets a
killed run go on.

In a folder the tokens are read and written by file calls and not through a mapping: a mapping
counts the whole file into the memory of the process, and a full disk behind it ends the process by
a signal instead of an error.

A step changes tokens where they lie, so it is written twice: first into the journal, which is
replaced whole, then into the tokens. Whatever the instant of a kill, the journal is that of the
last step or of the one before. Its tokens are written again, which changes nothing where they were
written already.
"""

# N tokens, D width

import errno
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load, save
from torch import Tensor

from softless.errors import CheckpointError, StorageError, UsageError
from softless.models.durable import (
    FULL,
    delete,
    discard,
    make_folder,
    remove_empty,
    size,
    storing,
    write_text,
)

JOURNAL, LOG, ABOUT = "journal.bin", "unreadable.jsonl", "about.json"
MAGIC = b"softless journal 1\n"


class Rows(Protocol):
    """N rows of D numbers."""

    rows: int
    width: int
    dtype: torch.dtype

    def open(self) -> None:
        """Take the room that they need, before the first is read or written."""

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop, (stop - start, width); changing them in place is allowed, `write`
        keeps it.
        """

    def write(self, start: int, values: Tensor) -> None:
        """Put rows (n,D) from start on."""

    def whole(self) -> Tensor:
        """All rows, (rows, width)."""


class InMemory:
    """Rows in a tensor; those that are read are views of it."""

    def __init__(self, rows: int, width: int, dtype: torch.dtype, device: torch.device) -> None:
        self.rows, self.width, self.dtype = rows, width, dtype
        self.values = torch.zeros(rows, width, dtype=dtype, device=device)

    def open(self) -> None:
        """The room is there."""

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop, (stop - start, width): a view."""
        return self.values[start:stop]

    def write(self, start: int, values: Tensor) -> None:
        """Put rows (n, width) from start on; a view of them is there already."""
        target = self.values[start : start + len(values)]
        if target.data_ptr() != values.data_ptr():
            target.copy_(values)

    def whole(self) -> Tensor:
        """All rows, (rows, width)."""
        return self.values


class InFile:
    """Rows in a file of a folder."""

    handle: int | None = None

    def __init__(
        self, path: Path, rows: int, width: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.path, self.rows, self.width, self.dtype, self.device = path, rows, width, dtype, device
        self.pitch = width * torch.empty(0, dtype=dtype).element_size()

    def open(self) -> None:
        """Take the room on the disk.

        Raises:
            StorageError: the disk has no room for them.
        """
        needed = self.rows * self.pitch
        try:
            self.handle = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
            if os.fstat(self.handle).st_size != needed:
                _allocate(self.handle, needed)
        except OSError as error:
            raise full(self.path, error, needed) from error

    def read(self, start: int, stop: int) -> Tensor:
        """Rows start to stop, (stop - start, width), on the store's device.

        Raises:
            CheckpointError: the file ends before them.
        """
        assert self.handle is not None
        values = torch.empty(stop - start, self.width, dtype=self.dtype)
        view, at = _bytes(values), start * self.pitch
        while view:
            count = os.preadv(self.handle, [view], at)
            if not count:
                raise CheckpointError(f"{self.path} ends early: remove the folder and begin again")
            view, at = view[count:], at + count
        return values.to(self.device)

    def write(self, start: int, values: Tensor) -> None:
        """Put rows (n, width) from start on.

        Raises:
            StorageError: the disk does not take them.
        """
        assert self.handle is not None
        view, at = _bytes(values.detach().cpu().contiguous()), start * self.pitch
        try:
            while view:
                count = os.pwrite(self.handle, view, at)
                view, at = view[count:], at + count
        except OSError as error:
            raise full(self.path, error) from error

    def whole(self) -> Tensor:
        """All rows (rows, width), mapped from the file."""
        count = self.rows * self.width
        return torch.from_file(str(self.path), shared=False, size=count, dtype=self.dtype).view(
            self.rows, self.width
        )

    def close(self, *, remove: bool) -> None:
        """Give the file back, and its room on the disk."""
        if self.handle is not None:
            os.close(self.handle)
        if remove:
            delete(self.path)


def _bytes(values: Tensor) -> memoryview:
    return memoryview(values.flatten().view(torch.uint8).numpy() if values.numel() else b"")


def _allocate(handle: int, needed: int) -> None:
    """Take the room itself, so that the disk cannot fill up later; a file with holes promises it
    only.
    """
    os.ftruncate(handle, 0)
    if not needed:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, needed)
    else:
        os.ftruncate(handle, needed)


def full(path: Path, error: OSError, needed: int = 0) -> StorageError:
    """The error in words: path, reason, and for a full disk how much is needed and free."""
    reason = error.strerror or str(error)
    if error.errno not in FULL and error.errno != errno.EFBIG:
        return StorageError(
            f"cannot write {path}: {reason}; mend the folder or choose another store"
        )
    free = size(shutil.disk_usage(path.parent).free)
    room = f"; {size(needed)} are needed and {free} are free" if needed else f"; {free} are free"
    return StorageError(
        f"cannot write {path}: {reason}{room}. The blocks that are finished are kept: make room "
        "and run the same again"
    )


@dataclass(frozen=True)
class Entry:
    """What is kept of a step: where the run stands, in words for JSON, and tensors."""

    at: Mapping[str, Any]
    tensors: Mapping[str, Tensor]


class Journal:
    """The last step of a run in a folder, whole or not at all."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / JOURNAL

    def write(self, entry: Entry) -> None:
        """Replace the entry.

        Raises:
            StorageError: the disk is full; the entry before stays.
        """
        tensors = {name: x.detach().cpu().contiguous() for name, x in entry.tensors.items()}
        body = save(tensors, {"at": json.dumps(entry.at)})
        beside = self.path.with_name(self.path.name + ".tmp")
        try:
            with beside.open("wb") as file:
                file.write(MAGIC + hashlib.sha256(body).digest())
                file.write(body)
            beside.replace(self.path)
        except OSError as error:
            discard(beside)
            raise full(self.path, error, len(body)) from error

    def read(self) -> Entry | None:
        """The entry, or None where no step was finished.

        Raises:
            CheckpointError: it is damaged.
        """
        if not self.path.exists():
            return None
        content = self.path.read_bytes()
        start = len(MAGIC) + 32
        body = content[start:]
        if (
            content[: len(MAGIC)] != MAGIC
            or content[len(MAGIC) : start] != hashlib.sha256(body).digest()
        ):
            raise CheckpointError(f"{self.path} is damaged: remove the folder and begin again")
        header = json.loads(body[8 : 8 + struct.unpack("<Q", body[:8])[0]])
        return Entry(json.loads(header["__metadata__"]["at"]), load(body))


class Log:
    """Lines of JSON that are only ever added; the journal says how long it was at the last step."""

    def __init__(self, folder: Path) -> None:
        self.path, self.length = folder / LOG, 0

    def add(self, line: Mapping[str, Any]) -> None:
        """Add a line.

        Raises:
            StorageError: the disk does not take it.
        """
        try:
            with self.path.open("ab") as file:
                self.length += file.write(json.dumps(line).encode() + b"\n")
        except OSError as error:
            raise full(self.path, error) from error

    def back_to(self, length: int) -> list[Any]:
        """The lines that there were at a length; what was added later goes."""
        if not self.path.exists():
            return []
        with storing(self.path):
            os.truncate(self.path, length)
        self.length = length
        return [json.loads(line) for line in self.path.read_text(encoding="utf-8").splitlines()]


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder, held by this process until it ends, however it ends.

    Raises:
        CheckpointError: another process works in it.
        UsageError: the system has no such lock.
    """
    try:
        import fcntl
    except ImportError as error:
        raise UsageError(
            f"a store ({folder}) needs locks and reads that Windows lacks: leave it out, or run "
            "under Linux (WSL) or macOS"
        ) from error
    with (folder / ABOUT).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise CheckpointError(
                f"another process works in {folder}: wait for it, or choose another store"
            ) from error
        yield


def emptied(folder: Path) -> None:
    """Remove what a run left that has no answer, and its folder."""
    for path in (folder / JOURNAL, folder / LOG, folder / ABOUT, *folder.glob("*.bin")):
        delete(path)
    remove_empty(folder)


def same_run(folder: Path, facts: Mapping[str, Any]) -> bool:
    """Whether a folder holds the beginning of this very run; a new folder is made and told what run
    it is of.

    Raises:
        CheckpointError: the folder holds another run (what differs is named), or is none of ours.
        StorageError: it cannot be made.
    """
    path = folder / ABOUT
    if path.exists():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise CheckpointError(
                f"{path} is damaged: remove the folder and begin again"
            ) from error
        wrong = [name for name in sorted({*facts, *before}) if facts.get(name) != before.get(name)]
        if wrong:
            raise CheckpointError(
                f"{folder} holds another run, of another {', another '.join(wrong)}: choose "
                "another store, or remove the folder"
            )
        return True
    try:
        make_folder(folder)
        if any(folder.iterdir()):
            raise CheckpointError(
                f"{folder} holds other files: choose a new or empty folder as the store"
            )
        write_text(path, json.dumps(facts, indent=1) + "\n")
    except OSError as error:
        raise full(folder, error) from error
    return False
