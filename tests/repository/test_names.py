"""__all__ is what a package holds: every name in it exists, and everything public that a package imports for its users is in it."""

import importlib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "softless").rglob("__init__.py"))


def offered(module: types.ModuleType) -> set[str]:
    """What a package's __init__ defines, or imports from the files of the package, under public names."""
    held = {name: value for name, value in vars(module).items() if not name.startswith("_")}
    origin = {name: getattr(value, "__module__", None) or "" for name, value in held.items()}
    return {name for name, place in origin.items() if place.startswith(module.__name__)}


@pytest.mark.parametrize("name", PACKAGES)
def test_all_is_what_the_package_holds(name):
    module = importlib.import_module(name)
    listed = getattr(module, "__all__", [])
    assert [public for public in listed if not hasattr(module, public)] == []
    assert len(set(listed)) == len(listed)
    if hasattr(module, "__all__"):
        assert offered(module) <= set(listed)


def test_the_main_package_shows_what_it_offers():
    import softless

    assert set(softless.__all__) <= set(dir(softless))
