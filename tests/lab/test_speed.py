"""`bench speed`: who is timed and whether it computes what it is said to, ratios, bars, crossovers,
files. No test looks at a time.
"""

import csv
import importlib
import json
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from lab.__main__ import run
from lab.speed import (
    Work,
    bars,
    block,
    contract,
    figures,
    memory,
    models,
    optimized,
    pace,
    products,
    rivals,
    speed,
    training,
)
from lab.speed import stream as streaming
from lab.speed.bars import BARS, Bar, judge
from lab.speed.contract import WrongAnswer
from lab.speed.crossover import crossovers
from lab.speed.figures import FIGURES
from lab.speed.study import Study
from lab.speed.work import Case
from softless.cli.main import main
from softless.compare.timing import Timings
from softless.errors import SoftlessError, UsageError
from tests.ops.draw import assert_near

package = importlib.import_module("lab.speed")
DEIT, XCIT = "deit_tiny_patch16_224", "xcit_nano_12_p16_224"
SMALL = {
    "block": [Work("float32", 2, 9, 32, 4), Work("bfloat16", 1, 49, 32, 4)],
    "compiled": [Work("float32", 1, 9, 32, 4)],
    "deit": [Work("bfloat16", 1, 5, 192, 3, 32, DEIT)],
    "xcit": [Work("float32", 1, 4, 128, 4, 32, XCIT)],
    "training": [Work("float32", 2, 9, 32, 4), Work("bfloat16", 1, 49, 32, 4)],
    "tokens": [Work("float32", 2, 9, 32, 4), Work("bfloat16", 1, 49, 32, 4)],
    "width": [Work("float32", 2, 9, 32, 4), Work("float32", 1, 9, 64, 1)],
    "merging": [Work("float32", 2, 9, 32, 4), Work("bfloat16", 1, 49, 32, 4)],
    "projected": [Work("float32", 2, 9, 32, 4), Work("bfloat16", 1, 49, 32, 4)],
    "seqnorm": [Work("float32", 2, 9, 32, 4), Work("bfloat16", 1, 49, 32, 4)],
    "optimized": [Work("float32", 1, 5, 192, 3, 32, DEIT)],
    "optimized_xcit": [Work("float32", 1, 4, 128, 4, 32, XCIT)],
    "memory": [Work("float32", 1, 49, 24, 3), Work("float32", 1, 196, 24, 3)],
    "layer": [Work("float32", 1, 5000, 32, 4), Work("bfloat16", 1, 5000, 32, 4)],
    "stream": [Work("float32", 1, 5, 192, 3, 32, DEIT)],
}
SOFTMAX = {"bare", "sima", "published", "softmax"}
TAKES_PART = {
    "block": SOFTMAX | {"xca"},
    "compiled": {"bare", "sima", "published", "compiled"},
    "deit": SOFTMAX,
    "xcit": {"sima", "published", "xca"},
    "training": SOFTMAX,
    "tokens": {"sima", "published", "published_tokens", "softmax", "softmax_matrix"},
    "width": {"sima", "published", "published_channels", "xca"},
    "merging": {"bare", "merged", "apart", "packed"},
    "projected": {"bare", "inside", "apart"},
    "seqnorm": {"seqnorm", "seqnorm_torch", "sima"},
    "optimized": {
        "optimized",
        "sima",
        "bare",
        *(f"openvino_{name}" for name in ("published", "softmax", "bare", "linear")),
    },
    "optimized_xcit": {"optimized", "sima", "xca", "openvino_published", "openvino_xca"},
    "memory": {*memory.OPERATORS, "softmax_matrix"},
    "layer": {"streamed", "published", "linear"},
    "stream": {"streamed", "optimized", "published"},
}


def taking(name):
    """Who takes part here: OpenVINO is an extra."""
    return {
        rival
        for rival in TAKES_PART[name]
        if optimized.has_openvino() or not rival.startswith(optimized.OPENVINO)
    }


def in_this_process(name, work, rounds):
    asked = {
        "dtype": work.dtype,
        "pixels": work.pixels,
        "host": work.host,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
    }
    return streaming.alone(rival=name, **asked)


def small(name, tmp_path, **given):
    return speed(name, works=SMALL[name], seconds=0.0, out=tmp_path, **given)


