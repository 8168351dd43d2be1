"""Checkpoints as everyday tools write them: by the tools' own saving code where it is at hand, else
key by key as their scripts do.

`python -m tests.models.checkpoints benchmarks/checkpoints.csv` counts what becomes of them, and of
damaged and hostile ones.
"""

import argparse
import collections
import copy
import datetime as dt
import json
import pathlib
import pickle
import re
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import timm
import torch
from timm.scheduler import CosineLRScheduler
from timm.utils import CheckpointSaver, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

import softless
from softless.compare.record import write_csv
from softless.errors import SoftlessError
from softless.models import load_weights
from tests.models import hostile
from tests.models.hostile import CALLS, Call

TINY: dict[str, Any] = {
    "depth": 1,
    "embed_dim": 48,
    "num_heads": 2,
    "img_size": 64,
    "num_classes": 3,
}


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
    return argparse.Namespace(
        model="deit",
        lr=5e-4,
        output_dir=Path("runs"),
        betas=(0.9, 0.999),
        data=argparse.Namespace(set="IMNET"),
        seed=np.int64(3),
    )


def papers_script(model: Any, path: Path) -> Path:
    """main.py of DeiT, XCiT and SimA; the averaged weights are a second choice there."""
    optimizer = optimizer_of(model)
    schedule = CosineLRScheduler(optimizer, t_initial=10)
    held = {
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "lr_scheduler": schedule.state_dict(),
        "epoch": 3,
        "model_ema": small(9).state_dict(),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "args": options(),
    }
    torch.save(held, path)
    return path


def timms_saver(model: Any, path: Path, *, averaged: bool) -> Path:
    """timm's train.py, through its own saver."""
    args = argparse.Namespace(model="deit_tiny_patch16_224", lr=0.1)
    raw, mean = (small(9), ModelEmaV3(model)) if averaged else (model, None)
    saver = CheckpointSaver(
        raw,
        optimizer_of(raw),
        args=args,
        model_ema=mean,
        checkpoint_dir=str(path.parent),
        recovery_dir=str(path.parent),
    )
    saver.save_checkpoint(3, metric=0.5)
    return path.parent / "last.pth.tar"


def dinos_script(model: Any, path: Path, *, which: str = "teacher") -> Path:
    """main_dino.py: a student in DataParallel and a teacher, each a backbone and a projection."""
    mine, other = {}, {}
    for name, value in model.state_dict().items():
        mine[f"backbone.{name}"], other[f"backbone.{name}"] = value, torch.zeros_like(value)
    for held in (mine, other):
        held["head.mlp.0.weight"], held["head.last_layer.weight_g"] = (
            torch.ones(8, 48),
            torch.ones(8, 1),
        )
    teacher, student = (mine, other) if which == "teacher" else (other, mine)
    torch.save(
        {
            "student": {f"module.{name}": value for name, value in student.items()},
            "teacher": teacher,
            "epoch": 3,
            "args": options(),
            "dino_loss": {"center": torch.zeros(1, 8)},
        },
        path,
    )
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
    path.write_text(
        json.dumps({
            "metadata": {},
            "weight_map": {"cls_token": "model-00001-of-00002.safetensors"},
        })
    )
    return path


def lightnings_trainer(model: Any, path: Path) -> Path:
    """A checkpoint of Lightning's own trainer, with its loops, callbacks and hyperparameters."""
    import pytorch_lightning

    class Module(pytorch_lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.save_hyperparameters({"lr": 0.1, "folder": Path("runs")})
            self.model = model

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.0, weight_decay=0.0)
            return {
                "optimizer": optimizer,
                "lr_scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 3),
            }

        def training_step(self, batch: Any, _: int) -> Any:
            return self.model(batch[0]).sum()

    images = torch.utils.data.DataLoader(
        torch.utils.data.TensorDataset(torch.ones(2, 3, 64, 64)), batch_size=2
    )
    quiet = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "enable_checkpointing": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of workers that this one batch does not need
        trainer = pytorch_lightning.Trainer(
            max_steps=1,
            accelerator="cpu",
            default_root_dir=str(path.parent),
            **quiet,  # type: ignore[arg-type]
        )
        trainer.fit(Module(), images)
        trainer.save_checkpoint(str(path))
    return path


