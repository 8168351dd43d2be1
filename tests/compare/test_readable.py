"""The figures of the documents: titled, described, and turned with a dark page."""

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from softless.compare.readable import described, readable

FIGURES = sorted((Path(__file__).parents[2] / "docs" / "figures").glob("*.svg"))
SVG = "{http://www.w3.org/2000/svg}"
BARE = (
    '<?xml version="1.0"?>\n<svg viewBox="0 0 1 1" xmlns="http://www.w3.org/2000/svg">\n <g '
    'id="figure_1"><!-- 1,000 --><!-- time &amp; width --><!-- sima --><!-- sima '
    "--></g>\n</svg>\n"
)


def test_a_drawing_is_named_and_its_words_are_told():
    drawn = ET.fromstring(readable(BARE, "Time <of> things"))
    assert (drawn.get("role"), drawn.get("aria-labelledby")) == ("img", "title description")
    assert drawn.findtext(f"{SVG}title") == "Time <of> things"
    assert (
        drawn.findtext(f"{SVG}desc")
        == "A chart with these words: time & width; sima. The numbers are in the table beside it."
    )
    assert "prefers-color-scheme: dark" in (drawn.findtext(f"{SVG}style") or "")
    assert described("<svg></svg>") == "A chart."


def test_what_is_readable_stays_so_and_takes_another_title():
    once = readable(BARE, "a")
    assert readable(once, "a") == once
    assert readable(once, "b") == readable(BARE, "b")


@pytest.mark.parametrize("file", FIGURES, ids=[file.stem for file in FIGURES])
def test_every_figure_of_the_documents_is_readable(file: Path):
    text = file.read_text(encoding="utf-8")
    drawn = ET.fromstring(text)
    title = drawn.findtext(f"{SVG}title")
    assert title
    assert readable(text, title) == text, "python tools/figures.py mends it"
    assert len(drawn.findtext(f"{SVG}desc") or "") > 40
    assert re.search(r'<g id="figure_1">', text), "what the dark colours are of"
