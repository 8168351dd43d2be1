"""Checkpoints of the published codes and of timm, in models here: every tensor where it belongs, or
a refusal that says why not.
"""

import copy
import re
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save_file

import softless
from softless import DataError, UsageError
from softless.models import load_weights
from tests.models.lively import lively
from tests.ops.draw import assert_near

create_model: Any = softless.create_model
PYRAMID: dict[str, Any] = {"depths": (1, 1, 1, 1), "num_classes": 7}


def image(height: int = 64, width: int = 96) -> torch.Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(3))


def soft_layout(model: Any) -> dict[str, torch.Tensor]:
    """A model's tensors under the names of SOFT's code (soft.md, section 2), its stages counted
    from 1, q and v apart.
    """
    found = {}
    for name, value in model.state_dict().items():
        new = re.sub(
            r"^stage(\d)\.patch_embed\.", lambda m: f"patch_embed{int(m[1]) + 1}.proj.", name
        )
        new = re.sub(r"^stage(\d)\.pos_embed", lambda m: f"pos_embed{int(m[1]) + 1}", new)
        new = new.replace("stage3.cls_token", "cls_token")
        if match := re.match(r"stage([012])\.blocks\.(\d)\.(.*)", new):
            inner = (
                match[3]
                .replace("attn.learned.norm_", "mha.attn.Qnorm_act.0.")
                .replace("attn.learned.conv", "mha.attn.Qlandmark_op.weight")
            )
            inner = (
                inner
                .replace("attn.v_conv.weight", "mha.attn.conv.weight")
                .replace("attn.proj.", "mha.ff.")
                .replace("mlp.fc", "ff")
            )
            start = f"block{int(match[1]) + 1}.{match[2]}.att."
            if inner.startswith("attn.qv."):
                part = inner.rsplit(".", 1)[-1]
                for side, rows in zip("qv", value.chunk(2), strict=True):
                    found[f"{start}mha.W_{side}.{part}"] = rows.clone()
                continue
            new = start + inner
        elif match := re.match(r"stage3\.blocks\.(\d)\.attn\.qkv\.(.*)", new):
            dim = value.shape[0] // 3
            found[f"block4.{match[1]}.attn.q.{match[2]}"] = value[:dim].clone()
            found[f"block4.{match[1]}.attn.kv.{match[2]}"] = value[dim:].clone()
            continue
        new = re.sub(r"^stage3\.blocks", "block4", new)
        found[new] = value.clone()
    return found


def test_softs_code() -> None:
    """Averaged weights, DataParallel's prefix, q and v joined, q and kv joined, stages from 1."""
    model = lively(create_model("soft_tiny_224", parity=True, **PYRAMID), image())
    official = soft_layout(model)
    assert {
        "block1.0.att.mha.W_q.weight",
        "block2.0.att.mha.attn.Qlandmark_op.weight",
        "block4.0.attn.kv.bias",
        "pos_embed4",
    } <= set(official)
    wrong = {name: torch.zeros_like(value) for name, value in official.items()}
    held = {
        "state_dict": wrong,
        "state_dict_ema": {f"module.{name}": value for name, value in official.items()},
        "epoch": 3,
    }
    other = create_model("soft_tiny_224", parity=True, **PYRAMID).eval()
    found = load_weights(other, held)
    assert torch.equal(other(image()), model(image()))
    assert found.layout == "SOFT's code"
    assert found.renamed["block1.0.att.mha.W_q.weight"] == "stage0.blocks.0.attn.qv.weight"
    assert found.loaded == len(model.state_dict())
    load_weights(other, held, averaged=False)
    assert not other.head.weight.any()


@pytest.mark.parametrize("op", ["soft", "softnorm"])
def test_weights_of_softs_code_ask_for_its_function(op: str) -> None:
    """They were trained with another inverse than the default's: parity is said, either way, and
    our own layout asks nothing.
    """
    model = create_model(f"{op}_tiny_224", **PYRAMID)
    official = soft_layout(model)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(
        UsageError, match=r"is of SOFT's code.*build the model with parity=True"
    ) as told:
        load_weights(model, {name: value + 1 for name, value in official.items()})
    assert "\n" not in str(told.value)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for parity in (True, False):
        load_weights(create_model(f"{op}_tiny_224", parity=parity, **PYRAMID), official)
    load_weights(create_model(f"{op}_tiny_224", **PYRAMID), model.state_dict())
    sima = create_model("soft_pyramid_tiny_224", op="sima", **PYRAMID)
    # another operator has other projections
    with pytest.raises(UsageError, match=r"has no place|is missing"):
        load_weights(sima, official)


def test_positions_are_resized_as_the_code_does_at_each_pass() -> None:
    model = lively(create_model("soft_tiny_224", **PYRAMID), image())
    other = create_model("soft_tiny_224", img_size=(64, 96), parity=False, **PYRAMID).eval()
    found = load_weights(other, soft_layout(model))
    assert found.resized["stage3.pos_embed"] == ((1, 50, 512), (1, 7, 512))
    assert_near(other(image()), model(image()), 1e-5)
    vit = lively(create_model("sima_deit_tiny_patch16_224", depth=1, num_classes=7), image())
    small = create_model(
        "sima_deit_tiny_patch16_224", depth=1, num_classes=7, img_size=(64, 96)
    ).eval()
    assert load_weights(small, vit.state_dict()).resized["pos_embed"] == (
        (1, 197, 192),
        (1, 25, 192),
    )
    assert_near(small(image()), vit(image()), 1e-5)


