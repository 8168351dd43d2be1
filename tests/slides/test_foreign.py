"""Images far from the size of the training: said, counted in the result, and the ways out."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import softless
from softless.cli.main import main
from softless.cli.predict import predict
from softless.cli.slide import RESULT
from softless.data import notices
from softless.errors import UsageError
from softless.layers import Attention
from softless.models.records import SEAL
from softless.models.scale import Scale, set_training_size, training_scale
from softless.recipes import get_recipe
from softless.slides.pixels import Bytes, Scaled
from softless.tasks.loaded import load_run
from softless.tasks.page import write
from softless.training import fit

ADVICE = "Answers so far from it are often wrong. --resize training"


@pytest.fixture
def said() -> Iterator[list[str]]:
    """What the package said, each sentence as if for the first time."""
    found: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            found.append(record.getMessage())

    notices._said.clear()
    handler, log = Keep(), logging.getLogger("softless")
    log.addHandler(handler)
    yield found
    log.removeHandler(handler)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier trained at 32 pixels, four tokens of 16 x 16."""
    folder = tmp_path_factory.mktemp("foreign")
    recipe = (
        get_recipe("folder").quick(folder / "data").with_fields(**{"model.args.token_scale": None})
    )
    fit(recipe, folder / "run", device="cpu", progress=False)
    return folder / "run"


def pixels(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (height, width, 3), dtype=np.uint8)


def told(said: list[str]) -> list[str]:
    return [text for text in said if "of the training" in text]


def test_a_run_leaves_its_training_size(run: Path) -> None:
    assert json.loads((run / "best.json").read_text())["trained_at"] == {
        "pixels": [32, 32],
        "tokens": 4,
    }
    assert training_scale(load_run(run).model) == Scale(32, 32, 4)


@pytest.mark.parametrize(
    ("recipe", "wanted"),
    [
        ("nuclei", (64, 64)),
        ("cards", (64, 64)),
        ("aerial", (64, 64)),
        ("vessels", (64, 64)),
        ("dino", (32, 32)),
    ],
)
def test_runs_of_other_tasks_know_it_and_older_ones_by_their_recipe(
    recipe: str, wanted: tuple[int, int], tmp_path: Path
) -> None:
    fit(get_recipe(recipe).quick(tmp_path / "data"), tmp_path / "run", device="cpu", progress=False)
    found = training_scale(load_run(tmp_path / "run").model)
    assert found is not None
    assert (found.height, found.width) == wanted
    best = json.loads((tmp_path / "run" / "best.json").read_text())
    assert best.pop("trained_at")["tokens"] == found.tokens
    del best[SEAL]  # older ones have no digest
    (tmp_path / "run" / "best.json").write_text(json.dumps(best))
    assert training_scale(load_run(tmp_path / "run").model) == found


@pytest.mark.parametrize(("recipe", "tokens"), [("folder", 4), ("medmnist", 16)])
def test_recipes_for_ones_own_images_hold_the_scale_of_the_training(
    recipe: str, tokens: int, tmp_path: Path
) -> None:
    """Their first loss is that of the paper's form, which they are at the training size."""
    quick = get_recipe(recipe).quick(tmp_path / "data")
    assert quick.model.args["token_scale"] == "training"
    fit(quick, tmp_path / "run", device="cpu", progress=False)
    fit(
        quick.with_fields(**{"model.args.token_scale": None}),
        tmp_path / "paper",
        device="cpu",
        progress=False,
    )
    first, second = (
        json.loads((tmp_path / name / "log.jsonl").read_text().splitlines()[0])
        for name in ("run", "paper")
    )
    assert first["train_loss"] == pytest.approx(second["train_loss"], rel=1e-4)
    assert (
        json.loads((tmp_path / "run" / "best.json").read_text())["model_args"]["token_scale"]
        == tokens
    )
    assert (
        f"token scale of {tokens} tokens"
        in write([tmp_path / "run"], tmp_path / "page.html").read_text()
    )
    assert (
        "token scale of the paper"
        in write([tmp_path / "paper"], tmp_path / "page2.html").read_text()
    )


def test_stream_says_it(run: Path, said: list[str]) -> None:
    small = softless.stream(run, pixels(48, 64), quiet=True)
    assert small.foreign is None
    assert told(said) == []
    large = softless.stream(run, Image.fromarray(pixels(160, 96)), quiet=True)
    assert large.foreign is not None
    assert (large.foreign.image, large.foreign.trained) == (Scale(160, 96, 60), Scale(32, 32, 4))
    assert told(said) == [large.foreign.advice()]
    assert ADVICE in said[-1]


