"""`--ranks N`: a verb on N processes of this machine, which torchrun's launcher starts and ends."""

import logging
import os
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from softless.cli.main import ENDED
from softless.data.cores import cores
from softless.errors import UsageError
from softless.training.last_words import NOTED, leave

OPTION = "--ranks"
LOOPBACK = "lo"
TAIL = 4000  # bytes of what a rank printed that are looked at


def asked(words: Sequence[str], prog: str) -> tuple[int, list[str]]:
    """How many ranks the words of a command ask for, which holds `--ranks`, and the words without
    that.

    Raises:
        UsageError: no whole number from 1 on, more than this machine has cores, or torchrun started
            this process already.
    """
    rest = list(words)
    index = next(at for at, word in enumerate(rest) if word.partition("=")[0] == OPTION)
    word = rest.pop(index)
    text = word.partition("=")[2] if "=" in word else rest.pop(index) if index < len(rest) else ""
    if not text.isdecimal() or int(text) < 1:
        raise UsageError(
            f"{prog}: {OPTION} takes a whole number of processes from 1 on, and got '{text}'"
        )
    count, available = int(text), cores()
    if "RANK" in os.environ:
        raise UsageError(
            f"{OPTION} {count} starts processes, and this one was started as one of several: "
            "leave it out"
        )
    if any(word.partition("=")[0] == OPTION for word in rest):
        raise UsageError(f"{prog}: {OPTION} is given twice: leave one out")
    if count > available:
        raise UsageError(
            f"{OPTION} {count}: this machine has {available} cores for them; give at most "
            f"{available}, or start more with torchrun"
        )
    return count, rest


def launch(words: Sequence[str], count: int) -> int:
    """Run `softless WORDS` as so many ranks; rank 0 speaks for all. Returns the exit code."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, SignalException, Std
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # forty lines that say that a rank ended
    logging.getLogger("torch.distributed").setLevel(logging.CRITICAL)
    with TemporaryDirectory(prefix="softless-ranks-") as logs:
        noted, ended = Path(logs) / "folder", Path(logs) / "ended"
        os.environ.update(_environment(count, noted), **{ENDED: str(ended)})
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=count,
            run_id="softless",
            rdzv_backend="c10d",
            rdzv_endpoint="127.0.0.1:0",
            local_addr="127.0.0.1",
            max_restarts=0,
            logs_specs=DefaultLogsSpecs(logs, redirects=dict.fromkeys(range(1, count), Std.ALL)),
        )
        command = [sys.executable, "-m", "softless", *words]
        try:
            elastic_launch(config, command[0])(*(word.replace("$", "$$") for word in command[1:]))
        except ChildFailedError as error:
            return _reported(error.failures, count, Path(logs), noted, ended)
        except SignalException as error:
            return 128 + int(error.sigval)
    return 0


def _environment(count: int, noted: Path) -> dict[str, str]:
    """What the ranks are told: their share of the cores, and that they meet on this machine."""
    variables = {NOTED: str(noted)}
    if "OMP_NUM_THREADS" not in os.environ:
        variables["OMP_NUM_THREADS"] = str(max(cores() // count, 1))
    if "GLOO_SOCKET_IFNAME" not in os.environ and LOOPBACK in {
        name for _, name in socket.if_nameindex()
    }:
        variables["GLOO_SOCKET_IFNAME"] = LOOPBACK
    return variables


def _reported(failures: Mapping[int, Any], count: int, logs: Path, noted: Path, ended: Path) -> int:
    """Say why a rank ended, where rank 0 did not; returns the exit code of the command."""
    killed = {rank: -failure.exitcode for rank, failure in failures.items() if failure.exitcode < 0}
    for rank, number in killed.items():
        if noted.exists():
            leave(
                Path(noted.read_text("utf-8", "surrogateescape")),
                rank,
                f"killed by {_name(number)}",
            )
    if ended.exists() and (code := int(ended.read_text("utf-8"))):
        return code
    if 0 in failures and 0 not in killed:
        return int(failures[0].exitcode)  # it said why
    # the launcher ends the others by SIGTERM
    cause = min(
        failures,
        key=lambda rank: (killed.get(rank) == signal.SIGTERM, failures[rank].timestamp, rank),
    )
    how = (
        f"was killed by {_name(killed[cause])}"
        if cause in killed
        else f"ended: {_last_line(logs, cause)}"
    )
    print(f"softless: rank {cause} of {count} {how}", file=sys.stderr)
    return 1 if cause in killed else int(failures[cause].exitcode)


def _last_line(logs: Path, rank: int) -> str:
    """What a rank printed last."""
    for file in logs.glob(f"*/attempt_0/{rank}/stderr.log"):
        lines = file.read_bytes()[-TAIL:].decode("utf-8", "replace").strip().splitlines()
        if lines:
            return lines[-1].removeprefix("softless: ")
    return "it said nothing"


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
