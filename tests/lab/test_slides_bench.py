"""`python -m lab slides`: both readers of a slide, in processor time."""

from pathlib import Path

import pytest

from lab.slides import slides
from softless.errors import UsageError
from tests.slides.test_reader import pixels, write

pytest.importorskip("openslide")


def test_both_readers_are_timed(tmp_path: Path) -> None:
    write(tmp_path / "slide.tif", pixels((300, 260)))
    found = slides(data=tmp_path, rounds=2)
    assert [(row.slide, row.reader, row.pixels, row.ratio is None) for row in found.rows] == [
        ("slide.tif", "openslide", "260 x 300", True),
        ("slide.tif", "tifffile", "260 x 300", False),
    ]
    assert "ms of the processor" in str(found)
    with pytest.raises(UsageError, match="name one, or a folder"):
        slides()
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="holds no SVS and no tiled TIFF"):
        slides(data=tmp_path / "empty")
