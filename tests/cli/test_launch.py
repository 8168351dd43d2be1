"""`--ranks N` starts the processes itself, and says in one line what became of them."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from softless.cli.bench import bench
from softless.cli.main import main
from softless.errors import UsageError
from softless.experiment import processes
from softless.experiment.groups import DataSpec
from tests.data.making import split_folders
from tests.evaluation.runs import run_folder
from tests.processes import each_rank, free_port

SMALL = (
    "schedule.epochs=60",
    "batch_size=4",
    "data.workers=0",
    "data.image_size=16",
    "amp=none",
    "ema_decay=none",
    "ema_evaluate=false",
)


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
                told = dict(
                    one.partition("=")[::2]
                    for one in place.joinpath("environ").read_text().split("\0")
                )
            except OSError:
                continue
            if parent == str(launcher) and "RANK" in told:
                found[int(told["RANK"])] = int(place.name)
    return found


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            ["eval", "run", "--ranks", "999"],
            r"--ranks 999: this machine has \d+ cores? for them; give at most \d+",
        ),
        (
            ["eval", "run", "--ranks=0"],
            "--ranks takes a whole number of processes from 1 on, and got '0'",
        ),
        (
            ["eval", "run", "--ranks"],
            "--ranks takes a whole number of processes from 1 on, and got ''",
        ),
        (["eval", "run", "--ranks", "1", "--ranks", "1"], "--ranks is given twice"),
        (["cost", "vit_tiny_patch16_224", "--ranks", "2"], "has no option '--ranks'"),
        (["eval", "nowhere", "--ranks", "1"], "no run folder at nowhere"),
    ],
)
def test_what_cannot_be_started_is_said(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    import re

    assert main(words) == 2
    assert re.search(said, capsys.readouterr().err)


def test_ranks_start_no_ranks(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    assert main(["eval", "run", "--ranks", "2"]) == 2
    assert (
        "--ranks 2 starts processes, and this one was started as one of several"
        in capsys.readouterr().err
    )


@pytest.mark.extra
@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the ranks are looked for in /proc")
@pytest.mark.parametrize(
    "number",
    [
        signal.SIGTERM,
        *(pytest.param(one, marks=pytest.mark.soak) for one in (signal.SIGINT, signal.SIGKILL)),
    ],
)
def test_a_rank_that_is_ended_is_one_sentence(number: signal.Signals, tmp_path: Path) -> None:
    split_folders(
        tmp_path / "data", {p: {"cat": n, "dog": n} for p, n in (("train", 8), ("val", 4))}
    )
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
        line
        for line in (tmp_path / "said").read_text().splitlines()
        if "softless: " in line and "note:" not in line
    ]
    assert "Traceback" not in (tmp_path / "said").read_text()
    assert len(said) == 1, "\n".join(said)
    if number == signal.SIGKILL:
        assert code == 1
        assert "rank 1 of 2 is gone" in said[0]
        assert (tmp_path / "run" / "ranks" / "rank1.txt").read_text() == "killed by SIGKILL\n"
    else:
        assert code in {128 + number, 143}, "rank 0 hears that another was ended"
        assert "the state is saved" in said[0]
    assert "continue with `softless train --resume" in said[0]
    assert not [pid for pid in ranks.values() if processes.running(pid)]


@pytest.mark.soak
def test_two_agents_of_torchrun_as_two_nodes(tmp_path: Path) -> None:
    """As docs/reliability.md starts them, on one machine: rank 0 is on the first node that
    comes.
    """
    split_folders(
        tmp_path / "data", {p: {"cat": n, "dog": n} for p, n in (("train", 4), ("test", 6))}
    )
    data = DataSpec(source="folder", path=str(tmp_path / "data"), image_size=16)
    run = run_folder(tmp_path / "run", ("cat", "dog"), data)
    words = [
        "-m",
        "softless",
        "predict",
        str(run),
        str(tmp_path / "data" / "test"),
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    place = f"127.0.0.1:{free_port()}"
    agent = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--nnodes",
        "2",
        "--nproc-per-node",
        "1",
        "--rdzv-backend",
        "c10d",
    ]
    agent += [
        "--rdzv-endpoint",
        place,
        "--rdzv-id",
        "here",
        "--local-addr",
        "127.0.0.1",
        "--no-python",
        sys.executable,
        *words,
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    nodes = [subprocess.Popen(agent, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0]
    assert sum("12 images, computed in float32" in one for one in said) == 1, said
    assert len((tmp_path / "out" / "predictions.csv").read_text().splitlines()) == 13


@pytest.mark.extra
def test_a_port_that_is_taken_is_named(tmp_path: Path) -> None:
    """Rank 1 would wait for the program there; whoever starts the ranks ends it when rank 0 has
    failed.
    """
    split_folders(
        tmp_path / "data", {p: {"cat": n, "dog": n} for p, n in (("train", 4), ("test", 6))}
    )
    run = run_folder(
        tmp_path / "run",
        ("cat", "dog"),
        DataSpec(source="folder", path=str(tmp_path / "data"), image_size=16),
    )

    def wait(ranks: list[subprocess.Popen[str]]) -> None:
        ranks[0].wait(100)
        ranks[1].kill()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = ["-m", "softless", "eval", str(run), "--device", "cpu"]
        (code, said), _ = each_rank(
            [command] * 2,
            environments={rank: {"MASTER_PORT": port} for rank in range(2)},
            meanwhile=wait,
        )
    assert code == 2
    assert said.startswith(
        f"softless: port {port} of 127.0.0.1, where the ranks are to meet, is taken"
    )
    assert said.count("\n") == 1


@pytest.mark.extra
@pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.soak)]
)
def test_a_rank_of_another_verb_that_is_ended(number: signal.Signals, tmp_path: Path) -> None:
    """Started by hand, so that nobody but the other rank sees it; nothing is left half written."""
    split_folders(
        tmp_path / "data", {p: {"cat": n, "dog": n} for p, n in (("train", 4), ("test", 400))}
    )
    run = run_folder(
        tmp_path / "run",
        ("cat", "dog"),
        DataSpec(source="folder", path=str(tmp_path / "data"), image_size=16),
    )
    out, began = tmp_path / "out", 0.0

    def end(ranks: list[subprocess.Popen[str]]) -> None:
        nonlocal began
        while ranks[1].poll() is None and not list(out.glob("saliency/*/*.png")):
            time.sleep(0.05)
        began = time.monotonic()
        ranks[1].send_signal(number)
        ranks[0].wait(60)
        began = time.monotonic() - began

    command = [
        "-m",
        "softless",
        "predict",
        str(run),
        str(tmp_path / "data" / "test"),
        str(out),
        "--device",
        "cpu",
    ]
    (first, said), (second, other) = each_rank([[*command, "--batch-size", "4"]] * 2, meanwhile=end)
    assert began < 30
    assert (first, second) == (1, -9 if number == signal.SIGKILL else 143)
    assert "rank 1 of 2 is gone" in said
    assert "Traceback" not in said + other
    assert number == signal.SIGKILL or "SIGTERM: ended; no file is left half written" in other
    assert not (out / "predictions.csv").exists()
    assert not list(out.rglob("*.tmp"))


def test_what_measures_one_process_takes_no_ranks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(
        UsageError, match="bench runs measures one process: start it without --ranks or torchrun"
    ):
        bench("runs", runs=["a"])
