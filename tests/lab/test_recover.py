"""Trained softmax models recovered step by step, and the routes side by side."""

import importlib
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from lab.recover import (
    BARS,
    OPERATORS,
    Answers,
    Bench,
    Pooled,
    agreement,
    calibrate,
    cosine,
    divergence,
    outputs,
    recoveries,
)
from lab.routes import ROUTES, Routes, Walked, fit_values, learn_maps, routes, turned
from softless.convert.refit.refit import refit
from softless.errors import UsageError
from tests.exporting.trained import digits_run

module = importlib.import_module("lab.recover")


def answers(right, right_teacher, **changed):
    measured = Answers(
        "good",
        "digits",
        "vit",
        0,
        "sima",
        "refit",
        256,
        right,
        right_teacher,
        0.9,
        0.1,
        0.9,
        2.0,
        60.0,
    )
    return replace(measured, **changed)


def shares(correct, of=100):
    return [True] * correct + [False] * (of - correct)


def test_pooled_over_seeds_against_the_bar():
    pooled = Pooled((answers(shares(96), shares(98)), answers(shares(92), shares(96), seed=1)))
    row = pooled.row()
    assert (row["seeds"], row["test_images"], row["teacher_top1"]) == (2, 100, 0.97)
    assert (row["top1"], row["share"]) == (0.94, round(0.94 / 0.97, 4))
    assert row["difference"] == -0.03
    assert row["difference_low"] < -0.03 < row["difference_high"] <= 0
    assert row["least_share"] == round(92 / 96, 4)
    assert (row["bar"], row["held"]) == (0.93, "met")
    below = Pooled((answers(shares(90), shares(98)),))
    assert (below.row()["bar"], below.row()["held"]) == (0.93, "missed")
    assert module.Recoveries((pooled, below)).exit_code == 1
    assert module.Recoveries((pooled,)).exit_code == 0


def test_bars_hang_on_the_teacher_the_step_and_the_time():
    def bar(teacher, **changed):
        return Pooled((answers(shares(85), shares(teacher), **changed),)).bar

    assert bar(97) == BARS["refit"]["sima"]
    assert bar(97, op="relu_linear", step="distil") == 0.985
    assert bar(87) == 0.88
    assert bar(87, step="distil") is None
    assert bar(60) is None
    assert bar(97, step="bare") is None
    assert bar(97, data="busi") is None
    assert bar(97, op="inline") is None
    assert not Pooled((answers(shares(97), shares(97), seconds=11.0),)).holds
    slow = answers(shares(97), shares(97), step="distil", seconds=12.1)
    assert not Pooled((slow,)).holds
    assert Pooled((replace(slow, seconds=12.0),)).holds


def test_distances_of_answers():
    theirs = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    assert agreement(theirs, torch.tensor([[1.0, 0.0], [1.0, 0.0]])) == 0.5
    assert divergence(theirs, theirs + 3) == pytest.approx(0, abs=1e-12)
    even = divergence(theirs, torch.zeros(2, 2))
    p = np.exp([[2.0, 0.0], [0.0, 1.0]])
    p /= p.sum(1, keepdims=True)
    assert even == pytest.approx(float((p * np.log(2 * p)).sum(1).mean()))
    x = torch.randn(2, 3, 4)
    assert cosine(x, -2 * x) == pytest.approx(-1)
    assert cosine(x, 5 * x) == pytest.approx(1)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return digits_run(tmp_path_factory.mktemp("good"), op="softmax")


@pytest.fixture(scope="module")
def bench(teacher):
    return Bench(teacher)


def test_what_a_bench_holds(bench):
    assert len(bench.images) == 256
    assert len(bench.training_images) == 1200
    assert len(bench.held_out) == 200
    assert len(bench.test) == len(bench.labels) == 397
    assert float((bench.logits.argmax(1) == bench.labels).double().mean()) > 0.7
    student = bench.student("sima")
    assert student.blocks[0].attn.op.name == "sima"
    assert student.blocks[0].attn.options["token_scale"] == "tokens"
    torch.testing.assert_close(student.head.weight, bench.teacher.head.weight)


def test_gains_are_those_of_swap(bench):
    """Of timm's own host with the same weights, `swap(calibrate=)` gives the same model."""
    import timm

    import softless

    own = timm.create_model(
        "vit_tiny_patch16_224",
        patch_size=4,
        embed_dim=32,
        depth=3,
        num_heads=2,
        img_size=16,
        num_classes=10,
        in_chans=1,
    ).eval()
    own.load_state_dict(bench.teacher.state_dict())
    softless.swap(own, "relu_linear", calibrate=bench.images[:32])
    student = bench.student("relu_linear")
    before = outputs(student, bench.test)[0]
    calibrate(student, bench.teacher, bench.images[:32])
    after = outputs(student, bench.test)[0]
    torch.testing.assert_close(after, outputs(own, bench.test)[0], rtol=1e-3, atol=1e-4)
    assert (after - before).norm() > 0.01 * before.norm()


