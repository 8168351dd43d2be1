"""Tissue by the saturation of a small picture: what is stained counts, and glass does not."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from softless.errors import DataError, UsageError
from softless.slides import Lattice, stream
from softless.slides.reader import Placement
from softless.slides.tissue import stained, tissue_of
from tests.slides.models import vit
from tests.slides.test_reader import spoil, write

pytest.importorskip("skimage")
SIZE = (640, 960)
GRID = (40, 60)


def glass(size: tuple[int, int] = SIZE, seed: int = 0) -> np.ndarray:
    """Nearly white, with the noise of a camera and light that falls off."""
    random = np.random.default_rng(seed)
    fall = np.linspace(244, 232, size[1])[None, :, None]
    return np.clip(fall + random.normal(0, 2, (*size, 3)), 0, 255).astype(np.uint8)


def disc(size: tuple[int, int] = SIZE) -> np.ndarray:
    y, x = np.arange(size[0])[:, None] / size[0], np.arange(size[1])[None] / size[1]
    return ((y - 0.5) / 0.35) ** 2 + ((x - 0.4) / 0.25) ** 2 < 1


def slide(
    size: tuple[int, int] = SIZE, stain: tuple[int, int, int] = (176, 110, 168), seed: int = 0
) -> np.ndarray:
    """A stained disc with dark nuclei on glass, a grey pen line, dust."""
    random = np.random.default_rng(seed)
    values = glass(size, seed)
    tissue = np.clip(np.array(stain) + random.normal(0, 12, (*size, 3)), 0, 255).astype(np.uint8)
    tissue[random.random(size) < 0.1] = (70, 50, 110)
    inside = disc(size)
    values[inside] = tissue[inside]
    values[:, int(0.9 * size[1]) : int(0.92 * size[1])] = 60  # a pen without colour
    values[int(0.05 * size[0]) : int(0.05 * size[0]) + 6, 20:26] = (200, 40, 40)  # dust
    return values


def wanted(size: tuple[int, int] = SIZE) -> np.ndarray:
    parts = disc(size).reshape(size[0] // 16, 16, size[1] // 16, 16).mean((1, 3))
    return np.where(parts > 0.75, 1, np.where(parts < 0.25, 0, -1))  # -1: at the edge


STAINS = {
    "H&E": (176, 110, 168),
    "pale": (222, 190, 214),
    "brown": (150, 110, 80),
    "blue": (120, 140, 200),
}


@pytest.mark.parametrize("stain", STAINS)
@pytest.mark.parametrize("mpp", [None, (2.0, 2.0)])
def test_what_is_stained_counts(stain: str, mpp: Any) -> None:
    lattice = Lattice(GRID, (16, 16), SIZE, Placement(mpp=mpp))
    found = tissue_of(slide(stain=STAINS[stain]), lattice)
    known = wanted() >= 0
    assert (found[known] == wanted()[known]).mean() > 0.995


def test_a_blank_slide_has_no_tissue_and_a_full_one_no_glass(
    caplog: pytest.LogCaptureFixture,
) -> None:
    lattice = Lattice(GRID, (16, 16), SIZE)
    with pytest.raises(
        DataError, match="shows no tissue: no patch of it is stained; --tissue none"
    ):
        tissue_of(glass(), lattice)
    full = slide()[224:416, 300:460]
    assert tissue_of(full, Lattice((12, 10), (16, 16), full.shape[:2])).all()
    assert "its whole picture is stained" in caplog.text
    with pytest.raises(DataError, match="has no colour, and tissue is told by it"):
        tissue_of(np.repeat(slide()[..., :1], 3, axis=-1), lattice)


def test_black_noise_is_no_stain() -> None:
    values = slide()
    values[:, :100] = np.random.default_rng(0).integers(0, 5, (640, 100, 3))
    found = tissue_of(values, Lattice(GRID, (16, 16), SIZE))
    assert not found[:, :5].any()


def test_what_cannot_be_read_is_no_tissue() -> None:
    lost = np.zeros(SIZE, dtype=bool)
    lost[300:400, 300:500] = True
    values = slide()
    values[lost] = 0
    found = stained(values, lost, "it")
    assert found is not None
    assert not found[lost].any()


def test_blank_glass_around_moves_an_answer_and_tissue_keeps_it(tmp_path: Path) -> None:
    """The same tissue amid three times as much glass: masked glass is removed."""
    model = vit()
    small = slide((320, 480))
    large = glass((640, 960), seed=5)
    large[160:480, 240:720] = small
    bare = [stream(model, values, saliency=False).logits for values in (small, large)]
    found = [stream(model, values, saliency=False, tissue="otsu") for values in (small, large)]
    moved = (bare[0] - bare[1]).norm() / bare[0].norm()
    kept = (found[0].logits - found[1].logits).norm() / found[0].logits.norm()
    assert [one.counted for one in found] == [found[0].counted] * 2
    assert kept < moved  # positions differ, so they are not equal
    assert found[0].mask is not None


def test_a_slide_and_its_pixels_have_the_same_tissue(tmp_path: Path) -> None:
    values = slide()
    path = write(tmp_path / "slide.tif", values, levels=2, mpp=2.0)
    model = vit(depth=1)
    found = stream(model, path, tissue="otsu")
    again = stream(model, values, mask=found.mask.numpy() if found.mask is not None else None)
    assert torch.equal(found.logits, again.logits)
    bad = stream(model, spoil(path, [9]), tissue="otsu")
    assert bad.mask is not None
    assert len(bad.unreadable) == 1
    assert not bad.mask[8:16, 8:16].any()
    with pytest.raises(UsageError, match="tissue=otsu looks at a picture, and a tensor"):
        stream(model, torch.zeros(3, 160, 176), tissue="otsu")


def test_a_real_slide_is_tissue_for_the_most_part(data_root: Path) -> None:
    path = data_root / "cmu_wsi" / "CMU-1-Small-Region.svs"
    found = stream(vit(depth=1), path, level=0, tissue="otsu", saliency=False)
    assert found.mask is None or float(found.mask.float().mean()) > 0.2
    with Image.open(path) as image:
        assert image.size == found.size[::-1]
