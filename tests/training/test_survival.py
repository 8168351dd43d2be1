"""Real processes, really killed: what they had acknowledged is there, and they continue to the same
last bit.
"""

import json
import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from softless.experiment.checkpoints import Checkpoints
from softless.training import Recipe
from tests.training.ends import end_of
from tests.training.zygote import Zygote

WORKERS = [0, 2]
# from a start to the end after its signal: far more than an idle machine takes, far less than a
# hang
SECONDS = 300.0


@pytest.fixture
def long(tiny: Recipe) -> Recipe:
    return long_recipe(tiny)


def long_recipe(tiny: Recipe) -> Recipe:
    """Five epochs of four steps with RandAugment, erasing, mixup, dropout, stochastic depth and
    averaging; the state is kept every second step.
    """
    return replace(tiny, schedule=replace(tiny.schedule, epochs=5)).with_fields(**{
        "save.every_steps": 2,
        "augment.affine": None,  # or it would replace what follows
        "augment.auto_augment": "rand-m9-mstd0.5",
        "model.args.proj_drop_rate": 0.1,
    })


def with_workers(recipe: Recipe, workers: int) -> Recipe:
    return recipe.with_fields(**{"data.workers": workers})


def finish(zygote: Zygote, folder: Path, recipe: Recipe) -> str:
    said = folder / "said.txt"
    assert zygote.run(folder, recipe, resume=(folder / "run").exists()) == 0, said.read_text()
    return end_of(folder / "run")


@pytest.fixture(scope="module")
def ends() -> dict[str, str]:
    """The end of the uninterrupted run; made once."""
    return {}


def whole(ends: dict[str, str], zygote: Zygote, folder: Path, recipe: Recipe) -> str:
    if "whole" not in ends:
        ends["whole"] = finish(zygote, folder / "whole", recipe)
    return ends["whole"]


def killed_three_times(
    zygote: Zygote, folder: Path, recipe: Recipe, rng: random.Random, *hooks: str
) -> tuple[str, int]:
    """The end of a run that was sent SIGKILL at three random instants, and how many kills found it
    at work.
    """
    kills = 0
    for _ in range(3):
        pid = zygote.start(folder, recipe, "slow", *hooks, resume=(folder / "run").exists())
        before = progress(folder)
        deadline = time.monotonic() + 300
        while (
            progress(folder) <= before
            and not (folder / "run/result.json").exists()
            and time.monotonic() < deadline
        ):
            # at least one new state, so that three kills fall into different places
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.15))
        os.killpg(pid, signal.SIGKILL)
        kills += zygote.wait(pid) == -signal.SIGKILL
    assert zygote.run(folder, recipe, *hooks, resume=True) == 0, (folder / "said.txt").read_text()
    return end_of(folder / "run"), kills


def progress(folder: Path) -> tuple[int, int]:
    return max(Checkpoints(folder / "run/checkpoints").positions(), default=(-1, -1))


@pytest.mark.bar("A3", "SIGKILL three times at random in a run, 0 and 2 workers: the same last bit")
@pytest.mark.parametrize("workers", WORKERS)
def test_killed_three_times_is_the_same_run(
    long: Recipe, zygote: Zygote, ends: dict[str, str], tmp_path: Path, workers: int
):
    expected = whole(ends, zygote, tmp_path, long)
    end, kills = killed_three_times(
        zygote, tmp_path / "killed", with_workers(long, workers), random.Random(workers)
    )
    assert kills >= 2
    assert end == expected


@pytest.mark.bar("A4", "negative control: random numbers that are not continued end elsewhere")
def test_the_comparison_sees_random_numbers_that_are_not_continued(
    long: Recipe, zygote: Zygote, ends: dict[str, str], tmp_path: Path
):
    """The negative control: dropout that draws anew after each start ends elsewhere."""
    expected = whole(ends, zygote, tmp_path, long)
    assert zygote.run(tmp_path / "unseeded", long, "unseeded") == 0
    assert killed_three_times(zygote, tmp_path / "killed", long, random.Random(0), "unseeded")[
        0
    ] not in {
        expected,
        end_of(tmp_path / "unseeded/run"),
    }


@pytest.mark.bar(
    "A16", "SIGTERM in six phases, 0 and 2 workers: saved, exit code 143, the same last bit"
)
@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("phase", ["loader", "batch", "step", "validation", "save", "test"])
def test_sigterm_saves_and_the_run_continues_exactly(
    long: Recipe, zygote: Zygote, ends: dict[str, str], tmp_path: Path, phase: str, workers: int
):
    expected = whole(ends, zygote, tmp_path, long)
    folder, recipe = (
        tmp_path / "stopped",
        replace(with_workers(long, workers), save=replace(long.save, every_steps=None)),
    )
    start = time.monotonic()
    pid = zygote.start(folder, recipe, phase)
    assert zygote.wait(pid) == 143, (folder / "said.txt").read_text()
    assert time.monotonic() - start < SECONDS
    assert "SIGTERM at step" in (folder / "said.txt").read_text()
    assert json.loads((folder / "run/state.json").read_text())["state"] == "stopped"
    assert not (folder / "run/lock").exists()
    state = Checkpoints(folder / "run/checkpoints").newest()
    assert state is not None
    at = {"loader": (1, 0), "batch": (1, 1), "step": (1, 2), "validation": (1, 4), "test": (5, 0)}
    assert phase == "save" or (state["epoch"], state["step"]) == at[phase]
    assert finish(zygote, folder, recipe) == expected


