"""The processes of a run and the device each computes on: one process, or the ranks that torchrun started."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from softless.errors import SoftlessError, UsageError
from softless.training.batch_norm import synchronised

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """Which of how many processes this is, and its device."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def compute_with(self, threads: int | None) -> None:
        """Compute with so many threads until the world ends, where the processor computes."""
        if threads and self.device.type == "cpu":
            torch.set_num_threads(threads)

    def parallel(self, model: nn.Module) -> nn.Module:
        """The model whose backward pass averages gradients over the ranks (the model itself when alone)."""
        if self.size == 1:
            return model
        ids = [self.device.index] if self.device.type == "cuda" else None
        return nn.parallel.DistributedDataParallel(model, device_ids=ids)

    def synced(self, model: nn.Module) -> nn.Module:
        """The model whose BatchNorms in training see the batch of all ranks, as one process would; keys stay the same."""
        return model if self.size == 1 else synchronised(model)

    def mean(self, value: Tensor) -> Tensor:
        """The mean over the ranks; not finite on one rank means not finite on all."""
        if self.size == 1:
            return value
        total = value.clone()
        dist.all_reduce(total)
        return total / self.size

    def first(self, work: Callable[[], T]) -> T:
        """Let rank 0 do it; every rank returns its result, or raises its error (so that none waits for a dead one)."""
        if self.size == 1:
            return work()
        box: list[Any] = [None, None]
        if self.is_first:
            try:
                box[0] = work()
            except (SoftlessError, OSError) as error:
                box[1] = error
        dist.broadcast_object_list(box, src=0, device=self.device)
        if box[1] is not None:
            raise box[1]
        return box[0]


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """The world of this run; the process group of torchrun is opened here and closed at the end.

    The caller's random generators and number of threads are put back afterwards.
    """
    size, rank = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    place = choose_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    opened = size > 1 and not dist.is_initialized()
    if opened:
        backend = "nccl" if place.type == "cuda" else "gloo"
        bound = place if place.type == "cuda" else None
        dist.init_process_group(backend, store=_meeting_place(rank, size), rank=rank, world_size=size, device_id=bound)
    before = torch.get_num_threads()
    try:
        with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
            yield World(rank, size, place)
    finally:
        torch.set_num_threads(before)
        if opened:
            dist.destroy_process_group()


@cache
def _store(address: str, port: int, rank: int, size: int) -> dist.Store:
    """torchrun's store, or that of rank 0; kept for the life of the process."""
    served = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    return dist.TCPStore(address, port, size, is_master=rank == 0 and not served, timeout=timedelta(minutes=30))


_groups = itertools.count()


def _meeting_place(rank: int, size: int) -> dist.Store:
    """The ranks' store under names that no other group takes; ranks open their groups in the same order.

    Torch opens MASTER_PORT anew for each group, so a rank that is early at its second one meets the store of the first, just before it
    closes, and waits for ever. In torchrun's store a second group, or one after a restart, finds the addresses of the one before it.
    """
    missing = [name for name in ("MASTER_ADDR", "MASTER_PORT") if name not in os.environ]
    if missing:
        raise UsageError(
            f"WORLD_SIZE={size} says that this is one of several processes, but {' and '.join(missing)} do not say where they meet: "
            f"start them with torchrun, or unset WORLD_SIZE"
        )
    store = _store(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), rank, size)
    attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    return dist.PrefixStore(f"softless/attempt-{attempt}/group-{next(_groups)}", store)


def choose_device(name: str = "auto", local_rank: int = 0) -> torch.device:
    """The device by name; auto takes cuda, then mps, then cpu, whichever is there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"no device named '{name}'. Known: auto, cpu, cuda, cuda:0, …, mps") from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UsageError(f"device '{name}' asked for, but this PyTorch sees no CUDA device: use --device cpu or auto")
    if device.type == "mps" and not torch.backends.mps.is_available():
        raise UsageError("device 'mps' asked for, but it is not available here: use --device cpu or auto")
    if device.type not in {"cpu", "cuda", "mps"}:
        raise UsageError(f"device '{name}' is not supported. Known: auto, cpu, cuda, cuda:0, …, mps")
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)
    return device
