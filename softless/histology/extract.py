"""A slide as a file of features: its tiles through an encoder, each step written whole or not at
all.

    features/NAME.h5        the bag, in TRIDENT's layout
    tissue/NAME.geojson     the region whose tiles count
    thumbnails/NAME.png     the slide in small with the tiles that count
    slides/NAME.json        what is said of it; written last, with the digest of all that decides it

A slide is finished where its record has the digest of what is asked for. A kill leaves finished
slides, and one that is begun anew.
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from softless.bags.write import digest_in, write_bag
from softless.data.notices import notice
from softless.data.progress import track
from softless.errors import DataError, NothingReadable, UsageError
from softless.histology.counting import Counted, counted
from softless.histology.encoder import Encoder
from softless.histology.regions import annotation, collection, polygons
from softless.histology.sketch import sketch
from softless.histology.tiling import Cut, Tiling, tiling_of
from softless.histology.windows import Window, batches, windows
from softless.models.digests import of_file
from softless.models.durable import make_folder, write_picture, write_text
from softless.models.records import read_json
from softless.slides.files import Choice
from softless.slides.lattice import Origin
from softless.slides.prints import image_print
from softless.slides.reader import pixels_of
from softless.slides.thumbnails import thumbnail

FEATURES, TISSUE, THUMBNAILS, RECORDS = "features", "tissue", "thumbnails", "slides"
PINK = (200, 80, 160)  # of tissue, in a viewer
SMALL = 1024  # pixels of a thumbnail's longer side
VERSION = 1  # of what a finished slide holds


@dataclass(frozen=True)
class Work:
    """What is done with every slide.

    Attributes:
        cut: How it is cut.
        tissue: "otsu", "none", or the file of a mask.
        origin: Who counts the pixels of masks and of what is written.
        batch_size: Tiles at once.
    """

    cut: Cut = field(default_factory=Cut)
    tissue: str | Path = "none"
    origin: Origin = "slide"
    batch_size: int = 64


@dataclass(frozen=True)
class Extracted:
    """What is said of a finished slide."""

    slide: str
    file: str
    tiles: int
    unreadable: tuple[dict[str, Any], ...]  # x and y of level 0, and why
    tile_px: int
    tile_px0: int
    overlap: int
    level: int
    mpp: float | None
    mpp0: float | None
    height: int
    width: int
    dim: int  # of the features
    encoder: str
    digest: str
    remarks: tuple[str, ...] = ()

    @property
    def note(self) -> str:
        """What a person should know of it."""
        count = len(self.unreadable)
        lost = (
            f"{count} tile{'s' if count > 1 else ''} could not be read and are left out"
            if count
            else ""
        )
        empty = "" if self.tiles or count else "it has no tile that counts, so its bag is empty"
        return "; ".join(text for text in (empty, lost) if text)

    @classmethod
    def read(cls, path: Path) -> "Extracted":
        """The record in a file.

        Raises:
            DataError: it is damaged.
        """
        content: dict[str, Any] = {
            name: tuple(value) if isinstance(value, list) else value
            for name, value in read_json(path).items()
        }
        try:
            return cls(**content)
        except TypeError as error:
            raise DataError(f"{path} is no record of a slide: remove it") from error


def extracted(
    image: Path, name: str, out: Path, work: Work, encoder: Encoder, *, quiet: bool = True
) -> Extracted:
    """A slide's features, made or found finished.

    Args:
        image: Its file.
        name: What its files are called.
        out: The folder of all results.
        work: What is asked for.
        encoder: What makes features.
        quiet: No progress line.

    Raises:
        DataError: it cannot be read, or none of its tiles can.
        UsageError: what is asked for does not fit it.
        DivergedError: features that are not finite.
        StorageError: the disk does not take what is written.
    """
    digest = _digest(image, work, encoder)
    if (finished := _finished(name, out, digest)) is not None:
        return finished
    choice = Choice(scale=encoder.scale)
    pixels = pixels_of(image, encoder.channels, 0, choice=choice)
    try:
        remarks = tuple(remark.text for remark in getattr(pixels, "remarks", ()))
        tiling, pixels = tiling_of(pixels, str(image), work.cut)
        inside = counted(image, tiling, work.tissue, work.origin, choice)
        _check_size(image, tiling, inside, work)
        places = tiling.places(inside.tiles)
        bad: list[Window] = []
        rows = _rows(windows(pixels, tiling, places), encoder, work.batch_size, bad)
        steps = rows if quiet else track(rows, len(places), f"{name}:", size=len)
        blocks = list(steps)
    finally:
        pixels.close()
    if bad and len(bad) == len(places):
        raise NothingReadable(
            f"none of the {len(bad)} tiles of {image} can be read ({bad[0].reason}): replace the "
            "file"
        )
    features = np.concatenate([np.zeros((0, encoder.width), np.float32), *blocks])
    gone = {(tile.x, tile.y) for tile in bad}
    corners = np.array(
        [corner for corner in places.tolist() if tuple(corner) not in gone], np.int64
    )
    record = Extracted(
        slide=name,
        file=str(image),
        tiles=len(features),
        unreadable=tuple({"x": tile.x, "y": tile.y, "reason": tile.reason} for tile in bad),
        tile_px=work.cut.tile,
        tile_px0=tiling.tile_px0,
        overlap=work.cut.overlap,
        level=tiling.level,
        mpp=tiling.mpp,
        mpp0=tiling.mpp0,
        height=tiling.size[0],
        width=tiling.size[1],
        dim=encoder.width,
        encoder=encoder.name,
        digest=digest,
        remarks=remarks,
    )
    _write(record, out, tiling, inside, (features, corners.reshape(-1, 2)), encoder, work)
    return record


def _rows(
    tiles: Iterator[Window], encoder: Encoder, batch_size: int, bad: list[Window]
) -> Iterator[np.ndarray]:
    """Features of the tiles that can be read, batch by batch; the others go to `bad`."""

    def readable() -> Iterator[Window]:
        for tile in tiles:
            if tile.pixels is None:
                bad.append(tile)
            else:
                yield tile

    for batch in batches(readable(), batch_size):
        yield encoder.features([tile.pixels for tile in batch if tile.pixels is not None])


def _check_size(image: Path, tiling: Tiling, inside: Counted, work: Work) -> None:
    if work.tissue == "none" and not inside.tiles.any():
        height, width = tiling.size
        raise UsageError(
            f"{image} has {width} x {height} pixels, less than half a tile of {tiling.tile_px0} "
            "pixels of level 0: give a smaller --tile"
        )


def _finished(name: str, out: Path, digest: str) -> Extracted | None:
    """The record of a slide that is finished as it is asked for."""
    record = out / RECORDS / f"{name}.json"
    beside = out / TISSUE / f"{name}.geojson", out / THUMBNAILS / f"{name}.png"
    if not record.is_file() or not all(file.is_file() for file in beside):
        return None
    finished = Extracted.read(record)
    if finished.digest != digest or digest_in(out / FEATURES / f"{name}.h5") != digest:
        notice(f"{name}: other settings, another encoder or another file: its features are new")
        return None
    return finished


def _write(
    record: Extracted,
    out: Path,
    tiling: Tiling,
    inside: Counted,
    bag: tuple[np.ndarray, np.ndarray],
    encoder: Encoder,
    work: Work,
) -> None:
    for folder in (FEATURES, TISSUE, THUMBNAILS, RECORDS):
        make_folder(out / folder)
    name, lattice = record.slide, tiling.lattice(work.origin)
    regions = (annotation(part, lattice, "Tissue", PINK) for part in polygons(inside.region))
    write_text(out / TISSUE / f"{name}.geojson", collection(regions))
    small = thumbnail(record.file, side=SMALL, choice=Choice(scale=encoder.scale))
    places = [(tile["x"], tile["y"]) for tile in record.unreadable]
    picture = sketch(small, tiling, bag[1], np.array(places, np.int64).reshape(-1, 2))
    write_picture(out / THUMBNAILS / f"{name}.png", picture)
    write_bag(
        out / FEATURES / f"{name}.h5",
        *bag,
        slide=name,
        encoder=encoder.name,
        mpp0=tiling.mpp0,
        mpp=tiling.mpp,
        tile_px=work.cut.tile,
        tile_px0=tiling.tile_px0,
        overlap=work.cut.overlap,
        level0_size=tiling.size,
        bounds=tiling.bounds,
        digest=record.digest,
        encoder_digest=encoder.digest,
    )
    write_text(out / RECORDS / f"{name}.json", json.dumps(asdict(record), indent=1) + "\n")


def _digest(image: Path, work: Work, encoder: Encoder) -> str:
    """Of all that decides the features and the files beside them."""
    mask = Path(work.tissue)
    facts = {
        "version": VERSION,
        "image": image_print(image),
        "encoder": encoder.digest,
        "name": encoder.name,
        "cut": asdict(work.cut),
        "tissue": str(work.tissue) if not mask.suffix else of_file(mask),
        "origin": work.origin,
    }
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
