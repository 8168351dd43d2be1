"""k batches make one step: the weights of the large batch, also across an interruption; rate, decay
and length follow.
"""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softless.errors import UsageError
from softless.recipes import get_recipe
from softless.tasks.table import open_task
from softless.training import OptimSpec, Recipe, ScheduleSpec, fit
from softless.training.gradients import backward
from softless.training.model import build_for
from tests.processes import run_ranks
from tests.training.test_loop import lines, same, state, untimed

BOUND = 1e-6


def in_parts(recipe: Recipe, count: int) -> Recipe:
    return replace(recipe, batch_size=recipe.batch_size // count, accumulate=count)


@pytest.fixture
def steady(tiny: Recipe) -> Recipe:
    """Without stochastic depth, which draws for each part: 12 steps of 12 images, mixed."""
    return replace(tiny, drop_path=0.0)


def weights(out: Path) -> dict[str, torch.Tensor]:
    """The last ones."""
    return {name: value for name, value in state(out)["model"].items() if value.is_floating_point()}


def apart(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name] - other[name]).abs().max()) for name in one)


@pytest.mark.parametrize("count", [2, 3])
def test_the_weights_are_those_of_the_large_batch(steady: Recipe, tmp_path: Path, count: int):
    large = replace(steady, optim=OptimSpec(name="adamw", lr=1e-3, base_batch=12, eps=1e-4))
    fit(large, tmp_path / "large", device="cpu", progress=False)
    fit(in_parts(large, count), tmp_path / "parts", device="cpu", progress=False)
    assert apart(weights(tmp_path / "large"), weights(tmp_path / "parts")) <= BOUND
    told = [
        [(line["lr"], len(line)) for line in lines(tmp_path / name)] for name in ("large", "parts")
    ]
    assert told[0] == told[1], "rate and steps follow the images of a step"
    wrong = replace(large, batch_size=6)
    fit(wrong, tmp_path / "small", device="cpu", progress=False)
    assert apart(weights(tmp_path / "large"), weights(tmp_path / "small")) > 100 * BOUND


def test_an_interrupted_run_goes_on_with_the_same_bits(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from softless.training import loop

    recipe = replace(in_parts(tiny, 3), save=replace(tiny.save, every_steps=1))
    fit(recipe, tmp_path / "whole", device="cpu", progress=False)
    inner, count = loop.backward, []

    def dies(*args, **keywords):
        count.append(1)
        if len(count) == 10:  # opening's trial steps count as well: somewhere in the run
            raise KeyboardInterrupt
        return inner(*args, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "backward", dies)
        with pytest.raises(KeyboardInterrupt):
            fit(recipe, tmp_path / "cut", device="cpu", progress=False)
    fit(None, tmp_path / "cut", resume=True, device="cpu", progress=False)
    assert same(state(tmp_path / "whole"), state(tmp_path / "cut"))
    assert untimed(tmp_path / "whole") == untimed(tmp_path / "cut")


@pytest.mark.parametrize("name", ["vessels", "multilabel", "dino"])
def test_every_mean_over_images_gives_the_large_batch(tmp_path: Path, name: str):
    """A step of each task, with the centre that DINO's teacher moves in it."""
    found = {}
    for count in (1, 2):
        recipe = replace(get_recipe(name).quick(tmp_path / name), drop_path=0.0, threads=1)
        task = open_task(in_parts(recipe, count))
        torch.manual_seed(0)
        model = build_for(task)
        learner = task.learner(model).train()
        for module in learner.modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                module.eval()  # it would see a part at a time
        loader = task.train_loader(0, 1)
        loader.set_epoch(0)
        given = task.prepare(next(iter(loader)), torch.device("cpu"), epoch=0, step=0)
        loss = backward(task, learner, given, parts=count, amp="none", device=torch.device("cpu"))
        found[count] = [
            loss,
            *(p.grad for p in model.parameters() if p.grad is not None),
            *(buffer.clone() for key, buffer in model.named_buffers() if key.endswith("center")),
        ]
    for one, other in zip(found[1], found[2], strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=1e-6)


def test_the_rate_and_the_length_follow(tiny: Recipe):
    scaled = replace(
        tiny, optim=OptimSpec(lr=1e-3, base_batch=12), schedule=ScheduleSpec(min_epoch_steps=10)
    )
    assert scaled.with_fields(accumulate=4).effective_lr == pytest.approx(4e-3)
    assert scaled.with_fields(accumulate=4).schedule.min_epoch_steps is None, (
        "what is set is never changed"
    )


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"accumulate": 0}, r"accumulate=0.*\[1, 1000000\]"),
        (
            {"accumulate": 5},
            r"batch_size=12 x accumulate=5 is a step of 60 images, and there are 48.*accumulate=4",
        ),
    ],
)
def test_what_cannot_be_is_said_before_any_work(
    tiny: Recipe, tmp_path: Path, fields: dict, said: str
):
    with pytest.raises(UsageError, match=said):
        fit(tiny.with_fields(**fields), tmp_path / "run", device="cpu", progress=False)
    assert not (tmp_path / "run").exists()


