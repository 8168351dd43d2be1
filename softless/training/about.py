"""about.json: what a person who is shown a run asks first. The command, when and from which commit,
and what the data hold.

Written once, when the run begins; a run that is continued keeps it. No number of the run depends on
it.
"""

from datetime import datetime, timezone
from typing import Any

import numpy as np

from softless import origin
from softless.data.given import name_of
from softless.data.pictures import size_of
from softless.data.samples import Samples
from softless.experiment.about import ABOUT
from softless.training.run import Run

LOOKED_AT = 40  # training images whose size is read


def write_about(run: Run) -> None:
    """Write the file, unless the run has one."""
    if run.folder.has(ABOUT):
        return
    run.folder.write_json(
        ABOUT,
        {
            "command": origin.command(),
            "date": datetime.now(timezone.utc).isoformat(timespec="minutes"),
            "commit": origin.commit(origin.repository()),
            "data": about_data(run),
        },
    )


def about_data(run: Run) -> dict[str, Any]:
    """The data's name, images of each part, what the task counts in each class, and the sizes of
    some training images as they are stored.
    """
    splits, path = run.splits, run.recipe.data.path
    parts = {"train": splits.train, "val": splits.val, "test": splits.test}
    present = {part: samples for part, samples in parts.items() if samples is not None}
    return {
        "name": name_of(path, run.recipe.data.source),
        "images": {part: len(samples) for part, samples in present.items()},
        "counted": run.task.counted,
        "classes": {part: run.task.composition(samples) for part, samples in present.items()},
        "unit": run.recipe.unit,
        **(
            {"extent": extent}
            if (extent := run.task.extent(splits.train))
            else {"sizes": sizes(splits.train), "seen": list(run.task.trained_pixels())}
        ),
    }


def sizes(samples: Samples) -> dict[str, Any]:
    """Height and width of the smallest, the middle and the largest of some images, by their
    pixels.
    """
    places = np.unique(
        np.linspace(0, len(samples) - 1, min(LOOKED_AT, len(samples))).round().astype(int)
    )
    by_area = sorted(
        (size_of(samples.image(int(index)))[::-1] for index in places),
        key=lambda size: size[0] * size[1],
    )
    chosen = {"smallest": by_area[0], "middle": by_area[len(by_area) // 2], "largest": by_area[-1]}
    return {**{name: list(size) for name, size in chosen.items()}, "of": len(by_area)}
