"""A recipe: everything that decides how a run trains, frozen and printable.

A recipe names *what* is done; `training/` and `data/` turn it into optimiser, schedule and
transforms. Fields are set from the command line as `--set optim.lr=3e-4`. Each field is described
once, where it stands (`setting`): its default, what it is, the range of its numbers, its unit.
Checks, messages and tables follow from that.
"""

import dataclasses
import logging
import tempfile
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from softless.data import box_sizes
from softless.errors import UsageError
from softless.training import rules
from softless.training.fields import (
    KEY,
    FieldSetting,
    group_of,
    literal,
    no_field,
    setting,
    typed,
    walk,
)
from softless.words import clipped

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
SCHEDULES = ("constant", "cosine", "multistep", "plateau", "poly", "step", "tanh")
_log = logging.getLogger("softless.training")
CHANCE, SHARE, SIDE = "[0, 1]", "(0, 1]", "[1, 65536]"
WEIGHT = "(0, 1000000]"
COUNT, SOME = "[1, 1000000000]", "[0, 1000000000]"  # of things: one at least, or none


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
        None, "file or run to start from (fine-tuning); none starts from random weights"
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
        """The side of the square, where nothing but squares is taken (`training.rules`)."""
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
class MultilabelSpec:
    """Several labels an image, each there or not."""

    threshold: float = setting(0.5, "probability from which a label is said", "(0, 1)")


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

    `stop` ends the run. `skip` leaves the step out, at most `patience` in a row. `rewind` goes back
    to the last checkpoint and leaves that step out when it comes again, at most `patience` times
    without an epoch between.
    """

    policy: Literal["stop", "skip", "rewind"] = setting(
        "stop", "what happens to a step that is not finite"
    )
    patience: int = setting(3, "steps in a row that skip or rewind leave out", SOME)


@dataclass(frozen=True)
class DetectionSpec:
    """Detection, and instance segmentation where the head has masks."""

    head: Literal["maskrcnn", "fasterrcnn", "retinanet"] = setting(
        "maskrcnn", "head on the pyramid"
    )
    layers: tuple[int, ...] | None = setting(
        None,
        "of a host of one grid, from 1: those whose tokens are taken",
        "[1, 10000]",
        rising=True,
    )
    width: int = setting(256, "channels of pyramid and heads", "[1, 65536]")
    norm: Literal["none", "group"] = setting("none", "norm of pyramid and convolutional heads")
    measure: tuple[str, ...] = setting(
        (),
        "fields that are measured on the training boxes; one that is set too is not measured",
        choices=box_sizes.NAMES,
    )
    anchors: tuple[float, ...] | None = setting(
        None,
        "sides of the anchors on the five maps; none: 32, 64, 128, 256, 512",
        "(0, 65536]",
        unit="pixels",
    )
    proposals: int = setting(
        1000, "proposals of an image in evaluation; twice as many in training", COUNT
    )
    regions: int = setting(512, "proposals that the second stage learns from", COUNT)
    detections: int = setting(100, "answers for an image at most, and what AP looks at", COUNT)
    min_score: float = setting(0.05, "lowest score of an answer", CHANCE)
    resize: int | None = setting(
        800, "shorter side in evaluation; none leaves the size", SIDE, unit="pixels"
    )
    longest: int = setting(1333, "longer side at most", SIDE, unit="pixels")
    canvas: tuple[int, int] | None = setting(
        None,
        "height and width in training, multiples of 32; none draws the shortest side",
        "[32, 65536]",
        unit="pixels",
    )
    scale: tuple[float, float] = setting(
        (0.5, 2.0), "random scale on a canvas", "(0, 1000]", rising=True
    )
    shortest: tuple[int, ...] = setting(
        (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800),
        "shorter sides to draw from, without a canvas",
        "[32, 65536]",
        unit="pixels",
    )
    crop_share: float = setting(
        0.5, "share of the images that are cropped before, without a canvas", CHANCE
    )
    hflip: float = setting(0.5, "chance of a horizontal flip", CHANCE)
    vflip: float = setting(0.0, "chance of a vertical flip", CHANCE)
    quarter_turns: bool = setting(default=False, says="random quarter turns of a square canvas")
    photometric: bool = setting(default=False, says="SSD's distortion of colours")
    faults: Literal["stop", "skip", "clip"] = setting(
        "stop",
        "annotations that cannot be used: stop, leave them out, or cut those that reach outside",
    )


@dataclass(frozen=True)
class SegmentationSpec:
    """Semantic segmentation: a class for each pixel.

    The images' changes in training are here; the fields of `augment` are for classification.
    """

    decoder: Literal["upernet", "dpt"] = setting("upernet", "decoder on the host's maps")
    width: int = setting(256, "channels of the decoder", "[1, 65536]")
    layers: tuple[int, ...] | None = setting(
        None,
        "of a host of one grid, from 1: those whose tokens are taken",
        "[1, 10000]",
        rising=True,
    )
    labels: str | None = setting(
        None, "folder of label images; none is labels, or ADE20K's annotations"
    )
    values: Mapping[int | str, str] | None = setting(
        None,
        "names of stored values, as {0: background, 127: cell}; several may share one, void "
        "counts nowhere; none is classes.json",
        "[0, 255]",
    )
    ignore: tuple[str | int, ...] = setting(
        (), "classes by name, or values, that count nowhere and have no output", "[0, 65535]"
    )
    fov: str | None = setting(None, "folder of masks: pixels where they are 0 count nowhere")
    observer: str | None = setting(
        None, "folder of label images by another person, to hold scores against"
    )
    crop: tuple[int, int] | None = setting(
        None,
        "height and width of a random crop in training; none trains on whole images",
        "[32, 65536]",
        unit="pixels",
    )
    crop_share: float = setting(
        1.0, "most of the pixels that one class may have in a crop; ten draws at most", SHARE
    )
    scale: tuple[float, float] = setting(
        (1.0, 1.0), "random scale in training", "(0, 1000]", rising=True
    )
    hflip: float = setting(0.5, "chance of a horizontal flip", CHANCE)
    vflip: float = setting(0.0, "chance of a vertical flip", CHANCE)
    quarter_turns: bool = setting(default=False, says="random quarter turns")
    color_jitter: float | None = setting(
        None, "strength of changes of brightness, contrast and saturation", "[0, 10]"
    )
    photometric: bool = setting(default=False, says="SSD's distortion of colours")
    dice: float = setting(0.0, "weight of the soft Dice loss beside cross-entropy", "[0, inf)")
    class_weights: Literal["none", "balanced"] | Mapping[int | str, float] = setting(
        "none",
        "weights of cross-entropy: by the training pixels, or by name as {cell: 2}, 1 for the "
        "others",
        WEIGHT,
    )


@dataclass(frozen=True)
class DinoSpec:
    """Self-supervision by DINO.

    The crops and colours of its views are here; the fields of `augment` are for classification.
    """

    outputs: int = setting(65536, "outputs of the projection head", "[2, 1000000000]")
    hidden: int = setting(2048, "width inside it", COUNT)
    bottleneck: int = setting(256, "width ahead of its last layer", COUNT)
    norm_last_layer: bool = setting(
        default=True, says="whether the rows of the last layer keep length 1"
    )
    freeze_last_layer: int = setting(
        1, "epochs in which the last layer does not move", SOME, unit="epochs"
    )
    momentum: tuple[float, float] = setting(
        (0.996, 1.0),
        "momentum of the teacher at the first step and the last; a cosine between",
        CHANCE,
    )
    teacher_temp: tuple[float, float] = setting(
        (0.04, 0.07),
        "temperature of the teacher at first and after its warm-up; a line between",
        "(0, 1000]",
    )
    teacher_temp_epochs: int = setting(
        30, "warm-up of the teacher's temperature", SOME, unit="epochs"
    )
    student_temp: float = setting(0.1, "temperature of the student", "(0, 1000]")
    center_momentum: float = setting(0.9, "momentum of the centre", "[0, 1)")
    weight_decay_end: float | None = setting(
        0.4,
        "weight decay at the end, along a cosine from optim.weight_decay; none stays there",
        "(0, inf)",
    )
    local_crops: int = setting(8, "crops beside two global ones of data.image_size", "[0, 1000]")
    local_size: int = setting(96, "side of a local crop", SIDE, unit="pixels")
    reduce: int | None = setting(
        None,
        "short side to which larger images are reduced ahead of the crops, once",
        SIDE,
        unit="pixels",
    )
    global_scale: tuple[float, float] = setting(
        (0.4, 1.0), "share of the area in a global crop", SHARE, rising=True
    )
    local_scale: tuple[float, float] = setting(
        (0.05, 0.4), "share of the area in a local crop", SHARE, rising=True
    )
    hflip: float = setting(0.5, "chance of a horizontal flip", CHANCE)
    vflip: float = setting(0.0, "chance of a vertical flip", CHANCE)
    color_jitter: float = setting(
        0.5, "strength; 0.5 is brightness 0.4, contrast 0.4, saturation 0.2, hue 0.1", "[0, 2.5]"
    )
    grayscale: float = setting(0.2, "chance of a view without colours", CHANCE)
    blur: tuple[float, float, float] = setting(
        (1.0, 0.1, 0.5),
        "chance of a blur for the first, the second global crop and local ones",
        CHANCE,
    )
    blur_sigma: tuple[float, float] = setting(
        (0.1, 2.0), "width of the blur", "(0, 1000]", unit="pixels", rising=True
    )
    solarize: float = setting(0.2, "chance of solarisation for the second global crop", CHANCE)


@dataclass(frozen=True)
class Recipe:
    """One run, complete. `table` lists the images where they lie in no class folders. At most one
    of `multilabel`, `detection`, `segmentation` and `dino` is set; without, the run classifies.
    `quick` is the same run on generated data with a small model and two steps.
    """

    name: str
    summary: str
    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataSpec = field(default_factory=DataSpec)
    table: TableSpec | None = None
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    optim: OptimSpec = field(default_factory=OptimSpec)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    multilabel: MultilabelSpec | None = None
    detection: DetectionSpec | None = None
    segmentation: SegmentationSpec | None = None
    dino: DinoSpec | None = None
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
    grad_checkpointing: bool = setting(
        default=False, says="compute activations twice rather than hold them"
    )

    @property
    def task(self) -> str:
        """The task: the group that is set, or classification.

        Raises:
            UsageError: several groups are set.
        """
        named = [
            name
            for name in ("multilabel", "detection", "segmentation", "dino")
            if getattr(self, name) is not None
        ]
        if len(named) > 1:
            raise UsageError(f"recipe '{self.name}' sets {' and '.join(named)}: a run has one task")
        return named[0] if named else "classification"

    @property
    def effective_lr(self) -> float:
        """The rate at the top of the schedule."""
        scale = self.step_images / self.optim.base_batch if self.optim.base_batch else 1.0
        return self.optim.lr * scale

    @property
    def step_images(self) -> int:
        """Images of a step, over all processes."""
        return self.batch_size * self.accumulate

    def quick(self, folder: str | Path | None = None) -> "Recipe":
        """The same run in seconds: two steps of generated images (written into `folder`, or a
        temporary one) and a small model.
        """
        from softless.training.quick import quick

        return quick(self, Path(folder or tempfile.mkdtemp(prefix="softless-quick-")))

    def with_fields(self, **fields: Any) -> "Recipe":
        """A copy with dotted fields replaced (`optim.lr`), values given as text or typed, in any
        order.

        A group takes a mapping of its fields: `optim={"lr": 1e-3}`. `model.args` is set whole by
        one, cleared by `{}`.

        Raises:
            UsageError: no such field (nearest name offered), a value of another type or out of its
                range.
        """
        user_fields = _flat(fields)
        _refuse_image_size(self, user_fields)
        recipe = self
        for name, value in user_fields.items():
            if name != "model.args" and not name.startswith("model.args."):
                recipe = _replace(recipe, name.split("."), value, name)
        if any(name.startswith("model.") for name in user_fields):
            from softless.training import model_fields

            recipe = replace(
                recipe, model=model_fields.chosen(self.model, recipe.model, user_fields)
            )
            recipe = model_fields.with_depths(recipe, user_fields)
        recipe = _with_length_kept(
            _with_warmup_scaled(recipe, self.schedule, user_fields), user_fields
        )
        return _without_measuring(recipe, user_fields)

    def check(self) -> None:
        """Whether every field has its type, lies in its range and goes with the others
        (`training.rules`): held before any work.

        Raises:
            UsageError: the first that does not.
        """
        for row in walk(self):
            typed(row.value, row.hint, row.name, row.setting)
        rules.check(self)


def _flat(fields: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Dotted names; a mapping for a group stands for its fields."""
    groups = {name for name, hint in typing.get_type_hints(Recipe).items() if group_of(hint)}
    flat: dict[str, Any] = {}
    for name, value in fields.items():
        inner = literal(value) if prefix + name in groups else value
        entries = (
            _flat(inner, f"{name}.")
            if prefix + name in groups and isinstance(inner, Mapping)
            else {name: value}
        )
        for inner_name, inner_value in entries.items():
            if flat.setdefault(prefix + inner_name, inner_value) != inner_value:
                raise UsageError(f"{prefix}{inner_name} is set twice, to different values")
    return flat


