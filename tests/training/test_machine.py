"""Threads and loading processes follow the machine and the environment, once, and recipe.json says
the numbers.
"""

import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from softless.compare.training import as_recipe
from softless.data import cores
from softless.training import Recipe, fit, machine
from tests.training.test_loop import untimed

TORCHRUN = {"LOCAL_WORLD_SIZE": "4", "WORLD_SIZE": "8", "TORCHELASTIC_RUN_ID": "none"}


@pytest.fixture
def sixteen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)), raising=False)
    monkeypatch.setattr(cores, "CGROUP", tmp_path / "none")
    monkeypatch.setattr(machine, "SHARED", tmp_path / "none")


@pytest.mark.usefixtures("sixteen")
@pytest.mark.parametrize(
    ("environment", "threads"),
    [
        ({}, 16),
        ({"OMP_NUM_THREADS": "3"}, 3),
        ({"OMP_NUM_THREADS": "6,2"}, 6),  # of nested parallel regions; ours is the outer one
        ({"OMP_NUM_THREADS": "many"}, 16),
        ({"OMP_NUM_THREADS": "0"}, 16),
        ({"OMP_NUM_THREADS": "1"}, 1),
        ({**TORCHRUN, "OMP_NUM_THREADS": "1"}, 4),  # torchrun's own 1
        ({**TORCHRUN, "OMP_NUM_THREADS": "2"}, 2),
        ({"LOCAL_WORLD_SIZE": "32"}, 1),
        ({"WORLD_SIZE": "2"}, 8),
    ],
)
def test_threads(environment: dict[str, str], threads: int):
    assert machine.threads(environment) == threads


@pytest.mark.usefixtures("sixteen")
@pytest.mark.parametrize(
    ("files", "number"),
    [
        ({"cpu.max": "200000 100000\n"}, 2),
        ({"cpu.max": "50000 100000\n"}, 1),
        ({"cpu.max": "max 100000\n"}, 16),
        ({"cpu.max": "9900000 100000\n"}, 16),
        ({"cpu.max": "odd"}, 16),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 16),
    ],
)
def test_a_container_has_the_cores_of_its_quota(
    files: dict[str, str], number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cores, "CGROUP", tmp_path)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert cores.cores() == number


@pytest.mark.usefixtures("sixteen")
@pytest.mark.parametrize(
    ("changed", "workers"),
    [
        ({}, 4),
        ({"on_cpu": False}, 8),
        ({"source": "npz"}, 0),
        ({"source": "digits"}, 0),
        ({"images": 100}, 0),
    ],
)
def test_loaders(changed: dict, workers: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    asked: dict[str, Any] = {
        "source": "folder",
        "images": 1000,
        "batch_bytes": 2**20,
        "on_cpu": True,
        **changed,
    }
    assert machine.loaders(**asked) == workers


@pytest.mark.usefixtures("sixteen")
def test_loaders_need_cores_and_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    asked: dict[str, Any] = {
        "source": "folder",
        "images": 1000,
        "batch_bytes": 2**20,
        "on_cpu": False,
    }
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "16")
    assert machine.loaders(**asked) == 0
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setattr(machine, "SHARED", tmp_path)
    assert machine.loaders(**{**asked, "batch_bytes": 2**50}) == 0
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    assert machine.loaders(**asked) == 1
    assert machine.loaders(**{**asked, "on_cpu": True}) == 0


@pytest.fixture
def open_tiny(tiny: Recipe) -> Recipe:
    """Threads and loaders left to the machine."""
    return replace(tiny, threads=None, schedule=replace(tiny.schedule, epochs=1, warmup_epochs=0))


def test_the_numbers_are_written_and_kept(
    open_tiny: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    seen: list[int] = []

    def noted(_: torch.device) -> dict[str, int]:
        seen.append(torch.get_num_threads())
        return {}

    monkeypatch.setattr("softless.training.setup.machine", noted)
    fit(open_tiny, tmp_path / "run", device="cpu", progress=False)
    stored = json.loads((tmp_path / "run/recipe.json").read_text())
    assert (stored["threads"], stored["data"]["workers"], seen) == (2, 0, [2])
    (tmp_path / "run/result.json").unlink()
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    with caplog.at_level(logging.WARNING):
        fit(open_tiny, tmp_path / "run", resume=True, device="cpu", progress=False)
    assert seen == [2, 2]
    assert (
        "the run keeps the 2 threads of its start, and this machine gives 3: --set threads=3"
        in caplog.text
    )
    caplog.clear()
    (tmp_path / "run/result.json").unlink()
    fit(replace(open_tiny, threads=1), tmp_path / "run", resume=True, device="cpu", progress=False)
    assert seen == [2, 2, 1]
    assert "threads is 1 now, 2 before" in caplog.text


def test_loaders_are_counted_once_the_images_are_known(
    open_tiny: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = {}

    def loaders(**given):
        asked.update(given)
        return 1

    monkeypatch.setattr(machine, "loaders", loaders)
    fit(open_tiny, tmp_path / "auto", device="cpu", progress=False)
    assert asked == {"source": "npz", "images": 48, "batch_bytes": 4 * 12 * 16 * 16, "on_cpu": True}
    assert json.loads((tmp_path / "auto/recipe.json").read_text())["data"]["workers"] == 1
    monkeypatch.undo()
    fit(
        replace(open_tiny, data=replace(open_tiny.data, workers=0)),
        tmp_path / "none",
        device="cpu",
        progress=False,
    )
    assert untimed(tmp_path / "auto") == untimed(tmp_path / "none"), "loaders change no number"


def test_comparisons_are_alike_on_every_machine():
    """The recorded tables were made with two threads and no loaders; a recipe that says otherwise
    is followed.
    """
    chosen = as_recipe("digits")
    assert (chosen.threads, chosen.data.workers) == (2, 0)
    assert (as_recipe("vessels").threads, as_recipe("coco_sima_maskrcnn").data.workers) == (1, 4)
