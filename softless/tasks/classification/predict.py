"""Classes of images, and where the model looked: a table and saliency maps."""

import csv
import io
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from softless import ranks
from softless.data.loader import shared_loader
from softless.data.progress import track
from softless.data.samples import Samples
from softless.errors import UsageError
from softless.evaluation.evaluate import autocast
from softless.evaluation.run import LoadedRun
from softless.models.durable import write_picture, write_stream
from softless.modes import evaluating
from softless.prediction.answers import Answers
from softless.prediction.results import Results
from softless.prediction.setting import Setting
from softless.saliency.figure import figure
from softless.saliency.maps import explain
from softless.saliency.overlay import picture
from softless.words import aligned, as_cell

AT_ONCE = 16  # images whose maps are drawn together


@dataclass(frozen=True, kw_only=True)
class Predictions(Answers):
    """Where the answers lie, and how often each class was given."""

    csv: Path
    counts: dict[str, int]

    def to_dict(self) -> dict[str, Any]:
        """For JSON: paths as texts, and images of each class."""
        return {"csv": str(self.csv), **super().to_dict(), "counts": self.counts}

    def __str__(self) -> str:
        return "\n".join([
            *self.head(self.csv, "saliency maps"),
            *aligned(self.counts.items()),
            *self.foot(),
        ])


@dataclass(frozen=True)
class Words:
    """How logits become words."""

    probabilities: Callable[[Tensor], Tensor]  # (n, K) -> (n, K)
    # the probabilities of an image (K,) -> the classes that it is given
    labels: Callable[[np.ndarray], list[str]]
    title: Callable[[np.ndarray], str]


def predict(
    loaded: LoadedRun, samples: Samples, out: Results, setting: Setting, *, overlays: bool
) -> Predictions:
    """Write `predictions.csv` (file, predicted class, probability of each class) and, with
    overlays, `saliency/NAME.png`.

    Raises:
        UsageError: the model's output is not finite, or the folder cannot be written.
    """
    return answered(loaded, samples, out, setting, words_of(loaded), overlays=overlays)


def words_of(loaded: LoadedRun) -> Words:
    """One class an image, the likeliest."""
    classes = loaded.classes
    return Words(
        probabilities=lambda logits: logits.softmax(1),
        labels=lambda row: [classes[int(row.argmax())]],
        title=lambda row: f"{classes[int(row.argmax())]}, {row.max():.0%}",
    )


def answered(
    loaded: LoadedRun,
    samples: Samples,
    out: Results,
    setting: Setting,
    words: Words,
    *,
    overlays: bool,
) -> Predictions:
    """Answer all images: one line each, several classes of one image with `; ` between.

    Lines are written as answers come, and none is kept.

    Raises:
        UsageError: the model's output is not finite, or the folder cannot be written.
    """
    names = [samples.name(index) for index in range(len(samples))]
    table = out.file("predictions.csv")
    pictures = out.pictures(names, "saliency") if overlays else []
    step = setting.batch_size
    blocks = ranks.in_order(
        _blocks(loaded, samples, names, setting, words, pictures), total=-(-len(samples) // step)
    )
    counts: Counter[str] = Counter()

    def rows() -> Iterator[list[str]]:
        for number, block in enumerate(blocks):
            for name, row in zip(names[number * step :], block, strict=False):
                labels = words.labels(row)
                counts.update(labels)
                yield [as_cell(name), as_cell("; ".join(labels)), *(f"{p:.6f}" for p in row)]

    if ranks.rank() == 0:
        write_csv(table, ["file", "predicted", *map(as_cell, loaded.classes)], rows())
    else:
        list(blocks)
    totals = ranks.first(lambda: counts)
    return Predictions(
        csv=table,
        overlays=out.folder / "saliency" if overlays else None,
        images=len(samples),
        counts={name: totals[name] for name in loaded.classes},
        precision=setting.precision,
        unread=samples.left_out,
    )


@torch.no_grad()
def _blocks(
    loaded: LoadedRun,
    samples: Samples,
    names: Sequence[str],
    setting: Setting,
    words: Words,
    pictures: Sequence[Path],
) -> Iterator[np.ndarray]:
    """Probabilities (b, K) float64 of each batch of this rank, in order; its pictures are drawn
    then.
    """
    loader = shared_loader(
        samples, loaded.transform, batch=setting.batch_size, workers=setting.workers
    )
    loader.rounds = None  # who takes the answers keeps step
    starts = range(
        ranks.rank() * setting.batch_size, len(samples), ranks.size() * setting.batch_size
    )
    batches = track(loader, len(loader.positions), "predicting", size=lambda batch: len(batch[1]))
    for start, (images, _) in zip(starts, batches, strict=True):
        chances = chances_of(loaded, images, setting, words, names[start:])
        if pictures:
            _draw(loaded, images, chances, names[start:], pictures[start:], words)
        yield chances


@torch.no_grad()
def chances_of(
    loaded: LoadedRun, images: Tensor, setting: Setting, words: Words, names: Sequence[str]
) -> np.ndarray:
    """Probabilities (b, K) float64 of prepared images (b, C, H, W).

    Raises:
        UsageError: the model's output is not finite; the image is named.
    """
    with evaluating(loaded.model), autocast(setting.device, setting.amp):
        logits = loaded.model(images.to(setting.device, non_blocking=True)).float().cpu()
    bad = (~logits.isfinite()).any(1).nonzero().flatten().tolist()
    if bad:
        raise UsageError(
            f"the model's output is not finite for {names[bad[0]]}: the weights in "
            f"{loaded.path} are of no use"
        )
    chances: np.ndarray = words.probabilities(logits.double()).numpy()
    return chances


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """A table whole or not at all, each row written as it comes.

    Names that are not UTF-8 are kept as escapes, and quoting keeps a name with a line break one
    record.
    """

    def write(file: BinaryIO) -> None:
        text = io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace", newline="")
        writer = csv.writer(text)
        writer.writerow(head)
        writer.writerows(rows)
        text.detach()

    write_stream(path, write)


def _draw(
    loaded: LoadedRun,
    images: Tensor,
    chances: np.ndarray,
    names: Sequence[str],
    pictures: Sequence[Path],
    words: Words,
) -> None:
    """Pictures of a batch, AT_ONCE images at once."""
    for start in range(0, len(images), AT_ONCE):
        part = images[start : start + AT_ONCE]
        maps = explain(loaded.model, part)
        for offset, image in enumerate(part):
            index = start + offset
            view = picture(image, loaded.best["mean"], loaded.best["std"])
            title = f"{words.title(chances[index])}: {names[index]}"
            write_picture(pictures[index], figure(view, maps, offset, title=title))
