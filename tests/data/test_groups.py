"""Groups stay whole wherever images are cut, and classes stay as even as the groups allow."""

from itertools import product
from typing import Any

import numpy as np
import pytest

from softless.data import open_splits
from softless.data.datasets import cut_parts
from softless.data.groups import folds_of, grouped_cut, groups_of, strata
from softless.data.samples import ArraySamples
from softless.errors import DataError, UsageError
from softless.experiment.groups import DataSpec
from tests.data.making import class_folders, noise, split_folders

PLAIN: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
TABLES = 1000


def drawn(rng, most_groups=20):
    """Classes and groups of a table: groups of unequal sizes, of one class or of several."""
    classes, count = int(rng.integers(2, 5)), int(rng.integers(2, most_groups))
    sizes = 1 + rng.geometric(0.3, count)
    groups = np.repeat([f"p{n}" for n in range(count)], sizes).astype(object)
    own = np.repeat(rng.integers(0, classes, count), sizes)
    targets = np.where(
        rng.random(len(groups)) < rng.random(), own, rng.integers(0, classes, len(groups))
    )
    return targets, groups


def single(targets, groups):
    """The classes that only one group has."""
    return {
        label for label in np.unique(targets).tolist() if len(set(groups[targets == label])) == 1
    }


def samples_of(targets, groups):
    made = ArraySamples(np.zeros((len(targets), 1, 1), np.uint8), targets, 1)
    made.groups = groups
    return made


def test_no_group_stands_in_two_parts_of_a_thousand_tables():
    refused = 0
    for seed in range(TABLES):
        rng = np.random.default_rng(seed)
        targets, groups = drawn(rng)
        try:
            kept, cut = grouped_cut(targets, groups, 0.15, seed)
        except DataError:
            held = {
                group for label in single(targets, groups) for group in groups[targets == label]
            }
            assert held == set(groups), "refused though a group could go"
            refused += 1
            continue
        assert sorted([*kept, *cut]) == list(range(len(groups)))
        assert len(cut)
        assert not set(groups[kept]) & set(groups[cut])
        assert set(targets[kept]) == set(targets), "a class cannot be learnt"
    assert 0 < refused < TABLES / 4


def test_no_group_stands_in_two_folds_of_a_thousand_tables():
    refused = []
    for seed in range(TABLES):
        rng = np.random.default_rng(seed)
        targets, groups = drawn(rng)
        folds = int(rng.integers(2, 6))
        names = [str(label) for label in range(targets.max() + 1)]
        try:
            places = folds_of(targets, groups, folds, seed, names)
        except DataError as error:
            too_few = len(set(groups)) < folds
            assert too_few or single(targets, groups), "refused though it can be cut"
            refused.append((too_few, "groups cannot be cut" in str(error)))
            continue
        assert set(places) == set(range(folds))
        assert all(len(set(places[groups == group])) == 1 for group in set(groups))
        assert all(set(targets[places != fold]) == set(targets) for fold in range(folds))
    assert 0 < len(refused) < TABLES / 2
    assert all(few == said for few, said in refused)


@pytest.mark.parametrize("seed", range(20))
def test_a_cut_of_few_groups_is_the_best_there_is(seed):
    """Against every set of groups there is: classes that are cut at all first, then nearness to
    the share."""
    rng = np.random.default_rng(seed)
    targets, groups = drawn(rng, most_groups=9)
    names, shares = sorted(set(groups)), []
    for chosen in product((False, True), repeat=len(names)):
        off = np.isin(groups, [name for name, taken in zip(names, chosen, strict=True) if taken])
        counts = [
            (off & (targets == label)).sum() / (targets == label).sum()
            for label in np.unique(targets)
        ]
        if off.any() and max(counts) < 1:
            shares.append((
                sum(share == 0 for share in counts),
                np.mean([abs(share - 0.2) for share in counts]),
            ))
    if not shares:
        with pytest.raises(DataError):
            grouped_cut(targets, groups, 0.2, seed)
        return
    _, cut = grouped_cut(targets, groups, 0.2, seed)
    counts = [
        (targets[cut] == label).sum() / (targets == label).sum() for label in np.unique(targets)
    ]
    found = sum(share == 0 for share in counts), np.mean([abs(share - 0.2) for share in counts])
    assert found == pytest.approx(min(shares))


def test_classes_stay_even_where_there_are_many_groups():
    rng = np.random.default_rng(0)
    groups = np.array([f"p{n // 3}" for n in range(900)], dtype=object)
    targets = np.repeat(rng.choice(3, 300, p=(0.7, 0.2, 0.1)), 3)
    _, cut = grouped_cut(targets, groups, 0.15, 0)
    shares = np.bincount(targets[cut]) / np.bincount(targets)
    assert shares == pytest.approx(0.15, abs=0.03), "one group of the rarest class is 0.03 of it"
    places = folds_of(targets, groups, 5, 0, ["a", "b", "c"])
    each = np.array([np.bincount(targets[places == fold], minlength=3) for fold in range(5)])
    assert (np.ptp(each, axis=0) <= 3).all(), "one group more or less"


