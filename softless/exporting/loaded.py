"""`load_exported`: a file of `softless export` as a module that answers prepared images."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from softless.data.images import MODES
from softless.data.reading import read_image
from softless.data.transforms import Pipeline, prepared_as
from softless.errors import DataError, UsageError, located, need
from softless.evaluation.run import LoadedRun
from softless.experiment.ranges import Range
from softless.exporting.dense.reading import reader_of
from softless.exporting.formats.format import Format, Runner
from softless.exporting.formats.table import format_of
from softless.exporting.metadata import Metadata, read_metadata, recipe_of
from softless.exporting.preparing import as_bytes
from softless.measure.audit import Audit, audit
from softless.tasks.published import recipe_of as published_recipe

REGIONS = 1024  # at once


class ExportedModel(nn.Module):
    """An exported file that answers images on this machine's processor; see `load_exported`.

    Args:
        path: of the file.
        record: its format.
        metadata: what it says of itself.
        runner: what runs it.
        parts: what runs the further graphs of a detector of two stages, by name.
    """

    def __init__(
        self,
        path: Path,
        record: Format,
        metadata: Metadata,
        runner: Runner,
        parts: Mapping[str, Runner] | None = None,
    ) -> None:
        super().__init__()
        self.path, self.record, self.metadata, self.runner = path, record, metadata, runner
        self.reader = reader_of(metadata, parts or {})
        # whoever asks a model where it lies reads that off its first parameter
        self.lies = nn.Parameter(torch.empty(0), requires_grad=False)

    @property
    def format(self) -> str:
        """Name of the format."""
        return self.record.name

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the logits; () of a model without names."""
        return self.metadata.classes

    @property
    def values(self) -> tuple[int, ...]:
        """Of a segmenter: what label images call the classes, in index order."""
        return tuple((self.metadata.decoding or {}).get("values", ()))

    @property
    def categories(self) -> tuple[int, ...]:
        """Of a detector: what COCO's files call the classes, in index order."""
        return tuple((self.metadata.decoding or {}).get("categories", ()))

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

    def forward(self, images: Tensor | np.ndarray | Sequence[Tensor]) -> Any:
        """Prepared images (B, C, H, W) -> logits (B, K), or features (B, dim).

        Of a segmenter logits of each pixel (B, K, H, W). Of a detector, which takes a list of
        images (C, h, w) too, what the run's own gives: boxes, labels, scores and masks of each.

        Raises:
            UsageError: as `outputs`.
        """
        if self.reader is not None:
            batch = torch.from_numpy(images) if isinstance(images, np.ndarray) else images
            return self.reader(self.outputs, batch)
        return self.outputs(images)[0]  # type: ignore[arg-type]

    def refuses(self, height: int, width: int) -> str:
        """Why an image of so many pixels is not answered; empty where it is.

        A classifier's images are framed first.
        """
        if self.reader is None:
            return ""
        framed = self.reader.framed_size(height, width)
        reason = self._other_size(*framed)
        if not reason or framed == (height, width):
            return reason
        return f"of {height} x {width} pixels it becomes {reason}"

    def _check(self, batch: Tensor) -> None:
        metadata = self.metadata
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
        if reason := self._other_size(*map(int, batch.shape[-2:])):
            raise UsageError(reason)

    def _other_size(self, height: int, width: int) -> str:
        """Why images of this size, as the graph sees them, are none of the file's."""
        metadata = self.metadata
        if metadata.dynamic in {"size", "both"}:
            if height % metadata.step or width % metadata.step:
                return (
                    f"an image of {height} x {width} pixels: both sides are multiples of "
                    f"{metadata.step}"
                )
            return ""
        if (height, width) == metadata.size:
            return ""
        return (
            f"an image of {height} x {width} pixels: {self.path.name} was exported for "
            f"{metadata.size[0]} x {metadata.size[1]}; export it with --size, or with --dynamic "
            "size"
        )

    def extra_repr(self) -> str:
        return f"{self.path.name}, {self.format}, {self.metadata.task}"


def load_exported(file: str | Path) -> ExportedModel:
    """Open a file of `softless export` in any format that this machine can run.

    Args:
        file: .pt2, .onnx, .xml, .pte, with the files beside it that its format has.

    Returns:
        A module: prepared images (B, C, H, W) -> logits (B, K), or what the run's own detector or
        segmenter answers. `.prepare(image)` prepares a picture, `.classes` names the logits,
        `.audit` tells what is in the file.

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
    decoding = metadata.decoding or {}
    if "part_of" in decoding:
        raise UsageError(
            f"{path.name} is the second stage of a detector and answers no images: name the file "
            "of its first stage"
        )
    parts = {
        name: _part(part_path(path, record, name), record, metadata)
        for name in decoding.get("parts", ())
    }
    return ExportedModel(path, record, metadata, record.open(path), parts)


def part_path(path: Path, record: Format, name: str) -> Path:
    """Where a further graph of a file lies: beside it, NAME-boxes.onnx beside NAME.onnx."""
    return path.with_name(f"{path.name.removesuffix(record.ending)}-{name}{record.ending}")


def _part(path: Path, record: Format, metadata: Metadata) -> Runner:
    """What runs a further graph, of any number of regions.

    Raises:
        DataError: it is not there, or is of other weights.
    """
    if not path.exists():
        raise DataError(
            f"no file {path}: a detector of two stages is several files, which stay together"
        )
    own = read_metadata(record.text_of(path), path)
    if own.weights_sha256 != metadata.weights_sha256 or "part_of" not in (own.decoding or {}):
        raise DataError(
            f"{path} is of other weights than the file that it lies beside: export the run anew"
        )
    assert record.open is not None
    run = record.open(path)

    def answer(regions: Tensor) -> tuple[Tensor, ...]:
        parts = [run(part) for part in regions.split(REGIONS)]
        return tuple(torch.cat(outputs) for outputs in zip(*parts, strict=True))

    return answer


def exported_run(file: str | Path) -> LoadedRun:
    """An exported file in the place of the run, or of the published model with class names, that it
    was made of: what it says of itself is enough.

    Raises:
        UsageError: the file was made of neither; and as `load_exported`.
        DataError: as `load_exported`.
    """
    model = load_exported(file)
    metadata = model.metadata
    best: dict[str, Any] = dict(metadata.best)
    published = metadata.recipe is None and bool(metadata.classes)
    recipe = published_recipe(best, metadata.name) if published else recipe_of(metadata, model.path)
    return LoadedRun(model.path, model.eval(), model.classes, model.transform, recipe, best)
