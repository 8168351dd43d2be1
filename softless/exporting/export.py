"""`softless.export`: a model as a file of another runtime, run, compared, audited and measured."""

import importlib.metadata
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless.data.images import MODES
from softless.data.samples import Samples
from softless.errors import DataError, SoftlessError, StorageError, UsageError, located, need
from softless.experiment.files import LARGEST_IMAGE
from softless.exporting.dense.maps import Stepped
from softless.exporting.dense.recorded import (
    PLAIN,
    compared_images,
    is_dense,
    later_names,
    on_grid,
    reference_of,
)
from softless.exporting.dense.recorded import recording as dense_recording
from softless.exporting.dense.worth import dense_worth
from softless.exporting.edge import edge
from softless.exporting.formats.format import Format, Int8
from softless.exporting.formats.standing import needs
from softless.exporting.formats.table import FORMATS, format_named
from softless.exporting.forms.steps import inverts
from softless.exporting.graph import CELLS, Dynamic, Graph, last_sentence
from softless.exporting.grid import check_any_size, check_size, free_step, grid_step
from softless.exporting.loaded import ExportedModel, as_bytes, load_exported, part_path
from softless.exporting.measured import Measured, Parity, measured, parity, summary
from softless.exporting.metadata import KEPT, Metadata, shareable
from softless.exporting.noted import note
from softless.exporting.pixels import OfBytes
from softless.exporting.quantized.calibration import Calibration, calibrated
from softless.exporting.quantized.candidate import Material
from softless.exporting.recording import Recording
from softless.exporting.report import FAILED, Exported, ExportedFile
from softless.exporting.silence import Said, muted
from softless.exporting.source import Source, opened, tensors, token_scale_of, weights_digest
from softless.measure.audit import Audit, audit
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
from softless.modes import in_evaluation
from softless.tasks.task import Task

PARITY_IMAGES = 16
STEP_IMAGES = 64
NOISE = 1 << 22  # pixels that a model is compared on where there are no images
LOG = "export.log"
Pixels = Literal["normalised", "uint8"]
Form = Literal["auto", "plain", "edge"]


@dataclass(frozen=True)
class Request:
    """What is asked for, checked."""

    formats: tuple[Format, ...]
    form: Form
    size: tuple[int, int]
    dynamic: Dynamic | None
    int8: Int8
    pixels: Pixels
    opset: int | None


@dataclass(frozen=True)
class Images:
    """The images that files are compared and measured on."""

    compared: Tensor  # (n, C, H, W), prepared
    pixels: Tensor  # the same as the file takes them: normalised, or bytes
    steps: Tensor  # on which Newton's steps are chosen, where there is something to invert
    tested: Samples | None
    calibration: Calibration | None
    task: Task | None = None  # that measures a detector or segmenter on `tested`
    noise: bool = False  # whether the images are noise, since there are none


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
        source: the folder of a run, `local-dir:FOLDER`, a module, or the name of a model.
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
    request = _request(source, formats, form, size, dynamic, int8, pixels, opset)
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
    images = _images(sized, request, calibrate, test, measuring=measuring)
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


