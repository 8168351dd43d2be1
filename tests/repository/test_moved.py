"""What was imported from further inside is found where it stands now."""

import importlib
from importlib.machinery import PathFinder

import pytest

import softless
from softless.moved import MOVED
from softless.tasks.detection import samples


@pytest.mark.parametrize("before", MOVED)
def test_a_moved_module_is_one_module(before: str):
    now = importlib.import_module(MOVED[before])
    assert importlib.import_module(before) is now
    assert now.__spec__ is not None
    assert now.__spec__.name == now.__name__ == MOVED[before]


def test_the_names_inside_are_found():
    from softless.data.boxes import open_boxes  # type: ignore[import-not-found, unused-ignore]
    from softless.training.recipe import (  # type: ignore[import-not-found, unused-ignore]
        DataSpec,
        DetectionSpec,
    )

    assert open_boxes is samples.open_boxes
    assert DataSpec().source == "folder"
    assert DetectionSpec().head == "maskrcnn"


@pytest.mark.parametrize("before", MOVED)
def test_no_file_stands_under_the_old_name(before: str):
    package, _, name = before.rpartition(".")
    paths = importlib.import_module(package).__path__
    assert PathFinder.find_spec(name, list(paths)) is None


def test_no_package_hides_a_public_function():
    """`import softless.runs` of a package of that name would put a module in the function's
    place.
    """
    for name in [
        *softless.__all__,
        *softless._VERBS,
        "export",
        "recover",
        "tiles",
        "heat",
        "serve",
    ]:
        assert PathFinder.find_spec(name, list(softless.__path__)) is None, name


def test_another_unknown_module_is_still_unknown():
    with pytest.raises(ModuleNotFoundError, match=r"softless\.data\.circles"):
        importlib.import_module("softless.data.circles")


@pytest.mark.parametrize(
    ("package", "name", "now"),
    [
        ("softless.evaluation", "load_run", "softless.tasks.loaded"),
        ("softless.report", "write", "softless.tasks.page"),
        ("softless.tasks", "open_task", "softless.tasks.table"),
        ("softless.tasks", "Task", "softless.tasks.task"),
    ],
)
def test_a_name_of_a_package_is_found_where_it_stands(package: str, name: str, now: str):
    room, nothing = importlib.import_module(package), "nothing"
    assert getattr(room, name) is getattr(importlib.import_module(now), name)
    with pytest.raises(AttributeError, match=f"module '{package}' has no attribute 'nothing'"):
        getattr(room, nothing)
