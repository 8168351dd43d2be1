"""Classes of images, and where the model looked: a table and saliency maps."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softless.data.samples import Samples
from softless.errors import UsageError
from softless.evaluation import LoadedRun
from softless.models.durable import write_picture, write_text
from softless.prediction.answers import Answers
from softless.prediction.results import Results
from softless.prediction.setting import Setting
from softless.words import aligned, as_cell


@dataclass(frozen=True, kw_only=True)
class Predictions(Answers):
    """Where the answers lie, and how often each class was given."""

    csv: Path
    counts: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        return {"csv": str(self.csv), **super().to_dict(), "counts": self.counts}

    def __str__(self) -> str:
        return "\n".join([*self.head(self.csv, "saliency maps"), *aligned(self.counts.items()), *self.foot()])


@dataclass(frozen=True)
class Words:
    """How logits become words."""

    probabilities: Callable[[Tensor], Tensor]  # (n, K) -> (n, K)
    said: Callable[[np.ndarray], list[str]]  # the probabilities of an image (K,) -> the classes that it is given
    title: Callable[[np.ndarray], str]


def predict(loaded: LoadedRun, samples: Samples, out: Results, setting: Setting, *, overlays: bool) -> Predictions:
    """Write `predictions.csv` (file, predicted class, probability of each class) and, with overlays, `saliency/NAME.png`."""
    classes = loaded.classes
    words = Words(
        probabilities=lambda logits: logits.softmax(1),
        said=lambda row: [classes[int(row.argmax())]],
        title=lambda row: f"{classes[int(row.argmax())]}, {row.max():.0%}",
    )
    return answered(loaded, samples, out, setting, words, overlays=overlays)


def answered(
    loaded: LoadedRun, samples: Samples, out: Results, setting: Setting, words: Words, *, overlays: bool
) -> Predictions:
    """Answer all images: one line each, several classes of one image with `; ` between."""
    names = [samples.name(index) for index in range(len(samples))]
    table = out.file("predictions.csv")
    pictures = out.pictures(names, "saliency") if overlays else []
    probabilities = _probabilities(loaded, samples, names, setting, words)
    said = [words.said(row) for row in probabilities]
    _write_csv(table, names, said, probabilities, loaded.classes)
    if overlays:
        titles = [f"{words.title(row)}: {name}" for row, name in zip(probabilities, names, strict=True)]
        _draw(loaded, samples, pictures, titles, min(setting.batch_size, 16))
    counts = Counter(name for row in said for name in row)
    return Predictions(
        csv=table,
        overlays=out.folder / "saliency" if overlays else None,
        images=len(samples),
        counts={name: counts[name] for name in loaded.classes},
        precision=setting.precision,
        unread=samples.left_out,
    )


def _probabilities(
    loaded: LoadedRun, samples: Samples, names: Sequence[str], setting: Setting, words: Words
) -> np.ndarray:
    """(n, K) float64."""
    from softless.data import eval_loader
    from softless.evaluation import forward_all

    loader = eval_loader(samples, loaded.transform, batch=setting.batch_size)
    logits, _ = forward_all(loaded.model, loader, len(samples), setting.device, setting.amp, label="predicting")
    bad = (~logits.isfinite()).any(1).nonzero().flatten().tolist()
    if bad:
        raise UsageError(
            f"the model's output is not finite for {len(bad)} of {len(samples)} images, first "
            f"for {names[bad[0]]}: the weights in "
            f"{loaded.path} are of no use"
        )
    return words.probabilities(logits.double()).numpy()


def _write_csv(
    path: Path, names: Sequence[str], said: Sequence[Sequence[str]], probabilities: np.ndarray, classes: Sequence[str]
) -> None:
    # Names that are not UTF-8 are kept as escapes, and quoting keeps a name with a line break one record.
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["file", "predicted", *map(as_cell, classes)])
    for name, given, row in zip(names, said, probabilities, strict=True):
        writer.writerow([as_cell(name), as_cell("; ".join(given)), *(f"{p:.6f}" for p in row)])
    write_text(path, file.getvalue(), errors="backslashreplace")


def _draw(
    loaded: LoadedRun, samples: Samples, pictures: Sequence[Path], titles: Sequence[str], batch_size: int
) -> None:
    from softless.data.progress import track
    from softless.saliency import explain, figure, picture

    starts = range(0, len(samples), batch_size)
    for start in track(starts, len(starts), "drawing batches"):
        indices = range(start, min(start + batch_size, len(samples)))
        inputs = torch.stack([loaded.transform(samples.image(index)) for index in indices])
        maps = explain(loaded.model, inputs)
        for place, index in enumerate(indices):
            seen = picture(inputs[place], loaded.best["mean"], loaded.best["std"])
            write_picture(pictures[index], figure(seen, maps, place, title=titles[index]))
