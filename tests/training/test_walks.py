"""Of several ranks that see one folder, one walks it; another folder is walked where it is."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from softless.data import folder
from softless.data.folder import class_listings, folder_parts
from softless.data.walks import identity, listed, walked
from softless.recipes import get_recipe
from softless.training import agreement


def write(root: Path, count: int = 3) -> Path:
    for part in ("train", "val"):
        for name in ("cat", "dog"):
            for index in range(count):
                file = root / part / name / "deep" / f"{index}.png"
                file.parent.mkdir(parents=True, exist_ok=True)
                Image.new("L", (8, 8), 10 * index).save(file)
            (root / part / name / "notes.txt").write_text("no image")
    return root


def never(*_: Any, **__: Any) -> Any:
    pytest.fail("it walked")


@pytest.mark.parametrize("parts", [True, False])
def test_what_was_walked_is_opened_without_a_walk(
    parts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    root = write(tmp_path / "data") if parts else write(tmp_path / "data") / "train"
    expected, classes = folder_parts(root, 1)
    walks = class_listings(root)
    assert len(walks) == (4 if parts else 2)
    with walked({root / place: walk for place, walk in walks.items()}):
        monkeypatch.setattr(folder, "listing", never)
        opened, same = folder_parts(root, 1)
    assert same == classes
    for part, samples in expected.items():
        count = len(samples)
        assert len(opened[part]) == count
        names = [opened[part].name(index) for index in range(count)]
        assert names == [samples.name(index) for index in range(count)]
        assert opened[part].targets.tolist() == samples.targets.tolist()
    monkeypatch.undo()
    assert len(folder_parts(root, 1)[0][next(iter(expected))]) == 6, "outside it walks again"


def test_a_folder_is_itself_by_any_path(tmp_path: Path):
    first, second = write(tmp_path / "one"), write(tmp_path / "two")
    (tmp_path / "link").symlink_to(first)
    assert identity(first) == identity(tmp_path / "link")
    assert identity(first) != identity(second)
    assert identity(tmp_path / "none") is None


def test_what_cannot_be_walked_is_left_to_the_opening(tmp_path: Path):
    assert class_listings(tmp_path / "none") == {}
    (tmp_path / "file").write_text("x")
    assert class_listings(tmp_path / "file") == {}


class Ranks:
    """What a rank sees of the exchange with another, which sees `other`."""

    def __init__(self, rank: int, other: Path) -> None:
        self.rank, self.other = rank, other

    def gather(self, mine: Any) -> list[Any]:
        other = identity(self.other)
        return [mine, other] if self.rank == 0 else [other, mine]

    def first(self, work: Any) -> Any:
        return work() if self.rank == 0 else class_listings(self.other)


def walks_of(rank: int, mine: Path, other: Path) -> dict[Path, Any]:
    recipe = get_recipe("classify").with_fields(**{"data.path": str(mine)})
    return agreement._walked_once(Ranks(rank, other), recipe)  # type: ignore[arg-type]


def test_a_rank_takes_the_walk_of_the_first(tmp_path: Path):
    root = write(tmp_path / "data")
    (tmp_path / "link").symlink_to(root)
    for rank, mine in ((0, root), (1, root), (1, tmp_path / "link")):
        walks = walks_of(rank, mine, root)
        assert set(walks) == {mine / p / c for p in ("train", "val") for c in ("cat", "dog")}
        assert all(walk.files == [f"deep/{n}.png" for n in range(3)] for walk in walks.values())


@pytest.mark.parametrize("rank", [0, 1])
def test_another_folder_is_walked_where_it_is(rank: int, tmp_path: Path):
    mine, other = write(tmp_path / "one"), write(tmp_path / "two", 4)
    assert walks_of(rank, mine, other) == {}
    assert walks_of(rank, tmp_path / "none", other) == {}
    assert walks_of(rank, mine, tmp_path / "none") == {}


def test_a_path_that_no_disk_has_still_takes_part(tmp_path: Path):
    """The others wait for every rank, so nothing may be raised ahead of the exchange."""
    assert walks_of(1, Path("x" * 5000), write(tmp_path / "data")) == {}


def test_the_data_are_opened_within_the_walk(tmp_path: Path):
    root, seen = write(tmp_path / "data"), []

    class World(Ranks):
        size, is_first = 2, False

        def together(self, work: Any) -> Any:
            return work()

    def open_task(_: Any) -> Any:
        seen.append(listed(root / "train" / "cat"))
        raise InterruptedError

    recipe = get_recipe("classify").with_fields(**{"data.path": str(root)})
    with pytest.raises(InterruptedError):
        agreement.opened_alike(World(1, root), recipe, open_task)  # type: ignore[arg-type]
    assert seen[0].files == ["deep/0.png", "deep/1.png", "deep/2.png"]
    assert listed(root / "train" / "cat") is None
