"""What the page says against what the run folders hold."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from softless.evaluation import paired_bootstrap, wilson
from softless.report import read_run
from softless.report.choose import chosen
from softless.report.groups import compare_recipes, grouped
from softless.report.headline import verdict
from softless.report.runs import HeldOutPredictions
from softless.report.statistics import ShareEstimate, accuracy, agreement, difference
from softless.tasks.classification.confusion import confusion, draw_confusion
from softless.tasks.cost import draw_cost
from tests.report.folders import write_run


@pytest.fixture(scope="module")
def groups(runs):
    return grouped([read_run(run) for run in runs])


def right(run: Path) -> np.ndarray:
    with np.load(run / "predictions.npz") as held:
        return held["logits"].argmax(1) == held["targets"]


def test_seeds_are_one_model_and_softmax_is_compared_with(groups):
    assert [(group.label, group.seeds) for group in groups] == [
        ("SimA", (0, 1)),
        ("softmax", (0, 1)),
    ]
    assert groups[0].colour != groups[1].colour


def test_accuracy_and_difference_are_those_of_the_answers(groups, runs, page):
    softmax, sima = (np.stack([right(run) for run in pair]) for pair in (runs[:2], runs[2:]))
    expected = paired_bootstrap(sima, softmax)
    found = difference(groups[0], groups[1])
    assert found is not None
    assert (found.value, found.low, found.high) == tuple(expected)
    assert found.value == pytest.approx(sima.mean() - softmax.mean())
    assert found.value > 0.02  # else a swap of the two could not be seen
    assert f"{100 * sima.mean():.2f}" in page
    assert f"+{100 * found.value:.2f}" in page
    counts = agreement(groups[0], groups[1])
    assert counts is not None
    assert (counts.only_first, counts.only_second) == (
        int((sima & ~softmax).sum()),
        int((~sima & softmax).sum()),
    )


def test_one_run_has_wilsons_interval(runs):
    (group,) = grouped([read_run(runs[0])])
    found = accuracy(group)
    assert found is not None
    assert (found.low, found.high) == wilson(int(right(runs[0]).sum()), 360)


def test_nothing_pairs_on_other_images(groups):
    run = groups[1].first
    assert run.predictions is not None
    other = replace(
        run,
        predictions=replace(
            run.predictions, names=tuple("x" + name for name in run.predictions.names)
        ),
    )
    assert difference(groups[0], replace(groups[1], runs=(other,))) is None


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        (-0.01, 0.03, "contains zero: no winner"),
        (
            0.01,
            0.03,
            (
                "SimA is ahead of softmax by 2.00 points (95\N{NARROW NO-BREAK SPACE}% interval "
                "1.0 "
                "to 3.0)"
            ),
        ),
        (
            -0.03,
            -0.01,
            (
                "softmax is ahead of SimA by 2.00 points (95\N{NARROW NO-BREAK SPACE}% interval "
                "1.0 "
                "to 3.0)"
            ),
        ),
    ],
)
def test_the_verdict_claims_no_more_than_the_interval(groups, low, high, says):
    estimates = [ShareEstimate(0.97, 0.96, 0.98, ""), ShareEstimate(0.96, 0.95, 0.97, "")]
    assert says in verdict(
        groups, estimates, [(groups[0], ShareEstimate((low + high) / 2, low, high, ""))]
    )


def test_one_seed_is_said_to_be_one(groups):
    estimates = [ShareEstimate(0.97, 0.96, 0.98, ""), ShareEstimate(0.96, 0.95, 0.97, "")]
    apart = [(groups[0], ShareEstimate(0.01, 0.005, 0.02, ""))]
    assert "one seed" not in verdict(groups, estimates, apart)
    single = [replace(group, runs=group.runs[:1]) for group in groups]
    assert "one seed" in verdict(single, estimates, apart)


def test_confusion_has_the_truth_in_rows(groups):
    counts = confusion(groups[1])
    assert counts.sum() == 720
    assert counts[2].sum() == 2 * 35  # two seeds of 35 twos
    assert counts[2, 7] > 0  # the invented mistake: 3 * 2 + 1
    assert counts[7, 2] < counts[2, 7] + counts[7].sum()
    drawn = draw_confusion(groups[1], counts)
    assert f'title="{counts[2, 7]} of class 2 called 7' in drawn
    assert f"{counts.sum() - np.trace(counts)} of 720 answers are wrong" in drawn


def test_many_classes_are_a_list(groups):
    first = groups[0].first
    many = replace(groups[0], runs=(replace(first, classes=tuple(f"c{i}" for i in range(40))),))
    counts = np.eye(40, dtype=np.int64)
    counts[3, 5] = 2
    drawn = draw_confusion(many, counts)
    assert "<table" not in drawn
    assert "c3 taken for c5 (2)" in drawn


def test_samples_are_sure_mistakes_then_every_class():
    targets = np.arange(20) % 10
    logits = np.eye(10, dtype=np.float32)[targets] * 4
    logits[4] = np.eye(10)[9] * 3  # wrong
    logits[7] = np.eye(10)[0] * 8  # wrong and surer
    picked = chosen([HeldOutPredictions(logits, targets, tuple(map(str, range(20))))], 8)
    assert picked[:2] == [7, 4]
    assert len(picked) == len(set(picked)) == 8
    assert [targets[i] for i in picked[2:]] == [0, 1, 2, 3, 5, 6]  # classes not shown yet


def test_a_model_that_is_mostly_wrong_still_fills_the_grid():
    targets = np.arange(20) % 10
    logits = np.eye(10, dtype=np.float32)[(targets + 1) % 10] * 4
    logits[3] = np.eye(10)[3] * 4
    picked = chosen([HeldOutPredictions(logits, targets, tuple(map(str, range(20))))], 8)
    assert len(set(picked)) == 8
    assert picked[-1] == 3


def test_fields_that_differ_and_that_are_shared(groups):
    compared = compare_recipes(groups)
    assert compared.differing == {
        "model.op": ["sima", "softmax"],
        "model.args.token_scale": ["tokens", None],
    }
    assert compared.shared["optim.lr"] == 2e-3
    assert "seed" not in compared.shared


def test_cost_counts_exponentials_apart(groups):
    rows = dict(
        re.findall(r'<th scope="row"><span>([^<]*)<small>.*?</th>(.*?)</tr>', draw_cost(groups))
    )
    cells = {name: re.findall(r"<td>(.*?)</td>", row) for name, row in rows.items()}
    tokens, heads, depth = 65, 2, 2
    assert cells["Exponentials in attention"][:2] == [
        "0",
        f"{heads * depth * tokens**2:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"),
    ]
    assert (
        cells["Transcendentals in activations"][0]
        == cells["Transcendentals in activations"][1]
        != "0"
    )
    assert cells["Parameters"][0] == cells["Parameters"][1]


def test_measured_speed_is_shown_with_how(page):
    assert "Images per second, evaluation<small>batch 64</small>" in page
    assert "1.25×" in page  # 2,500 against 2,000


def test_models_of_one_operator_are_told_apart_by_folder(tmp_path):
    folders = [
        write_run(tmp_path / name, embed_dim=dim) for name, dim in (("narrow", 16), ("broad", 32))
    ]
    assert [group.label for group in grouped([read_run(folder) for folder in folders])] == [
        "narrow",
        "broad",
    ]


def test_both_kinds_of_weights_are_drawn(tmp_path):
    from softless.report.curves import draw_curves

    folder = write_run(tmp_path / "run", epochs=3)
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line["val"] = {**line["val"], "top1": 0.456}
        line["val_ema"] = {**line["val"], "top1": 0.123}
    run = replace(read_run(folder), epochs=lines)
    old = draw_curves(grouped([run]))  # of an older softless, which chose from the average alone
    assert "12.3" in old
    assert "45.6" not in old
    both = draw_curves(
        grouped([replace(run, epochs=[{**line, "weights": "raw"} for line in lines])])
    )
    assert "12.3" in both
    assert "45.6" in both
    assert "averaged weights, thin dashed ones the raw weights" in both
    assert both.count("curve second") == 1


def test_the_page_says_what_was_fitted_to_the_data(tmp_path):
    from softless.report.provenance import draw_provenance

    run = read_run(write_run(tmp_path / "run", epochs=3))
    fitted = replace(
        run, fitted={"batch_size": 16, "ema_decay": 0.9974968671, "schedule.decay_epochs": [3, 6]}
    )
    assert "fitted" not in draw_provenance(grouped([run]), [])
    shown = draw_provenance(grouped([fitted]), [])
    assert (
        "fitted to the data: batch_size 16, ema_decay 0.997497, schedule.decay_epochs [3, 6]."
        in shown
    )
    assert shown.count("fitted") == 1, "it is no version of anything"


def test_the_page_says_what_was_still_rising(tmp_path):
    from softless.report.provenance import draw_provenance

    run = read_run(write_run(tmp_path / "run", epochs=3))
    rising = replace(run, result={**run.result, "rising": True, "gained": 0.034, "metric": "top1"})
    assert "still rising" not in draw_provenance(grouped([run]), [])
    assert "added +3.4 points of top-1 on validation images" in draw_provenance(
        grouped([rising]), []
    )
