"""What a recipe says of each of its fields, and what follows: types of texts, ranges, nearest
names, the tables of settings.

    lr: float = setting(5e-4, "learning rate for `base_batch` images", within="(0, inf)")

A field is described once, where it stands. `typed` reads a value as the field's type and holds it
to its range. `walk` yields every field of a recipe by its dotted name, for
`softless list recipes NAME`, the documentation and the tests.
"""

import ast
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from softless.errors import UsageError, nearest
from softless.words import clipped

# ranges that several fields have
CHANCE, SHARE, SIDE = "[0, 1]", "(0, 1]", "[1, 65536]"
WEIGHT = "(0, 1000000]"
COUNT, SOME = "[1, 1000000000]", "[0, 1000000000]"  # of things: one at least, or none
KEY = "setting"  # under which a field's metadata hold its FieldSetting
INTERVAL = re.compile(r"(?P<left>[\[(])(?P<low>[^,]+), (?P<high>[^,]+)(?P<right>[\])])")
WORDS = {"true": True, "false": False}
BRACKETS = frozenset("([{'\"")  # begin what Python writes
UNIONS, NONE, UNFIT = (types.UnionType, typing.Union), type(None), object()


@dataclass(frozen=True)
class TaskSettings:
    """A group of fields that makes a recipe one of its task, as `detection`."""

    # the fields that say how large images are, where the task leaves them their shape
    sized: ClassVar[str] = ""
    # whether its images come with classes and its answers are some of these, as a classifier's
    classifies: ClassVar[bool] = False
    # whether a table may list its samples, which folds can be cut of, as of a classifier's images
    listed: ClassVar[bool] = False
    called: ClassVar[str] = "images"  # what its samples are

    def check(self, recipe: Any) -> None:
        """Whether the fields of the task, and those of `augment`, go together and with the images.

        Raises:
            UsageError: they do not.
        """


@dataclass(frozen=True)
class NumberRange:
    """The numbers between two ends: `[0, 1]` holds both, `(0, 1)` neither.

    NaN lies in none, an infinity in none that is open there.
    """

    text: str
    low: float
    high: float
    with_low: bool
    with_high: bool

    @classmethod
    def of(cls, text: str) -> "NumberRange":
        """The interval as mathematics writes it."""
        match = INTERVAL.fullmatch(text)
        assert match, text
        low, high = float(match["low"]), float(match["high"])
        assert low < high, text
        return cls(text, low, high, match["left"] == "[", match["right"] == "]")

    def __contains__(self, value: float) -> bool:
        above = self.low <= value if self.with_low else self.low < value
        below = value <= self.high if self.with_high else value < self.high
        return above and below

    def __str__(self) -> str:
        """The interval in words where it has one end, else as mathematics writes it."""
        if self.high == math.inf:
            return f"{'at least' if self.with_low else 'above'} {self.low:g}"
        return f"in {self.text}"


@dataclass(frozen=True)
class FieldSetting:
    """What a field is.

    Attributes:
        says: one line, for the tables.
        within: the range of its number, or of each of its numbers; several give one to each place.
        unit: of its numbers.
        rising: whether its numbers stand in order, the smallest first.
        choices: the texts that it takes, where they are not in its type.
    """

    says: str
    within: tuple[NumberRange, ...] = ()
    unit: str = ""
    rising: bool = False
    choices: tuple[str, ...] = ()

    @property
    def range(self) -> str:
        """The range, in words."""
        several = " and ".join(map(str, self.within))
        unit = f" {self.unit}" if self.unit and self.within else ""
        return f"{several}{unit}{', the smallest first' if self.rising else ''}"

    def takes(self, hint: Any) -> str:
        """What the field takes, in words: type, range, and none where it may be none."""
        hints = typing.get_args(hint) if typing.get_origin(hint) in UNIONS else (hint,)
        kinds = " or ".join(self.choices) or " or ".join(
            described(alternative) for alternative in hints if alternative is not NONE
        )
        return f"{kinds} {self.range}".strip() + (" or none" if NONE in hints else "")

    def holds(self, value: Any) -> bool:
        """Whether the numbers of a value of the right type lie in the range, and in order."""
        if isinstance(value, Mapping):  # of a mapping its values, or the keys of texts
            parts = value.values() if any(map(_is_number, value.values())) else value.keys()
        else:
            parts = value if isinstance(value, tuple) else (value,)
        numbers = [part for part in parts if _is_number(part)]
        ranges = self.within if len(self.within) > 1 else self.within * len(numbers)
        within = all(number in interval for number, interval in zip(numbers, ranges, strict=False))
        return within and not (self.rising and sorted(numbers) != numbers)


def setting(
    default: Any,
    says: str,
    within: str | tuple[str, ...] = (),
    *,
    unit: str = "",
    rising: bool = False,
    choices: Sequence[str] = (),
) -> Any:
    """A dataclass field with its setting; a default that is a class (`dict`, a group) is made anew
    for each recipe.
    """
    ranges = (within,) if isinstance(within, str) else within
    description = FieldSetting(
        says, tuple(map(NumberRange.of, ranges)), unit, rising, tuple(choices)
    )
    if isinstance(default, type):
        return field(default_factory=default, metadata={KEY: description})
    return field(default=default, metadata={KEY: description})


