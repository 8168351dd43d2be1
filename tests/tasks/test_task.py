"""What a recipe says of its task, what the loop may ask of one, and measures under one roof."""

from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from softless.errors import UsageError
from softless.experiment.groups import TASKS as NAMES
from softless.experiment.measures import MEASURES, describe
from softless.experiment.recipe import SHRINK, Recipe
from softless.tasks.detection.settings import DetectionSpec
from softless.tasks.dino.settings import DinoSpec
from softless.tasks.loaded import assemble
from softless.tasks.segmentation.settings import SegmentationSpec
from softless.tasks.table import TASKS, open_task
from softless.tasks.task import TrainingProgress, facts
from softless.training.model import build_for
from tests.training.conftest import tiny_recipe, write_npz


def test_the_group_that_is_set_is_the_task():
    assert Recipe("r", "").task == "classification"
    assert Recipe("r", "", detection=DetectionSpec()).task == "detection"
    assert Recipe("r", "", segmentation=SegmentationSpec()).task == "segmentation"
    assert Recipe("r", "", dino=DinoSpec()).task == "dino"
    with pytest.raises(UsageError, match="sets detection and dino: a run has one task"):
        _ = Recipe("r", "", detection=DetectionSpec(), dino=DinoSpec()).task


def test_every_task_has_a_group_a_model_and_measures():
    groups = {field.name for field in fields(Recipe)}
    assert set(TASKS) == set(NAMES) == set(SHRINK)
    for name, task in TASKS.items():
        assert name == "classification" or name in groups
        assert set(task.measures) <= set(MEASURES), name


def test_a_field_of_another_task_is_refused():
    with pytest.raises(
        UsageError,
        match=r"'detection.head' is a field of detection recipes, and this one is for "
        r"classification",
    ):
        Recipe("r", "").with_fields(**{"detection.head": "retinanet"})
    changed = Recipe("r", "", detection=DetectionSpec()).with_fields(**{
        "detection.head": "retinanet"
    })
    assert changed.detection is not None
    assert changed.detection.head == "retinanet"


def test_a_measure_of_another_task_is_refused(tmp_path: Path):
    recipe = replace(tiny_recipe(write_npz(tmp_path / "images.npz")), metric="box_ap")
    with pytest.raises(UsageError, match="no measure of classification named 'box_ap'"):
        open_task(recipe)
    other = replace(recipe, metric="last", dino=DinoSpec(), class_weights="balanced")
    with pytest.raises(
        UsageError, match="class_weights=balanced is for classification; this recipe is for dino"
    ):
        open_task(other)


def test_the_facts_of_a_task_rebuild_its_model(tmp_path: Path):
    task = open_task(tiny_recipe(write_npz(tmp_path / "images.npz")))
    told = facts(task, build_for(task))
    model = assemble(told["task"], told["architecture"], told["model_args"])
    assert model(torch.zeros(1, 1, 16, 16)).shape == (1, 3)
    with pytest.raises(UsageError, match="no task named 'captioning'"):
        assemble("captioning", "vit_tiny_patch16_224", {})


def test_the_learner_of_a_classifier_is_its_loss(tmp_path: Path):
    task = open_task(tiny_recipe(write_npz(tmp_path / "images.npz")))
    model = nn.Sequential(nn.Flatten(), nn.Linear(256, 3))
    images, targets = torch.randn(4, 1, 16, 16), torch.eye(3)[[0, 1, 2, 0]]
    loss = task.learner(model)(images, targets)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(model(images), targets))


def test_how_far_a_run_is():
    assert TrainingProgress(updates=5, total=20, epoch=1, epochs=4, step=0).share == 0.25


def test_scores_in_a_line_name_only_what_was_measured():
    scores = {"box_ap": 0.4567, "mask_ap": None, "loss": 1.5, "seen": 3, "expected": 4, "other": 1}
    assert describe(scores) == "box AP 45.7%, loss 1.500 (3 of 4 images)"
