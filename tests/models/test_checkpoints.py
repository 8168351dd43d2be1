"""Checkpoints as everyday tools write them: by the tools' own saving code where it is at hand, else
key by key as their scripts do.
"""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

import softless
from softless import DataError, UsageError
from softless.models import Loaded, load_weights
from softless.models.files import read_tensors
from tests.models import hostile
from tests.models.checkpoints import (
    LOADS,
    OLD,
    REFUSED,
    dinos_script,
    kind_of,
    papers_script,
    small,
    spoilt_counts,
)


@pytest.mark.parametrize("kind", LOADS)
def test_a_checkpoint_loads(kind: str, tmp_path: Path) -> None:
    found = kind_of(kind, tmp_path)
    assert found.outcome == "loads", found.said
    taken = LOADS[kind][1]
    assert taken in found.said
    assert bool(found.said) == bool(taken)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_checkpoint_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    found = kind_of(kind, tmp_path)
    assert found.outcome == "refused", found.said
    assert re.search(REFUSED[kind][1], found.said)
    assert len(found.said) < 900


def test_students_and_averages_by_request(tmp_path: Path) -> None:
    """averaged=False takes the student, averaged=True the average that its script does not
    choose.
    """
    model = small(1)
    path = dinos_script(model, tmp_path / "dino.pth", which="student")
    other = small(2)
    assert "'student', and not 'teacher'" in load_weights(other, path, averaged=False).taken
    assert torch.equal(other.cls_token, model.cls_token)
    load_weights(other, papers_script(model, tmp_path / "deit.pth"), averaged=True)
    assert torch.equal(other.cls_token, small(9).cls_token)


def test_what_a_projection_leaves_is_named(tmp_path: Path) -> None:
    path = tmp_path / "headless.pth"
    dinos_script(small(1, num_classes=0), path)
    found = load_weights(small(2), path, head="new")
    assert found.left == dict.fromkeys(
        ["head.mlp.0.weight", "head.last_layer.weight_g"],
        "it lies beside the backbone: a projection of self-supervised training",
    )
    assert found.kept == ("head.bias", "head.weight")


def test_what_lies_beside_several_models_is_named() -> None:
    """A module of students and teachers, flat, with the centre of its loss; either is loaded by
    request.
    """
    one, other = small(1), small(2)
    held = {
        f"{name}.{key}": x
        for name, model in (("student", one), ("teacher", other))
        for key, x in model.state_dict().items()
    }
    held["loss.center"] = torch.zeros(3)
    for averaged, right in ((None, other), (True, other), (False, one)):
        model = small(3)
        found = load_weights(model, {"state_dict": held}, averaged=averaged)
        assert found.left == {"loss.center": "it lies beside the models of the file"}
        assert torch.equal(model.cls_token, right.cls_token)


@pytest.mark.parametrize("part", ["blocks.0.", ""])
def test_parts_that_were_wrapped_alone_load(part: str) -> None:
    """FSDP and activation checkpointing wrap blocks inside one another."""
    model, other = small(1), small(2)
    wrapped = {
        name.replace(part, f"{part}_fsdp_wrapped_module._checkpoint_wrapped_module.", 1): x
        for name, x in model.state_dict().items()
    }
    assert (
        load_weights(other, wrapped).taken
        == "names without their '_fsdp_wrapped_module._checkpoint_wrapped_module.'"
    )
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in model.state_dict().items())


def test_a_wrapper_that_the_model_has_too_is_no_wrapper() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(2, 2)

    one, other = Holder(), Holder()
    load_weights(other, one.state_dict())
    assert torch.equal(other.model.weight, one.model.weight)


def test_a_classifier_and_a_model_without_one() -> None:
    state = small(1).state_dict()
    with pytest.raises(
        UsageError, match='the model has no classifier: pass head="new" to leave the file’s'
    ):
        load_weights(small(2, num_classes=0), state)
    headless = small(2, num_classes=0)
    assert set(load_weights(headless, state, head="new").left) == {"head.weight", "head.bias"}
    back = small(3)
    assert load_weights(back, headless.state_dict(), head="new").kept == (
        "head.bias",
        "head.weight",
    )
    assert torch.equal(back.cls_token, small(1).cls_token)


def test_a_refusal_names_three_of_either_side() -> None:
    with pytest.raises(UsageError) as told:
        load_weights(
            small(2, depth=2),
            {
                name.replace("blocks", "layers"): value
                for name, value in small(1).state_dict().items()
            },
        )
    said = str(told.value)
    assert said.count("has no place in the model") == 3
    assert said.count("is missing") == 3
    assert re.search(r"and \d+ more of the file", said)
    assert re.search(r"and \d+ more are missing", said)


def test_positions_of_a_grid_that_is_not_square(tmp_path: Path) -> None:
    """A folder says its grid; a bare table does not, and is refused where it cannot be square."""
    wide = small(1, img_size=(48, 112))
    softless.save_weights(wide, tmp_path / "wide")
    expected = timm.layers.resample_abs_pos_embed(wide.pos_embed, [4, 4], [3, 7])
    other = small(2)
    load_weights(other, tmp_path / "wide")
    assert torch.equal(other.pos_embed, expected)
    made: Any = softless.create_model(
        f"local-dir:{tmp_path / 'wide'}", pretrained=True, img_size=64
    )
    assert torch.equal(made.pos_embed, expected)
    with pytest.raises(
        UsageError, match=r"pos_embed is \(1, 22, 48\) in the file and \(1, 17, 48\) in the model"
    ):
        load_weights(other, wide.state_dict())
    high = small(2, img_size=(112, 48))  # as many places, and others
    assert load_weights(high, tmp_path / "wide").resized
    assert not torch.equal(high.pos_embed, wide.pos_embed)


