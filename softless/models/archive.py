"""Files of torch.save (.pth, .pt), opened without running anything in them and within the memory of
their size.

Two things are checked before torch reads them: that the zip archive holds what it says, stored as
it is, and that the pickle in it calls only what tensors need, and what stands for nothing
(inert.py). Then the file is mapped, so that no storage is allocated for what a pickle claims. Files
from before torch 1.6 are stacked pickles with the bytes of the tensors behind them; they hold no
checksums.
"""

import io
import pickletools
import struct
import zipfile

# the names of Python 2, which protocol 2 writes
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from softless.errors import DataError
from softless.models.inert import NAMES, read_as_nothing

DIRECTORY = 4 << 20  # bytes of the archive's directory
PICKLE = 16 << 20  # bytes of the pickle in it
STEPS = 400_000  # of that pickle; a tensor takes about 45
PROTOCOL = 2
DEPTH = 32  # containers in one another
REPEATS = 16  # how often tensors may share the bytes of a file
STORAGES = (
    "Float",
    "Double",
    "Half",
    "BFloat16",
    "Long",
    "Int",
    "Short",
    "Char",
    "Byte",
    "Bool",
    "ComplexFloat",
    "ComplexDouble",
)
DTYPES = (
    "float32",
    "float64",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
)
ALLOWED = frozenset({
    "collections.OrderedDict",
    "collections.Counter",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch.Size",
    "torch.device",
    *(f"torch.{name}Storage" for name in STORAGES),
    *(f"torch.{name}" for name in DTYPES),
})
# the number that torch.save began with before 1.6, pickled
OLD = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."
STACKED = (
    # pickles of such a file: that number, a version, the machine's sizes, what was saved, the names
    # of storages
    5
)
NUMBERS = frozenset({"BININT", "BININT1", "BININT2", "LONG1", "LONG4", "INT", "LONG"})
MEND = "save the model's state dict alone, as .safetensors at best"


def read_archive(path: Path, *, foreign: bool = False) -> dict[str, Any]:
    """What an archive holds: tensors, numbers and texts in dicts, lists and tuples.

    Args:
        path: the file.
        foreign: a script's, with its options beside the tensors; ours hold none.

    Raises:
        DataError: anything else in it, or a torch that is not safe for it.
    """
    check_torch(path)
    try:
        with path.open("rb") as file:
            pickled = _checked_archive(file, path.stat().st_size)
    except Exception as error:
        raise DataError(
            f"{path} is not an archive of torch.save that can be trusted: {first_line(error)}; "
            f"copy it again, or {MEND}"
        ) from error
    _check_pickle(path, scan(pickled), foreign=foreign)
    return _loaded(path, mapped=True)  # a storage is a part of the file, whatever the pickle claims


def read_old(path: Path) -> dict[str, Any]:
    """What a file of torch.save from before torch 1.6 holds. It has no checksums: altered bytes of
    a tensor are not found.

    Raises:
        DataError: as `read_archive`.
    """
    check_torch(path)
    with path.open("rb") as file:
        scanned = scan(file.read(PICKLE), STACKED)
    _check_pickle(path, scanned, foreign=True)
    size = path.stat().st_size
    if max(scanned.claims, default=0) > size or sum(scanned.claims) > REPEATS * size:
        raise DataError(
            f"{path} claims tensors of {sum(scanned.claims)} numbers in {size} bytes: copy it "
            f"again, or {MEND}"
        )
    return _loaded(path, mapped=False)


def _loaded(path: Path, *, mapped: bool) -> dict[str, Any]:
    """What torch reads in a file whose pickle was looked at."""
    try:
        with read_as_nothing():
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        _check_views(content, path.stat().st_size)
    except Exception as error:
        raise DataError(
            f"{path} is not a checkpoint of plain tensors ({first_line(error)}): nothing in a "
            f"file is executed here, so {MEND}"
        ) from error
    if not isinstance(content, dict):
        raise DataError(
            f"{path} holds a {type(content).__name__}, not a state dict: save model.state_dict()"
        )
    return content


def check_torch(path: Path) -> None:
    """Whether this torch may read archives.

    Raises:
        DataError: it is older than 2.10.
    """
    if torch.__version__ < "2.10":
        raise DataError(
            f"{path}: torch {torch.__version__} is not safe for pickled files of others "
            "(CVE-2026-24747, mended in 2.10): "
            "update torch, or convert the file to .safetensors with a newer one"
        )


