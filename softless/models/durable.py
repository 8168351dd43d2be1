"""The one door through which files and folders are made, changed and deleted.

Files are written whole or not at all: beside, digested, flushed, renamed, and the folder's entry
flushed as well. Whatever the system refuses (no room, no permission, a file system that is
read-only or fails) becomes one `StorageError`, and cleaning up never hides the cause.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from softless.errors import StorageError
from softless.models.digests import of_file

FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
SMALL = 2**16  # bytes; blocks up to it are hashed where they are written


@dataclass(frozen=True)
class Digest:
    """What a file holds."""

    bytes: int
    sha256: str


class Hashing:
    """A file that is hashed while it is written; the first error of the disk is kept, since a
    writer above may rename it.

    A large block is hashed by `helper` while this thread writes it.
    """

    def __init__(self, file: BinaryIO, helper: ThreadPoolExecutor | None = None) -> None:
        self.file, self.helper, self.hash, self.count = file, helper, hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        hashed = (
            self.helper.submit(self.hash.update, data)
            if self.helper and len(data) > SMALL
            else None
        )
        try:
            written = self.file.write(data)
        except OSError as error:
            self.error = self.error or error
            raise
        finally:
            if hashed is not None:
                hashed.result()
        if hashed is None:
            self.hash.update(data)
        self.count += written
        return written

    def flush(self) -> None:
        self.file.flush()

    def digest(self) -> Digest:
        return Digest(self.count, self.hash.hexdigest())


def write_digested(path: Path, write: Callable[[Hashing], Any]) -> Digest:
    """Write a file through a hash; a reader sees the old file or the new one, never half of one.

    Raises:
        StorageError: the disk is full or the folder cannot be written; the old file stays.
    """
    beside = path.with_name(path.name + ".tmp")
    hashing: Hashing | None = None
    try:
        with beside.open("wb") as file, ThreadPoolExecutor(1) as helper:
            hashing = Hashing(file, helper)
            write(hashing)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        discard(beside)
        cause = (hashing.error if hashing and isinstance(error, RuntimeError) else None) or error
        if not isinstance(cause, OSError):
            raise
        raise storage_error(path, cause, hashing.count if hashing else 0) from error
    return hashing.digest()


def write_whole(path: Path, write: Callable[[Path], Any], needed: int = 0) -> None:
    """As `write_digested`, for a writer that takes a path; `needed` is what it will write, where
    that is known.

    Raises:
        StorageError: the disk is full or the folder cannot be written; the old file stays.
    """
    beside = path.with_name(path.name + ".tmp")
    try:
        write(beside)
        sync_file(beside)
        beside.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        written = max(_written(beside), needed)
        discard(beside)
        if not isinstance(error, OSError):
            raise
        raise storage_error(path, error, written) from error


def write_text(path: Path, text: str, *, errors: str = "strict") -> None:
    """As `write_whole`, a text in UTF-8 with its line ends as they are."""
    content = text.encode(errors=errors)
    write_whole(path, lambda beside: beside.write_bytes(content) and None, len(content))


def write_bytes(path: Path, content: bytes) -> None:
    """As `write_whole`, bytes that are at hand."""
    write_whole(path, lambda beside: beside.write_bytes(content) and None, len(content))


def write_stream(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """As `write_whole`, for a writer that takes an open file."""

    def through(beside: Path) -> None:
        with beside.open("wb") as file:
            write(file)

    write_whole(path, through)


def write_picture(path: Path, image: Any) -> None:
    """As `write_whole`, an image of Pillow as PNG, in a folder that may be missing."""
    make_folder(path.parent)
    write_stream(path, lambda file: image.save(file, "PNG"))


def append(path: Path, content: bytes) -> None:
    """Add to the end of a file; it is on disk afterwards.

    Raises:
        StorageError: it could not be written whole.
    """
    with storing(path, len(content)), path.open("ab") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_folder(folder: Path, write: Callable[[Path], Any]) -> None:
    """A folder whole or not at all: `write` fills one beside it. A folder of that name must be
    empty.

    Raises:
        StorageError: it cannot be written; nothing is left.
    """
    beside = folder.with_name(folder.name + ".tmp")
    delete_folder(beside)
    try:
        with storing(folder):
            beside.mkdir(parents=True)
            write(beside)
            sync_folder(beside)
            beside.replace(folder)
            sync_folder(folder.parent)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise


def make_folder(folder: Path) -> Path:
    """Make a folder and those above it, where they are missing.

    Raises:
        StorageError: it cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        if error.errno in FULL:
            raise storage_error(folder, error) from error
        raise StorageError(
            f"cannot make the folder {folder}: {error.strerror}; choose another --out"
        ) from error
    return folder


