"""A recipe: everything that decides how a run trains, frozen and printable.

A recipe names *what* is done; `training/` and `data/` turn it into optimiser, schedule and transforms. Fields are set from the
command line as `--set optim.lr=3e-4`; `with_fields` checks the name and the type.
"""

import dataclasses
import tempfile
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from softless.errors import UsageError, unknown


@dataclass(frozen=True)
class ModelSpec:
    """Which model: a registered name, or a timm host and the operator that replaces its attention."""

    name: str = "sima_deit_tiny_patch16_224"
    op: str | None = None
    args: Mapping[str, Any] = field(default_factory=dict)  # further keyword arguments of softless.create_model
    weights: str | None = None  # a file to start from (fine-tuning); None starts from random weights


@dataclass(frozen=True)
class DataSpec:
    """Which images, and the size and scaling at which the model sees them."""

    source: Literal["digits", "folder", "npz", "coco", "masks"] = "folder"
    path: str | None = None
    image_size: int = 224  # pixels, both sides
    in_chans: int = 3
    mean: tuple[float, ...] | None = None  # per channel, of pixels scaled to 0..1; None: measured on the training split
    std: tuple[float, ...] | None = None
    interpolation: str = "bicubic"
    crop_pct: float = (
        0.875  # evaluation: resize to image_size / crop_pct, then centre crop; 1.0 is the papers' --full_crop
    )
    val_fraction: float = 0.15  # cut from the training split, stratified, where the source has no validation split
    workers: int = 0
    limit: int | None = None  # at most so many training images (trial runs); evaluation splits stay whole
    faults: Literal["stop", "skip", "clip"] = "stop"  # images that cannot be used: an error, or left out with a count


@dataclass(frozen=True)
class AugmentSpec:
    """What happens to a training image and to a batch of them."""

    scale: tuple[float, float] = (0.08, 1.0)  # random resized crop: share of the area
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    hflip: float = 0.5
    vflip: float = 0.0
    affine: tuple[float, float, float] | None = (
        None  # degrees, shift (share of the side), scale change; replaces the random crop
    )
    color_jitter: float | None = 0.4
    auto_augment: str | None = "rand-m9-mstd0.5-inc1"
    interpolation: str = "bicubic"
    reprob: float = 0.25
    remode: str = "pixel"
    recount: int = 1
    mixup: float = 0.8
    cutmix: float = 1.0
    mixup_prob: float = 1.0
    mixup_switch_prob: float = 0.5
    mixup_mode: str = "batch"
    smoothing: float = 0.1
    repeats: int = 1  # repeated augmentation: each image so many times in an epoch of unchanged length


@dataclass(frozen=True)
class OptimSpec:
    """The optimiser. The effective rate is lr * global batch / base_batch."""

    name: str = "adamw"
    lr: float = 5e-4
    base_batch: int | None = 512  # None: lr is the effective rate whatever the batch
    weight_decay: float = 0.05
    eps: float = 1e-8
    betas: tuple[float, float] = (0.9, 0.999)
    clip_grad: float | None = None  # largest global gradient norm
    layer_decay: float | None = None


@dataclass(frozen=True)
class ScheduleSpec:
    """How the rate moves over the epochs."""

    name: str = "cosine"
    epochs: int = 300
    warmup_epochs: int = 5
    warmup_lr: float = 1e-6
    min_lr: float = 1e-5
    cooldown_epochs: int = 0
    decay_epochs: tuple[int, ...] = ()  # of multistep: after these the rate is a tenth


@dataclass(frozen=True)
class SaveSpec:
    """When the whole state is written, beside the end of every epoch; no number of the run depends on it."""

    every_seconds: float | None = 600.0
    every_steps: int | None = None
    keep: int = 2  # checkpoints


@dataclass(frozen=True)
class DivergenceSpec:
    """What happens when a loss or a gradient is not finite; it never reaches optimiser, average, last or best.

    stop ends the run. skip leaves the step out, at most `patience` in a row. rewind goes back to the last checkpoint and leaves that step out
    when it comes again, at most `patience` times without an epoch between.
    """

    policy: Literal["stop", "skip", "rewind"] = "stop"
    patience: int = 3


