"""A run that starts from weights: whose they are, what is fitted to them, and what is trained."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import _registry as registry

import softless
from softless.cli.main import main
from softless.errors import DataError, UsageError
from softless.experiment.groups import ModelSpec
from softless.recipes import FINE_TUNING, get_recipe
from softless.report.runs import read_run
from softless.tasks import page
from softless.training import Recipe, fit
from softless.training import recovered as recovering
from softless.training.fine_tuning import with_start, with_weights
from softless.training.model import assembled, build_model, model_args
from softless.training.recovered import drawn
from softless.training.start import exchanges, start_of
from tests.processes import each_rank
from tests.training.conftest import write_npz
from tests.training.test_agreement import commands
from tests.training.test_resume import same_run, stop_after

SHORT: dict[str, Any] = {"schedule.epochs": 1, "schedule.warmup_epochs": 0}


def record(folder: Path) -> dict:
    return json.loads((folder / "recovered.json").read_text())


@pytest.fixture
def softmax(tiny: Recipe, tmp_path: Path) -> Path:
    """A finished run of the tiny ViT with softmax."""
    recipe = replace(tiny, model=replace(tiny.model, op="softmax"))
    fit(recipe.with_fields(**SHORT), tmp_path / "softmax", device="cpu", progress=False)
    return tmp_path / "softmax"


def starting(recipe: Recipe, weights: Path | str, **fields: object) -> Recipe:
    named = {f"model.{name}": value for name, value in fields.items()}
    return recipe.with_fields(**{"model.weights": str(weights), **named})


# whose the weights are
def test_runs_folders_and_swapped_files_say_their_attention(
    tiny: Recipe, softmax: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    words = "swap test_vit sima --out swapped.safetensors --set token_scale=tokens"
    assert main([*words.split(), "--num-classes", "3"]) == 0
    folder = softmax / "model"
    own = "vit_tiny_patch16_224"
    for weights, host, operator in (
        (softmax, own, "softmax"),
        (softmax / "best.safetensors", own, "softmax"),
        (folder, own, "softmax"),
        (f"local-dir:{folder}", own, "softmax"),
        (folder / "model.safetensors", own, "softmax"),
        (tmp_path / "swapped.safetensors", "test_vit", "sima"),
    ):
        start = start_of(replace(tiny.model, weights=str(weights)))
        assert start is not None
        assert (start.host, start.operator, start.assumed) == (host, operator, False), weights
        assert exchanges(tiny.model, start) == (operator == "softmax")
    start = start_of(replace(tiny.model, weights=str(tmp_path / "swapped.safetensors")))
    assert start is not None
    assert start.options == {"token_scale": "tokens"}
    at_run = start_of(replace(tiny.model, weights=str(softmax)))
    assert at_run is not None
    assert at_run.pixels == (16, 16)
    assert len(at_run.preparation["mean"]) == 1


def test_a_stored_exchange_is_the_attention_of_its_weights(tiny: Recipe, tmp_path: Path):
    args = {**tiny.model.args, "in_chans": 1, "num_classes": 3}
    for name, layers in (("whole", "*"), ("part", "blocks.0.attn")):
        model = softless.create_model(tiny.model.name, **args)
        softless.swap(model, "sima", layers=layers, token_scale="tokens")
        softless.save_weights(model, tmp_path / name, data={"mean": (0.5,), "std": (0.5,)})
    start = start_of(replace(tiny.model, weights=str(tmp_path / "whole")))
    assert start is not None
    assert (start.operator, start.options) == ("sima", {"token_scale": "tokens"})
    assert not exchanges(tiny.model, start)
    with pytest.raises(UsageError, match=r"a part of its layers, and blocks\.1\.attn was kept"):
        start_of(replace(tiny.model, weights=str(tmp_path / "part")))


def test_a_bare_file_is_taken_for_the_hosts_own_attention(tiny: Recipe, softmax: Path):
    file = softmax.parent / "bare.safetensors"
    file.write_bytes((softmax / "best.safetensors").read_bytes())
    start = start_of(replace(tiny.model, weights=str(file)))
    assert start is not None
    assert start.assumed
    assert exchanges(tiny.model, start)
    for spec in (
        replace(tiny.model, op=None),
        replace(tiny.model, recover="none"),
        ModelSpec(name="sima_deit_tiny_patch16_224"),
    ):
        other = start_of(replace(spec, weights=str(file)))
        assert other is not None
        assert not exchanges(spec, other)
    xcit = start_of(ModelSpec(name="xcit_tiny_12_p16_224", op="softmax", weights=str(file)))
    assert xcit is not None
    assert xcit.operator == "xca"
    with pytest.raises(UsageError, match="no weights at"):
        start_of(replace(tiny.model, weights="nowhere"))


# what is fitted
def test_weights_of_softmax_are_fitted_to_before_the_first_step(
    tiny: Recipe, softmax: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    recipe = starting(tiny, softmax).with_fields(**SHORT)
    fit(recipe, tmp_path / "sima", device="cpu", progress=True)
    said = record(tmp_path / "sima")
    assert (said["trained_with"], said["model_has"], said["how"]) == ("softmax", "sima", "refitted")
    assert said["images"] == 48
    assert said["layers_fitted"] > 0
    assert [layer["path"] for layer in said["layers"]][:2] == [
        "blocks.0.attn.proj",
        "blocks.0.mlp.fc2",
    ]
    assert "softmax replaced by sima: 4 of 4 layers fitted on 48 images" in capsys.readouterr().err
    page.write([tmp_path / "sima"], tmp_path / "page.html", speeds={})
    told = (tmp_path / "page.html").read_text()
    assert "starts from the weights of softmax, softmax replaced by sima: 4 of 4 layers" in told
    assert str(tmp_path) not in told
    (tmp_path / "sima/recovered.json").write_text("[1")
    assert not read_run(tmp_path / "sima").started
    plain = starting(tiny, softmax, recover="none").with_fields(**SHORT)
    fit(plain, tmp_path / "bare", device="cpu", progress=False)
    assert record(tmp_path / "bare")["how"] == "exchanged"
    model: Any = softless.create_model(f"local-dir:{tmp_path / 'sima/model'}", pretrained=True)
    assert model.blocks[0].attn.op.name == "sima"


@pytest.mark.parametrize("op", ["sima", "soft", "seqnorm"])
def test_the_fitted_model_is_nearer_to_its_origin(
    tiny: Recipe, softmax: Path, tmp_path: Path, op: str, monkeypatch: pytest.MonkeyPatch
):
    """Features after the fit are nearer to softmax's than after a bare exchange."""
    states: dict[str, dict[str, torch.Tensor]] = {}

    def noted(task, model, world, origin):
        said = inner(task, model, world, origin)
        states[task.recipe.model.recover] = {n: v.clone() for n, v in model.state_dict().items()}
        return said

    inner = recovering.recovered
    monkeypatch.setattr("softless.training.setup.recovered", noted)
    for recover in ("auto", "none"):
        recipe = starting(tiny, softmax, recover=recover, op=op).with_fields(**SHORT)
        fit(recipe, tmp_path / recover, device="cpu", progress=False)
    loaded = softless.tasks.loaded.load_run(softmax)
    with np.load(str(tiny.data.path)) as arrays:
        images = torch.stack([loaded.transform(im) for im in map(_grey, arrays["test_images"])])
    built: Any = build_model(starting(tiny, softmax, op=op, recover="none"), 3, 1).eval()
    errors = {}
    with torch.no_grad():
        host: Any = loaded.model
        expected = host.forward_features(images)
        for recover, state in states.items():
            built.load_state_dict(state)
            errors[recover] = float((built.forward_features(images) - expected).norm())
    assert errors["auto"] < 0.9 * errors["none"]


