"""Files of tensors that nobody should open: pickles that leave a canary when they are run, archives
and headers that claim what they do not hold.
"""

import codecs
import collections
import cProfile
import functools
import importlib
import io
import json
import marshal
import operator
import os
import pickle
import runpy
import shutil
import struct
import subprocess
import tarfile
import time
import timeit
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils import collect_env


class Call:
    """Pickles as the call of a function, which may be the result of such a call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call

    def __call__(self) -> None:
        """Never called; pickle asks for it."""


def shell(canary: Path) -> str:
    return f"touch {canary}"


def python(canary: Path) -> str:
    return f"open({str(canary)!r}, 'w').close()"


def script(canary: Path, name: str = "script") -> Path:
    """A Python file that leaves the canary when it is run or imported, and as torch.hub's when it
    is called.
    """
    path = canary.with_name(f"{name}.py")
    path.write_text(f"{python(canary)}\ndef model():\n    pass\n")
    return path


def _import_system(_: Path) -> Call:
    return Call(getattr, Call(importlib.import_module, "os"), "system")


# what leaves the canary when it is unpickled -> the function that is called first
CALLS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "os.system": (lambda c: Call(os.system, shell(c)), "posix.system"),
    "os.mkdir": (lambda c: Call(os.mkdir, str(c)), "posix.mkdir"),
    "subprocess.call": (lambda c: Call(subprocess.call, ["touch", str(c)]), "subprocess.call"),
    "subprocess.check_output": (
        lambda c: Call(subprocess.check_output, ["touch", str(c)]),
        "subprocess.check_output",
    ),
    "eval": (lambda c: Call(eval, python(c)), "eval"),
    "exec": (lambda c: Call(exec, python(c)), "exec"),
    "open": (lambda c: Call(open, str(c), "w"), "io.open"),
    "getattr chain": (lambda c: Call(_import_system(c), shell(c)), "getattr"),
    "importlib": (
        lambda c: Call(importlib.import_module, script(c, "canary_module").stem),
        "importlib.import_module",
    ),
    "reduce chain": (lambda c: Call(eval, Call(str.format, "open({!r}, 'w')", str(c))), "eval"),
    "codecs": (
        lambda c: Call(eval, Call(codecs.decode, codecs.encode(python(c), "rot13"), "rot13")),
        "eval",
    ),
    "functools.partial": (
        lambda c: Call(Call(functools.partial, os.system, shell(c))),
        "functools.partial",
    ),
    "operator.methodcaller": (
        lambda c: Call(operator.methodcaller("touch"), c),
        "operator.methodcaller",
    ),
    "shutil.copyfile": (lambda c: Call(shutil.copyfile, str(script(c)), str(c)), "shutil.copyfile"),
    "runpy": (lambda c: Call(runpy.run_path, str(script(c))), "runpy.run_path"),
    "timeit": (
        lambda c: Call(timeit.timeit, python(c), "pass", time.perf_counter, 1),
        "timeit.timeit",
    ),
    "cProfile": (lambda c: Call(cProfile.run, "pass", str(c)), "cProfile.run"),
    "marshal": (
        lambda c: Call(exec, Call(marshal.loads, marshal.dumps(compile(python(c), "x", "exec")))),
        "exec",
    ),
    "pickle in a pickle": (
        lambda c: Call(pickle.loads, pickle.dumps(Call(os.system, shell(c)))),
        "loads",
    ),
    "torch.hub": (
        lambda c: Call(torch.hub._load_local, str(script(c, "hubconf").parent), "model"),
        "torch.hub._load_local",
    ),
    "torch.utils": (lambda c: Call(collect_env.run, shell(c)), "torch.utils.collect_env.run"),
    "behind tensors": (
        lambda c: {"model": torch.ones(2), "args": Call(os.system, shell(c))},
        "posix.system",
    ),
}


def _text(word: str) -> bytes:
    return b"X" + struct.pack("<I", len(word)) + word.encode()


# pickles that no pickler writes
RAW: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "protocol 0": (
        lambda c: b"cposix\nsystem\n(S'" + shell(c).encode() + b"'\ntR.",
        "posix.system",
    ),
    "INST": (lambda c: b"(S'" + shell(c).encode() + b"'\niposix\nsystem\n.", "posix.system"),
    "STACK_GLOBAL": (lambda c: pickle.dumps(Call(os.system, shell(c)), 4), "posix.system"),
    "names of Python 2": (
        lambda c: b"\x80\x02c__builtin__\neval\n" + _text(python(c)) + b"\x85R.",
        "builtins.eval",
    ),
    "a setter": (
        lambda c: b"\x80\x02cposix\nsystem\n" + _text(shell(c)) + b"\x85R}b0N.",
        "posix.system",
    ),
}


def archive(
    path: Path,
    pickled: bytes,
    storages: Iterable[bytes] = (),
    *,
    compress: bool = False,
    more: Iterable[tuple[str, bytes]] = (),
) -> Path:
    """A file as torch.save writes it, with this pickle."""
    how = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", how, compresslevel=1 if compress else None) as file:
        file.writestr(f"{path.stem}/data.pkl", pickled)
        file.writestr(f"{path.stem}/version", b"3\n")
        file.writestr(f"{path.stem}/byteorder", b"little")
        for number, storage in enumerate(storages):
            file.writestr(f"{path.stem}/data/{number}", storage)
        for name, content in more:
            file.writestr(name, content)
    return path


class Storage:
    """Stands for a storage of so many float32 in a pickle."""

    def __init__(self, numel: int) -> None:
        self.numel = numel


def view(numel: int, size: tuple[int, ...], stride: tuple[int, ...], name: str = "w") -> bytes:
    """The pickle of a state dict with one tensor: a view of the storage "0"."""

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return (
                ("storage", torch.FloatStorage, "0", "cpu", value.numel)
                if isinstance(value, Storage)
                else None
            )

    stream = io.BytesIO()
    rebuild: Any = torch._utils._rebuild_tensor_v2
    tensor = Call(rebuild, Storage(numel), 0, size, stride, False, collections.OrderedDict())
    Pickler(stream, 2).dump({name: tensor})
    return stream.getvalue()


def safetensors(
    path: Path, header: str | bytes, data: bytes = b"", length: int | None = None
) -> Path:
    text = header.encode() if isinstance(header, str) else header
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)
    return path


def entry(shape: list[int], start: int, stop: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, stop]}


def tar(path: Path, pickled: bytes) -> Path:
    """torch's format before its stacked pickles."""
    with tarfile.open(path, "w") as file:
        for name in ("sys_info", "pickle", "tensors", "storages"):
            member = tarfile.TarInfo(name)
            member.size = len(pickled)
            file.addfile(member, io.BytesIO(pickled))
    return path


