"""Interleaved timing on a clock that the test drives."""

import pytest
import torch

from softless.compare.timing import Spread, interleaved, threads_of, waiting_for
from softless.errors import UsageError


class Machine:
    """A clock, and calls that take a known time on a machine that slows down as it runs."""

    def __init__(self, slowdown=0.0):
        self.now, self.order, self.slowdown, self.pending = 0.0, [], slowdown, 0.0

    def call(self, name, seconds):
        def run():
            self.order.append(name)
            self.now += seconds * (1 + self.slowdown * self.now)

        return run


def test_calls_take_turns_and_change_who_goes_first():
    machine = Machine()
    interleaved(
        {"a": machine.call("a", 1), "b": machine.call("b", 1)},
        rounds=4,
        warmup=0,
        clock=lambda: machine.now,
    )
    assert "".join(machine.order) == "abbaabba"


def test_warmup_is_run_and_dropped():
    machine = Machine()
    timed = interleaved({"a": machine.call("a", 2)}, rounds=3, warmup=2, clock=lambda: machine.now)
    assert len(machine.order) == 5
    assert timed.seconds["a"] == [2, 2, 2]


def test_pairs_cancel_a_machine_that_slows_down():
    machine = Machine(slowdown=0.02)
    calls = {"fast": machine.call("fast", 1.0), "slow": machine.call("slow", 1.5)}
    timed = interleaved(calls, rounds=20, clock=lambda: machine.now)
    assert timed.ratio("slow", "fast").median == pytest.approx(1.5, rel=0.03)
    # one after the other would have met another machine
    assert timed.seconds["fast"][-1] > 2 * timed.seconds["fast"][0]


def test_synchronises_before_each_reading():
    machine = Machine()

    def launch():
        machine.pending += 3.0  # returns at once, as a GPU kernel does

    def wait():
        machine.now += machine.pending
        machine.pending = 0.0

    timed = interleaved(
        {"kernel": launch}, rounds=2, warmup=0, synchronise=wait, clock=lambda: machine.now
    )
    assert timed.seconds["kernel"] == [3.0, 3.0]


def test_spread_and_rates():
    assert Spread.of([1, 2, 3, 4, 5]) == Spread(3, 2, 4)
    assert Spread.of([2.0]) == Spread(2.0, 2.0, 2.0)
    machine = Machine()
    timed = interleaved({"a": machine.call("a", 0.5)}, rounds=2, clock=lambda: machine.now)
    assert timed.rates("a", 64).median == 128


def test_nothing_to_time():
    with pytest.raises(UsageError, match="0 calls"):
        interleaved({})


def test_every_device_is_waited_for_in_its_own_way():
    assert waiting_for(torch.device("cuda")) is torch.cuda.synchronize
    assert waiting_for(torch.device("mps")) is torch.mps.synchronize
    assert waiting_for(torch.device("cpu"))() is None


def test_threads_are_as_before_afterwards():
    before = torch.get_num_threads()
    with threads_of(before + 1) as count:
        assert count == torch.get_num_threads() == before + 1
    with threads_of(None) as count:
        assert count == before
    assert torch.get_num_threads() == before
