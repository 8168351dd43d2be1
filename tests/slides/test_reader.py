"""Slides: read region by region and never whole, tiles that cannot be read, and the resolution they
are looked at with.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from softless.errors import DataError, MissingExtra, MissingResolution, NothingReadable, UsageError
from softless.slides import stream
from softless.slides.files import StoredLevel, slide_of
from softless.slides.pixels import Bytes, Scaled
from softless.slides.reader import source_of
from tests.slides.models import answer, apart, vit, xcit

openslide = pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")

SIZE, TILE = (700, 900), 128  # no multiple of patch or tile
HALVES = (0.5,) * 3


def pixels(size: tuple[int, int] = SIZE, seed: int = 3) -> np.ndarray:
    """Patches of colour with noise, as a slide has flat and busy places."""
    random = np.random.default_rng(seed)
    coarse = random.integers(40, 216, (size[0] // 50 + 1, size[1] // 50 + 1, 3))
    smooth = np.kron(coarse, np.ones((50, 50, 1), dtype=np.int64))[: size[0], : size[1]]
    return (smooth + random.integers(-40, 40, smooth.shape)).astype(np.uint8)


def write(path: Path, values: np.ndarray, *, levels: int = 1, mpp: float | None = None) -> Path:
    told: dict[str, Any] = (
        {}
        if mpp is None
        else {"resolution": (1e4 / mpp, 1e4 / mpp), "resolutionunit": "CENTIMETER"}
    )
    with tifffile.TiffWriter(path) as file:
        for level in range(levels):
            part = values[:: 2**level, :: 2**level]
            kind = {"subfiletype": 1} if level else told
            file.write(part, tile=(TILE, TILE), photometric="rgb", compression="deflate", **kind)
    return path


def spoil(path: Path, tiles: list[int]) -> Path:
    """The slide with some tiles overwritten by zeros."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        places = [(page.dataoffsets[tile], page.databytecounts[tile]) for tile in tiles]
    found = bytearray(path.read_bytes())
    for start, count in places:
        found[start : start + count] = bytes(count)
    spoilt = path.with_name("spoilt.tif")
    spoilt.write_bytes(found)
    return spoilt


