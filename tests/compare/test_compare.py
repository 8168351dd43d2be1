"""Every operator in one small ViT: which models those are, what is measured of them, and what a
diverging one does to the others.
"""

import importlib
from dataclasses import replace

import pytest
import torch

from softless.attention import OPERATORS, get
from softless.compare.comparison import compare
from softless.compare.models import in_comparison, in_small_vit
from softless.compare.steps import peak_bytes
from softless.errors import DivergedError, UsageError
from softless.experiment.groups import ModelSpec
from softless.experiment.recipe import Recipe
from softless.recipes import get_recipe
from softless.training.model import build_model

comparison = importlib.import_module("softless.compare.comparison")
training = importlib.import_module("softless.training")

MIB = 2**20


def short() -> Recipe:
    args = {"img_size": 8, "patch_size": 2, "embed_dim": 16, "depth": 1, "num_heads": 2}
    recipe = get_recipe("digits")
    return replace(
        recipe, model=ModelSpec("vit_tiny_patch16_224", "sima", args), threads=1
    ).with_fields(**{
        "schedule.epochs": 1,
        "schedule.warmup_epochs": 0,
        "data.limit": 64,
        "data.image_size": 8,
    })


def test_a_recipe_whose_host_has_convolutions_gets_the_small_vit_over_49_patches():
    chosen = in_small_vit(get_recipe("medmnist"))
    assert chosen.model.name == get_recipe("digits").model.name
    assert (chosen.model.args["img_size"], chosen.model.args["patch_size"]) == (56, 8)
    assert chosen.data == get_recipe("medmnist").data
    assert in_small_vit(get_recipe("digits")) == get_recipe("digits")
    odd = get_recipe("medmnist").with_fields(**{"data.image_size": 64})
    with pytest.raises(UsageError, match=r"image_size=64.*multiple of 7"):
        in_small_vit(odd)


@pytest.mark.parametrize("op", sorted(OPERATORS))
def test_landmarks_and_projected_tokens_are_a_quarter_of_the_patches(op):
    for recipe, patches in ((get_recipe("digits"), 16), (in_small_vit(get_recipe("medmnist")), 49)):
        chosen = in_comparison(recipe, op)
        given = {
            name: chosen.model.args[name]
            for name in ("landmarks", "projected")
            if name in get(op).options
        }
        assert set(given.values()) <= {patches // 4}
        assert not {"landmarks", "projected"} - set(given) & set(chosen.model.args)
        model = build_model(chosen, 2, 1)
        assert model(torch.zeros(1, 1, *2 * (chosen.data.side,))).shape == (1, 2)


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "out"
    return compare(short(), ("soft", "linformer", "softmax"), seeds=1, out=out, device="cpu")


def test_the_means_say_what_a_step_takes(outcome):
    means = {row["operator"]: row for row in outcome.rows() if row["kind"] == "mean"}
    assert list(means) == ["soft", "linformer", "softmax"]
    heads, tokens = 2, 17
    assert means["softmax"]["exps"] == heads * tokens**2
    assert means["linformer"]["exps"] == heads * tokens * 4
    assert means["linformer"]["options"] == "projected=4"
    assert means["linformer"]["parameters"] > means["softmax"]["parameters"]
    assert all(row["step_ms"] > 0 and row["peak_mib"] > 0 for row in means.values())
    assert all(row["transcendentals"] > row["exps"] for row in means.values())  # GELU
    shown = str(outcome)
    assert "ms per step" in shown
    assert "exps per image" in shown


def test_one_that_diverges_is_told_and_the_others_go_on(monkeypatch, tmp_path):
    right = training.fit

    def fit(recipe, *rest, **named):
        if recipe.model.op == "sima_none":
            raise DivergedError("the loss is nan at step 3")
        return right(recipe, *rest, **named)

    monkeypatch.setattr("softless.compare.training.fit", fit)
    found = compare(short(), ("sima_none", "sima", "softmax"), out=tmp_path / "out", device="cpu")
    assert [row["operator"] for row in found.rows() if row["kind"] == "mean"] == ["sima", "softmax"]
    told = [row for row in found.rows() if row["kind"] == "diverged"]
    assert [(row["operator"], row["seed"], row["how"]) for row in told] == [
        ("sima_none", "0", "the loss is nan at step 3")
    ]
    assert "sima_none-seed0 diverged: the loss is nan at step 3" in str(found)
    assert found.to_dict()["diverged"]


def test_nothing_to_compare_where_every_run_diverges(monkeypatch, tmp_path):
    def fit(*_, **__):
        raise DivergedError("the loss is nan at step 3")

    monkeypatch.setattr("softless.compare.training.fit", fit)
    with pytest.raises(DivergedError, match="every run diverged: the loss is nan"):
        compare(short(), ("sima", "softmax"), out=tmp_path / "out", device="cpu")


def test_data_and_epochs_reach_the_runs(monkeypatch, tmp_path):
    seen = []

    def fit(recipe, *_, **__):
        seen.append((recipe.data.path, recipe.schedule.epochs, recipe.model.name))
        raise DivergedError("enough")

    monkeypatch.setattr("softless.compare.training.fit", fit)
    with pytest.raises(DivergedError):
        compare(
            "medmnist",
            ("sima", "softmax"),
            data="a.npz",
            epochs=6,
            out=tmp_path / "out",
            device="cpu",
        )
    assert seen == [("a.npz", 6, get_recipe("digits").model.name)] * 2


def test_peak_memory_is_the_most_held_at_once():
    def call():
        first = torch.zeros(MIB // 4)  # 1 MiB
        second = torch.zeros(3 * MIB // 4)  # 3 MiB
        del first, second
        third = torch.zeros(2 * MIB // 4)  # alone: less than the two together
        return third.sum()

    assert 4 * MIB <= peak_bytes(call, torch.device("cpu")) < 4.1 * MIB
