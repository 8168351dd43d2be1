"""What the values of label images are called: as the recipe says (`segmentation.values`), as
classes.json says, or as two values say themselves.
"""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from softless.data.findings import NO_TEXT, Gathering
from softless.data.places import ALIKE, twins_of
from softless.errors import UsageError, unknown
from softless.words import clipped, is_text

CLASSES, ADE20K_NAMES = "classes.json", "objectInfo150.txt"
FIELD = "segmentation.values"
ADE20K_CLASSES = 150
TWO = ("background", "object")  # what masks of two values hold where nothing says more
VOID = "void"  # in the recipe's values: pixels of such a value count nowhere
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_EXAMPLE = f"{FIELD}={{0: background, 127: cell}}"

Occurring = Callable[..., set[int]]  # (limit, expected) -> values that the label images hold


class Classes(NamedTuple):
    """What values are called, what is said of how that was found, and the value of each colour
    where colours stand for values.
    """

    names: Mapping[int, str]
    remark: str = ""
    colours: Mapping[int, int] | None = None


def checked_values(values: Mapping[Any, Any]) -> Classes:
    """The recipe's values and colours; several may share a name.

    Args:
        values: a whole number in 0..255, or a colour "#ff0000", to the name of its class; json's
            texts stand for numbers too.

    Raises:
        UsageError: an entry that is none, values beside colours, or fewer than two classes.
    """
    wrong: list[str] = []
    named = _meanings(values, wrong.append)
    for name, twin in twins_of(dict.fromkeys(named.names.values())).items():
        wrong.append(f"the classes '{twin}' and '{name}' {ALIKE}")
    if wrong:
        raise UsageError(f"{FIELD}: {wrong[0]}; for example {_EXAMPLE}")
    classes = dict.fromkeys(name for name in named.names.values() if name != VOID)
    if len(classes) < 2:
        raise UsageError(
            f"{FIELD} names {len(classes)} class{'' if len(classes) == 1 else 'es'} beside "
            f"{VOID}, and it takes two; "
            f"for example {_EXAMPLE}"
        )
    shared = {
        name: [value for value, class_name in named.names.items() if class_name == name]
        for name in classes
    }
    texts = [
        f"{', '.join(_shown(named, value) for value in members)} as {name}"
        for name, members in shared.items()
    ]
    void = [_shown(named, value) for value, name in named.names.items() if name == VOID]
    texts += [f"{', '.join(void)} counting nowhere"] if void else []
    return named._replace(remark=f"{FIELD}: the label images hold {'; '.join(texts)}")


def _shown(classes: Classes, value: int) -> str:
    by_value = {stored_value: colour for colour, stored_value in (classes.colours or {}).items()}
    return f"#{by_value[value]:06x}" if value in by_value else str(value)


def stored_names(file: Path, occurring: Occurring, findings: Gathering) -> Classes:
    """What classes.json says; masks of two values need none, and one that names two others names
    them.

    Args:
        file: classes.json, which may not be there.
        occurring: reads the values that the label images hold.
        findings: takes faults.
    """
    if not file.exists():
        values = occurring(limit=2)
        if len(values) == 2:
            low, high = sorted(values)
            remark = f"no {CLASSES}: masks of two values, {low} as {TWO[0]} and {high} as {TWO[1]}"
            return Classes({low: TWO[0], high: TWO[1]}, remark)
        examples = (
            f"; the first label images hold {', '.join(map(str, sorted(values)))}" if values else ""
        )
        findings.fault(
            file,
            "classes",
            f'no such file; it says what the values mean: {{"0": "background", "1": "vessel"}}, '
            f"and so does {FIELD}{examples}",
        )
        return Classes({})
    stored = _stored(file, findings)
    names = stored.names
    if len(names) == 2 and stored.colours is None:
        values = occurring(limit=2, expected=set(names))
        if len(values) == 2 and values != set(names):
            pairs = dict(zip(sorted(values), (names[key] for key in sorted(names)), strict=True))
            renaming = " and ".join(f"{value} as {name}" for value, name in pairs.items())
            return Classes(
                pairs,
                f"the label images hold two values, and {CLASSES} names two others: {renaming}",
            )
    return stored


def _stored(file: Path, findings: Gathering) -> Classes:
    """classes.json: an object from value to name, a list of names, or an object from colour to
    name, {"#000000": "ground", "#ff0000": "water"}.
    """
    try:
        # some tools begin with a byte-order mark
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError, RecursionError) as error:
        findings.fault(file, "classes", f"it is no complete JSON: {error}")
        return Classes({})
    content = dict(enumerate(content)) if isinstance(content, list) else content
    if not isinstance(content, dict) or not content:
        findings.fault(
            file, "classes", f"it holds {content!r:.40}; it is an object from value to name"
        )
        return Classes({})
    read = _meanings(content, lambda reason: findings.fault(file, "classes", reason))
    names: dict[int, str] = {}
    for value, name in read.names.items():
        if name in names.values():
            findings.fault(
                file,
                "classes",
                f"the name '{name}' is given twice; {FIELD} of the recipe may give several values "
                "one name",
            )
        else:
            names[value] = name
    for name, twin in twins_of(names.values()).items():
        findings.fault(file, "classes", f"the classes '{twin}' and '{name}' {ALIKE}")
    return read._replace(names=names)


def _meanings(content: Mapping[Any, Any], wrong: Callable[[str], None]) -> Classes:
    """Value, or colour, to name; `wrong` is told of entries that are none.

    Colours stand for values in their order.
    """
    colours = None
    if content and all(_COLOUR.fullmatch(str(key)) for key in content):
        colours = {int(str(key).removeprefix("#"), 16): index for index, key in enumerate(content)}
        content = dict(enumerate(content.values()))
    names: dict[int, str] = {}
    for key, name in content.items():
        digits = str(key)
        if (
            isinstance(key, bool)
            or not (digits.isascii() and digits.isdigit())
            or len(digits) > 9
            or int(digits) > 255
            or not isinstance(name, str)
            or not name
        ):
            wrong(f"the entry {clipped(repr(key))}: {clipped(repr(name))} is none; {_RULE}")
        elif not is_text(name):
            wrong(f"the entry {key!r} has {NO_TEXT}")
        elif int(digits) in names:
            wrong(f"the value {int(digits)} is named twice")
        else:
            names[int(digits)] = name
    return Classes(names, colours=colours)


_RULE = "values are whole numbers from 0 to 255 (or all are colours, as #ff0000), names are texts"


def ade20k_names(root: Path) -> dict[int, str]:
    """The 150 classes of ADE20K, and the value 0."""
    file = root / ADE20K_NAMES
    names = {value: str(value) for value in range(1, ADE20K_CLASSES + 1)}
    if file.is_file():
        rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()[1:]]
        names |= {
            int(row[0]): row[-1].strip().split(",")[0] for row in rows if row[0].strip().isdigit()
        }
    return {0: "other", **names}


def values_of(ignored: str | int, names: Mapping[int, str]) -> set[int]:
    """The values that a class to ignore has, by its name or as one of them.

    Raises:
        UsageError: no class of that name, or no value of a label image.
    """
    if isinstance(ignored, str):
        values = {value for value, name in names.items() if name == ignored}
        if not values:
            raise unknown("class to ignore", ignored, dict.fromkeys(names.values()))
        return values
    if not 0 <= ignored <= 255:
        raise UsageError(f"segmentation.ignore={ignored}: values of label images lie in 0..255")
    return {ignored}
