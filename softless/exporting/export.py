"""`softless.export`: a model as a file of another runtime, run, compared, audited and measured."""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from softless.errors import SoftlessError, StorageError, UsageError, located
from softless.exporting.checks import checked_request, formats_named
from softless.exporting.dense.recorded import (
    later_names,
)
from softless.exporting.described import metadata_of, recording_of
from softless.exporting.formats.format import Format, Int8
from softless.exporting.formats.table import FORMATS
from softless.exporting.graph import Dynamic, Graph, last_sentence
from softless.exporting.images import bytes_of, gathered
from softless.exporting.loaded import part_path
from softless.exporting.measured import summary
from softless.exporting.metadata import Metadata
from softless.exporting.noted import note
from softless.exporting.proof import proven
from softless.exporting.quantized.candidate import Material
from softless.exporting.recording import Recording
from softless.exporting.report import FAILED, Exported, ExportedFile
from softless.exporting.request import Form, Images, Pixels, Request
from softless.exporting.silence import Said, muted
from softless.exporting.source import (
    Source,
    opened,
)
from softless.models.durable import (
    delete,
    delete_folder,
    make_folder,
    move,
    remove_empty,
    storage_error,
    storing,
    sync_file,
    sync_folder,
    write_text,
)

LOG = "export.log"


def export(
    source: nn.Module | str | Path,
    format: str | Sequence[str] = "onnx",
    out: str | Path = "exported",
    form: Form = "auto",
    *,
    size: int | tuple[int, int] | None = None,
    dynamic: Dynamic | None = None,
    int8: Int8 = "none",
    calibrate: str | Path | None = None,
    pixels: Pixels = "normalised",
    test: str | Path | None = None,
    opset: int | None = None,
    overwrite: bool = False,
) -> Exported:
    """Write a trained model in the format of another runtime, and prove the file.

    Each file is run beside the model (float32: all answers within 1e-5 of the largest), audited,
    and measured on test images. A file that fails a check is kept as NAME.failed.

    Args:
        source: the folder of a run or of `save_weights`, a module, or the name of a model.
        format: one of `softless list formats`, or several.
        out: a folder for the files, new or empty.
        form: edge (one size, its tables constants), plain (the model as it is), or auto: edge where
            the host has one and one size is asked for.
        size: height and width in pixels, or the side of a square; the model's own by default.
        dynamic: what stays free in the graph: batch, size or both.
        int8: weights, or static: weights and activations, measured against the model.
        calibrate: a folder of images for int8; a run's training images by default.
        pixels: uint8 puts (x / 255 - mean) / std into the file.
        test: labelled images to measure on; a run's test split by default.
        opset: of ONNX; 20 by default.
        overwrite: replace files of the same names in `out`.

    Returns:
        The report: `.path` is the file, `.files` all of them, `.ok` whether every check passed.

    Raises:
        UsageError: an unknown format, options that do not go together, a model that the tool
            cannot write.
        DataError: the source or the images cannot be read.
        MissingExtra: the tool is not installed.

    Examples:
        >>> model = softless.create_model("sima_deit_tiny_patch16_224", depth=2, act="relu")
        >>> report = softless.export(model, "pt2", "edge", size=32)
        >>> report.ok, report.path.name
        (True, 'model.pt2')
    """
    formats = formats_named(format, int8)
    if str(out) in FORMATS:  # `softless export RUN onnx openvino` would write into openvino/
        raise UsageError(
            f"out='{out}' is the name of a format: several are given as --format "
            f"{' '.join([*(record.name for record in formats), str(out)])}; a folder of that name "
            f"is --out ./{out}"
        )
    return files_of(
        opened(source),
        formats,
        located(out),
        form,
        size=size,
        dynamic=dynamic,
        int8=int8,
        calibrate=calibrate,
        pixels=pixels,
        test=test,
        opset=opset,
        overwrite=overwrite,
        noted=True,
    )


