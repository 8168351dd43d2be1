"""What is shown of a running training, on a terminal and into a file."""

import io
import re

import pytest

from softless.training.progress import LINE_SECONDS, Progress, clock


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch):
    """A clock that the test moves."""
    state = {"now": 0.0}
    monkeypatch.setattr("softless.training.progress.time.monotonic", lambda: state["now"])
    return state


def test_lines_in_a_file_say_rate_and_remaining_time(now):
    stream = io.StringIO()
    with Progress(4, 10, stream=stream) as bar:
        now["now"] = LINE_SECONDS - 1
        bar.step(0, 3, 1.0, 1e-3, 500.0)
        assert not stream.getvalue(), "too early for a line"
        now["now"] = LINE_SECONDS
        bar.step(0, 4, 1.25, 1e-3, 1500.0)
        now["now"] = 40.0
        bar.epoch(1, "val top1 0.5")
    first, second = stream.getvalue().splitlines()
    assert re.fullmatch(
        r"epoch 1/4  loss 1.250  lr 1.0e-03  1,500 images/s  \d\.\d GiB( on the GPU)?  step 5/10  "
        r"2:20 left",
        first,
    )
    assert second == "epoch 1/4  val top1 0.5  2:00 left"


def test_a_resumed_run_counts_its_own_time(now):
    stream = io.StringIO()
    with Progress(4, 10, first=20, stream=stream) as bar:
        now["now"] = 30.0
        bar.epoch(3, "")
    assert stream.getvalue().endswith("0:30 left\n")


def test_a_bar_on_a_terminal_and_nothing_when_not_asked():
    stream, silent = Terminal(), Terminal()
    with Progress(1, 2, stream=stream) as bar:
        bar.last = 0.0
        bar.step(0, 0, 0.5, 1e-3, 10.0)
        with bar.paused():
            stream.write("validation's own line\n")
        bar.epoch(1, "val top1 0.9")
    assert "val top1 0.9" in stream.getvalue()
    assert "loss 0.500" in stream.getvalue()
    with Progress(1, 2, show=False, stream=silent) as bar:
        bar.epoch(1, "val top1 0.9")
    assert not silent.getvalue()


def test_clock():
    assert (clock(5), clock(65), clock(7265)) == ("0:05", "1:05", "2:01:05")
