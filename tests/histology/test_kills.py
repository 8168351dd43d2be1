"""`softless tiles` and `softless heat` killed at any instant end with the same bits, and ranks share
slides.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.histology.encoders import saved
from tests.histology.test_heat import places, written
from tests.processes import run_ranks
from tests.slides.test_reader import pixels, spoil, write

pytest.importorskip("h5py")
pytest.importorskip("shapely")
pytest.importorskip("openslide")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, os, sys, time
import torch
import softless
from softless.cli.main import main
from softless.histology.encoder import Encoder
import tests.histology.test_heat as heating

plain = Encoder.features

def slowly(self, tiles):
    time.sleep(0.02)
    return plain(self, tiles)

Encoder.features = slowly

def work(words):
    if words[0] == "heat":
        softless.heat(heating.bag_model(), words[1], features=words[2], out=words[3])
        return 0
    return main(words)

for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, int):
        print(os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]), flush=True)
        continue
    pid = os.fork()
    if not pid:
        os.dup2(2, 1)
        os._exit(work(asked))
    print(pid, flush=True)
"""


class Forking:
    """A process with everything imported that forks a child for each command."""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )

    def ask(self, what: object) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def forking() -> Iterator[Forking]:
    process = Forking()
    yield process
    process.end()


@pytest.fixture(scope="module")
def slides(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three slides, a damaged one among them, and an encoder."""
    root = tmp_path_factory.mktemp("slides")
    (root / "slides").mkdir()
    write(root / "slides" / "a.tif", pixels((300, 400)), mpp=0.25)
    spoil(write(root / "b.tif", pixels((256, 384))), [2]).rename(root / "slides" / "b.tif")
    write(root / "slides" / "c.tif", pixels((200, 300), seed=7))
    (root / "slides" / "d.svs").write_bytes(b"no slide")
    saved(root / "encoder")
    return root


def words(slides: Path, out: Path) -> list[str]:
    given = [str(slides / "slides"), "--encoder", str(slides / "encoder"), "--out", str(out)]
    return ["tiles", *given, "--tile", "32", "--batch-size", "8", "--device", "cpu", "--quiet"]


def tree(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent.name != "ranks"
    }


def killed(forking: Forking, command: list[str], out: Path, files: int, pause: float) -> bool:
    """Whether it was killed once it had written so many files, and had not ended before."""
    pid, end = forking.ask(command), time.monotonic() + 60
    while time.monotonic() < end:
        if sum(path.is_file() for path in out.rglob("*")) >= files:
            break
        time.sleep(0.0005)
    time.sleep(pause)
    os.kill(pid, signal.SIGKILL)
    return forking.ask(pid) == -signal.SIGKILL


def test_tiles_killed_at_any_instant_end_with_the_same_bits(
    forking: Forking, slides: Path, tmp_path: Path
) -> None:
    chance, whole, ours = random.Random(5), tmp_path / "whole", tmp_path / "ours"
    assert forking.ask(forking.ask(words(slides, whole))) == 4
    hits = [
        killed(forking, words(slides, ours), ours, files, chance.choice((0, 0.01, 0.03)))
        for files in (1, 2, 4, 5, 7, 9)  # of 13
    ]
    assert sum(hits) >= 2, "on a busy machine a child may end before the signal comes"
    assert forking.ask(forking.ask(words(slides, ours))) == 4
    found = tree(ours)
    assert found == tree(whole)
    assert {name.split("/")[0] for name in found} == {
        "features",
        "slides",
        "thumbnails",
        "tiles.csv",
        "tissue",
    }
    assert len(found) == 13
    assert not [name for name in found if name.endswith(".tmp")]


def test_heat_killed_at_any_instant_ends_with_the_same_bits(
    forking: Forking, tmp_path: Path
) -> None:
    slide = write(tmp_path / "slide.tif", pixels((2000, 3000)), mpp=0.25)
    bag = written(tmp_path / "slide.h5", places((2000, 3000)), (2000, 3000))
    command, ours = ["heat", str(slide), str(bag)], tmp_path / "ours"
    assert forking.ask(forking.ask([*command, str(tmp_path / "whole")])) == 0
    for files, pause in ((0, 0.1), (1, 0), (1, 0.05), (2, 0), (2, 0.05)):
        shutil.rmtree(ours, ignore_errors=True)
        assert killed(forking, [*command, str(ours)], ours, files, pause)
    assert forking.ask(forking.ask([*command, str(ours)])) == 0
    assert tree(ours) == tree(tmp_path / "whole")


def test_ranks_share_slides_and_write_what_one_process_does(slides: Path, tmp_path: Path) -> None:
    script = "import sys; from softless.cli.main import main; assert main(sys.argv[1:]) == 4"
    run_ranks("-c", script, *words(slides, tmp_path / "one"), ranks=1)
    told = run_ranks("-c", script, *words(slides, tmp_path / "two"), ranks=2)
    assert "failed: " in told[0]
    assert "failed: " not in told[1]
    assert tree(tmp_path / "two") == tree(tmp_path / "one")
