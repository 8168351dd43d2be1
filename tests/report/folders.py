"""Writes run folders as training leaves them (the contract), with answers of a chosen accuracy:
reports are made of these.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from softless.data import open_parts
from softless.experiment.groups import AugmentSpec, DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe, as_json

ARGS = {"img_size": 32, "patch_size": 4, "embed_dim": 32, "depth": 2, "num_heads": 2}


def recipe(op: str, seed: int, **args: Any) -> Recipe:
    return Recipe(
        name="digits",
        summary="vision transformer on handwritten digits",
        model=ModelSpec("vit_tiny_patch16_224", op, {**ARGS, **args}),
        data=DataSpec("digits", image_size=32, in_chans=1, crop_pct=1.0, interpolation="bilinear"),
        augment=AugmentSpec(affine=(10.0, 0.1, 0.1), hflip=0.0, mixup=0.0, cutmix=0.0),
        optim=OptimSpec(lr=2e-3, base_batch=None),
        schedule=ScheduleSpec(epochs=20),
        batch_size=64,
        seed=seed,
    )


def write_run(
    folder: Path,
    op: str = "sima",
    *,
    seed: int = 0,
    accuracy: float = 0.97,
    epochs: int = 20,
    test: bool = True,
    classes: list[str] | None = None,
    **args: Any,
) -> Path:
    """A finished run on the digits as an older softless left it, epochs counted from 0: real test
    images, invented answers, new weights.
    """
    from softless.models import create_model

    held = recipe(op, seed, **args)
    parts, digits = open_parts(held.data)
    names = classes or list(digits)
    torch.manual_seed(seed)
    model_args = {**held.model.args, "op": op}
    model = create_model(held.model.name, num_classes=len(names), in_chans=1, **model_args)
    folder.mkdir(parents=True)
    _json(folder / "recipe.json", {**as_json(held), **_where()})
    _json(folder / "classes.json", names)
    log = [
        _epoch(number, epochs, accuracy, seed + 10 * (op == "softmax")) for number in range(epochs)
    ]
    (folder / "log.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in log), encoding="utf-8"
    )
    save_file(model.state_dict(), folder / "best.safetensors")
    best = max(range(epochs), key=lambda number: log[number]["val"]["top1"])
    scaling = {
        "mean": [0.3],
        "std": [0.35],
        "image_size": 32,
        "in_chans": 1,
        "crop_pct": 1.0,
        "interpolation": "bilinear",
    }
    _json(
        folder / "best.json",
        {
            "epoch": best,
            "metric": "top1",
            "value": log[best]["val"]["top1"],
            "architecture": held.model.name,
            "model_args": model_args,
            "classes": names,
            **scaling,
        },
    )
    result: dict[str, Any] = {
        "best_epoch": best,
        "epochs": epochs,
        "val": log[best]["val"],
        "seconds": 101.5 + seed,
        "images_per_second": 812.0,
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if test:
        result["test"] = _answers(
            folder, parts["test"], len(names), accuracy, seed + (op == "softmax") * 100
        )
    _json(folder / "result.json", result)
    return folder


def _answers(
    folder: Path, samples: Any, classes: int, accuracy: float, seed: int
) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    targets = samples.targets
    logits = rng.normal(0, 1, (len(targets), classes)).astype(np.float32)
    said = np.where(rng.random(len(targets)) < accuracy, targets, (targets * 3 + 1) % classes)
    logits[np.arange(len(targets)), said] += 6 + 2 * rng.random(len(targets)).astype(np.float32)
    names = np.array([samples.name(i) for i in range(len(targets))])
    np.savez(folder / "predictions.npz", logits=logits, targets=targets, names=names)
    right = float((logits.argmax(1) == targets).mean())
    return {
        "top1": right,
        "balanced_accuracy": right - 0.001,
        "auc": 0.998,
        "loss": 0.2,
        "seen": len(targets),
        "expected": len(targets),
        "interval": [right - 0.01, right + 0.01],
    }


def _epoch(number: int, epochs: int, accuracy: float, seed: int) -> dict[str, Any]:
    rng = np.random.default_rng((seed, number))
    share = (number + 1) / epochs
    val = {
        "loss": 2.3 * (1 - share) + 0.2,
        "top1": min(0.999, accuracy * (1 - np.exp(-(6 + seed % 7) * share)) + rng.normal(0, 0.004)),
        "balanced_accuracy": 0.9,
        "auc": 0.99,
        "seen": 216,
        "expected": 216,
    }
    loss = 0.55 + seed / 300 + 1.8 * np.exp(-4.5 * share) + rng.normal(0, 0.012)
    rate = 2e-3 * (
        min(1.0, 5 * share) if share < 0.2 else 0.5 * (1 + np.cos(np.pi * (share - 0.2) / 0.8))
    )
    return {
        "epoch": number,
        "train_loss": float(loss),
        "lr": float(rate),
        "seconds": 5.0,
        "images_per_second": 800.0,
        "val": val,
    }


def _where() -> dict[str, Any]:
    return {
        "softless": "0.1.0",
        "torch": "2.15.0",
        "timm": "1.0.31",
        "machine": {"cpu": "a processor", "threads": 2, "device": "cpu"},
    }


def _json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content), encoding="utf-8")
