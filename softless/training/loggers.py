"""Where the numbers of each epoch go beside log.jsonl: one small protocol, and what keeps to it.

TensorBoard's files are written wherever it is installed. `--set loggers=csv,mlflow,wandb` adds
others. A service that fails ends no run: it is said once, and log.jsonl has every number.
"""

import csv
import io
import json
import logging
import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, get_args

from softless.errors import SoftlessError, need
from softless.experiment.folder import CSV_LOG, LOGGED_AT, PLACES
from softless.experiment.groups import LoggerName
from softless.experiment.recipe import as_json
from softless.models.durable import write_text
from softless.models.records import read_json
from softless.training.run import Run
from softless.training.scalars import Scalars, flat

PROJECT = "softless"
NEEDS = {"mlflow": "mlflow", "wandb": "wandb"}  # logger -> what is imported
MOST = 100  # parameters in one message to MLflow
LONGEST = 250  # characters of one
_log = logging.getLogger("softless.training")


class Logger(Protocol):
    """What takes the numbers of each epoch."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Take a line of log.jsonl: `epoch`, counted from 1, and numbers, some in tables."""

    def close(self, *, failed: bool) -> None:
        """The run has ended."""


def check_loggers(loggers: tuple[str, ...]) -> None:
    """Whether what the loggers import is installed.

    Raises:
        MissingExtra: it is not.
    """
    need(*(NEEDS[name] for name in loggers if name in NEEDS))


class CsvLog:
    """log.csv: a row for each epoch, written whole each time, so that it follows a run that went
    back.
    """

    def __init__(self, run: Run) -> None:
        self.folder = run.folder

    def write(self, line: Mapping[str, Any]) -> None:  # noqa: ARG002 - the log has it
        """Write all epochs of the log.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        rows = [{"epoch": line["epoch"], **dict(flat(line))} for line in self.folder.epochs()]
        names = list(dict.fromkeys(name for row in rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(self.folder.path / CSV_LOG, text.getvalue())

    def close(self, *, failed: bool) -> None:
        """Each epoch is on disk already."""


class WeightsAndBiases:
    """A run of Weights & Biases; its own settings (WANDB_MODE, WANDB_PROJECT, …) hold."""

    def __init__(self, run: Run) -> None:
        import wandb

        self.run = wandb.init(
            project=None if wandb.setup().settings.project else PROJECT,
            name=run.folder.path.name,
            id=_remembered(run, "wandb", lambda: secrets.token_hex(4)),
            resume="allow",
            dir=str(run.folder.path),
            config=_settings(run),
            settings=wandb.Settings(
                silent=True,
                console="off",
                disable_git=True,
                disable_code=True,
                x_disable_meta=True,
                x_disable_machine_info=True,
                x_disable_stats=True,
                host="",
            ),
        )

    def write(self, line: Mapping[str, Any]) -> None:
        """Log the numbers of an epoch."""
        self.run.log(dict(flat(line)), step=line["epoch"])

    def close(self, *, failed: bool) -> None:
        """End the run, and send what is left."""
        self.run.finish(exit_code=int(failed))


class MlFlow:
    """A run of MLflow, in the store that MLFLOW_TRACKING_URI names."""

    def __init__(self, run: Run) -> None:
        from mlflow import MlflowClient
        from mlflow.entities import Param

        self.client = MlflowClient()
        self.id = _remembered(run, "mlflow", lambda: self._begun(run))
        self.client.update_run(self.id, status="RUNNING")
        stored = self.client.get_run(self.id).data.params
        params = [
            Param(name, str(value)[:LONGEST])
            for name, value in _dotted(_settings(run))
            if name not in stored
        ]
        for start in range(0, len(params), MOST):
            self.client.log_batch(self.id, params=params[start : start + MOST])

    def _begun(self, run: Run) -> str:
        found = self.client.get_experiment_by_name(PROJECT)
        experiment = (
            self.client.create_experiment(PROJECT) if found is None else found.experiment_id
        )
        return str(self.client.create_run(experiment, run_name=run.folder.path.name).info.run_id)

    def write(self, line: Mapping[str, Any]) -> None:
        """Log the numbers of an epoch."""
        from mlflow.entities import Metric

        now, epoch = int(time.time() * 1000), line["epoch"]
        metrics = [Metric(name, value, now, epoch) for name, value in flat(line)]
        self.client.log_batch(self.id, metrics=metrics)

    def close(self, *, failed: bool) -> None:
        """End the run."""
        self.client.set_terminated(self.id, "FAILED" if failed else "FINISHED")


KINDS: Mapping[str, Callable[[Run], Logger]] = {
    "csv": CsvLog,
    "mlflow": MlFlow,
    "wandb": WeightsAndBiases,
}
assert tuple(KINDS) == get_args(LoggerName)


@contextmanager
def logging_to(run: Run) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What takes each epoch's line, for TensorBoard and the loggers of the recipe; the first rank
    writes.
    """
    if not run.world.is_first:
        yield lambda line: None  # noqa: ARG005
        return
    names = dict.fromkeys(run.recipe.loggers)
    loggers: dict[str, Logger] = {"tensorboard": Scalars(run)}
    for name in names:
        with _survived(name, loggers):
            loggers[name] = KINDS[name](run)

    def write(line: Mapping[str, Any]) -> None:
        for name in list(loggers):
            with _survived(name, loggers):
                loggers[name].write(line)

    failed = True
    try:
        yield write
        failed = False
    finally:
        for name in list(loggers):
            with _survived(name, loggers):
                loggers[name].close(failed=failed)


@contextmanager
def _survived(name: str, loggers: dict[str, Logger]) -> Iterator[None]:
    """A service that fails is left out from then on; the disk's errors are the run's."""
    try:
        yield
    except SoftlessError:
        raise
    except Exception as error:  # noqa: BLE001 - of somebody else's package or service
        loggers.pop(name, None)
        line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        _log.warning(
            "loggers=%s takes no more numbers (%s): the run goes on, and log.jsonl has them all",
            name,
            line,
        )


def _remembered(run: Run, name: str, begin: Callable[[], str]) -> str:
    """The service's name of this run: a resumed run goes on in the same."""
    path = run.folder.path / LOGGED_AT
    stored = read_json(path) if path.is_file() else {}
    if not isinstance(stored.get(name), str):
        stored[name] = begin()
        write_text(path, json.dumps(stored, indent=1) + "\n")
    return str(stored[name])


def _settings(run: Run) -> dict[str, Any]:
    """The recipe without paths of this machine."""
    content = as_json(run.requested)
    for place in PLACES:
        group, _, name = place.partition(".")
        if isinstance(content.get(group), dict):
            content[group].pop(name, None)
    return {name: value for name, value in content.items() if value is not None}


def _dotted(content: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, Mapping) and value:
            yield from _dotted(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
