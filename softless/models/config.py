"""config.json of a published folder: what rebuilds the model and how its images are prepared, in
the keys that timm's `local-dir:` reads.

A file of someone else's can name a registered model, an operator and numbers; nothing in it names a
module, a path or an address.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from softless.attention.registry import OPERATORS
from softless.errors import DataError, UsageError
from softless.models.construction import Construction
from softless.models.variants import ENTRIES, VARIANTS

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
})
PREPARATION = frozenset({
    "input_size",
    "mean",
    "std",
    "crop_pct",
    "crop_mode",
    "interpolation",
    "range",
})
ABOUT = (PREPARATION - {"range"}) | {
    "num_classes",
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
# in timm's notes, the only place where it takes what it does not know
NOTE = re.compile(r"data\.range=([0-9a-zA-Z.,=+ -]{1,100})")
WORD = re.compile(r"[A-Za-z0-9_]+([.-][A-Za-z0-9_]+)*")


@dataclass(frozen=True)
class Config:
    """A config.json: the model and how its images are prepared."""

    built: Construction
    about: Mapping[str, Any]  # the part of timm's pretrained_cfg that says no place of weights


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


def describe(model: nn.Module, data: Mapping[str, Any] | None) -> dict[str, Any]:
    """The content of config.json for a model of `create_model`.

    Raises:
        UsageError: a model from elsewhere, an argument that a file cannot say, or preparation that
            is not known or does not fit.
    """
    built = getattr(model, "construction", None)
    if not isinstance(built, Construction):
        raise UsageError(
            f"this {type(model).__name__} does not tell how it was built: make it with "
            "softless.create_model(host, op=...) or from "
            "a registered name, and load its weights into that"
        )
    classes = int(getattr(model, "num_classes", 0))
    # of training
    arguments = {
        name: value for name, value in built.arguments.items() if not name.endswith("_rate")
    }
    arguments = {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in arguments.items()
    }
    arguments["num_classes"] = classes
    for name, value in arguments.items():
        if problem := _problem(name, value, _arguments()):
            raise UsageError(f"cannot say {name}={value!r} in a config.json: {problem}")
    preparation = _about(model, arguments, data)
    name = registered(built)
    content = {
        "architecture": name
        # one that timm refuses: it would build the host's own attention
        or f"{built.op}_{built.name}",
        "num_classes": classes,
        "num_features": int(getattr(model, "num_features", 0)),
        "model_args": arguments,
        "pretrained_cfg": preparation,
    }
    return content if name else {**content, "softless": {"host": built.name, "op": built.op}}


def _about(
    model: nn.Module, arguments: Mapping[str, Any], data: Mapping[str, Any] | None
) -> dict[str, Any]:
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
    channels = arguments.get("in_chans", 3)
    side = arguments.get("img_size", configuration["input_size"][1:])
    configuration["input_size"] = (channels, *([side, side] if isinstance(side, int) else side))
    notes = noted(stated.pop("range") if "range" in stated else declared(configuration))
    configuration |= {**stated, "num_classes": arguments["num_classes"], "notes": notes}
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


def noted(declared_range: str | None) -> list[str]:
    """The notes of a pretrained_cfg for images of a declared range of values."""
    return [] if declared_range is None else [f"data.range={declared_range}"]


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
        (content.get("softless", {}), {"host", "op"}),
    ):
        for name, value in table.items():
            if problem := _problem(name, value, names):
                raise DataError(f"{path} has {name!r:.60}, which is not read: {problem}")
    build = content.get("softless", {})
    name, op = (
        (build.get("host"), build.get("op")) if build else (content.get("architecture"), None)
    )
    if not isinstance(name, str) or (build and op not in OPERATORS):
        raise DataError(f"{path} names no model: architecture, or host and op under softless")
    return Config(
        Construction(name, op, content.get("model_args", {})), content.get("pretrained_cfg", {})
    )


def _arguments() -> frozenset[str]:
    """What a model is built with: the hosts' arguments, and the options of every operator."""
    return ARGUMENTS.union(*(op.options for op in OPERATORS.values()))


def _problem(name: str, value: Any, names: frozenset[str] | set[str]) -> str:
    """Why an entry is not taken, or nothing: names come from a list; values are numbers, plain
    words and short lists of them.
    """
    if name not in names:
        return f"known are {', '.join(sorted(names))}"
    if name == "notes":
        notes = value if isinstance(value, list) and len(value) <= 16 else [None]
        fits = all(isinstance(note, str) and NOTE.fullmatch(note) for note in notes)
        return "" if fits else "notes say data.range alone"
    if not all(
        _plain(element)
        for element in (value if isinstance(value, list) and len(value) <= 16 else [value])
    ):
        return "values are numbers, names and short lists of them"
    return ""


def _plain(value: Any) -> bool:
    if isinstance(value, str):
        return len(value) <= 100 and WORD.fullmatch(value) is not None
    if isinstance(value, int | float):
        return math.isfinite(value) and abs(value) <= LARGEST
    return value is None
