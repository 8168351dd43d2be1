"""The linear classifier on frozen features: what it learns, at which rate, and on which views."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from softless.data import ArraySamples, eval_transform
from softless.errors import DivergedError, UsageError
from softless.evaluation.linear import LinearSettings, checked, fit, in_memory, probe
from softless.models import create_model
from softless.tasks.dino.transforms import one_crop


def test_it_separates_what_a_line_separates():
    labels = torch.arange(200) % 3
    features = torch.randn(200, 4) * 0.2 + 2 * torch.eye(4)[labels]
    settings = LinearSettings(lr=0.5, epochs=20, batch=50)
    linear = fit(in_memory(features, labels, 50, 0), 4, 3, settings, 50)
    assert (linear(features).argmax(1) == labels).float().mean() == 1.0
    shuffled = labels[torch.randperm(200)]
    other = fit(in_memory(features, shuffled, 50, 0), 4, 3, settings, 50)
    assert (other(features).argmax(1) == shuffled).float().mean() < 0.7, (
        "the control: labels that say nothing"
    )


def test_the_rate_follows_the_papers_rule(monkeypatch: pytest.MonkeyPatch):
    rates = []
    step = torch.optim.SGD.step

    def watched(self: torch.optim.SGD) -> None:
        rates.append(self.param_groups[0]["lr"])
        step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", watched)
    features, labels = torch.randn(8, 2), torch.arange(8) % 2
    fit(in_memory(features, labels, 4, 0), 2, 2, LinearSettings(lr=1e-3, epochs=3), 1024)
    expected = [4e-3 * (1 + math.cos(math.pi * epoch / 3)) / 2 for epoch in (0, 0, 1, 1, 2, 2)]
    assert rates == pytest.approx(expected)


def test_the_papers_settings_are_the_default():
    said = LinearSettings()
    assert (said.lr, said.epochs, said.batch, said.weight_decay, said.momentum) == (
        1e-3,
        100,
        1024,
        0.0,
        0.9,
    )
    assert said.views == "random"
    with pytest.raises(UsageError, match="epochs=0"):
        checked(LinearSettings(epochs=0))
    with pytest.raises(DivergedError, match=r"try a lower lr than 1e\+40"):
        fit(
            in_memory(torch.randn(8, 2), torch.arange(8) % 2, 8, 0),
            2,
            2,
            LinearSettings(lr=1e40),
            8,
        )


@pytest.mark.parametrize("views", ["fixed", "random"])
def test_a_probe_of_a_network_answers_easy_images_and_leaves_it_as_it_was(views):
    """Bright against dark; the features are frozen, so no weight and no running mean moves."""
    labels = np.arange(40) % 2
    pixels = (
        np.random.default_rng(0).integers(0, 60, (40, 16, 16)) + 150 * labels[:, None, None]
    ).astype(np.uint8)
    samples = ArraySamples(pixels, labels, 1)
    args: dict[str, Any] = {
        "op": "xca",
        "img_size": 16,
        "embed_dim": 16,
        "depth": 2,
        "num_heads": 2,
        "in_chans": 1,
        "num_classes": 0,
    }
    model = create_model("xcit_nano_12_p8_224", **args).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = probe(
        model,
        samples.take(range(30)),
        samples.take(range(30, 40)),
        ("dark", "bright"),
        views=one_crop(16, "bicubic", (0.5,), (0.25,), 1),
        transform=eval_transform(16, 1.0, "bicubic", (0.5,), (0.25,), 1),
        settings=LinearSettings(lr=0.3, epochs=10, batch=10, views=views),
    )
    assert (found.measure, found.accuracy, found.width, found.train_images) == (
        "linear",
        1.0,
        64,
        30,
    )
    assert ("fixed" in found.how) == (views == "fixed")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not model.training


def test_many_channels_have_views_too():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 5), dtype=np.uint8)
    view = one_crop(16, "bicubic", [0.5] * 5, [0.25] * 5, 5)(image)
    assert view.shape == (5, 16, 16)
