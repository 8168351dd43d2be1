"""Names in two arrays are the list that they were made of, and forked processes copy next to none
of it.
"""

import os
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest

from softless.data.names import Names
from softless.data.samples import FileSamples

ODD = ["a.png", "", "ünï/名前.jpg", "bad\udcff.png", "\ud800", "two\nlines", "\x00"]


@pytest.mark.parametrize("names", [ODD, [], ["x"]])
def test_they_are_the_list(names: list[str]) -> None:
    held = Names(names)
    assert list(held) == names
    assert held == names
    assert held[1:] == names[1:]
    assert [held[-1 - place] for place in range(len(names))] == names[::-1]
    assert pickle.loads(pickle.dumps(held)) == names
    assert held != [*names, "more"]
    with pytest.raises(IndexError):
        held[len(names)]


def private(process: str = "self") -> int:
    """Bytes that this process alone holds."""
    told = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in told if line.startswith("Private_Dirty"))


@pytest.mark.extra
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.skipif(sys.platform != "linux", reason="asks /proc")
def test_a_loading_process_copies_no_names() -> None:
    """1.28 million names as of ImageNet; a list of strings takes 128 MB in each process."""
    many = 1_281_167
    names = (
        f"train/n{place // 1300:08d}/n{place // 1300:08d}_{place}.JPEG" for place in range(many)
    )
    samples = FileSamples(Path("/data"), Names(names), np.zeros(many, dtype=np.int64), 3)
    order = np.random.default_rng(0).permutation(many)[: many // 2]
    inlet, outlet = os.pipe()
    if os.fork() == 0:
        before = private()
        for place in order:
            samples.name(int(place))
        os.write(outlet, str(private() - before).encode())
        os._exit(0)
    os.wait()
    assert int(os.read(inlet, 100)) < 5_000_000
