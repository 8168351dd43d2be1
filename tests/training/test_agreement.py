"""Ranks agree or refuse: what differs is named, who is gone is named, and nobody waits for ever."""

import json
import pickle
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from softless.recipes import get_recipe
from softless.tasks.loaded import load_run
from softless.training import Recipe, fit
from softless.training.world import World
from tests.processes import each_rank

pytestmark = pytest.mark.slow
SCRIPT = str(Path(__file__).with_name("agreeing.py"))


def images(folder: Path, *, count: int = 8, low: int = 0) -> Path:
    random = np.random.default_rng(0)
    for part, number in (("train", count), ("val", 4)):
        for label, level in (("dark", low), ("light", low + 120)):
            where = folder / part / label
            where.mkdir(parents=True)
            for index in range(number):
                values = random.integers(level, level + 100, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(values).save(where / f"{index}.png")
    return folder


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    data = images(tmp_path / "data")
    quick = get_recipe("folder").quick(tmp_path / "quick")
    fields: dict[str, Any] = {
        "data.path": str(data),
        "data.workers": 0,
        "batch_size": 4,
        "schedule.epochs": 2,
        "amp": "none",
    }
    return quick.with_fields(**fields)


def commands(folder: Path, *recipes: Recipe | None, resume: bool = False) -> list[list[str]]:
    for rank, one in enumerate(recipes):
        (folder / f"recipe{rank}.pickle").write_bytes(pickle.dumps(one))
    return [[SCRIPT, str(folder), *(["resume"] if resume else [])] for _ in recipes]


def state(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "run" / "state.json").read_text())
    return found


def test_another_learning_rate_is_named(recipe: Recipe, tmp_path: Path) -> None:
    other = recipe.with_fields(**{"optim.lr": 0.5})
    (first, said), (second, silent) = each_rank(commands(tmp_path, recipe, other))
    assert (first, second) == (2, 2)
    assert "rank 1 of 2 has optim.lr = 0.5 and rank 0 has " in said
    assert said.count("\n") == 1
    assert silent == "", "one rank says it"
    assert not (tmp_path / "run").exists()


@pytest.mark.soak
def test_other_threads_are_named(recipe: Recipe, tmp_path: Path) -> None:
    free = recipe.with_fields(threads=None)
    found = each_rank(commands(tmp_path, free, free), environments={1: {"OMP_NUM_THREADS": "2"}})
    assert [code for code, _ in found] == [2, 2]
    assert (
        "rank 1 of 2 has threads = 2 and rank 0 has 1: give every rank the same command"
        in found[0][1]
    )


@pytest.mark.soak
def test_another_folder_of_data_is_named(recipe: Recipe, tmp_path: Path) -> None:
    other = recipe.with_fields(**{"data.path": str(images(tmp_path / "other", low=30))})
    found = each_rank(commands(tmp_path, recipe, other))
    assert [code for code, _ in found] == [2, 2]
    assert "rank 1 of 2 has data.path = " in found[0][1]


OTHER = """
import os, sys
from pathlib import Path
rank, real, other = os.environ["RANK"], sys.argv.pop(2), sys.argv.pop(2)
if rank == "1":  # another disk is mounted at the same place
    import softless.training.loop as loop
    from dataclasses import replace
    opened = loop.open_task
    loop.open_task = lambda recipe: opened(replace(recipe, data=replace(recipe.data, path=other)))
sys.path.insert(0, str(Path(sys.argv[1]).parent))
import runpy
script = sys.argv.pop(1)
sys.argv[0] = script
runpy.run_path(script, run_name="__main__")
"""


@pytest.mark.extra
@pytest.mark.parametrize(
    "kind",
    ["pixels", *(pytest.param(kind, marks=pytest.mark.soak) for kind in ("count", "absent"))],
)
def test_other_data_at_the_same_place_are_named(kind: str, recipe: Recipe, tmp_path: Path) -> None:
    other = tmp_path / "other"
    if kind != "absent":
        images(other, **({"low": 30} if kind == "pixels" else {"count": 12}))
    commands(tmp_path, recipe, recipe)
    command = ["-c", OTHER, SCRIPT, str(tmp_path / "data"), str(other), str(tmp_path)]
    (first, said), (second, _) = each_rank([command, command])
    assert (first, second) == (2, 2)
    wanted = {
        "pixels": "has data: pixels of train = ",
        "count": "has data: train = 24 and rank 0 has 16",
        "absent": "rank 1 of 2: ",
    }
    assert wanted[kind] in said
    assert not (tmp_path / "run").exists()


def once(folder: Path, then: Callable[[list[subprocess.Popen[str]]], None], after: int = 3) -> Any:
    """Wait until rank 1 has done so many steps."""

    def meanwhile(processes: list[subprocess.Popen[str]]) -> None:
        while all(one.poll() is None for one in processes):
            done = folder / "step1"
            if done.exists() and int(done.read_text() or 0) >= after:
                then(processes)
                return
            time.sleep(0.02)

    return meanwhile


