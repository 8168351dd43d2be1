"""Tiles lie at whole pixels of level 0, and their pixels are those of the slide at that place."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from softless.errors import DataError, MissingResolution, UsageError
from softless.histology.tiling import Cut, Tiling, tiling_of
from softless.histology.windows import Window, windows
from softless.slides.pixels import Bytes, Pixels, Scaled
from softless.slides.reader import pixels_of
from tests.slides.test_reader import TILE, pixels, spoil, write

pytest.importorskip("tifffile")


OPEN: list[Pixels] = []


@pytest.fixture(autouse=True)
def closing() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


def cut(path: Path, **options: float) -> tuple[Tiling, Pixels]:
    OPEN.append(pixels_of(path, 3, 0))
    tiling, source = tiling_of(OPEN[-1], str(path), Cut(**options))  # type: ignore[arg-type]
    OPEN.append(source)
    return tiling, source


def every(tiling: Tiling) -> np.ndarray:
    return tiling.places(np.ones(tiling.grid, dtype=bool))


def read(tiling: Tiling, source: Pixels) -> list[Window]:
    return list(windows(source, tiling, every(tiling)))


def test_without_a_resolution_tiles_are_the_pixels_of_level_0(tmp_path: Path) -> None:
    values = pixels((700, 900))
    tiling, source = cut(write(tmp_path / "slide.tif", values, mpp=0.3), tile=96)
    found = read(tiling, source)
    assert (tiling.tile_px0, tiling.grid, tiling.mpp) == (96, (8, 10), pytest.approx(0.3))
    for tile in found:
        wanted = values[tile.y : tile.y + 96, tile.x : tile.x + 96]
        assert np.array_equal(np.asarray(tile.pixels), wanted)


@pytest.mark.parametrize("overlap", [0, 32, 95])
def test_tiles_that_overlap(overlap: int, tmp_path: Path) -> None:
    values = pixels((210, 250))
    tiling, source = cut(write(tmp_path / "slide.tif", values), tile=96, overlap=overlap)
    found = read(tiling, source)
    step = 96 - overlap
    assert {(tile.x, tile.y) for tile in found} == {
        (x, y) for x in range(0, 250, step) for y in range(0, 210, step)
    }
    for tile in found[:: 1 + len(found) // 100]:
        wanted = values[tile.y : tile.y + 96, tile.x : tile.x + 96]
        assert np.array_equal(np.asarray(tile.pixels), wanted)


def test_a_stored_level_is_taken_as_it_is(tmp_path: Path) -> None:
    values = pixels((701, 899))
    path = write(tmp_path / "slide.tif", values, levels=3, mpp=0.25)
    tiling, source = cut(path, mpp=1.0, tile=64)
    assert (tiling.level, tiling.scale, tiling.tile_px0) == (2, (4, 4), 256)
    coarse = values[::4, ::4]
    for tile in read(tiling, source):
        y, x = tile.y // 4, tile.x // 4
        assert np.array_equal(np.asarray(tile.pixels), coarse[y : y + 64, x : x + 64])


def test_a_scaled_tile_is_the_scaled_whole_at_its_place(tmp_path: Path) -> None:
    values = pixels((640, 960))
    tiling, source = cut(write(tmp_path / "slide.tif", values, mpp=0.25), mpp=0.5, tile=80)
    whole = Scaled(Bytes(values), (2, 2)).read(0, 0, 320, 480)
    for tile in read(tiling, source):
        y, x = tile.y // 2, tile.x // 2
        assert np.array_equal(np.asarray(tile.pixels), whole[y : y + 80, x : x + 80])


@pytest.mark.parametrize("levels", [1, 2])
def test_a_fraction_is_rounded_to_whole_pixels_and_said(levels: int, tmp_path: Path) -> None:
    values = np.kron(pixels((60, 90)), np.ones((16, 16, 1), dtype=np.uint8))  # smooth
    path = write(tmp_path / "slide.tif", values, levels=levels, mpp=0.25)
    tiling, source = cut(path, mpp=0.6, tile=100)
    assert (tiling.tile_px0, tiling.level) == (240, levels - 1)
    assert tiling.mpp == pytest.approx(0.25 * 240 / 100)
    assert cut(path, mpp=0.6, tile=101)[0].mpp == pytest.approx(0.25 * 242 / 101, rel=1e-9)
    for tile in read(tiling, source)[:6]:
        middle = (np.arange(100) + 0.5) * 2.4
        y, x = (tile.y + middle).astype(int), (tile.x + middle).astype(int)
        inside = [(np.abs(np.diff(side // 16, prepend=-1)) == 0) for side in (y, x)]
        far = np.outer(*(both[:] & np.roll(both, -1) & np.roll(both, -2) for both in inside))
        apart = np.asarray(tile.pixels, dtype=int) - values[np.ix_(y, x)]
        assert np.abs(apart[far]).max() <= 30
        assert np.abs(apart[far]).mean() < 3  # a tile to the left would differ by 40


def test_a_tile_is_the_same_whatever_it_is_read_with(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", pixels((640, 960)), mpp=0.25)
    tiling, source = cut(path, mpp=0.37, tile=64)
    together = list(windows(source, tiling, every(tiling)))
    for number in (0, 7, 8, len(together) - 1):
        (alone,) = windows(source, tiling, every(tiling)[number : number + 1])
        assert np.array_equal(np.asarray(alone.pixels), np.asarray(together[number].pixels))


def test_a_tile_that_cannot_be_read_is_named_and_no_other_is_lost(tmp_path: Path) -> None:
    values = pixels((512, 640))
    spoilt = spoil(write(tmp_path / "slide.tif", values, mpp=0.25), [7])  # row 1, column 2
    for mpp, side in ((None, TILE), (0.5, TILE // 2)):
        tiling, source = cut(spoilt, tile=side, **({} if mpp is None else {"mpp": mpp}))
        found = read(tiling, source)
        lost = [(tile.x, tile.y) for tile in found if tile.pixels is None]
        assert lost == [(2 * TILE, TILE)]
        assert all("BAD_DATA" in tile.reason for tile in found if tile.pixels is None)
    clean, source = cut(write(tmp_path / "clean.tif", values, mpp=0.25), mpp=0.5, tile=TILE // 2)
    for tile, whole in zip(found, read(clean, source), strict=True):
        if tile.pixels is not None:  # made of what can be read, also at the border
            apart = np.abs(tile.pixels.astype(int) - np.asarray(whole.pixels, dtype=int))
            assert apart[2:-2, 2:-2].max() == 0


def test_what_reaches_beyond_the_image_has_fewer_pixels(tmp_path: Path) -> None:
    tiling, source = cut(write(tmp_path / "slide.tif", pixels((100, 130))), tile=64)
    shapes = [np.asarray(tile.pixels).shape for tile in read(tiling, source)]
    assert shapes == [(64, 64, 3), (64, 64, 3), (64, 2, 3), (36, 64, 3), (36, 64, 3), (36, 2, 3)]
    shares = tiling.inside()
    assert shares[0].tolist() == [1, 1, 2 / 64]
    assert shares[1].tolist() == pytest.approx([36 / 64, 36 / 64, 72 / 4096])


def test_resolutions_that_cannot_be(tmp_path: Path) -> None:
    silent, says = write(tmp_path / "silent.tif", pixels()), tmp_path / "says.tif"
    write(says, pixels(), mpp=0.5)
    with pytest.raises(MissingResolution, match=r"--slide-mpp .* or --mpp none"):
        cut(silent, mpp=0.5)
    with pytest.raises(UsageError, match=r"--mpp 0\.25 is finer than .*0\.5 micrometres"):
        cut(says, mpp=0.25)
    with pytest.raises(UsageError, match=r"says 0\.5 micrometres .* slide_mpp=0\.25"):
        cut(says, mpp=0.5, slide_mpp=0.25)
    assert cut(silent, mpp=0.5, slide_mpp=0.25)[0].tile_px0 == 448


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    path = tmp_path / "flat.tif"
    tifffile.imwrite(
        path,
        pixels(),
        tile=(TILE, TILE),
        photometric="rgb",
        resolution=(4e4, 2e4),
        resolutionunit="CENTIMETER",
    )
    with pytest.raises(DataError, match=r"pixels of 0\.25 x 0\.5 micrometres"):
        cut(path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"tile": 4}, "--tile 4: give a side of 8 to 4,096"),
        ({"tile": 5000}, "--tile 5000"),
        ({"overlap": 224}, "--overlap 224: give fewer pixels than --tile 224"),
        ({"overlap": -1}, "--overlap -1"),
        ({"mpp": 0.0}, "--mpp 0: give micrometres per pixel"),
        ({"mpp": float("nan")}, "--mpp nan"),
    ],
)
def test_numbers_that_cannot_be(options: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        Cut(**options)  # type: ignore[arg-type]
