"""Several processes as the ranks of one run."""

import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from tempfile import TemporaryFile


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def run_ranks(*command: str, ranks: int = 2, seconds: float = 120) -> list[str]:
    """`python COMMAND` once for each rank, with the environment that torch reads; what each said, when all have ended well.

    Raises AssertionError with what each said as soon as one fails, or when the time is over; none is left behind.
    """
    shared = {**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    shared |= {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    with ExitStack() as stack:
        files = [stack.enter_context(TemporaryFile("w+")) for _ in range(ranks)]
        processes = []
        for rank, file in enumerate(files):
            env = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
            processes.append(subprocess.Popen([sys.executable, *command], env=env, stdout=file, stderr=file))
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
            said.append(f"rank {len(said)}, {'still at work' if code is None else f'exit {code}'}:\n{file.read()}")
        assert codes == [0] * ranks, "\n".join(said)
    return said
