"""__all__ is what a package holds: every name in it exists, and everything public that a package
imports for its users is in it.
"""

import builtins
import importlib
import types
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = sorted(
    ".".join(path.parent.relative_to(ROOT).parts)
    for path in (ROOT / "softless").rglob("__init__.py")
)


def offered(module: types.ModuleType) -> set[str]:
    """What a package's __init__ defines, or imports from the files of the package, under public
    names.
    """
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


def test_a_star_import_leaves_the_builtins_alone():
    import softless

    assert not {name for name in softless.__all__ if hasattr(builtins, name)}
    assert callable(softless.list), "by its whole name it is there"


NAME = "sima_deit_tiny_patch16_224"


@pytest.mark.parametrize("function", ["cost", "optimize", "swap", "save_weights", "load_weights"])
def test_a_name_is_no_model(function: str, tmp_path: Path):
    import softless

    arguments: dict[str, list[Any]] = {"save_weights": [tmp_path / "w"], "load_weights": [{}]}
    more = arguments.get(function, [])
    call = getattr(softless, function)
    with pytest.raises(
        softless.UsageError,
        match=rf"softless\.{function} takes a model, .*create_model\('{NAME}'\)",
    ):
        call(NAME, *more)
    with pytest.raises(softless.UsageError, match="and this is of type int"):
        call(3, *more)


def test_torch_says_nothing_of_triton(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    """Where it is absent torch's counter warns as it is imported; it is ours that imports it, and
    nobody asked for triton.
    """
    import sys

    for name in [
        name for name in sys.modules if name.startswith(("triton", "torch.utils.flop_counter"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr("torch.version.cuda", "13.0")
    monkeypatch.delitem(sys.modules, "softless.attention.kernels.formulas")
    importlib.import_module("softless.attention.kernels.formulas")
    assert not [record for record in caplog.records if "triton" in record.getMessage()]