def _checked_archive(file: BinaryIO, size: int) -> bytes:
    """The pickle of an archive in which every member is stored as it is, lies in the file, and has
    its checksum.

    Raises:
        ValueError: otherwise.
    """
    _check_end(file, size)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        names = [member.filename for member in members]
        roots = {name.partition("/")[0] for name in names}
        if tool := _of_another_tool(names):
            raise ValueError(tool)
        for member in members:
            name = member.filename
            if (
                name != member.orig_filename
                or "\\" in name
                or not {"", ".", ".."}.isdisjoint(name.split("/"))
            ):
                raise ValueError(
                    f"its member {member.orig_filename!r} has a name that leads out of it"
                )
            if (
                member.compress_type != zipfile.ZIP_STORED
                or member.compress_size != member.file_size
            ):
                raise ValueError(
                    f"its member {name} is compressed ({member.compress_size} to "
                    f"{member.file_size} bytes), "
                    "and torch.save compresses nothing"
                )
        if len({name.lower() for name in names}) < len(names):
            raise ValueError("two of its members have one name")
        if sum(member.file_size for member in members) > size:
            raise ValueError(f"its members claim more bytes than the {size} of the file")
        if len(roots) != 1 or f"{names[0].partition('/')[0]}/data.pkl" not in names:
            raise ValueError("it holds no data.pkl in one folder")
        pickled = archive.getinfo(f"{roots.pop()}/data.pkl")
        if pickled.file_size > PICKLE:
            raise ValueError(
                f"its pickle has {pickled.file_size} bytes, and at most {PICKLE} are read"
            )
        if (damaged := archive.testzip()) is not None:
            raise ValueError(f"its member {damaged} has another checksum than was written")
        return archive.read(pickled)


def _of_another_tool(names: list[str]) -> str:
    """What an archive is that torch.save did not write, by its members."""
    if names and all(name.endswith(".npy") for name in names):
        return "it is an .npz of numpy"
    if any(name.endswith("/archive_format") for name in names):
        return "it is a program of torch.export"
    if any(name.endswith("/constants.pkl") for name in names):
        return "it is a program of TorchScript"
    return ""


def _check_end(file: BinaryIO, size: int) -> None:
    """The directory ends the file, so that torch's reader and zipfile see the same one, and is not
    too long to be read.
    """
    file.seek(max(size - 98, 0))
    tail = file.read().rjust(98, b"\0")
    signature, *_, length, start, comment = struct.unpack("<4s4H2IH", tail[76:])
    end = size - 22
    if tail[56:60] == b"PK\x06\x07":  # zip64
        end = size - 98
        (stated_end,) = struct.unpack("<8xQ4x", tail[56:76])
        *_, length, start = struct.unpack("<4sQ2H2I4Q", tail[:56])
        if stated_end != end or tail[:4] != b"PK\x06\x06":
            raise ValueError("its directory is not where its end says")
    if signature != b"PK\x05\x06" or comment or start + length != end:
        raise ValueError("it does not end with its directory")
    if length > DIRECTORY:
        raise ValueError(f"its directory has {length} bytes, and at most {DIRECTORY} are read")


def _check_pickle(path: Path, scanned: "PickleScan", *, foreign: bool) -> None:
    """A bounded number of steps, which call only what tensors need and, in a foreign file, what
    stands for nothing.
    """
    wrong = [
        name for name in scanned.called if not (harmless(name) if foreign else name in ALLOWED)
    ]
    if model_class := next(
        (
            name
            for name in wrong
            if name.startswith(("torch.nn.modules.", "timm.models.", "softless."))
        ),
        "",
    ):
        raise DataError(
            f"{path} holds a whole model ({model_class[:100]}) and not its weights: load it "
            f"where its code is, and {MEND}"
        )
    if wrong:
        raise DataError(
            f"{path} calls {_shown(wrong[0])}, and nothing in a file is executed here: {MEND}"
        )
    if scanned.problem:
        raise DataError(
            f"{path} is not a checkpoint of plain tensors ({scanned.problem}): nothing in a file "
            f"is executed here, so {MEND}"
        )


