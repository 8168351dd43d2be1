"""COCO files edited at random: the check of a recipe's data and its training refuse the same, and
neither ends in a traceback.
"""

import json
import random
from pathlib import Path

import pytest

from softless.data.findings import DataCheck
from softless.errors import SoftlessError
from softless.experiment.groups import DataSpec
from softless.tasks.check import Reading, check
from softless.tasks.detection.samples import open_boxes
from tests.data.test_exports import coco, pictures, write
from tests.edits import edit

VALUES = [
    None,
    True,
    -1,
    0,
    1,
    2.5,
    1e308,
    float("nan"),
    "",
    "0.png",
    "nine",
    [],
    {},
    [[1, 2]],
    [1, 2, 3, 4],
    {"counts": [1], "size": [1, 1]},
    2**70,
]


@pytest.mark.parametrize("masks", [True, False])
def test_check_and_training_refuse_the_same(tmp_path: Path, masks: bool):
    rng = random.Random(int(masks))
    files = pictures(tmp_path / "images/train", count=4)
    place = tmp_path / "annotations/instances_train.json"
    data = DataSpec("coco", str(tmp_path), mean=(0.5,) * 3, std=(0.2,) * 3, val_fraction=0.5)
    refused = 0
    for number in range(150):
        content = json.loads(json.dumps(coco(files)))
        for _ in range(rng.randint(1, 3)):
            edit(rng, content, VALUES)
        write(place, content)
        said: list[str | None] = []
        for read in (
            lambda: open_boxes(data, 0, masks=masks),
            lambda: check(tmp_path, reading=Reading("coco", masks=masks)),
        ):
            try:
                found = read()
                bad = isinstance(found, DataCheck) and found.bad
                said.append(str(found.bad[0]) if bad else None)  # type: ignore[union-attr]
            except SoftlessError as error:
                said.append(str(error))
        assert (said[0] is None) == (said[1] is None), (number, said, json.dumps(content)[:2000])
        refused += said[0] is not None
    assert 50 < refused < 150, "some edits do not matter, most do"
