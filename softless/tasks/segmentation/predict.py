"""The class of each pixel of images at their own size: label images, and pictures of them over the
photographs.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from softless import ranks
from softless.data.notices import notice
from softless.data.pictures import for_people, size_of
from softless.data.progress import track
from softless.data.samples import FileSamples
from softless.errors import UsageError
from softless.evaluation.evaluate import autocast
from softless.evaluation.run import LoadedRun
from softless.models.durable import write_picture
from softless.models.scale import farthest
from softless.prediction.answers import Answers
from softless.prediction.results import Results
from softless.prediction.setting import Setting
from softless.tasks.segmentation.fields_of_view import masks_beside, read_mask
from softless.tasks.segmentation.pictures import colours, overlay, palette
from softless.tasks.segmentation.samples import IGNORE
from softless.words import aligned


@dataclass(frozen=True, kw_only=True)
class Predictions(Answers):
    """Where the label images lie, and which share of the pixels that count each class has."""

    labels: Path
    shares: dict[str, float | None]  # None where no pixel counts
    # images whose pixels count: with a field of view, where the run was trained with those
    counted: int
    notes: tuple[str, ...] = ()  # what shares say nothing of
    foreign: str = ""  # what is to say of images far from the training size

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the folders as texts, and shares of pixels, 0..1."""
        own = {"labels": str(self.labels), "shares": self.shares, "counted": self.counted}
        return {**own, "notes": list(self.notes), "foreign": self.foreign, **super().to_dict()}

    def __str__(self) -> str:
        shares = aligned(
            (name, "not counted" if share is None else f"{share:.2%} of the pixels that count")
            for name, share in self.shares.items()
        )
        return "\n".join([*self.head(self.labels), *self.notes, *shares, *self.foot()])


def predict(
    loaded: LoadedRun, samples: FileSamples, out: Results, setting: Setting, *, overlays: bool
) -> Predictions:
    """Write `labels/NAME.png`, palette images of the data set's own values, and with overlays
    `overlays/NAME.png`.

    Images run one by one at their own size. Of a run that was trained within fields of view, pixels
    outside that of an image are IGNORE in its label image and count nowhere. An image without one
    is answered whole and does not count.

    Raises:
        DataError: a field of view that cannot be read, or of another size than its image.
        UsageError: the model's output is not finite, or the folder cannot be written.
    """
    spec = loaded.recipe.segmentation
    fov: str | None = getattr(spec, "fov", None)
    masks = [None] * len(samples) if fov is None else masks_beside(samples, fov)
    labels = out.pictures(samples.files, "labels")
    pictures = out.pictures(samples.files, "overlays") if overlays else []
    sizes = ranks.interleaved(ranks.gather(ranks.together(lambda: _sizes(samples, masks))))
    foreign = farthest(loaded.model, sizes)
    if foreign:
        notice(foreign)
    values: Sequence[int] = loaded.model.values  # type: ignore[assignment]
    pixels = np.zeros(len(values), dtype=np.int64)

    def answered(index: int) -> np.ndarray:
        """Pixels of each class; the pictures are written."""
        image = samples.image(index)
        classes = classes_of(loaded, image, setting, samples.files[index])
        if (mask := masks[index]) is not None:
            classes = np.where(read_mask(mask, size_of(image)), classes, np.uint8(IGNORE))
        write_picture(labels[index], label_image(classes, values, loaded.classes))
        if overlays:
            write_picture(pictures[index], overlay(for_people(image), classes, loaded.classes))
        counts = fov is None or mask is not None
        return np.bincount(classes.reshape(-1) if counts else [], minlength=256)[: len(values)]

    for class_pixels in ranks.in_order(map(answered, _mine(samples, "predicting")), len(samples)):
        pixels += class_pixels
    pixels = ranks.first(lambda: pixels)
    shares = (pixels / pixels.sum()).tolist() if pixels.sum() else [None] * len(values)
    without = 0 if fov is None else masks.count(None)
    return Predictions(
        labels=out.folder / "labels",
        overlays=out.folder / "overlays" if overlays else None,
        images=len(samples),
        shares=dict(zip(loaded.classes, shares, strict=True)),
        precision=setting.precision,
        counted=len(samples) - without,
        notes=_notes(fov, without, len(samples), tuple(getattr(spec, "ignore", ()))),
        foreign=foreign,
        unread=samples.left_out,
    )


def _mine(samples: FileSamples, label: str) -> Iterator[int]:
    """The places of this rank's images."""
    indices = range(ranks.rank(), len(samples), ranks.size())
    return track(indices, len(indices), label)


def _sizes(samples: FileSamples, masks: Sequence[Path | None]) -> list[tuple[int, int]]:
    """Height and width of each image of this rank.

    Raises:
        DataError: a field of view that cannot be read, or of another size than its image.
    """
    sizes = []
    for index in _mine(samples, "reading"):
        width, height = size_of(samples.image(index))
        if (mask := masks[index]) is not None:
            read_mask(mask, (width, height))
        sizes.append((height, width))
    return sizes


def _notes(
    fov: str | None, without: int, images: int, ignored: Sequence[str | int]
) -> tuple[str, ...]:
    notes = []
    if fov is not None:
        notes.append(
            f"pixels outside the field of view are {IGNORE} in the label images and do not count"
        )
    if without:
        notes.append(
            f"{without} of {images} images have no field of view ({fov}/NAME.png beside them): "
            "outside it the model never learned to answer, "
            "so their pixels do not count"
        )
    if ignored:
        names = ", ".join(map(str, ignored))
        notes.append(
            f"ignored in training, so never an answer: {names}; such pixels get another class, "
            "and count there"
        )
    return tuple(notes)


@torch.no_grad()
def classes_of(loaded: LoadedRun, image: Any, setting: Setting, name: str) -> np.ndarray:
    """(h, w) uint8 class indices of an image, at the size that its transform gives.

    Raises:
        UsageError: the model's output is not finite.
    """
    with autocast(setting.device, setting.amp):
        logits = loaded.model(loaded.transform(image)[None].to(setting.device))[0].float()
    if not bool(logits.isfinite().all()):
        raise UsageError(
            f"the model's output is not finite for {name}: the weights in {loaded.path} are of no "
            "use"
        )
    return logits.argmax(0).to(torch.uint8).cpu().numpy()


def label_image(classes: np.ndarray, values: Sequence[int], names: Sequence[str]) -> Image.Image:
    """A palette image (h, w) whose indices are the data set's values, or IGNORE, in the colours of
    the overlays; `classes` (h, w) are class indices, uint8.
    """
    table = np.full(256, IGNORE, dtype=np.uint8)
    table[: len(values)] = values
    image = Image.fromarray(table[classes]).convert("P")
    image.putpalette(palette(values, colours(tuple(names))))
    return image
