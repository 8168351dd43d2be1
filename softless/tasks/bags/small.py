"""Generated bags: files of features and their table, a feature of which says the class."""

import csv
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from softless.experiment.bag_table import BagTableSpec
from softless.models.durable import make_folder, write_stream, write_text
from softless.tasks.small import CLASSES, COUNTS, shortened

WIDTH = 6  # features of a tile
SMALL = {"width": 16}
PIXELS = 32  # which no bag has


def shrunk(recipe: Any, folder: Path) -> Any:
    """The recipe on generated bags, one class a slide, with a small model."""
    table = written(folder)
    args = {**recipe.model.args, **SMALL}
    short = shortened(recipe, args, folder / "features", PIXELS, source="folder")
    return replace(short, table=BagTableSpec(path=str(table)))


def written(folder: Path, seed: int = 0) -> Path:
    """Bags of 2 to 9 tiles below `folder/features`, and the table that lists them."""
    rng = np.random.default_rng(seed)
    make_folder(folder / "features")
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["slide", "patient", "label", "split"])
    for part, count in COUNTS.items():
        for index in range(count):
            label, name = index % CLASSES, f"{part}_{index:02}"
            features = rng.normal(size=(int(rng.integers(2, 10)), WIDTH)).astype(np.float32)
            features[0, 0] += 4 * label
            write_stream(
                folder / "features" / f"{name}.npz",
                lambda file, rows=features: np.savez(file, features=rows),  # type: ignore[misc]
            )
            writer.writerow([name, f"p_{name}", f"class_{label}", part])
    table = folder / "slides.csv"
    write_text(table, text.getvalue())
    return table
