"""Rules between the fields of a recipe, held before any work.

The range of a field by itself stands with the field.
"""

from collections.abc import Callable
from typing import Any

from timm.optim import get_optimizer_info, list_optimizers

from softless.errors import UsageError, unknown
from softless.experiment.data_rules import check_scaling, compiled
from softless.experiment.groups import CLASSIFIES, LISTED, OptimSpec, RunFields
from softless.experiment.ranges import Range
from softless.models.download import check_released
from softless.models.variants import ENTRIES

# one kernel for all tensors, on CPU too: 5 times less time per step for a small model
FUSED = {"adam", "adamw"}
FLOORED = ("cosine", "plateau", "poly", "tanh")  # schedules that end at min_lr


def rates(recipe: RunFields) -> None:
    """Neither end of the schedule lies above its top.

    Raises:
        UsageError: one does.
    """
    spec, top = recipe.schedule, recipe.effective_lr
    ends = [("min_lr", spec.min_lr, "end")] if spec.name in FLOORED else []
    ends += [("warmup_lr", spec.warmup_lr, "start")] if spec.warmup_epochs else []
    for name, rate, end in ends:
        if rate > top:
            raise UsageError(
                f"schedule.{name}={rate:g}, the rate at the {end}, is above the effective rate "
                f"{top:g} "
                f"(optim.lr={recipe.optim.lr:g}{_scaled(recipe)}): set "
                f"schedule.{name}={top / 100:.1g} or another up to {top:g}"
            )


def _scaled(recipe: RunFields) -> str:
    base = recipe.optim.base_batch
    return f" times {step_of(recipe)} / optim.base_batch={base}" if base else ""


def step_of(recipe: RunFields) -> str:
    """The images of a step by the fields that make them."""
    several = f" x accumulate={recipe.accumulate}" if recipe.accumulate > 1 else ""
    return f"batch_size={recipe.batch_size}{several}"


def lengths(recipe: RunFields) -> None:
    """The warm-up leaves an epoch; multistep has its epochs, and no other schedule.

    Raises:
        UsageError: a length that does not fit the others or the schedule.
    """
    spec = recipe.schedule
    if spec.warmup_epochs >= spec.epochs:
        raise UsageError(
            f"schedule of {spec.epochs} epochs with {spec.warmup_epochs} of warm-up: epochs must "
            "be at least 1 and "
            "warm-up shorter than the run, for example schedule.warmup_epochs=0"
        )
    if spec.name == "plateau" and spec.moves == "epoch":
        raise UsageError(
            "schedule.name=plateau with schedule.moves=epoch: plateau follows the score of the "
            "epoch that ended, and no count: leave moves=step"
        )
    if spec.patience is not None and recipe.metric == "last":
        raise UsageError(
            f"schedule.patience={spec.patience} waits for a better score, and metric=last "
            "has none: leave patience out, or set a metric"
        )
    if (spec.name == "multistep") != bool(spec.decay_epochs):
        raise UsageError(
            f"schedule.name={spec.name} with schedule.decay_epochs={spec.decay_epochs}: multistep "
            "needs the epochs after which the rate falls, "
            "and no other schedule takes them"
        )


def averages(recipe: RunFields) -> None:
    """Averaged weights can be tested where they are kept.

    Raises:
        UsageError: `ema_evaluate` without `ema_decay`.
    """
    if recipe.ema_evaluate and recipe.ema_decay is None:
        raise UsageError(
            "ema_evaluate=true needs averaged weights: set ema_decay, for example ema_decay=0.99"
        )


def scaling(recipe: RunFields) -> None:
    """Mean and standard deviation come together, one for each channel; a declared range is one."""
    check_scaling(recipe.data)
    Range.of(recipe.data.range)


def parts(recipe: RunFields) -> None:
    """Groups and folds go with images that can be cut by them.

    Raises:
        UsageError: they do not, or one of `data.folds` and `data.fold` is missing.
    """
    data, table = recipe.data, recipe.table
    if data.group is not None:
        if recipe.task != "classification" or data.source != "folder" or table is not None:
            raise UsageError(
                f"data.group={data.group} finds groups in the paths of class folders, and this "
                "recipe reads none: leave it out; "
                "a table names its groups with table.group"
            )
        compiled(data.group)
    if (data.folds is None) != (data.fold is None):
        raise UsageError(
            f"data.folds={data.folds} and data.fold={data.fold} come together: how many folds, "
            "and which is tested; --folds K trains all"
        )
    if data.folds is not None and data.fold is not None:
        if data.fold >= data.folds:
            raise UsageError(
                f"data.fold={data.fold} of data.folds={data.folds}: folds are counted from 0 to "
                f"{data.folds - 1}"
            )
        if recipe.task not in LISTED:
            raise UsageError(
                f"data.folds={data.folds} is for classification; this recipe is for {recipe.task}"
            )


def optimiser(recipe: RunFields) -> None:
    """timm has the optimiser, and it takes what is set."""
    accepted(recipe.optim)


