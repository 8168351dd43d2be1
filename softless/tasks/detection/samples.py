"""Images with boxes and masks in COCO's layout, read in one pass in which every fault is found
before the first step.

    root/annotations/instances_{train,val,test}.json    root/images/{train,val,test}/NAME.jpg

or COCO's own: `annotations/instances_{train2017,val2017}.json` beside `train2017/` and `val2017/`.
Annotations are read and images decoded in full, once (`readable.py`). Crowds are no objects to
learn: they are kept for who measures.
"""

import json
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from softless.data.datasets import Splits, fingerprint, left_out_of, scaling
from softless.data.exports import export_in
from softless.data.findings import Fault, Gathering, not_there, refusal
from softless.data.folder import class_places
from softless.data.images import FORMATS, TURNED, Decoded
from softless.data.notices import notice
from softless.data.readable import fault_of, refuse_policy, say_left_out, unreadable
from softless.data.samples import FileSamples
from softless.errors import DataError, UsageError, located, need
from softless.experiment.groups import DataSpec
from softless.experiment.ranges import Range
from softless.tasks.detection.annotation_files import AnnotationFiles, annotation_files
from softless.tasks.detection.coco import check_files, image_folder
from softless.words import few

OUTSIDE = frozenset({"box outside", "polygon outside"})  # faults that cutting mends
# a class that is misspelt is missing from training, so it is never passed over
UNMENDABLE = frozenset({"unknown category"})
ORIENTATION = 0x0112  # EXIF's


@dataclass(frozen=True)
class AnnotatedImage:
    """An image and its annotations, as COCO says them; boxes lie in the image."""

    id: int
    file: str  # below the root
    width: int
    height: int
    annotations: tuple[Mapping[str, Any], ...]


class BoxSamples(FileSamples):
    """Images of a COCO file.

    Args:
        root: folder that the entries' files start from.
        entries: the images.
        categories: id -> name; class indices are their positions.
        channels: 1 or 3.
        masks: whether targets hold masks.
        scale: the declared range of the images' values.
    """

    def __init__(
        self,
        root: Path,
        entries: Sequence[AnnotatedImage],
        categories: Mapping[int, str],
        channels: int,
        *,
        masks: bool,
        scale: Range | None = None,
    ) -> None:
        super().__init__(
            root,
            [entry.file for entry in entries],
            np.zeros(len(entries), np.int64),
            channels,
            scale,
        )
        self.entries, self.categories, self.masks = list(entries), dict(categories), masks
        self.index_of = {key: index for index, key in enumerate(self.categories)}

    def target(self, index: int) -> dict[str, Any]:
        """Its objects, crowds left out: boxes (n, 4) float32 as corners, labels (n,) int64, and
        run-length masks where they are asked for.
        """
        entry = self.entries[index]
        objects = [annotation for annotation in entry.annotations if not annotation.get("iscrowd")]
        boxes = np.array([annotation["bbox"] for annotation in objects], dtype=np.float32).reshape(
            -1, 4
        )
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array(
            [self.index_of[annotation["category_id"]] for annotation in objects], dtype=np.int64
        )
        target: dict[str, Any] = {"boxes": boxes, "labels": labels}
        if self.masks:
            target["runs"] = [
                runs(annotation["segmentation"], entry.height, entry.width)
                for annotation in objects
            ]
        return target

    def update(self, digest: Any) -> None:
        super().update(digest)
        for entry in self.entries:
            numbers = [
                [
                    annotation["category_id"],
                    annotation.get("iscrowd", 0),
                    annotation.get("area", 0),
                    *annotation["bbox"],
                ]
                for annotation in entry.annotations
            ]
            digest.update(
                np.array([entry.id, len(numbers)]).tobytes()
                + np.array(numbers, dtype=np.float64).tobytes()
            )

    def update_outlines(self, digest: Any) -> None:
        if self.masks:
            drawn = [
                [annotation["segmentation"] for annotation in entry.annotations]
                for entry in self.entries
            ]
            digest.update(json.dumps(drawn, sort_keys=True).encode())

    def take(self, indices: Sequence[int] | np.ndarray) -> "BoxSamples":
        """The samples of these entries, `indices` (m,), in this order."""
        chosen = [self.entries[int(index)] for index in indices]
        return BoxSamples(
            self.root, chosen, self.categories, self.channels, masks=self.masks, scale=self.scale
        )

    def renumbered(self, places: Sequence[int]) -> "BoxSamples":
        listed = dict(zip(places, self.categories.items(), strict=True))
        categories = dict(listed[index] for index in range(len(listed)))
        return BoxSamples(
            self.root, self.entries, categories, self.channels, masks=self.masks, scale=self.scale
        )

    def document(self) -> dict[str, Any]:
        """The samples as COCO's evaluation takes them, annotations numbered from 1."""
        images = [
            {"id": entry.id, "file_name": entry.file, "width": entry.width, "height": entry.height}
            for entry in self.entries
        ]
        annotations = [
            {"area": annotation["bbox"][2] * annotation["bbox"][3], "iscrowd": 0, **annotation}
            for entry in self.entries
            for annotation in entry.annotations
        ]
        return {
            "images": images,
            "annotations": [
                {**annotation, "id": number} for number, annotation in enumerate(annotations, 1)
            ],
            "categories": [{"id": key, "name": name} for key, name in self.categories.items()],
        }


