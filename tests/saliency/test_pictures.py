"""Overlays and figures: sizes, ends of the colour maps, orientation."""

import numpy as np
import torch
from PIL import Image

from softless.saliency import explain, figure, overlay, picture
from softless.saliency.colours import colourise

GREY = Image.new("L", (60, 40), 128)


def test_overlay_has_the_images_size_and_orientation():
    corner = np.zeros((2, 3))
    corner[0, 2] = 1  # top right
    out = np.asarray(overlay(GREY, corner)).astype(int)
    assert out.shape == (40, 60, 3)
    # yellow end of viridis is red and green, the low end is neither
    assert out[2, 57, 0] > out[37, 2, 0] + 60
    assert out[2, 57, 1] > out[37, 57, 1] + 60


def test_overlay_stays_in_range_where_the_cubic_overshoots():
    checker = np.indices((4, 4)).sum(0) % 2
    whole = np.asarray(overlay(GREY, checker.astype(float)))
    assert whole.dtype == np.uint8
    assert len(np.unique(whole[..., 0])) > 10  # up-sampled smoothly, not in blocks


def test_signed_overlay_is_blue_below_and_red_above():
    out = np.asarray(overlay(GREY, np.array([[-1.0, 1.0]]), signed=True)).astype(int)
    assert out[20, 0, 2] > out[20, 0, 0] + 40
    assert out[20, 59, 0] > out[20, 59, 2] + 40


def test_zero_of_the_signed_map_hardly_tints():
    out = np.asarray(overlay(GREY, np.zeros((2, 2)), signed=True)).astype(int)
    assert np.ptp(out, axis=-1).max() < 6


def test_viridis_agrees_with_matplotlib():
    from matplotlib import colormaps

    values = np.linspace(0, 1, 101)
    expected = colormaps["viridis"](values)[:, :3] * 255
    np.testing.assert_allclose(colourise(values), expected, atol=5)


def test_picture_undoes_the_scaling():
    image = torch.rand(3, 4, 5)
    mean, std = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]
    scaled = (image - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    back = np.asarray(picture(scaled, mean, std)) / 255
    np.testing.assert_allclose(back, image.permute(1, 2, 0).numpy(), atol=0.003)
    assert picture(torch.rand(5, 4, 4), [0.5] * 5, [1.0] * 5).mode == "RGB"


def test_figure_shows_the_class_row_only_where_there_is_one(make):
    image = torch.rand(1, 3, 8, 8)
    shown = Image.fromarray((image[0].permute(1, 2, 0) * 255).byte().numpy())
    with_row = figure(shown, explain(make(), image), 0, title="a very long path/" * 20)
    without = figure(shown, explain(make(class_token=False), image), 0)
    assert with_row.height == without.height
    assert with_row.width > without.width * 1.25
