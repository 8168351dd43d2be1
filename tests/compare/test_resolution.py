"""Models evaluated at other sizes than they were trained at: the arms, their branches, the chart,
the refusals.
"""

import csv
import importlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import softless
from softless.cli.main import main
from softless.compare.resolution import ARMS, in_arm, resolution
from softless.errors import UsageError
from softless.experiment.groups import ModelSpec
from softless.experiment.recipe import Recipe
from softless.recipes import get_recipe
from softless.tasks.loaded import load_run

module = importlib.import_module("softless.compare.resolution")
NAMES = ["softmax", "sima", "sima_rescaled", "sima_tokens", "seqnorm", "xca"]


def short() -> Recipe:
    args = {
        "img_size": 16,
        "patch_size": 4,
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
        "token_scale": "tokens",
    }
    recipe = get_recipe("digits")
    return replace(
        recipe, model=ModelSpec("vit_tiny_patch16_224", "sima", args), threads=1
    ).with_fields(**{
        "schedule.epochs": 1,
        "schedule.warmup_epochs": 0,
        "data.limit": 64,
        "data.image_size": 16,
    })


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    out = tmp_path_factory.mktemp("resolution") / "out"
    return resolution(short(), seeds=2, out=out, device="cpu"), out


@pytest.mark.soak
def test_every_arm_at_every_size(outcome):
    found, _ = outcome
    assert list(dict.fromkeys(point.arm for point in found.points)) == NAMES
    assert [
        (point.factor, point.pixels, point.tokens) for point in found.points if point.arm == "sima"
    ] == [
        (0.5, 8, 5),
        (0.75, 12, 10),
        (1.0, 16, 17),
        (1.5, 24, 37),
        (2.0, 32, 65),
        (3.0, 48, 145),
        (4.0, 64, 257),
    ]
    assert all(point.images == 360 and point.seeds == "0 1" for point in found.points)
    assert all(point.low <= point.accuracy <= point.high for point in found.points)


@pytest.mark.soak
def test_at_the_training_size_nothing_has_changed(outcome):
    found, out = outcome
    for point in found.points:
        if point.factor == 1:
            assert (point.change, point.branch) == (0, 1)
            source = "sima" if point.arm == "sima_rescaled" else point.arm
            stored = [
                json.loads((out / f"{source}-seed{seed}" / "result.json").read_text())["test"][
                    "top1"
                ]
                for seed in (0, 1)
            ]
            assert point.accuracy == pytest.approx(np.mean(stored), abs=1e-6)


@pytest.mark.soak
def test_the_papers_scale_loses_its_branch_and_the_other_scales_do_not(outcome):
    found, _ = outcome
    branch = {point.arm: point.branch for point in found.points if point.factor == 4}
    assert branch["sima"] < 0.12  # 17 tokens became 257
    assert branch["sima_rescaled"] == pytest.approx(branch["sima"] * 257 / 17, rel=1e-3)
    assert all(0.3 < branch[arm] < 3 for arm in NAMES if arm != "sima")


@pytest.mark.soak
def test_what_each_arm_trains_and_evaluates(outcome):
    _, out = outcome
    trained = {arm.name: in_arm(short(), arm).model for arm in ARMS}
    assert {name: model.op for name, model in trained.items()} == {
        **dict.fromkeys(NAMES, "sima"),
        **{op: op for op in ("softmax", "seqnorm", "xca")},
    }
    assert {name for name, model in trained.items() if "token_scale" in model.args} == {
        "sima_tokens"
    }
    rescaled = next(arm for arm in ARMS if arm.name == "sima_rescaled")
    before = load_run(out / "sima-seed0")
    after = module._loaded(out / "sima-seed0", rescaled, "cpu")
    assert [layer.attn.options["token_scale"] for layer in after.model.blocks] == [17]
    image = torch.rand(1, 1, 16, 16)
    assert torch.equal(before.model(image), after.model(image))
    larger = torch.rand(1, 1, 32, 32)
    assert not torch.allclose(before.model(larger), after.model(larger))


