"""Checkpoints as everyday tools write them: by the tools' own saving code where it is at hand, else key by key as their scripts do."""

import argparse
import collections
import copy
import datetime as dt
import json
import pathlib
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn

import softless
from softless import DataError, UsageError
from softless.models import Loaded, load_weights
from softless.models.files import read_tensors
from tests.models import hostile
from tests.models.hostile import CALLS, Call

TINY: dict[str, Any] = {"depth": 1, "embed_dim": 48, "num_heads": 2, "img_size": 64, "num_classes": 3}


def small(seed: int = 0, **other: Any) -> Any:
    torch.manual_seed(seed)
    return softless.create_model("deit_tiny_patch16_224", op="sima", **{**TINY, **other}).eval()


def optimizer_of(model: nn.Module) -> torch.optim.Optimizer:
    """After one step, so that its state holds tensors."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-9)
    model(torch.ones(1, 3, 64, 64)).sum().backward()
    optimizer.step()
    return optimizer


def options() -> argparse.Namespace:
    """What argparse gives a script, with what scripts put into it."""
    return argparse.Namespace(model="deit", lr=5e-4, output_dir=Path("runs"), betas=(0.9, 0.999), data=argparse.Namespace(set="IMNET"), seed=np.int64(3))  # fmt: skip


def papers_script(model: Any, path: Path) -> Path:
    """main.py of DeiT, XCiT and SimA; the averaged weights are a second choice there."""
    optimizer = optimizer_of(model)
    schedule = CosineLRScheduler(optimizer, t_initial=10)
    held = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "lr_scheduler": schedule.state_dict(), "epoch": 3,
        "model_ema": small(9).state_dict(), "scaler": torch.amp.GradScaler("cpu").state_dict(), "args": options(),
    }  # fmt: skip
    torch.save(held, path)
    return path


def timms_saver(model: Any, path: Path, *, averaged: bool) -> Path:
    """timm's train.py, through its own saver."""
    args = argparse.Namespace(model="deit_tiny_patch16_224", lr=0.1)
    raw, mean = (small(9), ModelEmaV3(model)) if averaged else (model, None)
    saver = CheckpointSaver(raw, optimizer_of(raw), args=args, model_ema=mean, checkpoint_dir=str(path.parent), recovery_dir=str(path.parent))  # fmt: skip
    saver.save_checkpoint(3, metric=0.5)
    return path.parent / "last.pth.tar"


def dinos_script(model: Any, path: Path, *, which: str = "teacher") -> Path:
    """main_dino.py: a student in DataParallel and a teacher, each a backbone and a projection."""
    mine, other = {}, {}
    for name, value in model.state_dict().items():
        mine[f"backbone.{name}"], other[f"backbone.{name}"] = value, torch.zeros_like(value)
    for held in (mine, other):
        held["head.mlp.0.weight"], held["head.last_layer.weight_g"] = torch.ones(8, 48), torch.ones(8, 1)
    teacher, student = (mine, other) if which == "teacher" else (other, mine)
    torch.save({"student": {f"module.{name}": value for name, value in student.items()}, "teacher": teacher, "epoch": 3, "args": options(), "dino_loss": {"center": torch.zeros(1, 8)}}, path)  # fmt: skip
    return path


def saved(held: Callable[[Any], Any], **how: Any) -> Callable[[Any, Path], Path]:
    def save(model: Any, path: Path) -> Path:
        torch.save(held(model), path, **how)
        return path

    return save


def renamed(change: Callable[[str], str]) -> Callable[[Any], Any]:
    return lambda model: {change(name): value for name, value in model.state_dict().items()}


def compiled(model: nn.Module) -> Any:
    return torch.compile(model)


def with_compiled_blocks(model: Any) -> Any:
    model = copy.deepcopy(model)
    for index, block in enumerate(model.blocks):
        model.blocks[index] = torch.compile(block)
    return model.state_dict()


def traced(model: Any, path: Path) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch would rather export
        torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), str(path))
    return path


def index_of_shards(_: Any, path: Path) -> Path:
    path.write_text(json.dumps({"metadata": {}, "weight_map": {"cls_token": "model-00001-of-00002.safetensors"}}))
    return path


