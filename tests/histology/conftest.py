"""A slide that says where it was scanned."""

import openslide
import pytest

from softless.slides import files

BOUNDS = {"x": 100, "y": 40, "width": 200, "height": 300}


@pytest.fixture
def bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are read through openslide, and say where they were scanned."""
    told = {f"openslide.bounds-{name}": str(value) for name, value in BOUNDS.items()}
    plain = vars(openslide.OpenSlide)["properties"].fget
    monkeypatch.setattr(
        openslide.OpenSlide, "properties", property(lambda self: {**plain(self), **told})
    )
    monkeypatch.setattr(files.tiff_pages, "opened", lambda _: None)
