"""Four maps at strides 4, 8, 16 and 32 from hosts of one grid and from pyramids."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from softless.errors import UsageError
from softless.models.features import Features, adapter, pad
from softless.models.state import fill

SMALL_XCIT = {"op": "sima", "embed_dim": 32, "depth": 6, "num_heads": 2}
SMALL_VIT = {"op": "sima", "embed_dim": 32, "depth": 4, "num_heads": 2, "dynamic_img_size": True}
HOSTS: dict[str, dict[str, Any]] = {
    "xcit_tiny_12_p16_224": SMALL_XCIT,
    "xcit_tiny_12_p8_224": SMALL_XCIT,
    "deit_tiny_patch16_224": SMALL_VIT,
    "soft_pyramid_tiny_224": {"op": "softnorm"},
    "cvt_13_224": {"op": "sima"},
    "pvt_v2_b0": {},
}


@pytest.mark.parametrize("name", HOSTS)
def test_four_strides_of_an_image_that_is_not_square_and_no_parameter_without_gradient(name: str):
    features = Features(name, HOSTS[name])
    maps = features(torch.randn(2, 3, 64, 96))
    assert [tuple(map_.shape) for map_ in maps] == [
        (2, width, 64 // stride, 96 // stride)
        for width, stride in zip(features.channels, (4, 8, 16, 32), strict=True)
    ]
    torch.stack([map_.square().sum() for map_ in maps]).sum().backward()
    assert [key for key, parameter in features.named_parameters() if parameter.grad is None] == []


def test_layers_are_the_papers_and_can_be_chosen():
    """SimA 4.2: layers 4, 6, 8 and 12 of 12."""
    assert Features(
        "xcit_nano_12_p16_224", {"op": "sima", "embed_dim": 32, "num_heads": 2}
    ).indices == [3, 5, 7, 11]
    chosen = Features("xcit_tiny_12_p16_224", SMALL_XCIT, layers=(1, 2, 3, 5))
    assert chosen.indices == [0, 1, 2, 4]
    assert len(chosen.host.blocks) == 5, "what lies behind the last layer is not computed"


def test_the_adapters_of_patch_16():
    """El-Nouby et al.: two transposed convolutions with BN and GELU between, one, identity,
    max-pool.
    """
    kinds = [
        [type(layer) for layer in adapter(8, 16, stride, nn.GELU).children()]
        for stride in (4, 8, 16, 32)
    ]
    up = nn.ConvTranspose2d
    assert kinds == [[up, nn.BatchNorm2d, nn.GELU, up], [up], [], [nn.MaxPool2d]]


def test_padding_adds_zeros_behind_and_only_where_needed():
    image = torch.ones(1, 3, 30, 33)
    padded = pad(image, 16)
    assert padded.shape == (1, 3, 32, 48)
    assert torch.equal(padded[..., :30, :33], image)
    assert padded.sum() == image.sum()
    assert pad(padded, 16) is padded


@pytest.mark.parametrize(
    ("name", "options", "layers", "words"),
    [
        ("xcit_tiny_12_p16_224", SMALL_XCIT, (1, 2, 3), "four rising numbers of the 6 layers"),
        ("xcit_tiny_12_p16_224", SMALL_XCIT, (1, 2, 3, 7), "four rising numbers of the 6 layers"),
        ("xcit_tiny_12_p16_224", {**SMALL_XCIT, "depth": 2}, None, "has 2 layers"),
        ("soft_pyramid_tiny_224", {"op": "softnorm"}, (1, 2, 3, 4), "stages of its own"),
    ],
)
def test_what_gives_no_four_maps_is_refused(
    name: str, options: dict, layers: tuple | None, words: str
):
    with pytest.raises(UsageError, match=words):
        Features(name, options, layers)


def test_a_class_token_that_no_map_needs_comes_and_goes_with_timm(monkeypatch: pytest.MonkeyPatch):
    """timm 1.0.30 keeps XCiT's when it prunes, 1.0.31 does not: a run of either opens under
    either.
    """
    from timm.models.xcit import Xcit

    usual = Xcit.prune_intermediate_layers
    new = Features("xcit_tiny_12_p16_224", SMALL_XCIT)

    def leaves_the_token(self: Any, *arguments: Any, **options: Any) -> Any:
        token = self.cls_token
        found = usual(self, *arguments, **options)
        self.cls_token = token
        return found

    monkeypatch.setattr(Xcit, "prune_intermediate_layers", leaves_the_token)
    old = Features("xcit_tiny_12_p16_224", SMALL_XCIT)
    assert set(old.state_dict()) == set(new.state_dict())
    of_old = {**new.state_dict(), "host.cls_token": torch.zeros(1, 1, 32)}
    fill(old, of_old, Path("run"))
    assert torch.equal(
        old.host.patch_embed.proj[0][0].weight, new.host.patch_embed.proj[0][0].weight
    )
    with pytest.raises(UsageError, match=r"host\.norm\.weight is unknown"):
        fill(old, {**of_old, "host.norm.weight": torch.ones(32)}, Path("run"))
