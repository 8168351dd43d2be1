"""Bags and their tables, written for tests."""

import csv
from pathlib import Path

import numpy as np

WIDTH = 5
SMALL = [
    "model.args.width=16",
    "schedule.epochs=12",
    "schedule.warmup_epochs=0",
    "schedule.min_steps=none",
    "schedule.min_epoch_steps=none",
    "batch_size=8",
    "optim.lr=1e-2",
    "ema_decay=none",
    "ema_evaluate=false",
    "threads=1",
]


def bags(root: Path, patients: int = 24, *, seed: int = 0, shift: float = 8.0, gain: float = 1.0):
    """Two slides a patient, 3 to 12 tiles; one tile's first feature says the class.

    Returns:
        The folder, and rows (slide, patient, class).
    """
    rng = np.random.default_rng(seed)
    folder = root / "features"
    folder.mkdir(parents=True)
    rows = []
    for patient in range(patients):
        label = patient % 2
        for half in range(2):
            name = f"s{patient:02}{'ab'[half]}"
            count = int(rng.integers(3, 13))
            features = rng.normal(size=(count, WIDTH))
            features[rng.integers(count), 0] += shift * label
            coords = 100.0 * np.stack([np.arange(count) % 4, np.arange(count) // 4], 1)
            features = (gain * features + 50 * (gain - 1)).astype(np.float32)
            np.savez(folder / f"{name}.npz", features=features, coords=coords)
            rows.append((name, f"p{patient:02}", ["benign", "malignant"][label]))
    return folder, rows


def table(path: Path, rows, header=("slide", "patient", "label")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