@pytest.mark.parametrize("name", FIGURES)
def test_every_figure_is_a_table_a_chart_and_rows(name, tmp_path, monkeypatch):
    asked = []

    def compiled(module, **how):
        asked.append(how)
        return module

    monkeypatch.setattr(torch, "compile", compiled)
    # OpenVINO takes its time
    for module in (optimized.timm, optimized) if name.startswith("optimized") else ():
        monkeypatch.setattr(module, "create_model", partial(module.create_model, depth=2))
    monkeypatch.setattr(streaming, "in_a_process", in_this_process)
    study = small(name, tmp_path)
    assert bool(asked) == (name == "compiled")
    assert len(study.cases) == len(SMALL[name])
    for case in study.cases:
        assert set(case.rivals) == set(case.paths) == set(case.errors) == taking(name)
        assert all(0 <= error < contract.BOUND[case.work.kind] for error in case.errors.values())
    assert study.recorded is not None
    with study.recorded.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(study.rows())
    assert {row["rival"] for row in rows if row["kind"] == "rival"} == taking(name)
    assert all(row["commit"] and row["threads"] == "1" and row["load"] for row in rows)
    assert all(row["path"] for row in rows if row["kind"] == "rival")
    drawn = study.chart.read_text(encoding="utf-8")
    assert all(f"<!-- {rival} -->" in drawn for rival in taking(name))
    assert all(
        line in str(study) for line in (study.title, *(f"\n{rival} " for rival in taking(name)))
    )


def test_rivals_of_a_figure_look_different():
    assert set(figures.LOOKS) == set().union(*TAKES_PART.values())
    for taking in TAKES_PART.values():
        assert len({figures.LOOKS[rival] for rival in taking}) == len(taking)


@pytest.mark.parametrize("name", FIGURES)
def test_no_size_is_drawn_twice_in_a_panel(name):
    figure = FIGURES[name]
    places = [
        (*(getattr(work, setting) for setting in figure.apart), getattr(work, figure.axis))
        for work in figure.works
    ]
    assert len(set(places)) == len(places)


def test_a_narrow_axis_has_more_than_one_tick(tmp_path):
    from lab.charts import Line, Panel, draw_panels
    from softless.compare.timing import Spread

    points = [(size, Spread.of([value])) for size, value in ((10, 0.9), (20, 1.0), (40, 1.15))]
    drawn = (
        draw_panels([Panel("ratio", "tokens", [Line("a", points, 0)])])
        .save(tmp_path / "a.svg", "A chart")
        .read_text()
    )
    assert all(f"<!-- {tick} -->" in drawn for tick in ("0.9", "1", "1.1"))


def test_merged_and_apart_are_what_they_are_called():
    case = block.measure_merging(Work("float32", 1, 9, 32, 4), 0.0)
    assert case.paths["merged"].endswith("merged projection")
    assert case.paths["apart"].endswith("projection apart")
    assert case.paths["packed"].endswith("projection apart")
    step = training.measure_projected(Work("float32", 1, 4000, 32, 4), 0.0)
    assert step.paths["inside"].endswith("both projections inside")
    assert step.paths["apart"].endswith("projection apart")
    assert step.peaks["inside"] < step.peaks["apart"]


def test_every_figure_was_tried():
    assert set(SMALL) == set(TAKES_PART) == set(FIGURES)
    assert all(
        case.bases == () or set(case.bases) <= TAKES_PART[name] for name, case in FIGURES.items()
    )


class Zero(rivals.Published):
    """Attention switched off: what a whole-model check of random weights would not see."""

    def forward(self, x, **_):
        return self.proj(0 * self.qkv(x)[..., : x.shape[-1]])


class Unnormalised(rivals.Published):
    def forward(self, x, **_):
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        )
        return self.proj((q @ (k.mT @ v)).transpose(1, 2).flatten(2))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["block", "training", "compiled"])
@pytest.mark.parametrize("wrong", [Zero, Unnormalised])
def test_nothing_is_reported_of_a_rival_that_computes_something_else(
    dtype, name, wrong, tmp_path, monkeypatch
):
    monkeypatch.setattr(rivals, "MODULES", {**rivals.MODULES, "sima": wrong})
    monkeypatch.setattr(rivals, "PATHS", {**rivals.PATHS, wrong: "wrong"})
    monkeypatch.setattr(torch, "compile", lambda module, **_: module)
    with pytest.raises(WrongAnswer, match=r"'sima' is .* off the float64 reference") as error:
        speed(name, works=[replace(SMALL[name][0], dtype=dtype)], seconds=0.0, out=tmp_path)
    assert error.value.exit_code == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["deit", "xcit"])
