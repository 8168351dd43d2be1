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
import torch.nn.functional as F
from torch import Tensor, nn

from softless.data.samples import Samples
from softless.errors import DataError, SoftlessError, UsageError, located, need
from softless.exporting.edge import edge
from softless.exporting.formats.format import Format, Int8
from softless.exporting.formats.table import FORMATS, format_named
from softless.exporting.forms.steps import inverts
from softless.exporting.graph import CELLS, Dynamic, Graph, last_sentence
from softless.exporting.grid import check_any_size, check_size, free_step, grid_step
from softless.exporting.loaded import ExportedModel, load_exported
from softless.exporting.measured import Measured, Parity, measured, parity, summary
from softless.exporting.metadata import KEPT, Metadata, shareable
from softless.exporting.report import FAILED, Exported, ExportedFile
from softless.exporting.silence import Said, muted
from softless.exporting.source import Source, opened, tensors, token_scale_of, weights_digest
from softless.measure.audit import Audit, audit
from softless.models.durable import make_folder, write_text
from softless.modes import in_evaluation

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
    steps: Tensor  # on which Newton's steps are chosen, where there is something to invert
    tested: Samples | None
    calibration: Samples | None


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
    _check_free(folder, names, overwrite=overwrite)
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
    height_width = source.pixels if size is None else _sides(size)
    check_size(source.model, height_width, source.name)
    if dynamic in {"size", "both"}:
        check_any_size(source.model, source.name)
        if form == "edge":
            raise UsageError(
                "--form edge makes constants of all that depends on the size: leave out --dynamic "
                "size, or choose --form plain"
            )
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
    if pixels == "uint8" and source.best.get("range") is not None:
        raise UsageError(
            f"{source.name} reads images of a declared range and not of bytes: leave --pixels out"
        )
    return Request(formats, form, height_width, dynamic, int8, pixels, opset)


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
    if real is not None:
        compared = tensors(real, source.transform, PARITY_IMAGES)
        return Images(compared, _step_images(source, compared, calibration), tested, calibration)
    generator = torch.Generator().manual_seed(0)
    shape = (PARITY_IMAGES, int(source.best["in_chans"]), *request.size)
    noise = torch.randn(shape, generator=generator)
    return Images(noise, noise, None, calibration)


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
    graph, form, why = _graph(source, record, request, images)
    with _workplace(path.parent) as folder:
        draft = folder / path.name
        with _logged(record, path.parent):
            record.write(graph, draft, request.opset)
        metadata = _metadata(source, request, graph, form)
        record.label(draft, metadata.as_text())
        report = _checked(source, record, request, images, draft)
        accuracy, counts = summary(report.measured), None
        if report.audit is not None:
            counts = {"exp_free": report.audit.exp_free, "kinds": dict(report.audit.kinds)}
        labelled = replace(metadata, accuracy=accuracy, audit=counts)
        record.label(draft, labelled.as_text())
        parts = record.parts(draft)
        size = sum(_bytes(part) for part in parts)
        suffix = "" if report.ok else FAILED
        for part in parts:
            _moved(part, path.parent / (part.name + suffix))
    return replace(report, path=path.with_name(path.name + suffix), bytes=size, form=form, why=why)


def _graph(
    source: Source, record: Format, request: Request, images: Images
) -> tuple[Graph, str, str]:
    """What is recorded, its form, and why that is plain."""
    any_size = request.dynamic in {"size", "both"}
    form: Form = "plain" if any_size else request.form
    module = edge(source.model, request.size, form, batch=record.batch, images=images.steps)
    number = 2 if request.dynamic in {"batch", "both"} else 1
    outputs = ("features",) if source.task == "dino" else ("logits",)
    step = free_step(source.model) if any_size else grid_step(source.model)
    graph = Graph(module, images.compared[:number], outputs, request.dynamic, step)
    return graph, str(module.form), str(module.why)


def _metadata(source: Source, request: Request, graph: Graph, form: str) -> Metadata:
    return Metadata(
        name=str(source.best["architecture"]),
        best={name: source.best[name] for name in KEPT if source.best.get(name) is not None},
        recipe=None if source.run is None else shareable(source.run.recipe),
        size=request.size,
        outputs=graph.outputs,
        form=form,
        weights_sha256=weights_digest(source),
        versions={name: importlib.metadata.version(name) for name in ("softless", "torch")},
        batch=len(graph.example),
        dynamic=request.dynamic,
        step=graph.step,
        pixels=request.pixels,
        token_scale=token_scale_of(source.model),
    )


def _checked(
    source: Source, record: Format, request: Request, images: Images, draft: Path
) -> ExportedFile:
    """The file that was written, run and read."""
    faults: list[str] = []
    notes: list[str] = (
        []
        if images.tested or images.calibration
        else ["compared on noise: there are no images of it"]
    )
    same: Parity | None = None
    measurement: Measured | None = None
    if record.open is not None:
        answer = load_exported(draft)
        reference: nn.Module = source.model
        if inverts(source.model):  # against as many steps, and the distance to the default is told
            stepped = edge(source.model, request.size, "plain", images=images.steps)
            notes.append(str(stepped.inversion))
            reference = stepped
        same = parity(answer.outputs, reference, images.compared)
        compared = {tuple(images.compared.shape): same.difference}
        for others in _of_other_shapes(answer.metadata, images.compared):
            apart = parity(answer.outputs, reference, others).difference
            compared[tuple(others.shape)] = apart
        for (number, _, height, width), apart in compared.items():
            if apart > record.tolerance:
                faults.append(
                    f"its answers to {number} images of {height} x {width} pixels differ from the "
                    f"model's by {apart:.1e} of the largest, and {record.tolerance:.0e} is the most"
                )
        if images.tested is not None:
            measurement = _measured(source, answer, images.tested)
            faults += measurement.faults(eight_bits=request.int8 != "none")
    else:
        notes.append(f"{record.name} is written here and runs elsewhere: nothing was compared")
    found: Audit = audit(draft)
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


def _measured(source: Source, answer: ExportedModel, samples: Samples) -> Measured:
    threshold = 0.5
    if source.run is not None and source.run.recipe.multilabel is not None:
        threshold = source.run.recipe.multilabel.threshold
    with in_evaluation(source.model):
        return measured(
            answer,
            source.model,
            samples,
            prepared=source.transform,
            same_prepared=answer.transform,
            several=source.task == "multilabel",
            threshold=threshold,
        )


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
    if to.is_dir():
        shutil.rmtree(to)
    path.replace(to)
