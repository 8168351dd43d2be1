"""The command: verbs from one table, options from signatures, errors in one sentence."""

import json
import logging
import pkgutil
import runpy
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

import softless
import softless.cli
from softless.cli import main as module
from softless.cli.main import VERBS, main
from softless.cli.options import fill, parser_of, read_docstring
from softless.cli.output import as_json, as_text
from softless.errors import DivergedError, Interrupted, UsageError
from softless.experiment.assignments import assignments


@dataclass(frozen=True)
class Outcome:
    path: Path
    score: float
    exit_code: int = 0


def sample(
    what: "str | Unimported",  # type: ignore[name-defined]  # noqa: F821
    *,
    seeds: int = 3,
    lr: float | None = None,
    size: int | tuple[int, ...] = 224,
    set: tuple[str, ...] = (),
    mode: Literal["a", "b"] = "a",
    bar: bool = True,
    force: bool = False,
    out_dir: Path | None = None,
    model: "Unimported | None" = None,  # type: ignore[name-defined]  # noqa: F821
) -> dict[str, Any]:
    """Try something.

    Longer text with 100 % of it.

    Args:
        what: the thing
            over two lines.
        seeds: how many.

    Raises:
        UsageError: never.
    """
    return {key: value for key, value in locals().items() if key != "model"}


def call(*words: str) -> dict:
    return fill(parser_of("sample", sample), sample, words)()


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch):
    """Put a function in place of every verb."""

    def put(function):
        monkeypatch.setattr(module, "load", lambda _: function)

    return put


def test_the_table_is_the_folder():
    helpers = {"main", "options", "output", "ranks", "sizes"}
    files = {found.name for found in pkgutil.iter_modules(softless.cli.__path__)} - helpers
    assert set(VERBS) == files | {
        name for name, place in VERBS.items() if not place.startswith("softless.cli.")
    }


@pytest.mark.parametrize("name", VERBS)
def test_every_verb_is_a_function_with_a_parser_and_a_public_name(name: str):
    function = module.load(name)
    text = parser_of(name, function).format_help()
    assert (function.__doc__ or "").strip()
    assert f"softless {name}" in text
    # softless.data is the package: its verb's Python function is softless.tasks.check.check
    assert callable(getattr(softless, name)) or name == "data"


def test_words_become_typed_arguments():
    found = call(
        "it",
        "--seeds",
        "5",
        "--lr",
        "3e-4",
        "--set",
        "a=1",
        "b=2",
        "--set",
        "c=3",
        "--mode",
        "b",
        "--force",
    )
    assert (found["what"], found["seeds"], found["lr"], found["set"]) == (
        "it",
        5,
        3e-4,
        ["a=1", "b=2", "c=3"],
    )
    assert (found["mode"], found["force"], found["bar"]) == ("b", True, True)


def test_positionals_have_names_too_and_defaults_stay_the_functions():
    assert call("--what", "it", "--no-bar", "--size", "96", "128", "--out-dir", "x") == {
        "what": "it",
        "seeds": 3,
        "lr": None,
        "size": [96, 128],
        "set": (),
        "mode": "a",
        "bar": False,
        "force": False,
        "out_dir": Path("x"),
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["it", "--seed", "5"], "softless sample has no option '--seed'. Did you mean '--seeds'"),
        (["it", "--what", "that"], "what is given twice"),
        (["it", "too"], "takes no further argument 'too'"),
        ([], "softless sample needs --what"),
        (["it", "--seeds", "many"], "invalid int value: 'many'"),
        (["it", "--mode", "c"], "invalid choice: 'c'"),
    ],
)
def test_wrong_words_are_explained(words: list[str], message: str):
    with pytest.raises(UsageError) as raised:
        call(*words)
    assert message in str(raised.value)


def test_help_comes_from_the_docstring():
    text = parser_of("sample", sample).format_help()
    for part in (
        "Try something.",
        "100 % of it",
        "the thing over two lines.",
        "how many. (default 3)",
        "--no-bar",
        "--json",
    ):
        assert part in text
    assert "--model" not in text
    assert "never" not in text
    assert read_docstring("One.\n\nRaises:\n    X: y") == ("One.", {})


def test_a_verb_that_a_command_line_cannot_call_is_a_bug():
    def needs_module(model: type) -> None: ...

    with pytest.raises(TypeError, match="parameter model of needs_module"):
        parser_of("sample", needs_module)


def test_unknown_verb(capsys: pytest.CaptureFixture[str]):
    assert main(["trian"]) == 2
    said = capsys.readouterr()
    assert said.err.startswith("softless: no verb named 'trian'. Did you mean 'train'")
    assert len(said.err.splitlines()) == 1
    assert not said.out


def test_errors_are_one_sentence_and_their_exit_code(capsys: pytest.CaptureFixture[str], verb):
    def failing() -> None:
        """Fail."""
        raise DivergedError("loss is\nnan")

    verb(failing)
    assert main(["train"]) == 3
    assert capsys.readouterr().err == "softless: loss is nan\n"
    with pytest.raises(DivergedError):
        main(["train", "--debug"])