@pytest.mark.parametrize("op", ["sima", "xca"])
def test_xcits_code_and_simas(op: str) -> None:
    """Other names of the positions and the temperature; class attention as one projection, which
    timm's has as three.
    """
    model = lively(create_model("xcit_nano_12_p16_224", op=op, depth=1, num_classes=7), image())
    official: dict[str, torch.Tensor] = {}
    for name, value in model.state_dict().items():
        new = name.replace("pos_embed.", "pos_embeder.").replace(
            "learned.temperature", "temperature"
        )
        if match := re.match(r"(cls_attn_blocks\.\d\.attn\.)(q|k|v)\.(.*)", new):
            new = f"{match[1]}qkv.{match[3]}"
            official[new] = torch.cat([official[new], value]) if new in official else value
        else:
            official[new] = value
    assert "cls_attn_blocks.0.attn.qkv.weight" in official
    other = create_model("xcit_nano_12_p16_224", op=op, depth=1, num_classes=7).eval()
    found = load_weights(other, {"model": official})
    assert torch.equal(other(image()), model(image()))
    assert found.layout == "XCiT's code and SimA's"


def test_timms_xcit_gives_sima_its_projections_and_keeps_the_temperature_out() -> None:
    theirs: Any = timm.create_model("xcit_nano_12_p16_224", depth=1, num_classes=7)
    ours = create_model("xcit_nano_12_p16_224", op="sima", depth=1, num_classes=7)
    found = load_weights(ours, theirs.state_dict())
    assert torch.equal(ours.blocks[0].attn.qkv.weight, theirs.blocks[0].attn.qkv.weight)
    attention = theirs.cls_attn_blocks[0].attn
    assert torch.equal(
        ours.cls_attn_blocks[0].attn.qkv.weight,
        torch.cat([attention.q.weight, attention.k.weight, attention.v.weight]),
    )
    assert list(found.left) == ["blocks.0.attn.learned.temperature"]
    assert "belongs to the operator that the file was trained with" in str(found)
    back = create_model("xcit_nano_12_p16_224", op="xca", depth=1, num_classes=7)
    assert load_weights(back, ours.state_dict()).kept == ("blocks.0.attn.learned.temperature",)


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_files(tmp_path: Any, suffix: str) -> None:
    model = create_model("sima_deit_tiny_patch16_224", depth=1, num_classes=7)
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"model": model.state_dict(), "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    else:
        save_file(model.state_dict(), path)
    other = create_model("sima_deit_tiny_patch16_224", depth=1, num_classes=7)
    assert softless.load_weights(other, path).layout == "our layout or timm's"
    assert all(
        torch.equal(a, b)
        for a, b in zip(model.state_dict().values(), other.state_dict().values(), strict=True)
    )


class Boom:
    def __reduce__(self) -> Any:
        return print, ("executed",)


def test_nothing_in_a_file_is_executed(tmp_path: Any, capsys: Any) -> None:
    torch.save({"model": Boom()}, tmp_path / "hostile.pth")
    model = create_model("sima_deit_tiny_patch16_224", depth=1)
    with pytest.raises(DataError, match="nothing in a file is executed here"):
        load_weights(model, tmp_path / "hostile.pth")
    assert "executed" not in capsys.readouterr().out


def test_other_classes() -> None:
    model = create_model("cvt_13_224", depths=(1, 1, 1), num_classes=7)
    other = create_model("cvt_13_224", depths=(1, 1, 1), num_classes=5)
    before = other.head.weight.clone()
    with pytest.raises(
        UsageError,
        match=r"head.weight is \(7, 384\) in the file and \(5, 384\) in the model \(other "
        r'classes: pass head="new"',
    ):
        load_weights(other, model.state_dict())
    found = load_weights(other, model.state_dict(), head="new")
    assert torch.equal(other.head.weight, before)
    assert set(found.left) == set(found.kept) == {"head.weight", "head.bias"}
    assert torch.equal(other.norm.weight, model.norm.weight)


def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path: Any) -> None:
    model = create_model("sima_deit_tiny_patch16_224", depth=1, num_classes=7)
    before = copy.deepcopy(model.state_dict())
    for other, message in (
        (
            create_model("sima_deit_tiny_patch16_224", depth=2, num_classes=7),
            r"blocks\.1\..* has no place in the model.*; and \d+ more",
        ),
        (
            create_model("sima_deit_small_patch16_224", depth=1, num_classes=7),
            r"cls_token is \(1, 1, 384\) in the file and \(1, 1, 192\) in the model",
        ),
    ):
        with pytest.raises(UsageError, match=message):
            load_weights(model, other.state_dict())
    with pytest.raises(UsageError, match="is missing"):
        load_weights(model, {name: value for name, value in before.items() if "fc1" not in name})
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    for source, message in (
        (tmp_path / "none.pth", "no file"),
        ({"epoch": 3}, "holds no tensors"),
    ):
        with pytest.raises(DataError, match=message):
            load_weights(model, source)
    with pytest.raises(UsageError, match="no averaged weights"):
        load_weights(model, before, averaged=True)
