"""Random edits of what lies on disk, as a damaged or hostile file has them."""

import copy
import random
from collections.abc import Sequence
from typing import Any


def edit(rng: random.Random, content: Any, values: Sequence[Any]) -> None:
    """One value somewhere in nested dicts and lists becomes one of `values`, or goes; nothing where
    there is none.
    """
    while content:
        key = rng.choice(list(content) if isinstance(content, dict) else range(len(content)))
        if isinstance(content[key], dict | list) and content[key] and rng.random() < 0.65:
            content = content[key]
            continue
        if rng.random() < 0.25:
            del content[key]
        else:
            content[key] = copy.deepcopy(rng.choice(values))
        return
