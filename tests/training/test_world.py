"""Several processes are one run: same losses, one folder, one fate."""

import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from softless.errors import UsageError
from softless.experiment.groups import ModelSpec
from softless.training import Recipe, fit
from softless.training.world import choose_device, join
from tests.processes import run_ranks


def logged(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_like_one(tiny: Recipe, tmp_path: Path):
    """Same global batches, same augmentation, same class weights and clipping: the same losses to
    1e-5.

    Mixing pairs images within a process and dropping draws per process, so both are off here. XCiT
    has BatchNorm in stem and blocks.
    """
    plain = replace(tiny.augment, mixup=0.0, cutmix=0.0)
    args = {"img_size": 16, "embed_dim": 16, "depth": 1, "num_heads": 2, "cls_attn_layers": 1}
    host = ModelSpec("xcit_nano_12_p8_224", "sima", args)
    recipe = replace(tiny, model=host, augment=plain, drop_path=0.0, class_weights="balanced")
    (tmp_path / "recipe.pickle").write_bytes(pickle.dumps(recipe))
    one = fit(recipe, tmp_path / "one", device="cpu", progress=False)
    run_ranks(str(Path(__file__).with_name("rank.py")), str(tmp_path))
    for a, b in zip(logged(tmp_path / "one"), logged(tmp_path / "two"), strict=True):
        assert b["train_loss"] == pytest.approx(a["train_loss"], rel=1e-5)
        for part in ("val", "val_ema"):
            assert b[part]["loss"] == pytest.approx(a[part]["loss"], rel=1e-5)
            assert b[part]["seen"] == b[part]["expected"] == 18
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(2)]
    assert one.test is not None
    for rank in ranks:
        assert rank["test"]["seen"] == rank["test"]["expected"] == 15
        assert rank["test"]["top1"] == one.test["top1"]
        assert rank["again"] == "UsageError", "both ranks learn that the folder is taken"
        assert rank["diverged"] == "DivergedError", "not finite on rank 1 stops rank 0 as well"


GROUPS = """
import random, time, torch
from softless.training.world import join
for _ in range(20):
    with join("cpu") as world:
        total = torch.ones(1)
        torch.distributed.all_reduce(total)
        assert total == world.size
        time.sleep(random.random() / 50 if world.is_first else 0)
print("joined 20 times")
"""


def test_a_process_joins_again_and_again():
    """Rank 1 is early at each next group, where rank 0 has not yet left the one before."""
    assert ["joined 20 times" in said for said in run_ranks("-c", GROUPS)] == [True, True]


def test_a_world_without_a_place_to_meet(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(UsageError, match=r"MASTER_ADDR .* torchrun"), join("cpu"):
        pass


def test_alone_there_is_no_group():
    with join("cpu") as world:
        assert (world.rank, world.size, world.is_first) == (0, 1, True)
        assert world.first(lambda: 3) == 3
        assert not torch.distributed.is_initialized()


@pytest.mark.parametrize("name", ["gpu", "cuda:99x", "meta"])
def test_unknown_devices(name: str):
    with pytest.raises(UsageError, match="device"):
        choose_device(name)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_an_absent_device():
    with pytest.raises(UsageError, match="sees no CUDA device"):
        choose_device("cuda")


def test_ranks_exchange_objects_over_the_device_that_was_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Torch takes the current GPU for them, and two ranks on one GPU are an error of NCCL's."""
    from softless.training import world as module

    class Opened(Exception):
        pass

    def opened(*_: object, **__: object) -> None:
        raise Opened

    seen: list[torch.device] = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(module, "choose_device", lambda *_: torch.device("cuda:1"))
    monkeypatch.setattr(module, "_meeting_place", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "set_device", seen.append)
    monkeypatch.setattr(torch.distributed, "init_process_group", opened)
    with pytest.raises(Opened), join("cuda:1"):
        pass
    assert seen == [torch.device("cuda:1")]
