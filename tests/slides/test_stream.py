"""What `softless.stream` answers is what the model answers, whatever the chunks, the host and the
operator.
"""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch import nn

import softless
from softless import PrecisionError, UsageError
from softless.errors import CheckpointError
from softless.slides import engine, stream
from tests.models.lively import lively, zeroed
from tests.slides.models import SIZE, STREAMED, VIT, answer, apart, image, swapped, vit, xcit

HOSTS: dict[str, Any] = {
    "average pooling": lambda: vit(global_pool="avg"),
    "average with prefix tokens": lambda: vit(global_pool="avg", pool_include_prefix=True),
    "no class token": lambda: vit(class_token=False, global_pool="avg"),
    "registers": lambda: vit(reg_tokens=3),
    "positions on patches alone": lambda: vit(reg_tokens=2, no_embed_class=True),
    "layer scale": lambda: vit(init_values=0.5),
    "norm of q and k": lambda: vit(qk_norm=True),
    "norm ahead of the projection": lambda: vit(scale_attn_norm=True),
    "norm ahead of the blocks": lambda: vit(pre_norm=True),
    "one head": lambda: vit(num_heads=1),
    "gate": lambda: lively(
        timm.create_model(
            VIT,
            attn_layer=softless.SimA.with_options(gated=True),
            depth=2,
            num_classes=7,
            img_size=SIZE,
        ),
        image(),
    ),
    "linear gate": lambda: vit("inline", gated="linear"),
    "rotary positions": lambda: vit("relu_linear", rotary=True),
    "rotary positions with registers": lambda: vit(reg_tokens=3, rotary=True),
    "MALA turned": lambda: vit("mala", rotate=True),
    "token scale": lambda: vit(token_scale="tokens"),
    "positions enlarged": lambda: vit(img_size=96),
    "positions shrunk": lambda: vit(img_size=384),
    "distilled": lambda: swapped("deit_tiny_distilled_patch16_224", dynamic_img_size=True),
    "swapped": lambda: swapped("deit_tiny_patch16_224", img_size=SIZE),
    "swapped XCiT": lambda: swapped("xcit_nano_12_p16_224"),
    "XCiT": xcit,
    "XCiT without LPI": lambda: xcit(lpi=False),
    "XCiT by average": lambda: xcit(global_pool="avg"),
    "XCiT of patch 8": lambda: lively(
        softless.create_model("xcit_nano_12_p8_224", op="sima", depth=1, num_classes=7), image()
    ),
    "XCiT with softmax class attention": lambda: xcit("xca"),
    "XCiT with a grid": lambda: xcit("soft"),
    "XCiT, all tokens normed": lambda: xcit(tokens_norm=True, token_scale="tokens"),
}


@pytest.mark.parametrize("op", STREAMED)
def test_every_operator_answers_as_the_whole_does(op: str) -> None:
    _same(vit(op))


@pytest.mark.parametrize("host", HOSTS)
def test_every_host_answers_as_the_whole_does(host: str) -> None:
    _same(HOSTS[host]())


def _same(model: nn.Module) -> None:
    """Logits, features, tokens and maps; and without its attention the model answers something
    else.
    """
    whole = answer(model, image())
    with torch.no_grad():
        tokens = model.forward_features(image())[0]  # type: ignore[operator]
    found = stream(model, image(), chunk=23, tokens=True)
    assert apart(found.logits, whole) < 1e-5
    assert found.tokens is not None
    # XCiT's class token stands apart
    assert apart(found.tokens, tokens[-len(found.tokens) :]) < 1e-5
    maps = softless.explain(model, image())
    assert found.saliency is not None
    for name in ("query", "key", "class_row"):
        ours, theirs = getattr(found.saliency, name), getattr(maps, name)
        assert (ours is None) == (theirs is None), name
        assert theirs is None or apart(ours, theirs) < 1e-5, name
    assert (
        found.saliency.operator,
        found.saliency.layer,
        found.saliency.layers,
        found.saliency.normalised,
    ) == (
        maps.operator,
        maps.layer,
        maps.layers,
        maps.normalised,
    )
    with torch.no_grad():
        assert (
            apart(
                found.features,
                model.forward_head(model.forward_features(image()), pre_logits=True),  # type: ignore[operator]
            )
            < 1e-5
        )
    assert apart(stream(zeroed(model), image(), chunk=23).logits, whole) > 0.05


