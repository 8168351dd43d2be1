"""`softless tiles`: slides as bags of features, made by a frozen encoder."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from softless import ranks
from softless.data.folder import listing, report_passed_over
from softless.data.notices import notice
from softless.errors import DataError, SoftlessError, UsageError, located, need
from softless.exporting.names import refuse_file
from softless.histology.counting import check_tissue
from softless.histology.encoder import encoder_of
from softless.histology.extract import FEATURES, RECORDS, Extracted, Work, extracted
from softless.histology.tiling import Cut
from softless.models.durable import make_folder, remove_empty, write_text
from softless.slides.files import SLIDE_TYPES, series_of
from softless.slides.lattice import Origin
from softless.training.sharing import see_one_folder, sharing
from softless.words import as_cell, table, visible

TABLE = "tiles.csv"
COLUMNS = (
    "slide",
    "file",
    "tiles",
    "unreadable",
    "tile_px",
    "tile_px0",
    "overlap",
    "level",
    "mpp",
    "mpp0",
    "width",
    "height",
    "dim",
    "encoder",
    "note",
)
NOTHING = "none"


@dataclass(frozen=True)
class Failed:
    """A slide without features, and why."""

    slide: str
    file: str
    note: str


@dataclass(frozen=True)
class Bags:
    """What became of all slides.

    Attributes:
        slides: One for each, in the order of the names.
        out: The folder of the results.
    """

    slides: tuple[Extracted | Failed, ...]
    out: Path

    @property
    def exit_code(self) -> int:
        """4 where a slide failed, or a tile of one could not be read."""
        partial = (isinstance(slide, Failed) or slide.unreadable for slide in self.slides)
        return 4 if any(partial) else 0

    def to_dict(self) -> dict[str, Any]:
        return {
            "slides": [
                {"slide": slide.slide, "file": slide.file, "failed": slide.note}
                if isinstance(slide, Failed)
                else {**vars(slide), "note": slide.note}
                for slide in self.slides
            ],
            "out": str(self.out),
            "exit_code": self.exit_code,
        }

    def __str__(self) -> str:
        cells = [_cells(slide) for slide in self.slides]
        heads = ["slide", "tiles", "um/pixel", "side at level 0", ""]
        return f"{table(heads, cells)}\n\nbags: {self.out / FEATURES}"


def _cells(slide: Extracted | Failed) -> list[str]:
    if isinstance(slide, Failed):
        return [slide.slide, "", "", "", f"failed: {slide.note}"]
    mpp = "" if slide.mpp is None else f"{slide.mpp:.4g}"
    return [slide.slide, f"{slide.tiles:,}", mpp, f"{slide.tile_px0:,}", slide.note]


def tiles(
    *slides: str,
    encoder: str,
    out: str | Path,
    mpp: str | None = None,
    tile: int = 224,
    overlap: int = 0,
    tissue: str = NOTHING,
    origin: Origin = "slide",
    slide_mpp: float | None = None,
    weights: str | Path | None = None,
    batch_size: int = 64,
    dtype: Literal["float32", "bfloat16"] = "float32",
    device: str = "auto",
    quiet: bool = False,
) -> Bags:
    """Cut slides into tiles and write the features that a frozen encoder gives of each.

    Writes for each slide OUT/features/SLIDE.h5 in TRIDENT's layout, OUT/tissue/SLIDE.geojson (the
    region whose tiles count), OUT/thumbnails/SLIDE.png and OUT/slides/SLIDE.json, and for all of
    them OUT/tiles.csv. A tile counts where at least half of it lies inside the image and in the
    tissue. A second call keeps the slides that are finished with the same encoder and settings. A
    slide that fails does not stop the others: the exit code is 4 then, and where a tile could not
    be read. softless.Bag.open reads the files.

    Args:
        slides: slides (SVS, NDPI, MRXS, tiled TIFF, …), images, or folders, which are searched.
        encoder: the folder of a run or of `save_weights`, local-dir:FOLDER, or the name of a model
            with the weights that timm knows; features are what its head would be given.
        out: a folder for the results, made if missing.
        mpp: micrometres per pixel of the tiles; none takes the pixels of level 0 as they are.
        tile: pixels along a side of a tile, as the encoder sees it.
        overlap: pixels that neighbours share.
        tissue: otsu takes what is stained, by Otsu's threshold on saturation; none takes all; or
            the file of a mask, PNG of two values or polygons as GeoJSON, or a folder with one for
            each slide, named as it is.
        origin: whose coordinates GeoJSON has, coming in and going out: slide (the file's corner) or
            qupath (what QuPath shows, which leaves out what was not scanned).
        slide_mpp: micrometres per pixel of level 0, for files that do not say; an error for one
            that says another.
        weights: a checkpoint for the name of a model.
        batch_size: tiles at once.
        dtype: float32 or bfloat16, of the encoder; features are written in float32.
        device: auto, cpu, cuda, mps.
        quiet: no progress line.

    Returns:
        What became of each slide.

    Raises:
        UsageError: no such encoder, or options that do not fit; the error of the only slide, or of
            all.
        DataError: the only slide, or every one, cannot be read.
        MissingExtra: h5py, shapely or what reads slides is not installed.

    Examples:
        >>> bags = softless.tiles("photos", encoder="runs/digits", tile=32, out="cut", quiet=True)
        >>> [slide.tiles for slide in bags.slides]
        [1, 1]
    """
    need("h5py", "shapely")
    if not slides:
        raise UsageError("softless tiles SLIDE … --encoder RUN --out DIR: name one slide or more")
    if batch_size < 1:
        raise UsageError(f"--batch-size {batch_size}: at least one tile at once")
    refuse_file(encoder, "tiles", "features are taken ahead of a head, which a graph hides")
    cut = Cut(_micrometres(mpp), tile, overlap, slide_mpp)
    masks = _Masks(tissue)
    root = located(out)
    arguments = {
        "slides": slides,
        "encoder": encoder,
        "out": out,
        "cut": str(cut),
        "tissue": tissue,
        "origin": origin,
        "weights": weights,
        "batch_size": batch_size,
        "dtype": dtype,
    }
    with sharing(device, arguments, root) as world:
        files = world.together(lambda: masks.checked(_files(slides, root)))
        model = world.together(
            lambda: encoder_of(
                encoder,
                tile,
                weights=weights,
                mpp=cut.mpp,
                device=world.device,
                dtype=getattr(torch, dtype),
            )
        )
        new = world.first(lambda: not root.exists())
        see_one_folder(world, root)
        make_folder(root)

        def made(name: str) -> Extracted | SoftlessError:
            try:
                work = Work(cut, masks.of(files[name], name), origin, batch_size)
                return extracted(files[name], name, root, work, model, quiet=quiet)
            except SoftlessError as error:
                return error

        names = list(files)
        outcomes = ranks.interleaved(
            world.gather([made(name) for name in names[world.rank :: world.size]])
        )
        errors = [outcome for outcome in outcomes if isinstance(outcome, SoftlessError)]
        if len(errors) == len(names):
            if new and world.is_first:
                remove_empty(root)
            raise ranks.shared(errors[0])
        bags = Bags(
            tuple(
                Failed(name, str(files[name]), " ".join(str(outcome).split()))
                if isinstance(outcome, SoftlessError)
                else outcome
                for name, outcome in zip(names, outcomes, strict=True)
            ),
            root,
        )
        world.first(lambda: _write_table(bags))
        for slide in bags.slides:
            if not isinstance(slide, Failed) and not slide.tiles:
                notice(f"{slide.slide}: {slide.note}")
        return bags


def _micrometres(text: str | float | None) -> float | None:
    """`--mpp` as a number.

    Raises:
        UsageError: neither a number nor none.
    """
    if text is None or text == NOTHING:
        return None
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(
            f"--mpp {text}: give micrometres per pixel, for example 0.5, or none"
        ) from error


def _files(slides: Sequence[str], out: Path) -> dict[str, Path]:
    """The files by the names of their slides, sorted.

    Raises:
        DataError: nothing is there, or a folder without slides.
        UsageError: two slides of one name.
    """
    paths: list[Path] = []
    for slide in slides:
        path = located(slide)
        if not path.exists():
            raise DataError(f"no slide at {path}: give a slide, an image or a folder of them")
        paths += _in_folder(path, out) if path.is_dir() else [path]
    files: dict[str, Path] = {}
    for path in paths:
        if files.setdefault(path.stem, path).resolve() != path.resolve():
            raise UsageError(
                f"{files[path.stem]} and {path} are both called {visible(path.stem)}, and bags are "
                "named by their slides: rename one, or give each its own --out"
            )
    return dict(sorted(files.items()))


def _in_folder(folder: Path, out: Path) -> list[Path]:
    listed = listing(folder, apart=out, accepts=lambda path: path.suffix.lower() in SLIDE_TYPES)
    if not listed.files:
        raise DataError(
            f"no slides in {folder} or below: give slides or images, or a folder that holds some"
        )
    report_passed_over(folder, listed.passed_over, listed.hidden)
    return list(_slides(folder / file for file in listed.files))


def _slides(files: Iterable[Path]) -> Iterator[Path]:
    """The files, of several DICOM files of one slide the first."""
    whose: dict[str, Path] = {}
    for path in files:
        try:
            series = series_of(path)
        except DataError:  # it is told with its slide
            series = None
        if series is None or whose.setdefault(series, path) == path:
            yield path
        else:
            notice(f"{path} is of the slide of {whose[series]}, and they are read as one")


class _Masks:
    """What `--tissue` says of each slide.

    Raises:
        UsageError: it says nothing that can be.
        DataError: no such file.
    """

    def __init__(self, tissue: str) -> None:
        path = located(tissue)
        self.folder = path if path.is_dir() else None
        self.tissue = tissue if self.folder else check_tissue(tissue)

    def checked(self, files: dict[str, Path]) -> dict[str, Path]:
        """The slides, of which one mask is of one.

        Raises:
            UsageError: it would be of several.
        """
        if isinstance(self.tissue, Path) and len(files) > 1:
            raise UsageError(
                f"--tissue {self.tissue} is the mask of one slide, and there are {len(files)}: "
                "give a folder that holds a mask for each, named as the slide is"
            )
        return files

    def of(self, file: Path, name: str) -> str | Path:
        """The mask of a slide.

        Raises:
            DataError: the folder has none, or two.
        """
        if self.folder is None:
            return self.tissue
        ends = (".png", ".geojson", ".json")
        candidates = {f"{base}{end}" for base in (name, file.name) for end in ends}
        matching = sorted(name for name in candidates if (self.folder / name).is_file())
        if len(matching) != 1:
            raise DataError(
                f"{self.folder} holds {' and '.join(matching) or 'no mask'} for {file.name}: keep "
                f"one there, {name}.png or {name}.geojson"
            )
        return self.folder / matching[0]


def _write_table(bags: Bags) -> None:
    """`tiles.csv`, with the slides of earlier calls whose bags are there."""
    slides: dict[str, Extracted | Failed] = {}
    for record in sorted((bags.out / RECORDS).glob("*.json")):
        slides[record.stem] = Extracted.read(record)
    slides |= {slide.slide: slide for slide in bags.slides}
    foreign = {
        slide.slide
        for slide in slides.values()
        if isinstance(slide, Extracted) and slide.encoder not in _encoders(bags)
    }
    if foreign:
        notice(
            f"{bags.out}: {len(foreign)} slides of an earlier call have features of another "
            "encoder; give each encoder its own --out"
        )
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for _, slide in sorted(slides.items()):
        writer.writerow(_row(slide))
    write_text(bags.out / TABLE, buffer.getvalue(), errors="surrogateescape")


def _encoders(bags: Bags) -> set[str]:
    return {slide.encoder for slide in bags.slides if isinstance(slide, Extracted)}


def _row(slide: Extracted | Failed) -> dict[str, Any]:
    cells: dict[str, Any] = {"slide": as_cell(slide.slide), "file": as_cell(slide.file)}
    if isinstance(slide, Failed):
        return {**cells, "note": f"failed: {slide.note}"}
    cells |= {name: getattr(slide, name) for name in COLUMNS if name not in {*cells, "note"}}
    return {**cells, "unreadable": len(slide.unreadable), "note": slide.note}