def _request(
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


def _images(
    source: Source,
    request: Request,
    calibrate: str | Path | None,
    test: str | Path | None,
    *,
    measuring: bool,
) -> Images:
    """What files are compared and measured on.

    Raises:
        UsageError: int8 without images.
    """
    if is_dense(source.model):
        return _dense_images(source, request, test, measuring=measuring)
    tested = source.test_images(test) if measuring else None
    if request.int8 != "none" and tested is None:
        raise UsageError(
            f"--int8 {request.int8} is measured on labelled test images, and there are none of "
            f"{source.name}: give --test FOLDER"
        )
    measures = request.int8 == "static" or inverts(source.model)
    if calibrate is not None and not measures:
        raise UsageError(
            f"--calibrate is of --int8 static, and --int8 is {request.int8}: leave it out"
        )
    calibration = None
    if request.int8 == "static" or calibrate is not None:
        calibration = calibrated(source, calibrate, tested)
        if calibration is None:
            raise UsageError(
                "--int8 static measures the range of every activation on images: give --calibrate "
                "FOLDER"
            )
    real: Samples | None = tested
    if real is None and source.task == "dino":
        real = source.unlabelled()
    if real is not None:
        compared = tensors(real, source.transform, PARITY_IMAGES)
        pixels = compared
        if request.pixels == "uint8":
            pixels = tensors(real, as_bytes(source.transform), PARITY_IMAGES)
        steps = _step_images(source, compared, calibration)
        return Images(compared, pixels, steps, tested, calibration)
    compared, pixels = _noise(source, request)
    return Images(compared, pixels, compared, None, calibration, noise=True)


def _dense_images(
    source: Source, request: Request, test: str | Path | None, *, measuring: bool
) -> Images:
    """The same of a detector or a segmenter: those test images that the graph takes."""
    found = source.dense_task(test) if measuring else None
    task, tested = (None, None) if found is None else found
    compared = compared_images(
        source.model,
        tested,
        source.transform,
        request.size,
        PARITY_IMAGES,
        any_size=request.dynamic in {"size", "both"},
        as_they_are=request.pixels == "uint8",
    )
    if noise := compared is None:
        compared, pixels = _noise(source, request)
    else:
        pixels = compared if request.pixels == "normalised" else _bytes_of(source, compared)
    return Images(compared, pixels, compared, tested, None, task, noise=noise)


def _noise(source: Source, request: Request) -> tuple[Tensor, Tensor]:
    """Noise (n, C, H, W) as the model takes it, and as the file does."""
    generator = torch.Generator().manual_seed(0)
    shape = (_images_of_noise(request.size), int(source.best["in_chans"]), *request.size)
    if request.pixels == "normalised":
        noise = torch.randn(shape, generator=generator)
        return noise, noise
    levels = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    mean, std = (
        torch.tensor(list(source.best[name]), dtype=torch.float64)[:, None, None]
        for name in ("mean", "std")
    )
    return ((levels.double() / 255 - mean) / std).float(), levels


def _bytes_of(source: Source, images: Tensor) -> Tensor:
    """Normalised images (B, C, H, W) of bytes as those bytes."""
    mean, std = (torch.tensor(list(source.best[name]))[:, None, None] for name in ("mean", "std"))
    return (255 * (images.double() * std + mean)).round().clamp(0, 255).to(torch.uint8)


def _images_of_noise(size: tuple[int, int]) -> int:
    """As many as a machine of ordinary memory answers at once."""
    return max(2, min(PARITY_IMAGES, NOISE // (size[0] * size[1])))


def _step_images(source: Source, compared: Tensor, calibration: Calibration | None) -> Tensor:
    """Prepared images (n, C, H, W) that say how many steps an inverse takes: those of the training
    where it inverts and they are there.
    """
    if not inverts(source.model):
        return compared
    if calibration is not None:
        return calibration.images[:STEP_IMAGES]
    try:
        samples = source.calibration_images(None)
    except DataError:
        return compared
    return compared if samples is None else tensors(samples, source.transform, STEP_IMAGES)


def _exported(
    source: Source, record: Format, request: Request, images: Images, path: Path
) -> ExportedFile:
    """One file: written beside, checked, and moved to its name once it is whole.

    In eight bits the recipes are tried in order; the first that passes is kept, or else the one
    whose answers are most like the model's.
    """
    recording = _recording(source, record, request, images)
    metadata = _metadata(source, request, recording)
    files: dict[str, ExportedFile] = {}
    refused: dict[str, str] = {}
    with _workplace(path.parent) as folder:
        ways = _ways(record, request, recording.graph, images, folder)
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
    record: Format, request: Request, graph: Graph, images: Images, folder: Path
) -> dict[str, Callable[[Path], None]]:
    """How a file may be written, by the name of the recipe of eight bits, or "none"."""

    def write(of: Graph, to: Path) -> None:
        record.write(of, to, request.opset)

    if request.int8 == "none":
        return {"none": partial(write, graph)}
    calibration = None if images.calibration is None else images.calibration.images
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
    report = _checked(source, record, request, images, recording, draft)
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


def _recording(source: Source, record: Format, request: Request, images: Images) -> Recording:
    """What is recorded, its form, and why that is plain."""
    any_size = request.dynamic in {"size", "both"}
    several = request.dynamic in {"batch", "both"}
    if is_dense(source.model):
        made = dense_recording(
            source.model,
            images.compared,
            request.dynamic,
            request.form,
            several=several,
            cholesky=record.inverts,
        )
    else:
        form: Form = "plain" if any_size else request.form
        module = edge(source.model, request.size, form, batch=record.batch, images=images.steps)
        outputs = ("features",) if source.task == "dino" else ("logits",)
        step = free_step(source.model) if any_size else grid_step(source.model)
        example = images.compared[: 2 if several else 1]
        graph = Graph(module, example, outputs, request.dynamic, step)
        notes = () if module.inversion is None else (str(module.inversion),)
        made = Recording(graph, str(module.form), str(module.why), notes=notes)
    made = replace(
        made,
        graph=_without_images(made.graph),
        parts={name: _without_images(graph) for name, graph in made.parts.items()},
    )
    if request.pixels == "normalised":
        return made
    graph, number = made.graph, len(made.graph.example)
    taken = OfBytes(graph.module, source.best["mean"], source.best["std"], graph.example)
    return replace(
        made, graph=replace(graph, module=taken, example=_noise_like(images.pixels[:number]))
    )


def _without_images(graph: Graph) -> Graph:
    """A graph that is recorded with noise."""
    return replace(graph, example=_noise_like(graph.example))


def _noise_like(images: Tensor) -> Tensor:
    """Noise in the place of images (B, C, H, W): no image of anybody's is in a file, and some
    formats keep what a graph was recorded with.
    """
    generator = torch.Generator().manual_seed(0)
    if images.dtype == torch.uint8:
        return torch.randint(0, 256, images.shape, generator=generator, dtype=torch.uint8)
    return torch.randn(images.shape, generator=generator)


def _metadata(source: Source, request: Request, recording: Recording) -> Metadata:
    graph = recording.graph
    return Metadata(
        name=str(source.best["architecture"]),
        best={name: source.best[name] for name in KEPT if source.best.get(name) is not None},
        recipe=None if source.run is None else shareable(source.run.recipe),
        size=request.size,
        outputs=graph.outputs,
        form=recording.form,
        weights_sha256=weights_digest(source),
        versions={name: importlib.metadata.version(name) for name in ("softless", "torch")},
        batch=len(graph.example),
        dynamic=request.dynamic,
        step=graph.step,
        pixels=request.pixels,
        token_scale=token_scale_of(source.model),
        decoding=recording.decoding,
    )


def _checked(
    source: Source,
    record: Format,
    request: Request,
    images: Images,
    recording: Recording,
    draft: Path,
) -> ExportedFile:
    """The file that was written, run and read."""
    faults: list[str] = []
    notes: list[str] = ["compared on noise: there are no images of it"] if images.noise else []
    eight_bits = request.int8 != "none"
    same: Parity | None = None
    measurement: Measured | None = None
    if record.open is not None:
        answer = load_exported(draft)
        reference = _reference(source, request, images, recording)
        notes += recording.notes
        if not eight_bits:
            same, apart_by_shape = _compared(record, answer, reference, images, recording, draft)
            for (number, _, height, width), apart in apart_by_shape.items():
                if apart > record.tolerance:
                    faults.append(
                        f"its answers to {number} images of {height} x {width} pixels differ from "
                        f"the model's by {apart:.1e} of the largest, and {record.tolerance:.0e} is "
                        "the most"
                    )
        if images.tested is not None:
            measurement, note_of_it = _measured(source, answer, images)
            notes += [note_of_it] if note_of_it else []
            if measurement is not None:
                faults += measurement.faults(eight_bits=eight_bits)
                notes += measurement.doubts()
    else:
        notes.append(f"{record.name} is written here and runs elsewhere: nothing was compared")
    found: Audit = audit(draft)
    for name in recording.parts:
        later_audit = audit(part_path(draft, record, name))
        found = replace(
            found,
            findings=(*found.findings, *later_audit.findings),
            roots=found.roots + later_audit.roots,
            divisions=found.divisions + later_audit.divisions,
        )
    return ExportedFile(
        format=record.name,
        path=draft,
        form="",
        why="",
        parity=same,
        audit=found,
        measured=measurement,
        shape=record.shape(draft),
        bytes=0,
        faults=tuple(faults),
        notes=tuple(notes),
    )


def _compared(
    record: Format,
    answer: ExportedModel,
    reference: nn.Module,
    images: Images,
    recording: Recording,
    draft: Path,
) -> tuple[Parity, dict[tuple[int, ...], float]]:
    """The file beside the model on the images, and the largest difference by shape of images, of
    those too that a dynamic file takes beside.
    """
    same = parity(answer.outputs, reference, images.compared, images.pixels)
    for name, graph in recording.parts.items():
        assert record.open is not None
        later = parity(record.open(part_path(draft, record, name)), graph.module, graph.example)
        same = replace(same, difference=max(same.difference, later.difference))
    differences = {tuple(images.compared.shape): same.difference}
    if recording.decoding is None and answer.metadata.pixels == "normalised":
        for others in _of_other_shapes(answer.metadata, images.compared):
            apart = parity(answer.outputs, reference, others).difference
            differences[tuple(others.shape)] = apart
    return same, differences


def _of_other_shapes(metadata: Metadata, images: Tensor) -> Iterator[Tensor]:
    """Images (n,C,H,W) in other numbers and sizes that a dynamic file takes: one and three, the
    smallest, and a larger one whose sides differ.
    """
    if metadata.dynamic in {"batch", "both"}:
        yield from (images[:1], images[:3])
    if metadata.dynamic in {"size", "both"}:
        height, width = metadata.size
        least = CELLS[0] * metadata.step
        for size in ((least, least), (height + metadata.step, 2 * width)):
            yield F.interpolate(images[:2], size, mode="bilinear", antialias=True)


def _reference(source: Source, request: Request, images: Images, recording: Recording) -> nn.Module:
    """What a file is held against: the plain model, and of inverses as many of Newton's steps."""
    if recording.decoding is None:
        if not inverts(source.model):
            return source.model
        return edge(source.model, request.size, "plain", images=images.steps)
    plain = reference_of(source.model, any_size=request.dynamic in {"size", "both"})
    taken = recording.graph.module
    inner = taken.module if isinstance(taken, OfBytes) else taken
    return Stepped(plain, inner.steps) if isinstance(inner, Stepped) else plain


def _measured(source: Source, answer: ExportedModel, images: Images) -> tuple[Measured | None, str]:
    """What the file is worth on the test images, and what is to say of that."""
    assert images.tested is not None
    if images.task is not None:
        assert source.run is not None
        with in_evaluation(source.model):
            return dense_worth(source.run, answer, images.task, images.tested)
    threshold = 0.5
    if source.run is not None and source.run.recipe.multilabel is not None:
        threshold = source.run.recipe.multilabel.threshold
    with in_evaluation(source.model):
        worth = measured(
            answer,
            source.model,
            images.tested,
            prepared=source.transform,
            same_prepared=answer.transform,
            several=source.task == "multilabel",
            threshold=threshold,
        )
    return worth, ""


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