def test_patience_ends_a_run_that_gains_nothing(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from softless.training import loop

    waiting = tiny.with_fields(**{
        "schedule.epochs": 12,
        "schedule.warmup_epochs": 1,
        "schedule.patience": 2,
    })
    scores = {"top1": 0.5, "loss": 1.0, "seen": 18, "expected": 18}
    monkeypatch.setattr(loop, "validate", lambda *_: dict(scores))
    result = fit(waiting, tmp_path / "run", device="cpu", progress=False)
    assert (result.best_epoch, result.epochs, result.planned) == (1, 3, 12)
    assert "ended by schedule.patience after 3 of 12 epochs" in str(result)
    stored = json.loads((tmp_path / "run" / "result.json").read_text())
    assert (stored["epochs"], stored["planned"]) == (3, 12)
    again = fit(None, tmp_path / "run", resume=True, device="cpu", progress=False)
    assert again == result, "a run that is finished is told again"
    longer = waiting.with_fields(**{"schedule.epochs": 20})
    with pytest.raises(UsageError, match=r"ended by schedule.patience after 3 of 12 epochs"):
        fit(longer, tmp_path / "run", resume=True, device="cpu", progress=False)


def test_patience_counts_from_the_best_epoch_and_the_warm_up(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from softless.training import loop

    given = iter([0.5, 0.4, 0.4, 0.6, 0.5, 0.5, 0.5])
    scores = {"loss": 1.0, "seen": 18, "expected": 18}
    monkeypatch.setattr(loop, "validate", lambda *_: {**scores, "top1": next(given)})
    fields = {
        "schedule.epochs": 12,
        "schedule.warmup_epochs": 2,
        "schedule.patience": 2,
        "ema_evaluate": False,
    }
    result = fit(tiny.with_fields(**fields), tmp_path / "run", device="cpu", progress=False)
    assert (result.best_epoch, result.epochs) == (4, 6), (
        "epoch 3 is the first after the warm-up that was no better"
    )


def test_a_killed_test_of_an_ended_run_trains_no_further(
    tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from softless.training import loop

    waiting = tiny.with_fields(**{
        "schedule.epochs": 12,
        "schedule.patience": 1,
        "schedule.warmup_epochs": 0,
    })
    scores = {"top1": 0.5, "loss": 1.0, "seen": 18, "expected": 18}
    monkeypatch.setattr(loop, "validate", lambda *_: dict(scores))

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(loop, "finish", killed)
        with pytest.raises(KeyboardInterrupt):
            fit(waiting, tmp_path / "run", device="cpu", progress=False)
    assert fit(None, tmp_path / "run", resume=True, device="cpu", progress=False).epochs == 2


def test_patience_needs_a_score(tiny: Recipe):
    with pytest.raises(
        UsageError, match=r"schedule.patience=3 waits for a better score, and metric=last"
    ):
        replace(tiny, metric="last", schedule=replace(tiny.schedule, patience=3)).check()


RANK = """
import pickle, sys
from pathlib import Path
from softless.training import fit
folder = Path(sys.argv[1])
fit(pickle.loads((folder / "recipe.pickle").read_bytes()), folder / "two", device="cpu", progress=False)
"""


@pytest.mark.extra
def test_two_processes_that_accumulate_train_like_one(tiny: Recipe, tmp_path: Path):
    plain = replace(tiny.augment, mixup=0.0, cutmix=0.0)
    recipe = replace(tiny, augment=plain, drop_path=0.0)
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    (tmp_path / "recipe.pickle").write_bytes(pickle.dumps(in_parts(recipe, 3)))
    fit(recipe, tmp_path / "one", device="cpu", progress=False)
    run_ranks(str(script), str(tmp_path))
    for a, b in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        assert b["val"]["loss"] == pytest.approx(a["val"]["loss"], rel=1e-5)
