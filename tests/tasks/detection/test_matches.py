"""AP of drawn images against pycocotools' own AP of the images written out as often as they are
drawn.
"""

from typing import Any

import numpy as np
import pytest

from softless.tasks.detection.measure import Detections, average_precision, measured


def scene(
    images: int, seed: int, crowds: bool = False
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Objects of three classes, and answers near them or nowhere; every score differs."""
    rng = np.random.default_rng(seed)
    annotations: list[dict[str, Any]] = []
    answers: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        for _ in range(int(rng.integers(0, 5))):
            box = [float(v) for v in (*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2))]
            category = int(rng.choice([2, 5, 9]))
            crowd = int(crowds and rng.random() < 0.3)
            annotations.append({
                "id": len(annotations) + 1,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "iscrowd": crowd,
                "area": box[2] * box[3],
                "segmentation": {"size": [100, 100], "counts": [0, 10_000]},
            })
            near = [
                value + float(shift) for value, shift in zip(box, rng.normal(0, 3, 4), strict=True)
            ]
            answers.append({
                "image_id": image,
                "category_id": category if rng.random() < 0.8 else 5,
                "bbox": near,
            })
        for _ in range(int(rng.integers(0, 3))):
            box = [float(v) for v in (*rng.uniform(0, 60, 2), *rng.uniform(10, 40, 2))]
            answers.append({"image_id": image, "category_id": int(rng.choice([2, 5])), "bbox": box})
    for answer, score in zip(answers, rng.permutation(len(answers)), strict=True):
        answer["score"] = (1 + int(score)) / (1 + len(answers))
    categories = [{"id": one, "name": str(one)} for one in (9, 2, 5)]
    listed = [{"id": one, "width": 100, "height": 100} for one in range(1, images + 1)]
    return {"images": listed, "categories": categories, "annotations": annotations}, answers


def repeated(
    document: dict[str, Any], answers: list[dict[str, Any]], weights: np.ndarray
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Each image as often as it is drawn, under ids of its own; copies keep the scores' order."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    told: list[dict[str, Any]] = []
    for image, times in zip(document["images"], weights.tolist(), strict=True):
        for copy in range(times):
            new = 1000 * image["id"] + copy
            images.append({**image, "id": new})
            of_image = [one for one in document["annotations"] if one["image_id"] == image["id"]]
            annotations += [
                {**one, "id": 1 + len(annotations) + n, "image_id": new}
                for n, one in enumerate(of_image)
            ]
            told += [{**one, "image_id": new} for one in answers if one["image_id"] == image["id"]]
    return {**document, "images": images, "annotations": annotations}, told


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize("images", [1, 12])
def test_drawn_images_have_pycocotools_precision(images, crowds):
    document, answers = scene(images, 4 + images, crowds)
    _, _, matches = measured(document, answers, masks=False, detections=4)
    rng = np.random.default_rng(0)
    rows = [
        np.ones(images, dtype=np.int64),
        *(rng.multinomial(images, [1 / images] * images) for _ in range(6)),
    ]
    for weights in rows:
        wanted, _ = average_precision(
            *repeated(document, answers, weights), masks=False, detections=4
        )
        found = matches["box"].precision(weights)
        assert found.mean() == pytest.approx(wanted["box_ap"], abs=1e-9)
        assert found[0] == pytest.approx(wanted["box_ap50"], abs=1e-9)
        assert found[5] == pytest.approx(wanted["box_ap75"], abs=1e-9)


def outcome(document: dict[str, Any], answers: list[dict[str, Any]]) -> Detections:
    measures, per_class, matches = measured(document, answers, masks=False)
    images = len(document["images"])
    return Detections(measures, per_class, answers, 100, images, images, matches)


def test_intervals_hold_the_value_and_repeat_themselves():
    found, again = (outcome(*scene(40, 1)) for _ in range(2))
    told = found.to_dict()
    assert set(told["intervals"]) == {"box_ap", "box_ap50", "box_ap75"}
    for name, (low, high) in told["intervals"].items():
        assert low < told[name] < high
    assert told == again.to_dict()
    assert "95 % interval" in str(found)


@pytest.mark.parametrize(
    ("images", "keep", "why"),
    [(3, 1, "it would rest on"), (40, 0, "no object is there to be found")],
    ids=["few images", "nothing to find"],
)
def test_there_is_a_reason_where_there_is_no_interval(images, keep, why):
    document, answers = scene(images, 1)
    found = outcome(
        {**document, "annotations": document["annotations"] if keep else []}, answers
    ).to_dict()
    assert found["intervals"]["box_ap"] is None
    assert found["reasons"]["box_ap"].startswith(why)
    assert (found["box_ap"] is None) == (not keep)


def test_no_answer_at_all_is_a_value_without_interval():
    found = outcome(scene(40, 1)[0], [])
    assert found.measures["box_ap"] == 0.0
    assert found.to_dict()["intervals"]["box_ap"] is None