def files_of(
    source: Source,
    formats: tuple[Format, ...],
    folder: Path,
    form: Form = "auto",
    *,
    size: int | tuple[int, int] | None = None,
    dynamic: Dynamic | None = None,
    int8: Int8 = "none",
    calibrate: str | Path | None = None,
    pixels: Pixels = "normalised",
    test: str | Path | None = None,
    opset: int | None = None,
    overwrite: bool = False,
    measuring: bool = True,
    noted: bool = False,
) -> Exported:
    """As `export`, of what is open.

    Args:
        source: what is exported.
        formats: in which formats.
        folder: for the files.
        form: as in `export`, as all that is not described here.
        size: height and width in pixels.
        dynamic: what stays free.
        int8: eight bits.
        calibrate: a folder of images.
        pixels: what the file takes.
        test: labelled images.
        opset: of ONNX.
        overwrite: replace files of the same names.
        measuring: run the files on test images.
        noted: keep a line for each file in the folder of the run.

    Raises:
        UsageError: as `export`.
        DataError: as `export`.
    """
    request = checked_request(source, formats, form, size, dynamic, int8, pixels, opset)
    names = [_name(record, request) for record in formats]
    later = later_names(source.model)
    parts = [
        part.name
        for record, name in zip(formats, names, strict=True)
        for path in [folder / name, *(part_path(folder / name, record, one) for one in later)]
        for part in record.parts(path)
    ]
    _check_free(folder, parts, overwrite=overwrite)
    sized = source.at(request.size)
    images = gathered(sized, request, calibrate, test, measuring=measuring)
    fresh = not folder.exists()
    make_folder(folder)
    files: list[ExportedFile] = []
    try:
        for record, name in zip(formats, names, strict=True):
            files.append(_exported(sized, record, request, images, folder / name))
    finally:
        # files that were whole before another format failed count too
        report = Exported(sized.name, request.size, tuple(files), request.dynamic, request.pixels)
        if noted:
            note(source, report)
        if fresh and not files:
            remove_empty(folder)
    return report


def _name(record: Format, request: Request) -> str:
    quantised = "" if request.int8 == "none" else f"-int8-{request.int8}"
    return f"model{quantised}{record.ending}"


