"""Files of tensors: .safetensors, and torch's zip archives (.pth, .pt), opened without running
anything in them and within the memory of their size.

What a file claims is checked before torch or safetensors read it: lengths and offsets against its
size, and the names that a pickle calls against those that tensors need. What a file is, its content
says, not its ending.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from softless.errors import DataError, located
from softless.models import digests
from softless.models.archive import (
    OLD,
    PICKLE,
    first_line,
    first_name,
    read_archive,
    read_old,
    scan,
    tensors_of,
)
from softless.models.header import check_header
from softless.words import POINTED, POINTER

FILE, CONFIG = "model.safetensors", "config.json"  # of a published folder, as timm names them
CARD = "README.md"  # what people read of it, as the hub names it
SHOWN = 5
OTHER_KINDS = {
    b"\x1f\x8b": "a gzip archive: unpack it first",
    POINTER: POINTED,
    b"\x93NUMPY": "an array of numpy: save the model's state dict by torch.save or as .safetensors",
    b"\x89HDF": "an HDF5 file, as Keras writes: save the model's state dict by torch.save or as "
    ".safetensors",
    b"<": "a web page and not a file of tensors: download the file itself",
}
TORCHS = {"zip": "an archive of torch.save", "old": "a file of torch.save from before torch 1.6"}
CONVERT = "where you trust it, load it and save its state dict again, as .safetensors at best"


def read_tensors(path: str | Path, *, allow_nonfinite: bool = False) -> dict[str, Any]:
    """The tensors of a .safetensors file, or what a .pth or .pt file holds: tensors, numbers and
    texts in dicts, lists and tuples.

    What scripts keep beside them (options, paths, dates, numpy's scalars) stands there as an empty
    `inert.Inert`. Nothing in the file is executed, and it takes no more memory than its size. Its
    digests are checked where `save_weights` left them. The tensors may be mapped from the file:
    copy them before you overwrite it.

    Args:
        path: the file; its content says of which kind it is.
        allow_nonfinite: take NaN and infinity too.

    Raises:
        DataError: no such file, a damaged, a hostile, or one of another kind.
    """
    path = located(path)
    if not path.is_file():
        raise DataError(f"no file {path}: name a .safetensors, .pth or .pt checkpoint")
    digests.check(path, _read_safetensors)
    kind = _kind(path)
    if kind == "safetensors":
        content: dict[str, Any] = _read_safetensors(path)
    elif kind in TORCHS and path.suffix == ".safetensors":
        raise DataError(f"{path} is {TORCHS[kind]} and not a safetensors file: call it .pth")
    elif kind in TORCHS:
        content = read_archive(path, foreign=True) if kind == "zip" else read_old(path)
    else:
        raise DataError(f"{path} {kind}")
    if not allow_nonfinite:
        check_finite(tensors_of(content), path)
    return content


def has_checksums(path: Path) -> bool:
    """Whether altered bytes of a file of torch.save are found: those from before torch 1.6 have
    nothing that tells them.
    """
    return _kind(path) != "old"


def read_safetensors(path: str | Path, *, allow_nonfinite: bool = True) -> dict[str, Tensor]:
    """As `read_tensors`, for a place where only .safetensors is written.

    Raises:
        DataError: no such file, one of another kind, or damaged.
    """
    path = located(path)
    if path.is_file() and (kind := _kind(path)) != "safetensors":
        raise DataError(
            f"{path} is not a readable safetensors file: it "
            f"{f'is {TORCHS[kind]}' if kind in TORCHS else kind}"
        )
    return read_tensors(path, allow_nonfinite=allow_nonfinite)


def check_finite(tensors: Iterable[tuple[str, Tensor]], source: object) -> None:
    """Refuse NaN and infinity.

    Raises:
        DataError: names the first five tensors that hold them.
    """
    bad = [name for name, tensor in tensors if not _finite(tensor)]
    if bad:
        remainder = f" and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        raise DataError(
            f"{source} holds NaN or infinity in {', '.join(bad[:SHOWN])}{remainder}: such weights "
            "are of no use "
            "(allow_nonfinite=True takes them all the same)"
        )


def _finite(tensor: Tensor) -> bool:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool((tensor.float() if tensor.element_size() == 1 else tensor).isfinite().all())


def _kind(path: Path) -> str:
    """One of "safetensors", "zip" and "old", or a clause that says what else it is and the way
    out.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(512)
        braced = start[8:9] == b"{"
        if braced and int.from_bytes(start[:8], "little") <= size - 8:
            return "safetensors"  # first: the length of its header may begin as any other file does
        if start[:4] == b"PK\x03\x04":
            return "zip"
        if start.startswith(OLD):
            return "old"
        if start[257:262] == b"ustar":
            return (
                f"is a tar archive, torch's format before 0.4, which is not opened here: {CONVERT}"
            )
        for magic, description in OTHER_KINDS.items():
            if start.startswith(magic):
                return f"is {description}"
        if braced and start[:1] != b"\x80":
            return "safetensors"  # with a header that lies
        called = scan(start + file.read(PICKLE)).called
    if start[:1] == b"\x80" or called:
        names = f" that calls {first_name(called)}" if called else ""
        return f"is a bare pickle{names}, and nothing in a file is executed here: {CONVERT}"
    return (
        f"is no file of tensors: its {size} bytes are neither safetensors nor an archive of "
        "torch.save; copy it again"
    )


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        check_header(path)
        return load_file(path)
    except Exception as error:  # of any kind: the file is another's
        raise DataError(
            f"{path} is not a readable safetensors file: {first_line(error)}; copy it again"
        ) from error
