"""What takes minutes: hundreds of kills, several ranks. `make soak`; not part of `make test`."""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from softless.experiment.checkpoints import Checkpoints
from softless.training import Recipe
from tests.training.ends import end_of
from tests.training.test_survival import finish, killed_three_times, long_recipe, with_workers
from tests.training.zygote import ROOT, Zygote

pytestmark = pytest.mark.soak
KILLS = 200


@pytest.mark.bar(
    "A2",
    "SIGKILL at a random instant of saving 50 MB without pause: the newest acknowledged state is "
    "found",
)
def test_200_kills_while_saving(
    zygote: Zygote, tmp_path: Path, record_property: Callable[[str, object], None]
):
    """A process that saves 50 MB without pause is killed at random instants; what it had
    acknowledged is the newest good state.
    """
    rng, unusable, lost = random.Random(0), 0, 0
    folder = tmp_path / "saving"
    for _ in range(KILLS):
        pid = zygote.save_forever(folder, 50)
        acked = folder / "acked.txt"
        before, deadline = read(acked), time.monotonic() + 300
        while read(acked) == before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(rng.uniform(0, 0.5))
        os.kill(pid, signal.SIGKILL)
        zygote.wait(pid)
        state = Checkpoints(folder / "checkpoints").newest()
        unusable += state is None
        lost += state is not None and (
            state["step"] < read(acked) or not bool((state["weights"] == state["step"]).all())
        )
    record_property("cases", (KILLS - unusable - lost, KILLS))
    assert (unusable, lost) == (0, 0)


def read(path: Path) -> int:
    try:
        return int(path.read_text() or -1)
    except FileNotFoundError:
        return -1


@pytest.mark.bar("A3", "SIGKILL three times at random in a run, 0 and 2 workers: the same last bit")
@pytest.mark.parametrize("workers", [0, 2])
def test_four_more_runs_killed_three_times(
    tiny: Recipe,
    zygote: Zygote,
    tmp_path: Path,
    workers: int,
    record_property: Callable[[str, object], None],
):
    recipe = with_workers(long_recipe(tiny), workers)
    expected = finish(zygote, tmp_path / "whole", recipe)
    for seed in range(4):
        end, kills = killed_three_times(
            zygote, tmp_path / f"killed{seed}", recipe, random.Random(100 + seed)
        )
        assert kills >= 2
        assert end == expected
        record_property("cases", (seed + 1, 4))


@pytest.mark.bar("A4", "negative control: random numbers that are not continued end elsewhere")
def test_seven_more_negative_controls(
    tiny: Recipe, zygote: Zygote, tmp_path: Path, record_property: Callable[[str, object], None]
):
    recipe = long_recipe(tiny)
    expected, elsewhere = finish(zygote, tmp_path / "whole", recipe), 0
    for seed in range(7):
        end, _ = killed_three_times(
            zygote, tmp_path / f"killed{seed}", recipe, random.Random(seed), "unseeded"
        )
        elsewhere += end != expected
    record_property("cases", (elsewhere, 7))
    assert elsewhere == 7


def torchrun(folder: Path, recipe: Recipe, ranks: int, restarts: int = 0, **spec: Any) -> int:
    folder.mkdir(exist_ok=True)
    (folder / "recipe.pickle").write_bytes(pickle.dumps(recipe))
    (folder / "spec.json").write_text(json.dumps(spec))
    env = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "GLOO_SOCKET_IFNAME": "lo",
        "PYTHONPATH": str(ROOT),
    }
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        f"--nproc-per-node={ranks}",
        f"--max-restarts={restarts}",
    ]
    with (folder / "said.txt").open("a") as said:
        return subprocess.run(
            [*command, str(Path(__file__).with_name("ranks.py")), str(folder)],
            env=env,
            stdout=said,
            stderr=said,
            timeout=300,
            check=False,
        ).returncode


def seen(folder: Path) -> dict[tuple[int, int], list[int]]:
    """(epoch, step) -> positions of the global batch in order; of a step that was done twice the
    last time.
    """
    ranks: dict[int, dict[tuple[int, int], dict[str, Any]]] = {}
    for path in folder.glob("seen*.jsonl"):
        for text in path.read_text().splitlines():
            line = json.loads(text)
            ranks.setdefault(line["rank"], {})[line["epoch"], line["step"]] = line
    found = {}
    for place, line in ranks[0].items():
        parts = [ranks[rank][place]["positions"] for rank in range(line["world"])]
        found[place] = [position for together in zip(*parts, strict=True) for position in together]
    return found


@pytest.mark.bar("A6", "one of two gloo ranks killed, torchrun restarts: same order, same last bit")
def test_one_of_two_ranks_is_killed_and_torchrun_restarts(tiny: Recipe, tmp_path: Path):
    recipe = replace(long_recipe(tiny), schedule=replace(tiny.schedule, epochs=3))
    assert torchrun(tmp_path / "whole", recipe, 2) == 0, (tmp_path / "whole/said.txt").read_text()
    assert torchrun(tmp_path / "killed", recipe, 2, restarts=2, kill=[1, 6]) == 0, (
        tmp_path / "killed/said.txt"
    ).read_text()
    assert "exitcode: -9" in (tmp_path / "killed/said.txt").read_text()
    assert seen(tmp_path / "killed") == seen(tmp_path / "whole")
    assert end_of(tmp_path / "killed/run") == end_of(tmp_path / "whole/run")
    for epoch in range(3):
        order = [
            position
            for (e, _), positions in sorted(seen(tmp_path / "killed").items())
            if e == epoch
            for position in positions
        ]
        assert len(set(order)) == len(order) == 48


@pytest.mark.bar(
    "A7", "2, then 1, then 4 ranks at one global batch: same order, losses equal to 1e-6"
)
def test_other_world_sizes_see_the_same_order(tiny: Recipe, tmp_path: Path):
    """Two ranks, then one, then four, at the same global batch: the same images in the same order,
    the same loss to 1e-6.

    Mixing pairs images within a process and dropping draws per process, so both are off here.
    """
    recipe = replace(
        long_recipe(tiny), drop_path=0.0, schedule=replace(tiny.schedule, epochs=3)
    ).with_fields(**{
        "augment.mixup": 0.0,
        "augment.cutmix": 0.0,
        "model.args.proj_drop_rate": 0.0,
    })
    assert torchrun(tmp_path / "one", recipe, 1) == 0, (tmp_path / "one/said.txt").read_text()
    folder = tmp_path / "many"
    assert torchrun(folder, recipe, 2, stop=3) != 0
    assert "SIGTERM at step" in (folder / "said.txt").read_text()
    assert torchrun(folder, recipe, 1, stop=7) != 0
    assert torchrun(folder, recipe, 4) == 0, (folder / "said.txt").read_text()
    assert seen(folder) == seen(tmp_path / "one")
    ours, theirs = losses(folder), losses(tmp_path / "one")
    assert ours.keys() == theirs.keys()
    torch.testing.assert_close(
        torch.tensor(list(ours.values())), torch.tensor(list(theirs.values())), rtol=1e-6, atol=0
    )


def losses(folder: Path) -> dict[tuple[int, int], float]:
    lines = [json.loads(text) for text in (folder / "loss0.jsonl").read_text().splitlines()]
    return {
        (line["epoch"], line["step"]): line["loss"]
        for line in sorted(lines, key=lambda line: (line["epoch"], line["step"]))
    }