def _grey(pixels):
    from PIL import Image

    return Image.fromarray(pixels)


def test_the_same_attention_is_taken_as_it_is(tiny: Recipe, softmax: Path, tmp_path: Path):
    recipe = starting(tiny, softmax, op="softmax").with_fields(**SHORT)
    fit(recipe, tmp_path / "again", device="cpu", progress=False)
    assert record(tmp_path / "again")["how"] == "taken"
    for recover, message in (("refit", "there is nothing to fit"),):
        with pytest.raises(UsageError, match=message):
            fit(starting(recipe, softmax, recover=recover), tmp_path / "x", device="cpu")
    fit(tiny.with_fields(**SHORT), tmp_path / "drawn", device="cpu", progress=False)
    assert not (tmp_path / "drawn/recovered.json").exists()


def test_a_killed_run_continues_without_fitting_again(
    tiny: Recipe, softmax: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = starting(tiny, softmax)
    with monkeypatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, tmp_path / "cut", device="cpu", progress=False)
    fit(recipe, tmp_path / "whole", device="cpu", progress=False)
    before = record(tmp_path / "cut")
    softmax.rename(tmp_path / "gone")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a continued run fits again")

    monkeypatch.setattr(recovering, "refit", refuse)
    fit(None, tmp_path / "cut", resume=True, device="cpu", progress=False)
    assert same_run(tmp_path / "whole", tmp_path / "cut")
    assert record(tmp_path / "cut") == before


