"""`python -m lab bags`: digits are drawn as it says, areas and their differences are those of the
answers, and what is there is kept.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from lab.bags import BagCell, PooledBags, bags, digit_bags
from softless.errors import UsageError

PARTS = {"train": 16, "val": 8, "test": 20}


def images(rows: np.ndarray) -> set[bytes]:
    return {row.tobytes() for row in rows}


def test_a_bag_has_one_nine_or_none_and_parts_share_no_image(tmp_path: Path):
    files, listed = digit_bags(tmp_path / "digits", 12, PARTS)
    stored = np.load(files)
    digits = load_digits()
    label = {
        row.astype(np.float16).tobytes(): target
        for row, target in zip(digits.data / 16, digits.target, strict=True)
    }
    lines = [line.split(",") for line in listed.read_text().splitlines()[1:]]
    assert len(lines) == 44
    seen: dict[str, set[bytes]] = {}
    for index, (slide, _, said, part) in enumerate(lines):
        rows = stored["features"][stored["offsets"][index] : stored["offsets"][index + 1]]
        assert stored["slide"][index] == slide
        assert len(rows) == 12
        nines = sum(label[row.tobytes()] == 9 for row in rows)
        assert nines == (said == "nine")
        seen.setdefault(part, set()).update(images(rows))
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["val"]
    before = files.stat().st_mtime_ns
    assert digit_bags(tmp_path / "digits", 12, PARTS)[0].stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="tiles=1"):
        digit_bags(tmp_path / "other", 1)


def cell(model: str, seed: int, gain: float) -> BagCell:
    rng = np.random.default_rng(seed)
    truth = np.arange(60) % 2 == 1
    noise = rng.normal(size=60)
    return BagCell(
        "ucsb",
        0,
        model,
        seed,
        [f"p{k:02}" for k in range(60)],
        truth.tolist(),
        (noise + gain * truth).tolist(),
        1.0,
    )


def test_areas_and_differences():
    good, bad = (
        PooledBags(tuple(cell(name, seed, gain) for seed in range(3)))
        for name, gain in (("a", 2.0), ("b", 0.5))
    )
    expected = [
        np.mean([roc_auc_score(one.truth, one.chances) for one in group.cells])
        for group in (good, bad)
    ]
    assert good.area.value == pytest.approx(expected[0])
    assert good.area.low < good.area.value < good.area.high
    apart = good.beside(bad)
    assert apart.value == pytest.approx(expected[0] - expected[1])
    assert apart.low > 0
    assert good.beside(good) == (0, 0, 0)
    width = apart.high - apart.low
    unpaired = good.area.high - good.area.low + bad.area.high - bad.area.low
    assert width < unpaired, "patients and seeds are drawn together"


@pytest.mark.slow
def test_the_command_keeps_what_is_there(tmp_path: Path):
    out = tmp_path / "out"
    digit_bags(out / "digits-5", 5, PARTS)
    options = {"models": ("mean_bag", "abmil_bag"), "seeds": 1, "tiles": (5,), "out": out}
    short = ("schedule.epochs=1", "schedule.warmup_epochs=0", "schedule.min_steps=none")
    first = bags(data=("digits",), **options, set=short, device="cpu")  # type: ignore[arg-type]
    assert [row["model"] for row in first.rows] == ["mean_bag", "abmil_bag"]
    assert all(0 <= row["auc"] <= 1 for row in first.rows)
    assert {row["patients"] for row in first.rows} == {20}
    content = json.loads((out / "digits-5-abmil_bag-0.json").read_text())
    assert len(content["chances"]) == 20
    with pytest.raises(UsageError, match="is there already"):
        bags(data=("digits",), **options, set=short)  # type: ignore[arg-type]
    again = bags(data=("digits",), **options, kept=True)  # type: ignore[arg-type]
    assert again.rows == first.rows
