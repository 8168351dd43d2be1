"""`bench dino`: every row is measured alike, and what was trained is kept."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softless.compare.dino import dino, logistic
from softless.errors import UsageError
from tests.data.making import split_folders
from tests.tasks.dino.test_dino import tiny_recipe


@pytest.mark.soak
def test_pixels_untrained_and_trained_networks(tmp_path: Path):
    split_folders(
        tmp_path / "data",
        {p: {"cat": n, "dog": n} for p, n in (("train", 12), ("val", 4), ("test", 3))},
    )
    recipe = tiny_recipe(tmp_path / "data")
    recipe = replace(recipe, data=replace(recipe.data, source="folder", in_chans=3))
    found = dino(recipe, ("sima", "xca"), epochs=2, out=tmp_path / "out", device="cpu")
    rows = found.rows()
    assert [(row["operator"], row["trained"], row["epochs"]) for row in rows] == [
        ("", "no", 0),
        ("sima", "no", 0),
        ("xca", "no", 0),
        ("sima", "dino", 2),
        ("xca", "dino", 2),
    ]
    for row in rows:
        assert row["knn_low"] <= row["knn"] <= row["knn_high"]
        assert row["linear_low"] <= row["linear"] <= row["linear_high"]
        assert (row["train"], row["test"]) == (24, 6)
    assert rows[0]["width"] == 3 * 32 * 32
    assert rows[1]["width"] == rows[3]["width"] == 64
    assert "20-NN (95 % interval)" in str(found)
    assert found.report is not None
    assert found.report.is_file()
    again = dino(recipe, ("sima", "xca"), epochs=2, out=tmp_path / "out", resume=True, device="cpu")
    assert again.rows() == rows


def test_recipes_of_other_tasks_and_data_without_test(tmp_path: Path):
    with pytest.raises(UsageError, match="recipe 'digits' is for classification"):
        dino("digits", out=tmp_path)


def test_the_linear_classifier_chooses_its_strength_on_validation_images():
    """A direction that says the class, and thirty that say nothing: it is found, and test labels
    have no part in the choice.
    """
    labels = torch.arange(90) % 3
    features = torch.randn(90, 32) + 4 * torch.eye(32)[labels]
    train, kept, val, test = (
        (features[a:b], labels[a:b]) for a, b in ((0, 60), (0, 45), (45, 60), (60, 90))
    )
    right, images, strength = logistic(train, kept, val, test)
    assert images == 30
    assert right >= 28
    assert logistic(train, kept, val, (test[0], test[1].roll(1)))[2] == strength
