"""Small runs that the servers of these tests answer with, trained once."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import softless
from softless.recipes import get_recipe
from softless.serving.server import Server
from softless.training import fit
from tests.serving.served import Process, serving

pytest.importorskip("fastapi", reason="the extra serve is not installed")
pytest.importorskip("uvicorn", reason="the extra serve is not installed")


def trained(name: str, folder: Path, **fields: object) -> Path:
    """A run of two steps of a recipe."""
    recipe = get_recipe(name).quick(folder / "data").with_fields(**fields)
    fit(recipe, folder / "run", device="cpu", progress=False)
    return folder / "run"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of grey images that has learnt something."""
    out = tmp_path_factory.mktemp("digits") / "run"
    softless.train("digits", set="schedule.epochs=1", out=out, device="cpu")
    return out


@pytest.fixture(scope="session")
def twin(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with softmax."""
    out = tmp_path_factory.mktemp("twin") / "run"
    changes = ["schedule.epochs=1", "model.op=softmax"]
    softless.train("digits", set=changes, out=out, device="cpu")
    return out


@pytest.fixture(scope="session")
def colour(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A classifier of colour images, of two steps."""
    return trained("folder", tmp_path_factory.mktemp("colour"))


@pytest.fixture(scope="session")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of two steps."""
    return trained("nuclei", tmp_path_factory.mktemp("boxes"))


@pytest.fixture(scope="session")
def areas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A segmenter of two steps."""
    return trained("vessels", tmp_path_factory.mktemp("areas"))


@pytest.fixture(scope="module")
def server(digits: Path) -> Iterator[Server]:
    """A server with the usual limits."""
    with serving(digits) as started:
        yield started


@pytest.fixture(scope="module")
def process(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Process]:
    """A server in its own process, with a folder for temporary files of its own."""
    started = Process(str(digits), temporary=tmp_path_factory.mktemp("temporary"))
    try:
        yield started
    finally:
        started.end()
