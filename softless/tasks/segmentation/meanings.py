"""What values and colours of label images are called, as a person wrote it down."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from softless.errors import UsageError
from softless.words import ALIKE, NO_TEXT, clipped, is_text, twins_of

FIELD = "segmentation.values"
VOID = "void"  # in the recipe's values: pixels of such a value count nowhere
_COLOUR = re.compile(r"#[0-9a-fA-F]{6}")
_EXAMPLE = f"{FIELD}={{0: background, 127: cell}}"
_RULE = "values are whole numbers from 0 to 255 (or all are colours, as #ff0000), names are texts"


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
    named = meanings(values, wrong.append)
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


def meanings(content: Mapping[Any, Any], wrong: Callable[[str], None]) -> Classes:
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
