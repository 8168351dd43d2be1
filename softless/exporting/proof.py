"""A file that was written, run beside its model, read and measured."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from softless.exporting.dense.maps import Stepped
from softless.exporting.dense.recorded import (
    reference_of,
)
from softless.exporting.dense.worth import dense_worth
from softless.exporting.edge import edge
from softless.exporting.formats.format import Format
from softless.exporting.forms.steps import inverts
from softless.exporting.graph import CELLS
from softless.exporting.loaded import ExportedModel, load_exported, part_path
from softless.exporting.measured import Measured, Parity, measured, parity
from softless.exporting.metadata import Metadata
from softless.exporting.pixels import OfBytes
from softless.exporting.recording import Recording
from softless.exporting.report import ExportedFile
from softless.exporting.request import Images, Request
from softless.exporting.source import (
    Source,
)
from softless.measure.audit import Audit, audit
from softless.modes import in_evaluation

# of the largest answer: what rounding to another of 256 steps moves it by, and no more
BESIDE = 1e-2


def proven(
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
        if eight_bits and (apart := _apart_alone(answer, images.pixels)) > BESIDE:
            faults.append(
                f"its answer to an image changes by {apart:.1e} of the largest with the images "
                f"beside it, and {BESIDE:.0e} is the most"
            )
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


def _apart_alone(answer: ExportedModel, images: Tensor) -> float:
    """How far the answers to images (n, C, H, W) at once are from those to each alone, relative to
    the largest; 0 of a file that takes one number alone.
    """
    if answer.metadata.dynamic not in {"batch", "both"}:
        return 0.0
    together = answer(images)
    alone = torch.cat([answer(image[None]) for image in images])
    apart = float((together - alone).abs().max() / alone.abs().max().clamp_min(1e-30))
    return apart if math.isfinite(apart) else math.inf


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
