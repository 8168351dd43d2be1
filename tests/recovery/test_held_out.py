"""What a recovery holds out: the same images in every step, and copies of none of them."""

import pytest
import timm
import torch

import softless
from softless.recovery.pictures import Gathered
from softless.recovery.recover import affordable


@pytest.mark.parametrize("labelled", [False, True])
def test_a_distillation_starts_where_the_refit_was_measured(tmp_path, labelled):
    """On the same held-out images, and with the same weights, both say the same."""
    torch.manual_seed(0)
    model = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=16,
        patch_size=4,
        embed_dim=32,
        depth=2,
        num_heads=2,
        num_classes=5,
        in_chans=1,
    ).eval()
    with torch.no_grad():
        model.get_parameter("head.weight").normal_(std=2.0)
    images = torch.randn(60, 1, 16, 16)
    labels = torch.randint(5, (60,)) if labelled else False
    ended = softless.recover(
        model,
        "relu_linear",
        images=images,
        labels=labels,
        steps=("refit", "distil"),
        epochs=1,
        seed=3,
        out=tmp_path / "run",
        progress=False,
    )
    told = ended.nearness["refit"]
    assert ended.distilled is not None
    assert ended.distilled.start["seen"] == 15
    assert ended.distilled.start["agreement"] == pytest.approx(told.agreement, abs=1e-6)
    assert ended.distilled.start["kl"] == pytest.approx(told.kl, rel=1e-3)


@pytest.mark.parametrize(("count", "views"), [(64, 4), (256, 4), (512, 2), (600, 1), (2000, 1)])
def test_many_images_need_no_copies(count, views):
    model = timm.create_model("test_vit", img_size=32)
    assert affordable(model, gathered(count)) == views


def test_a_large_model_makes_no_copies():
    """What takes seconds once would take minutes four times."""
    with torch.device("meta"):
        model = timm.create_model("vit_small_patch14_dinov2", img_size=70)
    assert affordable(model, gathered(256)) == 1


def gathered(count: int) -> Gathered:
    images = torch.zeros(count, 1, 4, 4).split(100)
    return Gathered(images, (), None, None, apart=False)