def _check_free(folder: Path, names: Sequence[str], *, overwrite: bool) -> None:
    """Whether nothing of the user's is replaced."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file: choose a folder with --out")
    present = [name for name in names for path in (name, name + FAILED) if (folder / path).exists()]
    if present and not overwrite:
        raise UsageError(
            f"{folder} holds {present[0]} already: choose another --out, or --overwrite"
        )


def _exported(
    source: Source, record: Format, request: Request, images: Images, path: Path
) -> ExportedFile:
    """One file: written beside, checked, and moved to its name once it is whole.

    In eight bits the recipes are tried in order; the first that passes is kept, or else the one
    whose answers are most like the model's.
    """
    recording = recording_of(source, record, request, images)
    metadata = metadata_of(source, request, recording)
    files: dict[str, ExportedFile] = {}
    refused: dict[str, str] = {}
    with _workplace(path.parent) as folder:
        ways = _ways(source, record, request, recording.graph, images, folder)
        for name, write in ways.items():
            draft = make_folder(folder / name) / path.name
            try:
                with _logged(record, path.parent):
                    write(draft)
                    for part, graph in recording.parts.items():
                        record.write(graph, part_path(draft, record, part), request.opset)
                described = replace(metadata, int8=_quantisation(request, name, images, refused))
                files[name] = _proven(source, record, request, images, recording, draft, described)
            except UsageError as error:  # the tool's own failure; another recipe may do
                refused[name] = str(error)
                if not files and len(refused) == len(ways):
                    raise
                continue
            if files[name].ok:
                break
            refused[name] = "; ".join(files[name].faults)
        kept = max(files, key=lambda name: (files[name].ok, files[name].alike))
        report = files[kept]
        suffix, other = ("", FAILED) if report.ok else (FAILED, "")
        # the first one names the others, and comes when they are there
        for part in reversed(_parts(record, recording, report.path)):
            _moved(part, path.parent / (part.name + suffix))
            _removed(path.parent / (part.name + other))
    tried = {name: why for name, why in refused.items() if name != kept}
    return replace(
        report,
        path=path.with_name(path.name + suffix),
        form=recording.form,
        why=recording.why,
        int8=kept,
        tried=tried,
    )


def _ways(
    source: Source, record: Format, request: Request, graph: Graph, images: Images, folder: Path
) -> dict[str, Callable[[Path], None]]:
    """How a file may be written, by the name of the recipe of eight bits, or "none"."""

    def write(of: Graph, to: Path) -> None:
        record.write(of, to, request.opset)

    if request.int8 == "none":
        return {"none": partial(write, graph)}
    calibration = None if images.calibration is None else images.calibration.images
    if calibration is not None and request.pixels == "uint8":
        calibration = bytes_of(source, calibration)
    scratch = make_folder(folder / "float32") / f"model{record.ending}"
    material = Material(graph, calibration, write, scratch)
    return {recipe.name: partial(recipe.write, material) for recipe in record.int8[request.int8]}


def _quantisation(
    request: Request, name: str, images: Images, refused: Mapping[str, str]
) -> Mapping[str, Any] | None:
    """What a file says of its eight bits."""
    if request.int8 == "none":
        return None
    calibration = images.calibration
    return {
        "kind": request.int8,
        "recipe": name,
        "tried": dict(refused),
        "calibration": None if calibration is None else calibration.description(),
    }


def _proven(
    source: Source,
    record: Format,
    request: Request,
    images: Images,
    recording: Recording,
    draft: Path,
    metadata: Metadata,
) -> ExportedFile:
    """The file with all that it says of itself, its worth too."""
    with storing(draft):
        record.label(draft, metadata.as_text())
        for name, graph in recording.parts.items():
            own = replace(metadata, outputs=graph.outputs, decoding={"part_of": draft.name})
            record.label(part_path(draft, record, name), own.as_text())
    report = proven(source, record, request, images, recording, draft)
    accuracy, counts = summary(report.measured), None
    if report.audit is not None:
        counts = {"exp_free": report.audit.exp_free, "kinds": dict(report.audit.kinds)}
    labelled = replace(metadata, accuracy=accuracy, audit=counts)
    with storing(draft):
        record.label(draft, labelled.as_text())
    return replace(report, bytes=sum(map(_bytes, _parts(record, recording, draft))))


def _parts(record: Format, recording: Recording, path: Path) -> list[Path]:
    """All files of an export, those of its later graphs too."""
    drafts = [path, *(part_path(path, record, name) for name in recording.parts)]
    return [part for written in drafts for part in record.parts(written)]


@contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """A folder beside the files, gone afterwards whatever happens."""
    with storing(folder):
        place = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    try:
        yield place
    finally:
        with suppress(StorageError):  # cleaning up hides no error under way
            delete_folder(place)


@contextmanager
def _logged(record: Format, folder: Path) -> Iterator[None]:
    """A tool at work: what it prints goes to nobody. Of its failure people read the last sentence,
    and all of it, with what it printed, stands in a file.
    """
    said, failure = Said(), None
    try:
        with muted() as said:
            yield
    except Exception as error:  # noqa: BLE001 - raised below, once the tool's words are there
        failure = error
    if failure is None:
        return
    # a disk that refuses is no failure of the tool, which would be told in its own words
    if isinstance(failure, OSError) and failure.errno is not None:
        raise storage_error(folder, failure) from failure
    ours = isinstance(failure, SoftlessError)
    cause = failure.__cause__ if ours else failure
    if cause is not None:
        text = f"{record.name}\n\n{cause}\n\n{said.text}"
        write_text(folder / LOG, text, errors="replace")
    if ours:
        raise failure
    raise UsageError(
        f"{record.name} failed: {last_sentence(failure)}; all that it said is in {folder / LOG}"
    ) from failure


def _bytes(path: Path) -> int:
    if path.is_dir():
        return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())
    return path.stat().st_size


def _moved(path: Path, to: Path) -> None:
    """Give a file or folder its name once it is on the disk."""
    with storing(to):
        for inner in path.rglob("*") if path.is_dir() else [path]:
            if inner.is_file():
                sync_file(inner)
    _removed(to)
    move(path, to)
    sync_folder(to.parent)


def _removed(path: Path) -> None:
    """What an earlier export left of this name is not what was asked for."""
    if path.is_dir():
        delete_folder(path)
    else:
        delete(path)