LARGE = 128 << 20


def bombs(folder: Path) -> dict[str, tuple[Path, str]]:
    """Files that claim more than they hold, and what the refusal says."""
    two = json.dumps({"a": entry([2], 0, 8), "b": entry([2], 4, 12)})
    whole = json.dumps({"a": entry([2], 0, 8)})
    laughs: list[Any] = ["ha"] * 10
    for _ in range(40):
        laughs = [laughs] * 10
    torch.save({"w": torch.zeros(1).expand(10**6, 10**6)}, folder / "stride.pth")
    torch.save(dict.fromkeys(map(str, range(20)), torch.zeros(1 << 16)), folder / "shared.pth")
    overlap = bytearray(archive(folder / "overlap.pth", b"N.", [bytes(1000)]).read_bytes())
    # of the last member in the directory: its sizes stand at 20 and 24
    place = overlap.rindex(b"PK\1\2")
    overlap[place + 20 : place + 28] = struct.pack("<II", len(overlap), len(overlap))
    (folder / "overlap.pth").write_bytes(overlap)
    return {
        "zip bomb": (
            archive(
                folder / "bomb.pth",
                view(LARGE // 4, (LARGE // 4,), (1,)),
                [bytes(LARGE)],
                compress=True,
            ),
            "is compressed",
        ),
        "bomb of a pickle": (
            archive(folder / "words.pth", b"N0" * (LARGE // 8) + b"N.", compress=True),
            "is compressed",
        ),
        "stride 0": (folder / "stride.pth", "claims 4000000000000 bytes and 4 are stored"),
        "view beyond its storage": (
            archive(folder / "beyond.pth", view(1, (10**9,), (1,)), [bytes(4)]),
            "not a checkpoint of plain tensors",
        ),
        "storage beyond the file": (
            archive(folder / "storage.pth", view(10**9, (10**9,), (1,)), [bytes(4)]),
            "not a checkpoint of plain tensors",
        ),
        "shared storage": (folder / "shared.pth", "its tensors claim 5242880 bytes of a file of"),
        "members that overlap": (folder / "overlap.pth", "its members claim more bytes than"),
        "long pickle": (
            archive(folder / "long.pth", b"N0" * (9 << 20) + b"N."),
            "at most 16777216 are read",
        ),
        "billion laughs": (
            archive(folder / "laughs.pth", pickle.dumps({"w": laughs}, 2)),
            "nests more than 32",
        ),
        "empty lists": (
            archive(folder / "lists.pth", b"\x80\x02(" + b"]" * 5_000_000 + b"l."),
            "more than 400000 steps",
        ),
        "100,000 members": (
            archive(
                folder / "members.pth",
                b"N.",
                more=((f"members/data/{n}", b"") for n in range(100_000)),
            ),
            "its directory has",
        ),
        "header of 2^62": (
            safetensors(folder / "header.safetensors", whole, bytes(8), 2**62),
            "its header claims 4611686018427387904 bytes",
        ),
        "header beyond the file": (
            safetensors(folder / "beyond.safetensors", whole, b"", 2**30),
            "its header claims",
        ),
        "overlapping offsets": (
            safetensors(folder / "overlap.safetensors", two, bytes(12)),
            "b begins at byte 4 of the data, and the tensor before it ends at 8",
        ),
        "a hole": (
            safetensors(folder / "hole.safetensors", whole, bytes(12)),
            "its tensors take 8 bytes, and its data has 12",
        ),
        "duplicate keys": (
            safetensors(folder / "twice.safetensors", f"{whole[:-1]}, {whole[1:]}", bytes(8)),
            "names a twice",
        ),
        "shape overflow": (
            safetensors(
                folder / "shape.safetensors",
                json.dumps({"a": entry([2**40, 2**40], 0, 8)}),
                bytes(8),
            ),
            "which no memory holds",
        ),
        "shape beyond the data": (
            safetensors(
                folder / "large.safetensors", json.dumps({"a": entry([2**30], 0, 8)}), bytes(8)
            ),
            "claims 4294967296 bytes",
        ),
        "10^6 empty tensors": (
            safetensors(
                folder / "empty.safetensors",
                "{"
                + ",".join(
                    f'"{n}":{{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
                    for n in range(10**6)
                )
                + "}",
            ),
            "at most 8388608 are read",
        ),
        "brackets": (
            safetensors(folder / "brackets.safetensors", '{"a":' + "[" * 4_000_000),
            "at most 150000",
        ),
    }
