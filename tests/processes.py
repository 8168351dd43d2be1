"""Several processes as the ranks of one run."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from tempfile import TemporaryFile


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def environment(ranks: int) -> dict[str, str]:
    """What every rank of one run is told: where they meet, and one thread each."""
    # torch takes the lesser
    told = {name: value for name, value in os.environ.items() if name != "MKL_NUM_THREADS"}
    meeting = {
        "WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return {**told, **meeting, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def run_ranks(*command: str, ranks: int = 2, seconds: float = 120) -> list[str]:
    """`python COMMAND` once for each rank, with the environment that torch reads; what each said,
    when all have ended well.

    Raises AssertionError with what each said as soon as one fails, or when the time is over; none
    is left behind.
    """
    shared = environment(ranks)
    with ExitStack() as stack:
        files = [stack.enter_context(TemporaryFile("w+")) for _ in range(ranks)]
        processes = []
        for rank, file in enumerate(files):
            env = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(
                subprocess.Popen([sys.executable, *command], env=env, stdout=file, stderr=file)
            )
            stack.callback(processes[-1].wait)
            stack.callback(processes[-1].kill)
        end = time.monotonic() + seconds
        while True:
            codes = [process.poll() for process in processes]
            if not any(code is None for code in codes) or any(codes) or time.monotonic() > end:
                break
            time.sleep(0.05)
        said: list[str] = []
        for file, code in zip(files, codes, strict=True):
            file.seek(0)
            said.append(
                f"rank {len(said)}, "
                f"{'still at work' if code is None else f'exit {code}'}:\n{file.read()}"
            )
        assert codes == [0] * ranks, "\n".join(said)
    return said


def each_rank(
    commands: Sequence[Sequence[str]],
    *,
    seconds: float = 120,
    environments: Mapping[int, Mapping[str, str]] | None = None,
    meanwhile: Callable[[list[subprocess.Popen[str]]], None] = lambda _: None,
) -> list[tuple[int, str]]:
    """`python COMMAND` as each rank of one run: exit code and what was said, however each ends.

    Raises AssertionError where one is still at work when the time is over.
    """
    shared = environment(len(commands))
    with ExitStack() as stack:
        files = [stack.enter_context(TemporaryFile("w+")) for _ in commands]
        processes: list[subprocess.Popen[str]] = []
        for rank, (command, file) in enumerate(zip(commands, files, strict=True)):
            env = {
                **shared,
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                **(environments or {}).get(rank, {}),
            }
            processes.append(
                subprocess.Popen(
                    [sys.executable, *command], env=env, stdout=file, stderr=file, text=True
                )
            )
            stack.callback(processes[-1].wait)
            stack.callback(processes[-1].kill)
        end = time.monotonic() + seconds
        meanwhile(processes)
        while any(process.poll() is None for process in processes) and time.monotonic() < end:
            time.sleep(0.05)
        said = []
        for process, file in zip(processes, files, strict=True):
            file.seek(0)
            said.append((process.poll(), file.read()))
    assert all(code is not None for code, _ in said), said
    return [(int(code or 0), text) for code, text in said]
