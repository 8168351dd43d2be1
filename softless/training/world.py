"""The processes of a run and the device each computes on: one process, or the ranks that torchrun
started.
"""

import itertools
import os
import re
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from softless import ranks
from softless.errors import RankGone, UsageError
from softless.experiment import processes
from softless.training.batch_norm import synchronised
from softless.training.last_words import LastWords

T = TypeVar("T")
PATIENCE = 30.0  # minutes that a rank waits for the others
MEETING = 5.0  # minutes that ranks have to come to their first meeting
MOMENT = 15.0  # seconds in which a process that ends is seen to be gone, on a busy machine too
_LOST = re.compile(
    r"gloo|[Cc]onnection|[Tt]imed out|NCCL|TCPStore|Broken pipe|recvValue|failed to recv"
)


@dataclass(frozen=True)
class World:
    """Which of how many processes this is, and its device."""

    rank: int
    size: int
    device: torch.device
    peers: tuple[Mapping[str, Any], ...] = ()  # host, number and start of each rank's process
    words: LastWords | None = None  # where each rank leaves its own

    @property
    def is_first(self) -> bool:
        """Whether this is rank 0, which writes and speaks."""
        return self.rank == 0

    def compute_with(self, threads: int | None) -> None:
        """Compute with so many threads until the world ends, where the processor computes."""
        if threads and self.device.type == "cpu":
            torch.set_num_threads(threads)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model whose backward pass averages gradients over the ranks (the model itself when
        alone).
        """
        if self.size == 1:
            return model
        for parameter in model.parameters():
            if parameter.requires_grad and parameter.ndim == 4 and 1 in parameter.shape:
                parameter.register_hook(_as_stored)
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def synced(self, model: nn.Module) -> nn.Module:
        """The model whose BatchNorms in training see the batch of all ranks, as one process would;
        keys stay the same.
        """
        return model if self.size == 1 else synchronised(model)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks of a value of any one shape; not finite on one rank means not
        finite on all.
        """
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.size

    def first(self, work: Callable[[], T]) -> T:
        """Let rank 0 do it; every rank returns its result, or raises its error."""
        return ranks.first(work)

    def gather(self, mine: T) -> list[T]:
        """What every rank has, by rank."""
        return ranks.gather(mine)

    def together(self, work: Callable[[], T]) -> T:
        """Let every rank do it; where one cannot, all raise an error."""
        return ranks.together(work)

    def may_speak(self) -> None:
        """The folder of the results is this command's, so last words may stand there."""
        if self.words is not None:
            self.words.begin()

    def say(self, text: str) -> None:
        """Leave this rank's last words."""
        if self.words is not None:
            self.words.leave(text)

    def last_of(self, rank: int) -> str:
        """What another rank said last, where it left that."""
        return "" if self.words is None else self.words.of(rank)

    def gone(self) -> list[int]:
        """The ranks on this machine whose processes are not there any more."""
        host = socket.gethostname()
        return [
            rank
            for rank, peer in enumerate(self.peers)
            if peer["host"] == host
            and not (
                processes.running(peer["pid"]) and processes.started(peer["pid"]) == peer["process"]
            )
        ]


def _as_stored(grad: Tensor) -> Tensor:
    """The gradient of a depthwise convolution with the strides of its weight, which DDP compares:
    convolving tokens leaves those of channels last, the same numbers in the same places, since one
    side has one entry.
    """
    return grad.reshape(-1).view(grad.shape) if grad.is_contiguous() else grad


