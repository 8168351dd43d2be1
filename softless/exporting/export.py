"""`softless.export`: a model as a file of another runtime, run, compared, audited and measured."""

import importlib.metadata
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from softless.data.images import MODES
from softless.data.samples import Samples
from softless.errors import DataError, SoftlessError, UsageError, located, need
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
from softless.exporting.formats.table import FORMATS, format_named
from softless.exporting.forms.steps import inverts
from softless.exporting.graph import Dynamic, Graph, last_sentence
from softless.exporting.grid import check_any_size, check_size, free_step, grid_step
from softless.exporting.loaded import ExportedModel, as_bytes, load_exported, part_path
from softless.exporting.measured import Measured, Parity, measured, parity, summary
from softless.exporting.metadata import KEPT, Metadata, shareable
from softless.exporting.pixels import OfBytes
from softless.exporting.recording import Recording
from softless.exporting.report import FAILED, Exported, ExportedFile
from softless.exporting.source import Source, opened, tensors, token_scale_of, weights_digest
from softless.measure.audit import Audit, audit
from softless.models.durable import make_folder, write_text
from softless.modes import in_evaluation
from softless.tasks.task import Task

PARITY_IMAGES = 16
STEP_IMAGES = 64
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
    calibration: Samples | None
    task: Task | None = None  # that measures a detector or segmenter on `tested`
    real: bool = True  # whether they are images, and not noise


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
    formats = _formats(format)
    opened_source = opened(source)
    request = _request(opened_source, formats, form, size, dynamic, int8, pixels, opset)
    folder = located(out)
    names = [_name(record, request) for record in formats]
    further = [
        part_path(Path(name), record, part).name
        for name, record in zip(names, formats, strict=True)
        for part in later_names(opened_source.model)
    ]
    _check_free(folder, [*names, *further], overwrite=overwrite)
    sized = opened_source.at(request.size)
    images = _images(sized, request, calibrate, test)
    make_folder(folder)
    files = tuple(
        _exported(sized, record, request, images, folder / name)
        for record, name in zip(formats, names, strict=True)
    )
    return Exported(sized.name, request.size, files)


def _formats(named: str | Sequence[str]) -> tuple[Format, ...]:
    names = [named] if isinstance(named, str) else list(named)
    if not names:
        raise UsageError(f"no format is named: choose of {', '.join(FORMATS)}")
    formats = tuple(format_named(name) for name in dict.fromkeys(names))
    need(*(package for record in formats for package in record.writes_with))
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
    if len(sides) != 2:
        raise UsageError(f"--size {size}: give height and width in pixels")
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
    source: Source, request: Request, calibrate: str | Path | None, test: str | Path | None
) -> Images:
    """What files are compared and measured on.

    Raises:
        UsageError: int8 without images.
    """
    if is_dense(source.model):
        if calibrate is not None:
            raise UsageError("--calibrate is for --int8, which is of classifiers: leave it out")
        return _dense_images(source, request, test)
    tested = source.test_images(test)
    calibration = None
    if request.int8 == "static" or calibrate is not None:
        calibration = source.calibration_images(calibrate)
        if calibration is None:
            raise UsageError(
                "--int8 static measures the range of every activation on images: give --calibrate "
                "FOLDER"
            )
    if request.int8 != "none" and tested is None:
        raise UsageError(
            f"--int8 {request.int8} is measured on labelled test images, and there are none of "
            f"{source.name}: give --test FOLDER"
        )
    real = tested if tested is not None else calibration
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
    return Images(compared, pixels, compared, None, calibration, real=False)


def _dense_images(source: Source, request: Request, test: str | Path | None) -> Images:
    """The same of a detector or a segmenter: those test images that the graph takes."""
    found = source.dense_task(test)
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
    real = compared is not None
    if compared is None:
        compared, pixels = _noise(source, request)
    else:
        # a graph of any number is not recorded with one
        compared = compared if len(compared) > 1 else torch.cat([compared, compared])
        pixels = compared if request.pixels == "normalised" else _bytes_of(source, compared)
    return Images(compared, pixels, compared, tested, None, task, real)


def _noise(source: Source, request: Request) -> tuple[Tensor, Tensor]:
    """Noise (n, C, H, W) as the model takes it, and as the file does."""
    generator = torch.Generator().manual_seed(0)
    shape = (PARITY_IMAGES, int(source.best["in_chans"]), *request.size)
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


