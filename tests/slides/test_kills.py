"""A slide whose process is killed three times ends with the same bits, and its memory does not grow
with the slide.

A slide of 2,048 pixels a side in `make test`; one of 32,768, 4.2 million tokens, in `make soak`
(some twenty minutes and 6 GB of disk).
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from softless.slides import store

pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")
TILE = 512
ROOT = Path(__file__).parents[2]
SCRIPT = """
import json, os, sys, torch
from pathlib import Path
import softless
from softless.slides import stream

def work(slide, folder, out, depth, mpp):
    torch.manual_seed(0)
    model = softless.create_model("deit_tiny_patch16_224", op="sima", num_classes=10, depth=depth).bfloat16()
    with torch.no_grad():
        for block in model.blocks:
            block.attn.proj.weight *= 3000  # the attention of many tokens is small at the start: here it counts
    found = stream(model, slide, store=folder, saliency=False, quiet=True, mpp=mpp)
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    torch.save([found.logits, found.features, int(peak.split()[1])], out)

for line in sys.stdin:
    asked = json.loads(line)
    if isinstance(asked, int):
        print(os.waitstatus_to_exitcode(os.waitpid(asked, 0)[1]), flush=True)
        continue
    pid = os.fork()
    if not pid:
        work(*asked)
        os._exit(0)
    print(pid, flush=True)
"""


class Forking:
    """A process with everything imported that forks one child per run: a real process to kill,
    without its seconds of imports.
    """

    def __init__(self, depth: int, mpp: float | None = None) -> None:
        self.depth, self.mpp = depth, mpp
        self.process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            text=True,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def ask(self, what: object) -> int:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(what) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def start(self, *words: Path) -> int:
        return self.ask([*map(str, words), self.depth, self.mpp])

    def end(self) -> None:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.close()
        self.process.wait(120)
        self.process.stdout.close()


def tiles(side: int) -> Iterator[np.ndarray]:
    """Tiles of smooth colours with some noise, made one by one."""
    noise = np.random.default_rng(1).integers(0, 24, (TILE, TILE, 3), dtype=np.uint8)
    for number in range((side // TILE) ** 2):
        colour = np.random.default_rng(number).integers(60, 230, 3, dtype=np.uint8)
        yield colour + noise


def generated(path: Path, side: int) -> Path:
    tifffile.imwrite(
        path,
        tiles(side),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        photometric="rgb",
        compression="deflate",
        bigtiff=True,
    )
    return path


def killed(forking: Forking, pid: int, journal: Path, steps: int, pause: float = 0) -> None:
    """End a process once it has been seen to do so many steps, and so many seconds more."""
    before, end = _when(journal), time.monotonic() + 120
    while steps and time.monotonic() < end:
        time.sleep(0.0005)
        now = _when(journal)
        before, steps = now, steps - (now != before)
    time.sleep(pause)
    os.kill(pid, signal.SIGKILL)
    assert forking.ask(pid) == -signal.SIGKILL, "it ended before it could be killed"


def _when(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.parametrize(
    ("side", "depth", "pause"), [(2048, 3, 0), pytest.param(32768, 12, 90, marks=pytest.mark.soak)]
)
def test_killed_three_times_a_slide_ends_with_the_same_bits(
    side: int, depth: int, pause: float, tmp_path: Path
) -> None:
    slide, small = generated(tmp_path / "slide.tif", side), generated(tmp_path / "small.tif", 1024)
    chance, forking = random.Random(2), Forking(depth)
    ours, whole, little = (
        [tmp_path / name, tmp_path / f"{name}.pt"] for name in ("killed", "whole", "little")
    )
    try:
        for _ in range(3):
            # of 55, of which some may go unseen
            pid, steps = forking.start(slide, *ours), chance.randint(1, 8)
            killed(forking, pid, ours[0] / store.JOURNAL, steps, pause * chance.uniform(0.3, 1))
        assert not ours[1].exists()
        for pair, image in ((ours, slide), (whole, slide), (little, small)):
            assert forking.ask(forking.start(image, *pair)) == 0
    finally:
        forking.end()
    (*found, _), (*wanted, peak), (*_, least) = (
        torch.load(pair[1]) for pair in (ours, whole, little)
    )
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    assert peak - least < 64_000  # kB


READERS: dict[
    str, tuple[dict[str, Any], float | None]
] = {  # how a slide is written, and the resolution it is looked at with
    "tifffile": ({"compression": "deflate"}, None),
    "tifffile, scaled": ({"compression": "deflate"}, 1.3),
    "tifffile, JPEG": (
        {
            "compression": "jpeg",
            "compressionargs": {"outcolorspace": "rgb"},
            "description": "Aperio Image Library v1 |MPP = 1.0",
        },
        None,
    ),
    "openslide": (
        {
            "compression": "jpeg",
            "software": "MedScan 1",
            "description": "Background Color=FFFFFF;OverlapsXY=0 0",
        },
        None,
    ),
}


@pytest.mark.soak
@pytest.mark.parametrize("reader", READERS)
def test_killed_twenty_times_each_reader_ends_with_the_same_bits(
    reader: str, tmp_path: Path
) -> None:
    options, mpp = READERS[reader]
    side, slide = 4096, tmp_path / "slide.tif"
    told: dict[str, Any] = {
        "photometric": "rgb",
        "metadata": None,
        "resolution": (1e4, 1e4),
        "resolutionunit": "CENTIMETER",
    }
    tifffile.imwrite(
        slide,
        tiles(side),
        shape=(side, side, 3),
        dtype=np.uint8,
        tile=(TILE, TILE),
        **told,
        **options,
    )
    chance, forking = random.Random(3), Forking(3, mpp)
    ours, whole = ([tmp_path / name, tmp_path / f"{name}.pt"] for name in ("killed", "whole"))
    try:
        for _ in range(20):
            # of 220
            killed(
                forking, forking.start(slide, *ours), ours[0] / store.JOURNAL, chance.randint(1, 5)
            )
        assert not ours[1].exists()
        for pair in (ours, whole):
            assert forking.ask(forking.start(slide, *pair)) == 0
    finally:
        forking.end()
    (*found, _), (*wanted, _) = (torch.load(pair[1]) for pair in (ours, whole))
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