# what sets the size of images that are not made square
SIZED = {
    "detection": "detection.resize and detection.longest (evaluation), detection.canvas and "
    "detection.scale (training)",
    "segmentation": "segmentation.scale and segmentation.crop (training); evaluation takes whole "
    "images",
}


def _refuse_image_size(recipe: Recipe, user_fields: Mapping[str, Any]) -> None:
    """Images of boxes and of label images keep their shape, so `data.image_size` would be without
    effect.
    """
    if "data.image_size" in user_fields and recipe.task in SIZED:
        raise UsageError(
            f"data.image_size={clipped(user_fields['data.image_size'])} has no effect in "
            f"{recipe.task}, where images keep their shape: set {SIZED[recipe.task]}"
        )


def _with_length_kept(recipe: Recipe, user_fields: Mapping[str, Any]) -> Recipe:
    """Epochs and batch that are set stay as they are, however few the images (`tasks.lengths`)."""
    floors = {
        "schedule.epochs": "min_steps",
        "batch_size": "min_epoch_steps",
        "accumulate": "min_epoch_steps",
    }
    for name, floor in floors.items():
        if name not in user_fields:
            continue
        if getattr(recipe.schedule, floor) is not None and f"schedule.{floor}" in user_fields:
            raise UsageError(
                f"{name} and schedule.{floor} are both set, and each decides the other: set one "
                "of them"
            )
        off: dict[str, Any] = {floor: None}
        recipe = replace(recipe, schedule=replace(recipe.schedule, **off))
    return recipe


