"""What a caller did wrong, in one sentence: the input, the rule, the way out.

The command line prints these without a traceback and ends with `exit_code`; everything else is a
bug and keeps its traceback.
"""

import difflib
import importlib.util
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from softless.words import clipped


class SoftlessError(Exception):
    """Base of the errors that a caller can mend.

    Examples:
        >>> try:
        ...     softless.create_model("sima_diet_tiny_patch16_224")
        ... except softless.SoftlessError as error:
        ...     print(type(error).__name__, error.exit_code)
        UsageError 2
    """

    exit_code = 2
    shared = False  # whether all ranks raise it, so that one of them says it


class UsageError(SoftlessError, ValueError):
    """A value that cannot be used: unknown name, wrong size, missing file, conflicting options.

    Examples:
        >>> softless.Attention(64, num_heads=5)
        Traceback (most recent call last):
        softless.errors.UsageError: dim=64 does not divide into num_heads=5: choose ...
    """


class DataError(UsageError):
    """Data that cannot be read or does not fit: missing folder, unreadable image, class without
    images.

    Examples:
        >>> model = softless.create_model("sima_deit_tiny_patch16_224", depth=1)
        >>> softless.load_weights(model, "nothing.pth")
        Traceback (most recent call last):
        softless.errors.DataError: ...nothing.pth...
    """


class Faults(DataError):
    """Several faults of a data set: a headline, and a line for each fault or for each sentence that
    several share.
    """

    def __init__(self, headline: str, lines: Sequence[str]) -> None:
        super().__init__("\n".join([headline, *lines]))
        self.headline, self.lines = headline, tuple(lines)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.headline, self.lines)


class CoordinateError(DataError):
    """Positions of tiles that cannot be used as they are told: an unknown unit, or a spacing that
    contradicts the size of a tile; the sentence has both numbers.

    Examples:
        >>> grid = [[x, y] for x in (0, 512, 1024) for y in (0, 512, 1024)]
        >>> softless.Bag.of(torch.ones(9, 4), grid, tile_um=256)
        Traceback (most recent call last):
        softless.errors.CoordinateError: ...512...256...
    """


class MissingResolution(DataError):
    """A resolution is asked for, and the slide does not say its own, or nothing that can be."""


class NothingReadable(DataError):
    """A slide opens, and none of its tiles can be read: there is nothing to answer from."""

    exit_code = 1


class StorageError(UsageError):
    """A file could not be written: full disk, read-only folder, quota.

    What was there before is whole.
    """


class CheckpointError(UsageError):
    """There are checkpoints, and none of them is good."""


class ResumeMismatch(UsageError):
    """The run to continue had another model, optimiser, class list, data or recipe."""


class Interrupted(SoftlessError):
    """A signal ended the run after its state was saved; `exit_code` is the shell's for that
    signal.
    """

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

    def __reduce__(self) -> tuple[Any, ...]:
        """A process hands it to another whole: an error's own way would leave the code out."""
        return type(self), (*self.args, self.exit_code)


class RankGone(SoftlessError):
    """Another process of the run is gone, or was waited for in vain; what was saved stands."""

    exit_code = 1


class PrecisionError(UsageError):
    """The output dtype cannot hold the answer at this number of tokens (design §2).

    Examples:
        >>> q = torch.ones(1, 1, 4096, 8, dtype=torch.float16)
        >>> softless.attend(q, q, q, op="sima")
        Traceback (most recent call last):
        softless.errors.PrecisionError: ...
        >>> softless.attend(q, q, q, op="sima", out_dtype=torch.float32).dtype
        torch.float32
    """


class BackendRefused(UsageError):
    """A backend asked for by name cannot run this call; the message lists each backend's
    reasons.

    Examples:
        >>> q = torch.ones(1, 1, 5, 8, dtype=torch.float64)
        >>> softless.attend(q, q, q, op="sima", backend="native")
        Traceback (most recent call last):
        softless.errors.BackendRefused: ...float64...
    """


class DivergedError(SoftlessError):
    """The loss or a gradient is not finite; nothing of that step was kept.

    Examples:
        >>> softless.DivergedError("the loss is nan at step 3").exit_code
        3
    """

    exit_code = 3


