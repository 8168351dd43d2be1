"""config.json of a published folder: what rebuilds the model and how its images are prepared, in
the keys that timm's `local-dir:` reads.

A file of someone else's can name a registered model, its layers and classes, an operator and
numbers; nothing in it names a module of Python, a file or an address.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from softless.attention.registry import OPERATORS
from softless.errors import DataError, UsageError
from softless.models.bag import BagModel
from softless.models.construction import Construction
from softless.models.exchanges import Exchange
from softless.models.variants import ENTRIES, VARIANTS
from softless.words import clipped

LARGEST = 1 << 20  # bytes of the file, and of a number in it
ARGUMENTS = frozenset({
    "img_size",
    "in_chans",
    "num_classes",
    "global_pool",
    "patch_size",
    "embed_dim",
    "embed_dims",
    "depth",
    "depths",
    "num_heads",
    "mlp_ratio",
    "qkv_bias",
    "qk_norm",
    "init_values",
    "class_token",
    "no_embed_class",
    "reg_tokens",
    "pos_embed",
    "pre_norm",
    "final_norm",
    "fc_norm",
    "dynamic_img_size",
    "dynamic_img_pad",
    "eta",
    "tokens_norm",
    "cls_attn_layers",
    "use_pos_embed",
    "last_stage",
    "act",
    "v_conv",
    "v_conv_filters",
    "gated",
    "rotary",
    "lpi",
    # of models of bags
    "in_dim",
    "width",
    "pool",
    "position",
    "chunk",
})
PREPARATION = frozenset({
    "input_size",
    "mean",
    "std",
    "crop_pct",
    "crop_mode",
    "interpolation",
    "range",
    "task",
})
ABOUT = (PREPARATION - {"range", "task"}) | {
    "num_classes",
    "label_names",
    "first_conv",
    "classifier",
    "fixed_input_size",
    "license",
    "notes",
}
KEYS = frozenset({
    "architecture",
    "num_classes",
    "num_features",
    "model_args",
    "pretrained_cfg",
    "softless",
})
OURS = frozenset({"host", "op", "swaps"})
SWAP = frozenset({"op", "options", "layers", "force"})
MOST_SWAPS, MOST_LAYERS = 16, 1024
LONGEST = 255  # characters of the name of a class
# in timm's notes, the only place where it takes what it does not know
NOTE = re.compile(r"data\.range=([0-9a-zA-Z.,=+ -]{1,100})")
VALUES = "values are numbers, names and short lists of them"
SEVERAL = "task=multilabel"
WORD = re.compile(r"[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*")


@dataclass(frozen=True)
class Config:
    """A config.json: the model and how its images are prepared."""

    built: Construction
    about: Mapping[str, Any]  # the part of timm's pretrained_cfg that says no place of weights
    swaps: tuple[Exchange, ...] = ()  # what `swap` did afterwards, in order


def registered(built: Construction) -> str | None:
    """The name under which timm builds this model, if it has one."""
    if built.op is None or (built.name in ENTRIES and ENTRIES[built.name].op == built.op):
        return built.name
    return next(
        (
            row.entry(built.op)
            for row in VARIANTS
            if row.name == built.name and built.op in row.operators
        ),
        None,
    )


def describe(
    model: nn.Module,
    built: Construction,
    swaps: Sequence[Exchange],
    data: Mapping[str, Any] | None,
    classes: Sequence[str] | None,
) -> dict[str, Any]:
    """The content of config.json.

    Args:
        model: the model, which says its classes and preparation.
        built: how it was made.
        swaps: what was exchanged in it afterwards.
        data: preparation in place of the model's own.
        classes: names in the order of the logits.

    Raises:
        UsageError: an argument that a file cannot say, preparation that is not known or does not
            fit, or class names that are not those of the logits.
    """
    number = int(getattr(model, "num_classes", 0))
    # of training
    arguments = {
        name: value for name, value in built.arguments.items() if not name.endswith("_rate")
    }
    arguments = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in arguments.items()
    }
    arguments["num_classes"] = number
    options = [
        (f"{swap.op}'s {name}", value) for swap in swaps for name, value in swap.options.items()
    ]
    for name, value in arguments.items():
        if problem := _problem(name, value, _arguments()):
            raise UsageError(f"cannot say {name}={value!r} in a config.json: {problem}")
    for title, value in options:
        if not _plain(value):
            raise UsageError(
                f"cannot say {title}={clipped(' '.join(repr(value).split()))} in a config.json: "
                f"{VALUES}"
            )
    preparation = _about(model, arguments, data)
    if classes is not None:
        if wrong := _wrong_names(names := list(classes), number):
            raise UsageError(f"classes={names!r:.60}: {wrong}")
        preparation["label_names"] = names
    name = None if swaps else registered(built)
    content: dict[str, Any] = {
        "architecture": name
        # one that timm refuses: it would build the host's own attention
        or f"{'swapped' if swaps else built.op}_{built.name}",
        "num_classes": number,
        "num_features": int(getattr(model, "num_features", 0)),
        "model_args": arguments,
        "pretrained_cfg": preparation,
    }
    if not name:
        content["softless"] = {"host": built.name, "op": built.op}
    if swaps:
        content["softless"]["swaps"] = [asdict(swap) for swap in swaps]
    if len(text := as_text(content)) > LARGEST:
        raise UsageError(
            f"cannot say this model in a config.json: it would have {len(text):,} characters, and "
            f"at most {LARGEST:,} are read; leave classes= out"
        )
    return content


def as_text(content: Mapping[str, Any]) -> str:
    """What is written into config.json."""
    return json.dumps(content, indent=1) + "\n"


def _about(
    model: nn.Module, arguments: Mapping[str, Any], data: Mapping[str, Any] | None
) -> dict[str, Any]:
    if isinstance(model, BagModel):
        return _about_bags(model, data)
    stated = dict(data or {})
    if unknown := stated.keys() - PREPARATION:
        raise UsageError(
            f"data has no {', '.join(sorted(unknown))}; it has: {', '.join(sorted(PREPARATION))}"
        )
    configuration = {
        name: value
        for name, value in getattr(model, "pretrained_cfg", {}).items()
        if value is not None
    }
    if (task := stated.pop("task", None)) not in {None, "classification", "multilabel"}:
        raise UsageError(
            f"task={task!r:.60}: an image has one label (classification) or several (multilabel)"
        )
    channels = arguments.get("in_chans", 3)
    side = arguments.get("img_size", configuration["input_size"][1:])
    configuration["input_size"] = (channels, *([side, side] if isinstance(side, int) else side))
    notes = noted(
        stated.pop("range") if "range" in stated else declared(configuration),
        several=several_labels(configuration) if task is None else task == "multilabel",
    )
    configuration |= {**stated, "num_classes": arguments["num_classes"], "notes": notes}
    if label_names(model) == ():
        configuration.pop("label_names", None)
    preparation = {
        name: list(configuration[name])
        if isinstance(configuration[name], tuple)
        else configuration[name]
        for name in sorted(ABOUT & configuration.keys())
        if name != "notes" or notes
    }
    for name in ("mean", "std"):
        if len(preparation[name]) != channels:
            raise UsageError(
                f"the model takes {channels} channels and its {name} has {len(preparation[name])} "
                f"numbers: pass data={{'mean': ..., 'std': ...}}"
            )
    for name, value in preparation.items():
        if problem := _problem(name, value, ABOUT):
            raise UsageError(f"cannot say {name}={value!r} in a config.json: {problem}")
    return preparation


def _about_bags(model: BagModel, data: Mapping[str, Any] | None) -> dict[str, Any]:
    """Of a model of bags: features are taken as they are, and data may say that a bag has several
    labels.
    """
    if data and data not in ({"task": "classification"}, {"task": "multilabel"}):
        raise UsageError(
            "data= says how images are prepared, and a model of bags takes features as they are: "
            "leave it out, or give {'task': 'multilabel'}"
        )
    stored = getattr(model, "pretrained_cfg", None) or {}
    several = data == {"task": "multilabel"} if data else several_labels(stored)
    names, notes = [*label_names(model)], noted(None, several=several)
    return {
        "num_classes": model.num_classes,
        **({"label_names": names} if names else {}),
        **({"notes": notes} if notes else {}),
    }


def label_names(model: Any) -> tuple[str, ...]:
    """The names of a model's classes in the order of its logits, which its pretrained_cfg holds; ()
    where nobody said them, or they are of other logits.
    """
    names = list((getattr(model, "pretrained_cfg", None) or {}).get("label_names") or ())
    return () if _wrong_names(names, getattr(model, "num_classes", None)) else tuple(names)


def noted(declared_range: str | None, *, several: bool = False) -> list[str]:
    """The notes of a pretrained_cfg for images of a declared range of values, and for a model that
    gives an image several labels.
    """
    return [
        *([] if declared_range is None else [f"data.range={declared_range}"]),
        *([SEVERAL] if several else []),
    ]


def several_labels(preparation: Mapping[str, Any]) -> bool:
    """Whether a pretrained_cfg notes that an image has several labels."""
    return SEVERAL in (preparation.get("notes") or ())


def declared(preparation: Mapping[str, Any]) -> str | None:
    """The declared range that a pretrained_cfg notes."""
    matches = (
        NOTE.fullmatch(note) for note in preparation.get("notes") or () if isinstance(note, str)
    )
    return next((match[1] for match in matches if match), None)


def read(path: Path) -> Config:
    """A config.json, of which every key and every type is known.

    Raises:
        DataError: damaged, or with anything else in it.
    """
    try:
        content = (
            json.loads(path.read_text(encoding="utf-8")) if path.stat().st_size <= LARGEST else None
        )
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"cannot read {path}: {error}") from error
    tables = ("model_args", "pretrained_cfg", "softless")
    if not isinstance(content, dict) or not all(
        isinstance(content.get(name, {}), dict) for name in tables
    ):
        raise DataError(
            f"{path} is not a model's: model_args, pretrained_cfg and softless are tables"
        )
    alone = {name: value for name, value in content.items() if name not in tables}
    for table, names in (
        (alone, KEYS),
        (content.get("model_args", {}), _arguments()),
        (content.get("pretrained_cfg", {}), ABOUT),
        (_alone(content.get("softless", {})), OURS),
    ):
        for name, value in table.items():
            if problem := _problem(name, value, names):
                raise DataError(f"{path} has {name!r:.60}, which is not read: {problem}")
    about, number = content.get("pretrained_cfg", {}), _number(content)
    if "label_names" in about and (wrong := _wrong_names(about["label_names"], number)):
        raise DataError(f"{path} has label_names that are not read: {wrong}")
    build = content.get("softless", {})
    swaps = _swaps(build.get("swaps"), path)
    name, op = (
        (build.get("host"), build.get("op")) if build else (content.get("architecture"), None)
    )
    if not isinstance(name, str) or (build and op is None and not swaps):
        raise DataError(f"{path} names no model: architecture, or host and op under softless")
    if op is not None:
        _check_operator(op, path)
    return Config(Construction(name, op, content.get("model_args", {})), about, swaps)


def _alone(build: Mapping[str, Any]) -> dict[str, Any]:
    """Our table without its list of swaps, which `_swaps` reads."""
    return {name: value for name, value in build.items() if name != "swaps"}


def _number(content: Mapping[str, Any]) -> Any:
    """How many classes a config.json says, where it does."""
    tables = (content.get("model_args", {}), content, content.get("pretrained_cfg", {}))
    return next((table["num_classes"] for table in tables if "num_classes" in table), None)


def _swaps(content: Any, path: Path) -> tuple[Exchange, ...]:
    """The swaps of a config.json, of which every entry is known.

    Raises:
        DataError: anything else.
    """
    if content is None:
        return ()
    if not isinstance(content, list) or not 1 <= len(content) <= MOST_SWAPS:
        raise DataError(f"{path} has swaps that are not read: they are 1 to {MOST_SWAPS} tables")
    return tuple(_swap(entry, path) for entry in content)


def _swap(content: Any, path: Path) -> Exchange:
    if not isinstance(content, dict) or content.keys() != SWAP:
        raise DataError(
            f"{path} has a swap that is not read: it is a table of {', '.join(sorted(SWAP))}"
        )
    op, options = content["op"], content["options"]
    _check_operator(op, path)
    if not isinstance(options, dict):
        raise DataError(f"{path} has a swap that is not read: its options are a table")
    for name, value in options.items():
        if problem := _problem(name, value, set(OPERATORS[op].options)):
            raise DataError(f"{path} has {name!r:.60}, which is not read: {problem}")
    layers, force = content["layers"], content["force"]
    for paths in (layers, force):
        if not isinstance(paths, list) or len(paths) > MOST_LAYERS or not all(map(_word, paths)):
            raise DataError(
                f"{path} has a swap that is not read: layers and force are lists of the paths of "
                "attention modules, as blocks.0.attn"
            )
    if not layers or len({*layers}) < len(layers) or not {*force} <= {*layers}:
        raise DataError(
            f"{path} has a swap that is not read: its layers are some paths, each once, and force "
            "names some of them"
        )
    return Exchange(op, options, tuple(layers), tuple(force))


def _check_operator(op: Any, path: Path) -> None:
    """Whether an operator is known.

    Raises:
        DataError: it is not.
    """
    if not isinstance(op, str) or op not in OPERATORS:
        raise DataError(
            f"{path} names the operator {op!r:.60}, which is not registered here: import the "
            "module that calls softless.register first, or install its package"
        )


def _wrong_names(names: Any, number: Any) -> str:
    """Why these are not the names of so many classes, or nothing."""
    if not isinstance(names, list) or not all(
        isinstance(name, str) and 0 < len(name) <= LONGEST for name in names
    ):
        return f"the names of classes are texts of 1 to {LONGEST} characters"
    if len({*names}) < len(names):
        return "a name is there twice"
    if len(names) != number:
        return f"{len(names)} names, and the model has {number} classes"
    return ""


def _arguments() -> frozenset[str]:
    """What a model is built with: the hosts' arguments, and the options of every operator."""
    return ARGUMENTS.union(*(op.options for op in OPERATORS.values()))


def _problem(name: str, value: Any, names: frozenset[str] | set[str]) -> str:
    """Why an entry is not taken, or nothing: names come from a list; values are numbers, plain
    words and short lists of them.
    """
    if name not in names:
        return f"known are {', '.join(sorted(names))}"
    if name == "label_names":
        return ""  # `_wrong_names` judges them
    if name == "notes":
        notes = value if isinstance(value, list) and len(value) <= 16 else [None]
        fits = all(
            isinstance(note, str) and (note == SEVERAL or NOTE.fullmatch(note)) for note in notes
        )
        return "" if fits else f"notes say data.range, or {SEVERAL}"
    if not all(
        _plain(element)
        for element in (value if isinstance(value, list) and len(value) <= 16 else [value])
    ):
        return VALUES
    return ""


def _word(value: Any) -> bool:
    return isinstance(value, str) and len(value) <= 100 and WORD.fullmatch(value) is not None


def _plain(value: Any) -> bool:
    if isinstance(value, str):
        return _word(value)
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) <= LARGEST
    return value is None
