"""Segmenters: logits of every pixel from any host at any size, no image seeing its batch mates, and
the papers' numbers of parameters.
"""

import sys
from typing import Any

import pytest
import torch
from torch import nn

from softless.errors import MissingExtra, UsageError
from softless.tasks.loaded import assemble
from softless.tasks.segmentation.model import Segmenter, segmenter

SMALL = {"embed_dim": 16, "depth": 4, "num_heads": 2}
PYRAMID = {"embed_dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "num_heads": (1, 1, 2, 2)}
HOSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "xcit16": ("xcit_tiny_12_p16_224", {**SMALL, "op": "sima"}),
    "xcit8": ("xcit_tiny_12_p8_224", {**SMALL, "op": "softmax"}),
    "vit": ("vit_tiny_patch16_224", {**SMALL, "op": "sima"}),
    "soft": ("soft_pyramid_tiny_224", {**PYRAMID, "op": "softnorm"}),
    "cvt": (
        "cvt_13_224",
        {"op": "sima", "depths": (1, 1, 1), "embed_dims": (16, 16, 32), "num_heads": (1, 1, 2)},
    ),
}
hosts = pytest.mark.parametrize("host", HOSTS)
decoders = pytest.mark.parametrize("decoder", ["upernet", "dpt"])


def made(host: str, decoder: str = "upernet", **further) -> Segmenter:
    torch.manual_seed(0)
    architecture, args = HOSTS[host]
    return segmenter(architecture, args, classes=3, decoder=decoder, width=16, **further)


@decoders
@hosts
def test_a_logit_for_each_class_and_pixel_at_any_size(host: str, decoder: str):
    model = made(host, decoder).eval()
    for height, width in ((64, 64), (70, 99), (33, 130), (20, 9)):
        logits = model(torch.randn(1, 3, height, width))
        assert logits.shape == (1, 3, height, width)
        assert logits.isfinite().all()


@decoders
@hosts
def test_every_parameter_learns(host: str, decoder: str):
    model = made(host, decoder)
    model(torch.randn(2, 3, 96, 64)).square().mean().backward()
    still = [
        name
        for name, one in model.named_parameters()
        if one.grad is None or not one.grad.abs().sum() > 0
    ]
    assert still == []


@decoders
def test_an_image_is_answered_alike_in_any_batch(decoder: str):
    model = made("xcit16", decoder).eval()
    images = torch.randn(3, 3, 64, 80)
    with torch.no_grad():
        assert torch.allclose(model(images)[1:2], model(images[1:2]), atol=1e-5)


@decoders
def test_decoders_have_no_batch_norm(decoder: str):
    """So that one image can be a batch; as many parameters as smp's own."""
    model = made("vit", decoder)
    kinds = {type(module) for part in (model.decoder, model.head) for module in part.modules()}
    assert nn.GroupNorm in kinds
    assert not any(issubclass(kind, nn.BatchNorm2d) for kind in kinds)
    model.train()
    assert model(torch.randn(1, 3, 32, 32)).isfinite().all()


def test_only_the_right_and_lower_edge_is_padded():
    model, seen = made("xcit16").eval(), []
    model.features.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    images = torch.randn(1, 3, 70, 99)
    model(images)
    (padded,) = seen
    assert padded.shape == (1, 3, 80, 112)
    assert torch.equal(padded[..., :70, :99], images)
    assert not padded[..., 70:, :].any()


def test_one_class_per_cell_comes_back_where_it_was():
    """The answer follows the image when it is moved by a whole cell: nothing is flipped or
    shifted.
    """
    model = made("vit", "dpt").eval()
    corner = torch.zeros(1, 3, 128, 128)
    corner[..., :32, 96:] = 1.0
    with torch.no_grad():
        change = (model(corner) - model(torch.zeros(1, 3, 128, 128))).abs().sum(1)[0]
    quarters = {
        (i, j): change[64 * i : 64 * i + 64, 64 * j : 64 * j + 64].mean().item()
        for i in range(2)
        for j in range(2)
    }
    assert max(quarters, key=quarters.__getitem__) == (0, 1)


def test_assembled_from_what_a_run_notes():
    head = {"classes": 2, "decoder": "dpt", "layers": [1, 2, 3, 4], "width": 8, "values": [0, 9]}
    model = assemble("segmentation", "xcit_tiny_12_p16_224", {"op": "sima", **SMALL}, head)
    assert isinstance(model, Segmenter)
    assert model.values == (0, 9)
    assert model.features.indices == [0, 1, 2, 3]
    assert model.host is model.features.host


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ({"decoder": "unet"}, "no decoder named 'unet'"),
        ({"width": 10}, "multiple of 4"),
        ({"values": (1, 2)}, "2 label values for 3 classes"),
        ({"layers": (1, 2, 3, 9)}, "four rising numbers"),
    ],
)
def test_what_cannot_be_built(args, said):
    with pytest.raises(UsageError, match=said):
        segmenter(*HOSTS["vit"], **{"classes": 3, "width": 16, **args})


@decoders
def test_a_missing_package_is_named(monkeypatch, decoder):
    monkeypatch.setitem(sys.modules, "segmentation_models_pytorch", None)
    with pytest.raises(MissingExtra, match=r"\[segment\]"):
        segmenter(*HOSTS["vit"], classes=3, decoder=decoder)


def test_less_is_kept_for_the_backward_pass():
    model = made("vit")
    model.set_grad_checkpointing()
    assert model.host.grad_checkpointing is True
    model(torch.randn(1, 3, 64, 64)).sum().backward()


@pytest.mark.parametrize(("size", "paper"), [("small", 54), ("medium", 76)])
def test_parameters_beside_the_papers(size: str, paper: int):
    """The README of normalised SOFT says 54M and 76M for UPerNet with 150 classes
    (53.3M and 75.0M here). mmsegmentation's has a second head in training: 3 x 3 to 256 channels
    with BatchNorm on stage 3, and 150 logits. With it the numbers are the paper's.
    """
    model = segmenter(f"softnorm_{size}_224", {}, classes=150, width=512)
    auxiliary = 9 * 256 * model.features.channels[2] + 2 * 256 + 256 * 150 + 150
    own = sum(one.numel() for one in model.parameters())
    assert round((own + auxiliary) / 1e6) == paper
    assert own < 1e6 * paper
