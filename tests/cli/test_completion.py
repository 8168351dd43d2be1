"""Completion in a shell: bash itself is asked what it would offer."""

import subprocess
from pathlib import Path

import pytest

from softless.attention.registry import OPERATORS
from softless.cli.bench import KINDS
from softless.cli.completion import completion
from softless.cli.main import VERBS
from softless.recipes import RECIPES

ASK = """
source "$1"; shift
COMP_WORDS=(softless "$@") COMP_CWORD=$# COMPREPLY=()
offer=$(complete -p softless | sed 's/.*-F \\([^ ]*\\) .*/\\1/')
"$offer" softless "${COMP_WORDS[$#]}" "${COMP_WORDS[$#-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("completion") / "softless"
    file.write_text(completion("bash"))
    return file


def offered(script: Path, *words: str) -> set[str]:
    done = subprocess.run(
        ["bash", "-c", ASK, "ask", str(script), *words],
        capture_output=True,
        text=True,
        check=True,
        cwd=script.parent,
    )
    assert not done.stderr
    return set(done.stdout.split())


def test_verbs_kinds_and_options(script: Path) -> None:
    assert offered(script, "") == set(VERBS)
    assert offered(script, "tr") == {"train"}
    assert offered(script, "bench", "") == set(KINDS)
    assert offered(script, "train", "--re") == {"--recipe", "--resume"}
    assert "--seeds" in offered(script, "bench", "twins", "--")


def test_values(script: Path) -> None:
    assert offered(script, "train", "--recipe", "") == set(RECIPES)
    assert offered(script, "swap", "m", "soft") == {n for n in OPERATORS if n.startswith("soft")}
    assert offered(script, "train", "--amp", "") == {"none", "bfloat16", "float16"}


def test_files(script: Path) -> None:
    (script.parent / "my_images").mkdir()
    assert offered(script, "train", "--data", "my") == {"my_images"}


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells(shell: str) -> None:
    text = completion(shell)  # type: ignore[arg-type]
    assert all(verb in text for verb in VERBS)
