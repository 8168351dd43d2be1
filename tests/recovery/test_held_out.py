"""What a recovery holds out: the same images in every step."""

import pytest
import timm
import torch

import softless


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
        model.head.weight.normal_(std=2.0)
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
