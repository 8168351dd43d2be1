"""The loop: what a run leaves, that it learns, that it continues exactly, and that nothing broken
is kept.
"""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import softless.training.keep
from softless.data import open_splits
from softless.errors import DivergedError, UsageError
from softless.evaluation import wilson
from softless.experiment.checkpoints import Checkpoints
from softless.experiment.folder import BAG_TABLES, CHECKPOINTS, FILES, MODEL, REPORT
from softless.tasks.classification.task import Classification
from softless.tasks.loaded import load_run
from softless.training import Recipe, fit

UNTIMED = ("seconds", "images_per_second")


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


def untimed(path: Path) -> list[dict]:
    return [
        {key: value for key, value in line.items() if key not in UNTIMED} for line in lines(path)
    ]


def state(path: Path) -> dict:
    found = Checkpoints(path / "checkpoints").newest()
    assert found is not None
    return untimed_state(found)


def untimed_state(found: dict) -> dict:
    return {**found, "partial": {**found["partial"], "seconds": 0.0}}


def same(a: object, b: object) -> bool:
    """Equal to the last bit, containers and tensors alike."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return (
            isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        )
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_a_run_leaves_its_folder(tiny: Recipe, tmp_path: Path):
    out = tmp_path / "run"
    result = fit(tiny, out, device="cpu", progress=False)
    assert {path.name for path in out.iterdir()} - {"tensorboard"} == {
        *FILES,
        CHECKPOINTS,
        MODEL,
    } - {
        REPORT,
        "predictions.json",
        "left_out.json",
        "exports.jsonl",
        "recovered.json",
        "log.csv",
        "loggers.json",
        *BAG_TABLES,
    }
    log = lines(out)
    assert [line["epoch"] for line in log] == [1, 2, 3]
    assert all(
        {"loss", "top1", "balanced_accuracy", "auc", "seen", "expected"} <= set(line["val_ema"])
        for line in log
    )
    stored = json.loads((out / "result.json").read_text())
    assert stored["test"] == result.test
    kept = log[result.best_epoch - 1]
    assert stored["val"] == kept[{"averaged": "val_ema", "raw": "val"}[result.weights]]
    assert kept["kept"]
    assert (
        stored["weights"]
        == kept["weights"]
        == result.weights
        == json.loads((out / "best.json").read_text())["weights"]
    )
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["optim"]["lr"] == tiny.optim.lr
    assert {"softless", "torch", "timm", "machine"} <= set(recipe)
    assert json.loads((out / "classes.json").read_text()) == ["0", "1", "2"]


def test_the_test_split_is_scored_with_the_best_weights_and_read_once(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    read = []
    inner = Classification.evaluate

    def watched(self, model, loader, **options):
        read.append(len(loader.dataset))
        return inner(self, model, loader, **options)

    monkeypatch.setattr(Classification, "evaluate", watched)
    result = fit(tiny, tmp_path / "run", device="cpu", progress=False)
    assert read == [18, 18] * 3 + [15]
    kept = np.load(tmp_path / "run" / "predictions.npz")
    loaded = load_run(tmp_path / "run")
    test = open_splits(tiny.data, tiny.seed).test
    assert test is not None
    with torch.no_grad():
        logits = loaded.model(
            torch.stack([loaded.transform(test.image(i)) for i in range(len(test))])
        )
    torch.testing.assert_close(torch.from_numpy(kept["logits"]), logits, rtol=1e-5, atol=1e-6)
    right = int((kept["logits"].argmax(1) == test.targets).sum())
    assert result.test is not None
    assert result.test["top1"] == pytest.approx(right / 15)
    assert tuple(result.test["interval"]) == wilson(right, 15)
    assert list(kept["names"]) == [test.name(i) for i in range(15)]


def test_the_best_weights_are_left_for_timm(tiny: Recipe, tmp_path: Path):
    deit = replace(tiny, model=replace(tiny.model, name="deit_tiny_patch16_224"))
    fit(deit, tmp_path / "run", device="cpu", progress=False)
    loaded = load_run(tmp_path / "run")
    model = timm.create_model(f"local-dir:{tmp_path / 'run/model'}", pretrained=True).eval()
    image = torch.rand(2, 1, 16, 16)
    assert torch.equal(model(image), loaded.model(image))
    stored = load_run(tmp_path / "run/model")  # in the place of the run
    assert torch.equal(stored.model(image), loaded.model(image))
    assert stored.classes == loaded.classes
    picture = Image.effect_noise((24, 16), 60)
    assert torch.equal(stored.transform(picture), loaded.transform(picture))
    config = timm.data.resolve_model_data_config(model)
    assert tuple(config["input_size"]) == (1, 16, 16)
    assert list(config["mean"]) == loaded.best["mean"]
    assert (config["crop_pct"], config["interpolation"]) == (1.0, tiny.data.interpolation)


def test_a_model_that_cannot_be_described_ends_no_run(
    tiny: Recipe, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    odd = tiny.with_fields(**{"model.args.weight_init": "jax"})
    assert fit(odd, tmp_path / "run", device="cpu", progress=False).epochs == 3
    assert "no folder for timm's local-dir: is left: cannot say weight_init='jax'" in caplog.text
    assert not (tmp_path / "run/model").exists()


def test_it_learns_brightness(tiny: Recipe, tmp_path: Path):
    plain = replace(tiny.augment, mixup=0.0, cutmix=0.0, reprob=0.0, affine=(0.0, 0.0, 0.0))
    easy = replace(tiny, augment=plain, drop_path=0.0, schedule=replace(tiny.schedule, epochs=12))
    result = fit(easy, tmp_path / "run", device="cpu", progress=False)
    assert result.test is not None
    assert result.test["top1"] > 0.9


def test_resumed_equals_uninterrupted(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A run killed at the end of its second epoch, just before its state is written, continues bit
    for bit.
    """
    fit(tiny, tmp_path / "whole", device="cpu", progress=False)
    save = softless.training.checkpoint.save

    def killed(run):
        if run.epoch == 2:
            raise KeyboardInterrupt
        save(run)

    monkeypatch.setattr(softless.training.checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        fit(tiny, tmp_path / "cut", device="cpu", progress=False)
    monkeypatch.undo()
    assert len(lines(tmp_path / "cut")) == 2, (
        "the second epoch was logged before its state was lost"
    )
    torch.manual_seed(99)  # what ran in between must not matter
    fit(tiny, tmp_path / "cut", resume=True, device="cpu", progress=False)
    assert same(state(tmp_path / "whole"), state(tmp_path / "cut"))
    assert same(
        load_file(tmp_path / "whole/best.safetensors"), load_file(tmp_path / "cut/best.safetensors")
    )
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "cut")


