"""`softless completion`: what a shell needs to finish verbs, options and their values."""

import argparse
from typing import Literal

import softless_command
from softless.attention.registry import OPERATORS
from softless.cli.options import PLACE
from softless.errors import need
from softless.recipes import RECIPES

# parameter -> names that it may take
KNOWN = {"recipe": RECIPES, "op": OPERATORS, "ops": OPERATORS}


def completion(shell: Literal["bash", "zsh", "tcsh"]) -> str:
    """Print what makes a shell finish verbs, options, files, recipes and operators.

    For bash: `softless completion bash > ~/.local/share/bash-completion/completions/softless`. For
    zsh: `softless completion zsh > FOLDER/_softless`, with a folder of `$fpath`.

    Args:
        shell: bash, zsh or tcsh.

    Returns:
        The script.

    Raises:
        MissingExtra: shtab is not installed.

    Examples:
        >>> "softless" in softless.completion("bash")
        True
    """
    need("shtab")
    import shtab

    script: str = shtab.complete(_everything(shtab.FILE), shell)
    return script


def _everything(files: object) -> argparse.ArgumentParser:
    """All verbs as one parser, from the table of the command's door."""
    table = softless_command.table()["verbs"]
    root = argparse.ArgumentParser(prog="softless", add_help=False)
    verbs = root.add_subparsers()
    kinds = None
    for name, stored in table.items():
        verb, _, kind = name.partition(" ")
        if kind:
            assert kinds is not None, "a verb stands ahead of its kinds"
            _add(kinds, kind, softless_command.parser(stored, files))
            continue
        parser = _add(verbs, verb, softless_command.parser(stored, files))
        if any(other.startswith(f"{name} ") for other in table):
            kinds = parser.add_subparsers()
    return root


def _add(
    into: "argparse._SubParsersAction[argparse.ArgumentParser]",
    name: str,
    parser: argparse.ArgumentParser,
) -> argparse.ArgumentParser:
    """A verb with its options, and names where an option takes one of a list."""
    summary = (parser.description or "").strip().partition("\n")[0]
    added = into.add_parser(name, help=summary.replace("%", "%%"), parents=[parser], add_help=False)
    for action in added._actions:
        if action.help is argparse.SUPPRESS:  # the option of a positional argument's name
            action.help = ""
        if (known := KNOWN.get(action.dest.removesuffix(PLACE))) and not action.choices:
            action.choices = list(known)
    return added