@dataclass(frozen=True)
class FieldRow:
    """A field of a recipe, for a table."""

    name: str  # dotted
    hint: Any
    value: Any
    setting: FieldSetting


def walk(spec: Any, prefix: str = "") -> Iterator[FieldRow]:
    """Every field of a recipe, or of one of its groups, with its value there; a group that is not
    set has no rows.

    Args:
        spec: a recipe, a group or a class of either, whose defaults are the values.
        prefix: what stands before the names.
    """
    hints = typing.get_type_hints(spec if isinstance(spec, type) else type(spec))
    for entry in dataclasses.fields(spec):
        inner = group_of(hints[entry.name])
        value = _default(entry) if isinstance(spec, type) else getattr(spec, entry.name)
        if inner is not None:
            if isinstance(spec, type) or value is not None:
                yield from walk(
                    inner if isinstance(spec, type) else value, f"{prefix}{entry.name}."
                )
        elif KEY in entry.metadata:
            yield FieldRow(f"{prefix}{entry.name}", hints[entry.name], value, entry.metadata[KEY])


def shown(value: Any) -> str:
    """A value as `--set` takes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.6g}"
    return f"({', '.join(map(shown, value))})" if isinstance(value, tuple) else str(value)


def group_of(hint: Any, content: Any = None) -> type | None:
    """The dataclass that a hint is, or may be; of several the first that has all fields of
    `content`.
    """
    kinds = [kind for kind in (hint, *typing.get_args(hint)) if dataclasses.is_dataclass(kind)]
    names = set(content) if isinstance(content, Mapping) else set()
    fitting = [
        kind for kind in kinds if names <= {entry.name for entry in dataclasses.fields(kind)}
    ]
    return typing.cast("type", (fitting or kinds)[0]) if kinds else None


def _default(entry: dataclasses.Field[Any]) -> Any:
    if entry.default is not dataclasses.MISSING:
        return entry.default
    return entry.default_factory() if entry.default_factory is not dataclasses.MISSING else None


def no_field(name: str, names: Iterable[str]) -> UsageError:
    """An error for a field that there is not; the nearest is sought at any depth, its last word
    first.
    """
    near = nearest_field(name, names)
    hint = f"Did you mean '{near}'? " if near else ""
    return UsageError(
        f"no field named '{clipped(name)}'. {hint}`softless list recipes NAME` shows all fields"
    )


def nearest_field(name: str, names: Iterable[str]) -> str:
    """The dotted name that is meant, or nothing: one that ends alike, or the closest in letters."""
    names = list(names)
    last = name.rpartition(".")[2]
    by_last: dict[str, str] = {}
    for candidate in names:
        by_last.setdefault(candidate.rpartition(".")[2], candidate)
    matches = difflib.get_close_matches(name, names, n=1, cutoff=0.8)
    if last in by_last and not matches:
        return by_last[last]
    if matches:
        return matches[0]
    close = difflib.get_close_matches(last, by_last, n=1, cutoff=0.6)
    return (
        by_last[close[0]]
        if close
        else next(iter(difflib.get_close_matches(name, names, n=1, cutoff=0.5)), "")
    )


def typed(value: Any, hint: Any, name: str, setting: FieldSetting) -> Any:
    """The value as the field's type, read from text where it is one, and within its range.

    Text is read by what the field takes: `true` and `false` in any case, none where it may be none,
    numbers, `1,2` or `(1, 2)` where it takes several. One alone is enough where it takes any number
    of them.

    Raises:
        UsageError: another type, or out of range.
    """
    parsed = next((reading for reading in readings(value, hint) if fits(reading, hint)), UNFIT)
    if parsed is UNFIT:
        raise UsageError(
            f"{name}={clipped(repr(value))} does not fit: the field takes {setting.takes(hint)}"
        )
    parsed = _widened(parsed, hint)
    if setting.choices and isinstance(parsed, str) and parsed not in setting.choices:
        raise UsageError(
            f"{name}={clipped(repr(parsed))} is not known. "
            f"{nearest(parsed, setting.choices)}Known: {', '.join(setting.choices)}"
        )
    if not setting.holds(parsed):
        raise UsageError(
            f"{name}={clipped(value)} is out of range: the field takes {setting.takes(hint)} "
            f"({setting.says})"
        )
    return parsed


def readings(value: Any, hint: Any) -> list[Any]:
    """What a value may mean, the likeliest first."""
    read = [*_word(value, hint), literal(value), value] if isinstance(value, str) else [value]
    read += [tuple(reading) for reading in read if isinstance(reading, list)]
    if isinstance(value, str) and mapping_in(hint):
        read += _pairs(value)
    if _any_number(hint):
        if isinstance(value, str) and "," in value:
            parts = [part.strip() for part in value.split(",")]
            read.append(tuple(map(literal, parts)))
            # names that look like numbers
            read += [] if value.lstrip()[:1] in BRACKETS else [tuple(parts)]
        read += [
            (reading,)
            for reading in read
            if reading is not None and not isinstance(reading, tuple | list | Mapping)
        ]
    return read


def _word(value: str, hint: Any) -> list[Any]:
    """What the words true, false, none and null stand for."""
    word = value.strip().lower()
    if word in {"none", "null"} and fits(None, hint):
        return [None]
    return [WORDS[word]] if word in WORDS else []


def _pairs(text: str) -> list[Any]:
    """`{0: background, 127: cell}`, whose names need no quotes, as a mapping."""
    inside = text.strip()
    if not (inside.startswith("{") and inside.endswith("}")):
        return []
    pairs = [part.partition(":") for part in inside[1:-1].split(",") if part.strip()]
    if not all(colon for _, colon, _ in pairs) or len({key.strip() for key, _, _ in pairs}) < len(
        pairs
    ):
        return []
    return [{literal(key.strip()): literal(name.strip()) for key, _, name in pairs}]


def literal(value: Any) -> Any:
    """A text as the Python literal that it is, or as it stands."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return value


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _parts(hint: Any) -> Iterator[Any]:
    yield hint
    for inner in typing.get_args(hint):
        if inner is not ... and typing.get_origin(hint) is not Literal:
            yield from _parts(inner)


