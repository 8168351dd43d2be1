"""The model of a recipe, and fine-tuning from a file of ours."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from softless.errors import UsageError
from softless.training import Recipe, fit
from softless.training.model import build_model, load_start, model_args


@pytest.fixture
def start(tiny: Recipe, tmp_path: Path) -> Path:
    state = build_model(replace(tiny, seed=9), 3, 1).state_dict()
    save_file(
        {name: value.contiguous() for name, value in state.items()}, tmp_path / "start.safetensors"
    )
    return tmp_path / "start.safetensors"


def at(recipe: Recipe, path: Path) -> Recipe:
    return replace(recipe, model=replace(recipe.model, weights=str(path)))


def test_the_seed_draws_the_weights(tiny: Recipe):
    a, b, c = (
        build_model(replace(tiny, seed=seed), 3, 1).state_dict()["head.weight"]
        for seed in (0, 0, 1)
    )
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_arguments_follow_recipe_and_data(tiny: Recipe):
    args = model_args(replace(tiny, model=replace(tiny.model, args={"depth": 1})), 7, 2)
    assert args == {"op": "sima", "depth": 1, "img_size": 16, "num_classes": 7, "in_chans": 2}


def test_two_image_sizes_are_refused(tiny: Recipe):
    with pytest.raises(UsageError, match=r"model.args.img_size=16 and data.image_size=32 differ"):
        build_model(tiny.with_fields(**{"data.image_size": 32}), 3, 1)


def test_an_unknown_model_offers_the_nearest(tiny: Recipe):
    with pytest.raises(
        UsageError,
        match=r"no model named 'sima_diet_small_patch16_224'\. Did you mean 'sima_deit_small",
    ):
        build_model(
            tiny.with_fields(**{"model.name": "sima_diet_small_patch16_224", "model.op": None}),
            3,
            1,
        )


def test_weights_are_taken_over(tiny: Recipe, start: Path):
    torch.testing.assert_close(
        build_model(at(tiny, start), 3, 1).state_dict(),
        build_model(replace(tiny, seed=9), 3, 1).state_dict(),
    )


def test_a_head_of_other_classes_is_replaced_and_said(
    tiny: Recipe, start: Path, caplog: pytest.LogCaptureFixture
):
    tuned, fresh = (
        build_model(at(tiny, start), 5, 1).state_dict(),
        build_model(replace(tiny, seed=9), 3, 1).state_dict(),
    )
    assert "head of 3 classes: replaced by a new one of 5" in caplog.text
    assert tuned["head.weight"].shape == (5, 16)
    for name in fresh:
        if not name.startswith("head."):
            assert torch.equal(tuned[name], fresh[name]), name


def outputs(recipe: Recipe, start: Path, classes: Sequence[str]) -> Tensor:
    """The head's rows in a model for these classes."""
    model = build_model(recipe, len(classes), 1)
    load_start(model, start, classes)
    return model.state_dict()["head.weight"]


def test_a_head_follows_the_names_of_its_classes(
    tiny: Recipe, start: Path, caplog: pytest.LogCaptureFixture
):
    """The same three names in another order, three names of which one is new, and a file that tells
    no names.
    """
    before = load_file(start)["head.weight"]
    assert torch.equal(outputs(tiny, start, ("a", "b", "c")), before)
    assert (
        "does not name its classes: its head is kept, and its outputs are taken to be a, b, c"
        in caplog.text
    )
    (start.parent / "classes.json").write_text('["a", "b", "c"]')
    caplog.clear()
    assert torch.equal(outputs(tiny, start, ("a", "b", "c")), before)
    assert not caplog.text
    assert torch.equal(outputs(tiny, start, ("c", "a", "b")), before[[2, 0, 1]])
    assert "in another order" in caplog.text
    new = outputs(tiny, start, ("a", "b", "d"))
    assert not any(torch.equal(row, old) for row in new for old in before)
    assert "a head for other classes (a, b, c): replaced by a new one" in caplog.text


def test_positions_are_resampled_and_said(
    tiny: Recipe, start: Path, caplog: pytest.LogCaptureFixture
):
    larger = tiny.with_fields(**{"data.image_size": 32, "model.args.img_size": 32})
    tuned = build_model(at(larger, start), 3, 1).state_dict()
    assert "resampled" in caplog.text
    assert tuned["pos_embed"].shape == (1, 17, 16)
    fresh = build_model(replace(tiny, seed=9), 3, 1).state_dict()["pos_embed"]
    torch.testing.assert_close(tuned["pos_embed"][:, 0], fresh[:, 0])


def test_a_run_folder_is_a_start(tiny: Recipe, tmp_path: Path):
    short = replace(tiny, schedule=replace(tiny.schedule, epochs=1, warmup_epochs=0))
    fit(short, tmp_path / "first", device="cpu", progress=False)
    assert (
        fit(at(short, tmp_path / "first"), tmp_path / "second", device="cpu", progress=False).epochs
        == 1
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.args.depth": 3}, "of another model: blocks.2.* is missing.* and .* more"),
        ({"model.args.embed_dim": 32}, "of another model: .*cls_token has shape"),
    ],
)
def test_weights_of_another_model(tiny: Recipe, start: Path, fields: dict, message: str):
    with pytest.raises(UsageError, match=message):
        build_model(at(tiny.with_fields(**fields), start), 3, 1)


def test_no_weights(tiny: Recipe, tmp_path: Path):
    with pytest.raises(UsageError, match="no weights at"):
        build_model(at(tiny, tmp_path / "absent.safetensors"), 3, 1)
    (tmp_path / "broken.safetensors").write_bytes(b"no such thing")
    with pytest.raises(UsageError, match="not a readable safetensors file"):
        build_model(at(tiny, tmp_path / "broken.safetensors"), 3, 1)
