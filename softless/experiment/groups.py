"""The groups of a recipe's fields, frozen; each field is described once, where it stands.

Its default, what it is, the range of its numbers and its unit make checks, messages and tables. The
groups of the tasks stand with them (`tasks/*/settings.py`, gathered by `task_fields`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

from softless.errors import UsageError
from softless.experiment.bag_table import BagTableSpec
from softless.experiment.fields import (
    CHANCE,
    COUNT,
    SHARE,
    SIDE,
    SOME,
    WEIGHT,
    TaskSettings,
    setting,
)
from softless.experiment.task_fields import GROUPS, TaskFields
from softless.tasks.folders import TASKS

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
SCHEDULES = ("constant", "cosine", "multistep", "plateau", "poly", "step", "tanh")
LoggerName = Literal["csv", "mlflow", "wandb"]
CLASSIFICATION = TASKS[0]  # the task of recipes that set no group of a task
# tasks whose models take whole images of any size
DENSE = frozenset(name for name, group in GROUPS.items() if group.sized)
# those that give images classes
CLASSIFIES = frozenset({
    CLASSIFICATION,
    *(name for name, group in GROUPS.items() if group.classifies),
})
# those whose samples a table may list, and folds are cut of
LISTED = frozenset({*CLASSIFIES, *(name for name, group in GROUPS.items() if group.listed)})


@dataclass(frozen=True)
class ModelSpec:
    """Which model: a registered name, or a timm host and the operator that replaces its
    attention.
    """

    name: str = setting("sima_deit_tiny_patch16_224", "registered model, or host of timm")
    op: str | None = setting(
        None, "operator in place of the host's attention; none keeps the model's own"
    )
    args: Mapping[str, Any] = setting(
        dict, "further arguments of softless.create_model, as model.args.NAME; {} clears"
    )
    weights: str | None = setting(
        None,
        "file, run or local-dir:FOLDER to start from (fine-tuning); none draws the weights",
    )
    pretrained: bool = setting(
        default=False, says="start from the weights that timm knows for the name (downloads)"
    )
    recover: Literal["auto", "refit", "none"] = setting(
        "auto",
        "what happens to weights of another attention than `op`: auto and refit fit the model to "
        "theirs before the first step; none takes them as they are",
    )
    freeze: Literal["none", "backbone"] = setting(
        "none", "what is not trained; backbone: all but the head"
    )
    lora: int | None = setting(
        None,
        "rank of low-rank updates of the attention's projections, which are trained with the head "
        "alone; none trains all weights",
        "[1, 4096]",
    )


@dataclass(frozen=True)
class DataSpec:
    """Which images, and the size and scaling at which the model sees them."""

    source: Literal["digits", "folder", "npz", "coco", "masks", "given"] = setting(
        "folder", "what kind of data; given: datasets built in Python"
    )
    path: str | None = setting(None, "where they are")
    image_size: int | tuple[int, int] = setting(
        224,
        "what a classifier sees: the side of a square, or height and width",
        SIDE,
        unit="pixels",
    )
    in_chans: int = setting(3, "number of channels", "[1, 4096]")
    mean: tuple[float, ...] | None = setting(
        None,
        "mean of each channel, of pixels scaled to 0..1; none is measured on the training split",
        CHANCE,
    )
    std: tuple[float, ...] | None = setting(
        None, "standard deviation of each channel, likewise", SHARE
    )
    range: str | None = setting(
        None,
        "values that become 0 and 1, for images of more than 8 bits: 0..4095, or "
        "window=400,level=40; none reads 8-bit images alone",
    )
    interpolation: str = setting("bicubic", "resizing in evaluation", choices=INTERPOLATIONS)
    crop_pct: float = setting(
        0.875, "share of the side that the centre crop of evaluation keeps; 1.0 keeps all", SHARE
    )
    val_fraction: float = setting(
        0.15,
        "share cut from the training split, where the source has no validation split",
        "(0, 1)",
    )
    workers: int | None = setting(
        None,
        "loading processes; 0 loads in the training process, none follows data and machine",
        "[0, 1024]",
    )
    limit: int | None = setting(
        None, "training images at most (trial runs); evaluation splits stay whole", COUNT
    )
    faults: Literal["stop", "skip", "clip"] = setting(
        "stop", "images that cannot be used: an error, or left out with a count"
    )
    group: str | None = setting(
        None,
        "whose an image of class folders is: a regular expression with one capture group, for the "
        "path below the split",
    )
    folds: int | None = setting(
        None, "number of folds that the images are cut into; none cuts no folds", "[2, 1000]"
    )
    fold: int | None = setting(None, "the fold that is tested, counted from 0", "[0, 999]")

    @property
    def side(self) -> int:
        """The side of the square, where nothing but squares is taken (`experiment.rules`)."""
        assert isinstance(self.image_size, int)
        return self.image_size


@dataclass(frozen=True)
class TableSpec:
    """Images listed in a table: which file it is, and the names of its columns."""

    path: str | None = setting(None, "the table, a CSV file")
    file: str = setting(
        "file", "column of the files, as seen from data.path, or from the folder of the table"
    )
    label: tuple[str, ...] = setting(
        ("label",),
        "column of the classes; several columns of 0 and 1 are labels that an image may have "
        "together",
    )
    group: str | None = setting(
        "patient", "column that tells whose an image is; none: each image stands alone"
    )
    split: str | None = setting(
        "split",
        "column of the parts (train, val, test); none, or no such column: the parts are cut",
    )


@dataclass(frozen=True)
class AugmentSpec:
    """What happens to a training image and to a batch of them."""

    scale: tuple[float, float] = setting(
        (0.08, 1.0), "share of the area in a random resized crop", SHARE, rising=True
    )
    ratio: tuple[float, float] = setting(
        (3 / 4, 4 / 3), "width to height of that crop", "[0.01, 100]", rising=True
    )
    hflip: float = setting(0.5, "chance of a horizontal flip", CHANCE)
    vflip: float = setting(0.0, "chance of a vertical flip", CHANCE)
    affine: tuple[float, float, float] | None = setting(
        None,
        "largest turn in degrees, shift as a share of the side, change of scale; replaces the "
        "random crop",
        ("[0, 180]", CHANCE, "[0, 1)"),
    )
    color_jitter: float | None = setting(
        0.4, "strength of changes of brightness, contrast and saturation", "[0, 10]"
    )
    auto_augment: str | None = setting("rand-m9-mstd0.5-inc1", "policy, as timm writes it")
    interpolation: str = setting(
        "bicubic", "resizing in training", choices=(*INTERPOLATIONS, "random")
    )
    reprob: float = setting(0.25, "chance of random erasing", CHANCE)
    remode: str = setting(
        "pixel", "what stands in an erased part", choices=("const", "rand", "pixel")
    )
    recount: int = setting(1, "erased parts of an image at most", "[1, 1000]")
    mixup: float = setting(0.8, "alpha of mixup; 0 is without", "[0, 1000]")
    cutmix: float = setting(1.0, "alpha of cutmix; 0 is without", "[0, 1000]")
    mixup_prob: float = setting(1.0, "chance that a batch is mixed", CHANCE)
    mixup_switch_prob: float = setting(0.5, "chance of cutmix where both are on", CHANCE)
    mixup_mode: str = setting(
        "batch", "what draws its own mixing", choices=("batch", "pair", "elem")
    )
    smoothing: float = setting(0.1, "label smoothing", "[0, 1)")
    repeats: int = setting(
        1, "times each image stands in an epoch of unchanged length", "[1, 1000]"
    )


@dataclass(frozen=True)
class OptimSpec:
    """The optimiser. The effective rate is lr * global batch / base_batch."""

    name: str = setting("adamw", "optimiser, as timm names it")
    lr: float = setting(5e-4, "learning rate for a batch of `base_batch`", "(0, inf)")
    base_batch: int | None = setting(
        512, "batch that lr is for; none: lr is the rate whatever the batch", COUNT
    )
    weight_decay: float = setting(0.05, "weight decay", "[0, inf)")
    eps: float = setting(1e-8, "added to the denominator", "(0, 1]")
    betas: tuple[float, float] = setting((0.9, 0.999), "decay of the running moments", "[0, 1)")
    clip_grad: float | None = setting(
        None, "largest global gradient norm; none does not clip", "(0, inf)"
    )
    layer_decay: float | None = setting(
        None, "rate of a layer relative to the one above it (fine-tuning)", SHARE
    )


@dataclass(frozen=True)
class ScheduleSpec:
    """How the rate moves over the epochs."""

    name: str = setting("cosine", "course of the rate", choices=SCHEDULES)
    moves: Literal["step", "epoch"] = setting(
        "step",
        "when the rate moves: at every step, or once an epoch, to that of the epoch before, as "
        "the scripts of DeiT, XCiT and SimA do",
    )
    epochs: int = setting(300, "length of the run", "[1, 1000000]", unit="epochs")
    warmup_epochs: int = setting(
        5, "length of the warm-up, shorter than the run", "[0, 1000000]", unit="epochs"
    )
    warmup_lr: float = setting(
        1e-6, "rate at the start of the warm-up, at most the effective rate", "[0, inf)"
    )
    min_lr: float = setting(1e-5, "rate at the end, at most the effective rate", "[0, inf)")
    cooldown_epochs: int = setting(
        0, "epochs at the last rate, after the others", "[0, 1000000]", unit="epochs"
    )
    decay_epochs: tuple[int, ...] = setting(
        (),
        "of multistep: after these the rate is a tenth",
        "[1, 1000000]",
        unit="epochs",
        rising=True,
    )
    min_steps: int | None = setting(
        None,
        "least length of the run: on few images the epochs rise until it is reached",
        COUNT,
        unit="steps",
    )
    min_epoch_steps: int | None = setting(
        None,
        "least length of an epoch: on few images the batch is halved until it is reached",
        COUNT,
        unit="steps",
    )
    patience: int | None = setting(
        None,
        "epochs after the warm-up without a better validation score, after which the run ends; "
        "none trains them all",
        "[1, 1000000]",
        unit="epochs",
    )


@dataclass(frozen=True)
class SaveSpec:
    """When the whole state is written, beside the end of every epoch; no number of the run depends
    on it.
    """

    every_seconds: float | None = setting(
        600.0, "time between checkpoints; none: not by time", "[0, inf)", unit="s"
    )
    every_steps: int | None = setting(None, "steps between checkpoints; none: not by steps", COUNT)
    keep: int = setting(2, "checkpoints that are kept", "[1, 1000000]")


@dataclass(frozen=True)
class DivergenceSpec:
    """What happens when a loss or a gradient is not finite; it never reaches optimiser, average,
    last or best.

    stop ends the run. skip leaves the step out, at most `patience` in a row. rewind goes back to
    the last checkpoint and leaves that step out when it comes again, at most `patience` times
    without an epoch between.
    """

    policy: Literal["stop", "skip", "rewind"] = setting(
        "stop", "what happens to a step that is not finite"
    )
    patience: int = setting(3, "steps in a row that skip or rewind leave out", SOME)


@dataclass(frozen=True)
class LeadingFields:
    """The fields of a recipe that stand before the groups of the tasks."""

    name: str
    summary: str
    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataSpec = field(default_factory=DataSpec)
    table: TableSpec | BagTableSpec | None = None
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    optim: OptimSpec = field(default_factory=OptimSpec)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)


@dataclass(frozen=True)
class RunFields(TaskFields, LeadingFields):
    """The fields of a recipe, and what follows from them alone.

    Those of `LeadingFields` come first, then the groups of the tasks, then these.
    """

    save: SaveSpec = field(default_factory=SaveSpec)
    divergence: DivergenceSpec = field(default_factory=DivergenceSpec)
    batch_size: int = setting(1024, "images of a batch, over all processes", COUNT)
    accumulate: int = setting(
        1, "batches whose gradients make one step, in the memory that one takes", "[1, 1000000]"
    )
    drop_path: float = setting(0.0, "rate of stochastic depth", "[0, 1)")
    ema_decay: float | None = setting(
        None, "decay of the averaged weights, reached from below; none keeps none", "[0, 1)"
    )
    ema_evaluate: bool = setting(
        default=False,
        says="measure the averaged weights too and keep the better; otherwise they are only stored",
    )
    class_weights: Literal["none", "balanced"] | Mapping[int | str, float] = setting(
        "none",
        "weights of the classes in the loss: by their images, or by name as {benign: 2}, 1 for "
        "the others",
        WEIGHT,
    )
    metric: str = setting(
        "top1", "measure of the task that picks the best epoch on the validation split"
    )
    amp: Literal["none", "bfloat16", "float16"] = setting(
        "none", "numbers of lower precision where that is safe"
    )
    seed: int = setting(0, "of weights, order and augmentation", "[0, 4294967295]")
    threads: int | None = setting(
        None,
        "threads of each process on a CPU; none: OMP_NUM_THREADS, or its share of the cores",
        "[1, 4096]",
    )
    rank_patience: float = setting(
        30.0, "minutes that one of several processes waits for the others", "(0, 10080]"
    )
    loggers: tuple[LoggerName, ...] = setting(
        (), "where the numbers of each epoch go too, beside log.jsonl and TensorBoard"
    )
    grad_checkpointing: bool = setting(
        default=False, says="compute activations twice rather than hold them"
    )

    @property
    def task(self) -> str:
        """The task: the group that is set, or classification."""
        named = [name for name in GROUPS if getattr(self, name) is not None]
        if len(named) > 1:
            raise UsageError(f"recipe '{self.name}' sets {' and '.join(named)}: a run has one task")
        return named[0] if named else CLASSIFICATION

    @property
    def settings(self) -> TaskSettings | None:
        """The group of the task; classification has none."""
        group = None if self.task == CLASSIFICATION else getattr(self, self.task)
        return cast("TaskSettings | None", group)

    @property
    def unit(self) -> str:
        """What the samples are called: images, or what the task says."""
        return "images" if self.settings is None else self.settings.called

    @property
    def effective_lr(self) -> float:
        """The rate at the top of the schedule."""
        scale = self.step_images / self.optim.base_batch if self.optim.base_batch else 1.0
        return self.optim.lr * scale

    @property
    def step_images(self) -> int:
        """Images of a step, over all processes."""
        return self.batch_size * self.accumulate
