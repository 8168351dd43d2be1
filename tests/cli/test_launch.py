"""`--ranks N` starts the processes itself, and says in one line what became of them."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from softless.cli.main import main
from softless.training import processes
from tests.data.making import split_folders

SMALL = ("schedule.epochs=60", "batch_size=4", "data.workers=0", "data.image_size=16", "amp=none", "ema_decay=none")


def command(folder: Path, *more: str) -> list[str]:
    words = [
        "train",
        "--recipe",
        "folder",
        "--data",
        str(folder / "data"),
        "--out",
        str(folder / "run"),
        "--ranks",
        "2",
    ]
    return [sys.executable, "-m", "softless", *words, "--device", "cpu", "--set", *SMALL, *more]


def ranks_of(launcher: int) -> dict[int, int]:
    """The processes that a launcher started: rank -> process."""
    found = {}
    for place in Path("/proc").iterdir():
        if place.name.isdecimal() and processes.running(int(place.name)):
            try:
                parent = place.joinpath("stat").read_text().rpartition(")")[2].split()[1]
                told = dict(one.partition("=")[::2] for one in place.joinpath("environ").read_text().split("\0"))
            except OSError:
                continue
            if parent == str(launcher) and "RANK" in told:
                found[int(told["RANK"])] = int(place.name)
    return found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["eval", "run", "--ranks", "999"], r"--ranks 999: this machine has \d+ cores? for them; give at most \d+"),
        (["eval", "run", "--ranks=0"], "--ranks takes a whole number of processes from 1 on, and got '0'"),
        (["eval", "run", "--ranks"], "--ranks takes a whole number of processes from 1 on, and got ''"),
        (["eval", "run", "--ranks", "1", "--ranks", "1"], "--ranks is given twice"),
        (["cost", "vit_tiny_patch16_224", "--ranks", "2"], "has no option '--ranks'"),
        (["eval", "nowhere", "--ranks", "1"], "no run folder at nowhere"),
    ],
)
def test_what_cannot_be_started_is_said(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    import re

    assert main(words) == 2
    assert re.search(said, capsys.readouterr().err)


def test_ranks_start_no_ranks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("RANK", "0")
    assert main(["eval", "run", "--ranks", "2"]) == 2
    assert "--ranks 2 starts processes, and this one was started as one of several" in capsys.readouterr().err


@pytest.mark.extra
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the ranks are looked for in /proc")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_rank_that_is_ended_is_one_sentence(number: signal.Signals, tmp_path: Path) -> None:
    split_folders(tmp_path / "data", {p: {"cat": n, "dog": n} for p, n in (("train", 8), ("val", 4))})
    env: dict[str, Any] = {**os.environ, "OMP_NUM_THREADS": "1"}
    log = (tmp_path / "said").open("w")
    launcher = subprocess.Popen(command(tmp_path), stdout=log, stderr=log, env=env)
    try:
        while launcher.poll() is None and not (tmp_path / "run" / "log.jsonl").exists():
            time.sleep(0.1)
        ranks = ranks_of(launcher.pid)
        assert sorted(ranks) == [0, 1]
        os.kill(ranks[1], number)
        began = time.monotonic()
        code = launcher.wait(60)
        assert time.monotonic() - began < 30
    finally:
        launcher.kill()
        log.close()
    said = [
        line for line in (tmp_path / "said").read_text().splitlines() if "softless: " in line and "note:" not in line
    ]
    assert "Traceback" not in (tmp_path / "said").read_text()
    assert len(said) == 1, said
    if number == signal.SIGKILL:
        assert code == 1
        assert "rank 1 of 2 is gone" in said[0]
        assert (tmp_path / "run" / "ranks" / "rank1.txt").read_text() == "killed by SIGKILL\n"
    else:
        assert code == 128 + number
        assert "the state is saved" in said[0] or f"{number.name} at step" in said[0]
    assert "continue with `softless train --resume" in said[0]
    assert not [pid for pid in ranks.values() if processes.running(pid)]