@dataclass
class PickleScan:
    """What a look at pickles found. Nothing is imported."""

    called: list[str] = field(default_factory=list)  # the names that they would import, in order
    problem: str = ""  # the first thing that is wrong with them
    # the largest number named with each storage: how many numbers it holds
    claims: list[int] = field(default_factory=list)
    steps: int = 0
    texts: tuple[str, str] = ("?", "?")  # the last two
    largest: int = 0  # number since a tuple was begun

    def see(self, operation: pickletools.OpcodeInfo, value: Any) -> None:
        self.steps += 1
        if operation.proto > PROTOCOL:
            self.wrong(f"its pickle is not of protocol {PROTOCOL}, which torch.save writes")
        if name := _imported(operation.name, value, self.texts):
            self.called.append(name)
        elif isinstance(value, str):
            self.texts = (self.texts[1], value)
        if operation.name in NUMBERS:
            self.largest = max(self.largest, int(value))
        elif operation.name == "BINPERSID":
            self.claims.append(self.largest)
        elif operation.name == "MARK":
            self.largest = 0

    def wrong(self, problem: str) -> None:
        self.problem = self.problem or problem


def scan(pickled: bytes, pickles: int = 1) -> PickleScan:
    """What pickles would do; of more than one, the names in further ones too, and that there are
    such.

    Of several pickles, as old files hold them, what lies behind the last is not looked at.
    """
    stream, scanned, done = io.BytesIO(pickled), PickleScan(), 0
    try:
        while stream.tell() < len(pickled) and (done < pickles or pickles == 1):
            if done == pickles:
                scanned.wrong("something follows its pickle")
            for operation, value, _ in pickletools.genops(stream):
                scanned.see(operation, value)
                if scanned.steps > STEPS:
                    scanned.problem = f"its pickle takes more than {STEPS} steps"
                    return scanned
            done += 1
        if done < pickles:
            scanned.wrong("its pickle is broken: it ends too early")
    except (ValueError, OverflowError, struct.error) as error:
        scanned.wrong(f"its pickle is broken: {first_line(error)}")
    return scanned


def harmless(name: str) -> bool:
    """Whether a name that a pickle calls belongs to tensors, or stands for nothing."""
    return name in ALLOWED or name in NAMES


def _imported(operation: str, value: Any, texts: tuple[str, str]) -> str:
    """What an operation of a pickle imports, if it does; `texts` are the last two before it."""
    if operation in {"GLOBAL", "INST"}:
        module, _, name = str(value).partition(" ")
        # as torch reads it
        return ".".join(
            NAME_MAPPING.get((module, name), (IMPORT_MAPPING.get(module, module), name))
        )
    if operation == "STACK_GLOBAL":
        return ".".join(texts)
    return f"extension {value}" if operation.startswith("EXT") else ""


def first_name(called: list[str]) -> str:
    """The first name that a tensor does not need, else the first."""
    return _shown(next((name for name in called if not harmless(name)), called[0]))


def _shown(name: str) -> str:
    return repr(name)[1:-1][:100]


def tensors_of(content: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors of nested containers with their paths, each container once however often it is
    held.

    Raises:
        ValueError: containers in one another beyond `DEPTH`, or one with attributes of its own.
    """
    waiting, visited = [(0, "", content)], set()
    while waiting:
        depth, path, value = waiting.pop()
        if isinstance(value, Tensor):
            yield path, value
        if not isinstance(value, dict | list | tuple) or id(value) in visited:
            continue
        visited.add(id(value))
        if depth == DEPTH:
            raise ValueError(f"it nests more than {DEPTH} containers")
        if set(getattr(value, "__dict__", ())) - {"_metadata"}:
            raise ValueError(f"{path or 'its dict'} has attributes of its own")
        items = dict.items(value) if isinstance(value, dict) else enumerate(value)
        waiting += [
            (depth + 1, f"{path}.{name}" if path else str(name), inner) for name, inner in items
        ][::-1]


def _check_views(content: Any, size: int) -> None:
    """No tensor claims more than its storage holds, nor all of them many times the file."""
    total = 0
    for name, tensor in tensors_of(content):
        if tensor.layout != torch.strided or tensor.device.type != "cpu":
            raise ValueError(
                f"{name} is {tensor.layout} on {tensor.device}, and only plain tensors are read"
            )
        claimed, stored = tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes()
        if claimed > stored:
            raise ValueError(
                f"{name} of shape {tuple(tensor.shape)} claims {claimed} bytes and {stored} are "
                "stored"
            )
        total += claimed
    if total > REPEATS * size:
        raise ValueError(f"its tensors claim {total} bytes of a file of {size}")


def first_line(error: BaseException) -> str:
    """The first sentence of an error of another library."""
    return (str(error).splitlines() or [""])[0][:200] or type(error).__name__
