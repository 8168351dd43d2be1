"""What bags of tiles cost a model: inference over a store of features, and a step of training.

Each peak is that of a process of its own; times are processor time of one thread, in turns where
they are compared.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from softless.bags.bag import Bag
from softless.compare.record import processor, record_path, write_csv
from softless.compare.resident import forget, in_own_process, peak
from softless.data.progress import track
from softless.errors import UsageError
from softless.models.bag import create_bag_model, is_bag_name, operator_of
from softless.slides.bags import stream_bag
from softless.words import table

WRITTEN = 20_000  # tiles of the store that are drawn at once
SHARE = 10  # a tenth of the tiles goes through the bare linear layers, before and after
CHUNK = 2048
INFERENCE, STEP = "inference", "training step"


@dataclass(frozen=True)
class BagCost:
    """One kind of work of one model."""

    work: str  # inference, or a training step
    model: str
    way: str  # store, chunks, or whole
    tiles: int
    features: int
    cpu_s: float  # processor time of one thread
    peak_mib: float  # of the process, beyond what it held with the features
    ratio: float | None = None  # of the time, to `against`
    against: str = ""


@dataclass(frozen=True)
class BagCosts:
    """All of them; prints as a table."""

    rows: tuple[BagCost, ...]
    machine: str
    recorded: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """For machines."""
        return {"rows": [asdict(row) for row in self.rows], "machine": self.machine}

    def __str__(self) -> str:
        head = ["work", "model", "way", "tiles", "features", "CPU s", "MiB", "time", "against"]
        cells = [
            [
                row.work,
                row.model,
                row.way,
                f"{row.tiles:,}",
                str(row.features),
                f"{row.cpu_s:.2f}",
                f"{row.peak_mib:.0f}",
                "" if row.ratio is None else f"x {row.ratio:.2f}",
                row.against,
            ]
            for row in self.rows
        ]
        return "\n".join([
            table(head, cells),
            "",
            f"peaks beyond the features, {self.machine}, one thread",
            *([f"recorded: {self.recorded}"] if self.recorded else []),
        ])


def bags(
    *,
    models: Sequence[str] = ("sima_bag_small", "seqnorm_bag_small", "abmil_bag"),
    inference: int = 1_000_000,
    training: int = 50_000,
    softmax: int = 10_000,
    features: int = 1024,
    rounds: int = 3,
    record: bool = False,
) -> BagCosts:
    """Time and memory of models of bags: inference over a store, and a training step in chunks,
    whole, and beside softmax.

    Inference reads float16 features from a file chunk by chunk, and is compared with the model's
    bare linear layers. A training step has half as many features a tile, and is a pass, its
    gradients and AdamW.

    Args:
        models: by their names.
        inference: tiles of the store; 0 leaves it out.
        training: tiles of the step that is compared with that of the model whole; 0 leaves it out.
        softmax: tiles of the step that is compared with softmax attention; 0 leaves it out.
        features: of a tile of the store.
        rounds: how often a step is timed; the fastest counts.
        record: write benchmarks/bags.csv of the repository.

    Raises:
        UsageError: a model that is none of bags, or numbers that are none.
    """
    for name in models:
        if not is_bag_name(name):
            raise UsageError(f"'{name}' is no model of bags: name one as seqnorm_bag_small")
        create_bag_model(name, in_dim=1)
    if min(inference, training, softmax) < 0 or features < 2 or rounds < 1:
        raise UsageError("give numbers of tiles from 0, features from 2 and rounds from 1")
    path = record_path("bags") if record else None
    jobs = [
        {"work": INFERENCE, "models": [name], "tiles": inference, "features": features}
        for name in models
        if operator_of(name) != "softmax"
    ] * bool(inference)
    for tiles, beside in ((training, []), (softmax, ["softmax_bag_small"])):
        jobs += [
            {
                "work": STEP,
                "models": [name, *beside],
                "tiles": tiles,
                "features": features // 2,
                "rounds": rounds,
            }
            for name in models
        ] * bool(tiles)
    rows = [
        BagCost(**row)
        for job in track(jobs, len(jobs), "measuring")
        for row in _step_rows(job) + _inference_rows(job)
    ]
    written = None if path is None else write_csv(path, [asdict(row) for row in rows])
    return BagCosts(tuple(rows), processor(), written)


def _inference_rows(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    if job["work"] != INFERENCE:
        return []
    name, tiles, features = job["models"][0], job["tiles"], job["features"]
    with tempfile.TemporaryDirectory(prefix="softless-bags-") as folder:
        store = Path(folder) / "features.npy"
        _write_store(store, tiles, features)
        seen = _alone({"run": "store", "model": name, "store": str(store)})
    return [
        {
            "work": INFERENCE,
            "model": name,
            "way": "store",
            "tiles": tiles,
            "features": features,
            "cpu_s": seen["cpu_s"],
            "peak_mib": seen["peak_mib"],
            "ratio": seen["cpu_s"] / seen["linear_s"],
            "against": "bare linear layers",
        }
    ]


def _step_rows(job: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A step in chunks and whole, or of several models, timed in turns; peaks each by itself."""
    if job["work"] != STEP:
        return []
    first, *beside = job["models"]
    ways = [(first, "chunks"), (first, "whole"), *((name, "whole") for name in beside)]
    given = {"tiles": job["tiles"], "features": job["features"]}
    seconds = _alone({"run": "times", "ways": ways, "rounds": job["rounds"], **given})["cpu_s"]
    rows = []
    for (name, way), taken in zip(ways, seconds, strict=True):
        peak = _alone({"run": "peak", "model": name, "way": way, **given})["peak_mib"]
        row = {"work": STEP, "model": name, "way": way, **given, "cpu_s": taken, "peak_mib": peak}
        if (name, way) == ways[0]:
            other = "softmax" if beside else "whole"
            row |= {"ratio": taken / seconds[-1], "against": other}
        rows.append(row)
    return rows