def test_a_model_whose_attention_is_off_is_refused(name, tmp_path, monkeypatch):
    """Twelve layers of which one has its branch switched off: the logits hardly move, the layer's
    own check does.
    """
    right = models.create_model

    def broken(*args, **kwargs):
        model: Any = right(*args, **kwargs)
        layer = model.blocks[-1].attn
        layer.forward = lambda x, **_: layer.proj(torch.zeros_like(x))
        return model

    monkeypatch.setattr(models, "create_model", broken)
    with pytest.raises(WrongAnswer, match="output of 'sima'"):
        small(name, tmp_path)


def test_a_model_that_differs_outside_its_attention_is_refused(tmp_path, monkeypatch):
    right = models.create_model

    def broken(*args, **kwargs):
        model: Any = right(*args, **kwargs)
        model.blocks[3].local_mp.act = torch.nn.ReLU()
        return model

    monkeypatch.setattr(models, "create_model", broken)
    with pytest.raises(WrongAnswer, match="logits beside those of 'published'"):
        small("xcit", tmp_path)


def test_a_wrong_gradient_is_refused(tmp_path, monkeypatch):
    class Detached(rivals.Published):
        """The right output; its norms are constants in the backward pass."""

        def forward(self, x, **_):
            q, k, v = (
                self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
            )
            q, k = (part / part.abs().sum(-2, keepdim=True).detach() for part in (q, k))
            return self.proj((q @ (k.mT @ v)).transpose(1, 2).flatten(2))

    monkeypatch.setattr(rivals, "MODULES", {**rivals.MODULES, "sima": Detached})
    monkeypatch.setattr(rivals, "PATHS", {**rivals.PATHS, Detached: "wrong"})
    with pytest.raises(WrongAnswer, match="gradient of 'sima'"):
        small("training", tmp_path)


def test_a_compiler_that_computes_something_else_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, **_: lambda x: 1.01 * module(x))
    with pytest.raises(WrongAnswer, match="output of 'compiled'"):
        small("compiled", tmp_path)


@pytest.mark.parametrize("op", ["sima", "linformer"])
def test_memory_is_that_of_the_right_answer(op, tmp_path, monkeypatch):
    right = memory.module

    def wrong(name, *args):
        made = right(name, *args)
        if name == op:
            made.register_forward_hook(lambda _, __, out: 1.01 * out)
        return made

    monkeypatch.setattr(memory, "module", wrong)
    monkeypatch.setattr(memory, "OPERATORS", ("softmax", op))
    with pytest.raises(WrongAnswer, match=f"output of '{op}'"):
        small("memory", tmp_path)


@pytest.mark.parametrize("name", ["optimized", "optimized_xcit"])
def test_an_optimized_model_that_answers_something_else_is_refused(name, tmp_path, monkeypatch):
    """One block of twelve loses its attention, after every branch was brought to a size that
    counts.
    """
    right = optimized.optimize
    monkeypatch.setattr(optimized, "has_openvino", lambda: False)

    def broken(*args):
        model: Any = right(*args)
        model.blocks[5].attn.forward = lambda _, onto, **__: onto
        return model

    monkeypatch.setattr(optimized, "optimize", broken)
    for dtype in ("float32", "bfloat16"):
        with pytest.raises(WrongAnswer, match="logits of 'optimized'"):
            speed(name, works=[replace(SMALL[name][0], dtype=dtype)], seconds=0.0, out=tmp_path)


def test_openvino_is_left_out_in_so_many_words(tmp_path, monkeypatch):
    monkeypatch.setattr(optimized, "has_openvino", lambda: False)
    study = small("optimized", tmp_path)
    assert {*study.cases[0].rivals} == {"optimized", "sima", "bare"}
    assert 'OpenVINO is left out: pip install "softless[openvino]"' in str(study)
    assert study.to_dict()["note"]
    assert "left out" not in str(small("training", tmp_path))


def test_openvino_computes_all_linear_layers_where_they_are_read():
    """Of the bare model it leaves out the projection that nobody reads; `linear` is bare without
    that gift.
    """
    openvino = pytest.importorskip("openvino")
    sizes = {}
    for kind in (rivals.Bare, optimized.Linear):
        module = kind(32, 4, qkv_bias=True).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's
            graph = openvino.convert_model(module, example_input=torch.randn(1, 9, 32))
        sizes[kind] = sum(op.get_type_name() == "MatMul" for op in graph.get_ordered_ops())
    assert sizes == {rivals.Bare: 1, optimized.Linear: 2}


