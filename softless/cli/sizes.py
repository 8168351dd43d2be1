"""Sizes and scales as words of the command line."""

from softless.errors import UsageError
from softless.models.scale import TRAINING


def as_size(text: str | int) -> str | int:
    """`--resize`: "training", or a number of pixels.

    Raises:
        UsageError: neither.
    """
    if text == TRAINING:
        return TRAINING
    try:
        return int(text)
    except ValueError as error:
        raise UsageError(
            f"--resize {text}: give training, or pixels of the longer side, for example 512"
        ) from error


def as_token_scale(text: str | float) -> str | float:
    """`--token-scale`: "training", "tokens", or a number of tokens.

    Raises:
        UsageError: none of them.
    """
    if text in {TRAINING, "tokens"}:
        return text
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(
            f"--token-scale {text}: give training, tokens, or the number of tokens of the training"
        ) from error


def as_mpp(text: str | float) -> str | float:
    """`--mpp`: "training", or micrometres per pixel.

    Raises:
        UsageError: neither.
    """
    if text == TRAINING:
        return TRAINING
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(
            f"--mpp {text}: give micrometres per pixel, for example 0.5, or training"
        ) from error


def as_channels(text: str) -> tuple[int, ...]:
    """`--channels` in the words of the Python functions: whole numbers with commas between.

    Raises:
        UsageError: none of these.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in parts):
        raise UsageError(
            f"--channels {text}: give 1 or 3 whole numbers with commas between, from 0 on, for "
            "example 0,1,2"
        )
    return tuple(map(int, parts))
