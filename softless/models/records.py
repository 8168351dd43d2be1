"""The small files of a run or a model (JSON), read in one way: no pipe, nothing large, nothing
deep, and with the types that are used.

What is wrong is a `DataError` that names the file, what is wrong in it, and the way out. A file may
be somebody else's.
"""

import hashlib
import json
import math
import stat
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from softless.errors import DataError

LARGEST = 64 << 20  # bytes of such a file
DEEPEST = 32  # lists and tables in one another
WIDEST = 1 << 20  # the largest whole number that sizes something
SEAL = "sha256"  # the entry that holds the digest of all others
MEND = "bring it back from a backup"

Rule = tuple[Callable[[Any], bool], str]  # whether a value will do, and what it should be


def read_json(path: Path, kind: type = dict, *, largest: int = LARGEST, mend: str = MEND) -> Any:
    """The content of a JSON file: a table, or a list where `kind` says so.

    Raises:
        DataError: there is none, it cannot be read, or it is not such JSON.
    """
    return parsed(read_text(path, largest=largest, mend=mend), path, kind, mend=mend)


def read_text(path: Path, *, largest: int = LARGEST, mend: str = MEND) -> str:
    """A text in UTF-8.

    Raises:
        DataError: there is none, it is no file, too large, or not UTF-8.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{path} is no file: {mend}")
        if status.st_size > largest:
            raise DataError(
                f"{path} has {status.st_size} bytes, and at most {largest} are read: {mend}"
            )
        return path.read_bytes().decode()
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}; {mend}") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is damaged: it is not UTF-8 at byte {error.start}; {mend}"
        ) from error


def parsed(
    text: str, path: Path, kind: type = dict, *, number: int | None = None, mend: str = MEND
) -> Any:
    """One piece of JSON of the file at `path`, of line `number` where it has lines.

    Raises:
        DataError: it is not JSON of this kind, or too deep.
    """
    damage = f"{path} is damaged" if number is None else f"line {number} of {path} is damaged"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "it is empty" if not text.strip("\0 \n") else first_sentence(error)
        raise DataError(f"{damage}: {reason}; {mend}") from error
    if not isinstance(content, kind):
        raise DataError(
            f"{damage}: it holds {_called(content)} in place of {_called(kind())}; {mend}"
        )
    if text.count("[") + text.count("{") > DEEPEST and too_deep(content):
        raise DataError(f"{damage}: it nests more than {DEEPEST} lists and tables; {mend}")
    return content


def first_sentence(error: BaseException) -> str:
    """Why it is not JSON."""
    if isinstance(error, RecursionError):
        return f"it nests more than {DEEPEST} lists and tables"
    return f"it is not JSON ({str(error).splitlines()[0][:100]})"


def too_deep(content: Any) -> bool:
    """Whether lists and tables lie in one another beyond the limit."""
    layer = [content]
    for _ in range(DEEPEST):
        layer = [
            inner
            for child in layer
            if isinstance(child, dict | list)
            for inner in (child.values() if isinstance(child, dict) else child)
        ]
        if not layer:
            return False
    return any(isinstance(child, dict | list) for child in layer)


def check(
    content: Mapping[str, Any], rules: Mapping[str, Rule], path: Path, *, mend: str = MEND
) -> None:
    """Hold a table to rules; an entry whose name ends in `?` may be missing or null.

    Raises:
        DataError: the first entry that is missing or not what it should be.
    """
    for name, (fits, should) in rules.items():
        key = name.removesuffix("?")
        value = content.get(key)
        if value is None and name.endswith("?"):
            continue
        if key not in content:
            raise DataError(f"{path} is damaged: the entry {key} is missing; {mend}")
        if not fits(value):
            raise DataError(
                f"{path} is damaged: {key} is {shown(value)} and should be {should}; {mend}"
            )


def shown(value: Any) -> str:
    """A value in a sentence, cut where it is long."""
    try:
        text = json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        text = type(value).__name__
    return text if len(text) <= 60 else f"{text[:60]}…"


def sealed(content: Mapping[str, Any], key: str = SEAL) -> dict[str, Any]:
    """The content as it reads back from JSON, with a digest of all of it."""
    sealed_content: dict[str, Any] = json.loads(json.dumps(dict(content), default=str))
    return {**sealed_content, key: digest(sealed_content)}


def unsealed(
    content: Mapping[str, Any], path: Path, key: str = SEAL, *, mend: str = MEND
) -> dict[str, Any]:
    """The content without its digest, which must be right; files of an older softless have none.

    Raises:
        DataError: it is not what was written.
    """
    unsealed_content = {name: value for name, value in content.items() if name != key}
    if key in content and content[key] != digest(unsealed_content):
        raise DataError(
            f"{path} is damaged: it is not what was written (its own SHA-256 is another); {mend}"
        )
    return unsealed_content


def digest(content: Mapping[str, Any]) -> str:
    """SHA-256 of a table, whatever the order of its entries."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def whole(minimum: int, maximum: int = WIDEST) -> Rule:
    """A whole number between two, both included."""
    return (
        lambda value: type(value) is int and minimum <= value <= maximum,
        f"a whole number from {minimum} to {maximum}",
    )


