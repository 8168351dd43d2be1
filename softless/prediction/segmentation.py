"""The class of each pixel of images at their own size: label images, and pictures of them over the photographs."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from softless.data.notices import notice
from softless.data.progress import track
from softless.data.samples import FileSamples
from softless.errors import UsageError
from softless.evaluation import LoadedRun
from softless.models.scale import farthest
from softless.prediction.label_pictures import colours, overlay, palette


@dataclass(frozen=True)
class Predictions:
    """Where the label images lie, and which share of all pixels each class has."""

    labels: Path
    overlays: Path | None
    images: int
    shares: dict[str, float]
    foreign: str = ""  # what is to say of images far from the training size

    def to_dict(self) -> dict[str, Any]:
        overlays = None if self.overlays is None else str(self.overlays)
        return {
            "labels": str(self.labels),
            "overlays": overlays,
            "images": self.images,
            "shares": self.shares,
            "foreign": self.foreign,
        }

    def __str__(self) -> str:
        width = max(len(name) for name in self.shares)
        lines = [f"{self.images} images: {self.labels}"]
        lines += [] if self.overlays is None else [f"pictures: {self.overlays}"]
        return "\n".join([
            *lines,
            *(f"  {name:<{width}}  {share:.2%} of the pixels" for name, share in self.shares.items()),
        ])


def predict(
    loaded: LoadedRun, samples: FileSamples, out: Path, *, overlays: bool, device: torch.device, batch_size: int
) -> Predictions:
    """Write `labels/FILE.png`, palette images of the data set's own values, and with overlays `overlays/FILE.png`.

    Images run one by one at their own size, so `batch_size` has no effect.
    """
    del batch_size
    indices = track(range(len(samples)), len(samples), "reading")
    sizes = [samples.image(index).size[::-1] for index in indices]  # one that cannot be read leaves nothing half done
    foreign = farthest(loaded.model, sizes)
    if foreign:
        notice(foreign)
    values: Sequence[int] = loaded.model.values  # type: ignore[assignment]
    pixels = np.zeros(len(values), dtype=np.int64)
    for index in track(range(len(samples)), len(samples), "predicting"):
        image = samples.image(index)
        classes = classes_of(loaded, image, device, samples.files[index])
        pixels += np.bincount(classes.reshape(-1), minlength=len(values))
        _save(label_image(classes, values, loaded.classes), out / "labels" / f"{samples.files[index]}.png")
        if overlays:
            _save(overlay(image, classes, loaded.classes), out / "overlays" / f"{samples.files[index]}.png")
    shares = (pixels / pixels.sum()).tolist()
    return Predictions(
        labels=out / "labels",
        overlays=out / "overlays" if overlays else None,
        images=len(samples),
        shares=dict(zip(loaded.classes, shares, strict=True)),
        foreign=foreign,
    )


@torch.no_grad()
def classes_of(loaded: LoadedRun, image: Any, device: torch.device, name: str) -> np.ndarray:
    """(h, w) uint8 class indices of an image.

    Raises:
        UsageError: the model's output is not finite.
    """
    logits = loaded.model(loaded.transform(image)[None].to(device))[0]
    if not bool(logits.isfinite().all()):
        raise UsageError(f"the model's output is not finite for {name}: the weights in {loaded.path} are of no use")
    return logits.argmax(0).to(torch.uint8).cpu().numpy()


def label_image(classes: np.ndarray, values: Sequence[int], names: Sequence[str]) -> Image.Image:
    """A palette image whose indices are the data set's values, in the colours of the overlays."""
    image = Image.fromarray(np.asarray(values, dtype=np.uint8)[classes]).convert("P")
    image.putpalette(palette(values, colours(tuple(names))))
    return image


def _save(image: Image.Image, path: Path) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(buffer.getvalue())
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror or error}") from error
