"""Which features of which host are frozen: their widths and where they come from."""

from typing import Any

import pytest
import torch

from softless import models
from softless.data import ArraySamples, eval_loader, eval_transform
from softless.errors import DivergedError
from softless.evaluation.features import extract, layers, output


def create_model(*args: Any, **kwargs: Any) -> Any:
    return models.create_model(*args, **kwargs)


IMAGES = torch.randn(2, 3, 32, 32)
XCIT: dict[str, Any] = {"img_size": 32, "embed_dim": 16, "depth": 3, "num_heads": 2}
VIT: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 5, "num_heads": 2}


@pytest.mark.parametrize("op", ["sima", "xca", None])
def test_an_xcit_gives_four_widths(op):
    """Class tokens of the last two class-attention layers, then means of the tokens of the last two
    blocks, each normalised.
    """
    model = create_model("xcit_nano_12_p8_224", op=op, num_classes=7, **XCIT).eval()
    with torch.no_grad():
        found = layers(model, IMAGES)
        assert found.shape == (2, 4 * 16)
        tokens = model.forward_intermediates(
            IMAGES, indices=[1, 2], norm=True, intermediates_only=True
        )
        whole = model.forward_features(IMAGES)
    torch.testing.assert_close(found[:, 16:32], whole[:, 0], msg="the last class token")
    torch.testing.assert_close(
        found[:, 32:], torch.cat([part.mean((2, 3)) for part in tokens], dim=1)
    )
    assert not torch.allclose(found[:, :16], found[:, 16:32])
    assert not model.blocks[-1]._forward_hooks


def test_an_xcit_of_one_class_layer_gives_what_it_has():
    model = create_model(
        "xcit_nano_12_p8_224", op="sima", num_classes=0, cls_attn_layers=1, **XCIT
    ).eval()
    assert layers(model, IMAGES).shape == (2, 3 * 16)


@pytest.mark.parametrize("op", ["sima", None])
def test_a_vit_gives_class_tokens_of_four_blocks(op):
    model = create_model("vit_tiny_patch16_224", op=op, num_classes=3, **VIT).eval()
    with torch.no_grad():
        found = layers(model, IMAGES)
        assert found.shape == (2, 4 * 16)
        torch.testing.assert_close(found[:, -16:], model.forward_features(IMAGES)[:, 0])
    shallow = create_model(
        "vit_tiny_patch16_224", op=op, num_classes=3, **{**VIT, "depth": 2}
    ).eval()
    assert layers(shallow, IMAGES).shape == (2, 2 * 16)


@pytest.mark.parametrize("name", ["soft_tiny_224", "resnet18"])
def test_others_give_what_their_head_takes(name):
    model = create_model(name, num_classes=0).eval()
    with torch.no_grad():
        expected = model(IMAGES)
        torch.testing.assert_close(layers(model, IMAGES), expected)
        torch.testing.assert_close(output(model, IMAGES), expected)


def test_the_output_of_a_classifier_is_what_its_head_takes():
    model = create_model("xcit_nano_12_p8_224", op="sima", num_classes=7, **XCIT).eval()
    with torch.no_grad():
        torch.testing.assert_close(model.head(output(model, IMAGES)), model(IMAGES))


def test_extraction_keeps_order_and_mode_and_refuses_what_is_not_finite():
    model = create_model("vit_tiny_patch16_224", num_classes=3, in_chans=1, **VIT)
    pixels = torch.randint(0, 255, (7, 32, 32), dtype=torch.uint8).numpy()
    samples = ArraySamples(pixels, torch.arange(7).numpy() % 3, 1)
    transform = eval_transform(32, 1.0, "bicubic", (0.5,), (0.25,), 1)
    features, targets = extract(model, eval_loader(samples, transform, batch=3))
    assert model.training
    assert targets.tolist() == [0, 1, 2, 0, 1, 2, 0]
    alone, _ = extract(model, eval_loader(samples.take([4]), transform, batch=3))
    torch.testing.assert_close(features[4:5], alone)
    with torch.no_grad():
        model.norm.weight.fill_(torch.inf)
    with pytest.raises(DivergedError, match="features of 7 of 7 images are not finite"):
        extract(model, eval_loader(samples, transform, batch=3))