@dataclass(frozen=True)
class DetectionSpec:
    """Detection, and instance segmentation where the head has masks."""

    head: Literal["maskrcnn", "fasterrcnn", "retinanet"] = "maskrcnn"
    layers: tuple[int, ...] | None = None  # of a host of one grid, from 1: those whose tokens are taken
    width: int = 256  # of pyramid and heads
    norm: Literal["none", "group"] = "none"  # of pyramid and convolutional heads
    anchors: tuple[float, ...] | None = None  # sides in pixels on the five maps; None: 32, 64, 128, 256, 512
    proposals: int = 1000  # of an image after the first stage, in evaluation; twice as many in training
    regions: int = 512  # of them, those that the second stage learns from
    detections: int = 100  # the most that are answered for an image, and that AP looks at
    min_score: float = 0.05
    resize: int | None = 800  # the shorter side in evaluation; None leaves images at their size
    longest: int = 1333  # the longer side at most, in evaluation and in training by shortest side
    canvas: tuple[int, int] | None = None  # height and width in training; None draws the shortest side, as DETR does
    scale: tuple[float, float] = (0.5, 2.0)  # on a canvas: range of the random scale
    shortest: tuple[int, ...] = (480, 512, 544, 576, 608, 640, 672, 704, 736, 768, 800)  # without a canvas
    crop_share: float = 0.5  # of the images that are cropped before, without a canvas
    hflip: float = 0.5
    vflip: float = 0.0
    quarter_turns: bool = False
    photometric: bool = False  # SSD's distortion of colours
    faults: Literal["stop", "skip", "clip"] = (
        "stop"  # annotations that cannot be used: stop, leave them out, or cut those that reach outside
    )


@dataclass(frozen=True)
class SegmentationSpec:
    """Semantic segmentation: a class for each pixel. The images' changes in training are here; the fields of `augment` are for classification."""

    decoder: Literal["upernet", "dpt"] = "upernet"
    width: int = 256  # of the decoder
    layers: tuple[int, ...] | None = None  # of a host of one grid, from 1: those whose tokens are taken
    labels: str | None = None  # the folder of label images; None is `labels`, or ADE20K's `annotations`
    ignore: tuple[
        str | int, ...
    ] = ()  # classes by name, or values, that count nowhere and that the model has no output for
    fov: str | None = None  # a folder of masks: pixels where they are 0 count nowhere
    observer: str | None = None  # a folder of label images by another person: what `bench uses` holds scores against
    crop: tuple[int, int] | None = None  # height and width of a random crop in training; None trains on whole images
    crop_share: float = 1.0  # a crop in which one class has more of the pixels is drawn again, ten times at most
    scale: tuple[float, float] = (1.0, 1.0)  # range of the random scale in training
    hflip: float = 0.5
    vflip: float = 0.0
    quarter_turns: bool = False
    color_jitter: float | None = None  # of brightness, contrast and saturation
    photometric: bool = False  # SSD's distortion of colours
    dice: float = 0.0  # weight of the soft Dice loss beside cross-entropy
    class_weights: Literal["none", "balanced"] = "none"  # of the cross-entropy, by the training split's pixels


