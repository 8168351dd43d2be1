"""Every verb shares its work among the ranks: each image once, and files as one process writes
them.
"""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from softless.experiment.groups import DataSpec
from tests.data.making import split_folders
from tests.evaluation.runs import run_folder
from tests.processes import each_rank

pytestmark = pytest.mark.slow
CLASSES = ("cat", "dog")
SCRIPT = str(Path(__file__).with_name("sharing.py"))
IMAGES = 22


@pytest.fixture
def run(tmp_path: Path) -> Path:
    split_folders(
        tmp_path / "data",
        {p: {"cat": n, "dog": n} for p, n in (("train", 9), ("test", IMAGES // 2))},
    )
    cut = tmp_path / "data" / "test" / "cat" / "03.png"
    (tmp_path / "images").mkdir()
    for path in (tmp_path / "data" / "test").rglob("*.png"):
        (tmp_path / "images" / f"{path.parent.name}{path.name}").write_bytes(path.read_bytes())
    (tmp_path / "images" / "cat03.png").write_bytes(cut.read_bytes()[:60])
    (tmp_path / "text.png").write_text("no image")
    data = DataSpec(source="folder", path=str(tmp_path / "data"), image_size=16, val_fraction=0.5)
    return run_folder(tmp_path / "run", CLASSES, data)


@dataclass(frozen=True)
class Told:
    """What became of a command."""

    codes: list[int]
    said: str  # by the first rank
    errors: str
    seen: Counter[str]  # how often each image went through the model, on all ranks together


def shared(folder: Path, ranks: int, commands: list[list[str]]) -> list[Told]:
    """The commands as so many ranks, `OUT` in them for a folder of their own."""
    folder.mkdir()
    words = [
        [word.replace("OUT", str(folder)) for word in [*one, "--device", "cpu"]] for one in commands
    ]
    (folder / "commands.json").write_text(json.dumps(words))
    codes = each_rank([[SCRIPT, str(folder)]] * ranks)
    assert codes == [(0, "")] * ranks, codes
    by_rank = [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]
    found = []
    for told in zip(*by_rank, strict=True):
        assert [one["out"] + one["err"] for one in told[1:]] == [""] * (ranks - 1), (
            "the first rank speaks"
        )
        seen = Counter(image for one in told for image in one["seen"])
        said = told[0]["out"].replace(str(folder), "OUT")
        found.append(Told([one["code"] for one in told], said, told[0]["err"], seen))
    return found


def results(folder: Path) -> dict[str, bytes]:
    """What the verbs wrote: all but last words, and the files of slides that tell seconds."""
    found = {
        path.relative_to(folder).as_posix(): path
        for path in folder.glob("*/**/*")
        if path.is_file()
    }
    seconds = ("/ranks/", "/result.json", "/summary.json")
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if not any(part in f"/{name}" for part in seconds)
    }


def commands(run: Path) -> list[list[str]]:
    root, name = run.parent, str(run)
    slides = [str(root / "images" / f"dog0{number}.png") for number in range(3)]
    batches = ["--batch-size", "4"]
    return [
        ["predict", name, str(root / "images"), "OUT/table", *batches, "--no-overlays"],
        ["predict", name, slides[0], "OUT/one"],
        ["explain", name, *slides[:1], "--out", "OUT/maps"],
        ["eval", name, *batches, "--json"],
        [
            "eval",
            name,
            *batches,
            "--json",
            "--knn",
            "3",
            "--linear",
            "--set",
            "epochs=2",
            "batch=5",
        ],
        [
            "eval",
            name,
            *batches,
            "--json",
            "--linear",
            "--set",
            "epochs=2",
            "batch=5",
            "views=fixed",
        ],
        [
            "slide",
            name,
            *slides,
            str(root / "text.png"),
            "--out",
            "OUT/slides",
            "--resize",
            "32",
            "--quiet",
        ],
    ]


@pytest.mark.parametrize("ranks", [2, pytest.param(3, marks=pytest.mark.soak)])
def test_each_image_once_and_files_as_of_one_process(ranks: int, run: Path, tmp_path: Path) -> None:
    alone = shared(tmp_path / "alone", 1, commands(run))
    several = shared(tmp_path / "several", ranks, commands(run))
    names = ["table", "one", "maps", "eval", "features", "fixed", "slides"]
    for name, one, other in zip(names, alone, several, strict=True):
        assert one.codes == ([4] if name in {"table", "slides"} else [0]), one.errors
        assert other.codes == one.codes * ranks, (name, other.errors)
        assert other.seen == one.seen, name
        if name != "slides":  # which tell their seconds
            assert other.said == one.said, name
    once = {"table": IMAGES - 1, "eval": IMAGES, "slides": 4}
    for name, images in once.items():
        seen = several[names.index(name)].seen
        assert (len(seen), set(seen.values())) == (images, {1}), name
    one, other = results(tmp_path / "alone"), results(tmp_path / "several")
    assert {
        "table/predictions.csv",
        "one/saliency/dog00.png",
        "slides/dog02.png/saliency.png",
    } < one.keys()
    assert other == one
    words = sorted(
        path.read_text() for path in (tmp_path / "several" / "table" / "ranks").iterdir()
    )
    assert words == ["ended well\n"] * ranks


def test_a_rank_that_was_asked_otherwise_is_named(run: Path) -> None:
    start = ["-m", "softless", "eval", str(run), "--device", "cpu"]
    (code, said), (other, silent) = each_rank([start, [*start, "--split", "val"]])
    assert (code, other, silent) == (2, 2, "")
    assert "rank 1 of 2 has split = 'val' and rank 0 has 'test'" in said
    assert said.count("\n") == 1


OTHER_VERSION = """
import sys
from softless import origin
told = origin.versions()
origin.versions = lambda: {**told, "timm": "1.0.0"}
from softless.cli.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.soak
def test_another_version_on_a_rank_is_named(run: Path) -> None:
    words = ["eval", str(run), "--device", "cpu"]
    (code, said), (other, silent) = each_rank([
        ["-m", "softless", *words],
        ["-c", OTHER_VERSION, *words],
    ])
    assert (code, other, silent) == (2, 2, "")
    assert "rank 1 of 2 has timm = '1.0.0' and rank 0 has" in said
    assert said.count("\n") == 1
