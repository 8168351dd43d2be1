"""A backbone whose attention is exchanged, and what a probe on its features is worth."""

import importlib
import json
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import softless
from lab.probes import Bench, features_of, probes
from softless.errors import UsageError

module = importlib.import_module("lab.probes")


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """A small backbone of DINOv2's kind, and stripes of three directions."""
    folder = tmp_path_factory.mktemp("probes")
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "embed_dim": 64,
        "depth": 3,
        "num_heads": 2,
        "patch_size": 7,
        "img_size": 42,
    }
    model = softless.create_model("vit_small_patch14_dinov2", num_classes=0, **shape)
    with torch.no_grad():
        for name, tensor in model.named_parameters():
            if name.endswith("gamma"):
                tensor.fill_(1.0)
            elif name.endswith("qkv.weight"):
                tensor.mul_(8.0)
    softless.save_weights(model, folder / "backbone")
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:42, :42]
    for part, count in (("train", 20), ("val", 4), ("test", 10)):
        for name, ramp in (("a", x), ("b", y), ("c", x + y)):
            place = folder / "data" / part / name
            place.mkdir(parents=True)
            for number in range(count):
                wave = 128 + 60 * np.sin(ramp * 0.8 + rng.uniform(0, 6))
                pixels = wave[..., None] + rng.normal(0, 25, (42, 42, 3))
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{number}.png")
    return folder / "backbone", folder / "data"


def test_the_probe_reads_the_backbone_as_it_is(places):
    backbone, data = places
    bench = Bench(backbone, data, 256, 1)
    assert tuple(bench.train.shape) == (60, 3, 42, 42)
    assert len(bench.test) == 30
    logits = bench.teacher(bench.test).detach()
    assert float((logits.argmax(1) == bench.labels).double().mean()) > 0.5
    features = features_of(bench.teacher, bench.test)
    torch.testing.assert_close(bench.teacher.answered(features).detach(), logits)
    assert features.shape == (30, 37, 64)


def test_a_refit_brings_the_features_back(places, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "record_path", lambda name: tmp_path / f"{name}.csv")
    backbone, data = map(str, places)
    out = tmp_path / "answers"
    ended = probes(backbone, data=data, ops=["relu_linear"], out=out, record=True)
    bare, refitted = ended.rows
    assert (bare.step, refitted.step) == ("bare", "refit")
    assert (bare.images, refitted.images) == (0, 60)
    assert bare.cosine < refitted.cosine <= 1
    assert refitted.stream < 0.8 * bare.stream
    assert refitted.share == pytest.approx(refitted.top1 / refitted.teacher_top1, abs=1e-3)
    assert (tmp_path / "recover_backbone.csv").read_text().count("\n") == 3
    with pytest.raises(UsageError, match="is there already"):
        probes(backbone, data=data, ops=["relu_linear"], out=out)
    again = probes(backbone, data=data, ops=["relu_linear"], out=out, resume=True)
    assert json.dumps(again.to_dict()) == json.dumps(ended.to_dict())
    with pytest.raises(UsageError, match="no step named 'refti'"):
        probes(backbone, data=data, steps=["refti"])
    distilled = probes(
        backbone, data=data, ops=["relu_linear"], steps=["distil"], epochs=1, out=tmp_path / "more"
    ).rows[0]
    assert distilled.images == 60
    assert distilled.stream < bare.stream
