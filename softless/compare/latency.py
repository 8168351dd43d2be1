"""What an image takes each of several models, side by side: by torch, and in other runtimes."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softless.compare.record import processor
from softless.compare.runtimes import (
    EAGER,
    OF_TORCH,
    Call,
    checked,
    every_runtime,
    exported,
    of_file,
    of_torch,
)
from softless.compare.timing import Spread, interleaved, threads_of, waiting_for
from softless.errors import SoftlessError, UsageError, located
from softless.experiment.folder import BEST
from softless.exporting.formats.table import FORMATS, is_exported
from softless.exporting.loaded import load_exported
from softless.exporting.source import opened
from softless.models.published import names_folder
from softless.models.sides import sides as sides_of
from softless.tasks.opened import model_and_size
from softless.training.world import choose_device
from softless.words import counted, table


@dataclass(frozen=True)
class Latency:
    """One model's time for a batch."""

    model: str
    height: int  # pixels of an image
    width: int
    milliseconds: Spread  # of a batch: the median over the rounds, and the quarters around it
    images_per_second: Spread
    relative: Spread  # its time over that of the first row, in pairs of each round
    runtime: str = EAGER  # eager, optimized (float32), bfloat16, or the format of a file


@dataclass(frozen=True)
class Latencies:
    """All of them, and how they were timed."""

    rows: tuple[Latency, ...]
    batch: int
    rounds: int
    device: str
    threads: int
    notes: tuple[str, ...] = ()  # runtimes that could not be timed, and why

    def to_dict(self) -> dict[str, Any]:
        """Rows, and how they were timed."""
        return {
            "rows": [
                {
                    "model": row.model,
                    "runtime": row.runtime,
                    "height": row.height,
                    "width": row.width,
                    **{
                        f"{name}{end}": getattr(value, part)
                        for name, value in (
                            ("milliseconds", row.milliseconds),
                            ("images_per_second", row.images_per_second),
                            ("relative", row.relative),
                        )
                        for end, part in (("", "median"), ("_low", "low"), ("_high", "high"))
                    },
                }
                for row in self.rows
            ],
            "batch": self.batch,
            "rounds": self.rounds,
            "device": self.device,
            "threads": self.threads,
            "notes": list(self.notes),
        }

    def __str__(self) -> str:
        head = [
            "model",
            "runtime",
            "pixels",
            "batch [ms]",
            "quarters",
            "images/s",
            "times the first",
        ]
        rows = [
            [
                row.model,
                row.runtime,
                f"{row.height} x {row.width}",
                f"{row.milliseconds.median:.2f}",
                f"{row.milliseconds.low:.2f} to {row.milliseconds.high:.2f}",
                f"{row.images_per_second.median:,.1f}",
                f"{row.relative.median:.2f}",
            ]
            for row in self.rows
        ]
        how = (
            "float32 where no other is named, "
            f"{counted(self.batch, 'image')} at once, {self.device}, "
            f"{counted(self.threads, 'thread')}, {counted(self.rounds, 'round')} in turns"
        )
        return "\n".join([table(head, rows), "", how, *self.notes])


def latency(
    *models: str,
    size: Sequence[int] | None = None,
    runtimes: Sequence[str] | None = None,
    input_size: int | None = None,
    batch: int = 1,
    rounds: int = 15,
    threads: int | None = None,
    device: str = "auto",
) -> Latencies:
    """Time one batch of random images through each model, in turns, so that all meet the same
    machine.

    One model alone is timed as it is, optimized, and as a file in each runtime that is installed.
    Several are timed as they are, beside files of `softless export`.

    Args:
        models: names of models (`softless list models`, or timm's), folders of runs or of
            `save_weights`, or exported files; weights do not matter to the time.
        size: height and width in pixels, or the side of a square; each model's own by default.
        runtimes: eager, optimized (float32), bfloat16 (optimized), and formats (`softless list
            formats`); files are written to a folder that is gone afterwards.
        input_size: side of the images in pixels, as --size of one number.
        batch: images at once.
        rounds: how often each is timed.
        threads: of the processor, for every runtime; torch's own number by default.
        device: auto, cpu, cuda, mps. Files run on the processor.

    Raises:
        UsageError: no model, an unknown one, one named twice, no such runtime, or a number below
            one.
        DataError: a run folder without a finished epoch, or a file that cannot be read.
    """
    sides = _checked(
        models, size, input_size, {"batch": batch, "rounds": rounds, "threads": threads}
    )
    chosen = choose_device(device)
    named = None if runtimes is None else checked(runtimes)
    with tempfile.TemporaryDirectory() as folder, threads_of(threads) as count:
        work = _Work(chosen, sides, batch, Path(folder))
        for model in models:
            work.add(model, named, alone=len(models) == 1)
        if not work.timed:
            raise UsageError(f"nothing to time: {'; '.join(work.notes)}")
        calls = {str(number): entry.call.call for number, entry in enumerate(work.timed)}
        timings = interleaved(calls, rounds=rounds, synchronise=waiting_for(chosen))
    rows = tuple(
        Latency(
            entry.model,
            entry.height,
            entry.width,
            Spread.of([1000 * seconds for seconds in timings.seconds[str(number)]]),
            timings.rates(str(number), batch),
            timings.ratio(str(number), "0"),
            entry.call.runtime,
        )
        for number, entry in enumerate(work.timed)
    )
    hardware = {"cpu": processor, "cuda": torch.cuda.get_device_name}.get(
        chosen.type, lambda: chosen.type
    )()
    return Latencies(rows, batch, rounds, hardware, count, tuple(work.notes))


