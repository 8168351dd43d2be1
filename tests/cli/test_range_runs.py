"""Runs on images of 12 bits: the declared range goes with the run, so that eval, predict, explain,
the page and the published folder read alike.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import timm
import torch
from PIL import Image

import softless
from softless.cli.eval import eval as eval_run
from softless.cli.explain import explain as explain_command
from softless.cli.predict import predict
from softless.cli.slide import slide
from softless.errors import DataError, SoftlessError, UsageError
from softless.experiment.ranges import Range
from softless.experiment.recipe import Recipe, recipe_from
from softless.recipes import get_recipe
from softless.tasks.loaded import load_run
from softless.tasks.page import write
from softless.training import fit
from tests.cli.test_one_answer import measures
from tests.data.test_dicom import made
from tests.experiment.test_ranges import NEAR, deep_png, formula

RANGE = "100..4000"
FIELDS: dict[str, dict[str, Any]] = {
    "folder": {"augment.auto_augment": None},
    "nuclei": {"detection.min_score": 0.0},
    "vessels": {"segmentation.fov": None, "segmentation.ignore": ()},
    "dino": {},
}


def deepened(root: Path) -> None:
    """The 8-bit pictures below a folder as 16-bit ones of 12 bits; label images stay."""
    rng = np.random.default_rng(0)
    for path in sorted(root.rglob("*.png")):
        if not {"labels", "fov"} & set(path.relative_to(root).parts):
            with Image.open(path) as image:
                pixels = np.asarray(image).astype(np.uint16)
            deep_png(16 * pixels + rng.integers(0, 16, pixels.shape).astype(np.uint16), path)


def deep_recipe(name: str, folder: Path) -> Recipe:
    recipe = get_recipe(name).quick(folder)
    assert recipe.data.path is not None
    if recipe.data.source == "npz":
        file = Path(recipe.data.path)
        arrays: dict[str, Any] = dict(np.load(file))
        np.savez(
            file,
            **{
                key: 16 * value.astype(np.uint16) if "images" in key else value
                for key, value in arrays.items()
            },
        )
    deepened(Path(recipe.data.path))
    return recipe.with_fields(**{"amp": "none", "data.range": RANGE, **FIELDS[name]})


@pytest.fixture(scope="module", params=list(FIELDS))
def run(request, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    fit(deep_recipe(request.param, folder / "data"), folder / "run", device="cpu", progress=False)
    return folder / "run"


def data_of(run: Path) -> Path:
    root = Path(json.loads((run / "recipe.json").read_text())["data"]["path"])
    return next(
        place for place in (root / "test", root / "images" / "test", root) if place.exists()
    )


def test_the_range_goes_with_the_run(run: Path):
    loaded = load_run(run)
    assert loaded.scale == Range.parse(RANGE)
    assert recipe_from(json.loads((run / "recipe.json").read_text())).data.range == RANGE
    if loaded.task == "classification":
        about = json.loads((run / "model/config.json").read_text())["pretrained_cfg"]
        assert about["notes"] == [f"data.range={RANGE}"]


def test_eval_is_the_result_and_predict_answers(run: Path, tmp_path: Path):
    if load_run(run).task == "dino":
        measured = eval_run(
            run, knn=2, linear=True, set=("epochs=1", "batch=4"), device="cpu"
        ).to_dict()
        assert {"knn", "linear"} <= measured.keys()
        return
    result = measures(json.loads((run / "result.json").read_text())["test"])
    found = eval_run(run, device="cpu")
    assert {name: value for name, value in found.to_dict().items() if name in result} == result
    answers = predict(run, data_of(run), tmp_path / "out", device="cpu")
    assert answers.exit_code == 0
    assert answers.images > 0
    Image.fromarray(np.zeros((40, 40, 3), np.uint8)).save(tmp_path / "bytes.png")
    with pytest.raises(
        DataError,
        match=r"8-bit pixels, which lie in 0\.\.255, and data\.range=100\.\.4000 reaches beyond",
    ):
        predict(run, tmp_path / "bytes.png", tmp_path / "other", device="cpu")
    page = Path(write([run], tmp_path / "report.html")).read_text()
    assert "could not" not in page
    assert "only 8-bit" not in page


def test_explain_sees_what_the_formula_says(run: Path, tmp_path: Path):
    """A file, an array of what it stores, and the formula's tensor have the same maps."""
    loaded = load_run(run)
    values = np.random.default_rng(1).integers(0, 4096, (64, 64, 3)).astype(np.uint16)
    deep_png(values, tmp_path / "a.png")
    mean, std = (np.reshape(loaded.best[name], (-1, 1, 1)) for name in ("mean", "std"))
    side = loaded.image_size if loaded.task in {"classification", "dino"} else 64
    if side != 64:
        values = values[:side, :side]
        deep_png(values, tmp_path / "a.png")
    wanted = formula(values, 100, 4000).transpose(2, 0, 1)
    wanted = (
        wanted
        if loaded.in_chans == 3
        else np.einsum("chw,c->hw", wanted, [0.299, 0.587, 0.114])[None]
    )
    tensor = torch.from_numpy((wanted - mean) / std).float()
    if loaded.best["crop_pct"] == 1 or loaded.task in {"detection", "segmentation"}:
        assert (
            loaded.transform(softless_picture(tmp_path / "a.png", loaded)) - tensor
        ).abs().max() <= NEAR / std.min()
        maps = [softless.explain(loaded, image) for image in (tmp_path / "a.png", values, tensor)]
        for other in maps[1:]:
            assert torch.allclose(maps[0].key, other.key, rtol=1e-4, atol=1e-6)
    drawn = explain_command(str(run), tmp_path / "a.png", out=tmp_path / "maps", device="cpu")
    assert len(drawn.files) == 1
    with pytest.raises(UsageError, match="holds bytes, and data"):
        softless.explain(loaded, np.zeros((64, 64, 3), np.uint8))
    if loaded.task == "classification":
        tifffile.imwrite(
            tmp_path / "a.tif", values, tile=(16, 16), photometric="rgb", metadata=None
        )
        told = slide(str(run), str(tmp_path / "a.tif"), out=tmp_path / "slides", device="cpu")
        one = slide(
            str(run), str(tmp_path / "a.png"), out=tmp_path / "slides of images", device="cpu"
        )
        assert told.answers[0].classes == pytest.approx(one.answers[0].classes, rel=1e-4)
    else:
        with pytest.raises(SoftlessError, match="slides"):
            slide(str(run), str(tmp_path / "a.png"), out=tmp_path / "slides", device="cpu")


