"""What becomes of a TIFF of each kind, decided by its tags before a pixel is decoded: one table,
the same for tiles and strips, images and slides.

A file is read as it is, read with a remark, or refused by name. Where there is a choice,
`channels=` and `page=` make it.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from numpy.typing import NDArray

from softless.data import tiff_pages
from softless.data.tiff_pages import (
    CIELAB,
    CMYK,
    COLOURED,
    FLOAT,
    OLD_JPEG,
    PALETTE,
    SAMPLES,
    SIGNED,
    UNSIGNED,
    VOID,
    WHITE_IS_ZERO,
    YCBCR,
    Contents,
    Picture,
)
from softless.experiment.ranges import WAY

# what becomes of stored numbers: a declared range, or they themselves
Values = Callable[[NDArray[Any]], NDArray[Any]]
DEEP = f"only 8-bit images are read without a range: {WAY}"
CHOOSE = "channels= chooses 1 or 3 of them, for example channels=0,1,2"
REWRITE = "write the ones you mean as one RGB image"
CONVERT = "convert it to RGB first"


class Refused(Exception):
    """A TIFF that is not read: why in one word, and what the file holds, in words that follow "FILE
    holds".
    """

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(text)
        self.kind, self.text = kind, text


class NoSuch(Exception):
    """A page or a channel that the file does not have; the message says which it has."""


@dataclass(frozen=True)
class Request:
    """A picture of a file, and what its reader asked for."""

    contents: Contents
    picture: Picture
    channels: tuple[int, ...] | None = None
    page: int | None = None
    values: Values | None = None
    choosable: bool = True  # whether the caller has `channels=` and `page=` to choose with

    @property
    def tags(self) -> Any:
        """The page that stands for all of the picture."""
        return self.picture.first

    @property
    def own(self) -> int:
        """How many samples its colours take."""
        return SAMPLES.get(int(self.tags.photometric), 0)

    @property
    def way(self) -> str:
        """What to do about channels."""
        return CHOOSE if self.choosable else REWRITE


class Kind(NamedTuple):
    """A row of the table: what a file is called, what becomes of it, and what is said of one that
    is of this kind (nothing of others).
    """

    name: str
    outcome: str  # refused, or read with a remark
    word: str
    says: Callable[[Request], str]


def _bits(request: Request) -> tuple[int, ...]:
    bits = request.tags.bitspersample
    return tuple(bits) if isinstance(bits, tuple) else (bits,)


def _packed(request: Request) -> str:
    import tifffile

    name, number = "", int(request.tags.compression)
    if number == 1:
        return ""
    try:
        usable = number != OLD_JPEG and callable(tifffile.TIFF.DECOMPRESSORS[number])
    except KeyError:
        usable = False
    if not usable:
        name = getattr(request.tags.compression, "name", "")
    return (
        ""
        if usable
        else "pixels packed by a codec that is not read (compression "
        f"{number}{f', {name}' if name else ''}): {CONVERT}"
    )


def _mixed(request: Request) -> str:
    formats = request.tags.tags.valueof(339, UNSIGNED)
    if int(request.tags.planarconfig) not in {1, 2}:
        return (
            f"samples laid out in a way that is not known ({int(request.tags.planarconfig)}): "
            f"{CONVERT}"
        )
    several = len(set(_bits(request))) > 1 or (isinstance(formats, tuple) and len(set(formats)) > 1)
    return f"samples of several depths or kinds {_bits(request)}: {DEEP}" if several else ""


def _float(request: Request) -> str:
    return (
        f"floating-point pixels of {_bits(request)[0]} bits: {DEEP}"
        if request.values is None and request.tags.sampleformat == FLOAT
        else ""
    )


def _signed(request: Request) -> str:
    return (
        f"signed pixels of {_bits(request)[0]} bits: {DEEP}"
        if request.values is None and request.tags.sampleformat == SIGNED
        else ""
    )


def _inverted(request: Request) -> str:
    deep = request.values is not None and (
        _bits(request)[0] > 8 or request.tags.sampleformat != UNSIGNED
    )
    return (
        "more than 8 bits in which 0 is white: save it with 0 as black"
        if deep and int(request.tags.photometric) == WHITE_IS_ZERO
        else ""
    )


def _complex(request: Request) -> str:
    return (
        ""
        if request.tags.sampleformat in {UNSIGNED, SIGNED, FLOAT, VOID}
        else f"complex pixels: {DEEP}"
    )


def _deep(request: Request) -> str:
    bits = _bits(request)[0]
    if request.values is not None or bits in {1, 2, 4, 8} or request.tags.sampleformat == FLOAT:
        return ""
    return f"{'32-bit integer' if bits == 32 else f'{bits}-bit'} pixels: {DEEP}"


def _colours(request: Request) -> str:
    photometric, tags = int(request.tags.photometric), request.tags
    name = getattr(tags.photometric, "name", str(photometric))
    uncoloured = photometric == YCBCR and (
        int(tags.compression) not in COLOURED or tags.samplesperpixel != 3
    )
    shallow = _bits(request)[0] < 8 and (tags.samplesperpixel > 1 or request.own > 1)
    if photometric not in SAMPLES or uncoloured:
        return f"colours of a kind that is not read ({name}): {CONVERT}"
    return f"colours of {_bits(request)[0]} bits: {CONVERT}" if shallow else ""


def _channels(request: Request) -> str:
    if request.picture.planes != "channels" or request.channels is not None:
        return ""
    return f"{request.picture.channels} pages that are the channels of one picture: {request.way}"


def _unknown(request: Request) -> str:
    if request.picture.planes != "unknown" or request.channels is not None:
        return ""
    count = len(request.picture.levels[0])
    also = ", page= one picture" if request.choosable else ""
    return (
        f"{count} grey pages of one size, and nothing says whether they are channels or a "
        f"stack: {request.way}{also}"
    )


def _samples(request: Request) -> str:
    count, own = int(request.tags.samplesperpixel), request.own
    fits = count == own or (own == 3 and count == 4)
    if request.channels is not None or fits:
        return ""
    return f"{count} samples a pixel where its colours take {own}: 1 or 3 are read; {request.way}"


def _elsewhere(request: Request) -> str:
    return (
        f"pictures that lie in other files, or behind one header: {CONVERT}"
        if request.contents.elsewhere
        else ""
    )


def _fourth(request: Request) -> str:
    if request.channels is not None or request.own != 3 or request.tags.samplesperpixel != 4:
        return ""
    kind = {0: "unspecified", 1: "associated alpha", 2: "unassociated alpha"}.get(
        next(iter(request.tags.extrasamples), 0), "unknown"
    )
    return f"it holds a fourth sample ({kind}), which is dropped"


def _several(request: Request) -> str:
    count = len(request.contents.choices)
    if request.page is not None or not request.contents.several or count < 2:
        return ""
    also = f" ({request.contents.several}; page= chooses another)" if request.choosable else ""
    return (
        f"it holds {f'{count} ' if request.contents.complete else ''}pictures, and only the first "
        f"is read{also}"
    )


REFUSED, REMARK = "refused", "read, with a remark"
FORMAT, SEVERAL, FOURTH = "pixel format", "several pictures", "fourth sample"  # why, in one word
KINDS = (
    Kind("packed by a codec that is not known", REFUSED, FORMAT, _packed),
    Kind("samples of several depths", REFUSED, FORMAT, _mixed),
    Kind("floating-point", REFUSED, FORMAT, _float),
    Kind("signed", REFUSED, FORMAT, _signed),
    Kind("complex", REFUSED, FORMAT, _complex),
    Kind("deep and inverted, under a range", REFUSED, FORMAT, _inverted),
    Kind("more than 8 bits", REFUSED, FORMAT, _deep),
    Kind("raw YCbCr, LogLuv and other colours", REFUSED, FORMAT, _colours),
    Kind("planes in other files, or behind one header", REFUSED, SEVERAL, _elsewhere),
    Kind("channels as pages", REFUSED, SEVERAL, _channels),
    Kind("grey pages of one size that nothing tells apart", REFUSED, SEVERAL, _unknown),
    Kind("2 samples, or more than 4", REFUSED, FORMAT, _samples),
    Kind("a fourth sample, whatever its tag says", REMARK, FOURTH, _fourth),
    Kind("a stack, or several pictures", REMARK, SEVERAL, _several),
)


@dataclass(frozen=True)
class Verdict:
    """A picture that is read: which of its channels, and what is to be said of it."""

    picture: Picture
    channels: tuple[int, ...] | None  # None: the samples of its colours
    remarks: tuple[tuple[str, str], ...]  # kind and text


def judged(
    contents: Contents,
    *,
    channels: Sequence[int] | None = None,
    page: int | None = None,
    values: Values | None = None,
    choosable: bool = True,
) -> Verdict:
    """What becomes of a file.

    Raises:
        Refused: it is of a kind that is not read.
        NoSuch: it has no such page or channel.
    """
    try:
        picture = contents.picture(page)
    except IndexError as error:
        raise NoSuch(str(error)) from error
    chosen = None if channels is None else tuple(channels)
    request = Request(contents, picture, chosen, page, values, choosable)
    with tiff_pages.silent():
        try:
            remarks = _remarks(request)
            readable, level_remarks = _readable(request)
        except tiff_pages.DAMAGED as error:
            raise Refused(
                "damaged", f"tags that cannot be ({error}); replace or remove the file"
            ) from error
    if chosen is not None:
        _refuse_no_such(request, chosen)
    return Verdict(readable, chosen, (*remarks, *level_remarks))


def _remarks(request: Request) -> list[tuple[str, str]]:
    """What the table has to say of a file that it lets pass."""
    remarks = []
    for kind in KINDS:
        text = kind.says(request)
        if text and kind.outcome == REFUSED:
            raise Refused(kind.word, text)
        if text:
            remarks.append((kind.word, text))
    return remarks


def _readable(request: Request) -> tuple[Picture, list[tuple[str, str]]]:
    """The picture with the levels ahead of the first that is of another kind than the finest one,
    which is said.
    """
    for number, level in enumerate(request.picture.levels):
        for page in level:
            own = replace(request, picture=Picture(((page,),)))
            wrong = [kind for kind in KINDS if kind.word == FORMAT and kind.says(own)]
            if wrong and not number:
                raise Refused(FORMAT, wrong[0].says(own))
            if wrong:
                text = (
                    f"its levels from {number} on are not read, since that one holds "
                    f"{wrong[0].says(own)}"
                )
                return replace(request.picture, levels=request.picture.levels[:number]), [
                    ("levels", text)
                ]
    return request.picture, []


def _refuse_no_such(request: Request, chosen: tuple[int, ...]) -> None:
    last = request.picture.channels - 1
    if len(chosen) not in {1, 3}:
        raise NoSuch(
            f"channels={','.join(map(str, chosen))}: 1 or 3 channels are read, and these are "
            f"{len(chosen)}"
        )
    if int(request.tags.photometric) in {PALETTE, CMYK, CIELAB}:
        raise NoSuch(
            "channels= chooses among the channels of a TIFF, and the colours of this one are not "
            "separate"
        )
    if not all(0 <= channel <= last for channel in chosen):
        raise NoSuch(
            f"it has no channel {max(chosen) if max(chosen) > last else min(chosen)}: its "
            f"channels are 0 to {last}"
        )
