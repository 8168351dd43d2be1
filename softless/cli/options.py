"""Command-line options from a function's signature and docstring.

    def bench(what: str, *, seeds: int = 3, overwrite: bool = False, set: Sequence[str] = ()) -> ...

becomes `softless bench WHAT --seeds 3 --overwrite --set a=1 b=2`. Positional parameters may be
given by name as well (`--what`). Parameters whose type a command line cannot give (a module, a
tensor) are left out where they have a default.
"""

import argparse
import builtins
import inspect
import re
import types
import typing
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

from softless.errors import UsageError, nearest
from softless.experiment.fields import nearest_field, walk
from softless.experiment.recipe import Recipe

# a positional argument's key beside the option of its name; nothing was given
PLACE, ABSENT = " by place", object()
SIMPLE = (str, Path, int, float)  # tried in this order where a type is a union


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError instead of leaving the program."""

    def error(self, message: str) -> typing.NoReturn:
        raise UsageError(f"{self.prog}: {message}")


def parser_of(name: str, verb: Callable[..., Any], program: str = "softless") -> Parser:
    """The parser of a verb, its help taken from the docstring."""
    text, helps = read_docstring(inspect.getdoc(verb) or "")
    parser = Parser(
        prog=f"{program} {name}",
        usage=_usage(f"{program} {name}", verb),
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,
    )
    for parameter, hint in parameters(verb).items():
        _add(parser, parameter, hint, helps.get(parameter.name, ""))
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return parser


def fill(parser: Parser, verb: Callable[..., Any], words: Sequence[str]) -> Callable[[], Any]:
    """The verb with the arguments that the words give.

    Raises:
        UsageError: an unknown option (nearest name offered), a value of another type, or a missing
            argument.
    """
    parsed, rest = parser.parse_known_args(list(words))
    several = next(
        (
            parameter.name
            for parameter in parameters(verb)
            if parameter.kind is parameter.VAR_POSITIONAL
        ),
        None,
    )
    if several:  # argparse takes those ahead of the first option only
        vars(parsed)[several] = [
            *getattr(parsed, several, []),
            *(word for word in rest if not word.startswith("-")),
        ]
        rest = [word for word in rest if word.startswith("-")]
    if rest:
        raise _surplus(parser, rest)
    values = {
        key: value
        for key, value in vars(parsed).items()
        if value is not ABSENT and key not in {"json", "debug"}
    }
    for key in [key for key in values if key.endswith(PLACE)]:
        name = key.removesuffix(PLACE)
        if name in values:
            raise UsageError(
                f"{parser.prog}: {name} is given twice, as '{values[key]}' and as --{name} "
                f"{values[name]}"
            )
        values[name] = values.pop(key)
    positional: list[Any] = []
    for parameter in parameters(verb):
        # whatever stands ahead of it must go by place as well
        if parameter.kind is parameter.VAR_POSITIONAL:
            ahead = [
                candidate.name
                for candidate in parameters(verb)
                if candidate.kind is candidate.POSITIONAL_OR_KEYWORD
            ]
            positional += [values.pop(name) for name in ahead] + values.pop(parameter.name, [])
        elif parameter.name not in values and parameter.default is parameter.empty:
            raise UsageError(
                f"{parser.prog} needs --{_dashed(parameter.name)}; {parser.prog} --help tells "
                "what it is"
            )
    return partial(verb, *positional, **values)


def parameters(verb: Callable[..., Any]) -> dict[inspect.Parameter, Any]:
    """Each parameter a command line can give, with its type."""
    hints = typing.get_type_hints(verb, localns=_Names(verb))
    hinted = {}
    for parameter in inspect.signature(verb).parameters.values():
        hint = _givable(hints.get(parameter.name, str))
        if (
            hint is None
            and parameter.default is parameter.empty
            and parameter.kind is not parameter.VAR_KEYWORD
        ):
            raise TypeError(
                f"parameter {parameter.name} of {verb.__name__} cannot be given on a command line"
            )
        if hint is not None and parameter.kind is not parameter.VAR_KEYWORD:
            hinted[parameter] = hint
    return hinted


def paths_of(verb: Callable[..., Any]) -> frozenset[str]:
    """The parameters that may name a file or a folder."""
    hints = typing.get_type_hints(verb, localns=_Names(verb))
    return frozenset(name for name, hint in hints.items() if name != "return" and _names_path(hint))


def _names_path(hint: Any) -> bool:
    return hint is Path or any(map(_names_path, typing.get_args(hint)))


class _Unknown(type):
    """What an annotation names that is imported for type checkers only; its attributes and items
    are unknown too.
    """

    def __getattr__(cls, name: str) -> "_Unknown":
        if name.startswith("__"):
            raise AttributeError(name)
        return _Unknown(name, (), {})

    def __getitem__(cls, inner: object) -> "_Unknown":
        return cls


class _Names(dict[str, Any]):
    """The names an annotation may use: those of the verb's module, and a stand-in for any other."""

    def __init__(self, verb: Callable[..., Any]) -> None:
        super().__init__({**vars(builtins), **getattr(verb, "__globals__", {})})

    def __missing__(self, name: str) -> Any:
        return _Unknown(name, (), {})