def mapping_in(hint: Any) -> Any:
    """The mapping that a type is or may be, or None."""
    origins = ((part, typing.get_origin(part)) for part in _parts(hint))
    return next(
        (
            part
            for part, origin in origins
            if isinstance(origin, type) and issubclass(origin, Mapping)
        ),
        None,
    )


def _any_number(hint: Any) -> bool:
    return any(
        typing.get_origin(part) is tuple and typing.get_args(part)[-1:] == (...,)
        for part in _parts(hint)
    )


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of a type; whole numbers are numbers, true and false are not."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return any(fits(value, arg) for arg in args)
    if origin is Literal:
        return value in args
    if origin is tuple and args:
        if not isinstance(value, tuple):
            return False
        items = args[:1] * len(value) if args[-1] is ... else args
        return len(value) == len(items) and all(map(fits, value, items))
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(
            fits(key, args[0]) and fits(entry, args[1]) for key, entry in value.items()
        )
    if hint is None or hint is type(None):
        return value is None
    if hint is float:
        return _is_number(value)
    return _is_foreign(value, hint, origin, args)


def _is_foreign(value: Any, hint: Any, origin: Any, args: tuple[Any, ...]) -> bool:
    """`fits` for types that recipes do not use and models do; what cannot be asked is let pass."""
    if isinstance(origin, type) and issubclass(origin, Sequence):
        return isinstance(value, list | tuple) and all(
            fits(element, part) for part in args[:1] for element in value
        )
    if origin is Callable:
        return callable(value)
    if isinstance(origin, type):
        return isinstance(value, origin)
    if hint is Any or not isinstance(hint, type):  # Any is a class from Python 3.11 on
        return True
    return isinstance(value, hint) and not (isinstance(value, bool) and hint is not bool)


def _widened(value: Any, hint: Any) -> Any:
    """1 as 1.0 where the field takes a number with a fraction and no whole one; so too within a
    tuple.
    """
    if isinstance(value, tuple):
        inner = [part for part in _parts(hint) if typing.get_origin(part) is tuple]
        items = typing.get_args(inner[0]) if inner else ()
        items = items[:1] * len(value) if items[-1:] == (...,) else items
        return tuple(map(_widened, value, items)) if len(items) == len(value) else value
    if isinstance(value, Mapping) and int in _parts(typing.get_args(mapping_in(hint))[0]):
        # json has no others
        numbered = {
            int(key) if str(key).isdecimal() else key: entry for key, entry in value.items()
        }
        return numbered if len(numbered) == len(value) else value
    kinds = set(_parts(hint))
    if _is_number(value) and float in kinds and int not in kinds:
        try:
            return float(value)
        except OverflowError:
            return math.inf
    return value


def described(hint: Any) -> str:
    """A type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin in UNIONS:
        return " or ".join(described(arg) for arg in args)
    if origin is Literal:
        return " or ".join(repr(arg) for arg in args)
    if args[-1:] == (...,) or (
        isinstance(origin, type) and issubclass(origin, Sequence) and origin is not tuple
    ):
        return f"several of: {described(args[0])}"
    if origin is tuple:
        return "(" + ", ".join(described(arg) for arg in args) + ")"
    if origin is not None and isinstance(origin, type) and issubclass(origin, Mapping):
        return (
            "names with values"
            if args[0] is str
            else f"{{{described(args[0])}: {described(args[1])}}}"
        )
    words = {
        NONE: "none",
        str: "a text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }
    return words.get(hint, "a class or function of Python")
