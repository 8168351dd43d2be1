"""Ranks that differ, and ranks that are ended: what each case does, and what was seen of it."""

import re
import signal
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from softless.experiment.groups import DataSpec
from tests.evaluation.runs import run_folder
from tests.processes import each_rank

SCRIPT = str(Path(__file__).with_name("working.py"))
CLASSES = ("dark", "light")
IMAGES = 40  # of each class in the part that the verbs other than training look at
SLOW = 90.0  # seconds in which two ranks come to work on a busy machine
VERBS = ("train", "eval", "predict", "explain", "slide")
# seconds that the other rank may go on
SIGNALS = {"SIGTERM": 30.0, "SIGINT": 30.0, "SIGKILL": 60.0}
DIFFERENCES = ("pixels", "count", "lr", "version", "threads")
MOST = 60.0  # seconds after which ranks that differ have ended


@dataclass(frozen=True)
class Seen:
    """What became of two ranks."""

    codes: tuple[int, int]
    seconds: float  # until the last one ended: since the signal, or since the start
    said: str  # by both
    sentence: str  # the last line of the rank that was not ended, or of the first


def images(folder: Path, parts: Mapping[str, int], low: int = 0) -> Path:
    """Dark and light noise in class folders."""
    random = np.random.default_rng(0)
    for part, count in parts.items():
        for label, level in zip(CLASSES, (low, low + 120), strict=True):
            (folder / part / label).mkdir(parents=True)
            for index in range(count):
                pixels = random.integers(level, level + 100, (20, 20, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / label / f"{index:02d}.png")
    return folder


def prepared(folder: Path) -> Path:
    """Data, and a run on them."""
    data = images(folder / "data", {"train": 8, "val": 4, "test": IMAGES})
    spec = DataSpec(source="folder", path=str(data), image_size=16, val_fraction=0.5)
    run_folder(folder / "run", CLASSES, spec)
    return folder


def training(folder: Path, data: Path, out: Path, *more: str) -> list[str]:
    fields = ["batch_size=4", "data.workers=0", "data.image_size=16", "amp=none", "ema_decay=none"]
    fields += ["ema_evaluate=false", "schedule.epochs=60", *more]
    return [
        SCRIPT,
        str(folder),
        "train",
        "--recipe",
        "folder",
        "--data",
        str(data),
        "--out",
        str(out),
        "--device",
        "cpu",
        "--set",
        *fields,
    ]


def words(verb: str, root: Path, folder: Path) -> list[str]:
    """The command of a verb; its results lie in `folder`."""
    run, test = str(root / "run"), root / "data" / "test"
    if verb == "train":
        return training(folder, root / "data", folder / "out")
    files = map(str, sorted(test.rglob("*.png")))
    given = {
        "eval": [run, "--batch-size", "1"],
        "predict": [run, str(test), str(folder / "out"), "--batch-size", "1"],
        "explain": [run, str(test), "--out", str(folder / "out")],
        "slide": [run, *files, "--out", str(folder / "out"), "--resize", "32", "--quiet"],
    }
    return [SCRIPT, str(folder), verb, *given[verb], "--device", "cpu"]


def ended(verb: str, name: str, root: Path, folder: Path) -> Seen:
    """Rank 1 of two gets a signal in the middle of its work; nobody else ends rank 0."""
    folder.mkdir()
    began = 0.0

    def meanwhile(processes: list[subprocess.Popen[str]]) -> None:
        nonlocal began
        deadline = time.monotonic() + SLOW
        while all(one.poll() is None for one in processes) and time.monotonic() < deadline:
            if (at := folder / "at1").exists() and int(at.read_text() or 0) >= 3:
                break
            time.sleep(0.02)
        began = time.monotonic()
        processes[1].send_signal(signal.Signals[name])
        for one in processes:
            one.wait(2 * SIGNALS[name])
        began = time.monotonic() - began

    (first, said), (second, other) = each_rank(
        [words(verb, root, folder)] * 2, meanwhile=meanwhile, seconds=5
    )
    return Seen((first, second), began, said + other, sentence(said) or sentence(other))


def differing(kind: str, root: Path, folder: Path) -> Seen:
    """Two ranks that are asked to train, of which the second differs."""
    folder.mkdir()
    data, out = root / "data", folder / "out"
    commands = [training(folder, data, out), training(folder, data, out)]
    other: dict[str, str] = {}
    if kind == "lr":
        commands[1].append("optim.lr=0.5")
    elif kind == "version":
        other["SOFTLESS_OTHER"] = "version"
    elif kind == "threads":
        commands = [[*one, "threads=none"] for one in commands]
        other["OMP_NUM_THREADS"] = "2"
    else:
        more = {"train": 12 if kind == "count" else 8, "val": 4, "test": IMAGES}
        other["SOFTLESS_OTHER"] = (
            f"data={images(folder / 'other', more, low=30 if kind == 'pixels' else 0)}"
        )
    began = time.monotonic()
    found = each_rank(commands, environments={1: other}, seconds=2 * MOST)
    seconds = time.monotonic() - began
    said = "".join(text for _, text in found)
    return Seen((found[0][0], found[1][0]), seconds, said, sentence(found[0][1]))


def sentence(said: str) -> str:
    """The last line that softless said, but for notes."""
    lines = [
        line for line in said.splitlines() if line.startswith("softless: ") and "note:" not in line
    ]
    return lines[-1].removeprefix("softless: ") if lines else ""


FIELD = {
    "pixels": "data: pixels of train",
    "count": "data: train = ",
    "lr": "optim.lr = 0.5",
    "version": "timm = '1.0.0'",
    "threads": "threads = 2",
}


def is_refused(kind: str, seen: Seen) -> bool:
    """Whether both ranks ended in time with one sentence that names the rank and the field."""
    named = "rank 1 of 2 has" in seen.sentence and FIELD[kind] in seen.sentence
    return seen.codes == (2, 2) and named and seen.seconds < MOST and "Traceback" not in seen.said


def is_ended_well(name: str, seen: Seen) -> bool:
    """Whether both ranks ended in time, neither as if all were well, with a sentence."""
    cause = "rank 1 of 2 is gone" if name == "SIGKILL" else f"{name}( at|:) |rank 1 of 2 is gone"
    ends = 0 not in seen.codes and seen.seconds < SIGNALS[name]
    return ends and re.match(cause, seen.sentence) is not None and "Traceback" not in seen.said
