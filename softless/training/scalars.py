"""TensorBoard's view of a run, where TensorBoard is installed: the numbers of log.jsonl, one point
per epoch.

TensorBoard's own writer works in a thread, where an error of the disk ends in a traceback; here
each epoch is one write of the run itself.
"""

import io
import os
import socket
import time
from collections.abc import Iterator, Mapping
from typing import Any

from softless.experiment.folder import SCALARS
from softless.models.durable import append, make_folder
from softless.training.run import Run


class Scalars:
    """Writes each epoch's numbers into `tensorboard/` of the run folder; does nothing without the
    package.
    """

    def __init__(self, run: Run) -> None:
        self.enabled = run.world.is_first and _installed()
        if self.enabled:
            now, host = time.time_ns() // 1000, socket.gethostname()
            name = f"events.out.tfevents.{now:016d}.{host}.{os.getpid()}"
            self.path = make_folder(run.folder.path / SCALARS) / name
            # later points were of a run before
            restarted = {"step": run.epoch + 1, "session_log": {"status": "START"}}
            append(self.path, _records({"file_version": "brain.Event:2"}, restarted))

    def close(self, *, failed: bool) -> None:
        """Each epoch is on disk already."""

    def write(self, line: Mapping[str, Any]) -> None:
        """Add an epoch.

        Raises:
            StorageError: the disk is full or the folder cannot be written.
        """
        if self.enabled:
            values = [{"tag": name, "simple_value": value} for name, value in flat(line)]
            append(self.path, _records({"step": line["epoch"], "summary": {"value": values}}))


def _installed() -> bool:
    try:
        import tensorboard.summary.writer.record_writer  # noqa: F401
    except ImportError:
        return False
    return True


def _records(*events: Mapping[str, Any]) -> bytes:
    """Events as TensorBoard's files hold them."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    writer = RecordWriter(stream)
    for event in events:
        writer.write(Event(wall_time=time.time(), **event).SerializeToString())
    return stream.getvalue()


def flat(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The numbers of a line by name, those of tables as `val/loss`; the epoch itself is none."""
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "epoch":
            yield prefix + name, float(value)
