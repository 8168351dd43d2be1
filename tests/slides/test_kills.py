"""A slide whose process is killed three times ends with the same bits, and its memory does not grow with the slide.

A slide of 2,048 pixels a side in `make test`; one of 32,768, 4.2 million tokens, in `make soak` (some twenty minutes and 6 GB of disk).
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from softless.slides import store

pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")
TILE = 512
ROOT = Path(__file__).parents[2]
SCRIPT = """
import sys, torch
import softless
from pathlib import Path
torch.manual_seed(0)
model = softless.create_model("deit_tiny_patch16_224", op="sima", num_classes=10).bfloat16()
with torch.no_grad():
    for block in model.blocks:
        block.attn.proj.weight *= 3000  # the attention of many tokens is small at the start: here it counts
found = softless.stream(model, sys.argv[1], store=sys.argv[2], saliency=False, quiet=True)
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
torch.save([found.logits, found.features, int(peak.split()[1])], sys.argv[3])
"""


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


def started(*words: Path) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, *map(str, words)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


def killed(process: "subprocess.Popen[bytes]", journal: Path, steps: float, limit: float) -> None:
    """End a process once it has gone so many seconds beyond its first step."""
    before, end = _when(journal), time.monotonic() + limit
    while _when(journal) == before and process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)
    time.sleep(steps)
    assert process.poll() is None, "it ended before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait(30)


def _when(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


@pytest.mark.slow
@pytest.mark.parametrize(("side", "pause"), [(2048, 0.3), pytest.param(32768, 90, marks=pytest.mark.soak)])
def test_killed_three_times_a_slide_ends_with_the_same_bits(side: int, pause: float, tmp_path: Path) -> None:
    slide = generated(tmp_path / "slide.tif", side)
    chance = random.Random(2)
    for _ in range(3):
        killed(
            started(slide, tmp_path / "killed", tmp_path / "killed.pt"),
            tmp_path / "killed" / store.JOURNAL,
            pause * chance.uniform(0.3, 1),
            120,
        )
    assert not (tmp_path / "killed.pt").exists()
    assert started(slide, tmp_path / "killed", tmp_path / "killed.pt").wait() == 0
    assert started(slide, tmp_path / "whole", tmp_path / "whole.pt").wait() == 0
    (*ours, _), (*wanted, peak) = (torch.load(tmp_path / name) for name in ("killed.pt", "whole.pt"))
    assert all(torch.equal(a, b) for a, b in zip(ours, wanted, strict=True))
    small = generated(tmp_path / "small.tif", 1024)
    assert started(small, tmp_path / "little", tmp_path / "little.pt").wait() == 0
    assert peak - torch.load(tmp_path / "little.pt")[2] < 64_000  # kB