def test_stream_resizes_to_the_training(run: Path, said: list[str]) -> None:
    found = softless.stream(run, pixels(160, 96), resize="training", quiet=True)
    assert told(said) == []
    assert found.size == (41, 25)  # 32 x 32 pixels in the shape of the image
    assert found.foreign is None
    loaded = load_run(run)
    small = Scaled(Bytes(pixels(160, 96)), (160 / 41, 96 / 25)).read(0, 0, 41, 25)
    wanted = softless.stream(
        loaded.model, small, mean=loaded.best["mean"], std=loaded.best["std"], quiet=True
    )
    torch.testing.assert_close(found.logits, wanted.logits)
    assert softless.stream(run, pixels(160, 96), resize=80, quiet=True).size == (80, 48)


def test_scaled_pixels_are_read_in_parts_without_a_seam(monkeypatch: pytest.MonkeyPatch) -> None:
    fine = Bytes(pixels(300, 200))
    whole = Scaled(fine, (4.0, 4.0)).read(0, 0, 75, 50)
    monkeypatch.setattr("softless.slides.pixels.AT_ONCE", 50)
    parts = Scaled(fine, (4.0, 4.0)).read(0, 0, 75, 50)
    assert parts.shape == whole.shape
    assert int(np.abs(parts.astype(int) - whole).max()) <= 1


def test_the_forms_of_an_image_are_one(run: Path, tmp_path: Path) -> None:
    Image.fromarray(pixels(48, 64)).save(tmp_path / "a.png")
    forms: list[Any] = [pixels(48, 64), Image.fromarray(pixels(48, 64)), tmp_path / "a.png"]
    first, *rest = (softless.stream(run, form, quiet=True).logits for form in forms)
    for other in rest:
        torch.testing.assert_close(other, first)


def test_what_has_a_size_already_is_not_resized(run: Path) -> None:
    for image, more in (
        (torch.zeros(3, 32, 32), {}),
        (pixels(48, 64), {"mpp": 0.5, "slide_mpp": 0.25}),
    ):
        with pytest.raises(UsageError, match="leave one of them out"):
            softless.stream(run, image, resize=32, quiet=True, **more)
    with pytest.raises(UsageError, match="give 'training', or pixels"):
        softless.stream(run, pixels(48, 64), resize=0, quiet=True)
    model = softless.create_model("sima_deit_tiny_patch16_224", depth=1)
    with pytest.raises(UsageError, match="does not know at which size it was trained"):
        softless.stream(model, pixels(48, 64), resize="training", quiet=True)


