"""The files of a run folder, as training wrote them or refused: one reader for training,
evaluation, page and `softless runs`.

best.json holds its own SHA-256. The others, and best.json of older runs, are held to the types and
ranges that are used.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from softless.experiment.epochs import from_one, numbered
from softless.experiment.groups import CLASSIFICATION
from softless.experiment.measures import MEASURES
from softless.experiment.task_fields import GROUPS
from softless.models.records import (
    ANY_NUMBER,
    ARGUMENTS,
    DIGEST,
    NUMBERS,
    SIDES,
    TABLE,
    TEXT,
    TEXTS,
    Rule,
    check,
    is_number,
    parsed,
    read_json,
    read_text,
    texts,
    unsealed,
    whole,
)
from softless.tasks.folders import TASKS

SCORED = frozenset({*MEASURES, "loss", "seen"})
LARGEST_IMAGE = 1 << 14  # pixels of a side
TRULY: Rule = (lambda value: isinstance(value, bool), "true or false")
COUNTS: Rule = (
    lambda value: isinstance(value, list) and all(map(whole(0)[0], value)),
    "a list of whole numbers",
)


def _scored(value: Any) -> bool:
    return isinstance(value, dict) and all(
        value[name] is None or ANY_NUMBER[0](value[name]) for name in SCORED & value.keys()
    )


def _one_of(names: tuple[str, ...]) -> Rule:
    return lambda value: isinstance(value, str) and value in names, f"one of {', '.join(names)}"


def _either(first: Rule, second: Rule) -> Rule:
    return lambda value: first[0](value) or second[0](value), f"{first[1]}, or {second[1]}"


SCORES: Rule = (_scored, "a table of scores")
BEST_RULES: dict[str, Rule] = {
    "task?": _one_of(TASKS),
    "architecture": TEXT,
    "model_args": ARGUMENTS,
    "head?": ARGUMENTS,
    "classes": TEXTS,
    "image_size": _either(whole(1, LARGEST_IMAGE), SIDES),
    "in_chans": whole(1, 1 << 12),
    "crop_pct": (
        lambda value: is_number(value) and 0.05 <= value <= 20,
        "a number from 0.05 to 20",
    ),
    "interpolation": _one_of((
        "nearest",
        "bilinear",
        "bicubic",
        "lanczos",
        "box",
        "hamming",
        "random",
    )),
    "crop_mode?": _one_of(("center", "squash", "border")),
    "mean": NUMBERS,
    "std": (
        lambda value: NUMBERS[0](value) and all(deviation > 0 for deviation in value),
        "a list of numbers above 0",
    ),
    "pixels?": SIDES,
    "range?": (
        lambda value: value is None or (isinstance(value, str) and len(value) < 200),
        "a text or null",
    ),
    "trained_at?": TABLE,
    "operators?": TEXTS,
    "weights_sha256?": DIGEST,
    "epoch?": whole(0),
    "weights?": TEXT,
    "metric?": TEXT,
    "value?": ANY_NUMBER,
    "loss?": ANY_NUMBER,
    "threshold?": ANY_NUMBER,
}
RECIPE_RULES: dict[str, Rule] = {
    "name": TEXT,
    "model": TABLE,
    "data": TABLE,
    "schedule?": TABLE,
    **{f"{task}?": TABLE for task in GROUPS},
    "fitted?": TABLE,
    "machine?": TABLE,
    "amp?": _one_of(("none", "bfloat16", "float16")),
    "batch_size?": whole(1),
    "seed?": whole(0, 1 << 64),
    "metric?": TEXT,
    "summary?": TEXT,
}
RESULT_RULES: dict[str, Rule] = {
    "best_epoch": whole(0),
    "epochs": whole(0),
    "val": SCORES,
    "test?": SCORES,
    "seconds": ANY_NUMBER,
    "images_per_second": ANY_NUMBER,
    "parameters": whole(0, 1 << 60),
    "weights?": TEXT,
    "metric?": TEXT,
    "gained?": ANY_NUMBER,
    "rising?": TRULY,
    "planned?": whole(1),
    "ended_by?": TEXT,
    "extended_from?": COUNTS,
    "left_out?": (
        lambda value: isinstance(value, dict) and all(map(whole(0)[0], value.values())),
        "a table of counts",
    ),
}
INTERVAL: Rule = (lambda value: NUMBERS[0](value) and len(value) == 2, "two numbers")
LINE_RULES: dict[str, Rule] = {
    "val": SCORES,
    "val_ema?": SCORES,
    "train_loss?": ANY_NUMBER,
    "lr?": ANY_NUMBER,
    "seconds?": ANY_NUMBER,
    "images_per_second?": ANY_NUMBER,
    "weights?": _one_of(("raw", "averaged")),
    "kept?": TRULY,
    "start?": TRULY,
}
ACCURACY_RULES: dict[str, Rule] = {
    "metric": TEXT,
    "images": whole(1, 1 << 40),
    "value": ANY_NUMBER,
    "plain": ANY_NUMBER,
    "interval?": INTERVAL,
    "agreement?": ANY_NUMBER,
}
EXPORT_RULES: dict[str, Rule] = {
    "format": TEXT,
    "file": TEXT,
    "ok": TRULY,
    "faults": TEXTS,
    "notes": TEXTS,
    "form": TEXT,
    "why": TEXT,
    "int8": TEXT,
    "tried": (lambda value: isinstance(value, dict) and texts([*value.values()]), "texts by name"),
    "size": SIDES,
    "dynamic?": _one_of(("batch", "size", "both")),
    "pixels": _one_of(("normalised", "uint8")),
    "bytes": whole(0, 1 << 60),
    "parity?": TABLE,
    "measured?": TABLE,
    "transcendentals?": (
        lambda value: isinstance(value, dict) and all(map(whole(0, 1 << 60)[0], value.values())),
        "a table of counts",
    ),
    "weights_sha256": DIGEST,
}
EXPORTS = "exports.jsonl"  # a line for each file that `softless export` made of a run
MEND = "bring it back from a backup, or train the run again"


def read_best(path: Path) -> dict[str, Any]:
    """best.json: how the best epoch's model is built and its images are prepared; the epoch counts
    from 1.

    Raises:
        DataError: missing, damaged, or with values that no run has.
    """
    mend = (
        "bring it back from a backup, or delete result.json and `softless train --resume` "
        "writes it anew"
    )
    content = unsealed(read_json(path, mend=mend), path, mend=mend)
    check(content, BEST_RULES, path, mend=mend)
    for name in ("mean", "std"):
        fits = len(content[name]) in {1, content["in_chans"]}
        check(
            {name: content[name]},
            {name: (lambda _, fits=fits: fits, f"{content['in_chans']} numbers")},  # type: ignore[misc]
            path,
            mend=mend,
        )
    return from_one(content, "epoch")


def task_of(best: Mapping[str, Any]) -> str:
    """The task of a run by its best.json; older runs, which do not say, classify."""
    return str(best.get("task") or CLASSIFICATION)


def read_recipe(path: Path) -> dict[str, Any]:
    """recipe.json, whose fields the recipe itself judges.

    Raises:
        DataError: missing, damaged, or no recipe.
    """
    content: dict[str, Any] = read_json(path, mend=MEND)
    check(content, RECIPE_RULES, path, mend=MEND)
    check(content["model"], {"name": TEXT, "op?": TEXT, "args?": TABLE}, path, mend=MEND)
    check(content["data"], {"source": TEXT, "path?": TEXT}, path, mend=MEND)
    return content


def read_classes(path: Path) -> tuple[str, ...]:
    """classes.json.

    Raises:
        DataError: missing, damaged, or no list of names.
    """
    content = read_json(path, list, mend=MEND)
    check({"the list": content}, {"the list": TEXTS}, path, mend=MEND)
    return tuple(content)


def read_result(path: Path) -> dict[str, Any]:
    """result.json; the best epoch counts from 1.

    Raises:
        DataError: missing, damaged, or no result.
    """
    mend = "delete it, and `softless train --resume` writes it anew"
    content: dict[str, Any] = read_json(path, mend=mend)
    check(content, RESULT_RULES, path, mend=mend)
    check(content.get("test") or {}, {"interval?": INTERVAL, "per_class?": TABLE}, path, mend=mend)
    return from_one(content, "best_epoch")


def read_log(path: Path, count: int | None = None) -> list[dict[str, Any]]:
    """The epochs of log.jsonl, counted from 1, or from 0 where the start was measured; a last line
    that a crash cut short is none.

    Args:
        path: the file.
        count: how many lines are read, where later ones do not count.

    Raises:
        DataError: a line among them is damaged; its number is named.
    """
    lines = read_text(path, mend=MEND).split("\n")[:-1][:count]
    read = [parsed(line, path, number=number, mend=MEND) for number, line in enumerate(lines, 1)]
    for line in read:
        check(line, LINE_RULES, path, mend=MEND)
    return numbered(read)


def read_exports(path: Path) -> list[dict[str, Any]]:
    """exports.jsonl: what was exported of a run; nothing where the file is missing.

    Raises:
        DataError: it is damaged; its line is named.
    """
    if not path.exists():
        return []
    mend = "delete it, and export the run anew"
    lines = [line for line in read_text(path, mend=mend).split("\n") if line]
    read = [parsed(line, path, number=number, mend=mend) for number, line in enumerate(lines, 1)]
    for line in read:
        check(line, EXPORT_RULES, path, mend=mend)
        if line.get("parity") is not None:
            check(line["parity"], {"difference": ANY_NUMBER}, path, mend=mend)
        if line.get("measured") is not None:
            check(line["measured"], ACCURACY_RULES, path, mend=mend)
    return read
