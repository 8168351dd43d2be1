"""Groups of images that belong together, patients say: none of them may stand in two parts.

Parts are cut by scikit-learn's StratifiedGroupKFold, which keeps groups whole and the classes as
even as the groups allow.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import product

import numpy as np

from softless.data.findings import Fault
from softless.data.samples import Samples
from softless.errors import DataError, need
from softless.experiment.data_rules import compiled
from softless.words import clipped, counted, few

FEW = 12  # groups: so few are cut in every way there is
MANY = 1000  # groups: above, one order of them is tried
TRIES = 40  # ways to fold that are tried where some class stays in one fold
SORTED = 4  # of them by scikit-learn, the others by chance
ORDERS = 2  # and for a cut
CLOSE = 0.02  # of a share: so near must the pieces of a cut come
PIECES = 20  # of a cut at most
SINGLE = 100  # groups that are tried alone, where there are many


def groups_of(files: Sequence[str], pattern: str) -> list[str]:
    """The group of each file: what the one capture group of a pattern finds in its path below the
    folder of its part.

    Raises:
        UsageError: the pattern cannot be used.
        DataError: it finds nothing in some files.
    """
    rule = compiled(pattern)
    matches = [rule.search(file) for file in files]
    none = [
        file for file, match in zip(files, matches, strict=True) if match is None or not match[1]
    ]
    if none:
        raise DataError(
            f"data.group={clipped(pattern)} finds no group in {counted(len(none), 'file')} of "
            f"{len(files):,}, first in {none[0]}: it must find one in "
            "each path below the folder of the split, class folder first"
        )
    return [match[1] for match in matches if match is not None]


def shared_groups(parts: Mapping[str, Samples], called: str) -> Iterator[Fault]:
    """A fault for each group that stands in two parts; `called` is what a group is called."""
    yield from in_two_parts(
        (
            (part, group, samples.name(index))
            for part, samples in parts.items()
            for index, group in enumerate([] if samples.groups is None else samples.groups.tolist())
        ),
        called,
    )


def in_two_parts(members: Iterable[tuple[str, str, str]], called: str) -> Iterator[Fault]:
    """A fault for each group that stands in two parts, of members (part, group, name)."""
    places: dict[str, dict[str, str]] = {}
    for part, group, name in members:
        places.setdefault(group, {}).setdefault(part, name)
    for group, names_by_part in places.items():
        if len(names_by_part) > 1:
            parts_text = " and ".join(f"{part} ({name})" for part, name in names_by_part.items())
            yield Fault(
                f"{called} {group}",
                f"it is in {parts_text}: no group may stand in two parts",
                "groups",
            )


def strata(targets: np.ndarray) -> np.ndarray:
    """(n,) what a cut keeps even: the class, or of several labels (n, K) the rarest that an image
    has, and K for none.
    """
    if targets.ndim == 1:
        return targets
    rarest_first = np.argsort(targets.sum(0), kind="stable")
    ordered = targets[:, rarest_first] > 0
    return np.where(ordered.any(1), rarest_first[ordered.argmax(1)], targets.shape[1])


def grouped_cut(
    targets: np.ndarray, groups: np.ndarray, fraction: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sorted positions (kept, cut off): whole groups, about `fraction` of each class cut off, and
    no class without a group that is kept.

    Args:
        targets: (n,) classes, or (n, K) labels of 0 and 1.
        groups: (n,) names.
        fraction: share cut off, between 0 and 1.
        seed: of the order in which groups are tried.

    Raises:
        DataError: nothing can be cut off: each group is the only one of some class, or there is
            only one.
    """
    need("sklearn")
    y, names = strata(targets), np.unique(groups, return_inverse=True)[1]
    needed = _needed(y, names)
    free = np.flatnonzero(~needed[names])
    if not len(free):
        raise DataError(_why_whole(groups))
    off = np.isin(names, _best_piece(y, names, free, fraction, seed))
    return np.flatnonzero(~off), np.flatnonzero(off)


def folds_of(
    targets: np.ndarray, groups: np.ndarray | None, folds: int, seed: int, classes: Sequence[str]
) -> np.ndarray:
    """(n,) the fold of each image, 0 to folds - 1: whole groups, and classes as even as they
    allow.

    Raises:
        DataError: fewer groups than folds (images, where they have no groups), or a class whose
            images would all be tested in one fold, which
            could not learn it.
    """
    need("sklearn")
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold

    names = np.arange(len(targets)) if groups is None else np.unique(groups, return_inverse=True)[1]
    count, unit = int(names.max()) + 1, "image" if groups is None else "group"
    if count < folds:
        raise DataError(
            f"{counted(count, unit)} cannot be cut into {folds} folds: each needs one of its own, "
            "so ask for fewer"
        )
    kind = StratifiedKFold if groups is None else StratifiedGroupKFold
    y, has_class = strata(targets), _held_by(targets, names, len(classes))
    lost, rng = np.flatnonzero(has_class.sum(0) == 1), np.random.default_rng(seed)
    for attempt in range(0 if len(lost) else TRIES):
        places = rng.permutation(count) % folds  # of each group
        if attempt < SORTED:
            for fold, (_, test) in enumerate(_cuts(kind, folds, seed + attempt, y, names)):
                places[names[test]] = fold
        places, wanting = _mended(places, has_class, folds)
        if not wanting:
            return places[names]
        lost = _alone(places, has_class, folds)
    raise DataError(
        f"the images of the class '{classes[lost[0] % len(classes)]}' cannot be spread over two "
        f"of {folds} folds, so one fold would be tested on "
        f"what it never learnt: the class needs images of two {unit}s at least; add some, or "
        "leave the class out"
    )


