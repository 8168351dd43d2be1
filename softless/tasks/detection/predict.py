"""Objects in images of any size: one COCO file, and pictures of them over the photographs."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from softless import ranks
from softless.data.notices import notice
from softless.data.pictures import for_people, size_of
from softless.data.progress import track
from softless.data.samples import FileSamples
from softless.evaluation.run import LoadedRun
from softless.models.durable import storing, write_picture, write_stream
from softless.models.scale import farthest
from softless.prediction.answers import Answers
from softless.prediction.results import Results
from softless.prediction.setting import Setting
from softless.tasks.detection.known import known_ids
from softless.tasks.detection.measure import PREDICTIONS, Answer, answers_to
from softless.tasks.detection.pictures import SURE, draw
from softless.tasks.detection.samples import need_pycocotools
from softless.words import aligned, counted

BLOCK = 1 << 20  # bytes that are copied at once


@dataclass(frozen=True, kw_only=True)
class Predictions(Answers):
    """Where the answers lie, and how many sure ones each class has."""

    json: Path
    answers: int
    counts: dict[str, int]
    foreign: str = ""  # what is to say of images far from the training size

    def to_dict(self) -> dict[str, Any]:
        """For JSON: the path as a text, and answers of at least SURE of each class."""
        own = {
            "json": str(self.json),
            "answers": self.answers,
            "counts": self.counts,
            "foreign": self.foreign,
        }
        return {**own, **super().to_dict()}

    def __str__(self) -> str:
        head = self.head(self.json, also=[counted(self.answers, "answer")])
        counts = aligned((name, f"{count:,}") for name, count in self.counts.items())
        return "\n".join([*head, f"answers with a score of {SURE} or more:", *counts, *self.foot()])


def predict(
    loaded: LoadedRun, samples: FileSamples, out: Results, setting: Setting, *, overlays: bool
) -> Predictions:
    """Write `predictions.json`, a COCO file whose annotations have scores, and with overlays
    `overlays/NAME.png`, in which answers of at least SURE are drawn.

    Images run one by one. Answers are written as they come, and none is kept.

    Raises:
        MissingExtra: pycocotools is not installed.
        UsageError: the folder cannot be written.
        DataError: the setting's annotation file lacks an image or a class, or is not COCO's.
    """
    need_pycocotools()
    file = out.file(PREDICTIONS)
    pictures = out.pictures(samples.files, "overlays") if overlays else []
    categories: tuple[int, ...] = loaded.model.categories  # type: ignore[assignment]
    ids: Sequence[int] = range(1, len(samples) + 1)
    if (listed := setting.annotations) is not None:
        coco_ids = ranks.together(lambda: known_ids(listed, samples.files, loaded.classes))
        ids, renamed = coco_ids.images, dict(zip(categories, coco_ids.categories, strict=True))
    else:
        renamed = {category: category for category in categories}
    classes = dict(zip(categories, loaded.classes, strict=True))
    sizes: list[tuple[int, int]] = []
    sure: Counter[str] = Counter()

    def annotations() -> Iterator[dict[str, Any]]:
        number = 0
        for size, answers in ranks.in_order(
            _answered(loaded, samples, setting, pictures, classes), len(samples)
        ):
            sizes.append(size)
            sure.update(
                classes[answer["category_id"]] for answer in answers if answer["score"] >= SURE
            )
            # goes on from the image before
            for number, answer in enumerate(answers, number + 1):  # noqa: B020
                area = answer["bbox"][2] * answer["bbox"][3]
                own = {
                    "image_id": ids[len(sizes) - 1],
                    **answer,
                    "category_id": renamed[answer["category_id"]],
                }
                yield {"id": number, **own, "area": area, "iscrowd": 0}

    named = {renamed[category]: name for category, name in classes.items()}
    answers = _write(
        file, setting, list(zip(ids, samples.files, strict=True)), sizes, named, annotations()
    )
    answers, foreign, sure = ranks.first(
        lambda: (
            answers,
            farthest(loaded.model, [(height, width) for width, height in sizes]),
            sure,
        )
    )
    if foreign:
        notice(foreign)
    return Predictions(
        json=file,
        overlays=out.folder / "overlays" if overlays else None,
        images=len(samples),
        answers=answers,
        counts={name: sure[name] for name in loaded.classes},
        precision=setting.precision,
        foreign=foreign,
        unread=samples.left_out,
    )


def _answered(
    loaded: LoadedRun,
    samples: FileSamples,
    setting: Setting,
    pictures: Sequence[Path],
    classes: Mapping[int, str],
) -> Iterator[tuple[tuple[int, int], list[Answer]]]:
    """Width and height of each image of this rank, and its answers; its picture is drawn then."""
    indices = range(ranks.rank(), len(samples), ranks.size())
    for index in track(indices, len(indices), "predicting"):
        image = samples.image(index)
        (answers,) = answers_to(loaded.model, [loaded.transform(image)], setting.amp)
        if pictures:
            write_picture(pictures[index], draw(for_people(image), answers, classes))
        yield size_of(image), answers


def _write(
    path: Path,
    setting: Setting,
    files: Sequence[tuple[int, str]],
    sizes: Sequence[tuple[int, int]],
    classes: Mapping[int, str],
    annotations: Iterator[dict[str, Any]],
) -> int:
    """The file whole or not at all, on the first rank; returns the number of annotations.

    They come before the sizes of their images are known and stand behind those in the file: till
    then they lie on the disk.
    """
    if ranks.rank() > 0:
        return sum(1 for _ in annotations)
    count = 0
    with storing(path), TemporaryFile(dir=path.parent) as spooled:
        for count, annotation in enumerate(annotations, 1):
            spooled.write(b", " * (count > 1) + json.dumps(annotation).encode())
        spooled.seek(0)
        images = [
            {"id": key, "file_name": name, "width": width, "height": height}
            for (key, name), (width, height) in zip(files, sizes, strict=True)
        ]
        named = [{"id": key, "name": name} for key, name in classes.items()]
        head = json.dumps({
            "info": {"precision": setting.precision},
            "images": images,
            "categories": named,
        })

        def write(file: BinaryIO) -> None:
            file.write(head[:-1].encode() + b', "annotations": [')
            file.writelines(iter(lambda: spooled.read(BLOCK), b""))
            file.write(b"]}")

        write_stream(path, write)
    return count
