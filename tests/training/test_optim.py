"""Optimiser, schedule and averaged weights are what the recipe says, by timm's rules."""

import math
from dataclasses import replace

import pytest
import torch
from timm.scheduler import CosineLRScheduler
from torch import nn

from softless.errors import UsageError
from softless.recipes import get_recipe
from softless.training import OptimSpec, Recipe, ScheduleSpec
from softless.training.model import build_model
from softless.training.optim import averaged, moment, optimizer, scheduler


def rates(recipe: Recipe, steps: int) -> list[float]:
    """The rate of every step."""
    moved = optimizer(recipe, nn.Linear(2, 2))
    schedule, epochs = scheduler(recipe, moved, steps)
    seen = []
    for update in range(epochs * steps):
        seen.append(moved.param_groups[0]["lr"])
        schedule.step_update(update + 1)
    return seen


def cosine(epoch: float, *, peak: float, low: float, epochs: int) -> float:
    return low + 0.5 * (peak - low) * (1 + math.cos(math.pi * epoch / epochs))


def test_cosine_with_warm_up_step_by_step(tiny: Recipe):
    spec = ScheduleSpec(epochs=10, warmup_epochs=2, warmup_lr=1e-4, min_lr=1e-3)
    seen = rates(replace(tiny, optim=OptimSpec(lr=0.1, base_batch=None), schedule=spec), steps=5)
    assert len(seen) == 50
    assert seen[:10] == pytest.approx([1e-4 + update * (0.1 - 1e-4) / 10 for update in range(10)])
    assert seen[10:] == pytest.approx([
        cosine(u / 5, peak=0.1, low=1e-3, epochs=10) for u in range(10, 50)
    ])


def test_the_rate_grows_with_the_batch(tiny: Recipe):
    spec = OptimSpec(lr=5e-4, base_batch=512)
    assert replace(tiny, optim=spec, batch_size=1024).effective_lr == pytest.approx(1e-3)
    built = optimizer(replace(tiny, optim=spec, batch_size=1024), nn.Linear(2, 2))
    assert built.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_layer_decay_lowers_early_layers(tiny: Recipe):
    recipe = replace(tiny, optim=replace(tiny.optim, layer_decay=0.5))
    model = build_model(recipe, 3, 1)
    built = optimizer(recipe, model)
    scheduler(recipe, built, 4)
    scale = {id(p): group["lr_scale"] for group in built.param_groups for p in group["params"]}
    named = dict(model.named_parameters())
    assert scale[id(named["head.weight"])] == 1.0
    assert scale[id(named["blocks.1.mlp.fc1.weight"])] > scale[id(named["blocks.0.mlp.fc1.weight"])]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"optim.name": "adamv"}, "no optimiser named 'adamv'. Did you mean 'adam"),
        ({"optim.name": "sgd", "optim.betas": (0.8, 0.9)}, "optimiser 'sgd' takes no optim.betas"),
        ({"schedule.name": "cosin"}, "schedule.name='cosin' is not known. Did you mean 'cosine'"),
        ({"schedule.epochs": 2, "schedule.warmup_epochs": 2}, "warm-up shorter than the run"),
        ({"schedule.epochs": 0}, "schedule.epochs=0 is out of range"),
        ({"ema_decay": 1.5}, "ema_decay=1.5 is out of range"),
        ({"ema_decay": None, "ema_evaluate": True}, "needs averaged weights"),
    ],
)
def test_what_cannot_be_is_refused(tiny: Recipe, fields: dict, message: str):
    def build(recipe: Recipe) -> None:
        scheduler(recipe, optimizer(recipe, nn.Linear(2, 2)), 4)
        averaged(recipe, nn.Linear(2, 2))

    build(tiny)
    with pytest.raises(UsageError, match=message):
        build(tiny.with_fields(**fields))


@pytest.mark.parametrize("name", ["adamw", "sgd", "adam", "lamb", "lion", "nadamw"])
def test_optimisers_step(tiny: Recipe, name: str):
    model = nn.Linear(2, 2)
    built = optimizer(tiny.with_fields(**{"optim.name": name}), model)
    before = model.weight.detach().clone()
    model(torch.ones(1, 2)).sum().backward()
    built.step()
    assert not torch.equal(before, model.weight)


def test_averaged_weights_follow_the_formula(tiny: Recipe):
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    ema = averaged(replace(tiny, ema_decay=0.9), model)
    assert ema is not None
    model.weight.data.fill_(2.0)
    ema.update(model)
    torch.testing.assert_close(ema.module.weight.data, torch.tensor([[1.1]]))


def test_the_rate_of_the_published_scripts_is_that_of_the_epoch_before(tiny: Recipe):
    """They call timm's schedule behind an epoch with that epoch's number, so the first two epochs
    have the first rate.
    """
    spec = ScheduleSpec(epochs=6, warmup_epochs=2, warmup_lr=1e-4, min_lr=1e-3, moves="epoch")
    recipe = replace(tiny, optim=OptimSpec(lr=0.1, base_batch=None), schedule=spec)
    moved = optimizer(recipe, nn.Linear(2, 2))
    schedule, epochs = scheduler(recipe, moved, 3)
    seen = []
    for update in range(epochs * 3):
        seen.append(moved.param_groups[0]["lr"])
        schedule.step_update(moment(recipe, update + 1, 3))
    theirs = optimizer(recipe, nn.Linear(2, 2))
    published = CosineLRScheduler(theirs, t_initial=6, lr_min=1e-3, warmup_t=2, warmup_lr_init=1e-4)
    expected = []
    for epoch in range(6):
        expected += [theirs.param_groups[0]["lr"]] * 3
        published.step(epoch)
    assert seen == pytest.approx(expected)
    assert moment(tiny, 7, 3) == 7
    with pytest.raises(UsageError, match="plateau follows the score"):
        scheduler(replace(tiny, schedule=replace(spec, name="plateau")), moved, 3)
    for name in ("imagenet_sima_deit_small", "imagenet_sima_xcit_small"):
        assert get_recipe(name).schedule.moves == "epoch"