def accelerates(model: Any, path: Path) -> Path:
    import accelerate

    accelerate.Accelerator(cpu=True).save_model(model, str(path.parent / "accelerate"))
    return path.parent / "accelerate"


def safetensors_own(model: Any, path: Path) -> Path:
    import safetensors.torch

    safetensors.torch.save_model(model, str(path.with_suffix(".safetensors")))
    return path.with_suffix(".safetensors")


def adapter(model: Any, path: Path) -> Path:
    import peft

    found: Any = peft.get_peft_model(
        copy.deepcopy(model), peft.LoraConfig(target_modules=["attn.proj"])
    )
    found.save_pretrained(str(path.parent / "peft"))
    return path.parent / "peft" / "adapter_model.safetensors"


def distributed(model: Any, path: Path) -> Path:
    import torch.distributed.checkpoint as dcp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is one process, as it says
        dcp.save({"model": model.state_dict()}, checkpoint_id=str(path.parent / "dcp"))
    return path.parent / "dcp"


def program(model: Any, path: Path) -> Path:
    torch.export.save(
        torch.export.export(model, (torch.ones(1, 3, 64, 64),)), path.with_suffix(".pt2")
    )
    return path.with_suffix(".pt2")


def numpys(model: Any, path: Path) -> Path:
    np.savez(
        path.with_suffix(".npz"),
        **{name: value.numpy() for name, value in model.state_dict().items()},
    )
    return path.with_suffix(".npz")


def bare_pickle(model: Any, path: Path) -> Path:
    path.write_bytes(pickle.dumps(model.state_dict()))
    return path


def hdf5(_: Any, path: Path) -> Path:
    path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99))
    return path


def several(**models: Any) -> Callable[[Any], Any]:
    """One state dict of a module that holds several models: the one given, where it says None."""

    def of(model: Any) -> Any:
        held = {name: model if other is None else other for name, other in models.items()}
        return {
            f"{name}.{key}": x for name, one in held.items() for key, x in one.state_dict().items()
        }

    return of