class MissingExtra(SoftlessError, ImportError):
    """An optional package is needed and absent; `extra` may be several with commas between.

    Examples:
        >>> print(softless.MissingExtra("pydicom", "dicom"))
        this needs pydicom, which is not installed: pip install ...
    """

    def __init__(self, package: str, extra: str) -> None:
        are = "are" if " and " in package else "is"
        whence = (
            f'-e ".[{extra}]" in {ROOT}'
            if (ROOT / "pyproject.toml").is_file()
            else f'"softless[{extra}]"'
        )
        super().__init__(f"this needs {package}, which {are} not installed: pip install {whence}")
        self._needed = (package, extra)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self._needed


def need_module(model: object, function: str) -> None:
    """A name, or whatever else is no torch.nn.Module, where a model is asked for.

    Raises:
        UsageError: it is none; the call that makes one is named.
    """
    if hasattr(model, "named_modules"):
        return
    if isinstance(model, str):
        raise UsageError(
            f"softless.{function} takes a model, and '{model}' is a text: "
            f"softless.{function}(softless.create_model('{model}'), …)"
        )
    raise UsageError(
        f"softless.{function} takes a torch.nn.Module, and this is of type {type(model).__name__}"
    )


ROOT = Path(__file__).resolve().parents[1]  # of a checkout, which holds pyproject.toml
EXTRAS = {  # what is imported -> (package, extra)
    "h5py": ("h5py", "bags"),
    "lightly": ("lightly", "ssl"),
    "matplotlib": ("matplotlib", "train"),
    "pydicom": ("pydicom", "dicom"),
    "pycocotools": ("pycocotools", "detect"),
    "shapely": ("shapely", "slides"),
    "segmentation_models_pytorch": ("segmentation-models-pytorch", "segment"),
    "mlflow": ("mlflow-skinny", "track"),
    "wandb": ("wandb", "track"),
    "shtab": ("shtab", "completion"),
    "sklearn": ("scikit-learn", "train"),
    "onnx": ("onnx", "export"),
    "onnxscript": ("onnxscript", "export"),
    "onnxruntime": ("onnxruntime", "export"),
    "openvino": ("openvino", "openvino"),
    "nncf": ("nncf", "openvino"),
    "executorch": ("executorch", "executorch"),
    "torchao": ("torchao", "executorch"),
    "coremltools": ("coremltools", "coreml"),
    "zarr": ("zarr", "slides"),
    "fastapi": ("fastapi", "serve"),
    "uvicorn": ("uvicorn", "serve"),
    "python_multipart": ("python-multipart", "serve"),
}


def located(path: str | Path) -> Path:
    """A path that somebody names, with `~` expanded. Nothing need be there.

    Raises:
        UsageError: no file system could have it: a part is too long, it holds a NUL sign, a loop of
            links, or `~` and no such user.
    """
    try:
        expanded = Path(path).expanduser()
        with suppress(FileNotFoundError, NotADirectoryError, PermissionError):
            # Path.exists raises for some of these and is silent for others
            os.stat(expanded)  # noqa: PTH116
    except (OSError, ValueError, RuntimeError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        raise UsageError(
            f"the path {clipped(path)} cannot be used ({why}): name another"
        ) from error
    return expanded


def of_the_system(error: OSError) -> str:
    """What the operating system refused, in one sentence: which file, why, and where to look."""
    which = f"{clipped(error.filename)}: " if error.filename is not None else ""
    return f"{which}{error.strerror or error} (said by the system; --debug tells where)"


def need(*modules: str) -> None:
    """Ask for optional packages before any work, without loading them.

    Raises:
        MissingExtra: some are not installed; all of them are named.
    """
    absent = [EXTRAS[name] for name in dict.fromkeys(modules) if not _installed(name)]
    if absent:
        raise MissingExtra(
            " and ".join(package for package, _ in absent),
            ",".join(sorted({extra for _, extra in absent})),
        )


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ImportError:  # a finder that refuses it by name
        return False


def nearest(word: str, names: Iterable[str], *, cutoff: float = 0.5) -> str:
    """«Did you mean 'sima'? » for the closest known word, or nothing."""
    close = difflib.get_close_matches(word, list(names), n=1, cutoff=cutoff)
    return f"Did you mean '{close[0]}'? " if close else ""


def unknown(kind: str, word: str, names: Iterable[str], *, show: int = 30) -> UsageError:
    """An error for a name that is not in a list, with the nearest one and the list itself."""
    names = sorted(names)
    if not names:
        return UsageError(f"no {kind} named '{clipped(word)}': there are none")
    listed = ", ".join(names[:show]) + (f", … ({len(names)} in all)" if len(names) > show else "")
    return UsageError(f"no {kind} named '{clipped(word)}'. {nearest(word, names)}Known: {listed}")
