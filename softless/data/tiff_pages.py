"""What the tags of a TIFF say before a pixel of it is decoded: which pictures it holds, at which
levels, and what becomes of each kind.

One table (`KINDS`) decides, the same for tiles and strips, for images and slides. Pages of one size
are told apart by tags and OME-XML: the levels of a pyramid, the channels of one picture, the planes
of a stack, or pictures that have nothing to do with each other. What nothing tells apart is
refused, and `channels=` or `page=` chooses.
"""

import logging
import math
import re
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree as ET

# photometric interpretations
WHITE_IS_ZERO, GREY, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 1, 2, 3, 5, 6, 8
# of those that are read
SAMPLES = {WHITE_IS_ZERO: 1, GREY: 1, RGB: 3, PALETTE: 1, CMYK: 4, YCBCR: 3, CIELAB: 3}
UNSIGNED, SIGNED, FLOAT, VOID = 1, 2, 3, 4  # sample formats
JPEG, OLD_JPEG = 7, 6
COLOURED = frozenset({JPEG, 33003, 33004, 34712})  # codecs that hand YCbCr over as RGB
TYPES = frozenset({".tif", ".tiff"})  # besides those of slides
PLAUSIBLE = (0.01, 100.0)  # micrometres per pixel
# micrometres per pixel from which on a TIFF's resolution is that of a screen or a printer
PRINTED = 10.0
TO_MICROMETRES = {
    "nm": 1e-3,
    "µm": 1.0,
    "μm": 1.0,
    "um": 1.0,
    "mm": 1e3,
    "cm": 1e4,
    "m": 1e6,
    "Å": 1e-4,
}
# makers whose TIFFs are not pages of one picture
OPENSLIDE = frozenset({"Hamamatsu", "Leica", "Ventana", "Trestle"})
# what tifffile and imagecodecs are seen to raise on damaged files
DAMAGED = (
    OSError,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    ZeroDivisionError,
    EOFError,
    MemoryError,
    RuntimeError,
    OverflowError,
    struct.error,
)

_silent: ContextVar[bool] = ContextVar("tifffile is silent", default=False)


class _Silence(logging.Filter):
    def filter(self, _: logging.LogRecord) -> bool:
        return not _silent.get()


@contextmanager
def silent() -> Iterator[None]:
    """What tifffile logs of odd tags stays out of the way: what matters of it is said by the
    table.
    """
    logger = logging.getLogger("tifffile")
    if not any(isinstance(log_filter, _Silence) for log_filter in logger.filters):
        logger.addFilter(_Silence())
    token = _silent.set(True)
    try:
        yield
    finally:
        _silent.reset(token)


@dataclass(frozen=True)
class Picture:
    """One picture of a file: its levels, the finest first, each with a page for every plane."""

    levels: tuple[tuple[Any, ...], ...]  # [level][plane]
    planes: str = ""  # what several planes are: channels, or unknown

    @property
    def first(self) -> Any:
        """The page that stands for all: the first plane of the finest level."""
        return self.levels[0][0]

    @property
    def channels(self) -> int:
        """How many channels there are to choose from: planes times samples."""
        return len(self.levels[0]) * int(self.first.samplesperpixel)


class Resolution(NamedTuple):
    """Micrometres per pixel down and across at level 0, or what the file says that cannot be."""

    mpp: tuple[float, float] | None
    said: str = ""


@dataclass(frozen=True)
class Contents:
    """What a TIFF holds."""

    maker: str  # Aperio, Philips, OME, …; empty where nothing says
    pictures: tuple[Picture, ...]  # `page=` chooses among them
    # what several pictures are; empty where those behind the first are known to be labels and the
    # like
    several: str
    resolution: Resolution
    complete: bool = True  # whether the tags of all pages can be read
    elsewhere: bool = False  # planes of the picture lie in other files, or behind one header

    def picture(self, page: int | None) -> Picture:
        """The one to be read; of planes that nothing tells apart `page` is the plane.

        Raises:
            IndexError: there is no such page; the message says which there are.
        """
        if page is None:
            return self.pictures[0]
        choices = self.choices
        if not 0 <= page < len(choices):
            raise IndexError(f"it has no page {page}: its pages are 0 to {len(choices) - 1}")
        return choices[page]

    @property
    def choices(self) -> tuple[Picture, ...]:
        """What `page=` counts."""
        choices: list[Picture] = []
        for picture in self.pictures:
            if picture.planes == "unknown":
                choices += [
                    Picture(tuple((level[number],) for level in picture.levels))
                    for number in range(len(picture.levels[0]))
                ]
            else:
                choices.append(picture)
        return tuple(choices)