def _write_store(path: Path, tiles: int, features: int) -> None:
    """Normal numbers in float16 (N,D)."""
    generator = np.random.default_rng(0)
    header = np.lib.format.header_data_from_array_1_0(np.empty((0, features), np.float16))
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {**header, "shape": (tiles, features)})
        for start in range(0, tiles, WRITTEN):
            shape = (min(WRITTEN, tiles - start), features)
            file.write(generator.standard_normal(shape, np.float32).astype(np.float16).tobytes())


# In a process of its own


def _alone(request: Mapping[str, Any]) -> dict[str, Any]:
    """What a process answers that does nothing else."""
    return in_own_process("softless.compare.bags", request, f"bags, {request['run']}")


def measured(request: Mapping[str, Any]) -> dict[str, Any]:
    """One request of `bags`, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    if request["run"] == "store":
        return _over_a_store(request["model"], Path(request["store"]))
    tiles, features = request["tiles"], request["features"]
    if request["run"] == "peak":
        call = _step(request["model"], request["way"], tiles, features)
        call(min(tiles, 300))
        before = forget()
        call(tiles)
        return {"peak_mib": (peak() - before) / 2**20}
    calls = [_step(name, way, tiles, features) for name, way in request["ways"]]
    times = [[_seconds(partial(call, tiles)) for call in calls] for _ in range(request["rounds"])]
    return {"cpu_s": [min(column) for column in zip(*times, strict=True)]}


def _step(name: str, way: str, tiles: int, features: int) -> Callable[[int], None]:
    """A step of training on the first so many tiles of a bag."""
    chunk = CHUNK if way == "chunks" else 0
    model = create_bag_model(name, in_dim=features, chunk=chunk).train()
    mover = torch.optim.AdamW(model.parameters())
    bag, label = torch.randn(1, tiles, features), torch.tensor([1])

    def step(some: int) -> None:
        mover.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(model(bag[:, :some]), label).backward()
        mover.step()

    return step


def _over_a_store(name: str, store: Path) -> dict[str, Any]:
    bag = Bag.open(store)
    tiles, features = bag.features.shape
    model = create_bag_model(name, in_dim=features).eval()
    # what is made once is made
    stream_bag(model, Bag.of(torch.zeros(CHUNK + 1, features).half()), quiet=True)
    linear = [m for m in model.modules() if isinstance(m, nn.Linear) and m is not model.head]
    inputs = {m.in_features: torch.randn(CHUNK, m.in_features) for m in linear}
    chunks = max(tiles // CHUNK // SHARE, 1)

    @torch.no_grad()
    def bare() -> None:
        for _ in range(chunks):
            for layer in linear:
                layer(inputs[layer.in_features])

    before = forget()
    first = _seconds(bare)
    taken = _seconds(lambda: stream_bag(model, bag, quiet=True))
    most = peak() - before
    linear_s = (first + _seconds(bare)) / 2 * tiles / (chunks * CHUNK)
    return {"cpu_s": taken, "linear_s": linear_s, "peak_mib": most / 2**20}


def _seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


if __name__ == "__main__":
    print(json.dumps(measured(json.loads(sys.argv[1]))))