@pytest.mark.soak
def test_the_chart_names_its_arms_and_is_the_same_for_the_same_numbers(outcome, tmp_path):
    from softless.compare.resolution_chart import draw_resolution

    found, _ = outcome
    names = {arm.name: arm.label for arm in ARMS}
    first, second = (
        draw_resolution(found.points, names).save(tmp_path / name, module.FIGURE).read_bytes()
        for name in ("a.svg", "b.svg")
    )
    assert first == second == found.figure.read_bytes()
    for name in names.values():
        assert f"<!-- {name} -->".encode() in first
    other = [replace(point, accuracy=point.accuracy / 2) for point in found.points]
    assert (
        draw_resolution(other, names).save(tmp_path / "c.svg", module.FIGURE).read_bytes() != first
    )


@pytest.mark.soak
def test_a_seed_that_diverges_is_left_out_and_told(monkeypatch, tmp_path, outcome):
    _, out = outcome
    monkeypatch.setattr(
        module,
        "trained",
        lambda *_, **__: ([], {"seqnorm-seed1": "loss is NaN", "xca-seed0": "", "xca-seed1": ""}),
    )
    (tmp_path / "out").symlink_to(out)
    found = resolution(short(), seeds=2, out=tmp_path / "out", device="cpu")
    assert {point.seeds for point in found.points if point.arm == "seqnorm"} == {"0"}
    assert "xca" not in {point.arm for point in found.points}
    assert "seqnorm-seed1 diverged: loss is NaN" in str(found)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--image-size", "40"], "choose a multiple of 16"),
        (["--image-size", "0"], "image_size=0"),
        (["--seeds", "0"], "at least one"),
        (["--op", "sima"], "has no option '--op'"),
    ],
)
def test_refusals(words, message, tmp_path, capsys):
    assert main(["bench", "resolution", "--out", str(tmp_path / "out"), *words]) == 2
    assert message in capsys.readouterr().err


def test_image_size_belongs_to_resolution(capsys):
    assert main(["bench", "twins", "--image-size", "32"]) == 2
    assert "bench twins has no option '--image-size'" in capsys.readouterr().err


def test_a_pyramid_is_refused():
    pyramid = replace(short(), model=ModelSpec("cvt_13_224", "sima")).with_fields(**{
        "data.image_size": 64
    })
    with pytest.raises(UsageError, match="no one grid of patches"):
        resolution(pyramid, device="cpu")


def test_the_class_attention_of_xcit_is_scaled_too(tmp_path):
    """The paper's scale, set to the patches of the training size in evaluation, in the blocks and
    behind them.
    """
    args = {"embed_dim": 16, "depth": 1, "num_heads": 2, "cls_attn_layers": 1}
    recipe = replace(short(), model=ModelSpec("xcit_nano_12_p8_224", "sima", args)).with_fields(**{
        "data.image_size": 16
    })
    from softless.training import fit

    sima, rescaled = (arm for arm in ARMS if arm.name in {"sima", "sima_rescaled"})
    fit(in_arm(recipe, sima), tmp_path / "sima-seed0", device="cpu", progress=False)
    before, after = (
        module._loaded(tmp_path / "sima-seed0", arm, "cpu").model for arm in (sima, rescaled)
    )
    assert [layer.options["token_scale"] for layer in module._scaled(after)] == [4, 4]
    image = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(before(image), after(image), rtol=1e-6, atol=1e-6)
    assert module._tokens(after, 64) == 64


def test_data_without_a_test_split_are_refused(monkeypatch):
    monkeypatch.setattr(module, "open_parts", lambda _: ({"train": None}, ("a", "b")))
    with pytest.raises(UsageError, match="no test split"):
        resolution(short(), device="cpu")


@pytest.mark.parametrize("name", ["digits", "classify"])
def test_what_the_documents_recommend(name):
    """docs/results.md: rescaled, the paper's form is as good or better at every other size; its
    branch loses nine tenths otherwise.
    """
    path = Path(softless.__file__).parents[1] / "benchmarks" / f"resolution_{name}.csv"
    with path.open(encoding="utf-8") as file:
        rows = {(row["arm"], float(row["factor"])): row for row in csv.DictReader(file)}
    factors = sorted({factor for _, factor in rows})
    assert 4.0 in factors
    for factor in factors:
        plain, rescaled = (
            float(rows[arm, factor]["accuracy"]) for arm in ("sima", "sima_rescaled")
        )
        assert rescaled > plain or (factor == 1 and rescaled == plain)
    assert float(rows["sima", 4.0]["branch"]) < 0.1
    assert 0.5 < float(rows["sima_rescaled", 4.0]["branch"]) < 2
    assert float(rows["sima_tokens", 1.0]["accuracy"]) <= float(rows["sima", 1.0]["accuracy"])
