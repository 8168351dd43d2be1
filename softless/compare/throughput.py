"""Images per second of finished runs in evaluation, side by side."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from softless.compare.timing import interleaved
from softless.tasks.cost import Speed
from softless.tasks.loaded import load_run


def throughput(
    run_dirs: Sequence[Path],
    *,
    batch: int = 64,
    rounds: int = 15,
    device: str | torch.device = "cpu",
    threads: int | None = None,
) -> Mapping[Path, Speed]:
    """Time the runs' models on one batch of random pixels in turns: medians over the rounds, by run
    folder.

    Args:
        run_dirs: one folder per model.
        batch: images at once.
        rounds: how often each model is timed.
        device: where.
        threads: of the processor; None takes the number the runs were trained with.
    """
    chosen_device = torch.device(device)
    runs = {folder: load_run(folder, chosen_device) for folder in run_dirs}
    first = next(iter(runs.values()))
    before = torch.get_num_threads()
    torch.set_num_threads(threads or first.recipe.threads or before)
    try:
        calls = {
            str(folder): _call(run.model, (batch, run.in_chans, *run.pixels), chosen_device)
            for folder, run in runs.items()
        }
        synchronise = torch.cuda.synchronize if chosen_device.type == "cuda" else lambda: None
        timed = interleaved(calls, rounds=rounds, synchronise=synchronise)
        thread_count = torch.get_num_threads()
        hardware = (
            f"{thread_count} thread{'s' * (thread_count > 1)}"
            if chosen_device.type == "cpu"
            else str(chosen_device)
        )
    finally:
        torch.set_num_threads(before)
    how = f"float32, batch {batch}, {hardware}, median of {rounds} rounds in turns"
    return {folder: Speed(**vars(timed.rates(str(folder), batch)), how=how) for folder in runs}


def _call(model: nn.Module, shape: tuple[int, ...], device: torch.device) -> Callable[[], Any]:
    images = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device)

    @torch.inference_mode()
    def call() -> Any:
        return model(images)

    return call
