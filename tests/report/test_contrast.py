"""Words stand out from what is behind them, in light and in dark: WCAG's contrast, computed from
page.css.
"""

import re
from pathlib import Path

import pytest

from softless.report import document

CSS = Path(document.__file__).with_name("page.css").read_text(encoding="utf-8")
COLOURS = 14
READABLE = 4.5  # WCAG 2.2, 1.4.3


def variables(theme: str) -> dict[str, str]:
    light, dark = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    pairs = re.findall(r"--([\w]+): ([^;]+)", light if theme == "light" else light + dark)
    return {name: value.strip() for name, value in pairs}


def rgb(colour: str) -> tuple[float, ...]:
    found = re.fullmatch(r"#([0-9a-f]{6})", colour)
    assert found, colour
    return tuple(int(found[1][place : place + 2], 16) / 255 for place in (0, 2, 4))


def luminance(colour: tuple[float, ...]) -> float:
    red, green, blue = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def contrast(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def mixed(one: tuple[float, ...], other: tuple[float, ...], share: float) -> tuple[float, ...]:
    return tuple(share * a + (1 - share) * b for a, b in zip(one, other, strict=True))


def test_the_formula_is_wcag_s():
    assert contrast(rgb("#ffffff"), rgb("#000000")) == pytest.approx(21)
    assert contrast(rgb("#ffffff"), rgb("#d9730d")) == pytest.approx(3.2, abs=0.1), (
        "what the matrix had once"
    )


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_words_are_readable(theme):
    held = variables(theme)
    for words in ("ink", "soft", "good", "bad"):
        for behind in ("paper", "card", "tint"):
            assert contrast(rgb(held[words]), rgb(held[behind])) >= READABLE, (words, behind)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", [*(f"s{number}" for number in range(COLOURS)), "bad"])
def test_counts_of_the_matrix_are_readable_at_every_depth(theme, name):
    """`ink` on `name`, of which a share of `depth` x `most` is mixed into `grid`."""
    held = variables(theme)
    most = float(held["most"])
    for depth in range(101):
        behind = mixed(rgb(held[name]), rgb(held["grid"]), most * depth / 100)
        assert contrast(rgb(held["ink"]), behind) >= READABLE, depth
    whole = mixed(rgb(held[name]), rgb(held["grid"]), most)
    assert contrast(whole, rgb(held["grid"])) > 1.3, "and the deepest is still told from the palest"


def test_the_matrix_is_drawn_so():
    assert "color-mix(in srgb, var(--c) calc(var(--depth) * var(--most)), var(--grid))" in CSS
    assert "color-mix(in srgb, var(--bad) calc(var(--depth) * var(--most)), var(--grid))" in CSS
    assert re.search(r"\.matrix tbody td \{[^}]*color: var\(--ink\)", CSS)
    assert not re.search(r"\.matrix td\.(?!recall)\w+ \{[^}]*[ {]color: ", CSS), (
        "no cell has words of another colour"
    )
