"""The page of a recovery says what recover.json holds, and no more."""

import copy
import re
from typing import Any

import pytest

from softless.recovery.page import render, sentence
from softless.report.pairs import LEFT, RIGHT, WIDTH, Pair, PairChart

NEAR = {
    "cosine": 0.5,
    "agreement": 0.61,
    "kl": 0.8,
    "top1": 0.36,
    "teacher_top1": 0.972,
    "images": 128,
}
LAYER = {
    "path": "blocks.0.attn.proj",
    "part": "attention",
    "strength": 0.01,
    "gain": 1.0,
    "stream_before": 0.5,
    "stream_after": 0.25,
    "branch_before": 1.25,
    "branch_after": 0.5,
    "kept": "",
}
CONTENT: dict[str, Any] = {
    "request": {
        "model": "digits",
        "attention": "softmax",
        "op": "sima",
        "options": {},
        "steps": ["refit"],
        "ridge": "held-out",
        "views": None,
        "images": "a" * 64,
        "teacher_sha256": "b" * 64,
        "student_sha256": "c" * 64,
    },
    "op": "sima",
    "options": {"token_scale": "tokens"},
    "swapped": {"blocks.0.attn": "Attention"},
    "left": {"blocks.1.attn": "no pattern names it"},
    "lost": {},
    "layers": [
        LAYER,
        LAYER
        | {
            "path": "blocks.0.mlp.fc2",
            "strength": None,
            "branch_before": None,
            "branch_after": None,
            "stream_after": 0.5,
            "kept": "no strength lessens its held-out error",
        },
    ],
    "stream": 0.3,
    "images": 256,
    "steps": {"bare": NEAR, "refit": NEAR | {"top1": 0.931, "kl": 0.07, "agreement": 0.95}},
    "seconds": {"refit": 1.5},
    "kept": "refit",
    "distilled": None,
    "exponentials": {"before": {"softmax": 1000, "gelu": 50}, "after": {"gelu": 50}},
    "notes": ["computed in float32"],
    "parameters": 22_000_000,
    "weights_sha256": "d" * 64,
    "about": {
        "command": "softless recover /disk/runs/digits sima",
        "date": "2026-11-30T20:00:00+00:00",
        "commit": "abc",
        "versions": {"torch": "2"},
        "machine": {"cpu": "one"},
    },
}


def words(page: str) -> str:
    """The page without markup and style."""
    text = re.sub(r"<style>.*?</style>", " ", page, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]*>", " ", text).replace("\N{NARROW NO-BREAK SPACE}", " ").split())


def changed(**fields: Any) -> dict[str, Any]:
    return {**copy.deepcopy(CONTENT), **fields}


def test_the_sentence_tells_every_step_beside_the_teacher():
    said = sentence(CONTENT).replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert said == (
        "The teacher gets 97.2 % of 128 images right. With sima in its place: 36.0 % exchanged and "
        "no more, 93.1 % after the refit. The weights of the refit are kept."
    )


@pytest.mark.parametrize(
    ("missing", "start"),
    [
        (("top1", "teacher_top1"), "With sima, the share of the teacher's own answers on 128"),
        (("top1", "teacher_top1", "agreement", "kl"), "With sima, the cosine of its features"),
    ],
)
def test_without_labels_or_classes_it_tells_what_there_is(missing, start):
    steps = {step: near | dict.fromkeys(missing) for step, near in CONTENT["steps"].items()}
    content = changed(steps=steps)
    assert sentence(content).startswith(start)
    text = words(render(content))
    assert "accuracy CSV" not in text
    assert "97.2 %" not in text


