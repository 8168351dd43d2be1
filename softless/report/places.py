"""Paths of this machine by as little of them as tells them apart: a page is passed on, and is
nobody's map of a disk.
"""

import re
from collections.abc import Sequence
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from softless.report.groups import Group


def is_place(value: Any) -> bool:
    """Whether a recipe's value is a whole path."""
    return isinstance(value, str) and PurePath(value).is_absolute()


def shortened(values: Sequence[Any]) -> list[Any]:
    """The values with each whole path cut to its last parts, as many as it takes to tell those of
    the list apart.

    >>> shortened(["/disk/a/images", "/disk/b/images", None])
    ['a/images', 'b/images', None]
    """
    paths = {value: PurePath(value).parts[1:] for value in values if is_place(value)}
    deepest = max(map(len, paths.values()), default=0)
    for parts in range(1, deepest + 1):
        cut = {value: "/".join(components[-parts:]) for value, components in paths.items()}
        if len(set(cut.values())) == len(cut):
            break
    else:
        cut = dict.fromkeys(paths, "")  # the root alone
    return [cut.get(value, value) if is_place(value) else value for value in values]


def without_places(text: Any, groups: "Sequence[Group]") -> str:
    """What an error says, the places of the runs and their data in it by their names alone."""
    runs = [run for group in groups for run in group.runs]
    recipes = [path for run in runs for path in (run.recipe.data.path, run.recipe.model.weights)]
    paths = {path for path in recipes if path is not None and is_place(path)}
    paths |= {
        str(folder)
        for run in runs
        for folder in (run.folder, run.folder.resolve())
        if folder.is_absolute()
    }
    message = str(text)
    for path in sorted(paths, key=len, reverse=True):
        message = message.replace(path, PurePath(path).name)
    return message


def shortened_words(command: str) -> str:
    """A command with each whole path cut to its last part, `field=/a/path` too.

    >>> shortened_words("softless train --data /disk/images --set model.weights=/runs/one lr=1e-3")
    'softless train --data images --set model.weights=one lr=1e-3'
    """
    return re.sub(r"(?<![^\s='\"])/(?:[^\s'\"]*/)?([^\s'\"/]+)/?", r"\1", command)
