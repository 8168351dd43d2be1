from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from softless.experiment.groups import AugmentSpec, DataSpec, ModelSpec, OptimSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from tests.training.zygote import Zygote

COUNTS = {"train": 48, "val": 18, "test": 15}
CLASSES = 3


def write_npz(path: Path, seed: int = 0, classes: int = CLASSES, pixels: int = 16) -> Path:
    """Grey images whose brightness says the class."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for part, count in COUNTS.items():
        labels = np.arange(count) % classes
        noise = rng.integers(0, 100, (count, pixels, pixels)) + 50 * labels[:, None, None]
        arrays |= {f"{part}_images": noise.astype(np.uint8), f"{part}_labels": labels[:, None]}
    np.savez(path, **arrays)  # type: ignore[arg-type]  # typed as if a key could be allow_pickle
    return path


@pytest.fixture
def tiny(tmp_path: Path) -> Recipe:
    return tiny_recipe(write_npz(tmp_path / "images.npz"))


def tiny_recipe(path: Path) -> Recipe:
    """Four steps an epoch of a ViT with 5 tokens, with every source of randomness on: dropping,
    affine, erasing, mixing, EMA.
    """
    return Recipe(
        name="tiny",
        summary="for tests",
        model=ModelSpec(
            name="vit_tiny_patch16_224",
            op="sima",
            args={"img_size": 16, "patch_size": 8, "embed_dim": 16, "depth": 2, "num_heads": 2},
        ),
        data=DataSpec(source="npz", path=str(path), image_size=16, in_chans=1, crop_pct=1.0),
        augment=AugmentSpec(
            affine=(10.0, 0.1, 0.1),
            color_jitter=None,
            auto_augment=None,
            reprob=0.3,
            mixup=0.4,
            cutmix=0.4,
        ),
        optim=OptimSpec(lr=5e-3, base_batch=None, clip_grad=1.0),
        schedule=ScheduleSpec(epochs=3, warmup_epochs=1),
        batch_size=12,
        drop_path=0.2,
        ema_decay=0.9,
        ema_evaluate=True,
        threads=1,
    )


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Forks one process per training."""
    parent = Zygote()
    yield parent
    parent.close()
