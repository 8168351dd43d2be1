"""A slide of more than 8 bits in a declared range: what model(pixels by the formula in float64)
answers, whatever the file, the level and the chunk.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from softless.data.images import BadImage
from softless.errors import UsageError
from softless.experiment.ranges import Range
from softless.models.config import noted
from softless.saliency.viewer import normalisation
from softless.slides import stream
from softless.slides.files import Choice, slide_of
from softless.slides.pixels import Scaled
from softless.slides.thumbnails import thumbnail
from tests.slides.models import apart, vit
from tests.slides.test_reader import pixels, write

tifffile = pytest.importorskip("tifffile")
pytest.importorskip("openslide")
TEXT = "-100..3000"
SIDES = (190, 230)


def declared(text: str = TEXT) -> Any:
    model: Any = vit()
    model.pretrained_cfg = {**model.pretrained_cfg, "notes": noted(text)}
    return model


def formula(values: np.ndarray) -> np.ndarray:
    return np.clip((values.astype(np.float64) + 100) / 3100, 0, 1)


def expected(model: Any, values: np.ndarray) -> torch.Tensor:
    """Of pixels (h,w,C), filled up with the mean colour to whole patches."""
    mean, std = (
        torch.tensor(side, dtype=torch.float64)[:, None, None] for side in normalisation(model)
    )
    x = (torch.from_numpy(formula(values)).permute(2, 0, 1) - mean) / std
    height, width = x.shape[1:]
    whole = torch.zeros(1, 3, -(-height // 16) * 16, -(-width // 16) * 16)
    whole[0, :, :height, :width] = x.float()
    with torch.no_grad():
        logits: torch.Tensor = model(whole)
    return logits


def drawn(dtype: str, size: tuple[int, int] = SIDES, seed: int = 0) -> np.ndarray:
    low = 0 if dtype.startswith("u") else -500
    return np.random.default_rng(seed).integers(low, 4096, (*size, 3)).astype(dtype)


@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
@pytest.mark.parametrize("tile", [(64, 48), None])
def test_a_tiff_of_more_than_8_bits(
    dtype: str, tile: tuple[int, int] | None, tmp_path: Path
) -> None:
    values, model = drawn(dtype), declared()
    tifffile.imwrite(
        tmp_path / "a.tif",
        values,
        tile=tile,
        photometric="rgb",
        metadata=None,
        compression="deflate",
    )
    wanted = expected(model, values)
    for chunk in (32, 2048):
        found = stream(model, tmp_path / "a.tif", chunk=chunk, quiet=True, saliency=False)
        assert apart(found.logits, wanted) <= 1e-6
    array = stream(model, values, quiet=True, saliency=False)
    assert apart(array.logits, wanted) <= 1e-6
    with pytest.raises(BadImage, match="only 8-bit images are read without a range"):
        stream(vit(), tmp_path / "a.tif", quiet=True)


def test_levels_of_a_pyramid_and_scaled_ones(tmp_path: Path) -> None:
    """Scaled, a float pixel is the same whatever region it is read with, and near to that of
    Pillow's filter in the same range.
    """
    values, coarse = drawn("uint16", (300, 260)), drawn("uint16", (150, 130), 1)
    with tifffile.TiffWriter(tmp_path / "a.tif") as file:
        file.write(values, tile=(64, 64), photometric="rgb", metadata=None, subifds=0)
        file.write(coarse, tile=(64, 64), photometric="rgb", metadata=None, subfiletype=1)
    model = declared()
    found = stream(model, tmp_path / "a.tif", level=1, quiet=True, saliency=False)
    assert apart(found.logits, expected(model, coarse)) <= 1e-6
    slide = slide_of(tmp_path / "a.tif", 0, 3, Choice(scale=Range.parse(TEXT)))
    assert slide is not None
    small = Scaled(slide, (2.3, 2.3))
    height, width = small.size
    whole = small.read(0, 0, height, width)
    assert whole.dtype == np.float32
    parts = [small.read(top, 0, min(17, height - top), width) for top in range(0, height, 17)]
    assert np.abs(np.concatenate(parts) - whole).max() <= 1e-6
    plane = torch.from_numpy(formula(values)).permute(2, 0, 1)[None].float()
    near = torch.nn.functional.interpolate(plane, (height, width), mode="bicubic", antialias=True)[
        0
    ].permute(1, 2, 0)
    assert np.abs(whole - near.numpy()).max() <= 1e-4
    slide.close()
    picture = thumbnail(tmp_path / "a.tif", side=100, choice=Choice(scale=Range.parse(TEXT)))
    assert max(picture.size) == 100
    assert abs(np.asarray(picture).mean() / 255 - formula(values).mean()) < 0.02


def test_8_bits_under_a_range(tmp_path: Path) -> None:
    """By the formula where the range lies within a byte, refused where it reaches beyond, as images
    are.
    """
    values = pixels(SIDES, 3)
    write(tmp_path / "a.tif", values)
    model = declared("10..200")
    found = stream(model, tmp_path / "a.tif", quiet=True, saliency=False)
    wide = np.clip((values.astype(np.float64) - 10) / 190, 0, 1) * 3100 - 100
    assert apart(found.logits, expected(model, wide)) <= 1e-6
    with pytest.raises(
        BadImage,
        match=r"8-bit pixels, which lie in 0\.\.255, and data\.range=-100\.\.3000 reaches beyond",
    ):
        stream(declared(), tmp_path / "a.tif", quiet=True)
    with pytest.raises(UsageError, match="image holds bytes"):
        stream(declared(), values, quiet=True)


def test_nan_in_a_tile_is_named(tmp_path: Path) -> None:
    values = drawn("float32")
    values[100, 100] = np.nan
    tifffile.imwrite(tmp_path / "a.tif", values, tile=(64, 64), photometric="rgb", metadata=None)
    with pytest.raises(BadImage, match="floating-point pixels, 3 of them NaN or infinite"):
        stream(declared(), tmp_path / "a.tif", quiet=True)
