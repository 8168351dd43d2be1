"""The `softless` command: one table of verbs; options, help and types come from each verb's Python
function.
"""

import argparse
import importlib
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import softless_command
from softless.cli.bench import KINDS, function_of
from softless.cli.options import Parser, fill, parser_of
from softless.cli.output import as_json, as_text
from softless.errors import Faults, Interrupted, SoftlessError, UsageError, of_the_system, unknown
from softless.ranks import ENDED
from softless.words import visible

# verbs whose work ranks can share
SHARING = frozenset({"train", "eval", "predict", "explain", "slide", "tiles", "bench"})
RANKS = "--ranks"
VERBS = {
    "list": "softless.cli.list:list",
    "train": "softless.cli.train:train",
    "runs": "softless.cli.runs:runs",
    "eval": "softless.cli.eval:eval",
    "predict": "softless.cli.predict:predict",
    "explain": "softless.cli.explain:explain",
    "slide": "softless.cli.slide:slide",
    "tiles": "softless.cli.tiles:tiles",
    "heat": "softless.cli.heat:heat",
    "bench": "softless.cli.bench:bench",
    "cost": "softless.cli.cost:cost",
    "audit": "softless.cli.audit:audit",
    "swap": "softless.cli.swap:swap",
    "recover": "softless.cli.recover:recover",
    "export": "softless.exporting.export:export",
    "serve": "softless.cli.serve:serve",
    "data": "softless.cli.data:data",
    "completion": "softless.cli.completion:completion",
}


def main(
    arguments: Sequence[str] | None = None, run: Callable[[Sequence[str]], int] | None = None
) -> int:
    """Run a verb, or what else `run` makes of the words; returns the exit code (0 done, 2 usage, 3 diverged, 4 partial result, 130
    interrupted).
    """
    code = _main(arguments, run or run_verb)
    # it may be killed while it leaves
    if (noted := os.environ.get(ENDED)) and os.environ.get("RANK") == "0":
        from softless.models.durable import write_text

        write_text(Path(noted), str(code))
    return code