def test_bugs_keep_their_traceback(verb):
    def broken() -> None:
        """Break."""
        raise KeyError("bug")

    verb(broken)
    with pytest.raises(KeyError):
        main(["train"])


def test_results_as_text_and_json(capsys: pytest.CaptureFixture[str], verb):
    def working() -> Outcome:
        """Work."""
        return Outcome(Path("a/b"), float("nan"), exit_code=4)

    verb(working)
    assert main(["train", "--json"]) == 4
    assert json.loads(capsys.readouterr().out) == {"path": "a/b", "score": None, "exit_code": 4}


def test_text_of_containers():
    assert as_text({"a": 1, "b": {"c": 2}, "d": ["x", "y"]}) == "a: 1\nb:\n  c: 2\nd:\n  x\n  y"
    assert as_text({"sima": ""}) == "sima"
    assert json.loads(as_json((Path("x"), {1: None}))) == ["x", {"1": None}]


def test_notices_reach_stderr_and_the_handler_goes(capsys: pytest.CaptureFixture[str], verb):
    def noticing() -> None:
        """Notice."""
        logging.getLogger("softless.data").warning("3 files passed over")

    verb(noticing)
    before = list(logging.getLogger("softless").handlers)
    assert main(["train"]) == 0
    assert capsys.readouterr().err == "softless: note: 3 files passed over\n"
    assert logging.getLogger("softless").handlers == before


def test_interrupt(capsys: pytest.CaptureFixture[str], verb):
    def interrupted() -> None:
        """Stop."""
        raise KeyboardInterrupt

    verb(interrupted)
    assert main(["train"]) == 130
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "usage", "parts"),
    [
        (
            "predict",
            "softless predict RUN IMAGES OUT [options]",
            ("(required) Also --images IMAGES ....", "Also --run RUN."),
        ),
        ("train", "softless train [RECIPE] [options]", ("knows its own. Also --recipe RECIPE.",)),
        ("eval", "softless eval RUN [DATA] [options]", ("(required) Also --run RUN.",)),
        (
            "slide",
            "softless slide MODEL [IMAGES ...] [options]",
            ("(required) Also --model MODEL.",),
        ),
    ],
)
def test_help_says_what_is_required_and_its_option(name: str, usage: str, parts: tuple[str, ...]):
    """Without brackets stands what must be given; what may be given by place names its option
    too.
    """
    text = parser_of(name, module.load(name)).format_help()
    assert text.splitlines()[0] == f"usage: {usage}"
    for part in parts:
        assert part in " ".join(text.split())


def test_help_of_an_option_that_must_be_given():
    def verb(*, out_dir: Path) -> None:
        """Write.

        Args:
            out_dir: where.
        """

    text = " ".join(parser_of("verb", verb).format_help().split())
    assert text.startswith("usage: softless verb --out-dir OUT_DIR [options]")
    assert "where. (required)" in text


def test_overview_and_help(capsys: pytest.CaptureFixture[str]):
    for words in ([], ["--help"]):
        assert main(words) == 0
        said = capsys.readouterr().out
        assert all(f"  {name} " in said for name in VERBS)
    assert main(["train", "--help"]) == 0
    assert "--resume" in capsys.readouterr().out
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("softless 0.")


def test_list(capsys: pytest.CaptureFixture[str]):
    assert main(["list", "--json"]) == 0
    everything = json.loads(capsys.readouterr().out)
    assert set(everything) == {"models", "operators", "recipes", "backends", "formats"}
    assert "sima_deit_small_patch16_224" in everything["models"]
    assert "deit_small_patch16_224" not in everything["models"]
    assert set(everything["operators"]) == set(softless.OPERATORS) == set(everything["backends"])
    assert "reference" in everything["backends"]["sima"]
    assert main(["list", "recipes"]) == 0
    assert "digits: " in capsys.readouterr().out
    assert main(["list", "recipe"]) == 2
    assert "recipes" in capsys.readouterr().err


def test_assignments():
    assert assignments(["a.b=1", "c=d=e"]) == {"a.b": "1", "c": "d=e"}
    with pytest.raises(UsageError, match=r"--set takes field=value.*got 'a.b'"):
        assignments(["a.b"])


def test_the_module_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys, "argv", ["softless", "nothing"])
    with pytest.raises(SystemExit) as left:
        runpy.run_module("softless", run_name="__main__")
    assert left.value.code == 2
    assert capsys.readouterr().err.startswith("softless: no verb named 'nothing'")


def test_after_an_interrupted_run_the_next_signal_ends_the_program(verb, monkeypatch, capsys):
    """Loaders take seconds to leave: a signal meanwhile gives no traceback.

    In somebody's own program nothing of it changes.
    """

    def ended() -> None:
        raise Interrupted("saved", 130)

    verb(ended)
    usual = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    left: list[int] = []
    monkeypatch.setattr(module.os, "_exit", left.append)
    try:
        assert main(["list"]) == 130
        assert {number: signal.getsignal(number) for number in usual} == usual
        monkeypatch.setattr(sys, "argv", ["softless", "list"])
        assert main() == 130
        for number in usual:
            signal.raise_signal(number)
    finally:
        for number, handler in usual.items():
            signal.signal(number, handler)
    assert left == [130, 143]
