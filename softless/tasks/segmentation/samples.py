"""Images with label images, whose pixel values are classes; read in one pass in which every fault
is found.

`label_layout` says where they lie and what the values are called. Palette images hold the value as
index; their colours are not looked at. What is ignored (a value, pixels outside a field of view)
becomes `IGNORE`, has no class index, and counts nowhere.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from softless.data.datasets import Splits, fingerprint, scaling, stratified_cut
from softless.data.findings import Gathering, refusal
from softless.data.folder import Listing, existing_folder, listing, read_as
from softless.data.images import TURNED, BadImage, Decoded, said_of_turned
from softless.data.pictures import size_of
from softless.data.progress import track
from softless.data.reading import is_image
from softless.data.samples import FileSamples
from softless.errors import DataError, UsageError
from softless.experiment.groups import DataSpec
from softless.experiment.ranges import Range
from softless.tasks.segmentation.layout import IGNORE, Layout, label_folders, layout_of
from softless.tasks.segmentation.values import is_label, read_values, read_whole_values
from softless.words import counted

# of label images beside the image's name
_ENDS = re.compile(r"[_-](masks?|labels?|segmentation|seg|gt|manual\d?)$", re.IGNORECASE)


# warnings on how values and names were read: training says them too
TOLD = frozenset({
    "labels",
    "values",
    "splits",
    "void",
    "names",
    TURNED,
})


class LabelImages(FileSamples):
    """Images in files, each with a label image.

    Args:
        root: folder that all names start from.
        base: the folder of the images below it, for example "images/train".
        files: images, `images/train/NAME.jpg`.
        labels: their label images.
        lookup: class index of each value (256,).
        counts: pixels of each class (n, K).
        digests: of the classes of all pixels.
        channels: of the images, 1 or 3.
        fovs: their fields of view, where there are some: outside, where the value is 0, pixels are
            ignored.
        colours: value of each colour, where label images hold colours.
        scale: the declared range of the images' values.
    """

    def __init__(
        self,
        root: Path,
        base: str,
        files: Sequence[str],
        labels: Sequence[str],
        lookup: np.ndarray,
        counts: np.ndarray,
        digests: Sequence[bytes],
        channels: int,
        fovs: Sequence[str] | None = None,
        colours: Mapping[int, int] | None = None,
        scale: Range | None = None,
    ) -> None:
        super().__init__(root, files, np.zeros(len(files), dtype=np.int64), channels, scale)
        self.base, self.labels, self.lookup, self.counts = base, list(labels), lookup, counts
        self.digests, self.fovs, self.colours = (
            list(digests),
            None if fovs is None else list(fovs),
            colours,
        )

    def target(self, index: int) -> np.ndarray:
        """(h, w) uint8: class index of each pixel, or IGNORE."""
        fov = None if self.fovs is None else read_values(self.root / self.fovs[index])
        return _classes_of(
            read_values(self.root / self.labels[index], self.colours), self.lookup, fov
        )

    def key(self, index: int) -> str:
        """The image's path below its folder, without its ending: what its label image has too."""
        return Path(self.files[index]).relative_to(self.base).with_suffix("").as_posix()

    def update(self, digest: Any) -> None:
        super().update(digest)
        for pixel_digest in self.digests:
            digest.update(pixel_digest)

    def renumbered(self, places: Sequence[int]) -> "LabelImages":
        """The same samples with class index i called places[i]; IGNORE stays."""
        copied = self.take(range(len(self)))
        named = self.lookup != IGNORE
        copied.lookup = np.where(
            named, np.asarray(places, np.uint8)[np.where(named, self.lookup, 0)], np.uint8(IGNORE)
        )
        copied.counts = self.counts[:, np.argsort(places)]
        return copied

    def take(self, indices: Sequence[int] | np.ndarray) -> "LabelImages":
        """The samples at these positions, `indices` (m,), in this order."""
        chosen = [int(index) for index in indices]
        return LabelImages(
            self.root,
            self.base,
            [self.files[i] for i in chosen],
            [self.labels[i] for i in chosen],
            self.lookup,
            self.counts[chosen],
            [self.digests[i] for i in chosen],
            self.channels,
            None if self.fovs is None else [self.fovs[i] for i in chosen],
            self.colours,
            self.scale,
        )


