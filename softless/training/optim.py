"""Optimiser, learning-rate schedule and averaged weights, as timm makes them from a recipe."""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from softless.errors import unknown
from softless.experiment import rules
from softless.experiment.groups import SCHEDULES, OptimSpec
from softless.experiment.recipe import Recipe
from softless.layers.own_tensors import OwnTensors
from softless.models.create import no_weight_decay

if TYPE_CHECKING:
    from timm.scheduler.scheduler import Scheduler
    from timm.utils import ModelEmaV3


def optimizer(recipe: Recipe, model: nn.Module) -> torch.optim.Optimizer:
    """timm's optimiser at the effective rate.

    No weight decay on parameters of at most one dimension, on biases, and on what the model names
    (cls_token, pos_embed): timm's rule, and the papers'. Nor is there any on learned tensors whose
    operator asks for that.

    Raises:
        UsageError: no such optimiser, or one that does not take what the recipe sets.
    """
    from timm.optim import create_optimizer_v2

    spec = recipe.optim
    return create_optimizer_v2(
        model,
        opt=spec.name,
        lr=recipe.effective_lr,
        param_group_fn=partial(_groups, spec=spec),
        **rules.accepted(spec),
    )


def _groups(model: nn.Module, spec: OptimSpec) -> list[dict[str, Any]]:
    from timm.optim import param_groups_layer_decay, param_groups_weight_decay

    # Exact names, as in the timm 0.4.9 of the papers. Newer timm lists the pattern 'pos_embed.*'
    # for XCiT, whose projection of Fourier features the papers' code decays.
    names = no_weight_decay(model) & {name for name, _ in model.named_parameters()}
    common: dict[str, Any] = {"weight_decay": spec.weight_decay, "no_weight_decay_list": names}
    if spec.layer_decay is None:
        return list(param_groups_weight_decay(model, **common))
    return list(param_groups_layer_decay(model, layer_decay=spec.layer_decay, **common))


def scheduler(
    recipe: Recipe, optimizer: torch.optim.Optimizer, steps_per_epoch: int
) -> "tuple[Scheduler, int]":
    """timm's schedule, moved at every step, and the number of epochs with the cool-down.

    At the first step of each epoch the rate is the one timm gives for that epoch. In between it
    moves smoothly, so that short epochs' warm-up does not begin with a whole epoch at `warmup_lr`.
    Only `plateau` moves per epoch.

    Raises:
        UsageError: no such schedule, or a warm-up that leaves no epoch.
    """
    from timm.scheduler import create_scheduler_v2

    spec = recipe.schedule
    if spec.name not in SCHEDULES:
        raise unknown("schedule", spec.name, SCHEDULES)
    rules.lengths(recipe)
    created, epochs = create_scheduler_v2(
        optimizer,
        sched=spec.name,
        num_epochs=spec.epochs,
        warmup_epochs=spec.warmup_epochs,
        warmup_lr=spec.warmup_lr,
        min_lr=spec.min_lr,
        cooldown_epochs=spec.cooldown_epochs,
        decay_milestones=list(spec.decay_epochs),
        decay_rate=1.0
        if spec.name == "poly"
        else 0.1,  # timm's name for poly's power: 1, a straight line, in every recipe of UPerNet
        step_on_epochs=spec.name == "plateau",
        updates_per_epoch=steps_per_epoch,
        plateau_mode="min" if recipe.metric == "loss" else "max",
    )
    assert created is not None
    return created, int(epochs)


def moment(recipe: Recipe, updates: int, steps_per_epoch: int) -> int:
    """The update whose rate the schedule gives after so many.

    The scripts of DeiT, XCiT and SimA move their schedule behind an epoch, to that epoch's own
    number. The second epoch still has the rate of the first, and each later one that of the epoch
    before (`schedule.moves="epoch"`).
    """
    if recipe.schedule.moves == "step":
        return updates
    return max(updates // steps_per_epoch - 1, 0) * steps_per_epoch


def own_tensors(model: nn.Module) -> list[OwnTensors]:
    """The operators' own tensors in a model, in the order of its modules."""
    return [module for module in model.modules() if isinstance(module, OwnTensors)]


def averaged(recipe: Recipe, model: nn.Module) -> "ModelEmaV3 | None":
    """The exponential moving average of the weights, which follows from the first step on.

    The decay of step t, counted from 0, is min(ema_decay, (1 + t) / (10 + t)). A constant one keeps
    ema_decay^steps of the random start, half of it in a short run. The papers' runs have a thousand
    times the steps, and there the two are the same.

    Raises:
        UsageError: a decay outside [0, 1), or none where the average is to be evaluated.
    """
    rules.averages(recipe)
    if recipe.ema_decay is None:
        return None
    from timm.utils import ModelEmaV3

    class Averaged(ModelEmaV3):
        """Random tensors that an operator draws anew are taken over: the mean of two draws is no
        draw.
        """

        def get_decay(self, step: int | None = None) -> float:
            return self.decay if step is None else min(self.decay, (1 + step) / (10 + step))

        @torch.no_grad()
        def update(self, model: nn.Module, step: int | None = None) -> None:
            super().update(model, step)
            for averaged_module, current_module in zip(
                own_tensors(self.module), own_tensors(model), strict=True
            ):
                for mine, new in zip(
                    averaged_module.buffers(), current_module.buffers(), strict=True
                ):
                    mine.copy_(new)

    return Averaged(model, decay=recipe.ema_decay)