def _without_measuring(recipe: Recipe, user_fields: Mapping[str, Any]) -> Recipe:
    """Fields of detection that are set are not measured on the data."""
    spec = recipe.detection
    if spec is None or "detection.measure" in user_fields:
        return recipe
    measured = tuple(name for name in spec.measure if f"detection.{name}" not in user_fields)
    return (
        recipe
        if measured == spec.measure
        else replace(recipe, detection=replace(spec, measure=measured))
    )


def _with_warmup_scaled(
    recipe: Recipe, own: ScheduleSpec, user_fields: Mapping[str, Any]
) -> Recipe:
    """A run that was made shorter than its warm-up has one in proportion, unless the warm-up was
    set too; it is said.
    """
    spec = recipe.schedule
    if (
        "schedule.epochs" not in user_fields
        or "schedule.warmup_epochs" in user_fields
        or spec.warmup_epochs < spec.epochs
    ):
        return recipe
    scaled = min(round(spec.warmup_epochs * spec.epochs / own.epochs), spec.epochs - 1)
    _log.warning(
        "schedule.epochs=%d is no longer than the recipe's warm-up of %d epochs: "
        "schedule.warmup_epochs=%d, in proportion",
        spec.epochs,
        spec.warmup_epochs,
        scaled,
    )
    return replace(recipe, schedule=replace(spec, warmup_epochs=scaled))