@contextmanager
def join(
    device: str = "auto", patience: float = PATIENCE, folder: Path | None = None
) -> Iterator[World]:
    """The world of this run; the process group of torchrun is opened here and closed at the end.

    The caller's random generators and number of threads are put back afterwards.

    Args:
        device: of the computation, by name.
        patience: minutes that a rank waits for the others.
        folder: of the results, in which each of several ranks leaves its last words.

    Raises:
        RankGone: another rank is gone, or was waited for in vain.
        UsageError: no device of that name, or the ranks cannot meet.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    chosen = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    opened = size > 1 and not dist.is_initialized()
    if opened:
        backend = "nccl" if chosen.type == "cuda" else "gloo"
        bound = chosen if chosen.type == "cuda" else None
        if bound is not None:
            # objects are exchanged over the current device, whichever was named
            torch.cuda.set_device(bound)
        dist.init_process_group(
            backend,
            store=_meeting_place(rank, size),
            rank=rank,
            world_size=size,
            device_id=bound,
            timeout=timedelta(minutes=patience),
        )
    before = torch.get_num_threads()
    words = LastWords(folder, rank) if size > 1 and folder is not None else None
    world = World(rank, size, chosen, words=words)
    try:
        if size > 1:
            world = replace(world, peers=tuple(world.gather(_myself())))
            _joined.append(world)
        with torch.random.fork_rng(devices=[chosen] if chosen.type == "cuda" else []):
            yield world
        world.say("ended well")
    except BaseException as error:
        world.say(str(error) or type(error).__name__)
        raise
    finally:
        torch.set_num_threads(before)
        if opened:
            dist.destroy_process_group()


_joined: list[World] = []  # by this process; the last one counts


def let_the_first_speak() -> None:
    """Wait until rank 0 has ended: whoever started the ranks ends all as soon as one fails, and
    rank 0 says why.
    """
    deadline = time.monotonic() + (MOMENT if _joined else 1.0)  # unjoined nobody knows its process
    while time.monotonic() < deadline and not (_joined and 0 in _joined[-1].gone()):
        time.sleep(0.05)


def _myself() -> dict[str, Any]:
    return {
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process": processes.started(os.getpid()),
    }


@contextmanager
def hearing(world: World) -> Iterator[None]:
    """A stretch with exchanges between ranks: one that fails is an error of ours.

    Raises:
        RankGone: another rank is gone, or was waited for in vain.
    """
    try:
        yield
    except RuntimeError as error:
        if world.size == 1 or not _LOST.search(str(error)):
            raise
        raise RankGone(_why_lost(world, str(error))) from error


def _why_lost(world: World, message: str) -> str:
    gone: list[int] = []
    if "imed out" not in message:
        deadline = time.monotonic() + MOMENT
        # a process that is killed takes a moment to go
        while not gone and time.monotonic() < deadline:
            gone = world.gone()
            time.sleep(0.05)
    me = f"rank {world.rank} of {world.size}"
    if gone:
        return named(gone, world)
    if "imed out" in message:
        return (
            f"{me} waited in vain for the others: one of them hangs, or works longer than "
            "rank_patience allows"
        )
    return f"{me} lost the connection to another rank, which has ended or cannot be reached"


def named(gone: Sequence[int], world: World) -> str:
    """Ranks that are gone, with what the first of them said last."""
    names = " and ".join(str(rank) for rank in gone)
    last_words = world.last_of(gone[0])
    are = (
        f"rank {names} of {world.size} is gone"
        if len(gone) == 1
        else f"ranks {names} of {world.size} are gone"
    )
    return f"{are} (it said: {last_words})" if last_words else are


@cache
def _store(address: str, port: int, rank: int, size: int) -> dist.Store:
    """torchrun's store, or that of rank 0; kept for the life of the process."""
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    try:
        store = dist.TCPStore(
            address,
            port,
            size,
            is_master=rank == 0 and not served,
            timeout=timedelta(minutes=MEETING),
        )
    except dist.DistError as error:
        if "EADDRINUSE" in str(error) or "address already in use" in str(error):
            raise UsageError(
                f"port {port} of {address}, where the ranks are to meet, is taken by another "
                "program: set MASTER_PORT to a free one"
            ) from error
        raise UsageError(
            f"rank {rank} of {size} met nobody at {address}, port {port}, within {MEETING:.0f} "
            "minutes: "
            "start all ranks with one MASTER_ADDR and MASTER_PORT that they can reach"
        ) from error
    store.set_timeout(timedelta(minutes=PATIENCE))
    return store


_groups = itertools.count()


def _meeting_place(rank: int, size: int) -> dist.Store:
    """The ranks' store under names that no other group takes; ranks open their groups in the same
    order.

    Torch opens MASTER_PORT anew for each group, so a rank that is early at its second one meets the
    store of the first, just before it closes, and waits for ever. In torchrun's store a second
    group, or one after a restart, finds the addresses of the one before it.
    """
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE={size} says that this is one of several processes, but "
            f"{' and '.join(missing)} do not say where they meet: "
            f"start them with torchrun, or unset WORLD_SIZE"
        )
    store = _store(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), rank, size)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"softless/attempt-{attempt}/group-{next(_groups)}", store)


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device by name; auto takes cuda, then mps, then cpu, whichever is there.

    Args:
        name: auto, cpu, cuda, cuda:0, …, mps.
        local_rank: the number of the GPU where the name has none.

    Raises:
        UsageError: no such device, or none that this PyTorch sees.
    """
    if name == "auto":
        name = (
            "cuda"
            if torch.cuda.is_available()
            else "mps"
            if torch.backends.mps.is_available()
            else "cpu"
        )
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(
            f"no device named '{name}'. Known: auto, cpu, cuda, cuda:0, …, mps"
        ) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(
            f"device '{name}' asked for, but this PyTorch sees no CUDA device: use --device cpu "
            "or auto"
        )
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError(
            "device 'mps' asked for, but it is not available here: use --device cpu or auto"
        )
    if device.type not in {"cpu", "cuda", "mps"}:
        raise UsageError(
            f"device '{name}' is not supported. Known: auto, cpu, cuda, cuda:0, …, mps"
        )
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    return device
