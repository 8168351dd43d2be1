"""What is asked of an export, where it goes together."""

from collections.abc import Sequence

from softless.data.images import MODES
from softless.errors import UsageError, need
from softless.experiment.files import LARGEST_IMAGE
from softless.exporting.dense.recorded import (
    PLAIN,
    is_dense,
    later_names,
    on_grid,
)
from softless.exporting.formats.format import Format, Int8
from softless.exporting.formats.standing import needs
from softless.exporting.formats.table import FORMATS, format_named
from softless.exporting.graph import Dynamic
from softless.exporting.grid import check_any_size, check_size
from softless.exporting.request import Form, Pixels, Request
from softless.exporting.source import (
    Source,
)


def formats_named(named: str | Sequence[str], int8: Int8 = "none") -> tuple[Format, ...]:
    """The formats of these names, each once.

    Raises:
        UsageError: no such format, or none is named.
        MissingExtra: what writes, runs or quantises one is not installed.
    """
    names = [named] if isinstance(named, str) else list(named)
    if not names:
        raise UsageError(f"no format is named: choose of {', '.join(FORMATS)}")
    formats = tuple(format_named(name) for name in dict.fromkeys(names))
    need(*(package for record in formats for package in needs(record, int8)))
    return formats


def checked_request(
    source: Source,
    formats: tuple[Format, ...],
    form: Form,
    size: int | tuple[int, int] | None,
    dynamic: Dynamic | None,
    int8: Int8,
    pixels: Pixels,
    opset: int | None,
) -> Request:
    """What is asked for, where it goes together."""
    _check_word("form", form, ("auto", "plain", "edge"))
    _check_word("dynamic", dynamic, (None, "batch", "size", "both"))
    _check_word("int8", int8, ("none", "weights", "static"))
    _check_word("pixels", pixels, ("normalised", "uint8"))
    dense = is_dense(source.model)
    any_size = dynamic in {"size", "both"}
    height_width = source.pixels if size is None else _sides(size)
    if dense and any_size:
        height_width = on_grid(source.model, height_width)
    elif not dense or min(height_width) < 1:  # those fill images up themselves
        check_size(source.model, height_width, source.name)
    if dense:
        _check_dense(source, form, int8, formats)
    if any_size:
        check_any_size(getattr(source.model, "host", source.model), source.name)
        if form == "edge":
            raise UsageError(
                "--form edge makes constants of all that depends on the size: leave out --dynamic "
                "size, or choose --form plain"
            )
    _check_formats(formats, dynamic, int8, opset)
    if pixels == "uint8":
        _check_bytes(source)
    return Request(formats, form, height_width, dynamic, int8, pixels, opset)


def _check_formats(
    formats: Sequence[Format], dynamic: Dynamic | None, int8: Int8, opset: int | None
) -> None:
    """Whether every format takes these options, and they go together."""
    for record in formats:
        if dynamic is not None and dynamic not in record.dynamic:
            raise UsageError(
                f"{record.name} holds graphs of one size and one image: leave --dynamic out, and "
                "write one file for each --size"
            )
        if int8 not in {"none", *record.int8}:
            offered = [name for name, other in FORMATS.items() if int8 in other.int8]
            raise UsageError(
                f"{record.name} has no --int8 {int8}; formats that have: {', '.join(offered)}"
            )
        if opset is not None and not record.takes_opset:
            raise UsageError(f"--opset is of onnx, and {record.name} has none: leave it out")
    if int8 == "static" and dynamic in {"size", "both"}:
        raise UsageError(
            "--int8 static measures its scales at one size: give --size, one file for each size"
        )


def _check_bytes(source: Source) -> None:
    """Whether the images of a source are bytes until they are normalised."""
    if source.best.get("range") is not None:
        raise UsageError(
            f"{source.name} reads images of a declared range and not of bytes: leave --pixels out"
        )
    if int(source.best["in_chans"]) not in MODES:
        raise UsageError(
            f"{source.name} reads images of {source.best['in_chans']} channels, which are framed "
            "as floats and not as bytes: leave --pixels out"
        )


def _check_dense(source: Source, form: Form, int8: Int8, formats: Sequence[Format]) -> None:
    """Whether a detector or a segmenter is written so."""
    if form == "edge":
        raise UsageError(f"{source.name} is a run of {source.task}, and {PLAIN}: leave --form out")
    if int8 != "none":
        raise UsageError(
            f"{source.name} is a run of {source.task}, and --int8 is measured of classifiers only: "
            "leave it out"
        )
    for record in formats:
        if later_names(source.model) and (record.open is None or "batch" not in record.dynamic):
            raise UsageError(
                f"{source.name} looks at any number of regions in its second stage, and "
                f"{record.name} holds graphs of one number of images: choose --format onnx or pt2"
            )


def _check_word(option: str, word: str | None, words: Sequence[str | None]) -> None:
    if word not in words:
        offered = ", ".join(name for name in words if name is not None)
        raise UsageError(f"--{option} {word}: choose of {offered}")


def _sides(size: int | tuple[int, int]) -> tuple[int, int]:
    sides = (size, size) if isinstance(size, int) else tuple(size)
    if len(sides) == 1:
        sides *= 2
    if len(sides) != 2 or not all(0 < side <= LARGEST_IMAGE for side in sides):
        raise UsageError(
            f"--size {' '.join(map(str, sides))}: give height and width in pixels, from 1 to "
            f"{LARGEST_IMAGE:,}"
        )
    return int(sides[0]), int(sides[1])
