"""Classes of images, and where the model looked: a table and saliency maps."""

import csv
import io
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from softless.data.samples import FileSamples
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


def predict(loaded: LoadedRun, samples: FileSamples, out: Results, setting: Setting, *, overlays: bool) -> Predictions:
    """Write `predictions.csv` (file, predicted class, probability of each class) and, with overlays, `saliency/NAME.png`."""
    table = out.file("predictions.csv")
    pictures = out.pictures(samples.files, "saliency") if overlays else []
    probabilities = _probabilities(loaded, samples, setting)
    _write_csv(table, samples.files, probabilities, loaded.classes)
    if overlays:
        _draw(loaded, samples, pictures, probabilities, min(setting.batch_size, 16))
    counts = Counter(loaded.classes[index] for index in probabilities.argmax(1))
    return Predictions(
        csv=table,
        overlays=out.folder / "saliency" if overlays else None,
        images=len(samples),
        counts={name: counts[name] for name in loaded.classes},
        precision=setting.precision,
        unread=samples.left_out,
    )


def _probabilities(loaded: LoadedRun, samples: FileSamples, setting: Setting) -> np.ndarray:
    """(n, K) float64."""
    from softless.data import eval_loader
    from softless.evaluation import forward_all

    loader = eval_loader(samples, loaded.transform, batch=setting.batch_size)
    logits, _ = forward_all(loaded.model, loader, len(samples), setting.device, setting.amp, label="predicting")
    bad = (~logits.isfinite()).any(1).nonzero().flatten().tolist()
    if bad:
        raise UsageError(
            f"the model's output is not finite for {len(bad)} of {len(samples)} images, first for "
            f"{samples.root / samples.files[bad[0]]}: the weights in {loaded.path} are of no use"
        )
    return logits.double().softmax(1).numpy()


def _write_csv(path: Path, files: Sequence[str], probabilities: np.ndarray, classes: Sequence[str]) -> None:
    # Names that are not UTF-8 are kept as escapes, and quoting keeps a name with a line break one record.
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(["file", "predicted", *map(as_cell, classes)])
    for name, row in zip(files, probabilities, strict=True):
        writer.writerow([as_cell(name), as_cell(classes[int(row.argmax())]), *(f"{p:.6f}" for p in row)])
    write_text(path, file.getvalue(), errors="backslashreplace")


def _draw(
    loaded: LoadedRun, samples: FileSamples, pictures: Sequence[Path], probabilities: np.ndarray, batch_size: int
) -> None:
    from softless.data.progress import track
    from softless.saliency import explain, figure, picture

    starts = range(0, len(samples), batch_size)
    for start in track(starts, len(starts), "drawing batches"):
        indices = range(start, min(start + batch_size, len(samples)))
        inputs = torch.stack([loaded.transform(samples.image(index)) for index in indices])
        maps = explain(loaded.model, inputs)
        for place, index in enumerate(indices):
            row = probabilities[index]
            title = f"{loaded.classes[int(row.argmax())]}, {row.max():.0%}: {samples.files[index]}"
            seen = picture(inputs[place], loaded.best["mean"], loaded.best["std"])
            write_picture(pictures[index], figure(seen, maps, place, title=title))
