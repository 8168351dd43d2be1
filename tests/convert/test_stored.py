"""A model whose attention was exchanged is saved and comes back: the same answers to the bit."""

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import softless
from softless import DataError, UsageError
from softless.convert.modules import Gained
from softless.layers import Attention
from tests.attention.outside import linear
from tests.models.lively import lively
from tests.registered import registered

create_model: Any = softless.create_model
SMALL: dict[str, Any] = {"depth": 3, "embed_dim": 48, "num_heads": 3, "num_classes": 5}
VIT = "vit_tiny_patch16_224"
DINO = "vit_small_patch14_reg4_dinov2"
PVT: dict[str, Any] = {"depths": (1, 1, 2, 1), "num_classes": 5}

# host, its arguments, the swap, height and width of the images
CASES: dict[str, tuple[str, dict[str, Any], dict[str, Any], tuple[int, int]]] = {
    "vit": (VIT, {**SMALL, "img_size": 32}, {"op": "sima"}, (32, 32)),
    "vit, some layers, token scale": (
        VIT,
        {**SMALL, "img_size": (32, 48), "in_chans": 1},
        {"op": "sima", "layers": ("blocks.[02].*",), "token_scale": "tokens", "order": "channels"},
        (32, 48),
    ),
    "vit, a number as token scale": (
        VIT,
        {**SMALL, "img_size": 32, "act": "relu"},
        {"op": "sima", "layers": "blocks.1.attn", "token_scale": 196},
        (32, 32),
    ),
    "vit of any size, soft of pools": (
        VIT,
        {
            **SMALL,
            "img_size": 64,
            "dynamic_img_size": True,
            "class_token": False,
            "global_pool": "avg",
        },
        {"op": "soft", "ratio": 1},
        (32, 80),
    ),
    "soft with its convolution": (
        VIT,
        {**SMALL, "img_size": 64},
        {"op": "soft", "sampling": "conv", "ratio": 2},
        (64, 64),
    ),
    "softnorm": (VIT, {**SMALL, "img_size": 64}, {"op": "softnorm", "inverse": "newton"}, (64, 64)),
    "performer": (
        VIT,
        {**SMALL, "img_size": 32},
        {"op": "performer", "features": 7, "kind": "relu"},
        (32, 32),
    ),
    "linformer": (VIT, {**SMALL, "img_size": 48}, {"op": "linformer", "projected": 6}, (48, 48)),
    "nystrom": (
        VIT,
        {**SMALL, "img_size": 64},
        {"op": "nystrom", "pooling": "grid", "ratio": 2},
        (64, 64),
    ),
    "cosformer2d": (VIT, {**SMALL, "img_size": (48, 32)}, {"op": "cosformer2d"}, (48, 32)),
    "softmax": (VIT, {**SMALL, "img_size": 32}, {"op": "softmax", "scale": 0.5}, (32, 32)),
    "deit, distilled": (
        "deit_tiny_distilled_patch16_224",
        {**SMALL, "img_size": 32},
        {"op": "seqnorm"},
        (32, 32),
    ),
    "dinov2 with registers": (
        DINO,
        {**SMALL, "img_size": (28, 42), "init_values": 0.1, "patch_size": 14},
        {"op": "relu_linear", "layers": ["blocks.0.attn", "blocks.2.attn"]},
        (28, 42),
    ),
    "dinov2, a grid": (
        DINO,
        {**SMALL, "img_size": 28},
        {"op": "soft", "ratio": 1, "sampling": "pool"},
        (28, 28),
    ),
    "eva": (
        "eva02_tiny_patch14_224",
        {"depth": 2, "img_size": (28, 42), "num_classes": 5},
        {"op": "sima", "token_scale": "tokens"},
        (28, 42),
    ),
    "dinov3": (
        "vit_small_patch16_dinov3",
        {"depth": 2, "embed_dim": 96, "num_heads": 3, "img_size": 64, "num_classes": 5},
        {"op": "efficient"},
        (64, 64),
    ),
    "beit": (
        "beit_base_patch16_224",
        {**SMALL, "img_size": 32},
        {"op": "sima", "force": "blocks.[01].*"},
        (32, 32),
    ),
    "xcit": (
        "xcit_nano_12_p16_224",
        {"depth": 2, "num_classes": 5},
        {"op": "soft", "ratio": 2},
        (64, 96),
    ),
    "cait": (
        "cait_xxs24_224",
        {"depth": 2, "img_size": 32, "num_classes": 5},
        {"op": "sima", "force": "blocks.1.*"},
        (32, 32),
    ),
    "pvt": ("pvt_v2_b0", PVT, {"op": "sima", "token_scale": "tokens"}, (64, 96)),
    "pvt, linear": ("pvt_v2_b2_li", PVT, {"op": "performer", "features": 8}, (64, 64)),
}