def test_a_run_killed_before_its_first_checkpoint_fits_again_to_the_same_bits(
    tiny: Recipe, softmax: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = starting(tiny, softmax)
    with monkeypatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, tmp_path / "cut", device="cpu", progress=False)
    fit(recipe, tmp_path / "whole", device="cpu", progress=False)
    fit(None, tmp_path / "cut", resume=True, device="cpu", progress=False)
    assert same_run(tmp_path / "whole", tmp_path / "cut")


@pytest.mark.slow
def test_two_ranks_have_what_the_first_one_fitted(tiny: Recipe, softmax: Path, tmp_path: Path):
    """They end where one process ends, up to rounding."""
    recipe = starting(tiny, softmax).with_fields(**{
        "data.workers": 0,
        "drop_path": 0.0,  # drawn by rank
        "augment.mixup": 0.0,  # within the images of a rank
        "augment.cutmix": 0.0,
    })
    (tmp_path / "two").mkdir()
    ended = each_rank(commands(tmp_path / "two", recipe, recipe))
    assert [code for code, _ in ended] == [0, 0], ended
    fit(recipe, tmp_path / "one", device="cpu", progress=False)
    said = [record(tmp_path / name) for name in ("one", "two/run")]
    for layer, other in zip(*(entry["layers"] for entry in said), strict=True):
        assert layer["stream_after"] == pytest.approx(other["stream_after"], rel=1e-4)
    alone, shared = (load_file(tmp_path / name / "best.safetensors") for name in ("one", "two/run"))
    for name, value in alone.items():
        torch.testing.assert_close(shared[name], value, rtol=1e-3, atol=1e-4)


def test_images_are_drawn_in_turn_from_each_class():
    targets = np.array([0] * 90 + [1] * 6 + [2] * 4)
    chosen = drawn(targets, 12, seed=3)
    assert np.bincount(targets[chosen]).tolist() == [4, 4, 4]
    assert np.bincount(targets[drawn(targets, 20, seed=3)]).tolist() == [10, 6, 4]
    assert chosen == drawn(targets, 12, seed=3) != drawn(targets, 12, seed=4)
    assert len(drawn(np.eye(7, dtype=int), 5, seed=0)) == 5
    assert drawn(targets, 1000, seed=0) == list(range(100))


def test_too_few_images_are_said(tiny: Recipe, softmax: Path, tmp_path: Path):
    few = starting(tiny, softmax).with_fields(**{"data.limit": 6, "batch_size": 6})
    with pytest.raises(UsageError, match=r"6 training images are too few to fit 'sima'.*none"):
        fit(few, tmp_path / "few", device="cpu", progress=False)


def test_what_a_part_of_the_attention_has_no_weights_of_is_refused(
    tiny: Recipe, softmax: Path, tmp_path: Path
):
    gated = starting(tiny, softmax).with_fields(**{"model.args.gated": True})
    with pytest.raises(UsageError, match=r"model\.args\.gated=True is a part of the attention"):
        fit(gated, tmp_path / "gated", device="cpu", progress=False)
    deeper = starting(tiny, softmax).with_fields(**{"model.args.depth": 3})
    with pytest.raises(UsageError, match="is a checkpoint of another model"):
        fit(deeper, tmp_path / "deeper", device="cpu", progress=False)