# Opening


def is_tiff(path: Path) -> bool:
    """Whether a file begins as a TIFF or a BigTIFF does."""
    try:
        with path.open("rb") as file:
            begins = file.read(4)
    except OSError:
        return False
    return begins[:4] in {b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"}


def opened(path: Path) -> Any:
    """The open file of tifffile, or None: it is no TIFF, tifffile is not installed, or the tags of
    its first page cannot be read.
    """
    if not is_tiff(path):
        return None
    try:
        import tifffile
    except ImportError:
        return None
    with silent():
        try:
            file = tifffile.TiffFile(path)
        except DAMAGED:
            return None
        try:
            file.pages.useframes = False
            first: Any = file.pages[0]
            readable = first.imagewidth > 0 and first.imagelength > 0 and first.samplesperpixel > 0
        except DAMAGED:
            readable = False
    if not readable:
        file.close()
        return None
    return file


# What the pages are


def contents(file: Any) -> Contents:
    """What an open TIFF holds, from its tags alone."""
    with silent():
        pages, complete = _pages(file)
        made_by = _maker(pages[0])
        described = _DESCRIBED_BY.get(made_by, _by_size)(file, pages)
        if described is None:
            described = _by_size(file, pages)
        return replace(
            described,
            maker=made_by,
            resolution=_resolution(file, made_by, described.pictures[0].first),
            complete=complete,
        )


def _pages(file: Any) -> tuple[list[Any], bool]:
    """The pages of the main chain as far as their tags can be read, and whether those are all."""
    pages: list[Any] = []
    try:
        for page in file.pages:
            if page.imagewidth and page.imagelength:
                pages.append(page)  # noqa: PERF401 - what came before a damaged one is kept
    except DAMAGED:
        return pages or [file.pages[0]], False
    return pages, _ends(file, pages[-1])


def _ends(file: Any, last: Any) -> bool:
    """Whether the chain ends with a page: tifffile stops at one that it cannot read and says so in
    its log alone.
    """
    form, handle = file.tiff, file.filehandle
    handle.seek(last.offset)
    (count,) = struct.unpack(form.tagnoformat, handle.read(form.tagnosize))
    handle.seek(last.offset + form.tagnosize + count * form.tagsize)
    return not any(handle.read(form.offsetsize))


def maker(file: Any) -> str:
    """Who made an open TIFF, or what wrote it; empty where nothing says."""
    with silent():
        return _maker(file.pages[0])


def _maker(page: Any) -> str:
    text = page.description or ""
    software = str(page.software or "")
    flags = {
        "Aperio": page.is_svs,
        "Philips": page.is_philips,
        "OME": page.is_ome,
        "Hamamatsu": page.is_ndpi,
        "Leica": page.is_scn,
        "Ventana": page.is_bif,
        "ImageJ": page.is_imagej,
        "PerkinElmer": page.is_qpi,
        "Trestle": software.startswith("MedScan"),
        "tifffile": page.is_shaped,
        "IndicaLabs": "<indica" in text[:200],
    }
    return next((name for name, flag in flags.items() if flag), "")


_NOTHING = Resolution(None)


def _contents(
    pictures: Sequence[Picture], several: str = "", *, elsewhere: bool = False
) -> Contents:
    return Contents(
        "", tuple(pictures), several if len(pictures) > 1 else "", _NOTHING, elsewhere=elsewhere
    )


def _alike(page: Any, base: Any) -> bool:
    """Whether two pages hold pixels of one kind."""
    names = ("samplesperpixel", "bitspersample", "sampleformat", "planarconfig", "is_tiled")
    return all(getattr(page, name) == getattr(base, name) for name in names)


def _is_coarser(page: Any, base: Any) -> bool:
    """Whether the sizes can be those of one picture, a level apart: one factor serves both sides,
    to a pixel of rounding.
    """
    if not (page.imagewidth < base.imagewidth and page.imagelength < base.imagelength):
        return (
            page.imagewidth <= base.imagewidth
            and page.imagelength <= base.imagelength
            and min(page.imagewidth, page.imagelength) == 1
        )
    low, high = 1.0, math.inf
    for side, base_side in (
        (page.imagewidth, base.imagewidth),
        (page.imagelength, base.imagelength),
    ):
        low = max(low, base_side / (side + 1))
        high = min(high, base_side / (side - 1)) if side > 1 else high
    return low <= high


def _levels(
    planes: Sequence[Any], candidates: Sequence[Any], *, flagged: bool = True
) -> tuple[tuple[tuple[Any, ...], ...], list[Any]]:
    """The levels of a picture with these planes, out of the other pages; and the pages that are
    none.
    """
    base = planes[0]
    groups: dict[tuple[int, int], list[Any]] = {}
    unmatched: list[Any] = []
    for page in candidates:
        fits = _is_coarser(page, base) and _alike(page, base) and (page.is_reduced or not flagged)
        (groups.setdefault((page.imagelength, page.imagewidth), []) if fits else unmatched).append(
            page
        )
    levels = [tuple(planes)]
    for _, group in sorted(groups.items(), key=lambda entry: -entry[0][0] * entry[0][1]):
        if len(group) == len(planes):
            levels.append(tuple(group))
        else:
            unmatched += group
    return tuple(levels), unmatched


def _by_size(_: Any, pages: list[Any], planes: str = "") -> Contents:
    """Pages of the first one's size are its planes; smaller ones with the flag of a reduced picture
    are levels.
    """
    base = pages[0]
    same = [
        page
        for page in pages
        if page.shaped == base.shaped and _alike(page, base) and page.is_reduced == base.is_reduced
    ]
    levels, unmatched = _levels(same, [page for page in pages if page not in same])
    subs = _with_subifds(same)
    if len(subs) > 1 and len(levels) == 1:
        levels = subs
    rest = [Picture(((page,),)) for page in unmatched if not page.is_reduced]
    if len(same) == 1:
        return _contents([Picture(levels), *rest], "pictures")
    if planes == "channels":
        return _contents([Picture(levels, "channels"), *rest])
    if planes == "stack" or base.samplesperpixel > 1:
        return _contents(
            [*_one_by_one(levels), *rest], "planes of a stack" if planes == "stack" else "pictures"
        )
    return _contents([Picture(levels, "unknown"), *rest])


def _one_by_one(levels: Sequence[tuple[Any, ...]]) -> list[Picture]:
    return [
        Picture(tuple((level[number],) for level in levels)) for number in range(len(levels[0]))
    ]


def _with_subifds(planes: Sequence[Any]) -> tuple[tuple[Any, ...], ...]:
    """The levels of planes whose coarser ones lie in SubIFDs."""
    below: list[list[Any]] = []
    for plane in planes:
        subs: list[Any] = []
        with suppress(*DAMAGED):
            subs = (
                [page for page in plane.pages if _is_coarser(page, plane)] if plane.subifds else []
            )
        below.append(sorted(subs, key=lambda page: -page.imagewidth * page.imagelength))
    deep = min(map(len, below))
    return (tuple(planes), *(tuple(subs[level] for subs in below) for level in range(deep)))


def _aperio(_: Any, pages: list[Any]) -> Contents:
    """Tiled pages are levels, whatever their flag; two of one size are focal planes.

    Thumbnail, label and macro are known by their strips.
    """
    tiled = [page for page in pages if page.is_tiled] or pages[:1]
    same = [page for page in tiled if page.shaped == tiled[0].shaped]
    levels, _ = _levels(same, [page for page in tiled if page not in same], flagged=False)
    return _contents(_one_by_one(levels), "planes of a stack")


def _philips(file: Any, _: list[Any]) -> Contents | None:
    """tifffile takes the padding of the coarser levels off."""
    with suppress(*DAMAGED):
        series = file.series
        if series and series[0].kind == "philips":
            return _contents([Picture(tuple((level.keyframe,) for level in series[0].levels))])
    return None


def _imagej(file: Any, pages: list[Any]) -> Contents:
    fields = dict(line.split("=", 1) for line in pages[0].description.splitlines() if "=" in line)
    count = {
        name: _number(fields.get(name), 1) for name in ("images", "channels", "slices", "frames")
    }
    if count["images"] > len(pages) and len(pages) == 1:
        return replace(_contents([Picture(((pages[0],),))]), elsewhere=True)
    planes = count["channels"] if pages[0].samplesperpixel == 1 else 1
    if planes > 1 and len(pages) % planes == 0:
        groups = [tuple(pages[at : at + planes]) for at in range(0, len(pages), planes)]
        return _contents([Picture((group,), "channels") for group in groups], "planes of a stack")
    return _by_size(file, pages, "stack" if count["slices"] * count["frames"] > 1 else "")


def _shaped(file: Any, pages: list[Any]) -> Contents | None:
    """What tifffile writes of its own files: the shape, and the axes where its caller named
    them.
    """
    shape_text = re.search(r'"shape":\s*\[([\d,\s]+)\]', pages[0].description or "")
    axes = re.search(r'"axes":\s*"([A-Z]+)"', pages[0].description or "")
    shape = [int(part) for part in shape_text[1].split(",")] if shape_text else []
    if len(pages) == 1 and math.prod(shape) > math.prod(pages[0].shape):
        return replace(_contents([Picture(((pages[0],),))]), elsewhere=True)
    named = axes[1] if axes else ""
    return _by_size(
        file,
        pages,
        "channels"
        if "C" in named and not set(named) & set("ZTQI")
        else "stack"
        if set(named) & set("ZT")
        else "",
    )


def _as_channels(file: Any, pages: list[Any]) -> Contents:
    return _by_size(file, pages, "channels")


def _ome(_: Any, pages: list[Any]) -> Contents | None:
    """The planes of each image as OME-XML places them."""
    images = list(_ome_images(pages[0]))
    pictures: list[Picture] = []
    first = 0
    elsewhere = False
    for number, image in enumerate(images):
        placed = _ome_planes(image, len(pages), int(pages[0].samplesperpixel))
        if placed is None:
            return None
        elsewhere = elsewhere or (not number and placed.elsewhere)
        complete = [
            places
            for places in placed.positions
            if all(0 <= index < len(pages) for index in places)
        ]
        for places in complete:
            levels = _with_subifds([pages[index] for index in places])
            pictures.append(Picture(levels, "channels" if len(places) > 1 else ""))
        first = len(pictures) if not number else first
    if not pictures or (not first and not elsewhere):
        return None
    return _contents(pictures, "planes of a stack" if first > 1 else "", elsewhere=elsewhere)


def _ome_images(page: Any) -> Iterator[Any]:
    with suppress(ET.ParseError):
        # expat bounds what entities may grow to
        root = ET.fromstring(page.description)  # noqa: S314
        for image in root.iter():
            if _named(image, "Image"):
                yield from (part for part in image if _named(part, "Pixels"))


def _named(element: Any, name: str) -> bool:
    return isinstance(element.tag, str) and element.tag.rsplit("}", 1)[-1] == name


class _Placed(NamedTuple):
    positions: list[list[int]]  # pages of each place in depth and time, by channel
    elsewhere: bool


def _ome_planes(pixels: Any, count: int, own: int) -> _Placed | None:
    """Where the planes of an image lie among `count` pages; libvips does not say that a page has
    several (`own`) samples.
    """
    sizes = {axis: _number(pixels.get(f"Size{axis}"), 1) for axis in "CZT"}
    order = [axis for axis in pixels.get("DimensionOrder", "XYCZT") if axis in sizes]
    channels = [part for part in pixels if _named(part, "Channel")]
    samples = max(
        [_number(channel.get("SamplesPerPixel"), 1) for channel in channels],
        default=own if sizes["C"] % own == 0 else 1,
    )
    spans = {**sizes, "C": max(1, sizes["C"] // samples)}
    total = math.prod(spans.values())
    if sorted(order) != ["C", "T", "Z"] or not 0 < total <= 100_000:
        return None
    pages: dict[tuple[int, int, int], int] = {}
    blocks = [part for part in pixels if _named(part, "TiffData")]
    files = {
        element.get("FileName") or element.text
        for block in blocks
        for element in block
        if _named(element, "UUID")
    }
    for number, block in enumerate(blocks):
        start = [_number(block.get(f"First{axis}"), 0) for axis in order]
        if "C" in order:
            start[order.index("C")] //= samples
        default_count = (
            total
            if block.get("IFD") is None and block.get("PlaneCount") is None and len(blocks) == 1
            else 1
        )
        at = sum(
            first * math.prod(spans[axis] for axis in order[:position])
            for position, first in enumerate(start)
        )
        page = _number(block.get("IFD"), 0 if len(blocks) == 1 else number)
        for step in range(min(_number(block.get("PlaneCount"), default_count), total)):
            pages[_place(at + step, order, spans)] = page + step
    if not blocks:
        pages = {_place(at, order, spans): at for at in range(total)}
    if len(files) > 1:
        return _Placed([], elsewhere=True)
    positions = [
        [pages.get((channel, depth, time), -1) for channel in range(spans["C"])]
        for time in range(spans["T"])
        for depth in range(spans["Z"])
    ]
    return _Placed(positions, elsewhere=any(page >= count for page in pages.values()))


def _place(at: int, order: Sequence[str], spans: dict[str, int]) -> tuple[int, int, int]:
    coordinates = {}
    for axis in order:
        at, coordinates[axis] = divmod(at, spans[axis])
    return coordinates["C"], coordinates["Z"], coordinates["T"]


def _number(text: str | None, default: int) -> int:
    return int(text) if text is not None and text.strip().isdigit() else default


_DESCRIBED_BY: dict[str, Callable[[Any, list[Any]], Contents | None]] = {
    "Aperio": _aperio,
    "Philips": _philips,
    "OME": _ome,
    "ImageJ": _imagej,
    "PerkinElmer": _as_channels,
    "IndicaLabs": _as_channels,
    "tifffile": _shaped,
}


# The resolution


def _resolution(file: Any, maker: str, page: Any) -> Resolution:
    """What the maker says of it, else the tags of resolution; what cannot be is said and not
    taken.
    """
    stated, source = _STATED.get(maker, lambda *_: (None, ""))(file, page)
    if stated is not None:
        if all(PLAUSIBLE[0] <= side <= PLAUSIBLE[1] for side in stated):
            return Resolution(stated)
        return Resolution(
            None, f"{source} says {stated[1]:.4g} micrometres per pixel, which cannot be"
        )
    if maker in {"Aperio", "Philips"}:
        return _NOTHING
    return _by_tags(page)


def _by_tags(page: Any) -> Resolution:
    unit = {2: 25_400.0, 3: 10_000.0}.get(int(page.tags.valueof(296, 2) or 1))
    densities = [page.tags.valueof(tag) for tag in (283, 282)]  # down, across
    if unit is None or any(
        not isinstance(density, tuple) or len(density) != 2 or not all(density)
        for density in densities
    ):
        return _NOTHING
    down, across = (unit * density[1] / density[0] for density in densities)
    if all(PLAUSIBLE[0] <= side <= PRINTED for side in (down, across)):
        return Resolution((down, across))
    return Resolution(
        None,
        f"its tags of resolution say {25_400 / across:.4g} dpi, which is {across:.4g} micrometres "
        "per pixel: no microscope's",
    )


def _aperio_says(_: Any, page: Any) -> tuple[tuple[float, float] | None, str]:
    match = re.search(r"\|\s*MPP\s*=\s*([0-9.eE+-]+)", page.description or "")
    value = _float(match[1] if match else None)
    return (None if value is None else (value, value)), "its MPP"


def _ome_says(file: Any, _: Any) -> tuple[tuple[float, float] | None, str]:
    for pixels in _ome_images(file.pages[0]):
        sides = []
        for axis in "YX":
            value, unit = (
                _float(pixels.get(f"PhysicalSize{axis}")),
                pixels.get(f"PhysicalSize{axis}Unit", "µm"),
            )
            if value is None or unit not in TO_MICROMETRES:
                return None, ""
            sides.append(value * TO_MICROMETRES[unit])
        return (sides[0], sides[1]), "its OME-XML"
    return None, ""


def _philips_says(file: Any, _: Any) -> tuple[tuple[float, float] | None, str]:
    match = re.search(
        r'DICOM_PIXEL_SPACING"[^>]*>\s*(?:&quot;|")([0-9.eE+-]+)(?:&quot;|")\s*'
        r'(?:&quot;|")([0-9.eE+-]+)',
        file.pages[0].description or "",
    )
    sides = [_float(match[number]) for number in (1, 2)] if match else [None]
    if any(side is None for side in sides):
        return None, ""
    return (1e3 * float(sides[0] or 0), 1e3 * float(sides[1] or 0)), "its DICOM_PIXEL_SPACING"


_STATED: dict[str, Callable[[Any, Any], tuple[tuple[float, float] | None, str]]] = {
    "Aperio": _aperio_says,
    "OME": _ome_says,
    "Philips": _philips_says,
}


def _float(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
