"""Small runs that know their images: scikit-learn's digits, learned in seconds without
augmentation.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch.nn import functional as F

from softless.data.samples import ArraySamples
from softless.data.transforms import prepared_as
from softless.experiment.groups import DataSpec
from softless.exporting.source import tensors
from softless.models import create_model
from tests.evaluation.runs import run_folder

SIZES = {"train": (0, 1200), "val": (1200, 1400), "test": (1400, 1797)}
STEPS = 180


def digits_file(path: Path, kind: str = "one") -> Path:
    """The digits as an npz file: `one` label of ten; `two`: below five or not; `several`: three
    labels an image.
    """
    images, targets = load_digits(return_X_y=True)
    pixels = np.round(images.reshape(-1, 8, 8) * 15.9).astype(np.uint8)
    labels = {
        "one": targets[:, None],
        "two": (targets[:, None] >= 5).astype(np.int64),
        "several": np.stack([targets >= 5, targets % 2 == 0, targets % 3 == 0], 1).astype(np.uint8),
    }[kind]
    arrays: dict[str, Any] = {}
    for part, (first, last) in SIZES.items():
        arrays |= {f"{part}_images": pixels[first:last], f"{part}_labels": labels[first:last]}
    np.savez(path, **arrays)
    return path


def digits_run(
    folder: Path, op: str = "sima", kind: str = "one", size: tuple[int, int] = (16, 16), **args: Any
) -> Path:
    """The folder of a run that was trained on the digits; `args` are the model's own."""
    classes = {"one": 10, "two": 2, "several": 3}[kind]
    folder.mkdir(parents=True, exist_ok=True)
    path = digits_file(folder / "digits.npz", kind)
    data = DataSpec(source="npz", path=str(path), image_size=size, in_chans=1)
    model_args = {
        "op": op,
        "patch_size": 4,
        "embed_dim": 32,
        "depth": 3,
        "num_heads": 2,
        "img_size": size,
        "num_classes": classes,
        "in_chans": 1,
        **args,
    }
    changed: dict[str, Any] = {
        "task": "multilabel" if kind == "several" else "classification",
        "model_args": model_args,
        "image_size": list(size),
        "interpolation": "bilinear",
    }
    if kind == "several":
        changed["threshold"] = 0.5
    run = run_folder(folder / "run", tuple(map(str, range(classes))), data, **changed)
    if kind == "several":
        recipe = json.loads((run / "recipe.json").read_text())
        (run / "recipe.json").write_text(json.dumps(recipe | {"multilabel": {"threshold": 0.5}}))
    best = json.loads((run / "best.json").read_text())
    model = _trained(path, best, model_args)
    save_file(
        {name: tensor.contiguous() for name, tensor in model.state_dict().items()},
        run / "best.safetensors",
    )
    return run


def _trained(path: Path, best: dict[str, Any], args: dict[str, Any]) -> torch.nn.Module:
    torch.manual_seed(0)
    model = create_model("vit_tiny_patch16_224", **args).train()
    with np.load(path) as arrays:
        labels = arrays["train_labels"]
        samples = ArraySamples(arrays["train_images"], np.zeros(len(labels)), 1)
    images = tensors(samples, prepared_as(best))
    targets = torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=STEPS)
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        chosen = torch.randint(len(images), (128,), generator=generator)
        logits = model(images[chosen])
        if targets.shape[1] > 1:
            loss = F.binary_cross_entropy_with_logits(logits, targets[chosen].float())
        else:
            loss = F.cross_entropy(logits, targets[chosen, 0].long())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return model.eval()
