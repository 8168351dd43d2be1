"""Objects in images of any size: one COCO file, and pictures of them over the photographs."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from softless.data.boxes import need_pycocotools
from softless.data.notices import notice
from softless.data.pictures import for_people, size_of
from softless.data.progress import track
from softless.data.samples import FileSamples
from softless.evaluation import LoadedRun
from softless.evaluation.detection import PREDICTIONS, answers_to, write_json
from softless.models.durable import write_picture
from softless.models.scale import farthest
from softless.prediction.answers import Answers
from softless.prediction.box_pictures import SURE, draw
from softless.prediction.results import Results
from softless.prediction.setting import Setting
from softless.words import aligned, counted


@dataclass(frozen=True, kw_only=True)
class Predictions(Answers):
    """Where the answers lie, and how many sure ones each class has."""

    json: Path
    answers: int
    counts: dict[str, int]
    foreign: str = ""  # what is to say of images far from the training size

    def to_dict(self) -> dict[str, Any]:
        own = {"json": str(self.json), "answers": self.answers, "counts": self.counts, "foreign": self.foreign}
        return {**own, **super().to_dict()}

    def __str__(self) -> str:
        head = self.head(self.json, also=[counted(self.answers, "answer")])
        counts = aligned((name, f"{count:,}") for name, count in self.counts.items())
        return "\n".join([*head, f"answers with a score of {SURE} or more:", *counts, *self.foot()])


def predict(loaded: LoadedRun, samples: FileSamples, out: Results, setting: Setting, *, overlays: bool) -> Predictions:
    """Write `predictions.json`, a COCO file whose annotations have scores, and with overlays `overlays/NAME.png`, in which answers of at least SURE are drawn.

    Images run one by one.

    Raises:
        MissingExtra: pycocotools is not installed.
        UsageError: the folder cannot be written.
    """
    need_pycocotools()
    file = out.file(PREDICTIONS)
    pictures = out.pictures(samples.files, "overlays") if overlays else []
    indices = range(len(samples))
    sizes = [size_of(samples.image(index)) for index in track(indices, len(samples), "reading")]
    foreign = farthest(loaded.model, [(height, width) for width, height in sizes])
    if foreign:
        notice(foreign)
    categories: tuple[int, ...] = loaded.model.categories  # type: ignore[assignment]
    classes = dict(zip(categories, loaded.classes, strict=True))
    annotations: list[dict[str, Any]] = []
    tensors = (loaded.transform(samples.image(index)) for index in track(indices, len(samples), "predicting"))
    for index, answers in enumerate(answers_to(loaded.model, tensors, setting.amp)):
        for answer in answers:
            area = answer["bbox"][2] * answer["bbox"][3]
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": index + 1,
                **answer,
                "area": area,
                "iscrowd": 0,
            })
        if overlays:
            write_picture(pictures[index], draw(for_people(samples.image(index)), answers, classes))
    images = [
        {"id": index + 1, "file_name": samples.files[index], "width": width, "height": height}
        for index, (width, height) in enumerate(sizes)
    ]
    named = [{"id": key, "name": name} for key, name in classes.items()]
    write_json(
        file,
        {"info": {"precision": setting.precision}, "images": images, "categories": named, "annotations": annotations},
    )
    sure = Counter(classes[one["category_id"]] for one in annotations if one["score"] >= SURE)
    return Predictions(
        json=file,
        overlays=out.folder / "overlays" if overlays else None,
        images=len(samples),
        answers=len(annotations),
        counts={name: sure[name] for name in loaded.classes},
        precision=setting.precision,
        foreign=foreign,
        unread=samples.left_out,
    )
