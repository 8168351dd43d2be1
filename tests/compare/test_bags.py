"""`softless bench bags`, small."""

import pytest

import softless
from softless.errors import UsageError


@pytest.mark.slow
def test_inference_and_steps_are_measured_each_in_a_process_of_its_own() -> None:
    measured = softless.bench(
        "bags",
        models=["sima_bag_tiny"],
        inference=5000,
        training=3000,
        softmax=2500,
        features=32,
        rounds=1,
    )
    rows = {(row.work, row.model, row.way, row.tiles): row for row in measured.rows}
    assert list(rows) == [
        ("inference", "sima_bag_tiny", "store", 5000),
        ("training step", "sima_bag_tiny", "chunks", 3000),
        ("training step", "sima_bag_tiny", "whole", 3000),
        ("training step", "sima_bag_tiny", "chunks", 2500),
        ("training step", "sima_bag_tiny", "whole", 2500),
        ("training step", "softmax_bag_small", "whole", 2500),
    ]
    assert all(row.cpu_s > 0 for row in rows.values())
    assert rows["training step", "sima_bag_tiny", "whole", 3000].peak_mib > 5
    assert rows["training step", "sima_bag_tiny", "chunks", 2500].ratio < 1  # against softmax
    assert rows["inference", "sima_bag_tiny", "store", 5000].ratio > 1  # there is more than linear
    assert "bare linear layers" in str(measured)
    assert len(measured.to_dict()["rows"]) == 6


def test_a_model_of_images_is_refused() -> None:
    with pytest.raises(UsageError, match="no model of bags"):
        softless.bench("bags", models=["sima_deit_tiny_patch16_224"])
    with pytest.raises(UsageError, match="rounds from 1"):
        softless.bench("bags", rounds=0)
