"""`softless eval`: what the best epoch of a run is worth on a labelled split."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from softless.data.samples import Samples
from softless.errors import DataError, UsageError, unknown
from softless.evaluation import Evaluation, LoadedRun

if TYPE_CHECKING:
    from softless.training.recipe import DataSpec

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class RunEvaluation:
    """An evaluation with what was evaluated on what; prints as a table."""

    run: str
    data: str
    split: str
    evaluation: Evaluation

    def to_dict(self) -> dict[str, Any]:
        return {"run": self.run, "data": self.data, "split": self.split, **self.evaluation.to_dict()}

    def __str__(self) -> str:
        parts = [f"{self.run} on {self.split} of {self.data}", "", str(self.evaluation)]
        if len(self.evaluation.classes) <= 20:
            parts += ["", confusion_table(self.evaluation)]
        return "\n".join(parts)


def eval(
    run: str | Path,
    data: str | Path | None = None,
    *,
    split: Literal["train", "val", "test"] = "test",
    device: str = "auto",
    batch_size: int = 256,
    workers: int = 0,
) -> RunEvaluation:
    """Measure the best epoch of a run: accuracy with its 95 % interval, balanced accuracy, AUC, confusion.

    Args:
        run: the run's folder.
        data: a folder or npz file with the same classes, in place of the run's own data; class folders without splits
            are taken whole.
        split: which part of the data.
        device: auto, cpu, cuda, mps.
        batch_size: images at once.
        workers: processes that load images; 0 loads in this one.

    Raises:
        DataError: the run or the data cannot be read, or its classes are not the run's.
        UsageError: no such split or device.
    """
    from softless.data import eval_loader
    from softless.evaluation import evaluate, load_run
    from softless.training.world import choose_device

    if split not in SPLITS:
        raise unknown("split", split, SPLITS)
    if batch_size < 1:
        raise UsageError(f"batch_size={batch_size}: at least one image at once")
    loaded = load_run(run, choose_device(device))
    samples, part = _samples(loaded, None if data is None else str(data), split)
    loader = eval_loader(samples, loaded.transform, batch=batch_size, workers=workers)
    where = str(data) if data is not None else str(loaded.recipe.data.path or loaded.recipe.data.source)
    return RunEvaluation(str(loaded.path), where, part, evaluate(loaded, loader))


def confusion_table(evaluation: Evaluation) -> str:
    """Rows are the truth, columns the prediction."""
    names = [name if len(name) <= 14 else name[:13] + "…" for name in evaluation.classes]
    width = max(len(name) for name in names) + 2
    columns = [max(len(name), 5) for name in names]
    lines = ["truth \\ said".ljust(max(width, 14)) + "  ".join(n.rjust(w) for n, w in zip(names, columns, strict=True))]
    for name, row in zip(names, evaluation.metrics.confusion.tolist(), strict=True):
        lines.append(name.ljust(max(width, 14)) + "  ".join(str(c).rjust(w) for c, w in zip(row, columns, strict=True)))
    return "\n".join(lines)


def _samples(loaded: LoadedRun, data: str | None, split: str) -> tuple[Samples, str]:
    """The images asked for and what to call them."""
    from softless.data import open_parts, open_splits
    from softless.data.folder import check_classes
    from softless.training.recipe import DataSpec

    stored = DataSpec(**vars(loaded.recipe.data))
    spec = stored if data is None else _elsewhere(stored, data)
    where = str(spec.path or spec.source)
    parts, classes = open_parts(spec)
    check_classes(loaded.classes, classes, f"the run {loaded.path}", where)
    if data is not None and "all" in parts:
        return parts["all"], "all images"
    if split in parts and split != "train":
        return parts[split], f"the {split} split"
    if split == "test":
        raise DataError(f"{where} has no test split: choose --split val, or give other images with --data")
    splits = open_splits(spec, loaded.recipe.seed)  # cuts the validation part off as training did
    return (splits.val if split == "val" else splits.train), f"the {split} split"


def _elsewhere(spec: "DataSpec", data: str) -> "DataSpec":
    """The run's data spec pointed at another place: an npz file (or the one in a folder), or class folders."""
    path = Path(data).expanduser()
    is_npz = path.suffix == ".npz" or (spec.source == "npz" and any(path.glob("*.npz")))
    return replace(spec, path=data, source="npz" if is_npz else "folder")
