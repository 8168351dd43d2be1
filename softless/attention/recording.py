"""Whether a call is recorded into a graph that others run, at sizes of their own and without this
library.
"""

from typing import Any

import torch


def recording() -> bool:
    """Whether `torch.export`, `torch.jit.trace` or an ONNX exporter records this call.

    Whoever chooses a way by the number of tokens asks here first: a choice made while recording is
    held for all sizes. A recorded call goes the eager way, whose operators every runtime knows.
    """
    return bool(torch.compiler.is_exporting() or torch.jit.is_tracing())


def recording_for_onnx() -> bool:
    """Whether an ONNX exporter does, whose operators are fewer."""
    # asked last: torch imports torch.onnx where it is named
    return recording() and torch.onnx.is_in_onnx_export()


def known(*sizes: Any) -> bool:
    """Whether sizes are numbers that may be asked, and no symbols (torch.export, torch.fx) or
    tensors (torch.jit.trace) that stand for any.
    """
    return all(isinstance(size, int) for size in sizes)
