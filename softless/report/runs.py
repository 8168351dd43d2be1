"""What a run folder holds, read once (the contract between training and report)."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from softless.attention.registry import OPERATORS
from softless.errors import DataError, UsageError
from softless.experiment.about import ABOUT, read_about
from softless.experiment.candidates import unsaid
from softless.experiment.files import (
    EXPORTS,
    read_best,
    read_classes,
    read_exports,
    read_log,
    read_result,
    task_of,
)
from softless.experiment.measures import MEASURES
from softless.experiment.recipe import Recipe, read_stored
from softless.experiment.started import RECOVERED, read_started
from softless.models.sides import sides


@dataclass(frozen=True)
class HeldOutPredictions:
    """A model's answers on the test split."""

    logits: NDArray[np.float32]  # (n, K)
    targets: NDArray[np.int64]  # (n,)
    names: tuple[str, ...]

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """Softmax of the logits, (n, K)."""
        logits = self.logits.astype(np.float64)
        raised = np.exp(logits - logits.max(1, keepdims=True))
        return raised / raised.sum(1, keepdims=True)

    @property
    def predicted(self) -> NDArray[np.int64]:
        """The class of the largest logit, (n,)."""
        return self.logits.argmax(1)

    @property
    def correct(self) -> NDArray[np.bool_]:
        """Whether that is the class of the image, (n,)."""
        return self.predicted == self.targets

    def same_images(self, predictions: "HeldOutPredictions") -> bool:
        return self.names == predictions.names and np.array_equal(self.targets, predictions.targets)


@dataclass(frozen=True)
class RunRecord:
    """A finished run."""

    folder: Path
    recipe: Recipe
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    classes: tuple[str, ...]
    epochs: list[dict[str, Any]]
    result: dict[str, Any]
    best: dict[str, Any]
    predictions: HeldOutPredictions | None
    # dotted field -> what the run took in place of the recipe's
    fitted: Mapping[str, Any] = field(default_factory=dict)
    # command, date, commit, data; nothing of runs of an older softless
    provenance: dict[str, Any] = field(default_factory=dict)
    # the weights that it started from, and what was done to them
    started: dict[str, Any] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        return self.recipe.seed

    @property
    def task(self) -> str:
        """Of the table of tasks."""
        return task_of(self.best)

    @property
    def weights(self) -> str:
        """Which weights of the best epoch are kept: raw or averaged."""
        kind = self.result.get("weights")
        return str(kind or unsaid(ema_evaluate=self.recipe.ema_evaluate))

    @property
    def pixels(self) -> tuple[int, int, int]:
        """Channels, height and width of a typical image."""
        height, width = self.best.get("pixels", sides(self.best["image_size"]))
        return int(self.best["in_chans"]), int(height), int(width)

    @property
    def measure(self) -> str:
        """What validation shows over the epochs: the measure that chose the best one, or the first
        where the last epoch is kept.
        """
        metric = self.recipe.metric
        scores = self.epochs[0]["val"]
        return (
            metric
            if metric in scores
            else next((name for name in MEASURES if name in scores), "loss")
        )

    @cached_property
    def exports(self) -> list[dict[str, Any]]:
        """What was exported of these weights, in the order of the exports.

        Raises:
            DataError: exports.jsonl is damaged.
        """
        return exports_of(self.folder, self.best)

    @cached_property
    def operator(self) -> str:
        """The attention operator's name: asked for, part of the model's name, or what the model
        has; "none" of networks without.
        """
        requested = self.recipe.model.op or self.best.get("model_args", {}).get("op")
        first = str(self.best.get("architecture", self.recipe.model.name)).split("_")[0]
        model_operators = self.best.get("operators", ["softmax"])  # which older runs do not say
        return str(requested or (first if first in OPERATORS else (model_operators or ["none"])[0]))

    @property
    def model(self) -> str:
        """The model's name, or the class of one that was built in Python."""
        named = self.recipe.model
        built = str(named.args.get("class", "")).rpartition(".")[2]
        return built or named.name


def exports_of(folder: Path, best: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The files that were exported of the weights that best.json describes; those of earlier
    weights do not count.

    Raises:
        DataError: exports.jsonl is damaged.
    """
    weights = best.get("weights_sha256")
    return [
        row
        for row in read_exports(folder / EXPORTS)
        if row["weights_sha256"] == weights or not weights
    ]


def read_run(folder: Path) -> RunRecord:
    """Read a run folder.

    Raises:
        UsageError: the folder is missing, or the run in it is not finished.
        DataError: a file of the run is damaged.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is no run folder: give the --out folder of a finished `softless train`"
        )
    for name in ("recipe.json", "classes.json", "log.jsonl", "best.json", "result.json"):
        if not (folder / name).is_file():
            raise UsageError(
                f"{folder} holds no finished run ({name} is missing): finish it with `softless "
                "train --resume`"
            )
    epochs = read_log(folder / "log.jsonl")
    if not epochs:
        raise DataError(
            f"{folder / 'log.jsonl'} is damaged: it holds no epoch, and the run is finished; "
            "bring it back from a backup"
        )
    stored = read_stored(folder / "recipe.json")
    return RunRecord(
        folder=folder,
        recipe=stored.recipe,
        versions=stored.versions,
        machine=stored.machine,
        classes=read_classes(folder / "classes.json"),
        epochs=epochs,
        result=read_result(folder / "result.json"),
        best=read_best(folder / "best.json"),
        fitted=stored.fitted,
        provenance=read_about(folder / ABOUT),
        started=read_started(folder / RECOVERED),
        predictions=_predictions(folder / "predictions.npz"),
    )


def _predictions(path: Path) -> HeldOutPredictions | None:
    if not path.is_file():  # a data set without a test split
        return None
    with np.load(path, allow_pickle=False) as arrays:
        return HeldOutPredictions(
            arrays["logits"],
            arrays["targets"].astype(np.int64),
            tuple(str(name) for name in arrays["names"]),
        )
