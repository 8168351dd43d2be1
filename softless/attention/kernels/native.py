"""The native library: found and loaded once, called with pointers; why it is not there, where it is
not.

It is plain C++ behind a C interface (native/softless.h), built when the package is installed. What
it computes is in kernels/linear.py.
"""

import contextlib
import ctypes
import importlib
import struct
import threading
from collections.abc import Iterator
from ctypes import c_char_p, c_int32
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softless.attention.recording import recording
from softless.attention.transforms import transformed
from softless.errors import UsageError

# beside its sources: in the package itself it would pass for a module
NAME = "native/libsoftless_native.so"
DTYPES = (torch.float32, torch.bfloat16)
OK, NO_PATH = 0, 1


# where a tensor (image, head, token, channel) lies: address, and steps; its channels are contiguous
At = tuple[int, int, int, int]
NOWHERE: At = (0, 0, 0, 0)
# `SoftlessCall` of native/softless.h: six sizes, three integers and the path; q, k, v, out; six
# addresses, eps and still; four gradients; moments, middle and offset.
# Packed and not built field by field: a call on few tokens takes no longer than its arguments.
CALL = struct.Struct("@6q3iP" + 4 * "P3q" + "6P2f" + 4 * "P3q" + "3P")


def _load() -> tuple[ctypes.CDLL | None, str]:
    """The library, or why there is none."""
    package = importlib.import_module(__package__)
    candidates = [path for folder in package.__path__ if (path := Path(folder) / NAME).is_file()]
    if not candidates:
        return None, (
            "this installation has no native library: it is built for Linux on x86-64 where a C++ "
            "compiler is there; install again with one"
        )
    try:
        library = ctypes.CDLL(str(candidates[0]))
    except OSError as error:
        return None, f"the native library does not load: {error}"
    for name in ("sums", "attend", "backward", "spread", "moments", "centred"):
        entry = getattr(library, f"softless_{name}")
        entry.argtypes, entry.restype = [c_char_p], c_int32
    library.softless_paths.argtypes, library.softless_paths.restype = [c_int32], c_char_p
    library.softless_path.argtypes, library.softless_path.restype = [c_char_p], c_char_p
    return library, ""


LIBRARY, WHY_NOT = _load()


def _paths(dtype: torch.dtype) -> tuple[str, ...]:
    if LIBRARY is None:
        return ()
    names = LIBRARY.softless_paths(dtype == torch.bfloat16).decode()
    return tuple(names.split(",")) if names else ()


PATHS = {dtype: _paths(dtype) for dtype in DTYPES}  # the ways of this processor, the fastest first
_names = {
    name: ctypes.create_string_buffer(name.encode()) for paths in PATHS.values() for name in paths
}
_thread = threading.local()  # what this thread alone does without, or is made to take


@contextlib.contextmanager
def using(path: str) -> Iterator[None]:
    """Take one way of this processor instead of the fastest, in this thread, for tests and
    comparisons.

    Raises:
        UsageError: this processor has no such way.
    """
    names = sorted({name for paths in PATHS.values() for name in paths})
    if path not in names:
        raise UsageError(
            f"no native path named {path!r} on this processor. It has: {', '.join(names) or 'none'}"
        )
    before, _thread.path = getattr(_thread, "path", ""), path
    try:
        yield
    finally:
        _thread.path = before


def path_of(dtype: torch.dtype, D: int, E: int) -> str:
    """The way that q and k of D and v of E channels per head go; empty where there is none."""
    if LIBRARY is None or dtype not in DTYPES:
        return ""
    name = LIBRARY.softless_path(_packed((1, 1, 1, 1, D, E), dtype))
    return name.decode() if name else ""


def at(x: Tensor) -> At:
    """Where a tensor (B,H,N,D) lies."""
    image, head, token, _ = x.stride()
    return x.data_ptr(), image, head, token


def run(
    name: str,
    sizes: tuple[int, int, int, int, int, int],
    dtype: torch.dtype,
    *,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    **fields: Any,
) -> None:
    """Run `softless_NAME` on sizes (B, H, N, M, D, E); the fields are those of `SoftlessCall`,
    tensors by their address.

    Raises:
        MemoryError: the sums do not fit.
    """
    assert LIBRARY is not None
    mask, query_mask = (None if x is None else x.contiguous() for x in (mask, query_mask))
    status = getattr(LIBRARY, f"softless_{name}")(
        _packed(sizes, dtype, mask=mask, query_mask=query_mask, **fields)
    )
    assert status != NO_PATH, "path_of was not asked"
    if status != OK:
        raise MemoryError(f"softless_{name}: no memory for the sums over tokens")


