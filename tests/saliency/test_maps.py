"""The maps against the paper's words, computed another way."""

import numpy as np
import pytest
import torch
from PIL import Image

from softless.attention import implied_matrix
from softless.errors import DataError, UsageError
from softless.layers import ClassAttention
from softless.models import create_model
from softless.saliency import explain

# 2 x 3 patches of 4 x 4
IMAGES = torch.rand(2, 3, 8, 12, generator=torch.Generator().manual_seed(1)) * 2 - 1


def layer_input(model, number):
    x = model.tokens(IMAGES)
    for block in model.blocks[:number]:
        x = x + 10 * block(x)
    return x


def by_hand(model, number, part, *, normalise=True):
    """Token norms with loops over images and channels, in numpy float64."""
    layer = model.blocks[number]
    with torch.no_grad():
        out = layer.qkv(layer_input(model, number)).double().numpy()
    maps = []
    for tokens in out:
        x = tokens[:, part * 16 : (part + 1) * 16]
        if normalise:
            x = x / np.abs(x).sum(0)
        norms = np.sqrt((x**2).sum(1))[1:].reshape(2, 3)
        maps.append((norms - norms.min()) / (norms.max() - norms.min()))
    return torch.tensor(np.stack(maps), dtype=torch.float32)


@pytest.mark.parametrize("number", [0, 1])
def test_maps_are_norms_of_the_normalised_queries_and_keys(make, number):
    model = make()
    maps = explain(model, IMAGES, layer=number)
    assert maps.grid == (2, 3)
    torch.testing.assert_close(maps.query, by_hand(model, number, 0), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(maps.key, by_hand(model, number, 1), atol=1e-5, rtol=1e-5)
    # else a swap of the two could not be seen
    assert not torch.allclose(maps.query, maps.key, atol=0.05)


def test_operators_that_leave_q_and_k_alone_show_raw_norms(make):
    model = make("softmax")
    maps = explain(model, IMAGES)
    assert not maps.normalised
    torch.testing.assert_close(
        maps.query, by_hand(model, 1, 0, normalise=False), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("name", ["sima", "sima_l2", "sima_none", "softmax"])
def test_class_row_is_the_first_row_of_the_attention_matrix(make, name):
    model = make(name).double()
    images = IMAGES.double()
    row = explain(model, images, layer=0).class_row
    with torch.no_grad():
        q, k, _ = model.blocks[0].project(model.tokens(images))
    expected = implied_matrix(q, k, op=name).mean(1)[:, 0, 1:].reshape(2, 2, 3)
    expected = expected / expected.abs().amax((1, 2), keepdim=True)
    assert row is not None
    torch.testing.assert_close(row, expected.float())
    assert bool((row < 0).any()) == (name != "softmax")  # signs survive, and softmax has none


def test_class_row_of_class_attention(make):
    """XCiT: the blocks see patches only; the row is the last class attention's, its norms over all
    tokens.
    """
    model = create_model("xcit_nano_12_p8_224", op="sima", num_classes=3).eval()
    for attention in (m for m in model.modules() if isinstance(m, ClassAttention)):
        torch.nn.init.normal_(attention.qkv.weight, std=0.2)
    image = torch.rand(1, 3, 32, 48)
    seen = []
    last = [m for m in model.modules() if isinstance(m, ClassAttention)][-1]
    hook = last.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    maps = explain(model, image)
    hook.remove()
    with torch.no_grad():
        q, k, _ = last.qkv(seen[0]).double().reshape(25, 3, 4, 32).permute(1, 2, 0, 3).numpy()
    q, k = (x / np.abs(x).sum(1, keepdims=True) for x in (q, k))
    row = np.einsum("hc,hnc->n", q[:, 0], k)[1:].reshape(4, 6)
    assert maps.class_row is not None
    assert maps.grid == (4, 6)
    torch.testing.assert_close(
        maps.class_row[0].double(), torch.tensor(row / np.abs(row).max()), atol=1e-5, rtol=1e-4
    )


def test_xca_has_maps_but_no_class_row(make):
    """Its matrix is over channels: there is no row of tokens to show."""
    maps = explain(make("xca"), IMAGES)
    assert maps.class_row is None
    assert maps.query.max() == 1


def test_last_layer_is_the_default(make):
    model = make()
    torch.testing.assert_close(explain(model, IMAGES).query, explain(model, IMAGES, layer=1).query)
    assert explain(model, IMAGES).caption == "sima, attention layer 2 of 2"


def test_no_class_row_without_a_class_token(make):
    assert explain(make(class_token=False), IMAGES).class_row is None


def test_model_is_left_as_it_was(make):
    model = make().train()
    explain(model, IMAGES)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_image_does_not_depend_on_its_neighbours(make):
    model = make()
    torch.testing.assert_close(explain(model, IMAGES).key[1], explain(model, IMAGES[1]).key[0])


def test_constant_map_is_zero_not_nan(make):
    maps = explain(make(), torch.zeros(1, 3, 8, 8))
    torch.testing.assert_close(maps.query, torch.zeros(1, 2, 2), atol=0, rtol=0)


def test_a_path_goes_through_the_transform(make, tmp_path):
    path = tmp_path / "a.png"
    Image.fromarray(np.full((8, 12), 30, np.uint8)).save(path)
    seen = []

    def transform(image):
        seen.append((image.size, image.mode))
        return IMAGES[0]

    torch.testing.assert_close(explain(make().eval(), path, transform=transform).grid, (2, 3))
    assert seen == [((12, 8), "RGB")]  # the model's channels, whatever the file holds


def test_unreadable_image_is_named(make, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"broken\.png"):
        explain(make(), tmp_path / "broken.png", transform=lambda _: IMAGES[0])


def test_misuse_is_one_sentence(make):
    with pytest.raises(UsageError, match="2 attention layers, 0 to 1"):
        explain(make(), IMAGES, layer=2)
    with pytest.raises(UsageError, match="no softless attention layer"):
        explain(torch.nn.Linear(2, 2), IMAGES)
    with pytest.raises(UsageError, match="for its class token alone"):  # CaiT swapped without force
        explain(torch.nn.Sequential(ClassAttention(8, 2)), IMAGES)
    with pytest.raises(UsageError, match=r"shape \(8, 12\)"):
        explain(make(), IMAGES[0, 0])