def delete(path: Path) -> None:
    """Delete a file that may be missing.

    Raises:
        StorageError: it is there and cannot be deleted.
    """
    with storing(path):
        path.unlink(missing_ok=True)


def delete_folder(folder: Path) -> None:
    """Delete a folder that may be missing, with all in it.

    Raises:
        StorageError: something of it cannot be deleted.
    """
    with storing(folder), suppress(FileNotFoundError):
        shutil.rmtree(folder)


def move(path: Path, to: Path) -> None:
    """Give a file or folder another name on the same disk; what had that name is replaced.

    Raises:
        StorageError: it cannot be moved.
    """
    with storing(to):
        path.replace(to)


def remove_empty(folder: Path) -> None:
    """Remove a folder that nothing was written into; one that holds something stays."""
    with suppress(OSError):
        folder.rmdir()


def discard(path: Path) -> None:
    """Delete a file of no use, if that is possible: for cleaning up, which must not hide an error
    under way.
    """
    with suppress(OSError):
        path.unlink(missing_ok=True)


@contextmanager
def storing(path: Path, needed: int = 0) -> Iterator[None]:
    """What the system refuses inside is a `StorageError` that names this path; `needed` is how many
    bytes were to be written.

    Raises:
        StorageError: the system refused something.
    """
    try:
        yield
    except OSError as error:
        raise storage_error(path, error, needed) from error


def _written(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """As `write_whole`, a safetensors file.

    Raises:
        StorageError: the disk is full or the folder cannot be written; the old file stays.
    """
    from safetensors import SafetensorError

    def write(beside: Path) -> None:
        try:
            save_readable(beside, tensors, metadata)
        except SafetensorError as error:
            match = re.search(r"os error (\d+)", str(error))
            if match is None:
                raise
            raise OSError(int(match[1]), os.strerror(int(match[1]))) from error

    write_whole(path, write, sum(tensor.nbytes for tensor in tensors.values()))


def save_readable(
    path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None
) -> None:
    """A safetensors file with the mode that new files get here; safetensors 0.8 makes one that its
    owner alone can read.
    """
    from safetensors.torch import save_file

    path.unlink(missing_ok=True)
    path.touch()
    mode = path.stat().st_mode & 0o777
    save_file(dict(tensors), path, metadata=metadata)
    path.chmod(mode)


def sync_file(path: Path) -> None:
    """Flush a file that another writer closed. Windows flushes only what is open for writing."""
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries: a rename is on disk after this."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:  # not every system opens folders
        return
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in {errno.EINVAL, errno.ENOTSUP}:
            raise
    finally:
        os.close(handle)


def storage_error(path: Path, error: OSError, written: int = 0) -> StorageError:
    """The error in words: path, reason, and for a full disk how much was to go in and how much room
    is left.
    """
    reason = error.strerror or str(error)
    if error.errno not in FULL:
        return StorageError(
            f"cannot write {path}: {reason}; mend the folder or choose another --out"
        )
    needed = f"more than {size(written)} are needed and " if written else ""
    return StorageError(
        f"cannot write {path}: {reason}; {needed}{_free(path)} are free. Make room and give the "
        "command again (a run goes on with "
        "--resume): what was kept before is whole"
    )


def reason_of(error: StorageError) -> str:
    """What the system said."""
    cause = error.__cause__
    return (isinstance(cause, OSError) and cause.strerror) or str(error)


def _free(path: Path) -> str:
    """Room on the disk of a path of which not all is there yet."""
    folder = next((folder for folder in path.absolute().parents if folder.is_dir()), Path("/"))
    try:
        return size(shutil.disk_usage(folder).free)
    except OSError:
        return "no bytes"


def digest_of(path: Path) -> Digest:
    """Size and SHA-256 of a file."""
    return Digest(path.stat().st_size, of_file(path))


def size(count: int) -> str:
    """Bytes for people."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.1f} MB"