def _main(arguments: Sequence[str] | None, run: Callable[[Sequence[str]], int]) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with _notices():
            return run(words)
    except SoftlessError as error:
        if debug:
            raise
        if isinstance(error, Interrupted):
            _end_at_the_next_signal(arguments)
        if error.shared and not _is_first_rank():
            _let_the_first_speak()
            return error.exit_code
        say(f"softless: {_lines(error)}", sys.stderr)
        if "--json" in words:
            say(
                as_json({
                    "error": type(error).__name__,
                    "message": str(error),
                    "exit_code": error.exit_code,
                })
            )
        return error.exit_code
    except KeyboardInterrupt:
        _end_at_the_next_signal(arguments)
        print("softless: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of `softless list | head` has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    # a verb names what it expects; a disk or a right may still stand in the way anywhere
    except OSError as error:
        if debug or error.errno is None:
            raise
        say(f"softless: {_one_line(of_the_system(error))}", sys.stderr)
        return 2


def run_verb(words: Sequence[str]) -> int:
    """Parse `VERB OPTIONS`, call the verb, print what it returns."""
    if (answer := softless_command.answer(words)) is not None:
        sys.stdout.write(answer)
        return 0
    name, rest = _named(words)
    verb, parser = load(name), parser_for(name)
    if shares(name) and any(word.partition("=")[0] == RANKS for word in rest):
        return _on_ranks(name, parser, verb, rest)
    return call(verb, parser, rest)


def _named(words: Sequence[str]) -> tuple[str, Sequence[str]]:
    """The verb, with its kind where it has kinds, and the words behind it."""
    name, *rest = words
    if name not in VERBS:
        raise unknown("verb", name, VERBS)
    if name != "bench":
        return name, rest
    if not rest or rest[0].startswith("-"):
        raise UsageError(
            f"softless bench needs its kind first: {', '.join(KINDS)}; softless bench --help tells "
            "what each measures"
        )
    return f"bench {rest[0]}", rest[1:]


def call(verb: Callable[..., Any], parser: Parser, rest: Sequence[str]) -> int:
    """Call a function with the words behind its name, print what it returns; the exit code."""
    json = "--json" in rest
    result = fill(parser, verb, [word for word in rest if word != "--json"])()
    if _is_first_rank() and result is not None:
        say(as_json(result) if json else as_text(result))
    code = int(getattr(result, "exit_code", 0))
    if code and not _is_first_rank():
        _let_the_first_speak()
    return code


def _on_ranks(name: str, parser: Parser, verb: Callable[..., Any], words: Sequence[str]) -> int:
    """The same as several processes; what is wrong with the words is said before one starts."""
    from softless.cli import ranks

    count, rest = ranks.asked(words, parser.prog)
    fill(parser, verb, [word for word in rest if word != "--json"])
    words = [*name.split(), *rest]
    return ranks.launch(words, count) if count > 1 else run_verb(words)


def parser_for(name: str) -> Parser:
    """The parser of a verb, or of a kind of one (`bench twins`), with what all such take."""
    parser = parser_of(name, load(name))
    if shares(name):
        parser.add_argument(
            RANKS,
            metavar="N",
            default=argparse.SUPPRESS,
            help="processes that share the work; one by default",
        )
    return parser


def load(name: str) -> Callable[..., Any]:
    """The function of a verb, or of a kind of one."""
    verb, _, kind = name.partition(" ")
    if kind:
        return function_of(kind)
    module, _, function = VERBS[verb].partition(":")
    loaded: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return loaded


def shares(name: str) -> bool:
    """Whether ranks can share its work."""
    verb, _, kind = name.partition(" ")
    return verb in SHARING and (not kind or (kind in KINDS and KINDS[kind].trains))


def overview() -> str:
    """All verbs with the first sentence of their functions."""
    lines = [
        "usage: softless VERB [options]        softless VERB --help tells a verb's options",
        "",
    ]
    lines += [
        f"  {name:<10} {(load(name).__doc__ or '').strip().partition(chr(10))[0]}" for name in VERBS
    ]
    return "\n".join([
        *lines,
        "",
        "every verb takes --json (results as JSON) and --debug (errors with traceback)",
        (
            f"{', '.join(name for name in VERBS if name in SHARING)} take --ranks N (share the "
            "work "
            "among N processes)"
        ),
    ])


def _lines(error: SoftlessError) -> str:
    """The sentence of an error; of several faults a line each."""
    if isinstance(error, Faults):
        return "\n".join(map(visible, (error.headline, *error.lines)))
    return _one_line(error)


def _one_line(error: object) -> str:
    return visible(" ".join(line.strip(" ") for line in str(error).split("\n")))


def say(text: str, stream: TextIO | None = None) -> None:
    """Print text for people: what steers a terminal, and what its encoding does not have, stands as
    an escape.
    """
    stream = sys.stdout if stream is None else stream
    encoding = stream.encoding or "utf-8"
    print(
        visible(text, lines=True).encode(encoding, "backslashreplace").decode(encoding), file=stream
    )


def _end_at_the_next_signal(arguments: Sequence[str] | None) -> None:
    """What is left is to leave, and loaders take seconds for it: a second signal ends the program
    at once, without a traceback.
    """
    if arguments is None and threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda number, _: os._exit(128 + number))


def _let_the_first_speak() -> None:
    """Whoever started the ranks ends all as soon as one fails: the first one needs a moment to say
    why.
    """
    from softless.training.world import let_the_first_speak

    let_the_first_speak()


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _notices() -> Iterator[None]:
    """What the package logs (`softless.*`) as lines on stderr; of several ranks only the first
    speaks.
    """
    log, handler = logging.getLogger("softless"), logging.StreamHandler()
    handler.setFormatter(_Visible("softless: note: %(message)s"))
    handler.setLevel(logging.INFO if _is_first_rank() else logging.ERROR)
    log.addHandler(handler)
    usual = warnings.formatwarning
    warnings.formatwarning = lambda *args, **kwargs: visible(usual(*args, **kwargs), lines=True)
    try:
        yield
    finally:
        log.removeHandler(handler)
        warnings.formatwarning = usual


class _Visible(logging.Formatter):
    """Log lines with whatever their names hold."""

    def format(self, record: logging.LogRecord) -> str:
        return visible(super().format(record), lines=True)