def test_the_page_holds_the_numbers_of_the_record():
    text = words(render(CONTENT))
    for part in (
        "sima in the place of softmax: digits",
        "97.2 % 100.0 %",
        "bare swap 36.0 % 37.0 % 61.0 % 0.800 0.500 128",
        "refit 93.1 % 95.8 % 95.0 % 0.070 0.500 128 1.5 s",
        "blocks.0.attn.proj 0.01 1.250 0.500 0.500 0.250",
        "as it was: no strength lessens its held-out error",
        "1 of 2 layers were fitted",
        "the stream's error is 0.300",
        "softmax 1 000 0 none",
        "blocks.1.attn left: no pattern names it",
        "token_scale tokens",
        "computed in float32",
        "softless recover digits sima",
        "ridge held-out",
        "views chosen",
    ):
        assert part in text, part
    assert "/disk" not in render(CONTENT)


def test_it_loads_and_runs_nothing():
    page = render(CONTENT)
    assert "<script" not in page
    assert "default-src &#x27;none&#x27;" in page
    assert not re.search(r'(?:src|href)="(?!#|data:)', page)


def test_names_are_no_markup():
    request = CONTENT["request"] | {"model": "<script>alert(1)</script>"}
    page = render(changed(request=request, notes=["<img src=x>"]))
    assert "<script" not in page
    assert "<img src=x>" not in page


def test_a_distillation_that_bettered_nothing_says_so():
    run = {"best_epoch": 0, "epochs": 5}
    steps = {**CONTENT["steps"], "distil": NEAR | {"top1": 0.931}}
    content = changed(steps=steps, distilled={"run": run}, seconds={"refit": 1.0, "distil": 200.0})
    text = words(render(content))
    assert "No epoch was better than the start" in text
    assert "after the distillation. The weights of the refit are kept." in text
    run["best_epoch"] = 3
    assert "Epoch 3 of 5 is kept" in words(render(content | {"kept": "distil"}))


def test_a_page_without_layers_or_audit():
    """A distillation alone, of a model that cannot be watched, that came exchanged."""
    content = changed(
        layers=[],
        stream=None,
        images=None,
        swapped=None,
        exponentials={"before": None, "after": None},
    )
    text = words(render(content))
    assert "Exponentials" not in text.replace("Exponentials are counted", "")
    assert "was built anew with sima" in text


def test_rings_and_dots_stand_where_the_axis_says():
    chart = PairChart("Errors", [Pair("a", 1.0, 0.25), Pair("b", 0.5, None)], line=1.0)
    drawing = chart.render("x")
    ticks = {
        float(label): float(place)
        for place, label in re.findall(
            r'<text x="([\d.]+)" y="[\d.]+" class="tick mid">([\d.]+)<', drawing
        )
    }
    ring, dot = (
        [
            float(x)
            for x in re.findall(
                rf'<circle cx="([\d.]+)" cy="[\d.]+" r="[\d.]+" class="{kind}"', drawing
            )
        ]
        for kind in ("ring", "dot")
    )
    assert min(ticks) == 0
    assert ticks[0.0] == LEFT
    assert max(ticks.values()) == WIDTH - RIGHT
    scale = (ticks[max(ticks)] - ticks[0.0]) / max(ticks)
    assert ring == pytest.approx([LEFT + scale, LEFT + 0.5 * scale], abs=0.1)
    assert dot == pytest.approx([LEFT + 0.25 * scale], abs=0.1)
    assert "largest before 1 (a), largest after 0.25 (a)." in drawing


def test_values_far_apart_lie_on_powers_of_ten():
    """Equal ratios are equal distances, so a small error is seen beside a large one."""
    chart = PairChart("Errors", [Pair("a", 100.0, 1.0), Pair("b", 10.0, 0.1)], line=1.0)
    drawing = str(chart.render("errors"))
    spots = [float(x) for x in re.findall(r'cx="([\d.]+)"', drawing)]
    assert spots[0] - spots[1] == pytest.approx(spots[2] - spots[3], abs=0.2)
    assert spots[0] - spots[2] == pytest.approx((WIDTH - LEFT - RIGHT) / 3, abs=0.2)
    assert re.findall(r'class="tick mid">([\d.]+)<', drawing) == ["0.1", "1", "10", "100"]
