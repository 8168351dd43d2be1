"""The `softless` command: one table of verbs; options, help and types come from each verb's Python function."""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from softless.cli.options import fill, parser_of
from softless.cli.output import as_json, as_text
from softless.errors import SoftlessError, unknown

VERBS = {
    "list": "softless.cli.list:list",
    "train": "softless.cli.train:train",
    "runs": "softless.cli.runs:runs",
    "eval": "softless.cli.eval:eval",
    "predict": "softless.cli.predict:predict",
    "explain": "softless.cli.explain:explain",
    "slide": "softless.cli.slide:slide",
    "bench": "softless.cli.bench:bench",
    "cost": "softless.cli.cost:cost",
    "audit": "softless.cli.audit:audit",
    "swap": "softless.cli.swap:swap",
    "data": "softless.cli.data:data",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit code (0 done, 2 usage, 3 diverged, 4 partial result, 130 interrupted)."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        with _notices():
            return run(words)
    except SoftlessError as error:
        if debug:
            raise
        print(f"softless: {_one_line(error)}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("softless: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of `softless list | head` has gone: nothing is left to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run(words: Sequence[str]) -> int:
    """Parse `VERB OPTIONS`, call the verb, print what it returns."""
    if not words or words[0] in {"-h", "--help", "help"}:
        print(overview())
        return 0
    if words[0] == "--version":
        import softless

        print(f"softless {softless.__version__}")
        return 0
    name, *rest = words
    if name not in VERBS:
        raise unknown("verb", name, VERBS)
    verb = load(name)
    parser = parser_of(name, verb)
    if "-h" in rest or "--help" in rest:
        print(parser.format_help(), end="")
        return 0
    json = "--json" in rest
    result = fill(parser, verb, [word for word in rest if word != "--json"])()
    if _is_first_rank() and result is not None:
        print(as_json(result) if json else as_text(result))
    return int(getattr(result, "exit_code", 0))


def load(name: str) -> Callable[..., Any]:
    """The function of a verb."""
    module, _, function = VERBS[name].partition(":")
    verb: Callable[..., Any] = getattr(importlib.import_module(module), function)
    return verb


def overview() -> str:
    """All verbs with the first sentence of their functions."""
    lines = ["usage: softless VERB [options]        softless VERB --help tells a verb's options", ""]
    lines += [f"  {name:<9} {(load(name).__doc__ or '').strip().partition(chr(10))[0]}" for name in VERBS]
    return "\n".join([*lines, "", "every verb takes --json (results as JSON) and --debug (errors with traceback)"])


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _is_first_rank() -> bool:
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def _notices() -> Iterator[None]:
    """What the package logs (`softless.*`) as lines on stderr; of several ranks only the first speaks."""
    log, handler = logging.getLogger("softless"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("softless: note: %(message)s"))
    handler.setLevel(logging.INFO if _is_first_rank() else logging.ERROR)
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
