"""A disk that refuses, under every verb that writes: one sentence, no half file, and what was there
before is whole.

The faults are put in at the level of the system's calls; `-m soak` mounts real file systems.
"""

import builtins
import contextlib
import errno
import io
import os
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors import torch as tensors

import softless
from softless.cli.main import main
from softless.compare.charts import Drawing
from softless.compare.record import write_csv
from softless.errors import StorageError, UsageError
from softless.experiment.folder import RunFolder
from softless.models.publish import save_weights
from softless.tasks import page
from softless.training import Recipe, checkpoint, fit, keep, loop, setup
from softless.training.scalars import Scalars
from tests.training.conftest import tiny_recipe, write_npz
from tests.training.ends import end_of

FAULTS = {  # what refuses: the error, and the calls that meet it
    "read-only": (errno.EROFS, {"create", "mkdir", "replace", "rename", "unlink", "rmdir", "link"}),
    "full": (errno.ENOSPC, {"write"}),
    "quota": (errno.EDQUOT, {"write"}),
    "no inodes": (errno.ENOSPC, {"create", "mkdir", "link"}),
    "failing": (errno.EIO, {"write", "fsync"}),
    "flush fails": (errno.EIO, {"fsync"}),
    "permission": (errno.EACCES, {"create", "mkdir", "replace", "rename", "unlink", "link"}),
    "name too long": (errno.ENAMETOOLONG, {"create", "mkdir"}),
}


def some(names: set[str]) -> list[Any]:
    """These faults in `make test`, all of them in `make soak`."""
    return [
        name if name in names else pytest.param(name, marks=pytest.mark.soak) for name in FAULTS
    ]