def read_docstring(text: str) -> tuple[str, dict[str, str]]:
    """A Google docstring as (text before `Args:`, help of each argument)."""
    body, _, rest = text.partition("\nArgs:\n")
    body = re.split(r"\n(?:Returns|Raises|Example|Examples):\n", body)[0]
    block = re.split(r"\n\S", rest)[0]
    helps: dict[str, str] = {}
    for match in re.finditer(r"^    (\w+)(?: \([^)]*\))?: (.*(?:\n     .*)*)", block, re.MULTILINE):
        helps[match[1]] = " ".join(match[2].split()).replace("%", "%%")
    return body.strip(), helps


def _usage(name: str, verb: Callable[..., Any]) -> str:
    """The first line of the help: what must be given as it is, what may be given in brackets."""
    words = [name]
    for parameter in parameters(verb):
        metavar = parameter.name.upper()
        if parameter.kind is parameter.VAR_POSITIONAL:
            words.append(f"[{metavar} ...]")
        elif parameter.kind is not parameter.KEYWORD_ONLY:
            words.append(metavar if parameter.default is parameter.empty else f"[{metavar}]")
        elif parameter.default is parameter.empty:
            words.append(f"--{_dashed(parameter.name)} {metavar}")
    return " ".join([*words, "[options]"])


def _add(parser: Parser, parameter: inspect.Parameter, hint: Any, text: str) -> None:
    default = (
        ""
        if parameter.default in {parameter.empty, None, "", (), False}
        else f" (default {parameter.default})"
    )
    if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
        default = " (required)"
    common: dict[str, Any] = {
        "help": text + default.replace("%", "%%"),
        "default": argparse.SUPPRESS,
    }
    option = f"--{_dashed(parameter.name)}"
    if hint is bool:
        action = argparse.BooleanOptionalAction if parameter.default is True else "store_true"
        parser.add_argument(option, dest=parameter.name, action=action, **common)
        return
    kind = {**common, **_kind(hint)}
    if parameter.kind is parameter.VAR_POSITIONAL:
        parser.add_argument(parameter.name, **{**kind, "nargs": "*", "action": "store"})
        return
    if "choices" not in kind:
        kind["metavar"] = parameter.name.upper()
    if parameter.kind is not parameter.KEYWORD_ONLY:
        several = "action" in kind  # by place one is given, by the option several
        named = (
            f"{text}{default.replace('%', '%%')} Also {option} "
            f"{parameter.name.upper()}{' ...' * several}."
        )
        by_place = {
            "metavar": parameter.name.upper(),
            **kind,
            "default": ABSENT,
            "help": named.strip(),
            "nargs": "?",
        }
        by_place.pop("action", None)
        union = typing.get_origin(parameter.annotation) in {types.UnionType, typing.Union}
        if several and not (union and str in typing.get_args(parameter.annotation)):
            inner = kind["type"]  # where several are taken alone, one text is none of them
            by_place["type"] = lambda word: [inner(word)]
        parser.add_argument(parameter.name + PLACE, **by_place)
        common["help"] = argparse.SUPPRESS
        kind = {**kind, **common}
    parser.add_argument(option, dest=parameter.name, **kind)


def _kind(hint: Any) -> dict[str, Any]:
    if typing.get_origin(hint) is Literal:
        return {"choices": typing.get_args(hint), "type": type(typing.get_args(hint)[0])}
    if typing.get_origin(hint) is tuple:
        return {"nargs": "+", "action": "extend", "type": typing.get_args(hint)[0]}
    return {"type": hint}


def _givable(hint: Any) -> Any:
    """The type as the command line gives it: bool, a simple type, a Literal, tuple[simple, ...];
    None if it cannot.
    """
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return str
    if hint is bool or hint in SIMPLE or origin is Literal:
        return hint
    if origin in {types.UnionType, typing.Union}:
        kinds = [_givable(part) for part in inner if part is not type(None)]
        ranked = [kind for kind in (*SIMPLE, bool) if kind in kinds]
        several = [kind for kind in kinds if typing.get_origin(kind) in {tuple, Literal}]
        return (several or ranked or [None])[0]
    if origin is not None and isinstance(origin, type) and issubclass(origin, Sequence) and inner:
        kind = _givable(inner[0])
        return tuple[kind, ...] if kind in SIMPLE else None  # type: ignore[valid-type]
    return None


def _surplus(parser: Parser, rest: Sequence[str]) -> UsageError:
    options = [option for action in parser._actions for option in action.option_strings]
    word = rest[0].partition("=")[0]
    if word.startswith("-"):
        if (
            {"--recipe", "--set"} <= set(options)
            and (field := _field_meant(word))
            and not nearest(word, options, cutoff=0.8)
        ):
            return UsageError(
                f"{parser.prog} has no option '{word}'. Did you mean --set {field}=…? Fields of a "
                "recipe are set so"
            )
        listed = ", ".join(sorted(options))
        return UsageError(
            f"{parser.prog} has no option '{word}'. {nearest(word, options)}Known: {listed}"
        )
    return UsageError(
        f"{parser.prog} takes no further argument '{word}'; {parser.prog} --help lists what it "
        "takes"
    )


def _field_meant(option: str) -> str:
    """The field of a recipe that an option is named after, or nothing."""
    return nearest_field(option.lstrip("-").replace("-", "_"), [row.name for row in walk(Recipe)])


def _dashed(name: str) -> str:
    return name.rstrip("_").replace("_", "-")
