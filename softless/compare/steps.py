"""What one training step takes: seconds, in turns with the other models, and the most memory that
its tensors hold at once.
"""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from softless.compare.timing import Spread, interleaved, waiting_for
from softless.experiment.recipe import Recipe
from softless.measure.cost import cost
from softless.models.sides import sides
from softless.training.model import build_model
from softless.training.optim import optimizer

MEMORY = "[memory]"  # the profiler's name of an allocation


@dataclass(frozen=True)
class StepCost:
    """One training step of one model at the recipe's batch size, float32."""

    seconds: Spread
    # most held at once beyond what lay there before the step: activations, gradients, workspaces
    peak_bytes: int
    exps: int  # exponentials of attention for one image
    transcendentals: int  # every transcendental evaluation for one image (GELU, cosines … too)
    parameters: int


def steps(
    recipes: Mapping[str, Recipe],
    *,
    classes: int,
    in_chans: int,
    rounds: int = 15,
    device: str | torch.device = "cpu",
    threads: int | None = None,
) -> dict[str, StepCost]:
    """Measure the models of some recipes side by side on random pixels: forward, loss, backward,
    optimiser.

    Args:
        recipes: by name; all of one batch size and image size.
        classes: of the head.
        in_chans: of the images.
        rounds: how often each step is timed.
        device: where.
        threads: of the processor; None takes the number of the recipes, or torch's own where they
            leave it open.
    """
    chosen_device = torch.device(device)
    before = torch.get_num_threads()
    torch.set_num_threads(threads or next(iter(recipes.values())).threads or before)
    try:
        models = {
            name: build_model(recipe, classes, in_chans).to(chosen_device)
            for name, recipe in recipes.items()
        }
        calls = {
            name: _step(models[name], recipe, classes, in_chans) for name, recipe in recipes.items()
        }
        synchronise = waiting_for(chosen_device)
        timed = interleaved(calls, rounds=rounds, synchronise=synchronise)
        peaks = {name: peak_bytes(call, chosen_device) for name, call in calls.items()}
    finally:
        torch.set_num_threads(before)
    costs = {}
    for name, model in models.items():
        counted = cost(model, (in_chans, *sides(recipes[name].data.image_size)))
        spent = counted.exps + counted.activation_exps
        costs[name] = StepCost(
            timed.spread(name), peaks[name], counted.exps, spent, counted.parameters
        )
    return costs


def _step(model: nn.Module, recipe: Recipe, classes: int, in_chans: int) -> Callable[[], None]:

    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(
        recipe.batch_size, in_chans, *sides(recipe.data.image_size), generator=generator
    ).to(device)
    targets = torch.randint(classes, (recipe.batch_size,), generator=generator).to(device)
    mover = optimizer(recipe, model)
    model.train()

    def step() -> None:
        mover.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(images), targets).backward()
        mover.step()

    return step


def peak_bytes(call: Callable[[], Any], device: torch.device) -> int:
    """Most bytes that a call holds at once, beyond what was held before it.

    On a GPU the allocator says so. On a processor torch's profiler tells every allocation and
    release; their running sum has a maximum.
    """
    if device.type == "cuda":
        torch.cuda.synchronize()
        allocated = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated() - allocated)
    # the profiler writes its starts and stops to stderr otherwise
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        call()
    allocated = peak = 0
    kineto = profiled.profiler.kineto_results
    changes = sorted(
        (event.start_ns(), event.nbytes()) for event in kineto.events() if event.name() == MEMORY
    )
    for _, change in changes:
        allocated += change
        peak = max(peak, allocated)
    return int(peak)
