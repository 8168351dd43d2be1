"""A run in seconds: what the tasks' `small` modules share.

It shows that a recipe runs, not that it learns.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

SMALL = {"embed_dim": 32, "depth": 2, "num_heads": 2}
BATCH, STEPS, CLASSES = 8, 2, 2
COUNTS = {"train": BATCH * STEPS, "val": BATCH, "test": BATCH}


def shortened(recipe: Any, args: Mapping[str, Any], path: Path, pixels: int, **data: Any) -> Any:
    """The recipe with two steps of eight images and a small model.

    All else stays: host and operator, augmentation, optimiser, averaging, class weights, metric,
    effective rate, AMP (float16 becomes bfloat16, which every CPU has).

    Args:
        recipe: the recipe.
        args: of the small model.
        path: where the generated images are.
        pixels: side of the square that the model sees.
        data: further fields of `data`.
    """
    return replace(
        recipe,
        model=replace(recipe.model, args=dict(args), weights=None),
        data=replace(recipe.data, path=str(path), image_size=pixels, workers=0, **data),
        schedule=replace(
            recipe.schedule, epochs=1, warmup_epochs=0, min_steps=None, min_epoch_steps=None
        ),
        optim=replace(recipe.optim, lr=recipe.effective_lr, base_batch=None),
        batch_size=BATCH,
        amp="bfloat16" if recipe.amp == "float16" else recipe.amp,
        threads=1,
    )