def accepted(spec: OptimSpec) -> dict[str, Any]:
    """eps and betas where the optimiser has them; set to something else where it has not, they are
    refused.

    Raises:
        UsageError: that, or no such optimiser.
    """
    name = spec.name.lower().split("_")[-1]
    names = [str(entry) for entry in list_optimizers()]
    if name not in names:
        raise unknown("optimiser", spec.name, names)
    info, plain = get_optimizer_info(name), OptimSpec()
    takes = {"eps": info.has_eps, "betas": info.has_betas and info.num_betas == len(spec.betas)}
    for field, supported in takes.items():
        if not supported and getattr(spec, field) != getattr(plain, field):
            raise UsageError(
                f"optimiser '{spec.name}' takes no optim.{field} (set to {getattr(spec, field)})"
            )
    accepted: dict[str, Any] = {
        field: getattr(spec, field) for field, supported in takes.items() if supported
    }
    return {**accepted, "fused": True} if name in FUSED else accepted


def _pairs(recipe: RunFields) -> None:
    augment = recipe.augment
    if (augment.mixup or augment.cutmix) and augment.mixup_prob and recipe.batch_size % 2:
        raise UsageError(
            f"mixup and cutmix mix pairs, and batch_size={recipe.batch_size} is odd: set "
            f"batch_size={recipe.batch_size + 1}, or "
            "augment.mixup=0 and augment.cutmix=0"
        )


def squares(recipe: RunFields) -> None:
    """Height and width are for classifiers: the crops of self-supervision are squares.

    Raises:
        UsageError: two numbers in a recipe for something else.
    """
    if not isinstance(recipe.data.image_size, int) and recipe.task not in CLASSIFIES:
        raise UsageError(
            f"data.image_size={recipe.data.image_size}: height and width are for classification, "
            f"and this recipe is for {recipe.task}; set one number"
        )


def start(recipe: RunFields) -> None:
    """What is said of a run's first weights, and of what is trained of them, goes together.

    Raises:
        UsageError: it does not.
    """
    spec = recipe.model
    named = spec.pretrained or spec.weights is not None
    if spec.pretrained and spec.weights is not None:
        raise UsageError(
            f"model.pretrained=true and model.weights={spec.weights} both say where the weights "
            "come from: choose one"
        )
    if spec.recover == "refit" and not named:
        raise UsageError(
            "model.recover=refit fits a model to weights of another attention, and none are "
            "named: set model.pretrained=true or model.weights, or leave recover out"
        )
    if spec.freeze == "backbone" and not named:
        raise UsageError(
            "model.freeze=backbone trains the head alone, and the backbone would stay as it was "
            "drawn: name weights by model.pretrained=true or model.weights"
        )
    if spec.freeze == "backbone" and spec.lora is not None:
        raise UsageError(
            "model.freeze=backbone trains the head alone, and model.lora="
            f"{spec.lora} the attention's projections with it: choose one"
        )
    _whole_model(recipe)
    if spec.pretrained:
        _released(spec.name)


def _whole_model(recipe: RunFields) -> None:
    """Fields that go with training the whole model, and with no part of it; and fields of
    classifiers.
    """
    spec = recipe.model
    fields = {
        "model.pretrained=true": spec.pretrained,
        "model.recover=refit": spec.recover == "refit",
        "model.freeze=backbone": spec.freeze == "backbone",
        f"model.lora={spec.lora}": spec.lora is not None,
    }
    chosen = [text for text, is_set in fields.items() if is_set]
    if chosen and recipe.task not in CLASSIFIES:
        raise UsageError(
            f"{chosen[0]} is for classification, and this recipe is for {recipe.task}: start it "
            "from a classifier's run by model.weights"
        )
    partial = [text for text in chosen if "freeze" in text or "lora" in text]
    if partial and recipe.optim.layer_decay is not None:
        raise UsageError(
            f"optim.layer_decay={recipe.optim.layer_decay:g} lowers the rate of early layers, "
            f"and with {partial[0]} none of their weights is trained itself: leave one out"
        )
    if partial and recipe.grad_checkpointing:
        why = (
            "with model.freeze=backbone no backward pass needs them"
            if spec.freeze == "backbone"
            else "what it computes again would not have the updates of model.lora"
        )
        raise UsageError(f"grad_checkpointing computes activations twice, and {why}: leave it out")


def _released(name: str) -> None:
    entry = ENTRIES.get(name)
    if entry is not None and entry.name != entry.variant.name:
        raise UsageError(
            f"there are no released weights of '{name}': name its host, whose softmax weights "
            f"there may be, as model.name={entry.variant.name} model.op={entry.op}"
        )
    check_released(name)


RULES: tuple[Callable[[RunFields], None], ...] = (
    squares,
    rates,
    lengths,
    averages,
    scaling,
    parts,
    optimiser,
    start,
)


def check(recipe: RunFields) -> None:
    """Every rule in turn.

    Raises:
        UsageError: the first that does not hold.
    """
    for rule in RULES:
        rule(recipe)
