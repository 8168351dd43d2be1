"""TensorBoard's view of a run, where TensorBoard is installed: the numbers of log.jsonl, one point per epoch."""

from collections.abc import Iterator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from softless.training.run_folder import SCALARS

if TYPE_CHECKING:
    from softless.training.setup import Run


class Scalars:
    """Writes each epoch's numbers into `tensorboard/` of the run folder; does nothing without the package."""

    def __init__(self, run: "Run") -> None:
        self.writer = _writer(run) if run.world.is_first else None

    def __enter__(self) -> "Scalars":  # noqa: PYI034 - typing.Self is younger than Python 3.10
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.writer is not None:
            self.writer.close()

    def write(self, line: Mapping[str, Any]) -> None:
        if self.writer is not None:
            for name, value in _flat(line):
                self.writer.add_scalar(name, value, line["epoch"])


def _writer(run: "Run") -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(run.folder.path / SCALARS), purge_step=run.epoch + 1)


def _flat(line: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    for name, value in line.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and name != "epoch":
            yield prefix + name, value
