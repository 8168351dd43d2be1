"""`load_exported`: a file of `softless export` as a module that answers prepared images."""

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms as tv

from softless.data.images import MODES
from softless.data.reading import read_image
from softless.data.transforms import Pipeline
from softless.errors import DataError, UsageError, located, need
from softless.evaluation.run import LoadedRun
from softless.experiment.ranges import Range
from softless.exporting.formats.format import Format, Runner
from softless.exporting.formats.table import format_of
from softless.exporting.metadata import Metadata, read_metadata, recipe_of
from softless.exporting.source import prepared_as
from softless.measure.audit import Audit, audit

OF_PIXELS = (tv.Normalize, tv.ToTensor)


class ExportedModel(nn.Module):
    """An exported file that answers images on this machine's processor; see `load_exported`."""

    def __init__(self, path: Path, record: Format, metadata: Metadata, runner: Runner) -> None:
        super().__init__()
        self.path, self.record, self.metadata, self.runner = path, record, metadata, runner

    @property
    def format(self) -> str:
        """Name of the format."""
        return self.record.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the logits; () of a model without names."""
        return self.metadata.classes

    @cached_property
    def audit(self) -> Audit:
        """What transcendental functions are in the file, by `softless.audit`."""
        return audit(self.path)

    @cached_property
    def transform(self) -> Pipeline:
        """image -> (C, H, W) as the file takes it: normalised float32, or uint8."""
        pipeline = prepared_as(self.metadata.best)
        return pipeline if self.metadata.pixels == "normalised" else as_bytes(pipeline)

    def prepare(self, image: str | Path | Image.Image | np.ndarray) -> Tensor:
        """A picture as the file takes it: (C, H, W), framed as in the run's evaluation.

        Args:
            image: a path, a PIL image, or bytes (H, W, C).

        Raises:
            DataError: the path is no readable image.
        """
        if isinstance(image, np.ndarray) and self.metadata.in_chans in MODES:
            image = Image.fromarray(
                image.squeeze(-1) if image.ndim == 3 and image.shape[-1] == 1 else image
            )
        channels = self.metadata.in_chans
        if isinstance(image, str | Path):
            scale = Range.of(self.metadata.best.get("range"))
            prepared: Tensor = self.transform(read_image(located(image), channels, scale))
            return prepared
        if isinstance(image, Image.Image) and channels in MODES:
            image = image.convert(MODES[channels])
        framed: Tensor = self.transform(image)
        return framed

    def outputs(self, images: Tensor | np.ndarray) -> tuple[Tensor, ...]:
        """All outputs of the graph, in the order of `metadata.outputs`.

        Args:
            images: (B, C, H, W), prepared.

        Raises:
            UsageError: another number of channels, or a size that the file does not take.
        """
        batch = torch.as_tensor(images)
        self._check(batch)
        once = self.record.batch or (
            None if self.metadata.dynamic in {"batch", "both"} else self.metadata.batch
        )
        if once is None or len(batch) == once:
            return self.runner(batch)
        return self._in_parts(batch, once)

    def _in_parts(self, batch: Tensor, once: int) -> tuple[Tensor, ...]:
        """The answers of a graph that holds its number of images; the last part is filled up."""
        answers = []
        for start in range(0, len(batch), once):
            part = batch[start : start + once]
            filled = torch.cat([part, part[-1:].expand(once - len(part), -1, -1, -1)])
            answers.append([output[: len(part)].clone() for output in self.runner(filled)])
        if not answers:
            raise UsageError("no images: the file answers one at least")
        return tuple(map(torch.cat, zip(*answers, strict=True)))

    def forward(self, images: Tensor | np.ndarray) -> Tensor:
        """Prepared images (B, C, H, W) -> logits (B, K), or features (B, dim).

        Raises:
            UsageError: as `outputs`.
        """
        return self.outputs(images)[0]

    def _check(self, batch: Tensor) -> None:
        metadata = self.metadata
        height, width = metadata.size
        if batch.ndim != 4 or batch.shape[1] != metadata.in_chans:
            raise UsageError(
                f"images of shape {tuple(batch.shape)}: {self.path.name} takes (B, "
                f"{metadata.in_chans}, H, W)"
            )
        wanted = torch.uint8 if metadata.pixels == "uint8" else torch.float32
        if batch.dtype != wanted:
            raise UsageError(
                f"images in {batch.dtype}: {self.path.name} takes {wanted}; its prepare(image) "
                "gives that"
            )
        sides = tuple(batch.shape[-2:])
        if metadata.dynamic in {"size", "both"}:
            if any(side % metadata.step for side in sides):
                raise UsageError(
                    f"an image of {sides[0]} x {sides[1]} pixels: both sides are multiples of "
                    f"{metadata.step}"
                )
        elif sides != (height, width):
            raise UsageError(
                f"an image of {sides[0]} x {sides[1]} pixels: {self.path.name} was exported for "
                f"{height} x {width}; export it with --size, or with --dynamic size"
            )

    def extra_repr(self) -> str:
        return f"{self.path.name}, {self.format}, {self.metadata.task}"


def as_bytes(pipeline: Pipeline) -> Pipeline:
    """The same framing, and bytes (C, H, W) in place of normalised numbers."""
    steps = [
        step
        for step in pipeline.transforms
        if not isinstance(step, OF_PIXELS) and type(step).__name__ != "MaybeToTensor"
    ]
    return Pipeline([*steps, tv.PILToTensor()], [], fixed=True)


def load_exported(file: str | Path) -> ExportedModel:
    """Open a file of `softless export` in any format that this machine can run.

    Args:
        file: .pt2, .onnx, .xml, .pte, with the files beside it that its format has.

    Returns:
        A module: prepared images (B, C, H, W) -> logits (B, K). `.prepare(image)` prepares a
        picture, `.classes` names the logits, `.audit` tells what is in the file.

    Raises:
        DataError: no file, damaged, or of no format of `softless export`.
        UsageError: a format that no machine of ours runs.
        MissingExtra: what runs the format is not installed.

    Examples:
        >>> model = softless.create_model("sima_deit_tiny_patch16_224", depth=2)
        >>> report = softless.export(model, "pt2", "files", size=32)
        >>> exported = softless.load_exported(report.path)
        >>> exported(torch.zeros(1, 3, 32, 32)).shape
        torch.Size([1, 1000])
    """
    path = located(file)
    if not path.exists():
        raise DataError(f"no file {path}: name a file that `softless export` wrote")
    record = format_of(path)
    if record.open is None or record.runs_with is None:
        raise UsageError(
            f"{path.name}: {record.name} is written here and runs elsewhere; `softless audit` "
            "reads it"
        )
    need(*record.runs_with)
    metadata = read_metadata(record.text_of(path), path)
    return ExportedModel(path, record, metadata, record.open(path))


def exported_run(file: str | Path) -> LoadedRun:
    """An exported file in the place of the run that it was made of: what it says of itself is
    enough.

    Raises:
        UsageError: the file was made of no run; and as `load_exported`.
        DataError: as `load_exported`.
    """
    model = load_exported(file)
    recipe = recipe_of(model.metadata, model.path)
    best: dict[str, Any] = dict(model.metadata.best)
    return LoadedRun(model.path, model.eval(), model.classes, model.transform, recipe, best)