def open_label_images(
    spec: DataSpec,
    seed: int,
    *,
    labels: str | None = None,
    ignore: Sequence[str | int] = (),
    fov: str | None = None,
    values: Mapping[Any, str] | None = None,
) -> tuple[Splits, Layout]:
    """Read all images and label images once and cut them into splits.

    Without a validation part `spec.val_fraction` of the training images, drawn by `seed`, are it.
    `spec.limit` thins the training part alone.

    Args:
        spec: path, channels and scaling.
        seed: of what is drawn.
        labels: folder of label images; None is the only one there is.
        ignore: classes or values that count nowhere.
        fov: folder of masks whose zeros count nowhere.
        values: what stored values are called; None lets classes.json say it.

    Raises:
        DataError: all that is wrong with the files, each with its path.
        UsageError: a class to ignore that is none, or a field of `spec` that cannot be used.
    """
    if not spec.path:
        raise DataError(
            f"the data source '{spec.source}' needs a path: give --data PATH or set data.path=PATH"
        )
    if spec.faults != "stop":
        raise UsageError(
            f"data.faults={spec.faults} has no effect on label images: mend what `softless data "
            f"check {spec.path}` names, and leave it at stop"
        )
    root = existing_folder(spec.path)
    findings = Gathering(root, scale=Range.of(spec.range))
    layout = layout_of(root, findings, labels, ignore, values)
    parts = read_parts(layout, findings, spec.in_chans, fov)
    findings.say(root, TOLD)
    if fov is not None and IGNORE in layout.values:
        raise UsageError(
            f"segmentation.fov={fov}: pixels outside are written as {IGNORE}, which is a class of "
            f"{root}; leave one out"
        )
    if findings.bad:
        raise refusal(root, findings.bad, "mend them")
    train, val, test = (parts.get(part) for part in ("train", "val", "test"))
    assert train is not None
    if val is None:
        remaining, cut = stratified_cut(train.targets, spec.val_fraction, seed)
        train, val = train.take(remaining), train.take(cut)
    if spec.limit is not None:
        if spec.limit < 1:
            raise UsageError(
                f"data.limit={spec.limit}: keep at least one training image, or none for no limit"
            )
        train = train.take(
            np.sort(np.random.default_rng(seed).permutation(len(train))[: spec.limit])
        )
    mean, std = scaling(spec, train)
    identity = fingerprint(spec.source, layout.classes, {"train": train, "val": val, "test": test})
    return Splits(train, val, test, layout.classes, spec.in_chans, mean, std, identity), layout


def read_parts(
    layout: Layout, findings: Gathering, channels: int = 3, fov: str | None = None
) -> dict[str, LabelImages]:
    """Read every image and label image; what is wrong with one is a fault, and the image is left
    out.

    Label images are (h, w) of their image's size, one value a pixel; `counts` of a part are (n, K).
    """
    if layout.read_as:
        findings.warn(layout.root, "values", layout.read_as)
    if renamed := read_as({
        part: layout.folder(part)
        for part, name in layout.pattern.parts.items()
        if name not in {part, ""}
    }):
        findings.warn(layout.root, "splits", renamed)
    return {part: read_part(layout, part, findings, channels, fov) for part in layout.parts}


def read_part(
    layout: Layout, part: str, findings: Gathering, channels: int = 3, fov: str | None = None
) -> LabelImages:
    """`read_parts` of one part."""
    base, beside = layout.folder(part), layout.folder(part, layout.labels)
    images = _by_key(layout.root / base, findings)
    labels = _by_key(layout.root / beside, findings, is_label)
    _pair_by_ending(layout.root / beside, images, labels, findings)
    fovs = (
        {} if fov is None else _by_key(layout.root / layout.folder(part, fov), findings, is_label)
    )
    for key in sorted(set(labels) - set(images)):
        findings.fault(
            layout.root / labels[key], "missing image", f"there is no image of this name in {base}"
        )
    records: list[tuple[str, str, str, np.ndarray, bytes]] = []
    void: list[int] = []
    for key, file in track(images.items(), len(images), f"reading {part}"):
        read = _read(
            layout, part, file, labels.get(key), fovs.get(key, "") if fov else None, findings
        )
        if read is not None:
            records.append((file, labels[key], fovs.get(key, ""), *read[:2]))
            void.append(read[2])
    if not images:
        findings.fault(layout.root / base, "layout", "it holds no images")
    if any(void) and layout.void:
        extent = f"{sum(void):,} pixels of {counted(sum(map(bool, void)), 'label image')}"
        findings.warn(
            beside,
            "void",
            f"the value {IGNORE} has no name in classes.json and counts nowhere: {extent}",
        )
    counts = np.array([record[3] for record in records]).reshape(len(records), len(layout.values))
    title = part if len(label_folders(layout.root)) < 2 else f"{part}, {layout.labels}"
    findings.counts[title] = dict(zip(layout.classes, counts.sum(0).tolist(), strict=True))
    return LabelImages(
        layout.root,
        base,
        [record[0] for record in records],
        [record[1] for record in records],
        layout.lookup,
        counts,
        [record[4] for record in records],
        channels,
        None if fov is None else [record[2] for record in records],
        layout.colours,
        findings.scale,
    )