class Refusing(io.FileIO):
    """Half of what is written goes in."""

    number = 0

    def write(self, data: Any) -> int:
        super().write(bytes(data)[: len(bytes(data)) // 2])
        raise OSError(self.number, os.strerror(self.number))


class Disk:
    """Below its folder the calls of a fault are refused, once it is on."""

    # a function each call
    def __init__(self, folder: Path, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: C901
        self.folder, self.on = folder.resolve(), False
        self.number, self.calls = FAULTS[fault]
        self.said = os.strerror(self.number)
        for name in ("mkdir", "replace", "rename", "unlink", "rmdir", "link"):
            self._patch(monkeypatch, os, name)
        opened, fsync, low = io.open, os.fsync, os.open

        def open_(file: Any, mode: str = "r", *args: Any, **more: Any) -> Any:
            if (
                self.on
                and isinstance(file, str | os.PathLike)
                and set(mode) & set("wax+")
                and self.below(file)
            ):
                if "create" in self.calls:
                    raise OSError(self.number, self.said, str(file))
                if "write" in self.calls:
                    raw = Refusing(os.fspath(file), mode.replace("b", "").replace("t", ""))
                    raw.number = self.number
                    return io.BufferedWriter(raw, 1)
            return opened(file, mode, *args, **more)

        def low_open(path: Any, flags: int, *args: Any, **more: Any) -> int:
            if (
                self.on
                and "create" in self.calls
                and flags & (os.O_CREAT | os.O_RDWR)
                and self.below(path)
            ):
                raise OSError(self.number, self.said, str(path))
            return low(path, flags, *args, **more)

        def sync(handle: Any) -> None:
            if self.on and "fsync" in self.calls:
                raise OSError(self.number, self.said)
            fsync(handle)

        def save_file(state: Any, path: Any, metadata: Any = None) -> None:
            if self.on and self.below(path) and self.calls & {"write", "create"}:
                raise SafetensorError(
                    f"Error while serializing: I/O error: {self.said} (os error {self.number})"
                )
            saved(state, path, metadata=metadata)

        saved = tensors.save_file
        monkeypatch.setattr(io, "open", open_)
        monkeypatch.setattr(builtins, "open", open_)
        monkeypatch.setattr(os, "open", low_open)
        monkeypatch.setattr(os, "fsync", sync)
        monkeypatch.setattr(tensors, "save_file", save_file)

    def below(self, path: Any) -> bool:
        if not isinstance(path, str | os.PathLike):
            return False
        place = Path(os.path.abspath(os.fspath(path)))  # noqa: PTH100 - the last link stays
        return place == self.folder or self.folder in place.parents

    def _patch(self, monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def wrapped(path: Any, *args: Any, **more: Any) -> Any:
            if self.on and name in self.calls and self.below(path):
                raise OSError(self.number, self.said, str(path))
            return inner(path, *args, **more)

        monkeypatch.setattr(owner, name, wrapped)

    @contextlib.contextmanager
    def refusing(self) -> Iterator[None]:
        self.on = True
        try:
            yield
        finally:
            self.on = False


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on four images, its data, images to look at, and enough to recover on."""
    root = tmp_path_factory.mktemp("whole")
    recipe = short(root)
    fit(recipe, root / "run", device="cpu", progress=False)
    for folder, count in (("images", 2), ("enough", 9)):
        (root / folder).mkdir()
        for number in range(count):
            Image.effect_noise((16, 16), 60 + number).save(root / folder / f"{number}.png")
    return root


def short(root: Path) -> Recipe:
    path = root / "images.npz"
    tiny = tiny_recipe(path if path.exists() else write_npz(path))
    return replace(tiny, schedule=replace(tiny.schedule, epochs=2, warmup_epochs=0))


def model() -> torch.nn.Module:
    return softless.create_model(
        "sima_deit_tiny_patch16_224", img_size=32, embed_dim=32, depth=1, num_heads=2, num_classes=2
    )


def drawing() -> Drawing:
    from matplotlib.figure import Figure

    return Drawing(Figure(figsize=(1, 1)))


VERBS: dict[
    str, Callable[[Path, Path], list[str]]
] = {  # the finished run with what lies around it, and the folder that is written
    "predict": lambda whole, out: [
        "predict",
        f"{whole}/run",
        f"{whole}/images",
        f"{out}/new",
        "--no-overlays",
    ],
    "predict with pictures": lambda whole, out: [
        "predict",
        f"{whole}/run",
        f"{whole}/images",
        str(out),
    ],
    "explain": lambda whole, out: [
        "explain",
        f"{whole}/run",
        f"{whole}/images",
        "--out",
        f"{out}/maps",
    ],
    "swap": lambda _, out: [
        "swap",
        "deit_tiny_patch16_224",
        "--layers",
        "blocks.0.*",
        "--out",
        f"{out}/swapped.safetensors",
    ],
    "recover": lambda whole, out: [
        "recover",
        f"{whole}/run",
        "relu_linear",
        "--images",
        f"{whole}/enough",
        "--out",
        f"{out}/recovered",
    ],
    "slide": lambda whole, out: [
        "slide",
        f"{whole}/run",
        f"{whole}/images/0.png",
        "--quiet",
        "--out",
        f"{out}/slides",
    ],
    "slide with a store": lambda whole, out: [
        "slide",
        f"{whole}/run",
        f"{whole}/images/0.png",
        "--quiet",
        "--out",
        f"{out}/slides",
        "--store",
        f"{out}/store",
    ],
    "export": lambda whole, out: ["export", f"{whole}/run", "--out", f"{out}/exported"],
    "train": lambda _, out: [
        "train",
        "--recipe",
        "digits",
        "--out",
        f"{out}/run",
        "--set",
        "schedule.epochs=1",
        "schedule.warmup_epochs=0",
    ],
}
CALLS: dict[str, Callable[[Path, Path], Any]] = {
    "report": lambda whole, out: page.write([whole / "run"], out / "page" / "report.html"),
    "report over a folder": lambda whole, out: page.write([whole / "run"], out / "kept"),
    "save_weights": lambda _, out: save_weights(model(), out / "model"),
    "bench record": lambda _, out: write_csv(out / "rows.csv", [{"a": 1}]),
    "chart": lambda _, out: drawing().save(out / "figures" / "chart.svg", "A chart"),
    "predictions": lambda whole, out: softless.predict(
        whole / "run", whole / "images", out=out / "a" / "b"
    ),
}


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """A folder with something of the user's in it."""
    folder = tmp_path / "out"
    (folder / "kept").mkdir(parents=True)
    (folder / "kept" / "mine.txt").write_text("mine")
    return folder


def left(out: Path, disk: Disk) -> None:
    """Nothing half written, and what was there is there."""
    assert (out / "kept" / "mine.txt").read_text() == "mine"
    if "unlink" not in disk.calls:
        assert not [path for path in out.rglob("*") if ".tmp" in path.name]
    assert not [
        path
        for path in out.rglob("*")
        if path.is_file() and path.suffix in {".csv", ".html", ".safetensors", ".onnx"}
    ]


@pytest.mark.bar(
    "A12",
    "a disk that refuses (read-only, full, quota, inodes, failing, ...) under each verb: one "
    "sentence",
)
@pytest.mark.parametrize("fault", some({"read-only", "full", "no inodes", "flush fails"}))
@pytest.mark.parametrize("verb", VERBS)
def test_a_verb_says_it_in_one_sentence(
    whole: Path,
    out: Path,
    verb: str,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):
    disk = Disk(out, fault, monkeypatch)
    with disk.refusing():
        code = main(VERBS[verb](whole, out))
    said = [
        line
        for line in capsys.readouterr().err.splitlines()
        if line.startswith("softless: ") and "note:" not in line
    ]
    assert (code, len(said)) == (2, 1), said
    assert "cannot " in said[0]
    assert disk.said in said[0]
    assert str(out) in said[0]
    left(out, disk)


@pytest.mark.bar(
    "A12",
    "a disk that refuses (read-only, full, quota, inodes, failing, ...) under each verb: one "
    "sentence",
)
@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("call", CALLS)
def test_a_function_raises_storage_error(
    whole: Path, out: Path, call: str, fault: str, monkeypatch: pytest.MonkeyPatch
):
    disk = Disk(out, fault, monkeypatch)
    with disk.refusing(), pytest.raises(StorageError, match=disk.said):
        CALLS[call](whole, out)
    left(out, disk)


PHASES = {  # where a run that is under way meets the fault
    "at the start": (setup, "_take"),
    "in an epoch": (loop, "train_epoch"),
    "at the best weights": (keep, "take_best"),
    "at the state": (checkpoint, "save"),
    "at the log": (RunFolder, "log"),
    "at the result": (keep, "result"),
    "at the published model": (keep, "publish"),
    "at TensorBoard's": (Scalars, "write"),
}


@pytest.mark.bar(
    "A12",
    "a disk that refuses while a run is under way: one sentence, and the run continues to the "
    "same last bit",
)
@pytest.mark.parametrize("fault", some({"read-only", "full", "no inodes"}))
@pytest.mark.parametrize("phase", PHASES)
def test_a_run_under_way_ends_with_a_sentence_and_continues(
    whole: Path,
    tmp_path: Path,
    phase: str,
    fault: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    run, recipe = tmp_path / "run", short(whole)
    disk = Disk(run, fault, monkeypatch)
    owner, name = PHASES[phase]
    inner, calls = getattr(owner, name), []

    def armed(*args: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == min(2, 1 + (phase in {"in an epoch", "at the state", "at the log"})):
            disk.on = True
        return inner(*args, **more)

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, armed)
        with pytest.raises(StorageError, match=disk.said) as raised:
            fit(recipe, run, device="cpu", progress=False)
    assert "\n" not in str(raised.value)
    with pytest.raises(StorageError, match=disk.said):
        fit(recipe, run, resume=True, device="cpu", progress=False)
    disk.on = False
    if "unlink" not in disk.calls and run.exists():
        assert not [
            path.name for path in run.rglob("*") if ".tmp" in path.name or path.name == "lock"
        ]
    fit(recipe, run, resume=True, device="cpu", progress=False)
    assert end_of(run) == end_of(whole / "run")
    assert not [
        path.name for path in run.rglob("*") if ".tmp" in path.name or path.name.startswith("lock")
    ]


@contextlib.contextmanager
def mounted(place: Path, size: str, **more: str) -> Iterator[None]:
    place.mkdir(exist_ok=True)
    options = ",".join([f"size={size}", *(f"{name}={value}" for name, value in more.items())])
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this user may not mount a tmpfs here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(place)], check=True)


@pytest.mark.soak
@pytest.mark.bar(
    "A10",
    "a real tmpfs that is too small, by size, or read-only: one sentence, and the run continues "
    "to the same last bit",
)
@pytest.mark.parametrize("kilobytes", [40, 120, 300, 500, 700, 900, 1100])
def test_a_real_disk_that_is_full_and_then_read_only(whole: Path, tmp_path: Path, kilobytes: int):
    place = tmp_path / "disk"
    with mounted(place, f"{kilobytes}k"):
        with contextlib.suppress(StorageError):
            fit(short(whole), place / "run", device="cpu", progress=False)
        assert not list(place.rglob("*.tmp"))
        subprocess.run(["mount", "-o", "remount,ro", str(place)], check=True)
        for resume in (False, True):
            with contextlib.suppress(UsageError):
                fit(short(whole), place / "run", resume=resume, device="cpu", progress=False)
        assert main(["predict", f"{whole}/run", f"{whole}/images", f"{place}/answers"]) == 2
        subprocess.run(["mount", "-o", "remount,rw,size=50m", str(place)], check=True)
        fit(short(whole), place / "run", resume=True, device="cpu", progress=False)
        assert end_of(place / "run") == end_of(whole / "run")