def softless_picture(path: Path, loaded: Any) -> Any:
    from softless.data.reading import read_image

    return read_image(path, loaded.in_chans, loaded.scale)


def test_another_range_does_not_continue_a_run(run: Path):
    recipe = recipe_from(json.loads((run / "recipe.json").read_text()))
    (run / "result.json").unlink()
    with pytest.raises(UsageError, match=r"data\.range|range"):
        fit(
            recipe.with_fields(**{"data.range": "0..4095"}),
            run,
            device="cpu",
            progress=False,
            resume=True,
        )


def test_the_published_folder_says_its_range(run: Path, tmp_path: Path):
    if load_run(run).task != "classification":
        return
    for model in (
        timm.create_model(f"local-dir:{run / 'model'}", pretrained=True),
        softless.create_model(f"local-dir:{run / 'model'}", pretrained=True),
    ):
        values = np.random.default_rng(1).integers(0, 4096, (64, 64, 3)).astype(np.uint16)
        deep_png(values, tmp_path / "a.png")
        found, own = (
            softless.explain(model, tmp_path / "a.png"),
            softless.explain(run, tmp_path / "a.png"),
        )
        assert torch.equal(found.key, own.key)


@pytest.mark.parametrize("text", ["window=1500,level=-600", None])
def test_a_run_on_dicom(tmp_path: Path, text: str | None):
    """Slices of a CT with a window of their own: trained, tested again, predicted and explained,
    with a declared window and with the file's.
    """
    recipe = get_recipe("folder").quick(tmp_path / "data")
    root = Path(recipe.data.path or "")
    for path in sorted(root.rglob("*.png")):
        with Image.open(path) as image:
            values = 8 * np.asarray(image.convert("L")).astype(np.int16)
        ct: dict[str, Any] = {
            "RescaleSlope": 1,
            "RescaleIntercept": -1024,
            "WindowCenter": -100,
            "WindowWidth": 1000,
        }
        made(path.with_suffix("" if path.stem[-1] in "02468" else ".dcm"), values, **ct)
        path.unlink()
    recipe = recipe.with_fields(**{"amp": "none", "data.range": text, "augment.auto_augment": None})
    fit(recipe, tmp_path / "run", device="cpu", progress=False)
    result = measures(json.loads((tmp_path / "run/result.json").read_text())["test"])
    again = eval_run(tmp_path / "run", device="cpu").to_dict()
    assert {name: value for name, value in again.items() if name in result} == result
    answers = predict(tmp_path / "run", root / "test", tmp_path / "out", device="cpu")
    assert (answers.exit_code, answers.images) == (0, again["seen"])
    assert (
        len(
            explain_command(
                str(tmp_path / "run"), root / "test", out=tmp_path / "maps", device="cpu"
            ).files
        )
        == answers.images
    )
    if text is not None:
        frames = 8 * np.random.default_rng(0).integers(0, 256, (3, 64, 64)).astype(np.int16)
        made(tmp_path / "several.dcm", frames, NumberOfFrames=3, **ct)
        made(tmp_path / "second.dcm", frames[1], **ct)
        options: dict[str, Any] = {"device": "cpu", "overlays": False}
        several = predict(
            tmp_path / "run", tmp_path / "several.dcm", tmp_path / "several", page=1, **options
        )
        second = predict(tmp_path / "run", tmp_path / "second.dcm", tmp_path / "second", **options)
        rows = [
            (tmp_path / name / "predictions.csv").read_text().splitlines()[1]
            for name in ("several", "second")
        ]
        assert rows[0].partition(",")[2] == rows[1].partition(",")[2]
        assert several.images == second.images == 1
        with pytest.raises(UsageError, match=r"page=3: .* holds 3 pictures, counted from 0"):
            predict(
                tmp_path / "run", tmp_path / "several.dcm", tmp_path / "none", page=3, **options
            )
        deep_png(frames[0].astype(np.uint16), tmp_path / "a.png")
        with pytest.raises(UsageError, match=r"page=1: .* only DICOM files have pages here"):
            explain_command(
                str(tmp_path / "run"),
                tmp_path / "a.png",
                out=tmp_path / "no maps",
                page=1,
                device="cpu",
            )