def open_boxes(spec: DataSpec, seed: int, *, masks: bool, faults: str = "stop") -> Splits:
    """Open a folder in COCO's layout, checked whole, and cut it.

    Where there is no validation file, `spec.val_fraction` of the training images is cut off, drawn
    by `seed`. `spec.limit` thins the training images alone.

    Args:
        spec: data of a recipe; `spec.faults` says what becomes of images that cannot be used, as
            `faults` does of annotations.
        seed: of what is drawn.
        masks: each object must have a mask.
        faults: "stop" at annotations that cannot be used; "skip" leaves them out; "clip" cuts those
            that reach outside their image and leaves the others out.

    Raises:
        DataError: all that is wrong with images and annotations, unless their policy lets them
            pass. An annotation of an unknown class never passes.
        UsageError: a field of `spec` that cannot be used.
    """
    for policy in (faults, spec.faults):
        refuse_policy(policy, boxes=True)
    if not spec.path:
        raise DataError(
            "the data source 'coco' needs a path: give --data PATH or set data.path=PATH"
        )
    root = located(spec.path)
    files = _files_of(root)
    findings = Headers(root, scale=Range.of(spec.range))
    contents = check_files(list(files.values()), None, findings, masks=masks)
    if masks:
        check_masks(contents, findings)
    images = _decoded(root, contents, findings, spec.in_chans)
    left_out = (
        {}
        if spec.faults == "stop"
        else {
            fault.path: fault
            for fault in findings.bad
            if fault.annotation is None and fault.path in images
        }
    )
    mending = _Mending(
        _faulty(
            root, [fault for fault in findings.bad if fault.path not in left_out], faults, images
        ),
        faults,
        findings,
    )
    all_parts = {
        part: _samples(root, file, contents[file], mending, spec.in_chans, masks=masks)
        for part, file in files.items()
    }
    mending.say(root)
    parts = {part: _without(root, part, samples, left_out) for part, samples in all_parts.items()}
    if left_out:
        say_left_out(
            root,
            {
                part: (len(parts[part].left_out), len(samples))
                for part, samples in all_parts.items()
            },
        )
    train, val = parts["train"], parts.get("val")
    if val is None:
        train, val = _cut(train, spec.val_fraction, seed)
    if spec.limit is not None:
        if spec.limit < 1:
            raise UsageError(
                f"data.limit={spec.limit}: keep at least one training image, or none for no limit"
            )
        train = train.take(
            np.sort(np.random.default_rng(seed).permutation(len(train))[: spec.limit])
        )
    _say_unlearnt(root, files["train"].stem, train, findings)
    classes = tuple(train.categories.values())
    # each file may list its categories in an order of its own
    val, test = (
        None
        if part is None
        else part.renumbered(class_places(classes, tuple(part.categories.values()), "train", name))
        for name, part in (("val", val), ("test", parts.get("test")))
    )
    assert val is not None
    mean, std = scaling(spec, train)
    identity = fingerprint(spec.source, classes, {"train": train, "val": val, "test": test})
    return Splits(train, val, test, classes, spec.in_chans, mean, std, identity, left_out_of(parts))


def _say_unlearnt(root: Path, name: str, train: BoxSamples, findings: Gathering) -> None:
    """Which classes have no object to learn from.

    Raises:
        DataError: no class has one.
    """
    findings.say(root, {"crowds", TURNED})
    category_ids = {
        annotation["category_id"]
        for entry in train.entries
        for annotation in entry.annotations
        if not annotation.get("iscrowd")
    }
    if not category_ids and not any(findings.counts[name].values()):
        raise DataError(f"{root}: {name}.json has no object, so there is nothing to learn")
    absent = [called for key, called in train.categories.items() if key not in category_ids]
    if absent:
        absent_names = few(absent)
        notice(
            f"{root}: no object of {absent_names} is trained on, so the detector cannot find "
            f"{'it' if len(absent) == 1 else 'them'}"
        )


