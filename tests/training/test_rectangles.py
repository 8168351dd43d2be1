"""Classifiers of images that are no squares: data.image_size=[height,width]."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from softless.cli.eval import eval as eval_run
from softless.cli.predict import predict
from softless.data import build_transforms, eval_transform
from softless.errors import UsageError
from softless.recipes import get_recipe
from softless.tasks.loaded import load_run
from softless.tasks.page import write
from softless.training import Recipe, fit
from tests.training.conftest import tiny_recipe, write_npz

WIDE = {"data.image_size": "[16,24]"}


def wide(folder: Path) -> Recipe:
    recipe = tiny_recipe(write_npz(folder / "images.npz", pixels=32)).with_fields(**WIDE)
    args = {name: value for name, value in recipe.model.args.items() if name != "img_size"}
    return replace(recipe, model=replace(recipe.model, args=args))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wide")
    fit(wide(folder), folder / "run", device="cpu", progress=False)
    return folder / "run"


def test_a_run_sees_height_and_width(run: Path):
    loaded = load_run(run)
    assert (loaded.image_size, loaded.pixels) == ((16, 24), (16, 24))
    assert loaded.transform(Image.new("L", (40, 40))).shape == (1, 16, 24)
    assert loaded.model(torch.zeros(1, 1, 16, 24)).shape == (1, 3)
    assert json.loads((run / "model/config.json").read_text())["pretrained_cfg"]["input_size"] == [
        1,
        16,
        24,
    ]


def test_eval_predict_page_and_resume_agree_with_it(run: Path, tmp_path: Path):
    result = json.loads((run / "result.json").read_text())["test"]
    assert eval_run(run, device="cpu").to_dict()["top1"] == result["top1"]
    Image.fromarray(np.zeros((30, 50), dtype=np.uint8)).save(tmp_path / "one.png")
    predict(run, tmp_path / "one.png", out=tmp_path / "out", device="cpu")
    assert "16 × 24" in write([run], tmp_path / "page.html").read_text(encoding="utf-8")
    again = fit(wide(run.parent), run, resume=True, device="cpu", progress=False)
    assert again.test is not None
    assert again.test["top1"] == result["top1"]


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("size", [(40, 20), (20, 40), (33, 31)])
def test_the_middle_of_the_image_is_seen_undistorted(size, deep):
    """A ramp along each side keeps its step, and its middle lies in the middle."""
    width, height = size
    for across in (False, True):
        ramp = (
            np.tile(np.arange(width, dtype=np.float32) * 6, (height, 1))
            if across
            else np.tile(np.arange(height, dtype=np.float32)[:, None] * 6, (1, width))
        )
        image = (
            (ramp[..., None] / 255).astype(np.float32)
            if deep
            else Image.fromarray(ramp.astype(np.uint8))
        )
        seen = (
            eval_transform((8, 12), 1.0, "bilinear", (0.0,), (1.0,), 1, deep=deep)(image)[0].numpy()
            * 255
        )
        assert seen.shape == (8, 12)
        factor = max(8 / height, 12 / width)
        line = seen[4] if across else seen[:, 6]
        assert np.diff(line)[2:-2] == pytest.approx(6 / factor, abs=1.5)
        assert line.mean() == pytest.approx(ramp.mean(), abs=0.75 * 6 / factor), "to within a pixel"


def test_training_draws_the_same_shape(tmp_path: Path):
    for fields in ({}, {"augment.affine": None}, {"augment.affine": None, "data.range": "0..255"}):
        recipe = wide(tmp_path).with_fields(**fields)
        image = (
            np.zeros((32, 32, 1), dtype=np.float32)
            if "data.range" in fields
            else Image.new("L", (32, 32))
        )
        assert build_transforms(recipe, (0.5,), (0.5,), train=True)(image).shape == (1, 16, 24)


def test_other_tasks_and_sizes_that_do_not_fit_are_refused(tmp_path: Path):
    with pytest.raises(
        UsageError, match="height and width are for classification, and this recipe is for dino"
    ):
        get_recipe("dino").with_fields(**WIDE).check()
    with pytest.raises(UsageError, match=r"out of range|does not fit"):
        get_recipe("classify").with_fields(**{"data.image_size": "[0,24]"}).check()
    with pytest.raises(UsageError, match=r"data\.image_size"):
        get_recipe("classify").with_fields(**{"data.image_size": "[16,24,8]"}).check()
    with pytest.raises(UsageError, match="multiples of"):
        fit(
            wide(tmp_path).with_fields(**{"data.image_size": (16, 25)}),
            tmp_path / "no",
            device="cpu",
            progress=False,
        )
    assert not (tmp_path / "no").exists()
