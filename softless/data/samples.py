"""A list of labelled images: how many, which class each has, and the pixels of the i-th.

Every source of data becomes `Samples`, and all that follows (transforms, loaders, predictions)
knows nothing else.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softless.data.findings import Fault
from softless.data.images import MODES
from softless.data.names import Names
from softless.data.pictures import Picture, with_channels
from softless.data.reading import read_image
from softless.errors import DataError
from softless.experiment.ranges import Range


class Samples(ABC):
    """Labelled images.

    `targets` (n,) int64 holds class indices, or zeros where an image has no single one, or (n, K)
    several labels of 0 and 1. `channels` is what `image` returns, `scale` the declared
    range that its values were brought to 0..1 from.
    """

    targets: np.ndarray
    channels: int
    scale: Range | None = None
    varies: bool = False  # whether an image is another at each reading
    left_out: tuple[Fault, ...] = ()  # what could not be used when these were opened
    # (n,) whose each image is (a patient, say), where that is known
    groups: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def paths(self) -> list[Path]:
        """Where the files lie, of images in files."""
        return []

    def target(self, index: int) -> Any:
        """What the image is to be answered with: its class index, or its labels (K,)."""
        return int(self.targets[index]) if self.targets.ndim == 1 else self.targets[index]

    def update(self, digest: Any) -> None:
        """Feed what tells these samples from others into a hashlib digest: names and targets, no
        path.
        """
        digest.update(
            "\n".join(self.name(i) for i in range(len(self))).encode(errors="surrogateescape")
        )
        digest.update(self.targets.tobytes())
        if self.groups is not None:
            digest.update("\n".join(self.groups.tolist()).encode(errors="surrogateescape"))

    @abstractmethod
    def image(self, index: int) -> Picture:
        """The image, in one of the forms of `pictures`: PIL in mode "L" or "RGB", or an array
        (h, w, C).
        """

    @abstractmethod
    def name(self, index: int) -> str:
        """What people call this sample: a path below the data folder, or its index in the file."""

    @abstractmethod
    def take(self, indices: Sequence[int] | np.ndarray) -> "Samples":
        """The samples at these positions, `indices` (m,), in this order."""

    def renumbered(self, places: Sequence[int]) -> "Samples":
        """The same samples with class index i called places[i]."""
        copied, moved = copy(self), np.asarray(places, dtype=np.int64)
        copied.targets = (
            moved[self.targets] if self.targets.ndim == 1 else self.targets[:, np.argsort(moved)]
        )
        return copied


class ArraySamples(Samples):
    """Images held in memory: `images` (n, H, W) or (n, H, W, C), uint8, or any numbers where a
    range is declared.
    """

    def __init__(
        self,
        images: np.ndarray,
        targets: np.ndarray,
        channels: int,
        names: Sequence[str] | None = None,
        scale: Range | None = None,
    ) -> None:
        stored = 1 if images.ndim == 3 else images.shape[-1]
        if stored != channels and not {stored, channels} <= set(MODES):
            raise DataError(
                f"the images have {stored} channels and the model takes {channels}: set "
                f"data.in_chans={stored}"
            )
        self.images = images[..., 0] if images.ndim == 4 and stored == 1 else images
        self.targets = np.asarray(targets, dtype=np.int64)
        self.channels, self.scale = channels, scale
        self.names = [str(i) for i in range(len(images))] if names is None else list(names)
        # place -> why; `sift` stops at these or leaves them out
        self.unusable: Mapping[int, Fault] = {}

    def image(self, index: int) -> Picture:
        """The image: PIL where it is grey or RGB of 8 bits; uint8 (h, w, C) of other channels, or
        float32 (h, w, C) in 0..1 under a declared range.
        """
        pixels = self.images[index]
        if self.scale is not None:
            values = self.scale.applied(pixels if pixels.ndim == 3 else pixels[..., None])
            return with_channels(values, self.channels)
        if self.channels not in MODES:
            return pixels
        image = Image.fromarray(pixels)
        return image if image.mode == MODES[self.channels] else image.convert(MODES[self.channels])

    def name(self, index: int) -> str:
        return self.names[index]

    def update(self, digest: Any) -> None:
        super().update(digest)
        digest.update(np.ascontiguousarray(self.images).tobytes())

    def take(self, indices: Sequence[int] | np.ndarray) -> "ArraySamples":
        """The samples at these positions, `indices` (m,), in this order; images are copied."""
        chosen = np.asarray(indices, dtype=np.int64)
        names = [self.names[i] for i in chosen]
        subset = ArraySamples(
            self.images[chosen], self.targets[chosen], self.channels, names, self.scale
        )
        subset.groups = None if self.groups is None else self.groups[chosen]
        return subset


class FileSamples(Samples):
    """Images in files, decoded (and so verified) when asked for.

    Names are the paths relative to `root`.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        targets: Sequence[int] | np.ndarray,
        channels: int,
        scale: Range | None = None,
        page: int = 0,
        groups: np.ndarray | None = None,
    ) -> None:
        if channels not in MODES:
            raise DataError(
                f"image files are read as grey or RGB, and data.in_chans is {channels}: "
                "give images of other channel counts as an npz file"
            )
        self.root = root
        self.files = Names(files)
        self.targets = np.asarray(targets, dtype=np.int64)
        self.channels, self.scale, self.page, self.groups = channels, scale, page, groups

    def paths(self) -> list[Path]:
        """Where the files lie."""
        return [self.root / file for file in self.files]

    def update_outlines(self, digest: Any) -> None:
        """Feed the outlines drawn on the images, where there are some, into a hashlib digest."""

    def image(self, index: int) -> Picture:
        """The image, read now: PIL of 8 bits, or of a declared range float32 (h, w, C) in 0..1."""
        return read_image(self.root / self.files[index], self.channels, self.scale, page=self.page)

    def name(self, index: int) -> str:
        return self.files[index]

    def take(self, indices: Sequence[int] | np.ndarray) -> "FileSamples":
        """The samples of these files, `indices` (m,), in this order; nothing is read."""
        chosen = np.asarray(indices, dtype=np.int64)
        files = [self.files[i] for i in chosen]
        groups = None if self.groups is None else self.groups[chosen]
        return FileSamples(
            self.root, files, self.targets[chosen], self.channels, self.scale, self.page, groups
        )
