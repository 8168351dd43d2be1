"""Loading a run back, and each way its folder can be wrong."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from softless.data import eval_loader, open_splits
from softless.errors import DataError, UsageError
from softless.evaluation import evaluate
from softless.experiment.groups import DataSpec
from softless.tasks.loaded import load_run
from tests.data.making import medmnist, noise
from tests.evaluation.runs import run_folder

CLASSES = ("normal", "benign", "malignant")
DATA = DataSpec(source="npz", path="toy.npz", in_chans=1, image_size=16)


@pytest.fixture
def folder(tmp_path):
    return run_folder(tmp_path / "run", CLASSES, DATA)


def test_a_run_comes_back(folder):
    run = load_run(folder)
    assert run.classes == CLASSES
    assert (run.image_size, run.in_chans) == (16, 1)
    assert not run.model.training
    stored = load_file(folder / "best.safetensors")
    assert all(torch.equal(tensor, stored[name]) for name, tensor in run.model.state_dict().items())
    x = run.transform(noise(30, 20, "L"))
    assert x.shape == (1, 16, 16)
    assert run.model(x[None]).shape == (1, 3)


def test_its_recipe_opens_its_data(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    medmnist(tmp_path / "toy.npz")
    run = load_run(folder)
    splits = open_splits(run.recipe.data, run.recipe.seed)
    assert splits.mean == (0.5,)  # what the run saw, not measured anew
    assert splits.test is not None
    e = evaluate(run, eval_loader(splits.test, run.transform, batch=4))
    assert e.seen == 9
    assert e.classes == CLASSES
    assert run.recipe.model.args == {}


def test_no_run(tmp_path, folder):
    with pytest.raises(DataError, match=r"no run folder at .*gone"):
        load_run(tmp_path / "gone")
    (folder / "best.safetensors").unlink()
    with pytest.raises(DataError, match="holds no finished epoch"):
        load_run(folder)


def test_weights_of_another_model(folder):
    state = load_file(folder / "best.safetensors")
    renamed = {name.replace("head.", "top."): tensor for name, tensor in state.items()}
    renamed["pos_embed"] = renamed["pos_embed"][:, :5].contiguous()
    save_file(renamed, folder / "best.safetensors")
    with pytest.raises(UsageError, match="checkpoint of another model: ") as raised:
        load_run(folder)
    for part in (
        "head.weight is missing",
        "top.weight is unknown",
        "pos_embed has shape (1, 5, 16)",
    ):
        assert part in str(raised.value)


def test_damaged_files(folder):
    weights = folder / "best.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"best\.safetensors is not a readable safetensors file"):
        load_run(folder)
    weights.write_bytes(whole)

    best = (folder / "best.json").read_text()
    (folder / "best.json").write_text(best[:40])
    with pytest.raises(DataError, match=r"best\.json is damaged: it is not JSON"):
        load_run(folder)
    content = json.loads(best)
    del content["mean"]
    (folder / "best.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"best\.json is damaged: the entry mean is missing"):
        load_run(folder)
    (folder / "best.json").write_text(best)

    (folder / "recipe.json").write_text("{}")
    with pytest.raises(DataError, match=r"recipe\.json is damaged: the entry name is missing"):
        load_run(folder)


def test_weights_that_are_not_finite(folder):
    state = load_file(folder / "best.safetensors")
    state["head.bias"][1] = float("nan")
    save_file(state, folder / "best.safetensors")
    with pytest.raises(DataError, match=r"not finite, first in head\.bias"):
        load_run(folder)


def test_class_lists_that_disagree(folder):
    (folder / "classes.json").write_text(json.dumps(["a", "b", "c"]))
    with pytest.raises(DataError, match=r"classes\.json and best\.json list other classes"):
        load_run(folder)
