"""Arrays in files, of which rows are read when they are asked for: HDF5, npz, npy, zarr and what
torch saved.

A source names a file and holds nothing open, so that bags pass to other processes.
"""

import json
import os
import struct
import warnings
import zipfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from threading import local
from typing import Any, NamedTuple

import numpy as np
import torch

from softless.errors import DataError, need
from softless.words import POINTED, POINTER, clipped

_held = local()  # files: those that stay open, by process and path
H5 = frozenset({".h5", ".hdf5"})
NAME_AT = 26  # of a zip's header of a member: two bytes of length each for name and rest
ENDINGS = (".h5", ".hdf5", ".npz", ".npy", ".pt", ".pth", ".zarr")
# what pickle names where numpy arrays were saved by torch: they hold numbers and run nothing
PLAIN_CLASSES: tuple[Any, ...] = (
    np.ndarray,
    np.dtype,
    *(type(np.dtype(name)) for name in ("f2", "f4", "f8", "i4", "i8", "u1")),
)


class Form(NamedTuple):
    """Shape and type of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype


class Source(ABC):
    """Arrays by their names, and what is said of them."""

    path: Path | None
    forms: Mapping[str, Form]
    attributes: Mapping[str, Any]  # of the file
    attributes_of: Mapping[str, Mapping[str, Any]]  # of each array

    @abstractmethod
    def opened(self, key: str) -> Any:
        """A context in which an array (N, …) can be sliced; what is read there is copied."""

    @property
    def called(self) -> str:
        """How sentences name it."""
        return "the bag" if self.path is None else str(self.path)

    def read(self, key: str, which: Any = ()) -> np.ndarray:
        """A part of an array (N, …) as numpy.

        Raises:
            DataError: the file is damaged.
        """
        try:
            with self.opened(key) as array:
                return np.asarray(array[which])
        except (OSError, ValueError, KeyError, RuntimeError, zipfile.BadZipFile, EOFError) as error:
            if isinstance(error, DataError):
                raise
            raise DataError(
                f"{self.called}: '{key}' cannot be read ({clipped(error)}): the file is damaged "
                "or cut off; write it again"
            ) from error


@dataclass(frozen=True)
class MemorySource(Source):
    """Arrays that are in memory."""

    arrays: Mapping[str, np.ndarray]
    path: Path | None = None
    attributes: Mapping[str, Any] = field(default_factory=dict)
    attributes_of: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def forms(self) -> Mapping[str, Form]:  # type: ignore[override]
        return {key: Form(array.shape, array.dtype) for key, array in self.arrays.items()}

    @contextmanager
    def opened(self, key: str) -> Iterator[np.ndarray]:
        """The array (N, …)."""
        yield self.arrays[key]


@dataclass(frozen=True)
class FileSource(Source):
    """Arrays of a file; `opener` makes the context in which one of them is read."""

    path: Path
    forms: Mapping[str, Form]
    attributes: Mapping[str, Any]
    attributes_of: Mapping[str, Mapping[str, Any]]
    opener: Callable[[Path, str], Any]

    def opened(self, key: str) -> Any:
        return self.opener(self.path, key)


def source_of(path: Path) -> Source:
    """The arrays of a file, by its ending.

    Raises:
        DataError: it is not there, has another ending, is damaged, or needs pickle.
    """
    if not path.exists():
        raise DataError(f"no file at {path}: give a file of features ({', '.join(ENDINGS)})")
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise DataError(
            f"{path} ends in '{path.suffix}': a bag is a file that ends in {', '.join(ENDINGS)}"
        )
    if path.is_dir() and path.suffix.lower() != ".zarr":
        raise DataError(f"{path} is a folder, and a bag is a file: give one of the files in it")
    if path.is_file():
        with path.open("rb") as file:
            start = file.read(len(POINTER))
        if not start:
            raise DataError(f"{path} is empty: write it again")
        if start == POINTER:
            raise DataError(f"{path} is {POINTED}")
    return reader(path)


def _h5(path: Path) -> Source:
    need("h5py")
    import h5py

    forms, attributes_of = {}, {}
    try:
        with h5py.File(path, "r") as file:
            for key, item in file.items():
                if isinstance(item, h5py.Dataset) and item.shape is not None:
                    forms[key] = Form(item.shape, item.dtype)
                    attributes_of[key] = _plain(item.attrs)
            attributes = _plain(file.attrs)
    except (OSError, RuntimeError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as HDF5 ({clipped(error)}): it is cut off or of another kind; "
            "write it again"
        ) from error
    return FileSource(path, forms, attributes, attributes_of, _open_h5)


@contextmanager
def _open_h5(path: Path, key: str) -> Iterator[Any]:
    import h5py

    open_files = getattr(_held, "files", {})
    if (os.getpid(), path) in open_files:
        yield open_files[os.getpid(), path][key]
        return
    with h5py.File(path, "r") as file:
        yield file[key]


@contextmanager
def h5_held(path: Path) -> Iterator[None]:
    """Within it an HDF5 file stays open in this thread; a process that is forked opens its own.

    Raises:
        DataError: it cannot be opened.
    """
    need("h5py")
    import h5py

    before = getattr(_held, "files", {})
    try:
        file = h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} cannot be read as HDF5 ({clipped(error)})") from error
    with file:
        _held.files = {**before, (os.getpid(), path): file}
        try:
            yield
        finally:
            _held.files = before


def _plain(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Attributes as Python's numbers and texts; 'None' as text is how some tools write nothing."""
    plain = {key: _value(stored) for key, stored in attributes.items()}
    return {key: value for key, value in plain.items() if value not in {None, "None"}}