def _packed(
    sizes: tuple[int, int, int, int, int, int],
    dtype: torch.dtype,
    *,
    norm: int = 0,
    q: At = NOWHERE,
    k: At = NOWHERE,
    v: At = NOWHERE,
    out: At = NOWHERE,
    mask: Tensor | None = None,
    query_mask: Tensor | None = None,
    q_size: Tensor | None = None,
    k_size: Tensor | None = None,
    context: Tensor | None = None,
    gain: Tensor | None = None,
    eps: float = 0.0,
    still: float = 0.0,
    grad_out: At = NOWHERE,
    grad_q: At = NOWHERE,
    grad_k: At = NOWHERE,
    grad_v: At = NOWHERE,
    moments: Tensor | None = None,
    middle: Tensor | None = None,
    offset: Tensor | None = None,
) -> bytes:
    """The bytes of a `SoftlessCall`."""
    forced = getattr(_thread, "path", "")
    path = _names[forced] if forced in PATHS[dtype] else None
    return CALL.pack(
        *sizes,
        dtype == torch.bfloat16,
        norm,
        torch.get_num_threads(),
        ctypes.addressof(path) if path else 0,
        *q,
        *k,
        *v,
        *out,
        _address(mask),
        _address(query_mask),
        _address(q_size),
        _address(k_size),
        _address(context),
        _address(gain),
        eps,
        still,
        *grad_out,
        *grad_q,
        *grad_k,
        *grad_v,
        _address(moments),
        _address(middle),
        _address(offset),
    )


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def dense(x: Tensor) -> Tensor:
    """x (B,H,n,D) with contiguous channels."""
    return x if x.stride(-1) == 1 or x.shape[-1] == 1 else x.contiguous()


def sizes(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int, int, int, int]:
    """B, H, N, M, D, E of q (B,H,N,D), k (B,H,M,D) and v (B,H,M,E)."""
    B, H, N, D = q.shape
    return B, H, N, k.shape[2], D, v.shape[3]


def by_tokens(q: Tensor, v: Tensor) -> Tensor:
    """Room for an output (B,H,N,E) that lies by tokens, so that its heads join without a copy."""
    B, H, N, _ = q.shape
    return torch.empty(B, N, H, v.shape[3], dtype=q.dtype, device=q.device).transpose(1, 2)


def set_aside() -> bool:
    """Whether this thread does without the native kernels just now."""
    return getattr(_thread, "aside", False)


@contextlib.contextmanager
def without() -> Iterator[None]:
    """No native kernel inside, in this thread: what is counted must not hang on the machine that
    counts.
    """
    before, _thread.aside = set_aside(), True
    try:
        yield
    finally:
        _thread.aside = before


def refuses(q: Tensor, k: Tensor, v: Tensor, **_: Any) -> list[str]:
    """Why the native kernels cannot run a call. Shapes: q (B,H,N,D), k (B,H,M,D), v (B,H,M,E)."""
    reasons = []
    if not torch.compiler.is_compiling() and set_aside():
        return ["a cost is counted, which is that of plain torch on every machine"]
    if recording():
        return ["a recorded graph holds nodes that every runtime knows"]
    if why := transformed():
        return [f"{why}, and the native kernels have reverse-mode gradients alone"]
    if LIBRARY is None:
        return [WHY_NOT]
    if not PATHS[torch.float32]:
        return ["this processor has neither AVX-512 nor AVX2 with FMA"]
    if q.device.type != "cpu":
        reasons.append(f"runs on the processor, got {q.device}")
    if q.dtype not in DTYPES:
        reasons.append(f"takes float32 and bfloat16, got {q.dtype}")
    if q.numel() == 0 or k.numel() == 0 or v.numel() == 0:
        reasons.append("there is nothing to sum")
    return reasons


def here() -> str:
    """The ways of this processor by dtype, the fastest first."""
    return "; ".join(
        f"{str(dtype).removeprefix('torch.')}: {', '.join(paths)}" for dtype, paths in PATHS.items()
    )


def without_gradient(library: torch.library.Library, name: str, sentence: str) -> None:
    """Let the backward pass through `softless::NAME` raise UsageError with a sentence."""

    def backward(_: Any, *__: Any) -> Any:
        raise UsageError(sentence)

    def keep(*_: Any, **__: Any) -> None:
        """There is nothing to keep for what raises."""

    torch.library.register_autograd(f"softless::{name}", backward, setup_context=keep, lib=library)
