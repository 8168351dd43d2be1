"""How long a run is on the data at hand.

A recipe counts epochs, and was tried on one size of data. On a tenth of the images the same epochs
are a tenth of the steps, and weights that have hardly moved. `schedule.min_steps` and
`schedule.min_epoch_steps` say how many steps a run and an epoch need at least. Epochs and batch
follow from the number of training images, and what counts epochs or steps follows along.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from softless.experiment.recipe import Recipe

SMALLEST = 2  # images in a batch that was halved: mixing needs pairs, BatchNorm more than one image


@dataclass(frozen=True)
class Fitted:
    """A recipe whose length fits the data, and what was changed for that."""

    recipe: Recipe
    changed: dict[str, tuple[Any, Any]]  # dotted field -> what the recipe has, what the run takes
    measured: tuple[str, ...] = ()  # those that come from the training split itself

    def with_measured(self, measurements: Mapping[str, tuple[Any, Any]]) -> "Fitted":
        """The same with fields that were measured, dotted -> what the recipe has, what the run
        takes.
        """
        return replace(self, changed={**self.changed, **measurements}, measured=tuple(measurements))

    def sentences(self, images: int) -> list[str]:
        """What was changed, for the first lines of a run."""
        if not self.changed:
            return []
        schedule = self.recipe.schedule
        sentences = []
        if "batch_size" in self.changed:
            old, new = self.changed["batch_size"]
            decay = self.changed.get("ema_decay")
            also = (
                ""
                if decay is None
                else f"; ema_decay {decay[0]:g} -> {decay[1]:.6g}, to average over as many images"
            )
            sentences.append(
                f"batch_size {old} -> {new}: {images} training {self.recipe.unit} make "
                f"{images // (old * self.recipe.accumulate)} steps an epoch, "
                f"and schedule.min_epoch_steps is {schedule.min_epoch_steps}{also}"
            )
        if "schedule.epochs" in self.changed:
            old, new = self.changed["schedule.epochs"]
            rest = [
                name
                for name in self.changed
                if name.startswith("schedule.") and name != "schedule.epochs"
            ]
            also = "".join(
                f"; {name} {self.changed[name][0]} -> {self.changed[name][1]}" for name in rest
            )
            sentences.append(
                f"schedule.epochs {old} -> {new}: epochs of {images // self.recipe.step_images} "
                "steps, and schedule.min_steps is "
                f"{schedule.min_steps}{also}"
            )
        if self.measured:
            listing = ", ".join(f"{name} {_plain(self.changed[name][1])}" for name in self.measured)
            sentences.append(f"measured on the training objects: {listing}")
        return sentences


def _plain(value: Any) -> str:
    """A value as `--set` takes it."""
    if isinstance(value, tuple):
        return ",".join(map(_plain, value))
    return "none" if value is None else f"{value:g}"


def fitted(recipe: Recipe, images: int) -> Fitted:
    """The recipe with a batch and a number of epochs that give this many training images enough
    steps.

    The batch is halved until an epoch has `schedule.min_epoch_steps`, while it stays even; then the
    epochs rise until the run has `schedule.min_steps`. Warm-up, cool-down and the epochs of
    `multistep` keep their share of the run. The average keeps its length in images: its decay at
    batch b' is decay^(b'/b) (Busbridge et al., arXiv:2307.13813). Nothing is ever made shorter, and
    a field that is None asks for nothing: `Recipe.with_fields` sets them so where epochs or batch
    are given.
    """
    batch, times, schedule = recipe.batch_size, recipe.accumulate, recipe.schedule
    if schedule.min_epoch_steps is not None:
        while (
            images // (batch * times) < schedule.min_epoch_steps
            and batch % 2 == 0
            and batch // 2 >= SMALLEST
        ):
            batch //= 2
    epochs, steps = schedule.epochs, images // (batch * times)
    if schedule.min_steps is not None and steps:
        epochs = max(epochs, -(-schedule.min_steps // steps))
    share = epochs / schedule.epochs
    longer = replace(
        schedule,
        epochs=epochs,
        warmup_epochs=round(schedule.warmup_epochs * share),
        cooldown_epochs=round(schedule.cooldown_epochs * share),
        decay_epochs=tuple(round(epoch * share) for epoch in schedule.decay_epochs),
    )
    decay = recipe.ema_decay
    if decay is not None and batch != recipe.batch_size:
        decay = decay ** (batch / recipe.batch_size)
    new = replace(recipe, batch_size=batch, schedule=longer, ema_decay=decay)
    before, after = _lengths(recipe), _lengths(new)
    return Fitted(
        new, {name: (before[name], after[name]) for name in before if before[name] != after[name]}
    )


def _lengths(recipe: Recipe) -> dict[str, Any]:
    schedule = {
        f"schedule.{name}": getattr(recipe.schedule, name)
        for name in ("epochs", "warmup_epochs", "cooldown_epochs", "decay_epochs")
    }
    return {"batch_size": recipe.batch_size, **schedule, "ema_decay": recipe.ema_decay}