def images(size: tuple[int, int], channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(3))


def swapped(name: str) -> tuple[Any, torch.Tensor, Any]:
    """A model with lively weights and exchanged attention, its images, and the report."""
    host, arguments, how, size = CASES[name]
    torch.manual_seed(7)
    model = create_model(host, **arguments).eval()
    report = softless.swap(model, **how)
    x = images(size, arguments.get("in_chans", 3))
    if arguments.get("in_chans") == 1:
        model.pretrained_cfg |= {"mean": (0.5,), "std": (0.25,)}
    # random weights put its landmarks so far apart that every kernel is 0
    return (model if how.get("sampling") == "conv" else lively(model, x)), x, report


@pytest.mark.parametrize("name", CASES)
def test_a_swapped_model_comes_back(name: str, tmp_path: Path) -> None:
    model, x, report = swapped(name)
    folder = softless.save_weights(model, tmp_path / "w")
    again = create_model(f"local-dir:{folder}", pretrained=True).eval()
    expected = model(x)
    assert torch.equal(again(x), expected)
    assert expected.std() > 1e-3
    assert [type(module) for module in again.modules()] == [type(m) for m in model.modules()]
    stored = json.loads((folder / "config.json").read_text())["softless"]["swaps"]
    assert [entry["layers"] for entry in stored] == [list(report.swapped)]
    # the control: the host's own attention answers otherwise
    plain = create_model(CASES[name][0], **CASES[name][1]).eval()
    theirs = {n: t for n, t in model.state_dict().items() if n in plain.state_dict()}
    if CASES[name][2]["op"] not in {"soft", "softnorm"}:
        plain.load_state_dict(theirs, strict=False)
        assert not torch.equal(plain(x), expected)
    # what came back goes again
    twice = softless.save_weights(again, tmp_path / "twice")
    for file in ("config.json", "model.safetensors"):
        assert (twice / file).read_bytes() == (folder / file).read_bytes()
    with pytest.raises(RuntimeError, match=r"Unknown model .swapped_"):
        timm.create_model(f"local-dir:{folder}", pretrained=True)


OF_TIMM: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "vit": (VIT, {"num_classes": 3, "img_size": (32, 48)}, {"op": "sima", "layers": "blocks.1*"}),
    "one channel, mean of tokens": (
        "vit_tiny_patch16_224",
        {"num_classes": 4, "in_chans": 1, "img_size": 32, "global_pool": "avg"},
        {"op": "soft", "ratio": 1},
    ),
    "any size": (VIT, {"dynamic_img_size": True, "num_classes": 2}, {"op": "cosformer2d"}),
    "xcit": ("xcit_nano_12_p16_224", {"num_classes": 3}, {"op": "sima"}),
    "pvt": ("pvt_v2_b0", {"num_classes": 3}, {"op": "seqnorm", "layers": "stages.0.*"}),
    "features alone": (VIT, {"num_classes": 0, "img_size": 32}, {"op": "relu_linear"}),
    "not swapped": (VIT, {"num_classes": 3, "img_size": 48}, {}),
}


