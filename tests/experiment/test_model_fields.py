"""`model.args.*` is typed by the model's own signature; another model leaves behind what went with
the recipe's own.
"""

import itertools
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from softless.errors import UsageError
from softless.experiment.groups import DataSpec, ScheduleSpec
from softless.experiment.recipe import Recipe
from softless.models.arguments import arguments, takes
from softless.recipes import get_recipe
from softless.training import fit
from softless.training.model import build_model
from tests.training.conftest import write_npz


@pytest.mark.parametrize(
    ("fields", "args"),
    [
        ({"qkv_bias": "false"}, {"qkv_bias": False}),
        ({"qkv_bias": "TRUE", "depth": "3"}, {"qkv_bias": True, "depth": 3}),
        ({"mlp_ratio": "2"}, {"mlp_ratio": 2.0}),
        ({"img_size": "[32, 32]"}, {"img_size": (32, 32)}),
        ({"token_scale": "tokens"}, {"token_scale": "tokens"}),
        ({"token_scale": "none"}, {"token_scale": None}),
        ({"token_scale": "196"}, {"token_scale": 196}),
        ({"act": "relu"}, {"act": "relu"}),
        ({"init_values": "1e-5"}, {"init_values": 1e-5}),
        ({"ratio": "none"}, {"ratio": None}),
    ],
)
def test_texts_are_typed_by_the_signature(fields: dict[str, str], args: dict[str, Any]):
    recipe = get_recipe("digits").with_fields(**{
        f"model.args.{name}": text for name, text in fields.items()
    })
    for name, value in args.items():
        assert recipe.model.args[name] == value
        assert type(recipe.model.args[name]) is type(value)


@pytest.mark.parametrize(
    ("name", "fields", "said"),
    [
        (
            "digits",
            {"depth": "four"},
            "model.args.depth='four' does not fit: the field takes a whole number",
        ),
        ("digits", {"depth": -1}, "model.args.depth=-1 is out of range: .* at least 0"),
        ("digits", {"qkv_bias": "maybe"}, "takes true or false"),
        ("digits", {"qkv_bias": 1}, "takes true or false"),
        (
            "digits",
            {"dpeth": 4},
            "takes no argument 'model.args.dpeth'. Did you mean 'model.args.depth'",
        ),
        ("digits", {"token_scale": "tokns"}, "operator 'sima': token_scale='tokns' is not"),
        (
            "digits",
            {"ratio": 3},
            "'vit_tiny_patch16_224' with op='sima' takes no argument 'model.args.ratio'",
        ),
        ("digits", {"num_classes": 3}, "the data say how many classes"),
        ("digits", {"drop_path_rate": 0.1}, "set drop_path"),
        (
            "cards",
            {"depths": "deep"},
            "model.args.depths='deep' does not fit: the field takes several of",
        ),
        ("folder", {"lpi": "no"}, "takes true or false"),
        ("folder", {"weight_init": "jax"}, "takes no argument 'model.args.weight_init'"),
    ],
)
def test_what_the_model_does_not_take_is_refused_before_any_work(
    name: str, fields: dict[str, Any], said: str
):
    """Whether it came as text, or into the recipe by Python."""
    recipe = get_recipe(name)
    with pytest.raises(UsageError, match=said) as refused:
        recipe.with_fields(**{f"model.args.{name}": value for name, value in fields.items()})
    assert "\n" not in str(refused.value)
    with pytest.raises(UsageError, match=said):
        replace(recipe, model=replace(recipe.model, args={**recipe.model.args, **fields})).check()


SMALL: dict[str, dict[str, Any]] = {
    "vit_tiny_patch16_224": {"depth": 1, "embed_dim": 24, "num_heads": 2},
    "deit_tiny_distilled_patch16_224": {"depth": 1, "embed_dim": 24, "num_heads": 2},
    "xcit_nano_12_p16_224": {"depth": 1, "embed_dim": 32, "cls_attn_layers": 1},
    "sima_xcit_nano_12_p16_224": {"depth": 1, "embed_dim": 32, "cls_attn_layers": 1},
    "sima_cvt_13_224": {"depths": (1, 1, 1)},
    "soft_tiny_224": {"depths": (1, 1, 1, 1)},
    "resnet10t": {},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1), "embed_dim": 24, "num_heads": (1, 2)},
    "convnext_atto": {},
    "levit_128s": {},
    "vgg11": {},
}


@pytest.mark.parametrize("name", SMALL)
def test_a_signature_knows_every_argument_that_a_model_takes(name: str):
    """Found without building: a model built with what it tells is of the class whose signature was
    read.
    """
    known = arguments(name)
    assert known is not None
    assert {"num_classes", "in_chans"} <= set(known)
    assert set(SMALL[name]) <= set(known)
    assert "dpeth" not in known
    try:
        timm.create_model(name, drop_path_rate=0.1, **SMALL[name])
        taken = True
    except TypeError:
        taken = False
    assert takes(name, None, "drop_path_rate") is taken


def test_nearly_every_model_of_timm_has_a_signature():
    unknown = [name for name in timm.list_models() if arguments(name) is None]
    assert not unknown


