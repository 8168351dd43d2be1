"""Every `>>>` example of the package runs, and every public name has what a reader needs: an
example, the shapes of tensors, the errors.

Examples run in a folder that holds a run (`runs/digits`) and two pictures (`photos`); `softless`,
`torch` and `Path` are imported.
"""

import ast
import doctest
import importlib
import importlib.util
import inspect
import io
import re
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import is_dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import softless
from softless.attention import OPERATORS
from tests.conftest import ROOT
from tests.registered import forget

PACKAGE = ROOT / "softless"
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
PUBLIC = [
    name
    for name in [*softless.__all__, "list", "eval"]
    if inspect.isroutine(getattr(softless, name)) or inspect.isclass(getattr(softless, name))
]
SHAPE = re.compile(r"\([A-Z]\w*, ?\w+(, ?\w+)*\)")  # (B, N, dim)


def examples() -> dict[str, doctest.DocTest]:
    """The examples of the package by the name of what they describe."""
    finder, tests = doctest.DocTestFinder(exclude_empty=True), []
    for path in sorted(PACKAGE.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
            tests += finder.find(importlib.import_module(module.removesuffix(".__init__")))
    for name in PUBLIC:  # decorated ones belong to the decorator's module
        thing = inspect.unwrap(getattr(softless, name))
        tests += finder.find(thing, f"softless.{name}", module=False, globs={})
    by_text = {test.docstring: test for test in tests if test.examples}
    return {test.name: test for test in by_text.values()}


EXAMPLES = examples()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a run and two pictures."""
    path = tmp_path_factory.mktemp("examples")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        softless.train("digits", set="schedule.epochs=1", out="runs/digits")
    (path / "photos").mkdir()
    for number in range(2):
        Image.new("RGB", (32, 32), (100 * number, 50, 200)).save(path / f"photos/{number}.png")
    return path


@pytest.mark.parametrize("name", EXAMPLES)
@pytest.mark.filterwarnings("default")
def test_an_example_runs(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    test, before = EXAMPLES[name], set(OPERATORS)
    module = vars(importlib.import_module(test.name.rpartition(".")[0])) if _in_module(test) else {}
    test.globs = {**module, "softless": softless, "torch": torch, "Path": Path}
    report = io.StringIO()
    try:
        outcome = doctest.DocTestRunner(optionflags=FLAGS).run(
            test, out=report.write, clear_globs=False
        )
    finally:
        for added in set(OPERATORS) - before:
            forget(OPERATORS[added])
        softless.use_backend("auto")
    assert outcome.attempted
    assert not outcome.failed, report.getvalue()


def _in_module(test: doctest.DocTest) -> bool:
    try:
        return importlib.util.find_spec(test.name.rpartition(".")[0]) is not None
    except ModuleNotFoundError:
        return False


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_described(name: str):
    assert list(faults(getattr(softless, name))) == []


def faults(thing: Callable[..., Any]) -> Iterator[str]:
    """What the docstring of a public function or class lacks."""
    text = inspect.getdoc(thing) or ""
    thing = inspect.unwrap(thing)
    is_error = inspect.isclass(thing) and issubclass(thing, Exception)
    if ">>> " not in text:
        yield "an example"
    if is_error:
        return
    if "\nRaises:\n" not in text and raises(thing):
        yield "Raises"
    if takes_tensors(thing) and not SHAPE.search(text):
        yield "a shape"
    parameters = inspect.signature(thing).parameters.values()
    for parameter in parameters:
        if not re.search(rf"^    \**{parameter.name}: ", text, re.MULTILINE) and not (
            inspect.isclass(thing) and thing is not softless.Attention
        ):
            yield f"the argument {parameter.name}"
    if not inspect.isclass(thing) and "\nReturns:\n" not in text:
        yield "Returns"


def raises(thing: Callable[..., Any]) -> bool:
    """Whether a function, or the constructor of a class, raises; a call may do it for it."""
    function = thing.__init__ if inspect.isclass(thing) and not is_dataclass(thing) else thing
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    return any(isinstance(node, ast.Raise | ast.Call) for node in ast.walk(tree))


def takes_tensors(thing: Callable[..., Any]) -> bool:
    """Whether a function, or the module that a class makes, takes tensors."""
    function = getattr(thing, "forward", thing) if inspect.isclass(thing) else thing
    kinds = inspect.signature(inspect.unwrap(function)).parameters.values()
    return any("Tensor" in str(parameter.annotation) for parameter in kinds)


def no_example(x: int) -> int:
    """Twice a number.

    Args:
        x: the number.

    Returns:
        Twice it.

    Raises:
        ValueError: it is negative.
    """
    if x < 0:
        raise ValueError(x)
    return 2 * x


def no_raises(x: int) -> int:
    """Twice a number.

    Args:
        x: the number.

    Returns:
        Twice it.

    Examples:
        >>> no_raises(1)
        2
    """
    if x < 0:
        raise ValueError(x)
    return 2 * x


def no_shape(x: torch.Tensor) -> torch.Tensor:
    """Twice a tensor.

    Args:
        x: the tensor.

    Returns:
        Twice it.

    Examples:
        >>> no_shape(torch.ones(1))
        tensor([2.])
    """
    return 2 * x


@pytest.mark.parametrize(
    ("thing", "lacks"), [(no_example, "an example"), (no_raises, "Raises"), (no_shape, "a shape")]
)
def test_what_is_missing_is_seen(thing: Callable[..., Any], lacks: str):
    assert list(faults(thing)) == [lacks]