OPTIMIZED = {
    **{
        name: HOSTS[name]
        for name in (
            "average pooling",
            "registers",
            "layer scale",
            "norm of q and k",
            "norm ahead of the projection",
            "gate",
            "token scale",
            "distilled",
            "swapped XCiT",
            "XCiT by average",
            "XCiT with softmax class attention",
            "XCiT with a grid",
        )
    },
    "plain": vit,
    "seqnorm": lambda: vit("seqnorm"),
    "two sweeps": lambda: vit("efficient"),
    "XCiT with an activation that oneDNN does not know": lambda: xcit(act="silu"),
}


@pytest.mark.parametrize("host", OPTIMIZED)
def test_an_optimized_model_answers_as_the_plain_one_does(host: str) -> None:
    plain = OPTIMIZED[host]()
    fast = softless.optimize(plain, torch.float32)
    mask = torch.rand(10, 11, generator=torch.Generator().manual_seed(2)) > 0.4
    for counts in (None, mask):
        wanted, found = (
            stream(model, image(), chunk=23, mask=counts, tokens=True) for model in (plain, fast)
        )
        assert apart(found.logits, wanted.logits) < 1e-5
        assert apart(found.tokens, wanted.tokens) < 1e-5  # type: ignore[arg-type]
        for name in ("query", "key", "class_row"):
            ours, theirs = getattr(found.saliency, name), getattr(wanted.saliency, name)
            assert (ours is None) == (theirs is None), name
            assert theirs is None or apart(ours, theirs) < 1e-5, name
    assert apart(stream(fast, image(), chunk=23).logits, fast(image())) < 1e-5
    assert apart(stream(zeroed(plain), image(), chunk=23).logits, wanted.logits) > 0.05


def test_an_optimized_model_goes_on_in_its_folder_and_no_other_does(tmp_path: Path) -> None:
    plain = vit()
    fast, other = softless.optimize(plain), softless.optimize(vit(num_classes=8))
    with torch.no_grad():
        plain.blocks[1].mlp.fc2.weight[0, 0] += 1  # type: ignore[union-attr, index]
    found = stream(fast, image(), chunk=23, store=tmp_path)
    assert torch.equal(stream(fast, image(), chunk=23, store=tmp_path).logits, found.logits)
    for model in (other, softless.optimize(plain)):
        with pytest.raises(CheckpointError, match="model"):
            stream(model, image(), chunk=23, store=tmp_path)


@pytest.mark.parametrize(
    "make",
    [vit, lambda: vit("seqnorm"), xcit, lambda: xcit("xca", lpi=False)],
    ids=["vit", "seqnorm", "xcit", "xca"],
)
def test_the_size_of_the_chunks_does_not_show(make: Any) -> None:
    model = make()
    whole = stream(model, image(), chunk=1000)
    for chunk in (1, 7, 64):
        assert apart(stream(model, image(), chunk=chunk).logits, whole.logits) < 1e-6


@pytest.mark.parametrize("op", ["sima", "efficient", "seqnorm", "nystrom", "cosformer"])
def test_the_order_of_the_chunks_does_not_show(op: str) -> None:
    def shuffled(count: int) -> list[int]:
        return random.Random(3).sample(range(count), count)

    model = vit(op)
    assert (
        apart(
            stream(model, image(), chunk=9, order=shuffled).logits,
            stream(model, image(), chunk=9).logits,
        )
        < 1e-6
    )


@pytest.mark.soak
def test_a_deit_small_sees_a_crop_of_a_slide_as_the_whole_does(data_root: Path) -> None:
    """The issue's own sizes: 2,048 pixels a side, 12 layers of width 384, float32. token_scale
    keeps the attention as strong as on the small image it was scaled on.
    """
    openslide = pytest.importorskip("openslide")
    torch.set_num_threads(2)
    slide = openslide.OpenSlide(str(data_root / "cmu_wsi" / "CMU-1-Small-Region.svs"))
    pixels = np.asarray(slide.read_region((0, 0), 0, (2048, 2048)).convert("RGB"))
    crop = (torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None] / 255 - 0.5) / 0.5
    model = softless.create_model("deit_small_patch16_224", op="sima", token_scale="tokens")
    lively(model, crop[..., 512:736, 512:736])
    whole = answer(model, crop)
    given: dict[str, Any] = {"mean": (0.5,) * 3, "std": (0.5,) * 3, "saliency": False}
    found = stream(model, pixels, **given).logits
    assert apart(found, whole) < 1e-5
    for how in ({"chunk": 700}, {"chunk": 5000}, {"order": lambda count: range(count - 1, -1, -1)}):
        assert apart(stream(model, pixels, **given, **how).logits, found) < 1e-6
    assert (
        apart(stream(softless.optimize(model, torch.float32), pixels, **given).logits, whole) < 1e-5
    )
    assert apart(answer(zeroed(model), crop), whole) > 0.05


