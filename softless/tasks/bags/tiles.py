"""The tiles that weigh most and least in some slides, noted when a run is tested: `tiles.csv`.

A row is a tile: slide, patient, what is true and what is answered, and the tile's number. `end` says
whether it is among the highest or the lowest. `weight` is times the number of tiles: 1 is the even
share. Its corner is in micrometres and in pixels of level 0, where these are known.
"""

import csv
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from softless.data.samples import Samples
from softless.errors import CoordinateError, DataError, UsageError
from softless.models.durable import write_text
from softless.modes import evaluating
from softless.tasks.bags.transforms import Tiles, padded
from softless.words import as_cell

TILES = "tiles.csv"
SLIDES, EACH = 8, 4  # that are noted, and tiles at either end
COLUMNS = (
    "slide",
    "patient",
    "label",
    "class",
    "end",
    "tile",
    "weight",
    "x_um",
    "y_um",
    "x_px0",
    "y_px0",
)


@dataclass(frozen=True)
class TileNotes:
    """What tiles weigh in a model, of bags that are read again."""

    model: nn.Module
    dataset: Any  # `TransformedSamples` of bags

    @torch.no_grad()
    def weights(self, index: int) -> np.ndarray | None:
        """(N,) of a bag, times N; None of a model that weighs no tiles."""
        tiles: Tiles = self.dataset[index][0]
        features, coords, _ = padded([tiles])
        device = next(self.model.parameters()).device
        model: Any = self.model
        try:
            with evaluating(self.model):
                scores = model.tile_scores(
                    features.to(device), coords.to(device) if coords.shape[2] else None
                )
        except UsageError:  # no gated pool
            return None
        weighed: np.ndarray = len(tiles.features) * scores[0].double().cpu().numpy()
        return weighed


def write_tiles(
    folder: Path,
    notes: TileNotes,
    rows: list[tuple[int, str, str]],
    patients: list[str],
) -> None:
    """Write tiles.csv; nothing of a model that weighs no tiles.

    Args:
        folder: of the run.
        notes: the model and the bags.
        rows: place among the bags, what is true and what is answered, of the slides to be noted.
        patients: whose each of them is.
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    samples: Samples = notes.dataset.samples
    for (index, label, answer), patient in zip(rows, patients, strict=True):
        weights = notes.weights(index)
        if weights is None:
            return
        order = np.argsort(-weights, kind="stable")
        each = min(EACH, len(order) // 2 or 1)
        um, px0 = _corners(samples.image(index))
        for end, places in (("highest", order[:each]), ("lowest", order[::-1][:each])):
            for tile in places.tolist():
                writer.writerow([
                    as_cell(samples.name(index)),
                    as_cell(patient),
                    as_cell(label),
                    as_cell(answer),
                    end,
                    tile,
                    f"{weights[tile]:.6g}",
                    *_pair(um, tile),
                    *_pair(px0, tile),
                ])
    write_text(folder / TILES, text.getvalue())


def _corners(bag: Any) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Corners of tiles (N, 2) in micrometres and in pixels of level 0, where they are known."""
    try:
        um = bag.coords_um
    except CoordinateError:
        um = None
    return um, bag.coords_px0


def _pair(corners: np.ndarray | None, tile: int) -> list[str]:
    return ["", ""] if corners is None else [f"{value:.3f}" for value in corners[tile]]


def read_tiles(path: Path) -> list[dict[str, str]]:
    """The rows of tiles.csv; none where there is no file.

    Raises:
        DataError: it is damaged.
    """
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        reader = csv.DictReader(file)
        rows = list(reader)
    if tuple(reader.fieldnames or ()) != COLUMNS or any(None in row.values() for row in rows):
        raise DataError(f"{path} is damaged: delete it, or train the run again")
    return rows