def test_every_branch_is_brought_to_a_size_that_counts():
    from softless.models.create import create_model

    model: Any = create_model(XCIT, op="sima", depth=2).eval()
    images = torch.rand(1, 3, 32, 32)
    optimized.enliven(model, images)
    found = []
    for layer in [*model.blocks, *model.cls_attn_blocks]:
        layer.attn.register_forward_hook(
            lambda module, given, out: found.append(
                float(
                    (out - module.proj.bias).norm()
                    / out.numel() ** 0.5
                    / given[0].square().mean().sqrt()
                )
            )
        )
    with torch.inference_mode():
        model(images)
    assert found == pytest.approx([optimized.SHARE] * 4, rel=1e-3)


@pytest.mark.parametrize("name", ["tokens", "width"])
def test_a_wrong_product_is_refused(name):
    table = {
        rival: (
            op,
            (lambda q, k, v: 1.01 * products.in_order(q, k, v, tokens=True))
            if rival == "published"
            else run,
        )
        for rival, (op, run) in {"tokens": products.OVER_TOKENS, "width": products.OVER_WIDTH}[
            name
        ].items()
    }
    with pytest.raises(WrongAnswer, match="'published'"):
        products.measure(SMALL[name][0], 0.0, table)


def test_what_the_rivals_multiply():
    """Bare is the two projections and nothing else; the papers' protocol fixes the order of the
    products.
    """
    B, N, D, H = 2, 10, 32, 4
    d = D // H
    with FlopCounterMode(display=False) as counted:
        rivals.Bare(D, H)(torch.randn(B, N, D))
    assert counted.get_total_flops() == 8 * B * N * D * D
    q, k, v = torch.randn(3, B, H, N, d)
    for tokens, flops in ((True, 4 * B * H * N * N * d), (False, 4 * B * H * N * d * d)):
        with FlopCounterMode(display=False) as counted:
            out = products.in_order(q, k, v, tokens=tokens)
        assert counted.get_total_flops() == flops
        torch.testing.assert_close(out, products.published(q, k, v))


def test_all_rivals_have_the_same_weights():
    made = rivals.attention_modules(
        32, 4, ["bare", "sima", "published", "softmax", "xca"], torch.bfloat16
    )
    first = made["bare"].state_dict()
    assert first["qkv.bias"].abs().min() > 0
    assert not first["proj.bias"].any()
    for name, module in made.items():
        state = module.state_dict()
        assert set(state) - set(first) == ({"temperature"} if name == "xca" else set())
        assert all(torch.equal(state[key], first[key]) for key in first)
        assert not module.training


def test_published_xcit_takes_all_weights_of_ours():
    import timm

    from softless.models.create import create_model

    published, ours = models.with_published(timm.create_model(XCIT)), create_model(XCIT, op="sima")
    assert rivals.share_weights(published, ours) == []
    assert {type(each.attn) for each in published.blocks} == {rivals.Published}
    assert {type(each.attn) for each in published.cls_attn_blocks} == {rivals.PublishedClass}


def test_the_matrix_is_held_and_the_others_grow_with_the_tokens(tmp_path):
    study = speed("memory", works=[Work("float32", 1, n, 24, 3) for n in (196, 784)], out=tmp_path)
    few, many = (case.peaks for case in study.cases)
    assert many["softmax_matrix"] > 3 * 784 * 784 * 4
    assert many["softmax_matrix"] > 12 * few["softmax_matrix"]
    assert many["sima"] < 4.5 * few["sima"]
    assert many["sima"] < many["softmax_matrix"] / 10


def case(dtype="float32", **seconds):
    return Case(Work(dtype, 1, 9216), {}, dict.fromkeys(seconds, "a way"), Timings(seconds))