def test_masked_patches_are_removed() -> None:
    """The model takes a mask of keys; a streamed answer under a mask of patches is the same,
    whatever those patches hold.
    """
    model = vit()
    mask = torch.rand(10, 11, generator=torch.Generator().manual_seed(2)) > 0.4
    with torch.no_grad():
        tokens = torch.cat([torch.ones(1, dtype=torch.bool), mask.flatten()])
        wanted = model(image(), attn_mask=tokens[None, None, None])
    other = torch.where(
        mask.repeat_interleave(16, 0).repeat_interleave(16, 1), image(), torch.tensor(9.0)
    )
    for pixels in (image(), other):
        found = stream(model, pixels, chunk=23, mask=mask)
        assert apart(found.logits, wanted) < 1e-5
        assert found.counted == int(mask.sum()) + 1
    assert found.saliency is not None
    assert float(found.saliency.query[0][~mask].max()) == 0


def test_the_mean_is_that_of_the_patches_that_count() -> None:
    model: Any = vit(global_pool="avg", fc_norm=False)  # a norm of the mean would not see its size
    mask = torch.rand(10, 11, generator=torch.Generator().manual_seed(2)) > 0.4
    with torch.no_grad():
        told = torch.cat([torch.ones(1, dtype=torch.bool), mask.flatten()])
        tokens = model.forward_features(image(), attn_mask=told[None, None, None])[:, 1:]
        wanted = model.head(tokens[:, mask.flatten()].mean(1))
    assert apart(stream(model, image(), chunk=23, mask=mask).logits, wanted) < 1e-5


@pytest.mark.parametrize("op", STREAMED)
def test_a_mask_of_every_second_column_is_the_same_for_every_chunk(op: str) -> None:
    mask = torch.ones(10, 11, dtype=torch.bool)
    mask[:, 3:6] = False
    model = vit(op)
    results = [stream(model, image(), chunk=chunk, mask=mask).logits for chunk in (17, 1000)]
    assert apart(results[0], results[1]) < 1e-6
    assert apart(results[0], stream(model, image(), chunk=17).logits) > 1e-3


def test_local_patch_interaction_does_not_see_masked_patches() -> None:
    """Masked columns at the right of an image are as if the image ended ahead of them, in both
    convolutions.
    """
    model = xcit("sima", use_pos_embed=False)
    mask = torch.ones(10, 11, dtype=torch.bool)
    mask[:, 8:] = False
    wanted = answer(model, image()[..., : 8 * 16])
    assert apart(stream(model, image(), chunk=23, mask=mask).logits, wanted) < 1e-5