def test_the_verb_says_it_and_has_the_ways_out(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    notices._said.clear()
    Image.fromarray(pixels(160, 96)).save(tmp_path / "a.png")
    words = ["slide", str(run), str(tmp_path / "a.png"), "--quiet"]

    def result(name: str, *more: str) -> dict[str, Any]:
        assert main([*words, "--out", str(tmp_path / name), *more]) == 0
        found: dict[str, Any] = json.loads((tmp_path / name / "a.png" / RESULT).read_text())
        return found

    assert result("plain")["foreign"]["factor"] == 15
    assert "15 times the 4 tokens (32 x 32 pixels) of the training" in capsys.readouterr().err
    assert result("small", "--resize", "training")["foreign"] is None
    assert result("pixels", "--resize", "40")["size"] == [40, 24]
    assert "of the training" not in capsys.readouterr().err
    plain, scaled = result("plain2"), result("scaled", "--token-scale", "training")
    assert not np.allclose(plain["logits"], scaled["logits"])
    model = load_run(run).model
    for module in model.modules():
        if isinstance(module, Attention):
            module.options["token_scale"] = 4.0
    for block in model.cls_attn_blocks:  # type: ignore[union-attr]
        block.attn.options["token_scale"] = 4.0
    best = json.loads((run / "best.json").read_text())
    wanted = softless.stream(model, pixels(160, 96), mean=best["mean"], std=best["std"], quiet=True)
    assert np.allclose(scaled["logits"], wanted.logits[0].tolist(), rtol=1e-4, atol=1e-5)
    assert main([*words, "--out", str(tmp_path / "bad"), "--resize", "big"]) == 2
    assert main([*words, "--out", str(tmp_path / "bad"), "--token-scale", "big"]) == 2


def test_explain_says_it_of_whole_images(
    tmp_path: Path, said: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    fit(
        get_recipe("vessels").quick(tmp_path / "data"),
        tmp_path / "run",
        device="cpu",
        progress=False,
    )
    Image.fromarray(pixels(320, 256)).save(tmp_path / "a.png")
    found = softless.explain(tmp_path / "run", tmp_path / "a.png")
    assert found.foreign is not None
    assert found.foreign.factor == 20
    assert told(said) == [found.foreign.advice()]
    small = softless.explain(tmp_path / "run", tmp_path / "a.png", resize="training")
    assert (small.foreign, small.grid) == (None, (6, 4))  # 72 x 57 pixels, filled up to 96 x 64
    words = [
        "explain",
        str(tmp_path / "run"),
        str(tmp_path / "a.png"),
        "--out",
        str(tmp_path / "maps"),
        "--json",
    ]
    capsys.readouterr()
    assert main(words) == 0
    assert json.loads(capsys.readouterr().out)["foreign"]["a.png"]["factor"] == 20
    assert main([*words, "--resize", "training"]) == 0
    assert json.loads(capsys.readouterr().out)["foreign"] == {}
    answered = predict(
        tmp_path / "run", tmp_path / "a.png", tmp_path / "labels", device="cpu", overlays=False
    )
    assert answered.foreign in said
    assert "1 of 1 images are far from the training size" in answered.to_dict()["foreign"]
    with pytest.raises(UsageError, match="a tensor is taken as it is"):
        softless.explain(tmp_path / "run", torch.zeros(3, 64, 64), resize=32)


def test_explain_frames_a_classifiers_image_at_another_size(run: Path, said: list[str]) -> None:
    # framed as in evaluation: never foreign
    assert softless.explain(run, pixels(160, 160)).grid == (2, 2)
    assert told(said) == []
    large = softless.explain(run, pixels(160, 160), resize=96)
    assert large.grid == (6, 6)
    assert large.foreign is not None
    assert softless.explain(run, pixels(160, 160), resize="training").grid == (2, 2)


def test_a_tensor_is_compared_too(said: list[str]) -> None:
    model = softless.create_model("sima_deit_tiny_patch16_224", depth=1)
    set_training_size(model, 32, 32)
    assert softless.explain(model, torch.zeros(3, 96, 96)).foreign is not None
    assert len(told(said)) == 1


def microscope(folder: Path, dpi: float, ending: str = "png") -> Path:
    """Class folders of images of 64 x 80 pixels whose files say their resolution."""
    random = np.random.default_rng(0)
    for part, count in (("train", 6), ("val", 3)):
        for label, low in (("dark", 0), ("light", 128)):
            where = folder / part / label
            where.mkdir(parents=True)
            for number in range(count):
                values = random.integers(low, low + 128, (64, 80, 3), dtype=np.uint8)
                Image.fromarray(values).save(where / f"{number}.{ending}", dpi=(dpi, dpi))
    return folder


FIELDS: dict[str, Any] = {
    "data.image_size": 32,
    "schedule.epochs": 1,
    "data.crop_pct": 1.0,
    "data.workers": 0,
    "amp": "none",
}


def trained(tmp_path: Path, dpi: float, ending: str = "png") -> Path:
    data = microscope(tmp_path / "data", dpi, ending)
    small = (
        get_recipe("folder")
        .quick(tmp_path / "quick")
        .with_fields(**{"data.path": str(data), **FIELDS})
    )
    fit(small, tmp_path / "run", device="cpu", progress=False)
    return tmp_path / "run"


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_a_run_knows_the_resolution_that_its_images_were_seen_at(
    ending: str, tmp_path: Path, said: list[str]
) -> None:
    """Files of 0.5 micrometres per pixel whose short side of 64 pixels became 32."""
    run = trained(tmp_path, 50_800, ending)
    told_of = json.loads((run / "best.json").read_text())["trained_at"]["mpp"]
    assert told_of == pytest.approx(1.0, rel=1e-3)
    scale = training_scale(load_run(run).model)
    assert scale is not None
    assert scale.mpp == told_of
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "slide.tif"
    resolution = {"resolution": (1e4 / 0.25, 1e4 / 0.25), "resolutionunit": "CENTIMETER"}
    tifffile.imwrite(
        path, pixels(256, 256), tile=(64, 64), photometric="rgb", metadata=None, **resolution
    )
    fine = softless.stream(run, path, quiet=True, resize=128)
    assert fine.mpp == pytest.approx((0.5, 0.5), rel=1e-3)
    assert any(
        "looked at with 0.5 micrometres per pixel, and the model was trained with 1." in text
        for text in said
    )
    said.clear()
    alike = softless.stream(run, path, quiet=True, mpp="training")
    assert alike.size == (64, 64)
    assert not any("micrometres per pixel" in text for text in said)
    torch.testing.assert_close(alike.logits, softless.stream(run, path, quiet=True, mpp=1.0).logits)


def test_a_printers_resolution_is_none_of_a_microscope(tmp_path: Path, run: Path) -> None:
    other = trained(tmp_path, 300)
    assert "mpp" not in json.loads((other / "best.json").read_text())["trained_at"]
    with pytest.raises(UsageError, match="mpp=training: this model does not know the resolution"):
        softless.stream(other, pixels(64, 64), mpp="training")
    with pytest.raises(UsageError, match="mpp=half: give micrometres per pixel"):
        softless.stream(run, pixels(64, 64), mpp="half")
