"""DICOM images, by pydicom's own functions: modality LUT or rescale, VOI LUT or window, palettes,
colour spaces, one frame of several.

A grey image is shown as its file says: rescaled, then by its VOI LUT or its first window,
MONOCHROME1 inverted. Without those it is read where its numbers have 8 bits. A declared range
stands before the file's window, and is of the rescaled values (Hounsfield units, say). Colours are
what is stored, or what the palette gives.
"""

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from softless.data import deep
from softless.data.images import (
    DAMAGED,
    MAX_PIXELS,
    MIN_SIDE,
    BadImage,
    Decoded,
    Remark,
    bad_image,
    heard,
    limit,
    refuse_many,
    refuse_no_file,
    refuse_small,
    unreadable,
)
from softless.data.pictures import with_channels
from softless.errors import UsageError, need
from softless.experiment.ranges import WAY, Range
from softless.words import clipped, visible

if TYPE_CHECKING:
    from pydicom import Dataset

ENDINGS = frozenset({".dcm", ".dicom"})
PREAMBLE, MAGIC = 128, b"DICM"
META = PREAMBLE + 4 + 12  # bytes ahead of what the length of the file meta information counts
BYTES, PIECE = 4, 1 << 20  # of a deflated file: for each pixel of the limit; inflated at once
GREY = ("MONOCHROME1", "MONOCHROME2")
PALETTE = "PALETTE COLOR"
# that pydicom gives as red, green and blue
COLOURS = (
    "RGB",
    "YBR_FULL",
    "YBR_FULL_422",
    "YBR_ICT",
    "YBR_RCT",
    PALETTE,
)
# may be there without a value
EMPTY = ("RescaleSlope", "RescaleIntercept", "WindowCenter", "WindowWidth")
# of frames that have a rescale and a window of their own
MACROS = (
    "PixelValueTransformationSequence",
    "FrameVOILUTSequence",
)


def is_dicom(path: Path) -> bool:
    """Whether a file is read as DICOM: by its ending, or without one (or with a number, as in an
    identifier) by how it begins.
    """
    ending = path.suffix.lower()
    if ending in ENDINGS:
        return True
    return (not ending or ending[1:].isdigit()) and path.name != "DICOMDIR" and _begins(path)