@pytest.mark.parametrize("make", [vit, xcit], ids=["vit", "xcit"])
def test_a_slide_answers_as_its_pixels_do(
    make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    largest, read = 0, StoredLevel.read

    def reading(
        self: StoredLevel, top: int, left: int, height: int, width: int, lost: Any = None
    ) -> Any:
        nonlocal largest
        largest = max(largest, height * width)
        return read(self, top, left, height, width, lost)

    monkeypatch.setattr(StoredLevel, "read", reading)
    model, values = make(), pixels()
    found = stream(model, write(tmp_path / "slide.tif", values), chunk=64)
    assert torch.equal(found.logits, stream(model, values, chunk=64).logits)
    assert largest <= (9 * 16) ** 2  # a block of 64 patches with a margin
    assert found.size == SIZE


def test_a_real_slide_read_in_regions_is_the_slide_read_whole(data_root: Path) -> None:
    path = data_root / "cmu_wsi" / "CMU-1-Small-Region.svs"
    slide = slide_of(path, 0, 3)
    assert isinstance(slide, StoredLevel)
    height, width = slide.size
    whole = np.asarray(
        openslide.OpenSlide(str(path)).read_region((0, 0), 0, (width, height)).convert("RGB")
    )
    for top in range(0, height, 512):
        for left in range(0, width, 512):
            tall, wide = min(512, height - top), min(512, width - left)
            assert np.array_equal(
                slide.read(top, left, tall, wide), whole[top : top + tall, left : left + wide]
            )
    assert slide.resolution.mpp == (0.499, 0.499)
    slide.close()
    model = vit(depth=1)
    assert torch.equal(
        stream(model, path, saliency=False).logits, stream(model, whole, saliency=False).logits
    )


def test_tiles_that_cannot_be_read_are_masked_and_reported(tmp_path: Path) -> None:
    model, values = vit(), pixels()
    spoilt = spoil(write(tmp_path / "slide.tif", values), [9, 10, 47])
    mask = np.ones((44, 57), dtype=bool)
    for tile in (9, 10, 47):
        row, column = divmod(tile, 8)
        mask[row * 8 : row * 8 + 8, column * 8 : column * 8 + 8] = False
    found = stream(model, spoilt, chunk=64)
    assert found.exit_code == 4
    assert sorted((tile.level, tile.y, tile.x) for tile in found.unreadable) == [
        (0, 128, 128),
        (0, 128, 256),
        (0, 640, 896),
    ]
    assert all("BAD_DATA" in tile.reason for tile in found.unreadable)
    clean = stream(model, values, chunk=64, mask=mask)
    assert clean.exit_code == 0
    assert torch.equal(found.logits, clean.logits)
    assert found.counted == clean.counted
    black = values.copy()
    for tile in (9, 10, 47):
        row, column = divmod(tile, 8)
        black[row * 128 : row * 128 + 128, column * 128 : column * 128 + 128] = 0
    assert apart(stream(model, black, chunk=64).logits, clean.logits) > 1e-4


def test_a_report_outlives_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from softless.slides import store

    spoilt = spoil(write(tmp_path / "slide.tif", pixels()), [9, 10, 47])
    model, calls, put = vit(), {"count": 0}, store.Journal.write
    wanted = stream(model, spoilt, chunk=64)

    def writing(self: store.Journal, entry: store.Entry) -> None:
        calls["count"] += 1
        if calls["count"] % 20 == 0:
            raise KeyboardInterrupt
        put(self, entry)

    monkeypatch.setattr(store.Journal, "write", writing)
    for _ in range(100):
        try:
            found = stream(model, spoilt, chunk=64, store=tmp_path / "run")
            break
        except KeyboardInterrupt:
            continue
    assert calls["count"] > 40
    assert found.unreadable == wanted.unreadable
    assert torch.equal(found.logits, wanted.logits)


@pytest.mark.parametrize("store", [False, True])
def test_no_tile_can_be_read(store: bool, tmp_path: Path) -> None:
    """There is no answer then, and no folder that holds the half of one."""
    slide = spoil(write(tmp_path / "slide.tif", pixels()), list(range(48)))
    place = tmp_path / "run" if store else None
    with pytest.raises(
        NothingReadable, match=r"none of its 48 tiles that count can be read .*replace the file"
    ) as caught:
        stream(vit(global_pool="avg"), slide, chunk=64, store=place)
    assert caught.value.exit_code == 1
    assert not (tmp_path / "run").exists()


def test_a_level_and_a_resolution(tmp_path: Path) -> None:
    values = pixels()
    path = write(tmp_path / "slide.tif", values, levels=2, mpp=0.5)
    model = vit()
    half = stream(model, values[::2, ::2], chunk=64)
    for options in ({"level": 1}, {"mpp": 1.0}):
        found = stream(model, path, chunk=64, **options)
        assert found.size == (350, 450)
        assert torch.equal(found.logits, half.logits)
    assert stream(model, path, chunk=64, mpp=0.8).size == (438, 562)
    assert stream(model, path, chunk=64, mpp=1.6).size == (219, 281)
    assert stream(model, path, chunk=64, mpp=1.0, slide_mpp=0.504).size == (350, 450)
    with pytest.raises(
        UsageError,
        match=r"slide\.tif says 0\.5 micrometres per pixel, and slide_mpp=1 says another",
    ):
        stream(model, path, mpp=1.0, slide_mpp=1.0)
    with pytest.raises(UsageError, match="slide_mpp=0: give micrometres"):
        stream(model, path, mpp=1.0, slide_mpp=0)
    with pytest.raises(UsageError, match="finer than"):
        stream(model, path, mpp=0.25)
    with pytest.raises(UsageError, match="its levels are 0 to 1"):
        stream(model, path, level=2)
    with pytest.raises(UsageError, match="both choose a level"):
        stream(model, path, level=1, mpp=1.0)
    with pytest.raises(UsageError, match="give micrometres"):
        stream(model, path, mpp=0)


@pytest.mark.parametrize("mpp", [None, 4000.0, 1e-4])
def test_a_resolution_that_is_missing_or_absurd(mpp: float | None, tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", pixels(), mpp=mpp)
    with pytest.raises(
        MissingResolution, match=r"slide\.tif does not say .*pass slide_mpp=.*or level="
    ):
        stream(vit(), path, mpp=1.0)


def test_scaled_regions_fit_without_a_seam() -> None:
    scaled = Scaled(Bytes(pixels()), (1.7, 1.7))
    height, width = scaled.size
    assert scaled.size == (412, 529)
    whole = scaled.read(0, 0, height, width)
    for top, left, tall, wide in ((0, 0, 64, 64), (100, 37, 50, 128), (400, 500, 12, 29)):
        region = scaled.read(top, left, tall, wide).astype(int)
        assert np.abs(region - whole[top : top + tall, left : left + wide]).max() <= 1


def test_what_lies_outside_of_a_scan_has_the_slide_s_background() -> None:
    from softless.slides.files import _colour

    assert _colour("F1EEE7") == (0xF1, 0xEE, 0xE7)
    assert _colour(None) == _colour("none") == (255, 255, 255)


def test_a_slide_without_openslide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openslide", None)
    (tmp_path / "slide.svs").write_bytes(b"")
    with pytest.raises(MissingExtra, match=r"openslide \(to read .*slide\.svs\).*\[slides\]"):
        stream(vit(), tmp_path / "slide.svs")
    values = pixels((160, 176))
    assert torch.equal(
        stream(vit(), write(tmp_path / "small.tif", values)).logits, stream(vit(), values).logits
    )


def test_files_that_are_no_images(tmp_path: Path) -> None:
    (tmp_path / "slide.svs").write_bytes(b"no slide")
    with pytest.raises(DataError, match=r"slide\.svs cannot be opened as a slide"):
        stream(vit(), tmp_path / "slide.svs")
    with pytest.raises(DataError, match="no image at"):
        stream(vit(), tmp_path / "none.png")
    (tmp_path / "image.png").write_bytes(b"no image")
    with pytest.raises(DataError, match=r"image\.png"):
        stream(vit(), tmp_path / "image.png")


def test_one_channel() -> None:
    import softless

    model = softless.create_model(
        "deit_tiny_patch16_224", op="sima", in_chans=1, depth=1, num_classes=3
    ).eval()
    values = pixels((96, 80))[..., 0]
    wanted = answer(model, (torch.from_numpy(values) / 255 - 0.5)[None, None] / 0.5)
    for given in (values, values[..., None]):
        assert apart(stream(model, given, mean=(0.5,), std=(0.5,)).logits, wanted) < 1e-5
    assert source_of(np.stack([values] * 3, -1), 3, HALVES, HALVES).read(
        0, 0, 96, 80, []
    ).shape == (1, 3, 96, 80)