def _held_by(targets: np.ndarray, names: np.ndarray, classes: int) -> np.ndarray:
    """(G, K) bool: whether a group has a class; of several labels (G, 2 K), whether it has images
    with the label, and without.
    """
    hot = (
        np.eye(classes, dtype=bool)[targets]
        if targets.ndim == 1
        else np.concatenate([targets > 0, targets < 1], 1)
    )
    has_class = np.zeros((names.max() + 1, hot.shape[1]), dtype=bool)
    np.logical_or.at(has_class, names, hot)
    return has_class


def _alone(places: np.ndarray, has_class: np.ndarray, folds: int) -> np.ndarray:
    """The classes that only one fold has."""
    reached = np.zeros((folds, has_class.shape[1]), dtype=bool)
    np.logical_or.at(reached, places, has_class)
    return np.flatnonzero(reached.sum(0) == 1)


def _mended(places: np.ndarray, has_class: np.ndarray, folds: int) -> tuple[np.ndarray, int]:
    """The fold of each group after moves of groups, as long as they help; and how many folds are
    empty or classes in one fold alone.
    """

    def wanting(tried: np.ndarray) -> int:
        return len(_alone(tried, has_class, folds)) + folds - len(np.unique(tried))

    remaining = wanting(places)
    while remaining:
        for group, fold in product(range(len(places)), range(folds)):
            tried = places.copy()
            tried[group] = fold
            if (now := wanting(tried)) < remaining:
                places, remaining = tried, now
                break
        else:
            break
    return places, remaining


def _cuts(
    kind: type, pieces: int, seed: int, y: np.ndarray, names: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """scikit-learn's cuts; that a class has fewer images than pieces is no fault here."""
    # it asks for one class that reaches every piece
    y = y if (np.bincount(y) >= pieces).any() else np.zeros_like(y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield from kind(pieces, shuffle=True, random_state=seed).split(np.zeros(len(y)), y, names)


def _needed(y: np.ndarray, names: np.ndarray) -> np.ndarray:
    """(G,) bool: the groups that are the only one of some class: without them it could not be
    learnt.
    """
    needed = np.zeros(names.max() + 1, dtype=bool)
    for label in np.unique(y):
        of_class = np.unique(names[y == label])
        if len(of_class) == 1:
            needed[of_class] = True
    return needed


def _best_piece(
    y: np.ndarray, names: np.ndarray, free: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """The groups to cut off, of those that are free to go: each class keeps a group, as many
    classes as can be are cut, near to their share.
    """
    counts = np.zeros((names.max() + 1, y.max() + 1))  # (G, K) images
    np.add.at(counts, (names, y), 1)
    counts = counts[:, counts.any(0)]
    chosen = _candidates(y, names, free, fraction, seed)
    cut = chosen @ counts
    lost, absent = (cut == counts.sum(0)).sum(1), (cut == 0).sum(1)
    miss = np.abs(cut / counts.sum(0) - fraction).mean(1)
    order = np.lexsort((miss, absent, lost))
    return np.flatnonzero(chosen[order[0]])


def _candidates(
    y: np.ndarray, names: np.ndarray, free: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
    """(C, G) bool: sets of groups that may be cut off. All there are of few groups; of many
    single ones, and pieces of several cuts.
    """
    groups, total = np.random.default_rng(seed).permutation(np.unique(names[free])), names.max() + 1
    if len(groups) <= FEW:
        sets = (np.arange(1, 2 ** len(groups))[:, None] >> np.arange(len(groups)) & 1).astype(bool)
    else:
        sets = np.eye(len(groups), dtype=bool)[:SINGLE]
    chosen = np.zeros((len(sets), total), dtype=bool)
    chosen[:, groups] = sets
    if len(groups) <= FEW:
        return chosen
    pieces, take = _share(fraction, len(groups))
    return np.concatenate([chosen, *_unions(y[free], names[free], total, pieces, take, seed)])


def _unions(
    y: np.ndarray, names: np.ndarray, total: int, pieces: int, take: int, seed: int
) -> Iterator[np.ndarray]:
    """(pieces, G) bool: unions of so many neighbouring pieces of a cut, for several orders of the
    groups.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    for attempt in range(ORDERS if total <= MANY else 1):
        cuts = np.zeros((pieces, total), dtype=bool)
        for piece, (_, test) in enumerate(
            _cuts(StratifiedGroupKFold, pieces, seed + attempt, y, names)
        ):
            cuts[piece, names[test]] = True
        yield np.logical_or.reduce([np.roll(cuts, step, axis=0) for step in range(take)])


def _share(fraction: float, count: int) -> tuple[int, int]:
    """Into how many pieces to cut, and how many of them to take, for about this share."""
    ways = [
        (pieces, max(round(fraction * pieces), 1)) for pieces in range(2, min(PIECES, count) + 1)
    ]
    ways = [(pieces, min(take, pieces - 1)) for pieces, take in ways]
    near = [way for way in ways if abs(way[1] / way[0] - fraction) <= CLOSE]
    return near[0] if near else min(ways, key=lambda way: abs(way[1] / way[0] - fraction))


def _why_whole(groups: np.ndarray) -> str:
    names = list(dict.fromkeys(groups.tolist()))
    if len(names) == 1:
        return (
            f"all {counted(len(groups), 'image')} are of one group ({names[0]}): nothing is "
            "left to validate on; add another group, "
            "or declare the parts"
        )
    return (
        f"nothing can be cut off for validation: each of the {len(names)} groups "
        f"({few(names, 5)}) is the only one of some class, "
        "and would leave it unlearnt; add groups, or declare the parts"
    )