def test_ratios_say_who_is_slower():
    study = Study(
        "block",
        "Title",
        (case(bare=[1.0, 2, 3], sima=[1.2, 2.4, 3.3], softmax=[6, 12, 18]),),
        ("bare", "sima"),
        (),
        (),
        0.0,
        Path(),
    )
    bare, ours, softmax = study.rows()
    assert (ours["ms"], ours["to_bare"], ours["to_bare_quarters"]) == (2400, 1.2, "1.15 to 1.2")
    assert (softmax["to_bare"], softmax["to_sima"]) == (6, 5)
    assert "to_bare" not in bare
    assert bare["to_sima"] == 0.8333
    assert "busy" not in str(study)
    assert "busy (load 2.5)" in str(replace(study, load=2.5))


def test_bars_are_met_or_missed_and_stay():
    slow = case("bfloat16", bare=[1.0], sima=[1.5], published=[1.4])
    fast = case("float32", bare=[1.0], sima=[1.05], published=[2.0])
    found = judge("block", [slow, fast])
    said = {
        (one.work.dtype, one.row()["ratio"], one.row()["bar"]): one.row()["verdict"]
        for one in found
    }
    assert said == {
        ("bfloat16", "sima / bare", "≤ 1.40"): "missed",
        ("float32", "sima / bare", "≤ 1.08"): "met",
        ("bfloat16", "sima / published", "≤ 1.02"): "missed",
        ("float32", "sima / published", "≤ 1.02"): "met",
    }
    study = Study("block", "Title", (slow, fast), ("bare",), tuple(found), (), 0.0, Path())
    assert study.to_dict()["met"] is False
    assert [row["measured"] for row in study.to_dict()["missed"]] == [1.5, 1.071]
    assert str(study).count("missed") == 2
    assert not hasattr(study, "exit_code")  # a busy machine is no failure
    assert replace(study, verdicts=()).to_dict()["met"] is True


def test_a_bar_of_at_least_and_one_of_memory():
    faster = case("bfloat16", compiled=[1.3], sima=[1.0])
    assert [one.met for one in judge("compiled", [faster])] == [True]
    assert [
        one.met for one in judge("compiled", [case("bfloat16", compiled=[1.2], sima=[1.0])])
    ] == [False]
    for held, met in ((50, True), (60, False)):
        step = replace(case(sima=[0.4], published=[1.0]), peaks={"sima": held, "published": 100})
        found = [(one.bar.quantity, one.met) for one in judge("training", [step])]
        assert found == [("time", True), ("memory", met)]


@pytest.mark.parametrize(
    "bar", BARS, ids=lambda bar: f"{bar.figure}-{bar.over}-{bar.under}-{bar.bound}"
)
def test_every_bar_is_about_work_that_is_measured(bar):
    fitting = [work for work in FIGURES[bar.figure].works if bar.fits(work)]
    assert fitting
    assert {bar.over, bar.under} - {""} <= TAKES_PART[bar.figure]
    assert bar.under != "softmax"


def test_the_bars_are_those_of_the_issue():
    wanted = {
        ("block", "float32", 9216): 1.08,
        ("block", "bfloat16", 9216): 1.40,
        ("block", "float32", 196): 1.22,
        ("block", "bfloat16", 196): 1.5,
    }
    found = {
        (bar.figure, bar.setting["dtype"], bar.setting["tokens"]): bar.bound
        for bar in BARS
        if bar.under == "bare" and bar.figure == "block"
    }
    assert found == wanted
    against = next(bar for bar in BARS if bar.figure == "block" and bar.under == "published")
    fitting = {(work.dtype, work.batch, work.tokens) for work in block.WORKS if against.fits(work)}
    assert {tokens for _, _, tokens in fitting} == {49, 196, 576, 2304, 9216, 65_536}
    assert {(dtype, batch) for dtype, batch, _ in fitting} == {
        (d, b) for d in ("float32", "bfloat16") for b in (1, 8)
    }
    optimize = {
        (bar.under, bar.setting["pixels"]): bar.bound for bar in BARS if bar.figure == "optimized"
    }
    assert optimize == {
        **{
            (f"openvino_{name}", pixels): bound
            for pixels in (224, 768)
            for name, bound in (("published", 1.0), ("bare", 1.1), ("linear", 1.1))
        },
        ("bare", 1536): 0.8,
    }
    assert len(BARS) == 6 + 1 + 1 + 7 + 4 + 4 + 7 + 2