def test_two_workers_give_the_same_run(tiny: Recipe, tmp_path: Path):
    short = replace(tiny, schedule=replace(tiny.schedule, epochs=2))
    fit(short, tmp_path / "none", device="cpu", progress=False)
    fit(
        replace(short, data=replace(short.data, workers=2)),
        tmp_path / "two",
        device="cpu",
        progress=False,
    )
    assert untimed(tmp_path / "none") == untimed(tmp_path / "two")


def test_a_seed_is_a_run(tiny: Recipe, tmp_path: Path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        fit(replace(tiny, seed=seed), tmp_path / name, device="cpu", progress=False)
    assert untimed(tmp_path / "a") == untimed(tmp_path / "b")
    assert untimed(tmp_path / "a") != untimed(tmp_path / "c")


def test_the_caller_keeps_generators_and_threads(tiny: Recipe, tmp_path: Path):
    def held() -> tuple:
        return torch.get_rng_state(), np.random.get_state()[1].tolist(), torch.get_num_threads()  # type: ignore[index]  # noqa: NPY002

    torch.manual_seed(7)
    before = held()
    short = replace(tiny, threads=2, schedule=replace(tiny.schedule, epochs=1, warmup_epochs=0))
    fit(short, tmp_path / "run", device="cpu", progress=False)
    assert same(before, held())


@pytest.mark.parametrize("broken", ["loss", "gradient"])
def test_what_is_not_finite_reaches_nothing(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
):
    calls, inner = [], Classification.loss

    def loss(self, logits, targets):
        calls.append(1)
        value = inner(self, logits, targets)
        if len(calls) == 7:  # third step of the second epoch
            if broken == "loss":
                return value * math.nan
            logits.register_hook(lambda grad: grad * math.inf)
        return value

    steps, step = [], torch.optim.AdamW.step

    def counted(self):
        steps.append(1)
        return step(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", counted)
    monkeypatch.setattr(Classification, "loss", loss)
    with pytest.raises(
        DivergedError, match=r"step 3 of epoch 2.*nothing of this step was kept"
    ) as raised:
        fit(tiny, tmp_path / "run", device="cpu", progress=False)
    assert raised.value.exit_code == 3
    assert (len(calls), len(steps)) == (7, 6), "the optimiser did not move in the seventh"
    assert len(lines(tmp_path / "run")) == 1
    kept = state(tmp_path / "run")
    assert (kept["epoch"], kept["step"]) == (1, 0)
    tensors = [
        *kept["model"].values(),
        *kept["ema"].values(),
        *load_file(tmp_path / "run/best.safetensors").values(),
    ]
    assert all(tensor.isfinite().all() for tensor in tensors)
    assert not (tmp_path / "run/result.json").exists()


def test_the_loss_diverges_for_real(tiny: Recipe, tmp_path: Path):
    wild = replace(tiny, optim=replace(tiny.optim, name="sgd", lr=1e30, clip_grad=None))
    with pytest.raises(DivergedError):
        fit(wild, tmp_path / "run", device="cpu", progress=False)


@pytest.mark.bar(
    "A15", "float16's scaler leaves steps out: borne for 20 in a row, then the run has diverged"
)
def test_float16_skips_are_borne_for_a_while(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """One overflowing gradient costs a step, 21 in a row end the run; the weights stay finite."""
    inner = Classification.loss
    half = replace(tiny, amp="float16", schedule=replace(tiny.schedule, epochs=8))

    def loss(self, logits, targets):
        value = inner(self, logits, targets)
        logits.register_hook(lambda grad: grad * math.inf)
        return value

    monkeypatch.setattr(Classification, "loss", loss)
    with pytest.raises(DivergedError, match="gradient norm") as raised:
        fit(half, tmp_path / "run", device="cpu", progress=False)
    assert "step 1 of epoch 6" in str(raised.value)  # 5 epochs of 4 steps, and one more
    assert all(value.isfinite().all() for value in state(tmp_path / "run")["model"].values())


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_amp_trains(tiny: Recipe, tmp_path: Path, amp: str):
    result = fit(tiny.with_fields(amp=amp), tmp_path / "run", device="cpu", progress=False)
    assert math.isfinite(result.val["loss"])
    weights = load_file(tmp_path / "run/best.safetensors").values()
    assert all(value.dtype == torch.float32 for value in weights)


def test_a_metric_that_the_data_cannot_give_is_said_at_once(tiny: Recipe, tmp_path: Path):
    npz = {
        key: value for key, value in np.load(str(tiny.data.path)).items() if key.startswith("train")
    }
    # the cut for validation takes none of class 1
    npz["train_labels"] = (np.arange(48)[:, None] == 0).astype(np.int64)
    np.savez(tmp_path / "images.npz", **npz)
    with pytest.raises(UsageError, match="auc cannot be computed"):
        fit(replace(tiny, metric="auc"), tmp_path / "run", device="cpu", progress=False)


def test_without_a_test_split_there_is_no_test_score(tiny: Recipe, tmp_path: Path):
    npz = {
        key: value
        for key, value in np.load(str(tiny.data.path)).items()
        if not key.startswith("test")
    }
    np.savez(tmp_path / "images.npz", **npz)
    assert fit(tiny, tmp_path / "run", device="cpu", progress=False).test is None
    assert not (tmp_path / "run/predictions.npz").exists()
