"""Help and version without torch: the table answers as the verbs do, at any width of the
terminal.
"""

import os
import subprocess
import sys

import pytest

import softless
import softless_command
from softless.cli.bench import KINDS
from softless.cli.main import VERBS, overview, parser_for, run_verb
from tools import help_table

QUESTIONS = [[], ["--help"], ["-h"], ["help"], ["--version"], ["--version", "--debug"]]


@pytest.mark.parametrize("width", ["40", "80", "200"])
@pytest.mark.parametrize("name", [*VERBS, *(f"bench {kind}" for kind in KINDS)])
def test_help_is_the_verb_s(name: str, width: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("COLUMNS", width)
    verb = name.split()
    for words in ([*verb, "--help"], [*verb, "--out", "x", "-h"], ["--debug", *verb, "--help"]):
        assert softless_command.answer(words) == parser_for(name).format_help()


@pytest.mark.parametrize("words", QUESTIONS, ids=" ".join)
def test_it_says_what_there_is(words: list[str], capsys: pytest.CaptureFixture[str]):
    version = f"softless {softless.__version__}\n"
    expected = version if "--version" in words else f"{overview()}\n"
    assert softless_command.answer(words) == expected
    assert run_verb(words) == 0, "python -m softless asks the same table"
    assert capsys.readouterr().out == expected


def test_the_table_is_fresh():
    assert help_table.main(["--check"]) == 0


@pytest.mark.parametrize("words", [["trian", "--help"], ["train"], ["list", "models"], ["--hepl"]])
def test_what_asks_no_help_goes_on(words: list[str]):
    assert softless_command.answer(words) is None


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["train", "--help"]], ids=" ".join)
def test_neither_torch_nor_softless_is_imported(words: list[str]):
    code = (
        "import sys, softless_command; assert softless_command.main() == 0; "
        "assert not {'torch', 'timm', 'numpy', 'softless'} & sys.modules.keys()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "softless" in done.stdout


def test_a_verb_that_runs_runs():
    code = "import sys, softless_command; sys.exit(softless_command.main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "trian"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Did you mean 'train'" in done.stderr


def test_neither_a_reader_that_has_gone_nor_a_narrow_encoding_is_an_error():
    code = "import sys, softless_command; sys.exit(softless_command.main())"
    command = [sys.executable, "-c", code, "train", "--help"]
    reader, writer = os.pipe()
    os.close(reader)
    gone = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writer)
    assert (gone.returncode, gone.stderr) == (0, "")
    narrow = {**os.environ, "PYTHONIOENCODING": "ascii"}
    for name in VERBS:
        command[-2] = name
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=narrow)
        assert (done.returncode, done.stderr) == (0, "")
