"""Everything a run holds while it trains, made from its recipe."""

import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from softless.data import EpochLoader, Samples, Splits, build_transforms, eval_loader, open_splits, train_loader
from softless.tasks import Classification
from softless.training import checkpoint, optim
from softless.training.model import build_model, model_args
from softless.training.recipe import Recipe
from softless.training.run_folder import CHECKPOINT, CLASSES, RECIPE, RunFolder, as_json
from softless.training.world import World

if TYPE_CHECKING:
    from timm.scheduler.scheduler import Scheduler
    from timm.utils import ModelEmaV3


@dataclass
class Run:
    """A training under way: what it was made from, what it moves, and how far it is."""

    recipe: Recipe
    folder: RunFolder
    world: World
    splits: Splits
    task: Classification
    model: nn.Module
    parallel: nn.Module  # the model, averaging gradients over the ranks
    ema: "ModelEmaV3 | None"
    optimizer: torch.optim.Optimizer
    scheduler: "Scheduler"
    scaler: torch.amp.GradScaler
    loader: EpochLoader
    val_loader: EpochLoader
    epochs: int
    epoch: int = 0  # the next one
    updates: int = 0
    skipped: int = 0  # steps in a row that the float16 scaler left out
    best: dict[str, Any] | None = None

    @property
    def device(self) -> torch.device:
        return self.world.device

    def seed_epoch(self) -> None:
        """Dropout and stochastic depth draw from (seed, epoch, rank)."""
        key = np.random.SeedSequence((self.recipe.seed, self.epoch, self.world.rank)).generate_state(1, np.uint64)
        torch.manual_seed(int(key[0] >> np.uint64(1)))


def set_up(recipe: Recipe, path: Path, world: World, *, resume: bool, overwrite: bool) -> Run:
    """Open the data, build the model, take the folder; continue from its checkpoint if `resume`.

    Nothing in the folder is touched before data and model are known to be usable.
    """
    folder = RunFolder(path)
    splits = open_splits(recipe.data, recipe.seed)
    task = Classification(recipe, splits.classes, np.bincount(splits.train.targets, minlength=len(splits.classes)))
    model = build_model(recipe, len(splits.classes), splits.in_chans).to(world.device)
    optimizer = optim.optimizer(recipe, model)
    loader = _train_loader(recipe, splits, world)
    scheduler, epochs = optim.scheduler(recipe, optimizer, len(loader))
    run = Run(
        recipe=recipe,
        folder=folder,
        world=world,
        splits=splits,
        task=task.to(world.device),
        model=model,
        parallel=world.parallel(model),
        ema=optim.averaged(recipe, model),
        optimizer=optimizer,
        scheduler=scheduler,
        scaler=torch.amp.GradScaler(world.device.type, enabled=recipe.amp == "float16"),
        loader=loader,
        val_loader=share(recipe, splits, splits.val, world),
        epochs=epochs,
    )
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    world.first(lambda: folder.open(size, overwrite=overwrite))
    if resume and world.first(lambda: folder.has(CHECKPOINT)):
        checkpoint.restore(run)
    world.first(lambda: _describe(run))
    return run


def share(recipe: Recipe, splits: Splits, samples: Samples, world: World) -> EpochLoader:
    """This rank's share of the samples for evaluation, every image once."""
    transform = build_transforms(recipe, splits.mean, splits.std, train=False)
    batch = max(recipe.batch_size // world.size, 1)
    return eval_loader(samples, transform, batch=batch, workers=recipe.data.workers, rank=world.rank, world=world.size)


def _train_loader(recipe: Recipe, splits: Splits, world: World) -> EpochLoader:
    transform = build_transforms(recipe, splits.mean, splits.std, train=True)
    return train_loader(
        splits.train,
        transform,
        batch=recipe.batch_size,
        seed=recipe.seed,
        rank=world.rank,
        world=world.size,
        repeats=recipe.augment.repeats,
        workers=recipe.data.workers,
    )


def _describe(run: Run) -> None:
    run.folder.rewind_log(run.epoch)
    run.folder.write_json(RECIPE, {**as_json(run.recipe), **versions(), "machine": machine(run.device)})
    run.folder.write_json(CLASSES, list(run.splits.classes))


def rebuild_facts(run: Run) -> dict[str, Any]:
    """What evaluation needs to rebuild model and transform without the recipe."""
    splits, data = run.splits, run.recipe.data
    return {
        "architecture": run.recipe.model.name,
        "model_args": model_args(run.recipe, len(splits.classes), splits.in_chans),
        "mean": list(splits.mean),
        "std": list(splits.std),
        "image_size": data.image_size,
        "in_chans": splits.in_chans,
        "classes": list(splits.classes),
        "crop_pct": data.crop_pct,
        "interpolation": data.interpolation,
    }


def versions() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("softless", "torch", "timm")}


def machine(device: torch.device) -> dict[str, Any]:
    """Processor, threads and device, for whoever compares seconds."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"cpu": _processor(), "cores": os.cpu_count(), "threads": torch.get_num_threads(), "device": name}


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()