def images(path: Path) -> DataSpec:
    return DataSpec(
        source="npz", path=str(write_npz(path / "images.npz", pixels=32)), image_size=64, in_chans=1
    )


@pytest.mark.parametrize("name", SMALL)
def test_another_model_trains_at_the_recipe_s_size(
    name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    """A recipe of 64 pixels, another model by name: its images' size follows, what was the old
    model's is left out and said.
    """
    caplog.set_level(logging.WARNING)
    recipe: Recipe = replace(
        get_recipe("folder"),
        data=images(tmp_path),
        batch_size=24,
        schedule=ScheduleSpec(epochs=1, warmup_epochs=0),
        threads=1,
    )
    args = {f"model.args.{key}": value for key, value in SMALL[name].items()}
    other = recipe.with_fields(**{"model.name": name, **args})
    assert other.model.args == SMALL[name]
    assert (
        "left out, since it goes with the recipe's own model 'sima_xcit_tiny_12_p16_224'"
        in caplog.text
    )
    if name == "vgg11":
        assert (
            "'vgg11' has no stochastic depth: the recipe's drop_path=0.05 is left out"
            in caplog.text
        )
        other.check()
        return  # 130 million weights
    fit(other, tmp_path / "run", device="cpu", progress=False)


def test_the_order_of_fields_does_not_matter():
    fields = {
        "model.name": "cvt_13_224",
        "model.op": "sima",
        "model.args.depths": "1, 1, 1",
        "model.args": "{'num_heads': 2}",
        "data.image_size": 64,
    }
    made = [
        get_recipe("digits").with_fields(**dict(order))
        for order in itertools.permutations(fields.items())
    ]
    assert all(one == made[0] for one in made)
    assert made[0].model.op == "sima"
    assert made[0].model.args == {"num_heads": 2, "depths": (1, 1, 1)}


def test_operator_and_arguments_stay_where_they_were_set(caplog: pytest.LogCaptureFixture):
    recipe = get_recipe("digits").with_fields(**{
        "model.name": "vit_small_patch16_224",
        "model.op": "sima",
        "model.args.depth": 2,
    })
    assert (recipe.model.op, recipe.model.args) == ("sima", {"depth": 2})
    assert "model.args.embed_dim=96" in caplog.text
    assert "model.args.depth" not in caplog.text
    assert "model.op" not in caplog.text
    assert recipe.data == get_recipe("digits").data


def test_options_of_another_operator_stay_behind(caplog: pytest.LogCaptureFixture):
    twin = get_recipe("digits").with_fields(**{"model.op": "softmax"})
    assert "token_scale" not in twin.model.args
    assert (
        "model.op=softmax: left out, since it is an option of 'sima': model.args.token_scale=tokens"
        in caplog.text
    )
    twin.check()
    caplog.clear()
    with pytest.raises(UsageError, match=r"takes no argument 'model.args.token_scale'"):
        get_recipe("digits").with_fields(**{
            "model.op": "softmax",
            "model.args.token_scale": "tokens",
        })
    with pytest.raises(UsageError, match=r"no operator named 'smia'. Did you mean 'sima'"):
        get_recipe("digits").with_fields(**{"model.op": "smia"})
    assert not caplog.text


def test_arguments_are_cleared_or_set_whole(caplog: pytest.LogCaptureFixture):
    digits = get_recipe("digits")
    assert digits.with_fields(**{"model.args": "{}"}).model.args == {}
    assert digits.with_fields(**{"model.args": {"depth": "2"}}).model.args == {"depth": 2}
    assert digits.with_fields(model={"args": {"depth": 2}, "op": "softmax"}).model.args == {
        "depth": 2
    }
    with pytest.raises(UsageError, match=r"model.args='4' is a group of fields: set one of them"):
        digits.with_fields(**{"model.args": "4"})
    assert not caplog.text
    same = digits.with_fields(**{"model.name": digits.model.name})
    assert same == digits
    assert "is the recipe's own model, whose arguments stay: patch_size=8" in caplog.text


def test_the_model_follows_the_images_size():
    for recipe in (get_recipe("digits"), get_recipe("medmnist")):
        larger = recipe.with_fields(**{"data.image_size": 64})
        model = build_model(larger, 3, 1).eval()
        assert model(torch.zeros(1, 1, 64, 64)).shape == (1, 3)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        (
            {"model.name": "vit_tiny_patch16_224", "model.args.num_heads": 7},
            "cannot be built for images of 128 x 128",
        ),
        ({"model.name": "soft_pyramid_tiny_224"}, "without an operator of its own: pass op="),
        ({"model.name": "resnet18", "model.op": "sima"}, "has no place for another attention"),
        (
            {"model.name": "vgg11", "drop_path": 0.1},
            "drop_path=0.1: 'vgg11' has no stochastic depth",
        ),
        (
            {"model.name": "vit_tiny_patch16_224", "data.image_size": 40},
            "image is 40 x 40 but patches are 16 x 16",
        ),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_sentence(fields: dict[str, Any], said: str):
    def begin() -> None:
        recipe = get_recipe("folder").with_fields(**fields)
        recipe.check()
        build_model(recipe, 3, 3)

    with pytest.raises(UsageError, match=said) as refused:
        begin()
    assert "\n" not in str(refused.value)