def test_register_tokens_that_the_file_lacks() -> None:
    with pytest.raises(UsageError, match=r"reg_token \(1, 4, 48\) is missing"):
        load_weights(small(2, reg_tokens=4), small(1).state_dict())
    few, more = small(1, reg_tokens=4), small(2, reg_tokens=4, img_size=96)
    load_weights(more, few.state_dict())
    assert torch.equal(
        more.pos_embed,
        timm.layers.resample_abs_pos_embed(few.pos_embed, [6, 6], num_prefix_tokens=5),
    )
    assert torch.equal(more.reg_token, few.reg_token)


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_classes": 0},
        {"in_chans": 1},
        {"in_chans": 4},
        {"features_only": True},
        {"num_classes": 7},
    ],
)
@pytest.mark.parametrize(
    "name",
    ["sima_deit_tiny_patch16_224", "sima_xcit_nano_12_p16_224", "sima_cvt_13_224", "soft_tiny_224"],
)
def test_a_folder_as_a_backbone(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    """What timm answers from the same folder, with its own loading."""
    depth = (
        {"depths": (1,) * (4 if name.startswith("soft") else 3)}
        if "cvt" in name or "soft" in name
        else {"depth": 4}
    )
    softless.save_weights(softless.create_model(name, num_classes=3, **depth), tmp_path / "w")
    ours: Any = softless.create_model(
        f"local-dir:{tmp_path / 'w'}", pretrained=True, **arguments
    ).eval()
    timms: Any = timm.create_model(
        f"local-dir:{tmp_path / 'w'}", pretrained=True, **arguments
    ).eval()
    x = torch.randn(1, arguments.get("in_chans", 3), 224, 224)
    if arguments.get("num_classes") == 7:  # a classifier of new classes, drawn
        ours, timms = ours.forward_features, timms.forward_features
    with torch.no_grad():
        found, expected = ours(x), timms(x)
    pairs = zip(found, expected, strict=True) if isinstance(found, list) else [(found, expected)]
    assert all(torch.equal(one, other) for one, other in pairs)
    if "in_chans" in arguments:
        assert len(ours.pretrained_cfg["mean"]) == arguments["in_chans"]


@pytest.mark.bar(
    "C1", "calls beside the weights of everyday checkpoints, zip and old: nothing executed"
)
def test_300_damaged_or_hostile_checkpoints(tmp_path: Path, record_property: Any) -> None:
    """Each is refused in one sentence, or loads the bits that were written; nothing runs."""
    counts = spoilt_counts(tmp_path)
    files = sum(one["loads"] + one["refused"] + one["wrong"] for one in counts.values())
    run = sum(one["run"] for one in counts.values())
    assert files >= 300
    assert run == 0
    assert sum(one["wrong"] for one in counts.values()) == 0
    assert all(one["loads"] == 0 for name, one in counts.items() if "calls" in name)
    record_property("cases", (files - run, files))


def test_an_old_file_claims_no_memory(tmp_path: Path) -> None:
    """Its storages are allocated as its pickle says, so what that says is compared with the file
    first.
    """
    path = tmp_path / "old.pth"
    torch.save({"w": torch.ones(1000)}, path, **OLD)
    content = path.read_bytes()
    assert content.count(b"M\xe8\x03") == 2  # of its storage and of its shape
    path.write_bytes(content.replace(b"M\xe8\x03", b"J\x00\x00\x00\x70"))
    with pytest.raises(DataError, match="claims tensors of 1879048192 numbers"):
        read_tensors(path)


def test_what_was_taken_is_printed() -> None:
    assert "  taken    'model'" in str(Loaded("timm's", 3, "'model', and not 'model_ema'"))
    assert "taken" not in str(Loaded("timm's", 3))


def test_nothing_of_the_named_libraries_is_imported(tmp_path: Path) -> None:
    """An object that is read as nothing needs no library: its name is enough."""
    path = tmp_path / "named.pth"
    state = (
        b"\x80\x02}(X\x01\x00\x00\x00acmmengine.logging.history_buffer\nHistoryBuffer\n)"
        b"\x81}X\x01\x00\x00\x00bK\x01sbX\x01\x00\x00\x00cK\x02u."
    )
    held = read_tensors(hostile.archive(path, state))
    assert held["c"] == 2
    assert type(held["a"]).__name__ == "Inert"
    assert vars(held["a"]) == {}
    assert "mmengine" not in sys.modules


def test_averages_that_are_held_one_level_down_are_taken_where_they_are_asked_for(
    tmp_path: Path,
) -> None:
    model, averages = small(1), small(2)
    torch.save(
        {"model": model.state_dict(), "ema": {"module": averages.state_dict(), "updates": 3}},
        tmp_path / "w.pth",
    )
    made = small(3)
    assert load_weights(made, tmp_path / "w.pth", averaged=True).taken == "'ema', and not 'model'"
    assert torch.equal(made.head.weight, averages.head.weight)


def test_a_checkpoint_inside_itself_ends() -> None:
    held: dict[str, Any] = dict(small(1).state_dict())
    held["model"] = held
    assert load_weights(made := small(3), held).loaded == len(made.state_dict())