def test_a_cut_repeats_itself_and_follows_the_seed():
    targets, groups = drawn(np.random.default_rng(5))
    first, again, other = (grouped_cut(targets, groups, 0.3, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


@pytest.mark.parametrize(
    ("targets", "groups", "message"),
    [
        (
            [0, 1, 0, 1],
            "aaaa",
            r"all 4 images are of one group \(a\): nothing is left to validate on",
        ),
        ([0, 0, 1, 1], "aabb", r"each of the 2 groups \(a, b\) is the only one of some class"),
    ],
)
def test_what_cannot_be_cut_says_why(targets, groups, message):
    with pytest.raises(DataError, match=message):
        grouped_cut(np.array(targets), np.array([*groups], dtype=object), 0.15, 0)


def test_a_class_of_one_group_is_learnt_and_named(caplog):
    targets, groups = np.array([0, 0, 0, 0, 1, 1]), np.array([*"aabbcc"], dtype=object)
    cut = cut_parts({"all": samples_of(targets, groups)}, ("common", "rare"), DataSpec(), 0)
    assert cut["val"].targets.tolist() == [0, 0]
    assert "no validation image of rare, with one training group each" in caplog.text


def test_folds_that_cannot_be():
    targets, groups = np.array([0, 1] * 4), np.array([*"aabbccdd"], dtype=object)
    with pytest.raises(DataError, match="4 groups cannot be cut into 5 folds"):
        folds_of(targets, groups, 5, 0, ["x", "y"])
    with pytest.raises(DataError, match="8 images cannot be cut into 9 folds"):
        folds_of(targets, None, 9, 0, ["x", "y"])
    with pytest.raises(
        DataError,
        match=r"class 'rare' cannot be spread over two of 3 folds.* needs images of two groups",
    ):
        folds_of(
            np.array([0, 0, 0, 0, 1, 1]),
            np.array([*"aabbcc"], dtype=object),
            3,
            0,
            ["common", "rare"],
        )


def test_folds_test_each_image_once_and_validate_on_others():
    targets, groups = drawn(np.random.default_rng(8))
    every, names = samples_of(targets, groups), tuple(map(str, range(targets.max() + 1)))
    tested = []
    for fold in range(3):
        cut = cut_parts({"all": every}, names, DataSpec(folds=3, fold=fold), 0)
        held = [
            set(samples.groups.tolist()) for samples in cut.values() if samples.groups is not None
        ]
        assert len(held) == 3
        assert not held[0] & held[1] | held[0] & held[2] | held[1] & held[2]
        tested += [cut["test"].name(index) for index in range(len(cut["test"]))]
    assert sorted(tested, key=int) == [every.name(index) for index in range(len(every))]
    with pytest.raises(UsageError, match="these have train, test already: leave folds out"):
        cut_parts({"train": every, "test": every}, names, DataSpec(folds=3, fold=0), 0)


def test_several_labels_are_cut_by_the_rarest_that_an_image_has():
    targets = np.array([[1, 1], [1, 0], [0, 0], [1, 0], [0, 1]])
    assert strata(targets).tolist() == [1, 0, 2, 0, 1]


def test_folds_of_several_labels_keep_groups_whole_and_each_label_to_be_learnt():
    rng = np.random.default_rng(0)
    groups = np.array([f"p{n // 2}" for n in range(60)], dtype=object)
    targets = (rng.random((60, 3)) < (0.5, 0.2, 0.08)).astype(np.int64)
    places = folds_of(targets, groups, 5, 0, ["a", "b", "c"])
    assert all(len(set(places[groups == group])) == 1 for group in set(groups))
    for fold in range(5):
        learnt = targets[places != fold]
        assert (learnt.any(0) & ~learnt.all(0)).all()
    alone = np.zeros((60, 2), np.int64)
    alone[::2, 0], alone[:2, 1] = 1, 1
    with pytest.raises(DataError, match="class 'rare' cannot be spread"):
        folds_of(alone, groups, 5, 0, ["common", "rare"])


def test_groups_in_the_names_of_class_folders(tmp_path):
    for index in range(12):
        folder = tmp_path / ("cat", "dog")[index % 2]
        folder.mkdir(exist_ok=True)
        noise(seed=index).save(folder / f"p{index // 4}_{index}.png")
    splits = open_splits(DataSpec("folder", str(tmp_path), group=r"/(p\d+)_", **PLAIN), 0)
    assert splits.train.groups is not None
    assert splits.val.groups is not None
    assert sorted({*splits.train.groups, *splits.val.groups}) == ["p0", "p1", "p2"]
    assert not set(splits.train.groups) & set(splits.val.groups)
    plain = open_splits(DataSpec("folder", str(tmp_path), **PLAIN), 0)
    assert plain.fingerprint["sha256"] != splits.fingerprint["sha256"]


def test_a_group_in_two_splits_of_class_folders(tmp_path):
    split_folders(tmp_path, {"train": {"cat": 3, "dog": 3}, "test": {"cat": 1, "dog": 1}})
    with pytest.raises(
        DataError,
        match=r"group 00: it is in train \(train/cat/00\.png\) and test \(test/cat/00\.png\)",
    ):
        open_splits(DataSpec("folder", str(tmp_path), group=r"/(\d+)\.png", **PLAIN), 0)


def test_patterns_that_find_no_group(tmp_path):
    class_folders(tmp_path, {"cat": 2, "dog": 2})
    with pytest.raises(DataError, match=r"finds no group in 4 files of 4, first in cat/00\.png"):
        open_splits(DataSpec("folder", str(tmp_path), group=r"^(p\d+)_", **PLAIN), 0)
    with pytest.raises(UsageError, match="is no regular expression: missing"):
        groups_of(["a"], "(")
    for pattern in ("a", "(a)(b)"):
        with pytest.raises(
            UsageError, match=r"capture groups?: brackets around one part|0 capture groups"
        ):
            groups_of(["a"], pattern)
