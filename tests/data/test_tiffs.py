"""A hundred TIFFs in which each property meets each of every other one: each is read as it was
written, or refused by name.
"""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from softless.data.reading import read_image
from softless.experiment.ranges import Range
from tests.data import tiffs

pytest.importorskip("openslide")
tifffile = pytest.importorskip("tifffile")
KINDS = tiffs.chosen()


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: "-".join(kind).replace(" ", ""))
def test_a_tiff_is_read_as_it_was_written_or_refused(kind: tiffs.Kind, tmp_path: Path) -> None:
    read = tiffs.outcome(kind, tmp_path)
    wanted = (
        "right"
        if kind.depth == "8"
        and kind.samples != "5"
        and (kind.pages != "channels" or kind.samples == "1")
        else "refused"
    )
    assert (read.outcome, read.why if read.outcome != "refused" else "") == (wanted, "")


def test_the_kinds_cover_all_pairs() -> None:
    possible = set().union(*(tiffs.pairs(kind) for kind in tiffs.every() if tiffs.writable(kind)))
    assert set().union(*(tiffs.pairs(kind) for kind in KINDS)) == possible
    assert 80 <= len(KINDS) <= 160
    assert min(Counter(kind.orientation for kind in KINDS if kind.depth == "8").values()) >= 4


@pytest.mark.soak
def test_every_combination(tmp_path: Path) -> None:
    assert tiffs.main() == 0


@pytest.mark.parametrize("compression", ["zstd", "lerc", "jpeg2000", "deflate", None])
@pytest.mark.parametrize("tile", [(32, 32), None])
@pytest.mark.parametrize("dtype", ["uint16", "int16", "float32"])
def test_deep_pixels_in_a_declared_range(
    compression: str | None, tile: tuple[int, int] | None, dtype: str, tmp_path: Path
) -> None:
    """Of codecs that Pillow has, and of those that it has not: the formula in float64, for grey and
    for colours.
    """
    if compression == "jpeg2000" and dtype != "uint16":
        pytest.skip("JPEG 2000 holds no signed or floating-point pixels here")
    scale = Range.parse("-100..3000")
    for samples in (1, 3):
        values = (
            np.random
            .default_rng(samples)
            .integers(-500 if dtype != "uint16" else 0, 4096, (48, 70, samples))
            .astype(dtype)
        )
        kind: dict[str, Any] = {
            "photometric": "minisblack" if samples == 1 else "rgb",
            "metadata": None,
        }
        more: dict[str, Any] = (
            {"compressionargs": {"level": 0}} if compression == "jpeg2000" else {}
        )
        planar = "separate" if samples == 3 and tile is None and compression == "zstd" else None
        written = (
            values.transpose(2, 0, 1) if planar else values[..., 0] if samples == 1 else values
        )
        tifffile.imwrite(
            tmp_path / "a.tif",
            written,
            tile=tile,
            compression=compression,
            planarconfig=planar,
            **kind,
            **more,
        )
        found = read_image(tmp_path / "a.tif", samples, scale)
        expected = np.clip((values.astype(np.float64) + 100) / 3100, 0, 1)
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= 1e-6
