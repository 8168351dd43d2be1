"""Random and mutated commands: whatever is typed ends in an answer or in one sentence, and never in
a traceback.
"""

import os
import random
import traceback
from pathlib import Path
from typing import Any

import pytest

import softless.training
from softless.cli.main import VERBS, main
from softless.data.notices import _said
from softless.errors import UsageError
from softless.experiment.groups import DataSpec
from tests.data.making import noise, split_folders
from tests.evaluation.runs import run_folder

MODEL = "sima_deit_tiny_patch16_224"
WORKING = [  # with places for what the folder holds
    "list",
    "list models sima*",
    "list recipes digits",
    "list operators sima --json",
    "list backends",
    "train --recipe digits --out new --set optim.lr=1e-3 schedule.epochs=3 --seed 1 --device cpu",
    "train --recipe folder --data data --out new --amp bfloat16",
    "train --resume --out run",
    "runs .",
    "runs run --json",
    "eval run --device cpu --batch-size 4",
    "eval run data --split val --knn 3",
    "predict run images --out out --device cpu --no-overlays",
    "predict run images/0.png --out out --amp bfloat16",
    "explain run images --out maps --layer -1 --device cpu",
    "explain run images/0.png --resize training --token-scale tokens",
    "slide run images/0.png --out slides --chunk 64 --level 0 --mpp 0.5 --slide-mpp 0.25",
    f"cost {MODEL} --input-size 64",
    "cost run",
    "cost --paper sima-table1",
    "cost deit_tiny_patch16_224 --op sima --act relu --height 32 --width 64",
    f"audit {MODEL} --input-size 32",
    "audit run --json",
    "swap vit_tiny_patch16_224 --op sima --layers blocks.0.attn --set token_scale=tokens",
    "data check data",
    "data check images --min-side 4 --max-pixels 1000 --strict --json",
    "bench nothing",
    "--help",
    "--version",
    "cost --help",
    "predict --help",
]
HOSTILE = [
    "",
    " ",
    "-",
    "--",
    "---",
    "-1",
    "0",
    "1",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "9" * 20,
    "9" * 400,
    "2147483648",
    "0x10",
    "1_000",
    "true",
    "None",
    "[]",
    "(1,2",
    "{" * 50,
    "=",
    "a=",
    "=b",
    "a=b=c",
    "optim.lr=x",
    "data.path=\udcff",
    "model.args.depth=-1",
    "x" * 300,
    "y" * 5000,
    "../..",
    "/",
    "/dev/null",
    "/dev/zero",
    "/proc/self/mem",
    "~",
    "~nobody-has-this-name",
    "a\0b",
    "\udcff\udcfe",
    "red\x1b[31m",
    "two\nlines",
    "\u202eabc",
    "💥",
    "run",
    "data",
    "images",
    "images/0.png",
    "text",
    "fifo",
    "loop",
    "empty",
    "run/best.json",
    MODEL,
    "*",
    "[a",
    "%s",
    "{}",
    "--json",
    "--help",
    "--out",
    "--set",
    "--op=sima",
    "--device=cuda:9",
    "--device=meta",
    "--amp=float8",
    "--input-size=1048577",
    "--resize=100000",
    "--batch-size=99999999999999999999",
    "--layer=99999999999999999999",
    "--workers=-1",
    "--knn=0",
]


def mutated(rng: random.Random) -> list[str]:
    """A command that works with one to three changes, or words at random."""
    if rng.random() < 0.15:
        return [
            rng.choice([*VERBS, rng.choice(HOSTILE)]),
            *rng.choices(HOSTILE, k=rng.randrange(4)),
        ]
    words = rng.choice(WORKING).split(" ")
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(words) + 1)
        head, there, rest = words[:at], words[at : at + 1], words[at + 1 :]
        hostile, broken = rng.choice(HOSTILE), [damaged(word, rng) for word in there]
        words = rng.choice([
            [*head, hostile, *there, *rest],
            [*head, hostile, *rest],
            [*head, *rest],
            [*words, *there, *rest[:1]],
            [*head, *broken, *rest],
        ])
    return words


def damaged(word: str, rng: random.Random) -> str:
    """A word with a sign taken out, doubled or exchanged."""
    at = rng.randrange(len(word) + 1)
    return (
        word[:at]
        + rng.choice(["", word[at : at + 1] * 2, rng.choice("-=.,/\\\"'\x1b\udcff0\0 ")])
        + word[at + 1 :]
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with all that the commands name; nothing is trained."""
    split_folders(tmp_path / "data", {part: {"cat": 3, "dog": 3} for part in ("train", "test")})
    data = DataSpec(source="folder", path=str(tmp_path / "data"), image_size=16, val_fraction=0.5)
    run_folder(tmp_path / "run", ("cat", "dog"), data)
    (tmp_path / "images").mkdir()
    noise().save(tmp_path / "images" / "0.png")
    (tmp_path / "text").write_text("no image, no run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "loop").symlink_to("loop")
    os.mkfifo(tmp_path / "fifo")

    def checked(recipe: Any, run_dir: Any, **_: Any) -> None:
        if recipe is not None:
            recipe.check()
        raise UsageError(f"nothing is trained here: {run_dir}")

    monkeypatch.setattr(softless.training, "fit", checked)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def faults(place: Path, seed: int, number: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The commands that ended in something else than an answer or a sentence."""
    rng, found = random.Random(seed), []
    for _ in range(number):
        words = mutated(rng)
        _said.clear()
        try:
            code = main(words)
        # anything that a person would see as a traceback
        except BaseException as error:  # noqa: BLE001
            found.append(f"{words}: {''.join(traceback.format_exception(error)[-3:])}")
            continue
        said = capsys.readouterr()
        if (
            code not in {0, 1, 2, 4}
            or (code == 2 and not said.err.strip())
            or "\x1b" in said.out + said.err
        ):
            found.append(f"{words}: exit code {code}, {said.err[-200:]!r}")
    return found


@pytest.mark.bar("C12", "random and mutated commands: an answer or one sentence")
def test_commands_end_in_a_sentence(place: Path, capsys: pytest.CaptureFixture[str]):
    assert not faults(place, 0, 40, capsys)


@pytest.mark.soak
@pytest.mark.bar("C12", "600 random and mutated commands: an answer or one sentence")
@pytest.mark.parametrize("seed", range(1, 7))
def test_many_commands_end_in_a_sentence(
    place: Path, capsys: pytest.CaptureFixture[str], seed: int
):
    assert not faults(place, seed, 100, capsys)
