"""about.json of a run, read: the command, when and from which commit, and what the data hold."""

from pathlib import Path
from typing import Any

from softless.errors import DataError
from softless.models.records import SIDES, TABLE, TEXT, Rule, check, read_json, whole

ABOUT = "about.json"  # command, date, commit and what the data hold

COUNTS: Rule = (
    lambda value: isinstance(value, dict) and all(map(whole(0)[0], value.values())),
    "a table of whole numbers",
)
CLASSES: Rule = (
    lambda value: isinstance(value, dict) and all(map(COUNTS[0], value.values())),
    "tables of whole numbers",
)
SIZES: Rule = (
    lambda value: (
        isinstance(value, dict)
        and all(SIDES[0](value.get(name)) for name in ("smallest", "middle", "largest"))
        and whole(1)[0](value.get("of"))
    ),
    "sizes of images",
)
ABOUT_RULES: dict[str, Rule] = {"command": TEXT, "date": TEXT, "commit": TEXT, "data?": TABLE}
DATA_RULES: dict[str, Rule] = {
    "name": TEXT,
    "images": COUNTS,
    "counted": TEXT,
    "classes": CLASSES,
    "sizes?": SIZES,
    "seen?": SIDES,
    "unit?": TEXT,
    "extent?": TEXT,  # in the place of sizes, of samples that have no pixels
}


def read_about(path: Path) -> dict[str, Any]:
    """What about.json says, or nothing where it is missing or another's: it is for people, and no
    number depends on it.
    """
    try:
        content: dict[str, Any] = read_json(path)
        check(content, ABOUT_RULES, path, mend="delete it")
        if content.get("data"):
            check(content["data"], DATA_RULES, path, mend="delete it")
    except DataError:
        return {}
    return content
