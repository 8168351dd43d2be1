"""A model that a file describes is built without memory first and compared with the weights beside
it.

A text of a hundred bytes can describe a model that no memory holds; the weights beside it say how
large it may be.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from softless.errors import DataError, UsageError
from softless.models.header import read_header

MOST = 20_000  # parameters of a model whose weights are not there to be compared with
TIMES = 4  # how many of the file's tensors and numbers a model may have
# tensors and numbers beyond that: a small file, tables that are not stored
MORE = (400, 16_000_000)


class _TooManyError(Exception):
    """More parameters were made than the file can hold."""


def check_fits(build: Callable[[], nn.Module], weights: Path, source: Path) -> None:
    """Whether the model that `source` describes is of the size of the weights beside it; takes no
    memory for what it describes.

    Args:
        build: makes the model.
        weights: a .safetensors file; where there is none, the number of tensors alone is limited.
        source: the file that describes the model, for the message.

    Raises:
        DataError: it is much larger, or no model can be built from it; and as `build` raises it.
        UsageError: as `build` raises it.
    """
    stored = read_header(weights) if weights.is_file() else None
    limit = MOST if stored is None else TIMES * len(stored) + MORE[0]
    beside = "" if stored is None else f", and {weights.name} beside it holds {len(stored)}"
    try:
        with _at_most(limit), torch.device("meta"):
            model = build()
    except _TooManyError:
        raise DataError(
            f"{source} describes a model of more than {limit} tensors{beside}: one of the two "
            "files is another model's; copy both again"
        ) from None
    except (UsageError, DataError):
        raise
    except Exception as error:
        raise DataError(
            f"{source} builds no model: "
            f"{str(error).splitlines()[0][:200] if str(error) else type(error).__name__}"
        ) from error
    if stored is None:
        return
    numbers = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    stored_numbers = sum(torch.Size(shape).numel() for shape in stored.values())
    if numbers > TIMES * stored_numbers + MORE[1]:
        raise DataError(
            f"{source} describes a model of {numbers:,} numbers, and {weights.name} beside it "
            f"holds {stored_numbers:,}: one of the two files is "
            "another model's; copy both again"
        )


@contextmanager
def _at_most(limit: int) -> Iterator[None]:
    """Stop this thread when it makes more parameters."""
    thread, count_made = threading.get_ident(), 0

    def count(_module: nn.Module, _name: str, _parameter: nn.Parameter) -> None:
        nonlocal count_made
        if threading.get_ident() == thread:
            count_made += 1
            if count_made > limit:
                raise _TooManyError

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()
