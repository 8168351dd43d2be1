"""A run of two classes with its images, for the tests of what surrounds an export."""

from pathlib import Path

import pytest

from softless.experiment.groups import DataSpec
from tests.data.making import split_folders
from tests.evaluation.runs import run_folder

CLASSES = ("cat", "dog")


@pytest.fixture(scope="session")
def trained(tmp_path_factory) -> Path:
    """A folder with `run` and `data`: 20 training and 6 test images of each class."""
    folder = tmp_path_factory.mktemp("trained")
    split_folders(
        folder / "data", {p: {"cat": n, "dog": n} for p, n in (("train", 20), ("test", 6))}
    )
    data = DataSpec(source="folder", path=str(folder / "data"), image_size=16, val_fraction=0.5)
    run_folder(folder / "run", CLASSES, data)
    return folder