@dataclass(frozen=True)
class DinoSpec:
    """Self-supervision by DINO. The crops and colours of its views are here; the fields of `augment` are for classification."""

    outputs: int = 65536  # of the projection head
    hidden: int = 2048  # width inside it
    bottleneck: int = 256  # width ahead of its last layer
    norm_last_layer: bool = True  # whether the rows of the last layer keep length 1
    freeze_last_layer: int = 1  # epochs in which the last layer does not move
    momentum: tuple[float, float] = (0.996, 1.0)  # of the teacher, at the first step and the last; a cosine between
    teacher_temp: tuple[float, float] = (0.04, 0.07)  # at first, and from `teacher_temp_epochs` on; a line between
    teacher_temp_epochs: int = 30
    student_temp: float = 0.1
    center_momentum: float = 0.9
    weight_decay_end: float | None = 0.4  # reached from optim.weight_decay along a cosine; None stays there
    local_crops: int = 8  # beside two global ones of data.image_size
    local_size: int = 96  # pixels
    reduce: int | None = None  # pixels of the short side to which larger images are reduced ahead of the crops, once
    global_scale: tuple[float, float] = (0.4, 1.0)  # share of the image's area
    local_scale: tuple[float, float] = (0.05, 0.4)
    hflip: float = 0.5
    vflip: float = 0.0
    color_jitter: float = 0.5  # strength; 0.5 is brightness 0.4, contrast 0.4, saturation 0.2, hue 0.1
    grayscale: float = 0.2  # chance of a view without colours
    blur: tuple[float, float, float] = (1.0, 0.1, 0.5)  # chance for the first, the second global crop and local ones
    blur_sigma: tuple[float, float] = (0.1, 2.0)  # pixels
    solarize: float = 0.2  # chance for the second global crop


@dataclass(frozen=True)
class Recipe:
    """One run, complete. At most one of `detection`, `segmentation` and `dino` is set; without, the run classifies. `quick` is the same run on generated data with a small model and two steps."""

    name: str
    summary: str
    model: ModelSpec = field(default_factory=ModelSpec)
    data: DataSpec = field(default_factory=DataSpec)
    augment: AugmentSpec = field(default_factory=AugmentSpec)
    optim: OptimSpec = field(default_factory=OptimSpec)
    schedule: ScheduleSpec = field(default_factory=ScheduleSpec)
    detection: DetectionSpec | None = None
    segmentation: SegmentationSpec | None = None
    dino: DinoSpec | None = None
    save: SaveSpec = field(default_factory=SaveSpec)
    divergence: DivergenceSpec = field(default_factory=DivergenceSpec)
    batch_size: int = 1024  # global: over all ranks
    drop_path: float = 0.0
    ema_decay: float | None = None
    ema_evaluate: bool = False  # select and test the averaged weights; otherwise they are only tracked and stored
    class_weights: Literal["none", "balanced"] = "none"
    metric: str = "top1"  # what picks the best epoch on the validation split: a measure of the task (softless.evaluation.MEASURES)
    amp: Literal["none", "bfloat16", "float16"] = "none"
    seed: int = 0
    threads: int = 2
    grad_checkpointing: bool = False

    @property
    def task(self) -> str:
        """The task: the group that is set, or classification."""
        named = [name for name in ("detection", "segmentation", "dino") if getattr(self, name) is not None]
        if len(named) > 1:
            raise UsageError(f"recipe '{self.name}' sets {' and '.join(named)}: a run has one task")
        return named[0] if named else "classification"

    @property
    def effective_lr(self) -> float:
        """The rate at the top of the schedule."""
        scale = self.batch_size / self.optim.base_batch if self.optim.base_batch else 1.0
        return self.optim.lr * scale

    def quick(self, folder: str | Path | None = None) -> "Recipe":
        """The same run in seconds: two steps of generated images (written into `folder`, or a temporary one) and a small model."""
        from softless.training.quick import quick

        return quick(self, Path(folder or tempfile.mkdtemp(prefix="softless-quick-")))

    def with_fields(self, **fields: Any) -> "Recipe":
        """A copy with dotted fields replaced (`optim.lr`), values given as text or typed.

        Raises:
            UsageError: no such field (nearest name offered), or a value of another type.
        """
        recipe = self
        for name, value in fields.items():
            recipe = _replace(recipe, name.split("."), value, name)
        return recipe


def recipe_from(stored: Mapping[str, Any]) -> Recipe:
    """The recipe that recipe.json holds, whatever stands beside it there.

    Raises:
        UsageError: a field that recipes do not have, or a value of another type.
    """
    names = {entry.name for entry in dataclasses.fields(Recipe)}
    recipe: Recipe = _from_json(Recipe, {name: value for name, value in stored.items() if name in names}, "")
    return recipe