def recipe_from(stored: Mapping[str, Any]) -> Recipe:
    """The recipe that recipe.json holds, whatever stands beside it there.

    Raises:
        UsageError: a field that recipes do not have, or a value of another type.
    """
    names = {entry.name for entry in dataclasses.fields(Recipe)}
    recipe: Recipe = _from_json(
        Recipe, {name: value for name, value in stored.items() if name in names}, ""
    )
    return recipe


def _from_json(kind: Any, content: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    abouts = {
        entry.name: entry.metadata.get(KEY, FieldSetting("")) for entry in dataclasses.fields(kind)
    }
    values = {}
    for name, value in content.items():
        if name not in hints:
            raise no_field(prefix + name, (prefix + field_name for field_name in hints))
        inner = group_of(hints[name])
        if inner is not None and value is not None:
            values[name] = _from_json(inner, value, f"{prefix}{name}.")
        else:
            values[name] = typed(value, hints[name], prefix + name, abouts[name])
    return kind(**values)


def _replace(spec: Any, path: list[str], value: Any, full_name: str) -> Any:
    head, *rest = path
    hints = typing.get_type_hints(type(spec))
    if head not in hints:
        raise no_field(full_name, (row.name for row in walk(Recipe)))
    if rest:
        if getattr(spec, head) is None and head == "table":
            raise UsageError(
                f"'{full_name}' is of a table, and none is given: give --table FILE.csv"
            )
        if getattr(spec, head) is None:
            raise UsageError(
                f"'{full_name}' is a field of {head} recipes, and this one is for {spec.task}"
            )
        return replace(spec, **{head: _replace(getattr(spec, head), rest, value, full_name)})
    if dataclasses.is_dataclass(inner := getattr(spec, head)):
        first = dataclasses.fields(inner)[0].name
        raise UsageError(
            f"'{full_name}' is a group of fields: set one of them, for example "
            f"{full_name}.{first}=…"
        )
    field_setting = next(
        entry.metadata.get(KEY, FieldSetting(""))
        for entry in dataclasses.fields(spec)
        if entry.name == head
    )
    return replace(spec, **{head: typed(value, hints[head], full_name, field_setting)})