def _files_of(root: Path) -> Mapping[str, Path]:
    """train and, where they are there, val and test: their json files."""
    if not root.exists():
        raise not_there(root)
    listed = annotation_files(root)
    if "train" not in listed.parts:
        raise not_coco(root, listed)
    if sentence := listed.sentence(root):
        notice(f"{root}: {sentence}")
    return listed.parts


def not_coco(root: Path, listed: AnnotationFiles) -> DataError:
    """What is said of a folder without boxes for training."""
    export = export_in(root)
    remarks = [f"it holds {export}"] if export and "COCO" not in export.title else []
    remarks += [listed.sentence(root)] if listed.passed_over else []
    parts_text = f"it has {' and '.join(listed.parts)} but no train; " if listed.parts else ""
    return DataError(
        f"{root} is not in COCO's layout: {parts_text}expected "
        "annotations/instances_train.json (val, test) with images/train/, COCO's own "
        "annotations/instances_train2017.json with train2017/, or "
        f"train/_annotations.coco.json{''.join(f'; {remark}' for remark in remarks)}"
    )


class Headers(Gathering):
    """A gathering that takes sizes from headers; images with a turn, of unusual pixels or with a
    declared range are decoded, as all are afterwards.
    """

    def image(self, path: Path, part: str, label: str) -> Decoded | None:
        if self.scale is not None:
            return super().image(path, part, label)
        try:
            with Image.open(path, formats=FORMATS) as image:
                if image.mode in {"L", "RGB"} and image.getexif().get(ORIENTATION, 1) == 1:
                    self.image_count, self.good = self.image_count + 1, self.good + 1
                    return Decoded(image, image.format or "", image.size, ())
        except (OSError, SyntaxError, ValueError):
            pass  # decoding it says what is wrong
        return super().image(path, part, label)