OLD = {"_use_new_zipfile_serialization": False}
# how it is written -> what the report says was taken
LOADS: dict[str, tuple[Callable[[Any, Path], Path], str]] = {
    "state dict": (saved(lambda m: m.state_dict()), ""),
    "main.py of DeiT, XCiT, SimA": (papers_script, "'model', and not 'model_ema'"),
    "train.py of timm": (lambda m, path: timms_saver(m, path, averaged=False), ""),
    "train.py of timm, averaged": (
        lambda m, path: timms_saver(m, path, averaged=True),
        "'state_dict_ema', and not 'state_dict'",
    ),
    "DistributedDataParallel": (
        saved(lambda m: nn.DataParallel(m).state_dict()),
        "names without their 'module.'",
    ),
    "torch.compile": (
        saved(lambda m: compiled(m).state_dict()),
        "names without their '_orig_mod.'",
    ),
    "compiled, then DataParallel": (
        saved(lambda m: nn.DataParallel(compiled(m)).state_dict()),
        "'module._orig_mod.'",
    ),
    "blocks compiled alone": (saved(with_compiled_blocks), "'_orig_mod.'"),
    "Lightning": (
        saved(
            lambda m: {
                "state_dict": renamed("model.{}".format)(m),
                "hyper_parameters": options(),
                "callbacks": {
                    "best": {
                        "best_model_score": torch.tensor(0.5),
                        "dirpath": pathlib.PurePosixPath("a"),
                    }
                },
                "loops": {},
                "epoch": 3,
            }
        ),
        "'model.'",
    ),
    "Lightning, a loss's weights beside": (
        saved(
            lambda m: {
                "state_dict": {**renamed("model.{}".format)(m), "criterion.weight": torch.ones(3)},
                "epoch": 3,
            }
        ),
        "'model.'",
    ),
    "averages one level down": (
        saved(
            lambda m: {
                "model": m.state_dict(),
                "ema": {"module": small(9).state_dict(), "updates": 3},
            }
        ),
        "'model', and not 'ema'",
    ),
    "main_dino.py": (dinos_script, "'teacher', and not 'student'; names without their 'backbone.'"),
    "Lightning's trainer": (lightnings_trainer, "'model.'"),
    "Lightning, student and teacher": (
        saved(lambda m: {"state_dict": several(student=small(9), teacher=None)(m), "epoch": 3}),
        "'teacher', and not 'student'",
    ),
    "torch's averages of weights": (
        saved(lambda m: AveragedModel(m).state_dict()),
        "names without their 'module.'",
    ),
    "torchvision's references, averaged": (
        saved(
            lambda m: {
                "model": m.state_dict(),
                "model_ema": AveragedModel(small(9)).state_dict(),
                "optimizer": optimizer_of(m).state_dict(),
                "lr_scheduler": {},
                "args": options(),
                "epoch": 3,
            }
        ),
        "'model', and not 'model_ema'",
    ),
    "FSDP's names": (saved(renamed("_fsdp_wrapped_module.{}".format)), "'_fsdp_wrapped_module.'"),
    "Fabric's names": (
        saved(lambda m: {"model": renamed("_forward_module.{}".format)(m)}),
        "'_forward_module.'",
    ),
    "DeepSpeed": (
        saved(
            lambda m: {
                "module": m.state_dict(),
                "buffer_names": [],
                "optimizer": None,
                "global_steps": 3,
                "ds_version": "0.1",
            }
        ),
        "",
    ),
    "mmengine": (
        saved(
            lambda m: {
                "meta": {"cfg": "model = dict()", "epoch": 1},
                "state_dict": renamed("backbone.{}".format)(m),
                "message_hub": {},
                "param_schedulers": [],
            }
        ),
        "'backbone.'",
    ),
    "accelerate": (accelerates, ""),
    "safetensors": (safetensors_own, ""),
    "params and params_ema (BasicSR's saver)": (
        saved(lambda m: {"params": small(9).state_dict(), "params_ema": m.state_dict()}),
        "'params_ema', and not 'params'",
    ),
    "network": (saved(lambda m: {"network": m.state_dict(), "step": 3}), ""),
    "model_state_dict of the tutorials": (
        saved(
            lambda m: {
                "model_state_dict": m.state_dict(),
                "optimizer_state_dict": optimizer_of(m).state_dict(),
                "loss": 0.3,
            }
        ),
        "",
    ),
    "before torch 1.6": (
        saved(lambda m: {"state_dict": m.state_dict(), "epoch": 3}, **OLD),
        "which has no checksums",
    ),
    "before torch 1.6, with options": (
        saved(
            lambda m: {
                "model": m.state_dict(),
                "optimizer": optimizer_of(m).state_dict(),
                "args": options(),
            },
            **OLD,
        ),
        "which has no checksums",
    ),
    "numpy's numbers and arrays": (
        saved(
            lambda m: {
                "model": m.state_dict(),
                "best": np.float64(0.5),
                "history": np.ones(3),
                "when": dt.datetime.now(),
                "counts": collections.defaultdict(list, a=[1]),
                "seen": {1, 2},
            }
        ),
        "",
    ),
    "half precision": (saved(lambda m: m.state_dict()), ""),
    "parameters, not tensors": (saved(lambda m: dict(m.named_parameters())), ""),
}
REFUSED: dict[str, tuple[Callable[[Any, Path], Path], str]] = {
    "a whole model": (
        saved(lambda m: nn.Sequential(m.norm)),
        r"holds a whole model \(torch.nn.modules.*\) and not its weights",
    ),
    "an optimiser": (
        saved(lambda _: {"state": {}, "param_groups": [{"lr": 0.1}]}),
        "holds no tensors under names",
    ),
    "TorchScript": (traced, "it is a program of TorchScript"),
    "an index of shards": (index_of_shards, "is no file of tensors"),
    "before torch 0.4": (lambda _, path: hostile.tar(path, b"\x80\x02}."), "is a tar archive"),
    "an adapter of peft": (adapter, "it holds a LoRA adapter: merge it"),
    "torch.distributed.checkpoint": (distributed, "no file FILE.model.safetensors"),
    "torch.export": (program, "it is a program of torch.export"),
    "numpy's npz": (numpys, "it is an .npz of numpy"),
    "pickle, and not torch.save": (bare_pickle, "is a bare pickle that calls"),
    "HDF5": (hdf5, "is an HDF5 file"),
    "arrays in place of tensors": (
        saved(lambda m: {name: x.numpy() for name, x in m.state_dict().items()}),
        "holds no tensors under names",
    ),
    "dynamic int8": (saved(lambda m: quantized(m).state_dict()), r"calls torch\.(qint8|.*quant)"),
    "integers": (
        saved(lambda m: {name: (x * 100).to(torch.int8) for name, x in m.state_dict().items()}),
        "is int8 in the file and float32 in the model",
    ),
    "complex numbers": (
        saved(lambda m: {name: x.to(torch.complex64) for name, x in m.state_dict().items()}),
        "is complex64 in the file and float32",
    ),
    "without numbers": (
        saved(lambda m: {name: x.to("meta") for name, x in m.state_dict().items()}),
        "meta_tensor",
    ),
    "NaN among the weights": (
        saved(lambda m: {name: x / 0 * 0 for name, x in m.state_dict().items()}),
        "holds NaN or infinity",
    ),
    "pruned, its masks beside": (
        saved(lambda m: pruned(m).state_dict()),
        "weight_orig .* has no place",
    ),
    "a script's own class": (
        saved(lambda m: {"model": m.state_dict(), "args": Call(Option, 3)}),
        "calls tests.models.checkpoints.Option",
    ),
    "another model": (
        saved(lambda _: timm.create_model("deit_small_patch16_224").state_dict()),
        "nearest named model|is of 'sima_deit_small",
    ),
}