def test_other_sizes_channels_and_classes_are_fitted_and_said(
    tiny: Recipe, softmax: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    path = write_npz(tmp_path / "wide.npz", classes=4, pixels=24)
    recipe = starting(tiny, softmax).with_fields(
        **SHORT,
        **{
            "data.path": str(path),
            "data.image_size": "24,32",
            "model.args.img_size": "24,32",
            "data.in_chans": 3,
        },
    )
    fit(recipe, tmp_path / "wide", device="cpu", progress=False)
    for sentence in (
        "a head of 3 classes: replaced by a new one of 4",
        "is for images of 1 channels: patch_embed.proj.weight is fitted to 3",
        "position embeddings of another image size: resampled",
    ):
        assert caplog.text.count(sentence) == 1, sentence
    assert record(tmp_path / "wide")["how"] == "refitted"


# timm's own weights, from a file on this machine
@pytest.fixture
def released(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """`test_vit` of timm, whose released weights lie on this machine."""
    torch.manual_seed(3)
    state = timm.create_model("test_vit").state_dict()
    save_file(state, tmp_path / "released.safetensors")
    full = "test_vit.r160_in1k"
    released = replace(
        registry._model_pretrained_cfgs[full],
        file=str(tmp_path / "released.safetensors"),
        hf_hub_id=None,
        url="",
    )
    for key in (full, "test_vit"):
        monkeypatch.setitem(registry._model_pretrained_cfgs, key, released)
    return "test_vit"


@pytest.mark.parametrize("op", [None, "softmax", "sima"])
def test_timms_weights_start_a_run(
    tiny: Recipe, released: str, tmp_path: Path, op: str | None, caplog: pytest.LogCaptureFixture
):
    result = softless.train(
        replace(tiny, model=ModelSpec(name=released)),
        set={
            **SHORT,
            "model.op": op,
            "model.pretrained": True,
            "data.image_size": 32,
        },
        out=tmp_path / "run",
        device="cpu",
    )
    said = record(tmp_path / "run")
    assert said["trained_with"] == "softmax"
    assert said["how"] == ("refitted" if op == "sima" else "taken")
    best = json.loads((tmp_path / "run/best.json").read_text())
    assert np.allclose(best["mean"], [0.5])  # one channel of the weights' own numbers
    assert "are those of the weights" in caplog.text
    assert (best["architecture"], best["model_args"].get("op")) == (released, op)
    assert softless.eval(result.run_dir, device="cpu")


def test_one_channel_takes_the_sum_of_three(tiny: Recipe, released: str, tmp_path: Path):
    recipe = replace(tiny, model=ModelSpec(name=released, op="sima", pretrained=True))
    recipe = recipe.with_fields(**{"data.image_size": 32, "model.recover": "none"})
    built = build_model(recipe, 3, 1).state_dict()
    file = load_file(tmp_path / "released.safetensors")
    torch.testing.assert_close(
        built["patch_embed.proj.weight"], file["patch_embed.proj.weight"].sum(1, keepdim=True)
    )
    torch.testing.assert_close(built["blocks.0.attn.qkv.weight"], file["blocks.0.attn.qkv.weight"])


def test_weights_that_cannot_be_had_are_one_sentence(tiny: Recipe, tmp_path: Path):
    recipe = replace(tiny, model=ModelSpec(name="vit_tiny_patch16_224", pretrained=True))
    with pytest.raises(DataError, match=r"are not on this machine and cannot be downloaded"):
        fit(recipe, tmp_path / "run", device="cpu", progress=False)
    assert not (tmp_path / "run").exists()


# fields that do not go together
@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"model.pretrained": True, "model.weights": "x"}, "both say where the weights come from"),
        (
            {
                "model.name": "sima_deit_tiny_patch16_224",
                "model.op": None,
                "model.pretrained": True,
            },
            r"name its host, .*model\.name=deit_tiny_patch16_224 model\.op=sima",
        ),
        (
            {"model.name": "vit_base_patch16_plus_240", "model.pretrained": True},
            "no released weights of 'vit_base_patch16_plus_240'",
        ),
        ({"model.recover": "refit"}, "none are named"),
        ({"model.freeze": "backbone"}, "would stay as it was drawn"),
        ({"model.freeze": "backbone", "model.lora": 2, "model.weights": "x"}, "choose one"),
        ({"model.lora": 2, "optim.layer_decay": 0.7}, r"with model\.lora=2 none of their"),
        ({"model.lora": 2, "grad_checkpointing": True}, "would not have the updates"),
        (
            {"model.freeze": "backbone", "model.weights": "x", "grad_checkpointing": True},
            "no backward pass needs them",
        ),
    ],
)
def test_what_does_not_go_together_is_said(tiny: Recipe, fields: dict, message: str):
    with pytest.raises(UsageError, match=message):
        tiny.with_fields(**fields).check()


def test_parts_are_for_classifiers(tiny: Recipe):

    with pytest.raises(UsageError, match=r"model\.lora=4 is for classification"):
        get_recipe("boxes").with_fields(**{"model.lora": 4}).check()


