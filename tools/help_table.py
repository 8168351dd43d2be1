"""Writes softless_command/help.json: what `softless --help` and `softless VERB --help` are made of.

python tools/help_table.py            rewrite it
python tools/help_table.py --check    change nothing; exit 1 if it is stale
"""

import argparse
import json
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import softless
from softless.cli.bench import KINDS
from softless.cli.main import VERBS, load, overview, parser_for
from softless.cli.options import PLACE, paths_of

TABLE = Path(__file__).resolve().parents[1] / "softless_command" / "help.json"
NAMES = {"_StoreAction": "store", "_StoreTrueAction": "store_true", "_ExtendAction": "extend"}


def table() -> dict[str, Any]:
    """Version, overview, and the parser of each verb."""
    return {
        "version": softless.__version__,
        "overview": overview(),
        "verbs": {
            name: stored(parser_for(name), paths_of(load(name)))
            for name in (*VERBS, *(f"bench {kind}" for kind in KINDS))
        },
    }


def stored(parser: argparse.ArgumentParser, paths: Collection[str]) -> dict[str, Any]:
    """A parser as `softless_command.parser` builds it again; `paths` are the parameters that may
    name a file.
    """
    return {
        "prog": parser.prog,
        "usage": parser.usage,
        "description": parser.description,
        "options": [_option(action, paths) for action in parser._actions],
    }


def _option(action: argparse.Action, paths: Collection[str]) -> dict[str, Any]:
    kind = type(action).__name__
    option: dict[str, Any] = {
        "names": list(action.option_strings[:1]) or [action.dest],
        "action": NAMES.get(kind, kind),
        "help": None if action.help is argparse.SUPPRESS else action.help,
    }
    if NAMES.get(kind) in {"store", "extend"}:
        option["nargs"], option["metavar"] = action.nargs, action.metavar
        option["choices"] = None if action.choices is None else list(action.choices)
    if action.dest.removesuffix(PLACE) in paths:
        option["path"] = True
    return option


def main(arguments: list[str]) -> int:
    text = json.dumps(table(), indent=1, ensure_ascii=False) + "\n"
    fresh = TABLE.is_file() and TABLE.read_text(encoding="utf-8") == text
    if fresh:
        return 0
    if arguments == ["--check"]:
        print(f"{TABLE.name}: stale: make tables")
        return 1
    TABLE.write_text(text, encoding="utf-8")
    print(f"{TABLE.name}: rewritten")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