class Option:
    """Of some script."""

    def __init__(self, number: int) -> None:
        self.number = number


def quantized(model: nn.Module) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch would rather have torchao
        return torch.ao.quantization.quantize_dynamic(
            copy.deepcopy(model), {nn.Linear}, torch.qint8
        )


def pruned(model: nn.Module) -> nn.Module:
    from torch.nn.utils import prune

    model = copy.deepcopy(model)
    for one in model.modules():
        if isinstance(one, nn.Linear):
            prune.l1_unstructured(one, "weight", 0.5)
    return model


def spoilt(folder: Path) -> Iterator[tuple[str, Path]]:
    """More than 300 damaged and hostile files, one after the other, of the papers' script and of
    torch's old format; each by what was done to it.
    """
    generator = torch.Generator().manual_seed(0)
    model, canary = small(1), folder / "canary"
    whole = papers_script(model, folder / "whole.pth").read_bytes()
    save = saved(lambda m: {"model": m.state_dict(), "args": options()}, **OLD)
    old = save(model, folder / "old.pth").read_bytes()
    path = folder / "spoilt.pth"
    for place in torch.randint(len(whole), (110,), generator=generator).tolist():
        damaged = bytearray(whole)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(damaged)
        yield "one bit is another", path
    for name, content in (("cut short", whole), ("cut short, before torch 1.6", old)):
        for length in torch.randint(len(content), (60,), generator=generator).tolist():
            path.write_bytes(content[:length])
            yield name, path
    state = model.state_dict()
    for name, how in (("calls something", {}), ("calls something, before torch 1.6", OLD)):
        for make, _ in CALLS.values():
            for held in (
                {"model": state, "args": make(canary)},
                {"state_dict": state, "args": argparse.Namespace(a=make(canary))},
            ):
                torch.save(held, path, **how)
                yield name, path


