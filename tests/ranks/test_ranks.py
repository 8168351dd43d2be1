"""Two ranks of which one is ended, or differs: both end in time, and one sentence says why.

The table is benchmarks/ranks.csv.
"""

from pathlib import Path

import pytest

from tests.ranks.cases import (
    DIFFERENCES,
    SIGNALS,
    VERBS,
    Seen,
    differing,
    ended,
    is_ended_well,
    is_refused,
    prepared,
)

TELLING = {("train", "SIGINT")}  # of other verbs tests/cli/test_launch.py has one
SOAK = pytest.mark.soak
CASES = [
    pytest.param(verb, name, marks=[] if (verb, name) in TELLING else SOAK)
    for verb in VERBS
    for name in SIGNALS
]


@pytest.mark.extra
@pytest.mark.parametrize(("verb", "name"), CASES)
def test_a_rank_that_is_ended_ends_the_other_with_a_sentence(
    verb: str, name: str, tmp_path: Path
) -> None:
    seen = ended(verb, name, prepared(tmp_path), tmp_path / "work")
    assert is_ended_well(name, seen), seen
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.soak
@pytest.mark.parametrize("kind", DIFFERENCES)
def test_a_rank_that_differs_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    seen = differing(kind, prepared(tmp_path), tmp_path / "work")
    assert is_refused(kind, seen), seen


def test_what_is_taken_for_a_good_end() -> None:
    """The judge itself: a rank that ends as if all were well, late, with a traceback or under
    another name is wrong.
    """
    good = Seen((130, 130), 3.0, "", "SIGINT at step 3: the state is saved")
    assert is_ended_well("SIGINT", good)
    assert not is_ended_well("SIGTERM", good)
    assert not is_ended_well("SIGINT", Seen((0, 130), 3.0, "", good.sentence))
    assert not is_ended_well("SIGINT", Seen((130, 130), 31.0, "", good.sentence))
    assert not is_ended_well("SIGINT", Seen((130, 130), 3.0, "Traceback", good.sentence))