def _value(stored: Any) -> Any:
    if isinstance(stored, bytes):
        return stored.decode("utf-8", "replace")
    if isinstance(stored, np.generic):
        return stored.item()
    if isinstance(stored, np.ndarray):
        return stored.reshape(()).item() if stored.size == 1 else tuple(stored.ravel().tolist())
    return tuple(stored) if isinstance(stored, list) else stored


def _npy(path: Path) -> Source:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(
            f"{path} cannot be read as npy ({clipped(error)}): it is cut off or holds objects; "
            "write it again as numbers"
        ) from error
    return FileSource(path, {"": Form(array.shape, array.dtype)}, {}, {}, _open_npy)


@contextmanager
def _open_npy(path: Path, _: str) -> Iterator[np.ndarray]:
    yield np.load(path, mmap_mode="r", allow_pickle=False)


def _npz(path: Path) -> Source:
    try:
        with zipfile.ZipFile(path) as archive:
            forms = dict(_npz_forms(archive))
        attributes = {}
        with np.load(path, allow_pickle=False) as file:
            for key, form in forms.items():
                if form.shape == () and form.dtype != object:
                    attributes[key] = file[key]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataError(
            f"{path} cannot be read as npz ({clipped(error)}): it is cut off or holds objects; "
            "write it again as numbers"
        ) from error
    return FileSource(path, forms, _plain(attributes), {}, _open_npz)


def _npy_header(file: Any) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, whether columns are together, and type; the file then stands at the first number."""
    read = (
        np.lib.format.read_array_header_1_0
        if np.lib.format.read_magic(file) == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    return read(file)


def _npz_forms(archive: zipfile.ZipFile) -> Iterator[tuple[str, Form]]:
    """Names with shapes and types, from the headers alone."""
    for name in archive.namelist():
        if not name.endswith(".npy"):
            continue
        with archive.open(name) as member:
            shape, _, dtype = _npy_header(member)
        yield name.removesuffix(".npy"), Form(shape, dtype)


@contextmanager
def _open_npz(path: Path, key: str) -> Iterator[np.ndarray]:
    """An array as it is stored, mapped; a compressed one is unpacked once for reads in turn."""
    mapped = _mapped(path, f"{key}.npy")
    if mapped is None:
        status = path.stat()
        mapped = _unpacked(path, key, status.st_mtime_ns, status.st_size)
    yield mapped


@lru_cache(maxsize=1)
def _unpacked(path: Path, key: str, *_stamp: int) -> np.ndarray:
    with np.load(path, allow_pickle=False) as file:
        array = file[key]
    array.flags.writeable = False
    return array


def _mapped(path: Path, name: str) -> np.ndarray | None:
    """A member that is not compressed; None where it is, or has no rows to map."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        member = archive.getinfo(name)
        if member.compress_type != zipfile.ZIP_STORED:
            return None
        file.seek(member.header_offset + NAME_AT)
        lengths = struct.unpack("<HH", file.read(4))  # of the name, and of what follows it
        file.seek(sum(lengths), os.SEEK_CUR)
        (shape, fortran, dtype), offset = _npy_header(file), file.tell()
    if dtype.hasobject or not shape or 0 in shape:
        return None
    return np.memmap(path, dtype, "r", offset, shape, "F" if fortran else "C")