OLD = {"_use_new_zipfile_serialization": False}
LOADS: dict[str, tuple[Callable[[Any, Path], Path], str]] = {  # how it is written -> what the report says was taken
    "state dict": (saved(lambda m: m.state_dict()), ""),
    "main.py of DeiT, XCiT, SimA": (papers_script, "'model', and not 'model_ema'"),
    "train.py of timm": (lambda m, path: timms_saver(m, path, averaged=False), ""),
    "train.py of timm, averaged": (lambda m, path: timms_saver(m, path, averaged=True), "'state_dict_ema', and not 'state_dict'"),
    "DistributedDataParallel": (saved(lambda m: nn.DataParallel(m).state_dict()), "names without their 'module.'"),
    "torch.compile": (saved(lambda m: compiled(m).state_dict()), "names without their '_orig_mod.'"),
    "compiled, then DataParallel": (saved(lambda m: nn.DataParallel(compiled(m)).state_dict()), "'module._orig_mod.'"),
    "blocks compiled alone": (saved(with_compiled_blocks), "'_orig_mod.'"),
    "Lightning": (saved(lambda m: {"state_dict": renamed("model.{}".format)(m), "hyper_parameters": options(), "callbacks": {"best": {"best_model_score": torch.tensor(0.5), "dirpath": pathlib.PurePosixPath("a")}}, "loops": {}, "epoch": 3}), "'model.'"),
    "main_dino.py": (dinos_script, "'teacher', and not 'student'; names without their 'backbone.'"),
    "model_state_dict of the tutorials": (saved(lambda m: {"model_state_dict": m.state_dict(), "optimizer_state_dict": optimizer_of(m).state_dict(), "loss": 0.3}), ""),
    "before torch 1.6": (saved(lambda m: {"state_dict": m.state_dict(), "epoch": 3}, **OLD), "which has no checksums"),
    "before torch 1.6, with options": (saved(lambda m: {"model": m.state_dict(), "optimizer": optimizer_of(m).state_dict(), "args": options()}, **OLD), "which has no checksums"),
    "numpy's numbers and arrays": (saved(lambda m: {"model": m.state_dict(), "best": np.float64(0.5), "history": np.ones(3), "when": dt.datetime.now(), "counts": collections.defaultdict(list, a=[1]), "seen": {1, 2}}), ""),
    "half precision": (saved(lambda m: m.state_dict()), ""),
    "parameters, not tensors": (saved(lambda m: dict(m.named_parameters())), ""),
}  # fmt: skip
REFUSED: dict[str, tuple[Callable[[Any, Path], Path], str]] = {
    "a whole model": (saved(lambda m: nn.Sequential(m.norm)), r"holds a whole model \(torch.nn.modules.*\) and not its weights"),
    "an optimiser": (saved(lambda _: {"state": {}, "param_groups": [{"lr": 0.1}]}), "holds no tensors under names"),
    "TorchScript": (traced, "can be trusted|whole model|not a checkpoint|calls"),
    "an index of shards": (index_of_shards, "is no file of tensors"),
    "before torch 0.4": (lambda _, path: hostile.tar(path, b"\x80\x02}."), "is a tar archive"),
    "a script's own class": (saved(lambda m: {"model": m.state_dict(), "args": Call(Option, 3)}), "calls tests.models.test_checkpoints.Option"),
    "another model": (saved(lambda _: timm.create_model("deit_small_patch16_224").state_dict()), "nearest named model|is of 'sima_deit_small"),
}  # fmt: skip


class Option:
    """Of some script."""

    def __init__(self, number: int) -> None:
        self.number = number


@pytest.mark.parametrize("kind", LOADS)
def test_a_checkpoint_loads(kind: str, tmp_path: Path) -> None:
    save, taken = LOADS[kind]
    model = small(1)
    written = model.half() if kind == "half precision" else model
    expected = {name: value.clone() for name, value in written.state_dict().items()}
    path = save(written, tmp_path / "c.pth")
    other = small(2)
    found = load_weights(other, path)
    assert found.loaded == len(expected)
    assert taken in found.taken
    assert bool(found.taken) == bool(taken)
    for name, value in other.state_dict().items():
        assert torch.allclose(value, expected[name].float(), atol=1e-6), name


@pytest.mark.parametrize("kind", REFUSED)
def test_a_checkpoint_is_refused_with_the_reason(kind: str, tmp_path: Path) -> None:
    save, reason = REFUSED[kind]
    path = save(small(1), tmp_path / "c.pth")
    other = small(2)
    before = {name: value.clone() for name, value in other.state_dict().items()}
    with pytest.raises((DataError, UsageError), match=reason) as told:
        load_weights(other, path)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 900
    assert all(torch.equal(value, before[name]) for name, value in other.state_dict().items())


def test_students_and_averages_by_request(tmp_path: Path) -> None:
    """averaged=False takes the student, averaged=True the average that its script does not choose."""
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
    assert found.left == dict.fromkeys(["head.mlp.0.weight", "head.last_layer.weight_g"], "it lies beside the backbone: a projection of self-supervised training")  # fmt: skip
    assert found.kept == ("head.bias", "head.weight")


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
    with pytest.raises(UsageError, match='the model has no classifier: pass head="new" to leave the file’s'):
        load_weights(small(2, num_classes=0), state)
    headless = small(2, num_classes=0)
    assert set(load_weights(headless, state, head="new").left) == {"head.weight", "head.bias"}
    back = small(3)
    assert load_weights(back, headless.state_dict(), head="new").kept == ("head.bias", "head.weight")
    assert torch.equal(back.cls_token, small(1).cls_token)


