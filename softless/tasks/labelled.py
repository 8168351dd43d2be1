"""The labelled images that a run is measured on: its own, or others that a user names."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from softless.data.datasets import open_parts, open_splits
from softless.data.folder import class_places
from softless.data.given import GIVEN
from softless.data.notices import notice
from softless.data.samples import Samples
from softless.errors import DataError, located
from softless.evaluation.run import LoadedRun
from softless.experiment.bag_table import BagTableSpec
from softless.experiment.groups import DataSpec, TableSpec
from softless.words import counted, few

HELD = Path(GIVEN)  # this very object stands for datasets that were built in Python


@dataclass(frozen=True)
class EvaluationSource:
    """The labelled images that are asked for."""

    spec: DataSpec
    table: TableSpec | BagTableSpec | None  # that lists them
    own: bool  # whether they are those of the run

    @property
    def where(self) -> str:
        """Where they are, for people."""
        listed = None if self.table is None else self.table.path
        return str(listed or self.spec.path or self.spec.source)


def source_of(
    loaded: LoadedRun, data: str | Path | None, table: str | Path | None
) -> EvaluationSource:
    """The run's data, or others: a table, an npz file (or the one in a folder), or class
    folders.
    """
    stored, columns = loaded.recipe.data, loaded.recipe.table
    if data is None and table is None:
        return EvaluationSource(stored, columns, own=True)
    if data is HELD:
        own = replace(stored, source="given", path=None, group=None, folds=None, fold=None)
        return EvaluationSource(own, None, own=False)
    path = None if data is None else str(data)
    settings = loaded.recipe.settings
    if settings is not None and settings.listed:  # which reads its samples and tables itself
        rows = columns if table is None or columns is None else replace(columns, path=str(table))
        return EvaluationSource(replace(stored, path=path or stored.path), rows, own=False)
    spec = replace(stored, path=path, group=None, folds=None, fold=None)
    if table is not None:  # whose an image is matters to nothing that is measured
        own = columns if isinstance(columns, TableSpec) else TableSpec()
        listed = replace(own, path=str(table), group=None)
        if loaded.task == "multilabel":
            listed = replace(listed, label=loaded.classes)
        return EvaluationSource(replace(spec, source="folder"), listed, own=False)
    source_path = located(str(path))
    is_npz = source_path.suffix == ".npz" or (
        stored.source == "npz" and any(source_path.glob("*.npz"))
    )
    return EvaluationSource(replace(spec, source="npz" if is_npz else "folder"), None, own=False)


def check_there(loaded: LoadedRun, data: str | Path | None, table: str | Path | None) -> None:
    """Whether the run's own data lie where it found them, if no others are given."""
    path, stored_table = loaded.recipe.data.path, loaded.recipe.table
    if data is not None or table is not None:
        return
    if stored_table is not None and stored_table.path and not located(stored_table.path).exists():
        raise DataError(
            f"the table of the run {loaded.path} is not at {stored_table.path}: pass its place, "
            "softless eval RUN --table FILE"
        )
    if path and not located(path).exists():
        way = "DATA" if stored_table is None else "DATA --table FILE"
        raise DataError(
            f"the data of the run {loaded.path} are not at {path}: pass their place, softless "
            f"eval RUN {way}"
        )


@dataclass(frozen=True)
class Labelled:
    """Images with labels."""

    samples: Samples
    part: str  # what to call them
    classes: tuple[str, ...]  # names in the order of the model's logits


def samples_of(loaded: LoadedRun, source: EvaluationSource, split: str) -> Labelled:
    """The images asked for; a model without names takes those of the data, in their order."""
    spec = source.spec
    parts, classes = open_parts(spec, source.table)
    refuse_labels(loaded, parts, source.where)
    partly = not source.own and loaded.task != "multilabel"
    whose = f"the {'published model' if loaded.stored else 'run'} {loaded.path}"
    names = loaded.classes if loaded.named else _in_order(loaded, classes, source.where)
    places = class_places(names, classes, whose, source.where, partly=partly)
    samples, part = _of_split(loaded, source, split, parts, places)
    return Labelled(samples, part, names)


def _in_order(loaded: LoadedRun, classes: tuple[str, ...], where: str) -> tuple[str, ...]:
    """The classes of data for a model that names none.

    Raises:
        DataError: it has another number of them.
    """
    number = len(loaded.classes)
    if len(classes) != number:
        raise DataError(
            f"{where} has {counted(len(classes), 'class', 'classes')}, and {loaded.path} answers "
            f"{number}, which it does not name: save it again with "
            "softless.save_weights(model, FOLDER, classes=[...])"
        )
    notice(
        f"{loaded.path} does not name its classes: those of {where} are taken to be in the order "
        f"of its answers ({few(classes)})"
    )
    return classes


def _of_split(
    loaded: LoadedRun,
    source: EvaluationSource,
    split: str,
    parts: Mapping[str, Samples],
    places: tuple[int, ...],
) -> tuple[Samples, str]:
    """A part of what was opened, its classes numbered as the model's, and what to call it."""
    spec = source.spec
    if not source.own and "all" in parts:
        return parts["all"].renumbered(places), "all images"
    if split in parts and split != "train":
        return parts[split].renumbered(places), f"the {split} split"
    if split == "test" and spec.folds is None:
        raise DataError(
            f"{source.where} has no test split: choose --split val, or give other images with "
            "--data"
        )
    splits = open_splits(spec, loaded.recipe.seed, source.table)  # cuts parts off as training did
    samples = {"train": splits.train, "val": splits.val, "test": splits.test}[split]
    assert samples is not None
    return samples.renumbered(places), f"the {split} split"


def refuse_labels(loaded: LoadedRun, parts: Mapping[str, Samples], origin: str) -> None:
    """Whether images have several labels where the run has, and one where it has one."""
    several = any(samples.targets.ndim == 2 for samples in parts.values())
    if several != (loaded.task == "multilabel"):
        kinds = ("one label", "several labels")
        raise DataError(
            f"{origin} has {kinds[several]} an image, and the run {loaded.path} knows "
            f"{kinds[not several]}: give others"
        )