def test_where_softmax_is_faster():
    def at(tokens, ratio, dtype="float32"):
        return replace(case(dtype, softmax=[ratio], sima=[1.0]), work=Work(dtype, 1, tokens))

    both = [
        at(2304, 4.0),
        at(144, 0.5),
        at(576, 2.0),
        at(196, 4.0, "bfloat16"),
        at(196, 0.5, "float32"),
    ]
    first, second = crossovers(both, "sima", "softmax", "tokens", ("dtype", "batch"))
    assert first.slower == (144, 196)
    # from half to twice: the middle, in logarithms
    assert first.at == pytest.approx((196 * 576) ** 0.5)
    assert first.sentence == "softmax is faster at 144, 196 tokens; ours from about 336 tokens on"
    assert second.sentence == "softmax is faster at no size measured, 196 tokens"
    assert first.row()["dtype"] == "float32"
    (lost,) = crossovers([at(196, 0.9)], "sima", "softmax", "tokens", ("dtype",))
    assert (lost.at, lost.sentence) == (
        None,
        "softmax is faster at 196 tokens, the only size measured",
    )
    (most,) = crossovers([at(196, 2.0), at(576, 0.9)], "sima", "softmax", "tokens", ("dtype",))
    assert (most.at, most.sentence) == (
        None,
        "softmax is faster at 576 tokens, the largest size measured",
    )
    assert crossovers([case(sima=[1.0])], "sima", "softmax", "tokens", ("dtype",)) == []


def test_the_crossover_is_in_the_chart(tmp_path):
    from lab.charts import draw_panels
    from softless.compare.charts import COLOURS

    ratios = {144: 0.5, 576: 2.0}
    cases = [
        replace(case(softmax=[ratio], sima=[1.0], bare=[0.5]), work=Work("float32", 1, n))
        for n, ratio in ratios.items()
    ]
    figure = FIGURES["block"]
    marks = figure.crossovers(cases)
    (panel,) = figure.panels(cases, marks)
    assert [(line.name, [point[0] for point in line.points]) for line in panel.lines] == [
        (name, [144, 576]) for name in ("softmax", "sima", "bare")
    ]
    assert [value.median for _, value in panel.lines[0].points] == [1.0, 4.0]  # to bare
    assert panel.marks == ((pytest.approx(288), "← softmax is faster"),)
    first, second = (
        draw_panels([panel]).save(tmp_path / name, "A chart").read_bytes()
        for name in ("a.svg", "b.svg")
    )
    assert first == second
    assert b"softmax is faster" in first
    assert all(
        COLOURS[figures.LOOKS[name]].encode() in first for name in ("softmax", "sima", "bare")
    )
    eight = [replace(one, work=replace(one.work, batch=8, pixels=224)) for one in cases[:1]]
    (timed,) = FIGURES["deit"].panels(eight, [])
    # ms of one image of eight
    assert [value.median for _, value in timed.lines[1].points] == [125.0]
    assert len(figure.panels([*cases, *eight], marks)) == 1  # one size makes no line
    step = [replace(one, peaks=dict.fromkeys(one.rivals, 2**20)) for one in cases]
    time, held = FIGURES["training"].panels(step, FIGURES["training"].crossovers(step))
    assert (len(time.marks), len(held.marks)) == (1, 0)
    assert [value.median for _, value in held.lines[0].points] == [1.0, 1.0]  # MiB
    # where softmax takes no part
    alone = replace(case(sima=[1.0]), work=Work("float32", 1, 9216), peaks={"sima": 2**20})
    lines = {
        line.name: [at for at, _ in line.points]
        for line in FIGURES["training"].panels([*step, alone], [])[0].lines
    }
    assert (lines["softmax"], lines["sima"]) == ([144, 576], [144, 576, 9216])


@pytest.mark.parametrize(
    ("each", "seconds", "rounds"), [(0.001, 4.0, 101), (0.2, 4.0, 9), (9.0, 4.0, 7), (0.5, 0.0, 7)]
)
def test_rounds_fit_into_the_seconds(each, seconds, rounds):
    now, called = 0.0, {"a": 0, "b": 0}

    def call(name):
        def run():
            nonlocal now
            now += each
            called[name] += 1

        return run

    timed = pace.paced({name: call(name) for name in called}, seconds, clock=lambda: now)
    assert len(timed.seconds["a"]) == len(timed.seconds["b"]) == rounds
    assert rounds < called["a"] <= rounds + 3  # those before are dropped
    assert timed.seconds["a"] == pytest.approx([each] * rounds)


