"""How large an image is for a model, what its training size was, and SimA's scale away from it."""

from typing import Any

import pytest
import timm
import torch

import softless
from softless.errors import UsageError
from softless.layers import Attention, ClassAttention
from softless.models.scale import (
    Foreign,
    Scale,
    farthest,
    foreign,
    queries,
    scale_of,
    set_token_scale,
    set_training_size,
    training_scale,
)
from softless.models.sizes import with_training_scale
from softless.tasks.detection.model import detector
from softless.tasks.segmentation.model import segmenter

create_model: Any = softless.create_model
TINY: dict[str, Any] = {"depth": 4, "num_classes": 3, "embed_dim": 32, "num_heads": 2}
CVT: dict[str, Any] = {
    "depths": (1, 1, 1),
    "embed_dims": (16, 32, 48),
    "num_heads": (1, 2, 3),
    "num_classes": 3,
}


def image(height: int, width: int) -> torch.Tensor:
    return torch.randn(1, 3, height, width, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    ("name", "arguments", "side"),
    [
        ("sima_deit_tiny_patch16_224", TINY, 16),
        ("sima_xcit_nano_12_p8_224", TINY, 8),
        ("sima_cvt_13_224", CVT, 4),
        ("pvt_v2_b0", {}, 4),
        ("vit_tiny_patch16_224", TINY, 16),
    ],
)
def test_tokens_of_an_image(name: str, arguments: dict[str, Any], side: int) -> None:
    assert scale_of(create_model(name, **arguments), 64, 90) == Scale(
        64, 90, (64 // side) * -(-90 // side)
    )


def test_a_model_without_attention_has_none() -> None:
    assert scale_of(timm.create_model("resnet18"), 64, 64) is None


def test_of_detectors_and_segmenters_the_host_counts() -> None:
    args = {**TINY, "op": "sima"}
    resizing = detector("xcit_nano_12_p16_224", args, classes=2, width=16, min_size=64, max_size=96)
    assert scale_of(resizing, 1280, 1280) == Scale(64, 64, 16)
    assert scale_of(resizing, 640, 1280) == Scale(48, 96, 18)
    plain = detector("xcit_nano_12_p16_224", args, classes=2, width=16, min_size=None)
    assert scale_of(plain, 1280, 1280) == Scale(1280, 1280, 6400)
    assert scale_of(segmenter("xcit_nano_12_p16_224", args, classes=2, width=16), 96, 64) == Scale(
        96, 64, 24
    )


def test_beyond_a_factor_of_four_either_way() -> None:
    model = create_model("sima_deit_tiny_patch16_224", **TINY)
    assert foreign(model, 2048, 2048) is None  # nobody said at which size it was trained
    set_training_size(model, 128, 128)
    assert training_scale(model) == Scale(128, 128, 64)
    for side in (64, 128, 256):
        assert foreign(model, side, side) is None
    large, small = foreign(model, 1024, 512), foreign(model, 48, 64)
    assert large == Foreign(Scale(1024, 512, 2048), Scale(128, 128, 64), rescales=True)
    assert small is not None
    assert (large.factor, small.factor) == (32, 12 / 64)
    assert str(large).startswith(
        "this image has 2,048 tokens (512 x 1,024 pixels), 32 times the 64 tokens (128 x 128 "
        "pixels) of the training."
    )
    assert "0.188 times the 64 tokens" in str(small)
    assert "--resize training" in large.advice()
    assert "--token-scale training" in large.advice()
    set_token_scale(model, "training")
    again = foreign(model, 1024, 512)
    assert again is not None
    assert "--token-scale" not in again.advice()  # it is set already
    assert farthest(model, [(128, 128), (512, 512), (1024, 1024)]).startswith(
        "2 of 3 images are far"
    )
    assert farthest(model, [(128, 128)]) == ""


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("sima_deit_tiny_patch16_224", TINY),
        ("sima_xcit_nano_12_p16_224", {**TINY, "eta": 1.0}),
        ("sima_cvt_13_224", CVT),
    ],
)
def test_the_scale_of_the_training_changes_nothing_there_and_keeps_the_branch_elsewhere(
    name: str, arguments: dict[str, Any]
) -> None:
    model = create_model(name, **arguments).eval()
    set_training_size(model, 64, 96)
    last = [m for m in model.modules() if isinstance(m, Attention)][-1]
    sizes: list[float] = []
    last.register_forward_hook(
        lambda _, __, out: sizes.append(float((out - last.proj.bias).square().mean().sqrt()))
    )
    small, large = image(64, 96), image(64, 96).repeat(1, 1, 4, 4)
    with torch.no_grad():
        before = model(small)
        model(large)
        set_token_scale(model, "training")
        torch.testing.assert_close(model(small), before)
        model(large)
    assert sizes[1] / sizes[0] < 0.15  # sixteen times the tokens
    assert 0.5 < sizes[3] / sizes[0] < 2