def _from_json(kind: Any, content: Mapping[str, Any], prefix: str) -> Any:
    hints = typing.get_type_hints(kind)
    given = {}
    for name, value in content.items():
        if name not in hints:
            raise unknown("field", prefix + name, (prefix + known for known in hints))
        kinds = [hint for hint in (hints[name], *typing.get_args(hints[name])) if dataclasses.is_dataclass(hint)]
        if kinds and value is not None:
            given[name] = _from_json(kinds[0], value, f"{prefix}{name}.")
        else:
            given[name] = value if isinstance(value, Mapping) else _typed(value, hints[name], prefix + name)
    return kind(**given)


def _replace(spec: Any, path: list[str], value: Any, whole: str) -> Any:
    head, *rest = path
    if isinstance(spec, Mapping):  # model.args.depth=4: open keys, the value read as a Python literal where it is one
        return {**spec, head: _replace(spec.get(head, {}), rest, value, whole) if rest else _literal(value)}
    hints = typing.get_type_hints(type(spec))
    if head not in hints:
        prefix = whole[: len(whole) - len(".".join(path))]
        raise unknown("field", whole, (prefix + name for name in hints))
    if rest:
        if getattr(spec, head) is None:
            raise UsageError(f"'{whole}' is a field of {head} recipes, and this one is for {spec.task}")
        return replace(spec, **{head: _replace(getattr(spec, head), rest, value, whole)})
    if dataclasses.is_dataclass(getattr(spec, head)) or isinstance(getattr(spec, head), Mapping):
        raise UsageError(
            f"'{whole}' is a group of fields: set one of them, for example {whole}.{_first_key(spec, head)}=…"
        )
    return replace(spec, **{head: _typed(value, hints[head], whole)})


def _first_key(spec: Any, head: str) -> str:
    inner = getattr(spec, head)
    return next(iter(inner), "depth") if isinstance(inner, Mapping) else dataclasses.fields(inner)[0].name


def _literal(value: Any) -> Any:
    import ast

    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return value


def _typed(value: Any, hint: Any, name: str) -> Any:
    value = _literal(value)
    if isinstance(value, str) and value.lower() in {"none", "null"} and _fits(None, hint):
        return None
    if _fits(value, hint):
        return value
    for convert, kind in ((float, float), (tuple, tuple)):  # 1 for a float field, [1, 2] for a tuple field
        if (
            isinstance(value, int | list)
            and not isinstance(value, bool)
            and _fits(candidate := _convert(convert, value), hint)
        ):
            assert isinstance(candidate, kind)
            return candidate
    raise UsageError(f"{name}={value!r} does not fit: the field takes {_describe(hint)}")


def _convert(convert: Callable[[Any], Any], value: Any) -> Any:
    try:
        return convert(value)
    except TypeError:
        return value


def _fits(value: Any, hint: Any) -> bool:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in {types.UnionType, typing.Union}:
        return any(_fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is tuple:
        items = args[:1] * len(value) if isinstance(value, tuple) and args[-1:] == (...,) else args
        return (
            isinstance(value, tuple)
            and len(value) == len(items)
            and all(_fits(v, a) or (a is float and _fits(v, int)) for v, a in zip(value, items, strict=True))
        )
    if hint is type(None):
        return value is None
    return isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)


def _describe(hint: Any) -> str:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in {types.UnionType, typing.Union}:
        return " or ".join(_describe(arg) for arg in args)
    if origin is Literal:
        return " or ".join(repr(arg) for arg in args)
    if origin is tuple:
        return "(" + ", ".join("…" if arg is ... else _describe(arg) for arg in args) + ")"
    return {type(None): "none", str: "a text", int: "a whole number", float: "a number", bool: "true or false"}.get(
        hint, str(hint)
    )