def test_a_refusal_names_three_of_either_side() -> None:
    with pytest.raises(UsageError) as told:
        load_weights(small(2, depth=2), {name.replace("blocks", "layers"): value for name, value in small(1).state_dict().items()})  # fmt: skip
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
    made: Any = softless.create_model(f"local-dir:{tmp_path / 'wide'}", pretrained=True, img_size=64)
    assert torch.equal(made.pos_embed, expected)
    with pytest.raises(UsageError, match=r"pos_embed is \(1, 22, 48\) in the file and \(1, 17, 48\) in the model"):
        load_weights(other, wide.state_dict())
    high = small(2, img_size=(112, 48))  # as many places, and others
    assert load_weights(high, tmp_path / "wide").resized
    assert not torch.equal(high.pos_embed, wide.pos_embed)


def test_register_tokens_that_the_file_lacks() -> None:
    with pytest.raises(UsageError, match=r"reg_token \(1, 4, 48\) is missing"):
        load_weights(small(2, reg_tokens=4), small(1).state_dict())
    few, more = small(1, reg_tokens=4), small(2, reg_tokens=4, img_size=96)
    load_weights(more, few.state_dict())
    assert torch.equal(more.pos_embed, timm.layers.resample_abs_pos_embed(few.pos_embed, [6, 6], num_prefix_tokens=5))
    assert torch.equal(more.reg_token, few.reg_token)


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"in_chans": 1}, {"in_chans": 4}, {"features_only": True}, {"num_classes": 7}])  # fmt: skip
@pytest.mark.parametrize("name", ["sima_deit_tiny_patch16_224", "sima_xcit_nano_12_p16_224", "sima_cvt_13_224", "soft_tiny_224"])  # fmt: skip
def test_a_folder_as_a_backbone(name: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    """What timm answers from the same folder, with its own loading."""
    depth = (
        {"depths": (1,) * (4 if name.startswith("soft") else 3)} if "cvt" in name or "soft" in name else {"depth": 4}
    )
    softless.save_weights(softless.create_model(name, num_classes=3, **depth), tmp_path / "w")
    ours: Any = softless.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True, **arguments).eval()
    timms: Any = timm.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True, **arguments).eval()
    x = torch.randn(1, arguments.get("in_chans", 3), 224, 224)
    if arguments.get("num_classes") == 7:  # a classifier of new classes, drawn
        ours, timms = ours.forward_features, timms.forward_features
    with torch.no_grad():
        found, expected = ours(x), timms(x)
    pairs = zip(found, expected, strict=True) if isinstance(found, list) else [(found, expected)]
    assert all(torch.equal(one, other) for one, other in pairs)
    if "in_chans" in arguments:
        assert len(ours.pretrained_cfg["mean"]) == arguments["in_chans"]


@pytest.mark.bar("C1", "calls beside the weights of everyday checkpoints, zip and old: nothing executed")
def test_300_damaged_or_hostile_checkpoints(tmp_path: Path, record_property: Any) -> None:
    """Each is refused in one sentence, or loads the bits that were written; nothing runs."""
    generator = torch.Generator().manual_seed(0)
    model, other, canary, cases, run = small(1), small(2), tmp_path / "canary", 0, 0
    whole = papers_script(model, tmp_path / "whole.pth").read_bytes()
    expected = {name: value.clone() for name, value in model.state_dict().items()}

    def tried(path: Path) -> None:
        nonlocal cases, run
        cases += 1
        said = ""
        with torch.no_grad():
            other.cls_token.zero_()
        try:
            load_weights(other, path)
        except (DataError, UsageError) as error:
            said = str(error)
        assert "\n" not in said
        if not said:
            assert all(torch.equal(value, expected[name]) for name, value in other.state_dict().items())
        run += canary.exists()

    old = saved(lambda m: {"model": m.state_dict(), "args": options()}, **OLD)(model, tmp_path / "old.pth").read_bytes()
    for place in torch.randint(len(whole), (110,), generator=generator).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        (tmp_path / "damaged.pth").write_bytes(damaged)
        tried(tmp_path / "damaged.pth")
    for content in (whole, old):
        for length in torch.randint(len(content), (60,), generator=generator).tolist():
            (tmp_path / "short.pth").write_bytes(content[:length])
            tried(tmp_path / "short.pth")
    for how in ({}, OLD):
        for make, _ in CALLS.values():
            for held in ({"model": expected, "args": make(canary)}, {"state_dict": expected, "args": argparse.Namespace(a=make(canary))}):  # fmt: skip
                torch.save(held, tmp_path / "hostile.pth", **how)
                with pytest.raises(DataError, match=r"nothing in a file is executed here"):  # fmt: skip
                    load_weights(other, tmp_path / "hostile.pth")
                cases += 1
                run += canary.exists()
    assert cases >= 300
    assert run == 0
    record_property("cases", (cases - run, cases))


def test_an_old_file_claims_no_memory(tmp_path: Path) -> None:
    """Its storages are allocated as its pickle says, so what that says is compared with the file first."""
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
    state = b"\x80\x02}(X\x01\x00\x00\x00acmmengine.logging.history_buffer\nHistoryBuffer\n)\x81}X\x01\x00\x00\x00bK\x01sbX\x01\x00\x00\x00cK\x02u."
    held = read_tensors(hostile.archive(path, state))
    assert held["c"] == 2
    assert type(held["a"]).__name__ == "Inert"
    assert vars(held["a"]) == {}
    assert "mmengine" not in sys.modules
