"""A hundred TIFFs in which each property meets each of every other one: each is read as it was written, or refused by name."""

from collections import Counter
from pathlib import Path

import pytest

from tests.data import tiffs

pytest.importorskip("openslide")
pytest.importorskip("tifffile")
KINDS = tiffs.chosen()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind).replace(" ", ""))
def test_a_tiff_is_read_as_it_was_written_or_refused(kind: tiffs.Kind, tmp_path: Path) -> None:
    read = tiffs.outcome(kind, tmp_path)
    wanted = (
        "right"
        if kind.depth == "8" and kind.samples != "5" and (kind.pages != "channels" or kind.samples == "1")
        else "refused"
    )
    assert (read.outcome, read.why if read.outcome != "refused" else "") == (wanted, "")


def test_the_kinds_cover_all_pairs() -> None:
    possible = set().union(*(tiffs.pairs(kind) for kind in tiffs.every() if tiffs.writable(kind)))
    assert set().union(*(tiffs.pairs(kind) for kind in KINDS)) == possible
    assert 80 <= len(KINDS) <= 160
    assert min(Counter(kind.orientation for kind in KINDS if kind.depth == "8").values()) >= 4


@pytest.mark.soak
def test_every_combination(tmp_path: Path) -> None:
    assert tiffs.main() == 0