def or_none(rule: Rule) -> Rule:
    """The same, where the entry must be there and may be null."""
    fits, should = rule
    return lambda value: value is None or fits(value), f"{should}, or null"


def one_of(*words: str) -> Rule:
    """One of some texts."""
    return (
        lambda value: isinstance(value, str) and value in words,
        f"one of {', '.join(map(repr, words))}",
    )


def number(minimum: float = -math.inf, *, above: bool = False) -> Rule:
    """A finite number of at least `minimum`, or above it."""
    rule_text = "a finite number" + (
        f" {'above' if above else 'of at least'} {minimum}" if minimum > -math.inf else ""
    )
    return (
        lambda value: is_number(value) and (value > minimum if above else value >= minimum),
        rule_text,
    )


def is_number(value: Any) -> bool:
    """Whether it is a finite number that fits a float."""
    return type(value) in {int, float} and abs(value) < 1e300 and math.isfinite(value)


def texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(is_number, value))


def plain(value: Any, deep: int = 3) -> bool:
    """Whether a value can be an argument of a model: a number of a size that sizes have, a short
    text, or a short list or table of them.
    """
    if isinstance(value, list | dict) and deep:
        inner = list(value.values()) if isinstance(value, dict) else value
        return len(inner) <= 256 and all(plain(child, deep - 1) for child in inner)
    if isinstance(value, str):
        return len(value) <= 200
    return value is None or isinstance(value, bool) or (is_number(value) and abs(value) <= WIDEST)


TEXT: Rule = (lambda value: isinstance(value, str), "a text")
TABLE: Rule = (lambda value: isinstance(value, dict), "a table")
TEXTS: Rule = (texts, "a list of texts")
NUMBERS: Rule = (numbers, "a list of numbers")
SIDES: Rule = (
    lambda value: (
        isinstance(value, list) and len(value) == 2 and all(whole(1)[0](side) for side in value)
    ),
    "height and width",
)
ARGUMENTS: Rule = (
    lambda value: isinstance(value, dict) and all(map(plain, value.values())),
    f"a table of numbers up to {WIDEST}, short texts and short lists of them",
)
DIGEST: Rule = (lambda value: isinstance(value, str) and len(value) == 64, "a SHA-256")
# NaN and infinity too, as a run that went astray logs them
ANY_NUMBER: Rule = (
    lambda value: type(value) is float or (type(value) is int and abs(value) < 1 << 63),
    "a number",
)


def _called(content: Any) -> str:
    names: dict[type, str] = {
        dict: "a table",
        list: "a list",
        str: "a text",
        bool: "true or false",
        type(None): "null",
    }
    return names.get(type(content), "a number")
