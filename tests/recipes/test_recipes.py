"""Every recipe runs, is listed, and says what it is; the papers' recipes resolve to the papers'
numbers.
"""

import importlib
import math
import pkgutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import softless.recipes
from softless.cli.list import list as list_names
from softless.cli.train import train
from softless.data import EpochOrder, build_transforms
from softless.errors import ResumeMismatch, UsageError
from softless.experiment.checkpoints import Checkpoints
from softless.recipes import RECIPES, get_recipe
from softless.tasks.classification.task import Classification
from softless.training import Recipe, fit
from softless.training.model import build_model
from softless.training.optim import averaged, optimizer, scheduler

every = pytest.mark.parametrize("name", RECIPES)
PAPERS = {"imagenet_sima_deit_small": 300, "imagenet_sima_xcit_small": 400}
papers = pytest.mark.parametrize("name", PAPERS)


def test_the_list_is_the_folder():
    files = {
        module.name
        for module in pkgutil.iter_modules(softless.recipes.__path__)
        if module.name[0] != "_"
    }
    assert set(RECIPES) == files


@every
def test_a_recipe_is_complete(name: str):
    recipe = get_recipe(name)
    assert recipe.name == name
    assert recipe.summary
    text = importlib.import_module(f"softless.recipes.{name}").__doc__ or ""
    for head in ("Reaches:", "Takes:", "Paper:", f"train --recipe {name}"):
        assert head in text, head


@every
def test_quick(name: str, tmp_path: Path):
    recipe = get_recipe(name).quick(tmp_path / "data")
    result = fit(recipe, tmp_path / "run", device="cpu", progress=False)
    assert result.epochs == 1
    assert result.test is not None
    assert result.test["seen"] == result.test["expected"] == 8
    assert math.isfinite(result.val.get("loss", 0.0))  # which not every task has in validation
    state = Checkpoints(tmp_path / "run/checkpoints").newest()
    assert state is not None
    assert state["updates"] == 2


@every
def test_quick_changes_sizes_alone(name: str, tmp_path: Path):
    whole, small = get_recipe(name), get_recipe(name).quick(tmp_path)
    assert small.augment == whole.augment
    assert replace(small.optim, lr=whole.optim.lr, base_batch=whole.optim.base_batch) == whole.optim
    assert small.effective_lr == whole.effective_lr
    assert (small.metric, small.class_weights, small.ema_decay) == (
        whole.metric,
        whole.class_weights,
        whole.ema_decay,
    )
    assert (small.model.name, small.model.op) == (whole.model.name, whole.model.op)


@pytest.mark.parametrize("name", ["digits", "classify", "medmnist"])
def test_the_models_build_at_full_size(name: str):
    recipe = get_recipe(name)
    model = build_model(recipe, 10, recipe.data.in_chans)
    images = torch.zeros(2, recipe.data.in_chans, recipe.data.side, recipe.data.side)
    assert model.eval()(images).shape == (2, 10)


def test_an_unknown_recipe_offers_the_nearest():
    with pytest.raises(UsageError, match=r"no recipe named 'digit'\. Did you mean 'digits'"):
        get_recipe("digit")


@papers
def test_optimiser_groups_are_the_papers(name: str):
    """No decay on biases, norms, gammas and cls_token (and DeiT's pos_embed); 0.05 on every other
    parameter.
    """
    recipe = get_recipe(name)
    model = build_model(recipe, 1000, 3)
    built = optimizer(recipe, model)
    names = {id(parameter): key for key, parameter in model.named_parameters()}
    found = {
        names[id(p)]: group["weight_decay"] for group in built.param_groups for p in group["params"]
    }
    assert len(found) == len(names)
    free = {"cls_token", "pos_embed"}
    expected = {
        key: 0.0 if p.ndim <= 1 or key in free else 0.05 for key, p in model.named_parameters()
    }
    assert found == expected
    assert {
        key for key, value in found.items() if value == 0 and model.get_parameter(key).ndim > 1
    } <= free
    assert isinstance(built, torch.optim.AdamW)
    for group in built.param_groups:
        assert (group["betas"], group["eps"]) == ((0.9, 0.999), 1e-8)
        assert group["lr"] == pytest.approx(1e-3)
    assert recipe.optim.clip_grad is None


