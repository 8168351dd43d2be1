"""The protections of tests/conftest.py, each seen at work."""

import os
import random
import socket
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from softless.data.notices import notice

DRAWS: list[tuple[float, float, float]] = []


def test_one_thread():
    assert torch.get_num_threads() == 1
    assert os.environ["OMP_NUM_THREADS"] == "1"
    child = subprocess.run(
        [sys.executable, "-c", "import torch; print(torch.get_num_threads())"],
        capture_output=True,
        check=True,
    )
    assert child.stdout.strip() == b"1"


@pytest.mark.parametrize("time", [1, 2])
def test_every_test_starts_from_the_same_seeds(time):
    # the global one
    DRAWS.append((random.random(), float(np.random.rand()), float(torch.rand(()))))  # noqa: NPY002
    assert len(set(DRAWS)) == 1


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1", "example.org"])
def test_no_connection_leaves_the_machine(host):
    with pytest.raises(RuntimeError, match="without network"):
        socket.create_connection((host, 443), timeout=0.2)


@pytest.mark.parametrize("call", ["connect", "connect_ex"])
def test_no_socket_leaves_the_machine(call):
    with socket.socket() as s, pytest.raises(RuntimeError, match="without network"):
        getattr(s, call)(("192.0.2.1", 443))


def test_no_datagram_leaves_the_machine():
    with (
        socket.socket(type=socket.SOCK_DGRAM) as s,
        pytest.raises(RuntimeError, match="without network"),
    ):
        s.sendto(b"", 0, ("192.0.2.1", 53))


def answer(server: socket.socket) -> None:
    server.accept()[0].close()


@pytest.mark.parametrize("family", ["inet", "unix"])
def test_sockets_within_the_machine_work(family, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a Unix socket's name is short
    kind, address = (
        (socket.AF_INET, ("127.0.0.1", 0)) if family == "inet" else (socket.AF_UNIX, "s")
    )
    with socket.socket(kind) as server, socket.socket(kind) as client:
        server.bind(address)
        server.listen()
        thread = threading.Thread(target=answer, args=(server,))
        thread.start()
        client.connect(server.getsockname())
        thread.join()
        assert client.recv(1) == b""


@pytest.mark.parametrize(
    "make",
    [
        torch.empty,
        lambda n: torch.empty_like(torch.zeros(n)),
        lambda n: torch.zeros(1).new_empty(n),
    ],
)
def test_fresh_memory_is_poisoned(make):
    assert make(5).isnan().all()


def test_fresh_memory_is_poisoned_where_an_operation_forgets_to_write():
    total = torch.empty(3)
    total[:2] = 1.0
    assert total.sum().isnan()


def test_warnings_are_errors():
    with pytest.raises(UserWarning, match="seen"):
        warnings.warn("seen", stacklevel=1)


def test_a_test_may_change_the_mode(monkeypatch):
    torch.use_deterministic_algorithms(mode=False)
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(2)
    assert not torch.are_deterministic_algorithms_enabled()


def test_and_the_next_one_finds_it_as_it_was():
    assert torch.are_deterministic_algorithms_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_num_threads() == 1


def test_hypothesis_profile():
    profile = settings.get_current_profile_name()
    assert profile == os.environ.get("HYPOTHESIS_PROFILE", "pull")
    assert settings.get_profile("pull").max_examples == 300
    assert settings.get_profile("nightly").max_examples == 5000
    assert settings().deadline is None
    assert settings().database is None
    assert not settings().derandomize


DRAWN: set[float] = set()


@settings(max_examples=10)
@given(st.integers())
def test_hypothesis_starts_every_example_from_the_same_seed(number):
    DRAWN.add(float(torch.rand(())))
    assert len(DRAWN) == 1


def test_header_names_the_seed_of_hypothesis(request):
    header = request.config.hook.pytest_report_header(
        config=request.config, start_path=request.config.rootpath
    )
    seed = request.config.getoption("--hypothesis-seed")
    assert seed is not None
    assert f"--hypothesis-seed={seed}" in str(header)


def test_data_root_is_a_folder_or_a_skip(data_root):
    assert data_root.is_dir()


@pytest.mark.parametrize("again", [False, True])
def test_a_notice_is_said_to_every_test(again: bool, caplog: pytest.LogCaptureFixture):
    notice("said to one test and to the next")
    notice("said to one test and to the next")
    assert len(caplog.records) == 1, again
