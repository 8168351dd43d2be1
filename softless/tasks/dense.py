"""The labelled images of a run whose answers are dense: boxes, masks, the class of each pixel."""

from dataclasses import replace

from softless.data.samples import Samples
from softless.errors import DataError
from softless.evaluation.run import LoadedRun
from softless.tasks.table import open_task
from softless.tasks.task import Task


def dense_samples(
    loaded: LoadedRun,
    path: str | None,
    split: str,
    *,
    batch_size: int | None = None,
    workers: int = 0,
) -> tuple[Task, Samples]:
    """The run's own task on a split of labelled images, their classes in the run's order.

    Args:
        loaded: a run of detection or segmentation.
        path: where the images are; None is where the run found its own.
        split: train, val or test.
        batch_size: images at once; as in training by default.
        workers: processes that load images.

    Raises:
        DataError: the images cannot be read, have other classes, or have no such split.
    """
    stored = loaded.recipe
    spec = replace(stored.data, path=path or stored.data.path, workers=workers)
    task = open_task(replace(stored, data=spec, batch_size=batch_size or stored.batch_size))
    task = task.with_classes(loaded.classes, f"the run {loaded.path}")
    splits = {"train": task.splits.train, "val": task.splits.val, "test": task.splits.test}
    samples = splits[split]
    if samples is None:
        raise DataError(
            f"{spec.path} has no test split: choose --split val, or give other images with --data"
        )
    return task, samples
