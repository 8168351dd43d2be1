"""`splits.csv`: which part each image of a run was in, and its group where it has one."""

import csv
import io
from pathlib import Path

from softless.data.datasets import Splits
from softless.words import as_cell


def written(splits: Splits) -> str:
    """The table as text: file, part (train, val, test) and group, in the order of the samples."""
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["file", "part", "group"])
    for part, samples in (("train", splits.train), ("val", splits.val), ("test", splits.test)):
        if samples is None:
            continue
        groups = [""] * len(samples) if samples.groups is None else samples.groups.tolist()
        writer.writerows(
            [as_cell(samples.name(index)), part, as_cell(group)]
            for index, group in enumerate(groups)
        )
    return text.getvalue()


def learnt_from(path: Path) -> frozenset[str]:
    """The names, as cells, that stand in the training or validation part; none without a file."""
    if not path.is_file():
        return frozenset()
    with path.open(newline="", encoding="utf-8", errors="surrogateescape") as file:
        return frozenset(
            row["file"] for row in csv.DictReader(file) if row.get("part") in {"train", "val"}
        )