def test_queries_are_counted_layer_by_layer() -> None:
    vit, cvt = (
        create_model("sima_deit_tiny_patch16_224", **TINY).train(),
        create_model("sima_cvt_13_224", **CVT),
    )
    xcit = create_model("sima_xcit_nano_12_p16_224", **TINY)
    assert set(queries(vit, 64, 96).values()) == {25}
    assert list(queries(cvt, 64, 96).values()) == [16 * 24, 8 * 12, 4 * 6 + 1]
    counted = queries(xcit, 64, 96)
    assert set(counted.values()) == {24}
    assert any(isinstance(one, ClassAttention) for one in counted)
    assert vit.training
    assert not any(module._forward_pre_hooks for module in vit.modules())


def test_scales_that_do_not_fit_are_refused() -> None:
    model = create_model("sima_deit_tiny_patch16_224", **TINY)
    with pytest.raises(UsageError, match="does not know at which size it was trained"):
        set_token_scale(model, "training")
    with pytest.raises(UsageError, match="token_scale='many' is not"):
        set_token_scale(model, "many")
    with pytest.raises(UsageError, match="it is an option of operator 'sima'"):
        set_token_scale(create_model("seqnorm_deit_tiny_patch16_224", **TINY), "tokens")


def test_a_published_folder_says_the_size(tmp_path: Any) -> None:
    model = create_model("sima_deit_tiny_patch16_224", img_size=64, **TINY)
    softless.save_weights(model, tmp_path / "model")
    again = create_model(f"local-dir:{tmp_path / 'model'}", pretrained=True, img_size=128)
    assert training_scale(again) == Scale(64, 64, 16)
    # its weights are new
    assert training_scale(create_model(f"local-dir:{tmp_path / 'model'}")) is None
    packed = softless.optimize(again, torch.float32)
    assert training_scale(packed) == Scale(64, 64, 16)


def test_training_as_a_scale_is_the_tokens_at_that_size(caplog: pytest.LogCaptureFixture) -> None:
    args = {**TINY, "img_size": 96, "token_scale": "training"}
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert with_training_scale("sima_deit_tiny_patch16_224", args, 96)["token_scale"] == 37
    assert torch.equal(torch.get_rng_state(), before)  # the weights to come are the same ones
    assert (
        with_training_scale("xcit_nano_12_p8_224", {**args, "op": "sima"}, 56)["token_scale"] == 49
    )
    assert (
        with_training_scale("xcit_nano_12_p8_224", {**args, "token_scale": "tokens"}, 56)[
            "token_scale"
        ]
        == "tokens"
    )
    assert "token_scale" not in with_training_scale(
        "xcit_nano_12_p8_224", {**args, "op": "xca"}, 56
    )
    assert "token_scale=training is left out" in caplog.text
    with pytest.raises(UsageError, match="see 26, 100, 400 tokens, and one number"):
        with_training_scale("sima_cvt_13_224", {**CVT, "token_scale": "training"}, 80)