@papers
def test_schedule_is_the_papers(name: str):
    """5 warm-up epochs from 1e-6, then a cosine over all epochs from 1e-3 to 1e-5; timm 0.4.9's
    values at epoch starts.
    """
    recipe, epochs = get_recipe(name), PAPERS[name]
    assert recipe.batch_size == 1024
    assert recipe.effective_lr == pytest.approx(1e-3)
    moved, steps = torch.optim.AdamW([torch.zeros(1)], lr=recipe.effective_lr), 3
    schedule, total = scheduler(recipe, moved, steps)
    assert total == epochs
    for epoch in (0, 1, 4, 5, 6, epochs // 2, epochs - 1):
        schedule.step_update(epoch * steps)
        warm = 1e-6 + epoch * (1e-3 - 1e-6) / 5
        cosine = 1e-5 + 0.5 * (1e-3 - 1e-5) * (1 + math.cos(math.pi * epoch / epochs))
        assert moved.param_groups[0]["lr"] == pytest.approx(warm if epoch < 5 else cosine), epoch


@papers
def test_transforms_are_the_papers(name: str):
    recipe = get_recipe(name)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    assert (recipe.data.mean, recipe.data.std) == (mean, std)
    steps = build_transforms(recipe, mean, std, train=True).transforms
    assert [type(step).__name__ for step in steps] == [
        "RandomResizedCropAndInterpolation",
        "RandomHorizontalFlip",
        "RandAugment",
        "MaybeToTensor",
        "Normalize",
        "RandomErasing",
    ]
    crop, flip, augment, _, normalize, erase = steps
    assert (crop.size, crop.scale, crop.ratio) == ((224, 224), (0.08, 1.0), (3 / 4, 4 / 3))  # type: ignore[attr-defined]
    assert "bicubic" in repr(crop)
    assert flip.p == 0.5  # type: ignore[attr-defined]
    assert augment.num_layers == 2  # type: ignore[attr-defined]
    assert {(op.magnitude, op.magnitude_std) for op in augment.ops} == {(9, 0.5)}  # type: ignore[attr-defined]
    assert {"PosterizeIncreasing", "SolarizeIncreasing"} <= {op.name for op in augment.ops}  # type: ignore[attr-defined]
    assert (tuple(normalize.mean.tolist()), erase.probability) == (pytest.approx(mean), 0.25)  # type: ignore[attr-defined]
    assert (erase.rand_color, erase.per_pixel, erase.min_count, erase.max_count) == (  # type: ignore[attr-defined]
        False,
        True,
        1,
        1,
    )


@papers
def test_evaluation_is_the_papers(name: str):
    """Resize to 224 and crop ratio 1.0, and raw weights though averaged ones are tracked."""
    recipe = get_recipe(name)
    steps = build_transforms(recipe, (0.5,) * 3, (0.5,) * 3, train=False).transforms
    assert [type(step).__name__ for step in steps] == [
        "Resize",
        "CenterCrop",
        "MaybeToTensor",
        "Normalize",
    ]
    assert (steps[0].size, steps[1].size) == (224, (224, 224))  # type: ignore[attr-defined]
    assert "bicubic" in repr(steps[0])
    assert recipe.ema_evaluate is False
    ema = averaged(recipe, torch.nn.Linear(1, 1))
    assert ema is not None
    assert ema.get_decay(step=300_000) == 0.99996  # of 375,000 steps
    assert recipe.metric == "top1"


@papers
def test_mixing_and_model_are_the_papers(name: str):
    recipe = get_recipe(name)
    mixer = Classification(recipe, tuple("ab"), (1, 1)).mixer
    found = (
        mixer.mixup_alpha,
        mixer.cutmix_alpha,
        mixer.mix_prob,
        mixer.switch_prob,
        mixer.mode,
        mixer.label_smoothing,
    )
    assert found == (0.8, 1.0, 1.0, 0.5, "batch", 0.1)
    assert recipe.augment.repeats == 3
    order = EpochOrder(9, 3, repeats=recipe.augment.repeats)
    assert [sorted({p % 9 for p in batch}).__len__() for batch in order] == [1, 1, 1], (
        "each image three times"
    )
    assert (recipe.amp, recipe.drop_path, recipe.data.image_size) == ("float16", 0.05, 224)


def test_the_two_papers_recipes_differ_in_model_and_length():
    deit, xcit = (get_recipe(name) for name in PAPERS)
    same: Recipe = replace(
        xcit,
        name=deit.name,
        summary=deit.summary,
        model=deit.model,
        schedule=replace(xcit.schedule, epochs=300),
    )
    assert same == deit


def test_a_recipe_is_found_by_the_name_that_it_had_once():
    assert get_recipe("folder") == get_recipe("classify")
    assert "(also: folder)" in str(list_names("recipes"))
    assert getattr(list_names("recipes", "folder"), "recipe", None) == "classify"


def test_a_run_that_was_begun_under_an_old_name_goes_on_under_both(tmp_path: Path):
    recipe = get_recipe("classify").quick(tmp_path / "data")
    done = fit(recipe, tmp_path / "run", device="cpu", progress=False)
    stored = tmp_path / "run/recipe.json"
    stored.write_text(stored.read_text().replace('"name": "classify"', '"name": "folder"'))
    for name in ("folder", "classify"):
        assert (
            fit(
                replace(recipe, name=name),
                tmp_path / "run",
                resume=True,
                device="cpu",
                progress=False,
            )
            == done
        )
        assert train(name, out=tmp_path / "run", resume=True, device="cpu") == done
    with pytest.raises(
        ResumeMismatch, match="it is a run of recipe 'folder', and 'digits' was asked"
    ):
        train("digits", out=tmp_path / "run", resume=True, device="cpu")
