"""A process with everything imported that forks one child per training: a real process to kill,
without its seconds of imports.

Reads one JSON line per request and answers with one:  {"run": folder} -> {"pid": n};  {"wait": pid}
-> {"code": exit code, negative for a signal}. The folder holds recipe.pickle and spec.json:
{"options": of fit, "hook": a name of HOOKS or null}. The child writes said.txt.
"""

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def send(number: int = signal.SIGTERM) -> None:
    os.kill(os.getpid(), number)


def send_twice() -> None:
    send()
    send()


def on_call(owner: Any, name: str, count: int, act: Callable[[], None]) -> None:
    """Do something at the start of the count-th call of owner.name."""
    inner, calls = getattr(owner, name), []

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == count:
            act()
        return inner(*args, **kwargs)

    setattr(owner, name, wrapped)


def unseeded() -> None:
    """The negative control: each process draws its own random numbers, as after a resume without
    generator states.
    """
    import torch

    from softless.training.setup import Run

    first: list[Any] = []

    def seed_step(self: Any, step: int) -> None:
        if not first:
            first.append(
                torch.manual_seed(random.SystemRandom().getrandbits(32) if self.updates else 1)
            )

    Run.seed_step = seed_step  # type: ignore[method-assign]


def die_at(point: int, folder: Path) -> None:
    """SIGKILL before (even) or after (odd) the point-th call that changes the run's folder; without
    one, count the calls in calls.txt.
    """
    import io

    calls: list[str] = []
    run = str(folder / "run")

    def watch(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            if name == "open":
                mode = args[1] if len(args) > 1 else kwargs.get("mode", "r")
                counts = (
                    str(args[0]).startswith(run)
                    and isinstance(mode, str)
                    and bool(set(mode) & set("wax+"))
                )
            else:
                counts = name == "fsync" or str(args[0]).startswith(run)
            if not counts:
                return inner(*args, **kwargs)
            calls.append(name)
            mine = len(calls) == point
            if mine and point % 2 == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            try:
                return inner(*args, **kwargs)
            finally:
                if mine:
                    os.kill(os.getpid(), signal.SIGKILL)

        setattr(owner, name, wrapped)

    for name in ("fsync", "replace", "rename", "unlink", "mkdir", "link"):
        watch(os, name)
    watch(io, "open")
    if not point:
        LEAVING.append(lambda: (folder / "calls.txt").write_text(" ".join(calls)))


LEAVING: list[Callable[[], Any]] = []  # done when a training has ended


def kill_a_loader() -> None:
    import multiprocessing
    import time

    os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)  # type: ignore[arg-type]
    time.sleep(0.2)


def slow_step() -> None:
    import time

    from softless.training import loop

    inner = loop.train_step

    def wrapped(*args: Any) -> Any:
        time.sleep(0.03)
        return inner(*args)

    loop.train_step = wrapped  # type: ignore[assignment]


def hooks() -> dict[str, Callable[[], None]]:
    """Where a signal, or death, comes."""
    import torch

    from softless.data import EpochLoader
    from softless.training import checkpoint, keep, loop

    def at(owner: Any, name: str, count: int, act: Callable[[], None] = send) -> Callable[[], None]:
        return lambda: on_call(owner, name, count, act)

    return {
        # training, two validations, training: the second epoch's workers start
        "loader": at(EpochLoader, "__iter__", 4),
        "batch": lambda: on_call(loop, "train_step", 5, send),
        "step": at(torch.optim.AdamW, "step", 6),
        "validation": at(loop, "validate", 3),
        "save": at(torch, "save", 2),
        "test": at(loop, "finish", 1),
        "interrupt": at(torch.optim.AdamW, "step", 6, lambda: send(signal.SIGINT)),
        "die in keep": at(keep, "take_best", 2, lambda: send(signal.SIGKILL)),
        "die in save": at(checkpoint, "state", 5, lambda: send(signal.SIGKILL)),
        "twice": at(torch.optim.AdamW, "step", 6, send_twice),
        "loader dies": lambda: on_call(loop, "train_step", 7, kill_a_loader),
        "unseeded": unseeded,
        "slow": slow_step,
    }