@pytest.mark.bar(
    "A17", "SIGINT once and a signal twice: saved, or ended at once; the same last bit"
)
def test_ctrl_c_saves_too_and_a_second_signal_ends_at_once(
    long: Recipe, zygote: Zygote, ends: dict[str, str], tmp_path: Path
):
    expected = whole(ends, zygote, tmp_path, long)
    assert zygote.run(tmp_path / "once", long, "interrupt") == 130
    assert finish(zygote, tmp_path / "once", long) == expected
    assert zygote.run(tmp_path / "twice", long, "twice") == 143
    assert json.loads((tmp_path / "twice/run/state.json").read_text())["state"] == "running", (
        "no time was taken to say it"
    )
    assert finish(zygote, tmp_path / "twice", long) == expected


@pytest.mark.bar("A1", "death between log, best weights and state: the same last bit")
@pytest.mark.parametrize("hook", ["die in keep", "die in save"])
def test_death_between_log_best_and_state(
    long: Recipe, zygote: Zygote, ends: dict[str, str], tmp_path: Path, hook: str
):
    expected = whole(ends, zygote, tmp_path, long)
    assert zygote.run(tmp_path / "dead", long, hook) == -signal.SIGKILL
    assert finish(zygote, tmp_path / "dead", long) == expected
    assert "is gone: taking over" in (tmp_path / "dead/said.txt").read_text()


@pytest.mark.bar("A5", "1, then 4, then 2 workers along one run: the same last bit")
def test_other_numbers_of_workers_along_the_way(
    long: Recipe, zygote: Zygote, ends: dict[str, str], tmp_path: Path
):
    expected = whole(ends, zygote, tmp_path, long)
    folder = tmp_path / "workers"
    for workers, phase in ((1, "step"), (4, "validation")):
        assert (
            zygote.run(folder, with_workers(long, workers), phase, resume=(folder / "run").exists())
            == 143
        )
    assert finish(zygote, folder, with_workers(long, 2)) == expected


@pytest.mark.bar("A16", "SIGTERM to the whole group of processes: saved, the same last bit")
def test_a_signal_to_the_whole_group_ends_the_loaders_first(
    long: Recipe, zygote: Zygote, ends: dict[str, str], tmp_path: Path
):
    """A cluster or a terminal signals all processes of a run at once."""
    expected = whole(ends, zygote, tmp_path, long)
    folder, recipe = tmp_path / "group", with_workers(long, 2)
    for _ in range(3):
        pid, before = (
            zygote.start(folder, recipe, "slow", resume=(folder / "run").exists()),
            progress(folder),
        )
        while progress(folder) <= before:
            time.sleep(0.005)
        os.killpg(pid, signal.SIGTERM)
        assert zygote.wait(pid) == 143, (folder / "said.txt").read_text()
    assert finish(zygote, folder, recipe) == expected


@pytest.mark.bar(
    "B17", "a loader process killed: one sentence, and the run continues to the same last bit"
)
def test_a_loader_that_dies_is_said_and_the_run_continues(
    long: Recipe, zygote: Zygote, ends: dict[str, str], tmp_path: Path
):
    expected = whole(ends, zygote, tmp_path, long)
    folder = tmp_path / "loader"
    assert zygote.run(folder, with_workers(long, 2), "loader dies") == 2
    said = (folder / "said.txt").read_text()
    assert "DataError: a process that loads images died at step" in said
    assert "Traceback" not in said
    assert json.loads((folder / "run/state.json").read_text())["state"] == "failed"
    assert finish(zygote, folder, long) == expected


@pytest.mark.bar(
    "A1",
    "SIGKILL before or after each fsync, rename, unlink, mkdir, link and open of a whole run: "
    "continued without a hand, the same last bit",
)
@pytest.mark.parametrize(
    "count", [pytest.param(3, id="3"), pytest.param(0, id="all", marks=pytest.mark.soak)]
)
def test_killed_at_each_call_that_touches_the_disk(
    tiny: Recipe,
    zygote: Zygote,
    tmp_path: Path,
    count: int,
    record_property: Callable[[str, object], None],
):
    """`--resume` is all that is ever given, from the first start on, as an unattended restart
    would.
    """
    recipe = replace(tiny, schedule=replace(tiny.schedule, epochs=2)).with_fields(**{
        "save.every_steps": 3
    })
    assert zygote.run(tmp_path / "whole", recipe, "die at 0", resume=True) == 0
    expected, calls = (
        end_of(tmp_path / "whole/run"),
        len((tmp_path / "whole/calls.txt").read_text().split()),
    )
    assert calls > 100
    drawn = random.Random(count).sample(range(1, calls + 1), count)
    # the state at the end, half written
    points = sorted({*drawn, calls - 5, calls - 3}) if count else range(1, calls + 1)
    for done, point in enumerate(points):
        record_property("cases", (done, len(points)))
        folder = tmp_path / str(point)
        assert zygote.run(folder, recipe, f"die at {point}", resume=True) == -signal.SIGKILL
        assert zygote.run(folder, recipe, resume=True) == 0, (folder / "said.txt").read_text()
        assert end_of(folder / "run") == expected, point
        assert not [
            path
            for path in (folder / "run").rglob("*")
            if ".tmp" in path.name or path.name.startswith("lock")
        ]
    record_property("cases", (len(points), len(points)))