class Outcome(NamedTuple):
    """What became of a file: "loads", "refused" or "wrong", and what was said."""

    outcome: str
    said: str


def outcome(path: Path, expected: dict[str, torch.Tensor], model: Any) -> Outcome:
    """Load a file into a model; wrong are other numbers than were written, and an error of another
    kind than ours.
    """
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(7)
    try:
        found = load_weights(model, path)
    except SoftlessError as error:
        untouched = all(bool((parameter == 7).all()) for parameter in model.parameters())
        return Outcome("refused" if untouched and "\n" not in str(error) else "wrong", str(error))
    # whatever is raised that is no sentence of ours is wrong
    except Exception as error:  # noqa: BLE001
        return Outcome("wrong", f"{type(error).__name__}: {error}")
    same = all(
        torch.allclose(x, expected[name].float(), atol=1e-6)
        for name, x in model.state_dict().items()
    )
    return Outcome("loads" if same else "wrong", found.taken)


def kind_of(kind: str, folder: Path) -> Outcome:
    """What becomes of a kind of checkpoint."""
    save, _ = {**LOADS, **REFUSED}[kind]
    model = small(1)
    written = model.half() if kind == "half precision" else model
    expected = {name: x.clone() for name, x in written.state_dict().items()}
    path = save(written, folder / "c.pth")
    found = outcome(path, expected, small(2))
    return found._replace(
        said=found.said.replace(str(path), "FILE").replace(str(path.parent), "FOLDER")
    )


def spoilt_counts(folder: Path) -> dict[str, dict[str, int]]:
    """How many of the damaged and hostile files load, are refused, give wrong numbers, and run what
    they hold, by what was done to them.
    """
    expected = {name: x.clone() for name, x in small(1).state_dict().items()}
    model = small(2)
    counts: dict[str, dict[str, int]] = {}
    for name, path in spoilt(folder):
        row = counts.setdefault(name, {"loads": 0, "refused": 0, "wrong": 0, "run": 0})
        row[outcome(path, expected, model).outcome] += 1
        row["run"] += (folder / "canary").exists()
    return counts


PREAMBLES = (
    "FILE does not fit this model (read as ours or timm’s): ",
    "FILE is not an archive of torch.save that can be trusted: ",
    "FILE ",
)


def _shown(kind: str, text: str) -> str:
    """What the report says was taken, or the clause of a refusal that gives the reason."""
    if kind not in REFUSED:
        return text
    clauses = text.split("; ")
    clause = next((one for one in clauses if re.search(REFUSED[kind][1], one)), clauses[0])
    for start in PREAMBLES:
        clause = clause.removeprefix(start)
    return " ".join(clause.replace("__main__", "script").split())


def main(target: Path) -> int:
    """Write the table; exit code 1 if a file is taken for another, or runs something."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for kind in (*LOADS, *REFUSED):
            (place := Path(folder) / str(len(rows))).mkdir()
            found = kind_of(kind, place)
            numbers = {name: int(name == found.outcome) for name in ("loads", "refused", "wrong")}
            rows.append({
                "kind": kind,
                "files": 1,
                **numbers,
                "run": 0,
                "said": _shown(kind, found.said),
            })
        for name, counts in spoilt_counts(Path(folder)).items():
            files = counts["loads"] + counts["refused"] + counts["wrong"]
            rows.append({"kind": name, "files": files, **counts, "said": ""})
    write_csv(target, rows)
    wrong = sum(row["wrong"] + row["run"] for row in rows)
    print(
        f"{len(LOADS)} kinds load, {len(REFUSED)} are refused, "
        f"{sum(row['files'] for row in rows)} files, {wrong} wrong or run"
    )
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