@dataclass(frozen=True)
class KeptSource(Source):
    """A file of several bags: an array that was read stays in memory, since each bag is a part of
    it.
    """

    source: Source

    @property
    def path(self) -> Path | None:  # type: ignore[override]
        return self.source.path

    @property
    def forms(self) -> Mapping[str, Form]:  # type: ignore[override]
        return self.source.forms

    @property
    def attributes(self) -> Mapping[str, Any]:  # type: ignore[override]
        return self.source.attributes

    @property
    def attributes_of(self) -> Mapping[str, Mapping[str, Any]]:  # type: ignore[override]
        return self.source.attributes_of

    @cached_property
    def kept(self) -> dict[str, np.ndarray]:
        return {}

    @contextmanager
    def opened(self, key: str) -> Iterator[np.ndarray]:
        """The array (N, …), read once."""
        if key not in self.kept:
            self.kept[key] = self.source.read(key)
        yield self.kept[key]

    def __getstate__(self) -> dict[str, Any]:
        """Another process reads for itself."""
        return {"source": self.source}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)


def _torch(path: Path) -> Source:
    forms, attributes = {}, {}
    for key, value in _tensors(path).items():
        if isinstance(value, torch.Tensor | np.ndarray):
            dtype = _numpy_type(value) if isinstance(value, torch.Tensor) else value.dtype
            forms[key] = Form(tuple(value.shape), dtype)
        elif isinstance(value, str | int | float):
            attributes[key] = value
    return FileSource(path, forms, _plain(attributes), {}, _open_torch)


def _numpy_type(tensor: torch.Tensor) -> np.dtype:
    """numpy has no bfloat16: it is read as float32."""
    kind = torch.float32 if tensor.dtype == torch.bfloat16 else tensor.dtype
    return torch.empty(0, dtype=kind).numpy().dtype


def _tensors(path: Path) -> dict[str, Any]:
    """What torch saved: tensors by name, or one alone under an empty name. Nothing in the file is
    run.
    """
    with path.open("rb") as file:
        mapped = file.read(4) == b"PK\x03\x04"  # torch maps only what it saves as an archive
    reconstruct: Any = np.empty(0).__reduce__()[0]
    with warnings.catch_warnings(), torch.serialization.safe_globals([reconstruct, *PLAIN_CLASSES]):
        warnings.simplefilter("ignore")
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:
            why = str(error).partition("\n")[0]
            raise DataError(
                f"{path} is no plain tensor or table of tensors ({clipped(why)}): what else "
                "pickle holds could run programs; save it with torch.save(tensor, path)"
            ) from error
    if isinstance(content, torch.Tensor | np.ndarray):
        return {"": content}
    if isinstance(content, Mapping) and all(isinstance(key, str) for key in content):
        return dict(content)
    raise DataError(
        f"{path} holds a {type(content).__name__}: a bag is a tensor (N, D), or a table with "
        "'features' and 'coords'"
    )


@contextmanager
def _open_torch(path: Path, key: str) -> Iterator[Any]:
    content = _tensors(path)[key]
    yield _AsNumpy(content) if isinstance(content, torch.Tensor) else content


@dataclass(frozen=True)
class _AsNumpy:
    """A tensor whose slices are numpy arrays."""

    tensor: torch.Tensor

    def __getitem__(self, which: Any) -> np.ndarray:
        part = self.tensor.detach()[which]
        return np.array((part.float() if part.dtype == torch.bfloat16 else part).numpy())


def _zarr(path: Path) -> Source:
    need("zarr")
    forms, attributes_of = {}, {}
    try:
        root = _zarr_root(path)
        arrays = {"": root} if hasattr(root, "shape") else dict(root.arrays())
        for key, array in arrays.items():
            forms[key] = Form(tuple(array.shape), np.dtype(array.dtype))
            attributes_of[key] = _plain(dict(array.attrs))
        attributes = _plain(dict(root.attrs))
    except (OSError, ValueError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(
            f"{path} cannot be read as zarr ({clipped(error)}): it is of another kind, or a part "
            "of it is missing"
        ) from error
    return FileSource(path, forms, attributes, attributes_of, _open_zarr)


def _zarr_root(path: Path) -> Any:
    import zarr

    return zarr.open(str(path), mode="r")


@contextmanager
def _open_zarr(path: Path, key: str) -> Iterator[Any]:
    root = _zarr_root(path)
    yield root[key] if key else root


READERS: dict[str, Callable[[Path], Source]] = {
    **dict.fromkeys(H5, _h5),
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _torch,
    ".pth": _torch,
    ".zarr": _zarr,
}
