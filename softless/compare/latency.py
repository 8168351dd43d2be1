"""What an image takes each of several models, side by side."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from softless.compare.record import processor
from softless.compare.timing import Spread, forward_pass, interleaved, threads_of, waiting_for
from softless.errors import UsageError
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
    relative: Spread  # its time over the first model's, in pairs of each round


@dataclass(frozen=True)
class Latencies:
    """All of them, and how they were timed."""

    rows: tuple[Latency, ...]
    batch: int
    rounds: int
    device: str
    threads: int

    def to_dict(self) -> dict[str, Any]:
        """Rows, and how they were timed."""
        return {
            "rows": [
                {
                    "model": row.model,
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
        }

    def __str__(self) -> str:
        head = ["model", "pixels", "batch [ms]", "quarters", "images/s", "times the first"]
        rows = [
            [
                row.model,
                f"{row.height} x {row.width}",
                f"{row.milliseconds.median:.2f}",
                f"{row.milliseconds.low:.2f} to {row.milliseconds.high:.2f}",
                f"{row.images_per_second.median:,.1f}",
                f"{row.relative.median:.2f}",
            ]
            for row in self.rows
        ]
        how = (
            f"float32, {counted(self.batch, 'image')} at once, {self.device}, "
            f"{counted(self.threads, 'thread')}, {counted(self.rounds, 'round')} in turns"
        )
        return f"{table(head, rows)}\n\n{how}"


def latency(
    *models: str,
    input_size: int | None = None,
    batch: int = 1,
    rounds: int = 15,
    threads: int | None = None,
    device: str = "auto",
) -> Latencies:
    """Time one batch of random images through each model, in turns, so that all meet the same
    machine.

    Args:
        models: names of models (`softless list models`, or timm's), or folders of runs; weights do
            not matter to the time.
        input_size: side of the images in pixels; each model's own by default.
        batch: images at once.
        rounds: how often each model is timed.
        threads: of the processor; torch's own number by default.
        device: auto, cpu, cuda, mps.

    Raises:
        UsageError: no model, an unknown one, one named twice, or a number below one.
        DataError: a run folder without a finished epoch.
    """
    if not models:
        raise UsageError(
            "bench latency times models: name some, for example softless bench latency "
            "sima_deit_tiny_patch16_224 deit_tiny_patch16_224"
        )
    if len(set(models)) < len(models):
        raise UsageError(f"{', '.join(models)}: a model is named twice; name each once")
    numbers = {"batch": batch, "rounds": rounds, "threads": threads, "input_size": input_size}
    for name, number in numbers.items():
        if number is not None and number < 1:
            raise UsageError(f"{name}={number}: at least one")
    chosen = choose_device(device)
    with threads_of(threads) as count:
        networks = {name: _network(name, chosen, input_size) for name in models}
        calls = {
            name: forward_pass(network, (batch, *shape), chosen)
            for name, (network, shape) in networks.items()
        }
        timed = interleaved(calls, rounds=rounds, synchronise=waiting_for(chosen))
    rows = tuple(
        Latency(
            name,
            shape[1],
            shape[2],
            Spread.of([1000 * seconds for seconds in timed.seconds[name]]),
            timed.rates(name, batch),
            timed.ratio(name, models[0]),
        )
        for name, (_, shape) in networks.items()
    )
    hardware = {"cpu": processor, "cuda": torch.cuda.get_device_name}.get(
        chosen.type, lambda: chosen.type
    )()
    return Latencies(rows, batch, rounds, hardware, count)


def _network(
    name: str, device: torch.device, input_size: int | None
) -> tuple[nn.Module, tuple[int, int, int]]:
    """A model in evaluation mode, and the (C, H, W) of the images that it is timed on."""
    network, size = model_and_size(name, None, None, input_size)
    channels, height, width = getattr(network, "pretrained_cfg", {}).get(
        "input_size", (3, 224, 224)
    )
    if isinstance(size, int):
        height = width = size
    elif size is not None:
        channels, height, width = size
    return network.to(device).eval(), (channels, height, width)