def _begins(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(PREAMBLE + len(MAGIC))[PREAMBLE:] == MAGIC
    except OSError:
        return False


def decode(
    path: Path,
    channels: int = 3,
    scale: Range | None = None,
    *,
    page: int = 0,
    max_pixels: int | None = None,
    min_side: int | None = None,
) -> Decoded:
    """One frame of a file, as `softless.data.reading.decode` gives images.

    Raises:
        BadImage: no picture, damaged, packed in a way that nothing installed unpacks, or values
            that nothing says the meaning of.
        MissingExtra: pydicom is not installed.
        UsageError: no frame of that number.
    """
    need("pydicom")
    remarks: list[Remark] = []
    with _reading(path, remarks):
        header = _header(path, page, max_pixels, min_side)
        frame = _frame(path, header, page)
        if frame.count > 1:
            remarks.append(
                Remark(
                    "several pictures",
                    f"it holds {frame.count} pictures, and only number {page} is read, counted "
                    "from 0",
                )
            )
        if scale is None:
            image, outside = _shown(frame, path, channels, remarks), (0, 0)
        else:
            stored = deep.Stored(
                frame.values, bytes=frame.colours and frame.values.dtype == np.uint8
            )
            pixels = deep.in_range(stored, path, scale)
            outside = scale.outside(frame.values)
            image = with_channels(1 - pixels if frame.inverted else pixels, channels)
    size = (int(header.Columns), int(header.Rows))
    return Decoded(image, "DICOM", size, tuple(dict.fromkeys(remarks)), "DICOM", outside)


@contextmanager
def _reading(path: Path, remarks: list[Remark]) -> Iterator[None]:
    """What pydicom warns of as remarks, and what it raises on damaged files as one sentence."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    try:
        with heard(remarks):
            # of a packed picture, whatever the header says
            Image.MAX_IMAGE_PIXELS = limit("SOFTLESS_MAX_PIXELS", MAX_PIXELS)
            yield
    except (BadImage, UsageError):
        raise
    except InvalidDicomError as error:
        raise bad_image(
            path,
            "no image",
            f"it ends as a DICOM file and has no DICOM preamble ({MAGIC.decode()} after "
            f"{PREAMBLE} bytes): save it as a DICOM file, or under its "
            "own ending",
        ) from error
    except (
        *DAMAGED,
        AttributeError,
        NotImplementedError,
        RuntimeError,
        BytesLengthException,
    ) as error:
        raise unreadable(
            path, error if isinstance(error, OSError) else ValueError(_words(error))
        ) from error


def _words(text: object) -> str:
    """What a file or pydicom says, in one line of a length that a person reads."""
    return visible(clipped(" ".join(str(text).split())))


def _header(path: Path, page: int, max_pixels: int | None, min_side: int | None) -> "Dataset":
    """All but the pixels, of a file that has some; sizes are held to the limits."""
    from pydicom import dcmread

    refuse_no_file(path)
    _refuse_inflated(path)
    header = dcmread(path, stop_before_pixels=True)
    if (
        not header.get("Rows")
        or not header.get("Columns")
        or not header.get("PhotometricInterpretation")
    ):
        kind = getattr(header.get("SOPClassUID"), "name", "") or "a file without a SOP class"
        raise bad_image(path, "no image", f"it is DICOM and holds no picture ({_words(kind)})")
    size = int(header.Columns), int(header.Rows)
    refuse_many(path, size, limit("SOFTLESS_MAX_PIXELS", MAX_PIXELS, max_pixels))
    refuse_small(path, size, limit("SOFTLESS_MIN_SIDE", MIN_SIDE, min_side))
    if (kind := str(header.PhotometricInterpretation)) not in GREY + COLOURS:
        raise bad_image(
            path,
            "pixel format",
            f"its photometric interpretation is {_words(kind)}; read are "
            f"{', '.join(GREY + COLOURS)}",
        )
    frames = _frames(header)
    if not 0 <= page < frames:
        raise UsageError(f"page={page}: {path} holds {frames} pictures, counted from 0")
    _refuse_packing(path, header)
    return header


def _refuse_inflated(path: Path) -> None:
    """Refuse a deflated file that would fill the memory: pydicom inflates it whole before it reads
    a header.
    """
    from pydicom.filereader import read_file_meta_info

    meta = read_file_meta_info(path)
    if not _is_deflated(meta):
        return
    allowed, inflated, inflating = (
        BYTES * limit("SOFTLESS_MAX_PIXELS", MAX_PIXELS),
        0,
        zlib.decompressobj(-zlib.MAX_WBITS),
    )
    with path.open("rb") as file:
        file.seek(META + int(meta.FileMetaInformationGroupLength))
        rest = file.read(PIECE)
        while rest and not inflating.eof:
            inflated += len(inflating.decompress(rest, PIECE))
            if inflated > allowed:
                raise bad_image(
                    path,
                    "too many pixels",
                    f"deflated, it holds more than {allowed} bytes: save it in another transfer "
                    "syntax",
                )
            rest = inflating.unconsumed_tail or file.read(PIECE)


def _is_deflated(meta: "Dataset") -> bool:
    syntax = meta.get("TransferSyntaxUID")
    return (
        syntax is not None
        and syntax.is_transfer_syntax
        and not syntax.is_private
        and bool(syntax.is_deflated)
    )


def _frames(header: "Dataset") -> int:
    return int(header.get("NumberOfFrames") or 1)


def _refuse_packing(path: Path, header: "Dataset") -> None:
    """Refuse pixels that no installed decoder unpacks; the message names what does."""
    from pydicom.pixels import get_decoder

    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is None:
        raise bad_image(path, "damaged", "its file meta information names no transfer syntax")
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError as error:
        raise bad_image(
            path,
            "pixel format",
            f"it is packed as {_words(syntax.name)}, which pydicom does not unpack",
        ) from error
    if not decoder.is_available:
        ways = "; or ".join(
            dependency.partition(" - requires ")[2] for dependency in decoder.missing_dependencies
        )
        raise bad_image(
            path,
            "pixel format",
            f"it is packed as {_words(syntax.name)}, and nothing installed unpacks that: install "
            f"{ways}",
        )


@dataclass(frozen=True)
class _Frame:
    """Numbers (h, w, 1 or 3): of grey images rescaled, of others colours."""

    values: np.ndarray
    header: "Dataset"  # with the rescale and the window of this frame
    count: int  # frames of the file

    @property
    def colours(self) -> bool:
        return str(self.header.PhotometricInterpretation) not in GREY

    @property
    def inverted(self) -> bool:
        """Whether the lowest value is white."""
        return str(self.header.PhotometricInterpretation) == "MONOCHROME1"


def _frame(path: Path, header: "Dataset", page: int) -> _Frame:
    from pydicom import dcmread
    from pydicom.pixels import apply_color_lut, apply_modality_lut, pixel_array

    frame_header = _of_frame(header, page)
    # pydicom takes one frame out of all others
    source = dcmread(path) if _is_deflated(header.file_meta) else path
    pixels = pixel_array(source, index=page)
    if str(header.PhotometricInterpretation) == PALETTE:
        return _Frame(apply_color_lut(pixels, header)[..., :3], frame_header, _frames(header))
    if str(header.PhotometricInterpretation) in GREY:
        return _Frame(
            apply_modality_lut(pixels, frame_header)[..., None], frame_header, _frames(header)
        )
    if pixels.ndim != 3:
        raise bad_image(
            path,
            "damaged",
            f"its colours ({header.PhotometricInterpretation}) have one sample per pixel",
        )
    return _Frame(pixels, frame_header, _frames(header))


def _of_frame(header: "Dataset", page: int) -> "Dataset":
    """The header, with the rescale and window that enhanced images have for all frames or for
    each.
    """
    from copy import copy

    frame_header = copy(header)
    shared = header.get("SharedFunctionalGroupsSequence") or []
    each = header.get("PerFrameFunctionalGroupsSequence") or []
    for group in [*shared[:1], *each[page : page + 1]]:
        for name in MACROS:
            for item in (group.get(name) or [])[:1]:
                frame_header.update(item)
    for name in EMPTY:
        if name in frame_header and frame_header[name].is_empty:
            del frame_header[name]
    return frame_header


def _shown(frame: _Frame, path: Path, channels: int, remarks: list[Remark]) -> Image.Image:
    """8 bits, as the file says that it is to be shown."""
    unit = _colours(frame, path) if frame.colours else _grey(frame, path, remarks)
    # entries of a table may lie beyond its depth
    pixels = np.rint(255 * with_channels(unit.clip(0, 1), channels)).astype(np.uint8)
    return Image.fromarray(pixels[..., 0] if channels == 1 else pixels)


def _colours(frame: _Frame, path: Path) -> np.ndarray:
    """Colours (h, w, 3) float64 in 0..1."""
    bits = int(frame.header.BitsStored)
    if str(frame.header.PhotometricInterpretation) == PALETTE:
        bits = 8 * frame.values.dtype.itemsize
    elif bits > 8:
        raise bad_image(path, "pixel format", f"colours of {bits} bits: {WAY}", f"{path} holds ")
    return frame.values / (2**bits - 1)


def _grey(frame: _Frame, path: Path, remarks: list[Remark]) -> np.ndarray:
    """Grey (h, w, 1) float64 in 0..1: by VOI LUT or window, or 8-bit numbers as they are."""
    from pydicom.pixels import apply_voi_lut

    header = frame.header
    windows = header.get("WindowCenter") is not None and header.get("WindowWidth") is not None
    if header.get("VOILUTSequence"):
        maximum = 2 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1
        unit = apply_voi_lut(frame.values.astype(np.int64), header) / maximum
    elif windows:
        if header["WindowWidth"].VM > 1:
            remarks.append(
                Remark(
                    "several windows",
                    f"it has {header['WindowWidth'].VM} windows, and the first is used",
                )
            )
        unit = _windowed(frame.values, header)
    else:
        unit = _bytes(frame, path)
    return 1 - unit if frame.inverted else unit


def _windowed(values: np.ndarray, header: "Dataset") -> np.ndarray:
    """pydicom's window, whose output lies between what it makes of the lowest and of the highest
    number.
    """
    from pydicom.pixels import apply_windowing

    with np.errstate(over="ignore"):  # of the sigmoid far from its centre
        low, high = apply_windowing(np.array([-1e30, 1e30]), header)
        unit: np.ndarray = (apply_windowing(values, header) - low) / (high - low)
    return unit


def _bytes(frame: _Frame, path: Path) -> np.ndarray:
    """Numbers of 8 bits or fewer that neither a rescale nor a window changes."""
    header, values = frame.header, frame.values
    maximum = 2 ** int(header.get("BitsStored") or 16) - 1
    plain = header.get("PixelRepresentation") == 0 and not header.get("ModalityLUTSequence")
    rescaled = (
        float(header.get("RescaleSlope") or 1),
        float(header.get("RescaleIntercept") or 0),
    ) != (1.0, 0.0)
    if maximum > 255 or not plain or rescaled:
        span = f"values from {values.min():g} to {values.max():g}"
        raise bad_image(
            path,
            "pixel format",
            f"{span} and no window that says which are shown: {WAY}",
            f"{path} holds ",
        )
    return values / maximum
