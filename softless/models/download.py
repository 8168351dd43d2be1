"""Weights that timm downloads: known in seconds to be out of reach, and then one sentence."""

import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import timm

from softless.errors import DataError, UsageError
from softless.words import clipped

PATIENCE = 10.0  # seconds for one answer of the hub
Made = TypeVar("Made")


def check_released(name: str) -> None:
    """Whether timm knows weights for this name.

    Raises:
        UsageError: it knows none.
    """
    configuration = timm.get_pretrained_cfg(name)
    if configuration is None or not configuration.has_weights:
        raise UsageError(
            f"there are no released weights of '{name}': leave pretrained out, or load a file of "
            "your own"
        )


def downloaded(name: str, make: Callable[[], Made]) -> Made:
    """A model whose weights timm fetches, or takes from its cache where the hub cannot be reached.

    Args:
        name: the model's.
        make: builds it and asks timm for its weights.

    Raises:
        UsageError: timm knows no weights for this name.
        DataError: they are neither on this machine nor to be had.
    """
    check_released(name)
    why = ""
    try:
        with reaching() as why:
            return make()
    # the hub's errors are of this kind, a file that is not in the cache among them
    except OSError as error:
        reason = why or clipped(" ".join(str(error).split()))
        raise DataError(
            f"the weights of '{name}' are not on this machine and cannot be downloaded "
            f"({reason}): fetch them where there "
            "is a network, and load the file (load_weights; --weights of train and swap)"
        ) from error


@contextmanager
def reaching() -> Iterator[str]:
    """The hub's client within, which looks into its cache alone where the hub gives no answer:
    why it gives none, or nothing.
    """
    from huggingface_hub import constants

    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else _out_of_reach(constants.ENDPOINT)
    with _offline(constants) if why else _patient():
        yield why


def _out_of_reach(address: str) -> str:
    """Why the hub gives no answer at all; nothing where it gives any."""
    try:
        # the hub's own address
        with urllib.request.urlopen(  # noqa: S310
            urllib.request.Request(address, method="HEAD"),  # noqa: S310
            timeout=PATIENCE,
        ):
            return ""
    except urllib.error.HTTPError:
        return ""  # an answer
    except OSError as error:
        return f"{address} does not answer: {getattr(error, 'reason', error)}"


@contextmanager
def _offline(constants: Any) -> Iterator[None]:
    """The hub's client looks into its cache alone: it would try for minutes."""
    usual, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        with _patient():
            yield
    finally:
        constants.HF_HUB_OFFLINE = usual


@contextmanager
def _patient() -> Iterator[None]:
    """No connection waits for ever, those of addresses beside the hub among them."""
    usual = socket.getdefaulttimeout()
    socket.setdefaulttimeout(usual or PATIENCE)
    try:
        yield
    finally:
        socket.setdefaulttimeout(usual)
