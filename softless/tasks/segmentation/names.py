"""What the values of label images are called: as the recipe says (`segmentation.values`), as
classes.json says, or as two values say themselves.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

from softless.data.findings import Gathering
from softless.errors import UsageError, unknown
from softless.tasks.segmentation.meanings import FIELD, Classes, meanings
from softless.words import ALIKE, twins_of

CLASSES, ADE20K_NAMES = "classes.json", "objectInfo150.txt"
ADE20K_CLASSES = 150
TWO = ("background", "object")  # what masks of two values hold where nothing says more

Occurring = Callable[..., set[int]]  # (limit, expected) -> values that the label images hold


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
    read = meanings(content, lambda reason: findings.fault(file, "classes", reason))
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
