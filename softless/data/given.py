"""Images from datasets that were built in Python: any map-style dataset of (image, target), as
torchvision's are.

Each item is read once before the first step, so what is wrong is said then, and its pixels tell
whether a continued run sees the same. A training set may change its images at random: what it draws
from the global generators derives from (seed, epoch, position), as all else. So no training image
is kept in memory; whether images change is tried on some of them.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from softless.data.images import MODES
from softless.data.loader import generators_restored, seed_generators
from softless.data.notices import notice
from softless.data.pictures import Picture, with_channels
from softless.data.progress import track
from softless.data.samples import Samples
from softless.errors import DataError, UsageError
from softless.experiment.ranges import Range

GIVEN = "given"  # the source in a recipe
SAID = {GIVEN: "datasets built in Python"}  # sources by more than their name
RANGE_WAY = "declare what becomes 0 and 1, for example set={'data.range': '0..1'}"
PARTS = ("train", "val", "test")
TRAINING = ("train", "all")  # parts that are trained on
READ_AGAIN = 64  # images of which it is tried whether they change
WAY = "give (image, target) pairs"
_given: ContextVar["Mapping[str, Any] | None"] = ContextVar("softless_given_data", default=None)


@contextmanager
def data_given(parts: "Mapping[str, Any] | None") -> Iterator[None]:
    """Within it, these are the datasets of runs whose data were given; None leaves what was given
    before.
    """
    if parts is None:
        yield
        return
    token = _given.set(parts)
    try:
        yield
    finally:
        _given.reset(token)


def name_of(path: str | Path | None, source: str) -> str:
    """What people call the data: the last part of their path, or their source in words."""
    return Path(path).name if path else SAID.get(source, source)


def is_dataset(data: Any) -> bool:
    """Whether it is a map-style dataset or parts of one, and not a path.

    Raises:
        UsageError: it is neither.
    """
    if data is None or isinstance(data, str | Path):
        return False
    if isinstance(data, Mapping) or _is_map_style(data):
        return True
    way = (
        "give its dataset: batches are the recipe's"
        if isinstance(data, DataLoader)
        else f"{WAY} by place"
    )
    raise UsageError(
        f"data is a {type(data).__name__}, which is no path and has no __getitem__ and __len__: "
        f"{way}"
    )


def _is_map_style(data: Any) -> bool:
    return hasattr(data, "__getitem__") and hasattr(data, "__len__")


def parts_of(data: Any) -> dict[str, Any]:
    """Datasets by part.

    Args:
        data: one dataset, whose validation part is cut off; (train, val) or (train, val, test); or
            a mapping of these names.

    Raises:
        UsageError: other names, or something that is no dataset.
    """
    if isinstance(data, Mapping):
        datasets = dict(data)
    elif isinstance(data, tuple | list):
        datasets = dict(zip(PARTS, data, strict=False))
        if not 2 <= len(data) <= len(PARTS):
            raise UsageError(
                f"data has {len(data)} datasets: give (train, val) or (train, val, test), or one "
                "dataset"
            )
    else:
        return {"all": checked(data, "")}
    datasets = {part: dataset for part, dataset in datasets.items() if dataset is not None}
    if "train" not in datasets or not set(datasets) <= set(PARTS):
        raise UsageError(
            f"data has the parts {', '.join(map(str, datasets)) or 'none'}: they are train, val "
            "and test, and train is needed"
        )
    return {part: checked(dataset, part) for part, dataset in datasets.items()}


def has_labels(parts: Mapping[str, Any]) -> bool:
    """Whether the first image has several labels."""
    part, dataset = next(iter(parts.items()))
    return len(dataset) > 0 and np.ndim(_target(_pair(dataset, 0, part)[1], part, 0)) == 1


def checked(dataset: Any, part: str) -> Any:
    """A map-style dataset.

    Raises:
        UsageError: it is none.
    """
    if not _is_map_style(dataset):
        raise UsageError(
            f"the {part} dataset is a {type(dataset).__name__}, which has no __getitem__ and "
            f"__len__: {WAY} by place"
        )
    return dataset


@dataclass(frozen=True)
class ItemReading:
    """How items become pictures."""

    channels: int
    scale: Range | None = None


def given_parts(reading: ItemReading) -> "tuple[dict[str, Samples], tuple[str, ...]]":
    """The datasets that were given, each item read once, and the names of their classes; one alone
    is "all".

    Raises:
        DataError: none was given, or an item that cannot be used; its part and place are named.
    """
    datasets = _given.get()
    if datasets is None:
        raise DataError(
            "the images of this run came from datasets built in Python: give them again, in "
            "Python, as data=…, for "
            "example softless.train(out=RUN, resume=True, data=…) or softless.eval(RUN, data=…)"
        )
    parts: dict[str, Samples] = {
        part: DatasetSamples.read(dataset, part, reading) for part, dataset in datasets.items()
    }
    if "val" not in parts and any(
        isinstance(samples, DatasetSamples) and samples.changes for samples in parts.values()
    ):
        raise DataError(
            "the dataset changes its images from one reading to the next, and its validation part "
            "is cut from it: "
            "give data=(train, val), of which the second does not change"
        )
    return parts, class_names(datasets, parts)


def class_names(datasets: Mapping[str, Any], parts: Mapping[str, Samples]) -> tuple[str, ...]:
    """The dataset's own `classes`, or numbers as many as there are targets.

    Targets are (n,) class numbers, or (n, K) labels of 0 and 1.

    Raises:
        DataError: classes or labels that differ between parts, are fewer than the targets need, or
            are only one.
    """
    named = {
        part: tuple(map(str, dataset.classes))
        for part, dataset in datasets.items()
        if hasattr(dataset, "classes")
    }
    if len(set(named.values())) > 1:
        first, *rest = named
        raise DataError(
            f"the classes of {first} and {rest[0]} are not the same: give every part the same list"
        )
    several = any(samples.targets.ndim == 2 for samples in parts.values())
    if several and len({samples.targets.shape[1:] for samples in parts.values()}) > 1:
        raise DataError(
            "the parts have targets of different lengths: give every part the same labels"
        )
    count = max(
        samples.targets.shape[1] if several else int(samples.targets.max()) + 1
        for samples in parts.values()
    )
    names = next(iter(named.values()), tuple(map(str, range(count))))
    if len(names) < count or (several and len(names) != count):
        raise DataError(
            f"the dataset names {len(names)} classes and has targets for {count}: name each class "
            "once"
        )
    if len(names) < 2 and not several:
        raise DataError("every target is the same class: a classifier needs two at least")
    return names


class DatasetSamples(Samples):
    """A map-style dataset as samples; its items are read when they are needed."""

    def __init__(
        self,
        dataset: Any,
        part: str,
        targets: np.ndarray,
        reading: ItemReading,
        digest: str,
        *,
        changes: bool,
    ) -> None:
        self.dataset, self.part, self.targets, self.reading = dataset, part, targets, reading
        self.digest, self.changes = digest, changes
        self.varies = part in TRAINING  # a change that is rare is not seen by trying
        self.channels, self.scale = reading.channels, reading.scale
        self.places = np.arange(len(targets))

    @classmethod
    def read(cls, dataset: Any, part: str, reading: ItemReading) -> "DatasetSamples":
        """Read every item once.

        Raises:
            DataError: an empty dataset, an item that cannot be used, or one of an evaluation part
                that changes from one reading to the next.
        """
        if not len(dataset):
            raise DataError(f"the {part} dataset is empty: {WAY}")
        digest = hashlib.sha256()
        targets = []
        with generators_restored():
            for index in track(range(len(dataset)), len(dataset), f"reading the {part} dataset"):
                seed_generators(index)
                pixels, target = _item(dataset, part, index, reading)
                targets.append(target)
                digest.update(pixels.tobytes())
            changed, free = _changed(dataset, part, reading)
        if changed is not None and part not in TRAINING:
            raise DataError(
                f"image {changed} of the {part} dataset changes from one reading to the next: "
                "leave random changes to the "
                "training part"
            )
        if free:
            notice(
                f"the {part} dataset draws from a generator of its own, which no seed of the run "
                "reaches: a continued run "
                "draws other changes, and other pixels are not noticed"
            )
        if len({np.shape(target) for target in targets}) > 1:
            raise DataError(
                f"targets of the {part} dataset have several shapes: give class numbers, or K "
                "labels of 0 and 1"
            )
        numbers = np.asarray(targets, dtype=np.int64)
        pixel_digest = "" if free else digest.hexdigest()
        return cls(dataset, part, numbers, reading, pixel_digest, changes=changed is not None)

    def image(self, index: int) -> Picture:
        """The image in one of the forms of `pictures`: mode "L" or "RGB", or an array (h, w, C).

        Raises:
            DataError: no image, other channels than the model's, or values that are no 8 bits.
        """
        position = int(self.places[index])
        return _picture(
            _pair(self.dataset, position, self.part)[0], self.reading, _where(self.part, position)
        )

    def name(self, index: int) -> str:
        return str(self.places[index])

    def take(self, indices: Sequence[int] | np.ndarray) -> "DatasetSamples":
        """The samples at these positions, `indices` (m,), in this order; nothing is read."""
        chosen = np.asarray(indices, dtype=np.int64)
        subset = copy(self)
        subset.targets, subset.places = self.targets[chosen], self.places[chosen]
        return subset

    def update(self, digest: Any) -> None:
        super().update(digest)
        digest.update(self.digest.encode())


def _changed(dataset: Any, part: str, reading: ItemReading) -> tuple[int | None, bool]:
    """The first of some images that is another at each reading, or None; and whether one is so
    although the same was drawn before.
    """
    changed, free = None, False
    for index in (
        np.linspace(0, len(dataset) - 1, min(READ_AGAIN, len(dataset))).round().astype(int).tolist()
    ):
        read = []
        for seed in (index, index, len(dataset) + index):
            seed_generators(seed)
            read.append(_item(dataset, part, index, reading)[0])
        first, same, reseeded = read
        free = free or not np.array_equal(first, same)
        if changed is None and not (
            np.array_equal(first, same) and np.array_equal(first, reseeded)
        ):
            changed = index
    return changed, free


def _where(part: str, index: int) -> str:
    return f"image {index} of the {part} dataset"


def _item(dataset: Any, part: str, index: int, reading: ItemReading) -> "tuple[np.ndarray, Any]":
    """Pixels, as they lie in memory, and the target."""
    image, target = _pair(dataset, index, part)
    pixels = np.ascontiguousarray(np.asarray(_picture(image, reading, _where(part, index))))
    return pixels, _target(target, part, index)


def _pair(dataset: Any, index: int, part: str) -> "tuple[Any, Any]":
    item = dataset[index]
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(
            f"item {index} of the {part} dataset is a {type(item).__name__}, not a pair: {WAY}"
        )
    return item[0], item[1]


def _picture(image: Any, reading: "ItemReading", item_name: str) -> Picture:
    """The image in one of the forms of `pictures`."""
    if (
        isinstance(image, Image.Image)
        and image.mode not in {"1", "L", "P", "RGB"}
        and reading.scale is None
    ):
        raise DataError(
            f"{item_name} has Pillow's mode {image.mode}: convert it to L or RGB in the dataset"
        )
    pixels = _pixels(image, item_name)
    stored, channels = pixels.shape[-1], reading.channels
    if stored != channels and not {stored, channels} <= set(MODES):
        raise DataError(
            f"{item_name} has {stored} channels and the model takes {channels}: set "
            f"data.in_chans={stored}"
        )
    if reading.scale is not None:
        return with_channels(reading.scale.applied(pixels), channels)
    pixels = _bytes(pixels, item_name)
    if channels not in MODES:
        return pixels
    picture = Image.fromarray(np.ascontiguousarray(pixels[..., 0] if stored == 1 else pixels))
    return picture if picture.mode == MODES[channels] else picture.convert(MODES[channels])


def _pixels(image: Any, item_name: str) -> np.ndarray:
    """(h, w, C) of the numbers that were given."""
    if isinstance(image, Image.Image):
        image = np.asarray(
            image.convert("RGB")
            if image.mode == "P"
            else image.convert("L")
            if image.mode == "1"
            else image
        )
    first = isinstance(image, Tensor)
    pixels = np.asarray(image.detach().cpu() if isinstance(image, Tensor) else image)
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    elif pixels.ndim == 3 and first:
        pixels = np.moveaxis(pixels, 0, -1)  # tensors are (C, H, W), arrays (H, W, C)
    if pixels.ndim != 3 or not pixels.size or pixels.dtype.kind not in "uif":
        raise DataError(
            f"{item_name} has the shape {np.shape(image)} and the type {pixels.dtype}: give "
            "numbers, as (H, W) or (H, W, C) "
            "arrays, (C, H, W) tensors or Pillow's images"
        )
    return pixels


def _bytes(pixels: np.ndarray, item_name: str) -> np.ndarray:
    """The same of 8 bits: bytes, or the floats of 0..1 that torchvision's ToTensor makes of
    bytes.
    """
    if pixels.dtype == np.uint8:
        return pixels
    scaled = 255 * pixels.astype(np.float64)
    rounded = np.rint(scaled)
    if (
        pixels.dtype.kind == "f"
        and np.abs(scaled - rounded).max() < 1e-3
        and rounded.min() >= 0
        and rounded.max() <= 255
    ):
        return rounded.astype(np.uint8)
    raise DataError(
        f"{item_name} has values of {pixels.min():.4g} to {pixels.max():.4g} ({pixels.dtype}) that "
        "are no 8 bits: leave "
        f"Normalize out, since mean and deviation are the recipe's, or {RANGE_WAY}"
    )


def _target(target: Any, part: str, index: int) -> Any:
    """A class number, or labels (K,) of 0 and 1."""
    item_name = f"target {index} of the {part} dataset"
    value = target.detach().cpu().numpy() if isinstance(target, Tensor) else np.asarray(target)
    if (
        value.ndim > 1
        or value.dtype.kind not in "biuf"
        or not np.array_equal(value, np.rint(value))
    ):
        raise DataError(
            f"{item_name} is {str(target)[:60]}: give a class number, or K labels of 0 and 1"
        )
    if value.ndim == 1 and len(value) == 1:
        value = value[0]
    if value.ndim == 0 and value < 0:
        raise DataError(f"{item_name} is {target}: classes are numbered from 0")
    if value.ndim == 1 and not set(np.unique(value)) <= {0, 1}:
        raise DataError(f"{item_name} is {str(target)[:60]}: several labels are 0 or 1 each")
    return value.astype(np.int64)