@pytest.mark.soak
def test_a_killed_rank_is_one_sentence_and_the_run_goes_on_with_the_same_bits(
    recipe: Recipe, tmp_path: Path
) -> None:
    longer = recipe.with_fields(**{"schedule.epochs": 8})
    kill = once(tmp_path, lambda processes: processes[1].send_signal(signal.SIGKILL))
    (first, said), (second, _) = each_rank(
        commands(tmp_path, longer, longer), meanwhile=kill, seconds=100
    )
    assert (first, second) == (1, -signal.SIGKILL)
    assert "rank 1 of 2 is gone" in said
    assert "Traceback" not in said
    assert "rank 1 of 2 is gone" in state(tmp_path)["said"]
    again = each_rank(commands(tmp_path, longer, longer, resume=True), seconds=200)
    assert [code for code, _ in again] == [0, 0], again
    whole = tmp_path / "whole"
    whole.mkdir()
    assert [code for code, _ in each_rank(commands(whole, longer, longer), seconds=200)] == [0, 0]
    bits = [(folder / "run" / "best.safetensors").read_bytes() for folder in (tmp_path, whole)]
    assert bits[0] == bits[1]


@pytest.mark.extra
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.soak)]
)
def test_a_signal_ends_a_rank_that_waits_for_another(
    number: signal.Signals, recipe: Recipe, tmp_path: Path
) -> None:
    """Rank 1 hangs; rank 0 waits for it in an exchange, and hears the signal all the same."""
    longer = recipe.with_fields(**{"schedule.epochs": 60})
    began = 0.0

    def hang(processes: list[subprocess.Popen[str]]) -> None:
        nonlocal began
        (tmp_path / "hang1").touch()
        time.sleep(2)
        began = time.monotonic()
        processes[0].send_signal(number)
        while processes[0].poll() is None and time.monotonic() < began + 60:
            time.sleep(0.05)
        began = time.monotonic() - began
        processes[1].kill()

    (first, said), _ = each_rank(
        commands(tmp_path, longer, longer), meanwhile=once(tmp_path, hang), seconds=100
    )
    assert first == 128 + number
    assert began < 30
    assert f"{number.name}: this rank waited for others that did not come" in said
    assert "Traceback" not in said
    assert state(tmp_path)["state"] == "stopped"


@pytest.mark.soak
def test_a_rank_that_hangs_is_not_waited_for_longer_than_asked(
    recipe: Recipe, tmp_path: Path
) -> None:
    (tmp_path / "hang1").touch()
    short = recipe.with_fields(rank_patience=0.1)

    def ended(processes: list[subprocess.Popen[str]]) -> None:
        processes[0].wait(60)
        processes[1].kill()

    (first, said), _ = each_rank(
        commands(tmp_path, short, short), meanwhile=once(tmp_path, ended, after=0), seconds=100
    )
    assert first == 1
    assert "rank 0 of 2 waited in vain for the others" in said
    assert "Traceback" not in said


def test_a_model_with_batch_norm_is_published_by_ranks_too(recipe: Recipe, tmp_path: Path) -> None:
    args = {"img_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "cls_attn_layers": 1}
    model = replace(recipe.model, name="xcit_nano_12_p8_224", op="sima", args=args)
    fields: dict[str, Any] = {"data.image_size": 16, "schedule.epochs": 1}
    xcit = replace(recipe, model=model).with_fields(**fields)
    found = each_rank(commands(tmp_path, xcit, xcit))
    assert [code for code, _ in found] == [0, 0], found
    assert "Grad strides" not in found[0][1]
    folder = tmp_path / "run" / "model"
    assert folder.is_dir()
    x = torch.rand(2, 3, 16, 16)
    import softless

    published = softless.create_model(f"local-dir:{folder}", pretrained=True).eval()
    run = load_run(tmp_path / "run")
    with torch.inference_mode():
        assert torch.equal(published(x), run.model(x))


@pytest.mark.soak
def test_mean_and_deviation_are_the_first_ranks(recipe: Recipe, tmp_path: Path) -> None:
    found = each_rank(commands(tmp_path, recipe, recipe))
    assert [code for code, _ in found] == [0, 0], found
    alone = fit(recipe, tmp_path / "alone", device="cpu", progress=False)
    assert alone.epochs == 2
    told = [
        json.loads((folder / "best.json").read_text())
        for folder in (tmp_path / "run", tmp_path / "alone")
    ]
    assert told[0]["mean"] == told[1]["mean"]
    assert told[0]["std"] == told[1]["std"]


def test_alone_everything_agrees() -> None:
    world = World(0, 1, torch.device("cpu"))
    assert world.gather(3) == [3]
    assert world.together(lambda: 4) == 4
    assert world.gone() == []
