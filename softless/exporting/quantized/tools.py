"""Other people's tools brought in without what they leave behind in the process, and without what
they send home.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any

from softless.errors import need

TELEMETRY = "openvino_telemetry"  # OpenVINO and NNCF report their use through it where it is there


@contextmanager
def without_telemetry() -> Iterator[None]:
    """For the import of openvino and nncf: they look for the package that reports their use at
    that moment alone, and report nothing where it is not found.
    """
    if TELEMETRY in sys.modules:
        yield
        return
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[TELEMETRY]


@contextmanager
def own_handler() -> Iterator[None]:
    """A handler of the root logger for the time of a call: a tool that warns through it would else
    install one that outlives the stream of the moment.
    """
    if logging.root.handlers:
        yield
        return
    handler = logging.StreamHandler()
    logging.root.addHandler(handler)
    try:
        yield
    finally:
        logging.root.removeHandler(handler)


def openvino() -> Any:
    """OpenVINO.

    Raises:
        MissingExtra: it is not installed.
    """
    need("openvino")
    with without_telemetry():
        import openvino

    return openvino


def nncf() -> Any:
    """NNCF. What it logs goes to the process's own streams, whatever stands for them now: it keeps
    the stream that it meets at its import.

    Raises:
        MissingExtra: it is not installed.
    """
    need("openvino", "nncf")
    with without_telemetry(), redirect_stdout(sys.__stdout__), redirect_stderr(sys.__stderr__):
        import nncf

    return nncf
