"""The hostile environment every test runs in (style §8): what a result must not depend on is fixed,
poisoned or forbidden.

- one thread: on a busy machine the same tests are many times slower with the default number;
- notices: what one test was told, the next is told again;
- seeds: every test starts from the same state of Python's, numpy's and torch's generators, alone or
  in the whole suite;
- no network: a connection that leaves this machine raises;
- `torch.empty` holds NaN (integers: the largest value), so that reading what nobody wrote is seen;
- warnings are errors (pyproject.toml).

`tests/repository/test_environment.py` shows each of them at work. Processes that a test starts
inherit the environment variables below, and only those.
"""

import os
import tempfile

os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    OPENBLAS_NUM_THREADS="1",
    HF_HUB_OFFLINE="1",  # huggingface_hub refuses to download, in child processes too
    MPLBACKEND="Agg",
    # made only where a test reads for seconds
    SOFTLESS_CACHE=f"{tempfile.gettempdir()}/softless-tests-{os.getpid()}",
)

import ipaddress
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
import torch

from softless.data import notices

# hooks
from tests.counting import pytest_addoption, pytest_runtest_makereport, pytest_sessionfinish  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
SEED = 0

torch.set_num_threads(1)

hypothesis.settings.register_profile(
    "pull",
    max_examples=300,
    deadline=None,
    database=None,
    print_blob=True,
    derandomize=False,  # where CI is set, Hypothesis would try the same examples every time
    # a busy machine is no fault of the test
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.register_profile(
    "nightly", hypothesis.settings.get_profile("pull"), max_examples=5000
)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "pull"))


class TorchRandom:
    """torch's generator as Hypothesis wants it, so that an example gives the same tensors when it
    is tried again.
    """

    def seed(self, value: int) -> None:
        torch.manual_seed(value)

    def getstate(self) -> torch.Tensor:
        return torch.get_rng_state()

    def setstate(self, state: torch.Tensor) -> None:
        torch.set_rng_state(state)


TORCH_RANDOM = TorchRandom()  # Hypothesis keeps a weak reference only
hypothesis.register_random(TORCH_RANDOM)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Draws Hypothesis' seed here, unless --hypothesis-seed gives it, so that the header can name
    it.
    """
    if config.getoption("--hypothesis-seed") is None:
        config.option.hypothesis_seed = str(random.SystemRandom().getrandbits(32))


def pytest_report_header(config: pytest.Config) -> str:
    return (
        f"hostile environment: 1 thread, seed {SEED}, no network, NaN in torch.empty; "
        f"repeat with --hypothesis-seed={config.getoption('--hypothesis-seed')}"
    )


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """The same start for every test."""
    random.seed(SEED)
    np.random.seed(SEED)  # noqa: NPY002  # torchvision and timm draw from the global generator
    torch.manual_seed(SEED)


@pytest.fixture(autouse=True)
def nothing_said() -> None:
    """What is said once per process is said once per test."""
    notices._said.clear()


@pytest.fixture(autouse=True)
def poisoned_memory() -> Iterator[None]:
    """Fills fresh tensors with NaN. torch does so in its deterministic mode only, which on CPU
    costs nothing and refuses no operation of ours.

    A test may change threads, dtype or mode: the next one finds them as they were.
    """
    torch.use_deterministic_algorithms(mode=True)
    # a property of the module
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    yield
    torch.use_deterministic_algorithms(mode=False)
    torch.set_default_dtype(torch.float32)
    torch.set_num_threads(1)


class NetworkBlocked(RuntimeError):
    """A test tried to leave this machine."""


def _is_local(address: Any) -> bool:
    host = address[0] if isinstance(address, tuple) else address
    if isinstance(host, bytes):
        host = host.decode()
    if host in {None, "", "localhost", socket.gethostname()}:
        return True
    try:
        return ipaddress.ip_address(host).is_loopback or ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False  # the name of another machine


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Python's sockets reach this machine only: Unix sockets and loopback, which gloo's process
    groups need.
    """

    def guard(name: str) -> None:
        original = getattr(socket.socket, name)

        def guarded(self: socket.socket, *args: Any) -> Any:
            address = args[-1]  # sendto(data, [flags,] address)
            if self.family in {socket.AF_INET, socket.AF_INET6} and not _is_local(address):
                raise NetworkBlocked(f"a test tried to reach {address}: tests run without network")
            return original(self, *args)

        monkeypatch.setattr(socket.socket, name, guarded)

    for name in ("connect", "connect_ex", "sendto"):
        guard(name)

    resolve = socket.getaddrinfo

    def getaddrinfo(host: Any, *args: Any, **options: Any) -> Any:
        if not _is_local(host):
            raise NetworkBlocked(f"a test tried to look up {host}: tests run without network")
        return resolve(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real data sets: $SOFTLESS_DATA, or shared/data beside the repository."""
    named = os.environ.get("SOFTLESS_DATA")
    folder = Path(named) if named else ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip(
            "no data sets: "
            f"{'SOFTLESS_DATA names' if named else 'SOFTLESS_DATA is not set and there is no'} "
            f"{folder}"
        )
    return folder