# the verb
def test_the_verb_takes_model_and_numbers_from_the_weights(
    tiny: Recipe, softmax: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    changes: dict = {"data.in_chans": 1, "data.source": "npz", "batch_size": 12}
    changes |= {"schedule.epochs": 1, "data.image_size": 16, "augment.auto_augment": None}
    result = softless.train(
        "classify",
        data=tiny.data.path,
        weights=softmax,
        set={**changes, "model.op": "sima"},
        out=tmp_path / "run",
        device="cpu",
    )
    stored = json.loads((tmp_path / "run/recipe.json").read_text())
    assert stored["model"]["name"] == "vit_tiny_patch16_224"
    assert stored["model"]["args"]["embed_dim"] == 16
    assert stored["optim"]["lr"] == 1e-5  # a tenth, for a model that was fitted
    assert stored["schedule"]["epochs"] == 1
    origin = json.loads((softmax / "best.json").read_text())
    assert stored["data"]["mean"] == origin["mean"]
    assert "optim.lr=1e-05 in place of" in caplog.text
    assert record(result.run_dir)["how"] == "refitted"
    caplog.clear()
    again = softless.train(
        "classify",
        data=tiny.data.path,
        weights=softmax,
        set={**changes, "model.op": "sima"},
        out=tmp_path / "run",
        resume=True,
        device="cpu",
    )
    assert again == result
    assert softless.train(out=tmp_path / "run", resume=True, device="cpu") == result


@pytest.mark.parametrize(
    ("fields", "rate"),
    [
        ({"model.op": "softmax"}, 1e-4),
        ({"model.op": "sima"}, 1e-5),
        ({"model.op": "sima", "model.recover": "none"}, 1e-4),
        ({"model.op": "sima", "model.lora": 4}, 1e-4),
        ({"model.op": "softmax", "model.lora": 4}, 1e-3),
        ({"model.op": "sima", "model.freeze": "backbone"}, 1e-3),
        ({"model.op": "sima", "optim.lr": 3e-4}, 3e-4),
    ],
)
def test_a_model_that_is_fitted_moves_gently(softmax: Path, fields: dict[str, Any], rate: float):
    """Its weights cancel each other, so the usual rate leads away from what they know."""
    recipe = with_weights(get_recipe("classify"), softmax, fields).with_fields(**fields)
    assert with_start(recipe, fields, FINE_TUNING["classify"]).optim.lr == rate


def test_fields_of_the_user_stay(tiny: Recipe, softmax: Path, tmp_path: Path):
    changes: dict = {"data.in_chans": 1, "data.source": "npz", "batch_size": 12}
    changes |= {"schedule.epochs": 1, "data.image_size": 16, "augment.auto_augment": None}
    changes |= {"optim.lr": 2e-3, "data.mean": "0.25", "data.std": "0.5", "model.op": "soft"}
    softless.train(
        "classify", data=tiny.data.path, weights=str(softmax), set=changes, out=tmp_path / "run"
    )
    stored = json.loads((tmp_path / "run/recipe.json").read_text())
    assert stored["optim"]["lr"] == 2e-3
    assert stored["data"]["mean"] == [0.25]
    assert stored["model"]["args"]["sampling"] == "pool"
    with pytest.raises(UsageError, match=r"--weights a and model\.weights=b both say"):
        softless.train("classify", data="x", weights="a", set="model.weights=b")
    with pytest.raises(UsageError, match=r"model=… brings its own"):
        softless.train(data="x", weights="a", model=torch.nn.Linear(1, 1))


def test_the_log_names_what_was_assumed(
    tiny: Recipe, softmax: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    file = tmp_path / "bare.safetensors"
    file.write_bytes((softmax / "best.safetensors").read_bytes())
    with caplog.at_level(logging.WARNING):
        fit(starting(tiny, file).with_fields(**SHORT), tmp_path / "run", progress=False)
    assert "it is taken for 'softmax', which 'vit_tiny_patch16_224' has by itself" in caplog.text
    assert record(tmp_path / "run")["assumed"]


def test_a_folder_that_names_its_classes_gives_each_its_output(tiny: Recipe, tmp_path: Path):
    names = ("c", "a", "b")
    model = build_model(tiny, 3, 1)
    softless.save_weights(
        model, tmp_path / "folder", data={"mean": (0.5,), "std": (0.5,)}, classes=names
    )
    args = model_args(tiny, 3, 1)
    built = assembled(
        starting(tiny, tmp_path / "folder"),
        {"architecture": tiny.model.name, "model_args": args},
        "classification",
        1,
        ("a", "b", "c"),
    )
    before, after = (m.state_dict()["head.weight"] for m in (model, built))
    assert torch.equal(after, before[[1, 2, 0]])