def test_from_the_command_line(tmp_path, monkeypatch, capsys):
    short = replace(
        FIGURES["block"],
        works=tuple(SMALL["block"][:1]),
        measure=lambda work, _: block.measure(work, 0.0),
    )
    monkeypatch.setattr(figures, "FIGURES", {"block": short})
    assert (
        main(
            [
                "speed",
                "--figure",
                "block",
                "--threads",
                "2",
                "--out",
                str(tmp_path),
                "--json",
            ],
            run=run,
        )
        == 0
    )
    found = json.loads(capsys.readouterr().out)
    assert {row["rival"] for row in found["rows"] if row["kind"] == "rival"} == TAKES_PART["block"]
    assert found["met"] is True
    with (tmp_path / "speed_block.csv").open(encoding="utf-8") as file:
        assert {row["threads"] for row in csv.DictReader(file)} == {"2"}
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "pass --figure block, compiled, deit"),
        (["--figure", "blok"], "Did you mean 'block'?"),
        (["--figure", "block", "--record", "--out", "x"], "choose one of them"),
        (["--figure", "block", "--recipe", "folder"], "lab speed has no option '--recipe'"),
    ],
)
def test_misuse(words, said, capsys):
    assert main(["speed", *words], run=run) == 2
    assert said in capsys.readouterr().err


def test_a_figure_belongs_to_speed(capsys):
    assert main(["operators", "--figure", "block"], run=run) == 2
    assert "lab operators has no option '--figure'" in capsys.readouterr().err


def test_compiling_needs_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        UsageError, match="needs a C\\+\\+ compiler, and there is no 'no-such-compiler'"
    ):
        small("compiled", tmp_path)


def test_the_record_goes_to_the_repository(tmp_path, monkeypatch):
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(
        package, "record_path", lambda name: tmp_path / "benchmarks" / f"{name}.csv"
    )
    chart = tmp_path / "docs" / "figures" / "speed_training.svg"
    write = package.write_csv

    def first(path, rows):
        assert not chart.exists()  # a chart changes the tree, and the rows say whether it was clean
        return write(path, rows)

    monkeypatch.setattr(package, "write_csv", first)
    study = speed("training", works=SMALL["training"], seconds=0.0, record=True)
    assert study.recorded == tmp_path / "benchmarks" / "speed_training.csv"
    assert study.chart == tmp_path / "docs" / "figures" / "speed_training.svg"
    assert (tmp_path / "benchmarks" / "speed_training.csv").is_file()
    assert study.chart.is_file()


def test_the_bars_module_knows_no_other_figures():
    assert {bar.figure for bar in BARS} <= set(FIGURES)
    assert isinstance(bars.BARS[0], Bar)


def test_a_bar_of_megabytes_is_about_one_rival() -> None:
    bar = Bar("layer", "streamed", "", "<=", 32, {"tokens": 9}, "memory")
    for peak, met in ((31_000_000, True), (33_000_000, False)):
        case = Case(Work("bfloat16", 1, 9), {}, {}, None, {"streamed": peak})
        (verdict,) = judge("layer", [case], [bar])
        assert verdict.met == met
        assert (verdict.row()["ratio"], verdict.row()["of"], verdict.row()["measured"]) == (
            "streamed",
            "MB",
            peak / 1e6,
        )


def test_a_streamed_layer_without_its_attention_is_not_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def without(block: Any, x: torch.Tensor, _: int) -> torch.Tensor:
        x = x + block.attn.proj.bias
        return block.mlp(block.norm2(x), onto=x)

    monkeypatch.setattr(streaming, "layer_in_chunks", without)
    with pytest.raises(SoftlessError, match="'streamed'"):
        streaming.measure_layer(Work("bfloat16", 1, 4096, 48, 4), 0.0)


@pytest.mark.extra
def test_a_process_of_its_own_counts_its_memory() -> None:
    """The residual stream of 16,385 tokens and a chunk are less than half of what all tokens at
    once take; a process that fails is an error that names it.
    """
    work = Work("float32", 1, 16_385, 192, 3, 2048, "deit_tiny_patch16_224")
    streamed, whole = (streaming.in_a_process(name, work, 1) for name in ("streamed", "optimized"))
    assert 12e6 < streamed["peak"] < whole["peak"] / 2
    assert_near(torch.tensor(streamed["logits"]), torch.tensor(whole["logits"]), 1e-5)
    with pytest.raises(SoftlessError, match="the process of 'sima'"):
        streaming.in_a_process("sima", replace(work, pixels=1000), 1)