def _pair_by_ending(
    folder: Path, images: Mapping[str, str], labels: dict[str, str], findings: Gathering
) -> None:
    """`a_mask.png` belongs to `a.jpg` where no label image has its very name."""
    short = {key: _ENDS.sub("", key) for key in labels if key not in images}
    # two for one image stay apart: neither is its label image without a doubt
    claims = Counter(short.values())
    fits = {
        key: name
        for key, name in short.items()
        if name != key and name in images and name not in labels and claims[name] == 1
    }
    for key, name in fits.items():
        labels[name] = labels.pop(key)
    if fits:
        first = next(iter(fits))
        findings.warn(
            folder,
            "names",
            f"{counted(len(fits), 'label image')} belong to images by their names without the "
            f"ending, as {first} to {fits[first]}",
        )


def _by_key(
    folder: Path, findings: Gathering, accepts: Callable[[Path], bool] = is_image
) -> dict[str, str]:
    """Images below a folder, relative to the data's root, by their path in it without its
    ending.
    """
    by_key: dict[str, str] = {}
    if not folder.is_dir():
        findings.fault(folder, "layout", "there is no such folder")
        return by_key
    inside: Listing = listing(folder, accepts=accepts)
    findings.passed_over += inside.passed_over
    findings.hidden += inside.hidden
    for file in inside.files:
        key = Path(file).with_suffix("").as_posix()
        if key in by_key:
            findings.fault(
                folder / file,
                "layout",
                f"{Path(by_key[key]).name} has the same name but for its ending: one of them only",
            )
            continue
        by_key[key] = (folder / file).relative_to(findings.root).as_posix()
    return by_key


def _read(
    layout: Layout, part: str, file: str, label: str | None, fov: str | None, findings: Gathering
) -> tuple[np.ndarray, bytes, int] | None:
    """Pixels of each class (K,), a digest of them all, and how many are void; None where the image
    cannot be used.
    """
    decoded = findings.image(layout.root / file, part, "")
    if label is None:
        name = Path(file).relative_to(layout.folder(part)).with_suffix(".png").as_posix()
        findings.fault(
            layout.root / file,
            "missing label",
            f"it has no label image {layout.folder(part, layout.labels)}/{name}",
        )
        return None
    if fov == "":
        findings.fault(layout.root / file, "missing field of view", "it has none")
        return None
    if decoded is not None and decoded.silently_turned:
        findings.warn(layout.root / file, TURNED, said_of_turned("its label image was"))
    values = _checked(layout.root / label, decoded, findings, layout.colours)
    field_of_view = None if fov is None else _checked(layout.root / fov, decoded, findings)
    if values is None or decoded is None or (fov is not None and field_of_view is None):
        return None
    if strange := _unnamed(values, layout):
        findings.fault(layout.root / label, "label values", strange)
        return None
    classes = _classes_of(values, layout.lookup, field_of_view)
    counts = np.bincount(classes.reshape(-1), minlength=256)[: len(layout.values)]
    return (
        counts,
        hashlib.blake2b(classes.tobytes(), digest_size=16).digest(),
        int((values == IGNORE).sum()),
    )


def _unnamed(values: np.ndarray, layout: Layout) -> str:
    """What is said of values that have no name, with their numbers of pixels; nothing where all
    have one.
    """
    counts = np.bincount(values.reshape(-1), minlength=256)
    strange = [
        value
        for value in np.flatnonzero(counts).tolist()
        if value not in {*layout.names, *layout.ignored}
    ]
    if not strange:
        return ""
    examples = ", ".join(f"{value} ({counts[value]} pixels)" for value in strange[:20])
    allowed = ", ".join(f"{value} {name}" for value, name in layout.names.items())
    return (
        f"it holds the values {examples}{', …' if len(strange) > 20 else ''}; allowed are {allowed}"
    )


def _checked(
    path: Path,
    decoded: Decoded | None,
    findings: Gathering,
    colours: Mapping[int, int] | None = None,
) -> np.ndarray | None:
    """The values of a label image that has its image's size."""
    try:
        values = read_whole_values(path, colours)
    except BadImage as error:
        findings.fault(path, error.kind, error.reason)
        return None
    height, width = values.shape
    size = (width, height) if decoded is None else size_of(decoded.image)
    if decoded is not None and (width, height) != size:
        stored = "; it has the size that the image has before its EXIF orientation"
        findings.fault(
            path,
            "label size",
            f"it is {width} x {height}, and its image is {size[0]} x {size[1]}: they must be the "
            "same" + (stored if decoded.turned and (width, height) == decoded.stored_size else ""),
        )
        return None
    return values


def _classes_of(values: np.ndarray, lookup: np.ndarray, fov: np.ndarray | None) -> np.ndarray:
    """Class indices (h, w) of values; IGNORE where the field of view is 0."""
    classes: np.ndarray = lookup[values]
    return classes if fov is None else np.where(fov > 0, classes, np.uint8(IGNORE))