def runs(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """Polygons, or a mask in either of COCO's forms, as one compressed run-length mask.

    Raises:
        MissingExtra: pycocotools is not installed.
    """
    from pycocotools import mask as coding

    if isinstance(segmentation, list):
        merged: dict[str, Any] = coding.merge(coding.frPyObjects(segmentation, height, width))
        return merged
    if isinstance(segmentation["counts"], list):
        coded: dict[str, Any] = coding.frPyObjects(segmentation, height, width)
        return coded
    return dict(segmentation)


def pixels_of(coded: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(h, w, n) uint8 of n run-length masks of one size."""
    from pycocotools import mask as coding

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # pycocotools 2.0 copies as numpy 1 did
        decoded: np.ndarray = coding.decode(list(coded))
    return decoded


def need_pycocotools() -> None:
    """Say what to install before anything is opened."""
    need("pycocotools")


def check_masks(contents: Mapping[Path, Mapping[str, list[Any]]], findings: Gathering) -> None:
    """Every object must have a mask."""
    for file, content in contents.items():
        for index, annotation in enumerate(content["annotations"]):
            if not annotation.get("segmentation") and not annotation.get("iscrowd"):
                findings.fault(
                    file,
                    "no mask",
                    "it has no segmentation, and this head learns masks; detection.head=retinanet "
                    "or fasterrcnn needs none",
                    _id(annotation, index),
                )


def _decoded(
    root: Path, contents: Mapping[Path, Mapping[str, list[Any]]], findings: Gathering, channels: int
) -> set[str]:
    """Decode every image that nothing was said of yet; returns the names of all images."""
    paths = [
        image_folder(file, content["images"]) / name
        for file, content in contents.items()
        for image in content["images"]
        if isinstance(name := image.get("file_name"), str) and name and "\0" not in name
    ]
    faulty_names = {fault.path for fault in findings.bad if fault.annotation is None}
    unchecked = [path for path in dict.fromkeys(paths) if findings.name(path) not in faulty_names]
    findings.bad += [
        fault_of(path, error, root)
        for path, error in unreadable(unchecked, channels, findings.scale).items()
    ]
    return {findings.name(path) for path in paths}


def _without(
    root: Path, part: str, samples: BoxSamples, left_out: Mapping[str, Fault]
) -> BoxSamples:
    """The samples but for images that cannot be used."""
    bad = [left_out[file] for file in samples.files if file in left_out]
    if not bad:
        return samples
    usable = samples.take([
        index for index, file in enumerate(samples.files) if file not in left_out
    ])
    if not len(usable):
        raise DataError(
            f"{root}: none of the {len(samples)} images of {part} can be used; the first: {bad[0]}"
        )
    usable.left_out = tuple(bad)
    return usable


def _faulty(
    root: Path, bad: Sequence[Fault], policy: str, images: Collection[str]
) -> dict[tuple[str, Any], set[str]]:
    """(path, annotation) and its kinds of faults, where the policy lets those pass.

    Raises:
        DataError: it does not.
    """
    fatal = [
        fault
        for fault in bad
        if policy == "stop" or fault.annotation is None or fault.kind in UNMENDABLE
    ]
    if fatal:
        ways = ["mend them"]
        if any(fault.annotation is not None and fault.kind not in UNMENDABLE for fault in fatal):
            ways.append("leave such annotations out with detection.faults=skip")
        if any(fault.annotation is None and fault.path in images for fault in fatal):
            ways.append("leave such images out with data.faults=skip")
        raise refusal(root, fatal, ", or ".join(ways))
    kinds: dict[tuple[str, Any], set[str]] = {}
    for fault in bad:
        kinds.setdefault((fault.path, fault.annotation), set()).add(fault.kind)
    return kinds


@dataclass
class _Mending:
    """What becomes of annotations with faults, and how often it did."""

    kinds: Mapping[tuple[str, Any], set[str]]
    policy: str
    findings: Gathering
    counts: Counter[str] = field(default_factory=Counter)

    def mended(
        self,
        annotation: Mapping[str, Any],
        index: int,
        names: Sequence[Path],
        size: tuple[int, int],
    ) -> Mapping[str, Any] | None:
        """The annotation as it is used; None leaves it out."""
        keys = [(self.findings.name(name), _id(annotation, index)) for name in names]
        kinds = set().union(*(self.kinds.get(key, ()) for key in keys))
        if not kinds:
            return annotation
        cut = (
            _cut_to(annotation["bbox"], size)
            if self.policy == "clip" and kinds <= OUTSIDE
            else None
        )
        self.counts["cut to the image" if cut else f"left out ({', '.join(sorted(kinds))})"] += 1
        return {**annotation, "bbox": cut} if cut else None

    def say(self, root: Path) -> None:
        """The counts, once."""
        if self.counts:
            counts_text = ", ".join(
                f"{count:,} {outcome}" for outcome, count in self.counts.most_common()
            )
            notice(
                f"{root}: annotations with faults, detection.faults={self.policy}: {counts_text}"
            )


def _cut_to(box: Sequence[float], size: tuple[int, int]) -> list[float] | None:
    left, top = max(box[0], 0), max(box[1], 0)
    right, bottom = min(box[0] + box[2], size[0]), min(box[1] + box[3], size[1])
    return [left, top, right - left, bottom - top] if right > left and bottom > top else None


def _samples(
    root: Path,
    file: Path,
    content: Mapping[str, list[Any]],
    mending: _Mending,
    channels: int,
    *,
    masks: bool,
) -> BoxSamples:
    folder = image_folder(file, content["images"])
    images = {image["id"]: image for image in content["images"]}
    annotations_by_image: dict[int, list[Mapping[str, Any]]] = {key: [] for key in images}
    for index, annotation in enumerate(content["annotations"]):
        image = images.get(annotation.get("image_id"))
        names = [file] if image is None else [file, folder / image["file_name"]]
        size = (0, 0) if image is None else (image["width"], image["height"])
        usable = mending.mended(annotation, index, names, size)
        if usable is not None:
            annotations_by_image[usable["image_id"]].append(usable)
    entries = [
        AnnotatedImage(
            key,
            (folder / image["file_name"]).relative_to(root).as_posix(),
            image["width"],
            image["height"],
            tuple(annotations_by_image[key]),
        )
        for key, image in images.items()
    ]
    categories = {category["id"]: category["name"] for category in content["categories"]}
    return BoxSamples(
        root, entries, categories, channels, masks=masks, scale=mending.findings.scale
    )


def _cut(train: BoxSamples, fraction: float, seed: int) -> tuple[BoxSamples, BoxSamples]:
    if not 0 < fraction < 1:
        raise UsageError(
            f"data.val_fraction={fraction}: the share cut off for validation lies between 0 and 1"
        )
    order, count = np.random.default_rng(seed).permutation(len(train)), round(fraction * len(train))
    if not 0 < count < len(train):
        raise DataError(
            f"{len(train)} training images leave none for training or for validation at "
            f"data.val_fraction={fraction}: add images"
        )
    return train.take(np.sort(order[count:])), train.take(np.sort(order[:count]))


def _id(annotation: Mapping[str, Any], index: int) -> int | str:
    """How the check calls an annotation."""
    key = annotation.get("id")
    return key if isinstance(key, int) and not isinstance(key, bool) else f"annotations[{index}]"