@pytest.mark.parametrize(
    "make", [lambda: vit(global_pool="avg"), vit, xcit], ids=["mean", "class token", "xcit"]
)
def test_no_patch_counts(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(engine, "notice", said.append)
    found = stream(make(), image(), chunk=23, mask=np.zeros((10, 11), dtype=bool))
    assert said == ["tensor: no patch counts, so the answer says nothing of the image"]
    assert found.logits.isfinite().all()
    assert found.saliency is not None
    assert float(found.saliency.query.abs().sum()) == 0


@pytest.mark.parametrize("size", [(16, 16), (16, 1600), (170, 90), (33, 47)])
@pytest.mark.parametrize("make", [vit, xcit], ids=["vit", "xcit"])
def test_a_blank_image_of_any_size_has_an_answer(make: Any, size: tuple[int, int]) -> None:
    found = stream(make(), np.full((*size, 3), 255, dtype=np.uint8), chunk=23)
    assert found.logits.isfinite().all()
    assert found.size == size
    assert found.grid == (-(-size[0] // 16), -(-size[1] // 16))


def test_bfloat16_is_as_near_as_the_model_itself() -> None:
    model: Any = vit()
    with torch.no_grad():
        exact = model.forward_features(image())[0]
        model.bfloat16()
        plain = apart(model.forward_features(image().bfloat16())[0].float(), exact)
    for one in (model, softless.optimize(model)):
        tokens = stream(one, image(), chunk=23, tokens=True).tokens
        assert tokens is not None
        assert apart(tokens.float(), exact) < 1.2 * plain


def test_an_array_and_a_file_are_normalised_and_filled_up_with_the_mean_colour(
    tmp_path: Any,
) -> None:
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

    values = np.random.default_rng(4).integers(0, 256, (150, 170, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "image.png")
    scaled = (
        torch.from_numpy(values).permute(2, 0, 1) / 255
        - torch.tensor(IMAGENET_DEFAULT_MEAN)[:, None, None]
    ) / torch.tensor(IMAGENET_DEFAULT_STD)[:, None, None]
    padded = torch.nn.functional.pad(scaled, (0, 6, 0, 10))[None]
    for make in (vit, xcit):
        model = make()
        wanted = answer(model, padded)
        for given in (values, tmp_path / "image.png"):
            assert apart(stream(model, given, chunk=23).logits, wanted) < 1e-5


def test_the_model_is_left_as_it_was() -> None:
    model = vit().train()
    stream(model, image(), chunk=23)
    assert model.training


def refused() -> dict[str, tuple[Any, str]]:
    hooked = vit()
    hooked.blocks[1].attn.register_forward_hook(lambda *_: None)  # type: ignore[union-attr, index]
    from timm.models.vision_transformer import ResPostBlock

    return {
        "softmax": (vit("softmax"), "cannot be streamed: each query weighs"),
        "hooks": (hooked, r"blocks.1.attn has hooks"),
        "blocks": (vit(block_fn=ResPostBlock), "ResPostBlock"),
        "pooling": (vit(global_pool="map"), "global_pool='map'"),
        "convolution": (vit(v_conv=3), "has v_conv"),
        "no softless attention": (
            timm.create_model("deit_tiny_patch16_224", depth=1),
            "only softless attention",
        ),
        "another host": (nn.Linear(2, 2), "Linear cannot be streamed"),
        "published inverse": (vit("soft", parity=True), "published inverse"),
    }


@pytest.mark.parametrize(
    "case",
    [
        "softmax",
        "hooks",
        "blocks",
        "pooling",
        "convolution",
        "no softless attention",
        "another host",
        "published inverse",
    ],
)
def test_what_cannot_be_honoured_is_refused(case: str) -> None:
    model, sentence = refused()[case]
    with pytest.raises(UsageError, match=sentence):
        stream(model, image())


@pytest.mark.parametrize(
    "path", ["blocks.0.attn.proj", "blocks.1.mlp.fc1", "patch_embed.proj", "norm", ""]
)
@pytest.mark.parametrize("kind", ["forward_hook", "forward_pre_hook"])
def test_a_hook_anywhere_is_refused(path: str, kind: str) -> None:
    """The matrix of a projection is taken without calling it: a hook there would be passed by in
    silence.
    """
    model = vit()
    getattr(model.get_submodule(path), f"register_{kind}")(lambda *_: None)
    with pytest.raises(UsageError, match=rf"^{path or 'ViT|VisionTransformer'}.* has hooks"):
        stream(model, image())


def test_sizes_are_refused_as_the_model_refuses_them() -> None:
    with pytest.raises(UsageError, match="multiples of 16"):
        stream(vit(), image((150, 176)))
    with pytest.raises(UsageError, match="takes 160 x 176 alone"):
        stream(swapped("deit_tiny_patch16_224", img_size=SIZE), image((176, 160)))
    with pytest.raises(PrecisionError, match="float16"):
        stream(vit().half(), image())
    with pytest.raises(UsageError, match="mask has shape"):
        stream(vit(), image(), mask=np.ones((3, 3), dtype=bool))
    with pytest.raises(UsageError, match="one image"):
        stream(vit(), image().repeat(2, 1, 1, 1))
    with pytest.raises(UsageError, match="order= is for runs in memory"):
        stream(vit(), image(), order=range, store="run")
    with pytest.raises(UsageError, match="at least one token"):
        stream(vit(), image(), chunk=0)
    with pytest.raises(UsageError, match="give bytes"):
        stream(vit(), np.zeros((32, 32, 3)))


def test_no_chunk_is_larger_than_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """No step of the attention sees more tokens at once: the memory beside the residual stream is
    bounded by the chunk.
    """
    from softless.layers import Attention

    seen: list[int] = []
    project = Attention.project

    def projecting(self: Attention, x: torch.Tensor) -> Any:
        seen.append(x.shape[1])
        return project(self, x)

    monkeypatch.setattr(Attention, "project", projecting)
    model = vit("efficient")
    seen.clear()
    stream(model, image(), chunk=23)
    assert max(seen) == 23