def _checked(
    models: Sequence[str],
    size: Sequence[int] | None,
    input_size: int | None,
    numbers: Mapping[str, int | None],
) -> tuple[int, int] | None:
    """Height and width that are asked for, where the arguments make sense."""
    if not models:
        raise UsageError(
            "bench latency times models: name some, for example softless bench latency "
            "sima_deit_tiny_patch16_224 deit_tiny_patch16_224"
        )
    if len(set(models)) < len(models):
        raise UsageError(f"{', '.join(models)}: a model is named twice; name each once")
    for name, number in {**numbers, "input_size": input_size}.items():
        if number is not None and number < 1:
            raise UsageError(f"{name}={number}: at least one")
    if size is None:
        return None if input_size is None else (input_size, input_size)
    if input_size is not None:
        raise UsageError("--size and --input-size say the same: give one of them")
    if len(size) not in {1, 2} or min(size) < 1:
        raise UsageError(
            f"--size {' '.join(map(str, size))}: give height and width in pixels, or the side of a "
            "square"
        )
    return size[0], size[-1]


@dataclass(frozen=True)
class _Timed:
    """A row before it is timed."""

    model: str
    height: int
    width: int
    call: Call


class _Work:
    """All that is timed, and why something is not."""

    def __init__(
        self, device: torch.device, sides: tuple[int, int] | None, batch: int, folder: Path
    ) -> None:
        self.device, self.sides, self.batch, self.folder = device, sides, batch, folder
        self.timed: list[_Timed] = []
        self.notes: list[str] = []

    def add(self, name: str, runtimes: Sequence[str] | None, *, alone: bool) -> None:
        """A model in these runtimes, or an exported file; None is what the docstring of `latency`
        says.
        """
        path = located(name)
        if is_exported(path) and not (path / BEST).is_file():
            self._add_file(name, path)
            return
        network, shape = _network(name, self.device, self.sides)
        for runtime in runtimes or (every_runtime() if alone else (EAGER,)):
            try:
                call = self._call(runtime, name, network, shape)
            except SoftlessError as error:
                if runtime == EAGER:
                    raise
                self.notes.append(f"{name} in {runtime} is not timed: {error}")
                continue
            self.timed.append(_Timed(name, *shape[1:], call))

    def _call(
        self, runtime: str, name: str, network: nn.Module, shape: tuple[int, int, int]
    ) -> Call:
        batch = (self.batch, *shape)
        if runtime in OF_TORCH:
            return of_torch(runtime, network, batch, self.device)
        self._on_the_processor()
        source = opened(name if names_folder(name) else network)
        return exported(FORMATS[runtime], source, batch, self.folder / str(len(self.timed)))

    def _add_file(self, name: str, path: Path) -> None:
        """A file of `softless export`."""
        self._on_the_processor()
        model = load_exported(path)
        sides = self.sides or model.metadata.size
        call = of_file(model, (self.batch, model.metadata.in_chans, *sides))
        self.timed.append(_Timed(name, *sides, call))

    def _on_the_processor(self) -> None:
        if self.device.type != "cpu":
            raise UsageError(
                f"exported files run on the processor, and this is timed on {self.device}: give "
                "--device cpu"
            )


def _network(
    name: str, device: torch.device, sides: tuple[int, int] | None
) -> tuple[nn.Module, tuple[int, int, int]]:
    """A model in evaluation mode, and the (C, H, W) of the images that it is timed on."""
    network, size = model_and_size(name, None, None, sides)
    channels, height, width = getattr(network, "pretrained_cfg", {}).get(
        "input_size", (3, 224, 224)
    )
    if isinstance(size, tuple) and len(size) == 3:
        channels, height, width = size
    elif size is not None:
        height, width = sides_of(size)
    return network.to(device).eval(), (channels, height, width)
