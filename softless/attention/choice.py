"""Which backend a thread takes where a call does not name one."""

import threading
from types import TracebackType

from softless.attention.registry import OPERATORS
from softless.errors import unknown

AUTO = "auto"
_thread = threading.local()


def asked_for(backend: str = AUTO) -> str:
    """The backend of a call that names this one: what `use_backend` said in this thread, where it
    names none.
    """
    return getattr(_thread, "backend", AUTO) if backend == AUTO else backend


def use_backend(name: str) -> "Until":
    """Every attention of this thread takes this backend from now on, or until the end of a `with`
    block.

    Other threads are not concerned. A call that names its backend keeps it. With gradient
    checkpointing the backward pass computes blocks again: it belongs inside the same block.

    Args:
        name: "eager", "native", "reference", …, as `softless list backends` shows them; "auto"
            takes the first that can run.

    Returns:
        What ends it: a context manager that puts back what was before.

    Raises:
        UsageError: no operator has a backend of that name. An operator that lacks it, or whose
            backend cannot run a call, raises `BackendRefused` at the call.

    Examples:
        >>> q = torch.ones(1, 2, 5, 8)
        >>> with softless.use_backend("eager"):
        ...     o = softless.attend(q, q, q)
        >>> until = softless.use_backend("auto")  # back to the fastest that can run
    """
    names = dict.fromkeys([
        AUTO,
        *(backend.name for record in OPERATORS.values() for backend in record.backends),
    ])
    if name not in names:
        raise unknown("backend", name, names)
    before, _thread.backend = asked_for(), name
    return Until(before)


class Until:
    """Puts the thread's backend back at the end of a `with` block."""

    def __init__(self, before: str) -> None:
        self.before = before

    def __enter__(self) -> None:
        """It was taken already."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _thread.backend = self.before
