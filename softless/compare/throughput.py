"""Images per second of finished runs in evaluation, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from softless.compare.timing import forward_pass, interleaved, threads_of, waiting_for
from softless.tasks.cost import Speed
from softless.tasks.loaded import load_run
from softless.words import counted


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
    with threads_of(threads or first.recipe.threads) as count:
        calls = {
            str(folder): forward_pass(run.model, (batch, run.in_chans, *run.pixels), chosen_device)
            for folder, run in runs.items()
        }
        timed = interleaved(calls, rounds=rounds, synchronise=waiting_for(chosen_device))
    hardware = counted(count, "thread") if chosen_device.type == "cpu" else str(chosen_device)
    how = f"float32, batch {batch}, {hardware}, median of {rounds} rounds in turns"
    return {folder: Speed(**vars(timed.rates(str(folder), batch)), how=how) for folder in runs}
