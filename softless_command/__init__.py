"""The door of the `softless` command: help and version from a table, all else by `softless.cli.main`.

Importing softless imports torch and timm, which takes seconds; a question for help should not.
The table is written by `tools/tables.py` from the verbs themselves.
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("help.json")
HELP = ("-h", "--help")
ACTIONS: dict[str, Any] = {"BooleanOptionalAction": argparse.BooleanOptionalAction}


def main() -> int:
    """Answer the command of this process; returns its exit code."""
    text = answer(sys.argv[1:])
    if text is None:
        from softless.cli.main import main as run

        return run()
    encoding = sys.stdout.encoding or "utf-8"
    try:
        sys.stdout.write(text.encode(encoding, "backslashreplace").decode(encoding))
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of `softless --help | head` has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def answer(words: Sequence[str]) -> str | None:
    """What a question for help or version is answered; None where a verb must run."""
    words = [word for word in words if word != "--debug"]
    name = words[0] if words else "help"
    content = table()
    if name in {*HELP, "help"}:
        return f"{content['overview']}\n"
    if name == "--version":
        return f"softless {content['version']}\n"
    kind = " ".join(words[:2])  # of a verb that has kinds, as `bench twins`
    known = kind if kind in content["verbs"] else name
    if known in content["verbs"] and any(word in HELP for word in words[1:]):
        return parser(content["verbs"][known]).format_help()
    return None


def table() -> dict[str, Any]:
    """What tools/tables.py wrote of the verbs."""
    content: dict[str, Any] = json.loads(TABLE.read_text(encoding="utf-8"))
    return content


def parser(stored: Mapping[str, Any], files: object = None) -> argparse.ArgumentParser:
    """A verb's parser with what its help is made of; `files` marks, for shtab, what may name a
    file.
    """
    argument_parser = argparse.ArgumentParser(
        prog=stored["prog"],
        usage=stored["usage"],
        description=stored["description"],
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
    )
    for option in stored["options"]:
        how = {**option}
        names, names_path = how.pop("names"), how.pop("path", False)
        if how["action"] in ACTIONS:
            how["action"] = ACTIONS[how["action"]]
        if how.get("help") is None:
            how["help"] = argparse.SUPPRESS
        action = argument_parser.add_argument(*names, default=argparse.SUPPRESS, **how)
        if names_path:  # shells offer files there
            action.complete = files  # type: ignore[attr-defined]
    return argument_parser
