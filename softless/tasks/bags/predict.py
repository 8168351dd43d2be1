"""Answers to slides whose labels nobody knows: a table."""

import csv
import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softless.bags.folder import BagSamples, gathered_bags
from softless.data.loader import shared_loader
from softless.data.progress import track
from softless.data.samples import Samples
from softless.errors import DataError, UsageError, located
from softless.evaluation.run import LoadedRun
from softless.models.durable import write_text
from softless.prediction.answers import Answers
from softless.prediction.results import Results
from softless.prediction.setting import Setting
from softless.ranks import gather, rank
from softless.tasks.bags.measure import CHANCE, answered
from softless.tasks.bags.settings import BagsSpec
from softless.tasks.bags.transforms import bag_pipeline
from softless.words import aligned, as_cell, counted


@dataclass(frozen=True, kw_only=True)
class BagAnswers(Answers):
    """Where the answers lie, and how often each class was given."""

    csv: Path
    counts: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {"csv": str(self.csv), **super().to_dict(), "counts": self.counts}

    def __str__(self) -> str:
        head = f"{counted(self.images, 'slide')}, computed in {self.precision}: {self.csv}"
        return "\n".join([head, *aligned(self.counts.items()), *self.foot()])


def opened(loaded: LoadedRun, source: Any) -> Samples:
    """The bags of a folder; those that cannot be read are left out and named.

    Raises:
        DataError: none can be read, or they are of another width than the run's.
    """
    if not isinstance(source, str | Path):
        raise UsageError(f"{loaded.path} is a run of bags, which answers one folder of them")
    spec = loaded.recipe.bags or BagsSpec()
    samples, faults, _ = gathered_bags(source, None, **spec.given)
    if samples is None:
        raise DataError(
            f"{located(source)} holds no bag that can be read"
            + (f": {faults[0]}" if faults else "")
        )
    width = int(loaded.best["model_args"]["in_dim"])
    if samples.width != width:
        raise DataError(
            f"{located(source)}: tiles have {samples.width} features, and the run {loaded.path} "
            f"learnt from {width}: give bags of its encoder"
        )
    samples.left_out = tuple(faults)
    return samples


@torch.no_grad()
def predict(
    loaded: LoadedRun, samples: BagSamples, out: Results, setting: Setting, *, overlays: bool
) -> BagAnswers:
    """Write `predictions.csv`: slide, class and probabilities, or the logarithm of the risk.

    Raises:
        UsageError: the model's output is not finite, or the folder cannot be written.
    """
    del overlays  # `softless heat` draws them
    kind = getattr(loaded.model, "kind", "class")
    positions = loaded.best["model_args"].get("position", "none") != "none"
    loader = shared_loader(
        samples, bag_pipeline(positions=positions), batch=1, workers=setting.workers
    )
    logits = [
        answered(loaded.model, bags, setting.device)[0].double().cpu().numpy()
        for bags, _ in track(loader, len(loader.positions), "answering")
    ]
    parts = gather(list(zip(np.asarray(loader.positions).tolist(), logits, strict=True)))
    rows = sorted((row for part in parts for row in part), key=lambda row: row[0])
    if not np.isfinite(np.stack([row[1] for row in rows])).all():
        raise UsageError(f"the output of {loaded.path} is not finite: its weights diverged")
    text, counts = _table(loaded, samples, rows, kind)
    table = out.file("predictions.csv")
    if rank() == 0:
        write_text(table, text)
    return BagAnswers(
        csv=table,
        counts=counts,
        overlays=None,
        images=len(rows),
        precision=setting.precision,
        unread=samples.left_out,
    )


def _table(
    loaded: LoadedRun, samples: BagSamples, rows: list[Any], kind: str
) -> tuple[str, dict[str, int]]:
    text, classes = io.StringIO(newline=""), loaded.classes
    writer = csv.writer(text, lineterminator="\n")
    head = ["risk"] if kind == "survival" else ["class", *(CHANCE + name for name in classes)]
    writer.writerow(["slide", *head])
    given: Counter[str] = Counter()
    for index, logits in rows:
        name = as_cell(samples.name(index))
        if kind == "survival":
            writer.writerow([name, repr(float(logits[0]))])
            continue
        chances, labels = _said(loaded, torch.from_numpy(logits), kind)
        given.update(labels)
        writer.writerow([name, as_cell("; ".join(labels)), *(repr(float(p)) for p in chances)])
    counts = {} if kind == "survival" else {name: given[name] for name in classes}
    return text.getvalue(), counts


def _said(loaded: LoadedRun, logits: torch.Tensor, kind: str) -> tuple[np.ndarray, list[str]]:
    """Probabilities (K,), and the classes that are said: of two the second from the threshold on
    that validation chose, labels each from its own.
    """
    chances: np.ndarray = (logits.sigmoid() if kind == "several" else logits.softmax(0)).numpy()
    thresholds = loaded.best.get("thresholds") or [None] * len(chances)
    if kind == "several":
        borders = [0.5 if border is None else border for border in thresholds]
        return chances, [
            name
            for name, chance, border in zip(loaded.classes, chances, borders, strict=True)
            if chance >= border
        ]
    two = len(chances) == 2 and thresholds[1] is not None
    return chances, [
        loaded.classes[int(chances[1] >= thresholds[1]) if two else int(chances.argmax())]
    ]