def crash(folder: Path, point: int) -> int:
    """Save twice (acknowledged in acked.txt) and once more, dying before the point-th call that
    touches the disk; 0 where there are fewer.
    """
    import torch

    from softless.experiment.checkpoints import Checkpoints
    from softless.models import durable

    store = Checkpoints(folder / "checkpoints", keep=1)
    for step in (1, 2):
        store.save({"step": step, "weights": torch.full((1000,), step)}, (step, 0), {})
        (folder / "acked.txt").write_text(str(step))
    calls: list[str] = []

    def watch(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == point:
                (folder / "at.txt").write_text(name)
                send(signal.SIGKILL)
            return inner(*args, **kwargs)

        setattr(owner, name, wrapped)

    for name in ("fsync", "replace", "rename", "unlink"):
        watch(os, name)
    watch(durable.Hashing, "write")
    watch(Path, "write_bytes")
    store.save({"step": 3, "weights": torch.full((1000,), 3)}, (3, 0), {})
    (folder / "calls.txt").write_text(" ".join(calls))
    return 0


def save_forever(folder: Path, megabytes: int) -> int:
    """Save one state after another, and note each one that is acknowledged."""
    import torch

    from softless.experiment.checkpoints import Checkpoints

    store = Checkpoints(folder / "checkpoints")
    store.sweep()
    newest = store.newest()
    step = 0 if newest is None else int(newest["step"])
    while True:
        step += 1
        weights = torch.full((megabytes * 250_000,), float(step))
        store.save({"step": step, "weights": weights}, (step, 0), {})
        (folder / "acked.tmp").write_text(str(step))
        (folder / "acked.tmp").replace(folder / "acked.txt")


def race(folder: Path, rounds: int) -> int:
    """Let four processes take a folder at one instant, again and again; how many rounds did not end
    with one holder.
    """
    import socket
    import time

    from softless.errors import UsageError
    from softless.experiment.claim import Claim, holder

    wrong = 0
    dead = json.dumps({
        "pid": 2**22 + 1,
        "host": socket.gethostname(),
        "started": "2026-01-01",
        "process": "1",
    })
    for number in range(rounds):
        place = folder / str(number)
        place.mkdir()
        if number % 3:
            (place / "lock").write_text(dead if number % 3 == 1 else "")
        start, (read, write) = time.time() + 0.05, os.pipe()
        pids = []
        for _ in range(4):
            pid = os.fork()
            if pid == 0:
                os.close(write)
                while time.time() < start:
                    pass
                try:
                    Claim.take(place)
                except UsageError as error:
                    os._exit(2 if "in use by process" in str(error) else 3)
                os.read(read, 1)  # until the others have tried
                os._exit(0)
            pids.append(pid)
        os.close(read)
        codes = [os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]) for _ in range(3)]
        held = holder(place)
        os.close(write)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(-1, 0)[1]))
        if sorted(codes) != [0, 2, 2, 2] or held is None or held["pid"] not in pids:
            print(f"round {number}: {codes}, {held}", file=sys.stderr)
            wrong += 1
    return wrong


def child(folder: Path) -> int:
    from softless.errors import SoftlessError
    from softless.training import fit

    spec = json.loads((folder / "spec.json").read_text())
    if "save" in spec:
        return save_forever(folder, spec["save"])
    if "race" in spec:
        return race(folder, spec["race"])
    if "crash" in spec:
        return crash(folder, spec["crash"])
    for hook in spec.get("hooks", []):
        if hook.startswith("die at "):
            die_at(int(hook.rpartition(" ")[2]), folder)
        else:
            hooks()[hook]()
    recipe = pickle.loads((folder / "recipe.pickle").read_bytes())
    try:
        fit(recipe, folder / "run", device="cpu", progress=False, **spec.get("options", {}))
    except SoftlessError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return error.exit_code
    for act in LEAVING:
        act()
    return 0


def serve() -> None:
    import timm  # noqa: F401
    import torch
    import torch._dynamo  # noqa: F401 - what the first step would import

    import softless.training  # noqa: F401

    torch.set_num_threads(1)
    for line in sys.stdin:
        asked = json.loads(line)
        if "run" in asked:
            pid = os.fork()
            if pid == 0:
                os.setsid()
                code = 70
                folder = Path(asked["run"])
                said = os.open(folder / "said.txt", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.dup2(said, 2)
                os.dup2(said, 1)
                try:
                    code = child(folder)
                except BaseException:  # noqa: BLE001 - whatever it is, the test is told
                    traceback.print_exc()
                finally:
                    sys.stderr.flush()
                    os._exit(code)
            answer = {"pid": pid}
        else:
            _, status = os.waitpid(asked["wait"], 0)
            answer = {"code": os.waitstatus_to_exitcode(status)}
        print(json.dumps(answer), flush=True)


class Zygote:
    """The other end."""

    def __init__(self) -> None:
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        self.process = subprocess.Popen(
            [sys.executable, __file__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=env,
        )

    def ask(self, **request: Any) -> dict[str, Any]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        found: dict[str, Any] = json.loads(self.process.stdout.readline())
        return found

    def start(self, folder: Path, recipe: Any, *hooks: str, **options: Any) -> int:
        """Start fit(recipe, folder/run, **options) in a process of its own."""
        folder.mkdir(exist_ok=True)
        (folder / "recipe.pickle").write_bytes(pickle.dumps(recipe))
        (folder / "spec.json").write_text(json.dumps({"hooks": hooks, "options": options}))
        return int(self.ask(run=str(folder))["pid"])

    def crash(self, folder: Path, point: int) -> int:
        """Die at a point of a save; the exit code."""
        folder.mkdir()
        (folder / "spec.json").write_text(json.dumps({"crash": point}))
        return self.wait(int(self.ask(run=str(folder))["pid"]))

    def save_forever(self, folder: Path, megabytes: int) -> int:
        """Start a process that saves without pause; its number."""
        folder.mkdir(exist_ok=True)
        (folder / "spec.json").write_text(json.dumps({"save": megabytes}))
        return int(self.ask(run=str(folder))["pid"])

    def race(self, folder: Path, rounds: int) -> int:
        """Let processes race for a folder; how many rounds went wrong."""
        folder.mkdir()
        (folder / "spec.json").write_text(json.dumps({"race": rounds}))
        return self.wait(int(self.ask(run=str(folder))["pid"]))

    def wait(self, pid: int) -> int:
        return int(self.ask(wait=pid)["code"])

    def run(self, folder: Path, recipe: Any, *hooks: str, **options: Any) -> int:
        return self.wait(self.start(folder, recipe, *hooks, **options))

    def close(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(120)
        self.process.stdout.close()


if __name__ == "__main__":
    serve()
