"""Images in turn from each kind, so that few of them show every kind."""

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence


def in_turn(order: Iterable[int], kinds: Sequence[Hashable]) -> list[int]:
    """The first image of each kind, then the second of each, and so on.

    Args:
        order: places of images, which decides within a turn.
        kinds: of every image: its class, or its folder.
    """
    turns: Counter[Hashable] = Counter()
    rounds = []
    for place in order:
        rounds.append((turns[kinds[place]], place))
        turns[kinds[place]] += 1
    return [place for _, place in sorted(rounds, key=lambda entry: entry[0])]
