"""The native library: found and loaded once, called with pointers; why it is not there, where it is not.

It is plain C++ behind a C interface (native/softless.h), built when the package is installed. What it computes is in kernels/linear.py.
"""

import contextlib
import ctypes
import importlib
from collections.abc import Iterator
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int32, c_int64, c_void_p
from pathlib import Path

import torch
from torch import Tensor

from softless.errors import UsageError

NAME = "native/libsoftless_native.so"  # beside its sources: in the package itself it would pass for a module
DTYPES = (torch.float32, torch.bfloat16)
OK, NO_PATH = 0, 1


class TensorAt(Structure):
    """A tensor (image, head, token, channel) whose channels are contiguous."""

    _fields_ = (("data", c_void_p), ("image", c_int64), ("head", c_int64), ("token", c_int64))


class Call(Structure):
    """`SoftlessCall` of native/softless.h, field by field."""

    _fields_ = (
        *((name, c_int64) for name in ("B", "H", "N", "M", "D", "E")),
        *((name, c_int32) for name in ("bf16", "norm", "threads", "fresh")),
        ("path", c_char_p),
        *((name, TensorAt) for name in ("q", "k", "v", "out")),
        *((name, c_void_p) for name in ("mask", "query_mask", "q_size", "k_size", "context", "gain")),
        *((name, c_float) for name in ("eps", "still")),
        *((name, TensorAt) for name in ("grad_out", "grad_q", "grad_k", "grad_v")),
    )


def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    package = importlib.import_module(__package__)
    found = [path for folder in package.__path__ if (path := Path(folder) / NAME).is_file()]
    if not found:
        return None, (
            "this installation has no native library: it is built for Linux on x86-64 where a C++ compiler is there; install again with one"
        )
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return None, f"the native library does not load: {error}"
    for name in ("softless_sums", "softless_attend", "softless_backward"):
        getattr(library, name).argtypes = [POINTER(Call)]
        getattr(library, name).restype = c_int32
    library.softless_paths.argtypes, library.softless_paths.restype = [c_int32], c_char_p
    library.softless_path.argtypes, library.softless_path.restype = [POINTER(Call)], c_char_p
    return library, ""


LIBRARY, WHY_NOT = _load()


def _paths(dtype: torch.dtype) -> tuple[str, ...]:
    if LIBRARY is None:
        return ()
    names = LIBRARY.softless_paths(dtype == torch.bfloat16).decode()
    return tuple(names.split(",")) if names else ()


PATHS = {dtype: _paths(dtype) for dtype in DTYPES}  # the ways of this processor, the fastest first
_forced: list[str] = []


@contextlib.contextmanager
def using(path: str) -> Iterator[None]:
    """Take one way of this processor instead of the fastest, for tests and comparisons.

    Raises:
        UsageError: this processor has no such way.
    """
    known = sorted({name for paths in PATHS.values() for name in paths})
    if path not in known:
        raise UsageError(f"no native path named {path!r} on this processor. It has: {', '.join(known) or 'none'}")
    _forced.append(path)
    try:
        yield
    finally:
        _forced.pop()


def path_of(dtype: torch.dtype, D: int, E: int) -> str:
    """The way that q and k of D and v of E channels per head go; empty where there is none."""
    if LIBRARY is None or dtype not in DTYPES:
        return ""
    name = LIBRARY.softless_path(byref(Call(D=D, E=E, bf16=dtype == torch.bfloat16, path=_path(dtype))))
    return name.decode() if name else ""


def _path(dtype: torch.dtype) -> bytes | None:
    """The way that was asked for, where this dtype has it."""
    return _forced[-1].encode() if _forced and _forced[-1] in PATHS[dtype] else None


def at(x: Tensor | None) -> TensorAt:
    """Where a tensor (B,H,N,D) lies."""
    if x is None:
        return TensorAt()
    image, head, token, _ = x.stride()
    return TensorAt(x.data_ptr(), image, head, token)


def call(q: Tensor, k: Tensor, v: Tensor, **fields: object) -> Call:
    """A call on q (B,H,N,D), k (B,H,M,D) and v (B,H,M,E) whose channels are contiguous."""
    B, H, N, D = q.shape
    given = {name: value.data_ptr() if isinstance(value, Tensor) else value for name, value in fields.items()}
    return Call(
        B=B, H=H, N=N, M=k.shape[2], D=D, E=v.shape[3], bf16=q.dtype == torch.bfloat16, threads=torch.get_num_threads(), fresh=1,
        path=_path(q.dtype), q=at(q), k=at(k), v=at(v), **given,
    )  # fmt: skip


def run(name: str, made: Call) -> None:
    """Run `softless_NAME`.

    Raises:
        MemoryError: the sums do not fit.
    """
    assert LIBRARY is not None
    status = getattr(LIBRARY, f"softless_{name}")(byref(made))
    assert status != NO_PATH, "path_of was not asked"
    if status != OK:
        raise MemoryError(f"softless_{name}: no memory for the sums over tokens")