@pytest.mark.parametrize("name", OF_TIMM)
def test_a_model_that_timm_made(name: str, tmp_path: Path) -> None:
    """It tells its name and sizes; what they make is compared with it."""
    host, arguments, how = OF_TIMM[name]
    model: Any = timm.create_model(host, **arguments).eval()
    if how:
        softless.swap(model, **how)
    channels = arguments.get("in_chans", 3)
    about = {"mean": [0.5], "std": [0.2]} if channels == 1 else None
    folder = softless.save_weights(model, tmp_path / "w", data=about)
    again = create_model(f"local-dir:{folder}", pretrained=True).eval()
    side = arguments.get("img_size", 64 if how.get("op") != "cosformer2d" else 80)
    x = images(side if isinstance(side, tuple) else (side, side), channels)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_heads": 6},  # no tensor and no module shows it
        {"depth": 3},
        {"global_pool": "max", "fc_norm": False},
        {"mlp_ratio": 2},
        {"norm_layer": torch.nn.LayerNorm},  # another epsilon
        {"act_layer": torch.nn.ReLU},
        {"qk_norm": True},
    ],
    ids=str,
)
def test_a_model_of_timm_with_other_arguments_is_refused(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    model: Any = timm.create_model(VIT, img_size=32, **arguments)
    for step in ("as it is", "swapped"):
        if step == "swapped":
            softless.swap(model, "sima", layers="blocks.0.*")
        with pytest.raises(UsageError, match="does not tell how it was built: make it with softle"):
            softless.save_weights(model, tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_swaps_one_after_the_other_are_all_told(tmp_path: Path) -> None:
    model: Any = create_model(VIT, **SMALL, img_size=32).eval()
    softless.swap(model, "sima", layers="blocks.0.*")
    softless.swap(model, "xca", layers=["blocks.[02].*", "blocks.1.*"], force="blocks.1.*")
    folder = softless.save_weights(model, tmp_path / "w")
    told = json.loads((folder / "config.json").read_text())["softless"]
    assert told == {
        "host": VIT,
        "op": None,
        "swaps": [
            {"op": "sima", "options": {}, "layers": ["blocks.0.attn"], "force": []},
            {
                "op": "xca",
                "options": {},
                "layers": ["blocks.1.attn", "blocks.2.attn"],
                "force": [],
            },
        ],
    }
    again = create_model(f"local-dir:{folder}", pretrained=True).eval()
    ops = [block.attn.op.name for block in again.blocks]
    assert ops == ["sima", "xca", "xca"]
    assert torch.equal(again(images((32, 32))), model(images((32, 32))))


def test_a_host_of_ours_with_one_layer_exchanged(tmp_path: Path) -> None:
    """Its other layers keep the operator that it was made with."""
    model: Any = create_model("deit_tiny_patch16_224", "linformer", **SMALL, img_size=32).eval()
    model.blocks[1].attn = create_model(VIT, **SMALL, img_size=32).blocks[1].attn
    softless.swap(model, "sima", layers="blocks.1.*")
    with pytest.raises(UsageError, match="was changed before its attention was exchanged"):
        softless.save_weights(model, tmp_path / "w")


def changes() -> dict[str, Any]:
    def options(model: Any) -> None:
        model.blocks[0].attn.options = {"token_scale": 7}

    def back(model: Any) -> None:
        model.blocks[0].attn = create_model(VIT, **SMALL, img_size=32).blocks[0].attn

    def gained(model: Any) -> None:
        attention = model.blocks[0].attn
        attention.proj = Gained(attention.proj, torch.ones(attention.proj.in_features))

    def resized(model: Any) -> None:
        model.set_input_size((64, 64))

    return {
        "options": options,
        "an old module": back,
        "a gained projection": gained,
        "another size": resized,
        "heads": lambda model: setattr(model.blocks[1].attn, "num_heads", 1),
        "a hand-made operator": lambda model: setattr(
            model.blocks[0], "attn", Attention(48, 3, "sima_l2")
        ),
    }


@pytest.mark.parametrize("name", changes())
def test_a_model_changed_since_its_swap_is_refused(name: str, tmp_path: Path) -> None:
    model: Any = create_model(VIT, **SMALL, img_size=32)
    softless.swap(model, "sima")
    changes()[name](model)
    with pytest.raises(UsageError, match="was changed since it was made, first in "):
        softless.save_weights(model, tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_options_that_a_file_cannot_say(tmp_path: Path) -> None:
    model: Any = create_model(VIT, **SMALL, img_size=32)
    softless.swap(model, "softmax", pairwise=torch.ones(5, 5, dtype=torch.bool))
    with pytest.raises(UsageError, match=r"^cannot say softmax's pairwise=.* in a config\.json"):
        softless.save_weights(model, tmp_path / "w")


def test_an_operator_of_ones_own(tmp_path: Path) -> None:
    """By its name, where that is registered: when it is saved, and where it is opened."""
    record = linear()
    model: Any = create_model(VIT, **SMALL, img_size=32).eval()
    softless.swap(model, record)
    with pytest.raises(UsageError, match="operator 'mine' is not registered"):
        softless.save_weights(model, tmp_path / "w")
    with registered(record):
        folder = softless.save_weights(model, tmp_path / "w")
        again = create_model(f"local-dir:{folder}", pretrained=True).eval()
        assert torch.equal(again(images((32, 32))), model(images((32, 32))))
    with pytest.raises(DataError, match=r"names the operator 'mine', which is not registered"):
        create_model(f"local-dir:{folder}", pretrained=True)


SWAP: dict[str, Any] = {
    "op": "sima",
    "options": {"token_scale": "tokens"},
    "layers": ["blocks.0.attn"],
    "force": [],
}
WRONG: dict[str, Any] = {
    "no list": SWAP,
    "an empty list": [],
    "many": [SWAP] * 17,
    "no table": ["sima"],
    "half of it": [{"op": "sima"}],
    "more than a swap": [{**SWAP, "module": "os"}],
    "an unknown operator": [{**SWAP, "op": "smia"}],
    "an operator that is no name": [{**SWAP, "op": ["sima"]}],
    "an option of another": [{**SWAP, "options": {"ratio": 2}}],
    "an option out of its range": [{**SWAP, "options": {"token_scale": -1}}],
    "an option that is a path": [{**SWAP, "options": {"token_scale": "/etc/passwd"}}],
    "options that are a list": [{**SWAP, "options": ["token_scale"]}],
    "no layers": [{**SWAP, "layers": []}],
    "an unknown layer": [{**SWAP, "layers": ["blocks.7.attn"]}],
    "a layer of another kind": [{**SWAP, "layers": ["blocks.0.mlp"]}],
    "a pattern": [{**SWAP, "layers": ["*"]}],
    "a text for layers": [{**SWAP, "layers": "blocks.0.attn"}],
    "a layer twice": [{**SWAP, "layers": ["blocks.0.attn"] * 2}],
    "too many layers": [{**SWAP, "layers": [f"blocks.{n}.attn" for n in range(2000)]}],
    "force elsewhere": [{**SWAP, "force": ["blocks.1.attn"]}],
    "the same swap twice": [SWAP, SWAP],
}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model: Any = create_model(VIT, **SMALL, img_size=32)
    softless.swap(model, "sima", layers="blocks.0.*", token_scale="tokens")
    folder = softless.save_weights(model, tmp_path_factory.mktemp("stored") / "w")
    (folder / "digests.json").unlink()
    return folder


@pytest.mark.parametrize("name", WRONG)
def test_a_strange_swap_is_one_sentence(name: str, stored: Path, tmp_path: Path) -> None:
    content = json.loads((stored / "config.json").read_text())
    assert content["softless"]["swaps"] == [SWAP]
    content["softless"]["swaps"] = WRONG[name]
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes((stored / "model.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"config\.json (has|names) ") as raised:
        create_model(f"local-dir:{tmp_path}", pretrained=True)
    assert "\n" not in str(raised.value)


def test_a_swap_of_more_than_the_weights_hold(stored: Path, tmp_path: Path) -> None:
    """Nothing large is made for a file that says so."""
    content = json.loads((stored / "config.json").read_text())
    content["softless"]["swaps"] = [
        {
            "op": "linformer",
            "options": {"projected": 1 << 20},
            "layers": [f"blocks.{number}.attn" for number in range(3)],
            "force": [],
        }
    ]
    (tmp_path / "config.json").write_text(json.dumps(content))
    (tmp_path / "model.safetensors").write_bytes((stored / "model.safetensors").read_bytes())
    with pytest.raises(DataError, match=r"describes a model of [\d,]+ numbers"):
        create_model(f"local-dir:{tmp_path}", pretrained=True)


def test_other_arguments_beside_a_folder(stored: Path) -> None:
    model = create_model(f"local-dir:{stored}", pretrained=True, num_classes=9, drop_path_rate=0.1)
    assert model.head.out_features == 9
    assert model.blocks[0].attn.op.name == "sima"
    with pytest.raises(UsageError, match="blocks"):
        create_model(f"local-dir:{stored}", depth=0)
    maps = create_model(f"local-dir:{stored}", pretrained=True, features_only=True)
    assert maps.model.blocks[0].attn.op.name == "sima"
    whole = create_model(f"local-dir:{stored}", pretrained=True).eval()
    x = images((32, 32))
    expected = whole.forward_intermediates(x, intermediates_only=True)[-1]
    assert torch.equal(maps.eval()(x)[-1], expected)


def test_maps_of_a_pyramid_are_refused(tmp_path: Path) -> None:
    model: Any = create_model("pvt_v2_b0", **PVT)
    softless.swap(model, "sima")
    folder = softless.save_weights(model, tmp_path / "w")
    with pytest.raises(UsageError, match="features_only cuts this model up"):
        create_model(f"local-dir:{folder}", features_only=True)