def test_steps_are_measured_once_and_recorded(teacher, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "record_path", lambda name: tmp_path / f"{name}.csv")
    steps = ["refit", "bare", "calibrate"]
    out = tmp_path / "answers"
    ended = recoveries([str(teacher)], ops=["sima"], steps=steps, out=out, record=True)
    rows = {row["step"]: row for row in ended.rows()}
    assert list(rows) == ["bare", "calibrate", "refit"]
    assert rows["bare"]["share"] <= rows["calibrate"]["share"] + 0.05 < rows["refit"]["share"]
    assert rows["refit"]["share"] > 0.75
    assert rows["refit"]["kl"] < rows["bare"]["kl"]
    assert rows["refit"]["images"] == 256
    assert 0 < rows["refit"]["cpu_seconds"] < 60
    assert rows["refit"]["teacher_cpu_seconds"] == ""
    assert (tmp_path / "recover.csv").read_text().count("\n") == 4
    assert "refit" in str(ended)
    with pytest.raises(UsageError, match="is there already"):
        recoveries([str(teacher)], ops=["sima"], steps=steps, out=out)
    monkeypatch.setattr(module, "Bench", None)  # nothing is measured again
    again = recoveries([str(teacher)], ops=["sima"], steps=steps, out=out, resume=True)
    assert json.dumps(again.to_dict()) == json.dumps(ended.to_dict())
    more = ["sima", "seqnorm"]
    assert recoveries([str(teacher)], ops=more, out=out, kept=True).rows() == ended.rows()
    with pytest.raises(UsageError, match="no answers of these runs"):
        recoveries([str(teacher)], ops=["soft"], out=out, kept=True)


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(UsageError, match="no runs"):
        recoveries()
    with pytest.raises(UsageError, match=r"no step named 'refitt'\. Did you mean 'refit'"):
        recoveries([str(tmp_path)], steps=["refitt"])
    with pytest.raises(UsageError, match="no operator named 'smia'"):
        recoveries([str(tmp_path)], ops=["smia"])
    run = digits_run(tmp_path / "sima", token_scale="tokens")
    with pytest.raises(UsageError, match=r"no classifier that was trained with model\.op=softmax"):
        recoveries([str(run)], out=tmp_path / "out")
    with pytest.raises(UsageError, match="no route named 'refti'"):
        routes([str(run)], only=["refti"])
    assert set(OPERATORS) >= set(BARS["refit"])


def test_routes_are_ordered_by_images_that_nobody_was_given(teacher, tmp_path, monkeypatch):
    chosen = ["bare", "refit", "refit, last block softmax", "refit, 4 turned copies"]
    ended = routes([str(teacher)], ops=["relu_linear"], only=chosen, out=tmp_path / "out")
    rows = ended.rows()
    assert {row["route"] for row in rows} == {*chosen}
    assert rows[-1]["route"] == "bare"
    numbers = [row["held_out_agreement"] for row in rows]
    assert numbers == sorted(numbers, reverse=True)
    again = routes(
        [str(teacher)], ops=["relu_linear"], only=chosen, out=tmp_path / "out", resume=True
    )
    assert again == ended
    assert len(ROUTES) >= 8
    both = Routes((
        Walked("a", "sima", "refit", 0.9, 0.2, 0.8, 0.9, 1.0),
        Walked("b", "sima", "refit", 0.7, 0.4, 0.6, 0.7, 3.0),
    ))
    assert both.rows()[0] == {
        "op": "sima",
        "route": "refit",
        "teachers": 2,
        "held_out_agreement": 0.8,
        "held_out_kl": 0.3,
        "test_agreement": 0.7,
        "test_share": 0.8,
        "seconds": 2.0,
    }


def test_values_and_maps_bring_the_branches_nearer(bench):
    """Less of the teacher's branches is missing after a projection fitted to them alone."""

    def errors(change):
        student = bench.student("relu_linear")
        change(student)
        ended = refit(student, bench.teacher, bench.images, refit_mlp=False)
        return ended.layers[0].stream_after

    plain = errors(lambda _: None)
    assert errors(lambda s: fit_values(s, bench.teacher, bench.images)) < 0.98 * plain
    assert errors(lambda s: learn_maps(s, bench.teacher, bench.images)) < 0.98 * plain


def test_turned_copies_hold_the_images_first():
    images = torch.rand(5, 2, 8, 12)
    many = turned(images, 3)
    assert many.shape == (15, 2, 8, 12)
    torch.testing.assert_close(many[:5], images, rtol=0, atol=0)
    for copy in many[5:].split(5):
        assert 0.02 < float((copy - images).abs().mean()) < 0.5
    torch.testing.assert_close(turned(images, 3), many, rtol=0, atol=0)