def _step_images(source: Source, compared: Tensor, calibration: Samples | None) -> Tensor:
    """Prepared images (n, C, H, W) that say how many steps an inverse takes: those of the training
    where it inverts and they are there.
    """
    if not inverts(source.model):
        return compared
    if calibration is None:
        try:
            calibration = source.calibration_images(None)
        except DataError:
            return compared
    if calibration is None:
        return compared
    return tensors(calibration, source.transform, STEP_IMAGES)


def _exported(
    source: Source, record: Format, request: Request, images: Images, path: Path
) -> ExportedFile:
    """One file: written beside, checked, and moved to its name once it is whole."""
    recording = _recording(source, record, request, images)
    with _workplace(path.parent) as folder:
        draft = folder / path.name
        metadata = _metadata(source, request, recording)
        with _logged(record, path.parent):
            record.write(recording.graph, draft, request.opset)
            for name, graph in recording.parts.items():
                record.write(graph, part_path(draft, record, name), request.opset)
        record.label(draft, metadata.as_text())
        for name, graph in recording.parts.items():
            own = replace(metadata, outputs=graph.outputs, decoding={"part_of": path.name})
            record.label(part_path(draft, record, name), own.as_text())
        report = _checked(source, record, request, images, recording, draft)
        accuracy, counts = summary(report.measured), None
        if report.audit is not None:
            counts = {"exp_free": report.audit.exp_free, "kinds": dict(report.audit.kinds)}
        labelled = replace(metadata, accuracy=accuracy, audit=counts)
        record.label(draft, labelled.as_text())
        drafts = [draft, *(part_path(draft, record, name) for name in recording.parts)]
        parts = [part for written in drafts for part in record.parts(written)]
        size = sum(_bytes(part) for part in parts)
        suffix = "" if report.ok else FAILED
        for part in parts:
            _moved(part, path.parent / (part.name + suffix))
    named = path.with_name(path.name + suffix)
    return replace(report, path=named, bytes=size, form=recording.form, why=recording.why)


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
    if request.pixels == "normalised":
        return made
    graph, number = made.graph, len(made.graph.example)
    taken = OfBytes(graph.module, source.best["mean"], source.best["std"], graph.example)
    return replace(made, graph=replace(graph, module=taken, example=images.pixels[:number]))


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
    notes: list[str] = [] if images.real else ["compared on noise: there are no images of it"]
    same: Parity | None = None
    measurement: Measured | None = None
    if record.open is not None:
        answer = load_exported(draft)
        reference = _reference(source, request, images, recording)
        notes += recording.notes
        same = parity(answer.outputs, reference, images.compared, images.pixels)
        for name, graph in recording.parts.items():
            run = record.open(part_path(draft, record, name))
            later = parity(run, graph.module, graph.example)
            same = replace(same, difference=max(same.difference, later.difference))
        if same.difference > record.tolerance:
            faults.append(
                f"its answers differ from the model's by {same.difference:.1e} of the largest, and "
                f"{record.tolerance:.0e} is the most"
            )
        if images.tested is not None:
            measurement, note = _measured(source, answer, images)
            notes += [note] if note else []
            if measurement is not None:
                faults += measurement.faults(eight_bits=request.int8 != "none")
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
    place = Path(tempfile.mkdtemp(prefix=".export-", dir=folder))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


@contextmanager
def _logged(record: Format, folder: Path) -> Iterator[None]:
    """A tool's own failure: its last sentence for people, all of it in a file."""
    try:
        yield
    except SoftlessError as error:
        if error.__cause__ is not None:
            write_text(folder / LOG, f"{record.name}\n\n{error.__cause__}\n", errors="replace")
        raise
    except Exception as error:
        write_text(folder / LOG, f"{record.name}\n\n{error}\n", errors="replace")
        raise UsageError(
            f"{record.name} failed: {last_sentence(error)}; all that it said is in {folder / LOG}"
        ) from error


def _bytes(path: Path) -> int:
    if path.is_dir():
        return sum(inner.stat().st_size for inner in path.rglob("*") if inner.is_file())
    return path.stat().st_size


def _moved(path: Path, to: Path) -> None:
    if to.is_dir():
        shutil.rmtree(to)
    path.replace(to)
