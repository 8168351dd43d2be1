"""Spacings of real tissue are never taken for mistakes, and mistakes are seen in all of them."""

import numpy as np
import pytest

from softless.bags.lattice import Spacing


def tissue(width: int, step: float, seed: int = 0, corner=(0, 0)) -> np.ndarray:
    """Tiles of a round piece with holes, rounded to whole pixels."""
    x, y = np.meshgrid(np.arange(width), np.arange(width))
    inside = (x - width / 2) ** 2 + (y - width / 2) ** 2 < (width / 2.2) ** 2
    inside &= np.random.default_rng(seed).random(inside.shape) < 0.9
    return np.round(np.stack([x[inside], y[inside]], 1) * step + np.array(corner))


def contours(pieces: int, step: float) -> np.ndarray:
    """CLAM begins a lattice at each contour."""
    rng = np.random.default_rng(3)
    return np.concatenate([
        tissue(int(rng.integers(3, 20)), step, number, rng.integers(0, 50_000, 2))
        for number in range(pieces)
    ])


def some(count: int) -> np.ndarray:
    every = tissue(60, 512)
    return every[np.random.default_rng(1).choice(len(every), count, replace=False)]


SLIDES = {
    "tissue": (tissue(40, 512), 512),
    "contours": (contours(12, 512), 512),
    "many small contours": (contours(60, 256), 256),
    "a step that is no whole number": (tissue(60, 224.45), 224),
    "small tiles": (tissue(60, 16), 16),
    "every third tile": (some(700), 512),
    "few of many": (some(60), 512),
    "a row": (np.stack([np.arange(40) * 512, np.zeros(40)], 1), 512),
    "micrometres": ((tissue(60, 1) * np.float32(112.5)).astype(np.float64), 112.5),
}


@pytest.mark.parametrize("slide", SLIDES)
def test_the_right_step_is_never_refused(slide):
    coords, step = SLIDES[slide]
    assert Spacing.of(coords).contradicts(step) is None


@pytest.mark.parametrize("factor", [0.25, 0.5, 0.875, 0.9, 1.1, 1.5, 2, 4])
@pytest.mark.parametrize("slide", SLIDES)
def test_another_step_is_refused_with_the_right_one(slide, factor):
    coords, step = SLIDES[slide]
    seen = Spacing.of(coords).contradicts(factor * step)
    assert seen == pytest.approx(step, rel=0.01)


@pytest.mark.parametrize("seed", range(5))
def test_positions_without_a_lattice_are_not_judged(seed):
    rng = np.random.default_rng(seed)
    assert Spacing.of(rng.integers(0, 50_000, (2000, 2)).astype(float)).contradicts(512) is None
    assert Spacing.of(rng.random((2000, 2)) * 50_000).contradicts(512) is None


def test_too_few_tiles_are_not_judged():
    assert Spacing.of(tissue(40, 512)[:2]).contradicts(300) is None
