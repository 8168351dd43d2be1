"""What hangs on what `force` gives up: small models with a bias by position, trained on
digits, and the same weights with softmax alone.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless.compare.record import record_path, write_csv
from softless.data.progress import track
from softless.errors import need
from softless.words import table

SIDE = 28
EPOCHS = 25
BATCH = 64
SIZES: Mapping[str, Any] = {"embed_dim": 48, "depth": 3, "num_heads": 4}
GIVEN_UP = {
    "ViT, relative positions": "a bias by position",
    "SAM": "a bias by queries and position",
}


@dataclass(frozen=True)
class GivenUp:
    """One model: its accuracy on 360 digits as it was trained and by softmax alone, and how far the
    branches of softmax alone are from its own.
    """

    family: str
    given_up: str
    accuracy: float
    accuracy_without: float
    branch_error: float  # relative, the mean of the layers


@dataclass(frozen=True)
class Biases:
    """All of them."""

    epochs: int
    rows: tuple[GivenUp, ...]
    recorded: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"epochs": self.epochs, "rows": [asdict(row) for row in self.rows]}

    def __str__(self) -> str:
        head = ["family", "given up", "accuracy", "without", "branch error"]
        cells = [list(asdict(row).values()) for row in self.rows]
        footer = f"\n\nrecorded: {self.recorded}" if self.recorded else ""
        return (
            f"epochs of digits: {self.epochs}; then softmax alone\n\n{table(head, cells)}{footer}"
        )


def biases(*, epochs: int = EPOCHS, record: bool = False) -> Biases:
    """Train two small models on digits and take away what `force` gives up.

    Args:
        epochs: of training.
        record: also write benchmarks/biases.csv of the repository.

    Raises:
        UsageError: `record` outside of the repository.
    """
    target = record_path("biases") if record else None
    rows = tuple(
        _given_up(family, epochs) for family in track(list(GIVEN_UP), len(GIVEN_UP), "training")
    )
    if target is not None:
        write_csv(target, [asdict(row) for row in rows])
    return Biases(epochs, rows, target)


def _given_up(family: str, epochs: int) -> GivenUp:
    from softless.convert import swap

    torch.manual_seed(0)
    model, parts = _model(family), _digits()
    _train(model, *parts["train"], epochs)
    images, targets = parts["test"]
    before = _accuracy(model, images, targets)
    paths = "blocks.*"
    report = swap(_copy(model, family), "softmax", layers=paths, force=paths, calibrate=images)
    swap(model, "softmax", layers=paths, force=paths)  # without numbers by head
    errors = list(report.without.values())
    return GivenUp(
        family,
        GIVEN_UP[family],
        round(before, 4),
        round(_accuracy(model, images, targets), 4),
        round(sum(errors) / len(errors), 4),
    )


def _copy(model: nn.Module, family: str) -> nn.Module:
    twin = _model(family)
    twin.load_state_dict(model.state_dict())
    return twin.eval()


def _model(family: str) -> nn.Module:
    from timm.models.vision_transformer_relpos import VisionTransformerRelPos
    from timm.models.vision_transformer_sam import VisionTransformerSAM

    sizes: dict[str, Any] = {
        "img_size": SIDE,
        "patch_size": 4,
        "in_chans": 1,
        "num_classes": 10,
        **SIZES,
    }
    every = tuple(range(SIZES["depth"]))
    models: dict[str, Any] = {
        "ViT, relative positions": lambda: VisionTransformerRelPos(init_values=1.0, **sizes),
        "SAM": lambda: VisionTransformerSAM(
            use_rel_pos=True, use_abs_pos=False, global_attn_indexes=every, neck_chans=48, **sizes
        ),
    }
    model: nn.Module = models[family]()
    return model


def _digits() -> dict[str, tuple[Tensor, Tensor]]:
    """Images (n, 1, SIDE, SIDE) of mean 0 and classes (n), cut as every run of digits cuts them."""
    need("sklearn")
    from softless.data.arrays import digits_parts

    parts, _ = digits_parts(1)
    ready: dict[str, tuple[Tensor, Tensor]] = {}
    for name, samples in parts.items():
        images = torch.as_tensor(samples.images).float().reshape(len(samples.images), 1, 8, 8)
        images = F.interpolate(images / 255 - 0.5, size=SIDE, mode="bilinear")
        ready[name] = images * 2, torch.as_tensor(samples.targets)
    return ready


def _train(model: nn.Module, images: Tensor, targets: Tensor, epochs: int) -> None:
    """AdamW at 2e-3, a cosine to zero, images moved by up to two pixels."""
    steps = epochs * (len(images) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    generator = torch.Generator().manual_seed(0)
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for chosen in order[: len(order) // BATCH * BATCH].split(BATCH):
            down, across = torch.randint(-2, 3, (2,), generator=generator).tolist()
            moved = images[chosen].roll((down, across), (2, 3))
            loss = F.cross_entropy(model(moved), targets[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    model.eval()


@torch.no_grad()
def _accuracy(model: nn.Module, images: Tensor, targets: Tensor) -> float:
    return float((model(images).argmax(1) == targets).float().mean())
