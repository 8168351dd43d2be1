"""Charts, strips, ticks and numbers."""

import re
from itertools import pairwise

import pytest

from softless.report.charts import HEIGHT, LEFT, RIGHT, WIDTH, EpochCurve, LineChart
from softless.report.html import Html, join, tag
from softless.report.intervals import Strip, axis, draw
from softless.report.numbers import count, duration, percent, plain, points, ratio, short, size
from softless.report.ticks import ticks, whole_ticks


def chart(*lines, **options):
    return LineChart("Loss", lines, "{:.2f}".format, "{:.1f}".format, **options)


def dots(drawn):
    return [
        [tuple(map(float, dot.split(","))) for dot in found.split()]
        for found in re.findall(r'points="([^"]*)"', drawn)
    ]


def test_a_curve_goes_up_where_its_values_do_and_fills_the_axis():
    (curve,) = dots(chart(EpochCurve("a", "s0", [1.0, 2.0, 4.0])).render("c"))
    assert curve[0][0] == LEFT
    assert curve[-1][0] == WIDTH - RIGHT
    assert curve[0][1] > curve[1][1] > curve[2][1] >= 0
    assert curve[0][1] - curve[1][1] == pytest.approx((curve[1][1] - curve[2][1]) / 2, abs=0.2)
    assert curve[0][1] < HEIGHT


def test_missing_values_leave_no_dot():
    (curve,) = dots(chart(EpochCurve("a", "s0", [1.0, None, 3.0])).render("c"))
    assert len(curve) == 2


def test_every_epoch_has_a_tooltip_and_the_chart_has_words():
    drawn = chart(EpochCurve("SimA", "s0", [3.0, 1.0, 2.0]), better="lower").render("c")
    assert re.findall(r"<title>(epoch \d)", drawn) == ["epoch 1", "epoch 2", "epoch 3"]
    assert re.findall(r'y="231" class="tick mid">(\d)', drawn) == ["1", "2", "3"]
    assert "SimA from 3.00 to 2.00 after 3 epochs, lowest 1.00 at epoch 2" in drawn


def test_one_epoch_and_nothing_at_all():
    assert "<circle" in chart(EpochCurve("a", "s0", [1.0])).render("c")
    assert "Nothing was logged" in chart(EpochCurve("a", "s0", [None])).render("c")


def test_seeds_lie_behind_means_and_the_base_behind_the_others():
    drawn = chart(
        EpochCurve("a", "s0", [1.0, 2.0]),
        EpochCurve("a1", "s0", [1.0, 2.0], faint=True),
        EpochCurve("b", "s1", [2.0, 1.0]),
    ).render("c")
    order = re.findall(r'<g class="(s\d)"><polyline [^>]*class="([^"]*)"', drawn)
    assert order == [("s0", "curve faint"), ("s1", "curve"), ("s0", "curve")]


def test_strips_share_an_axis_that_holds_them():
    strips = [Strip("a", "s0", 0.97, 0.95, 0.98), Strip("b", "s1", 0.90, 0.85, 0.93, seeds=[0.84])]
    places = axis(strips)
    assert places[0] <= 0.84
    assert places[-1] >= 0.98
    x = [
        float(re.findall(r'cx="([\d.]+)" cy="20" r="6"', draw(strip, places, "i"))[0])
        for strip in strips
    ]
    assert x[0] > x[1]
    assert axis([Strip("d", "s0", 0.01, 0.005, 0.02, zero=True)])[0] <= 0


@pytest.mark.parametrize(
    ("low", "high"),
    [(0, 1), (0.955, 0.987), (-0.02, 0.031), (1e-6, 2e-3), (3, 3), (0, 0), (12, 9000)],
)
def test_ticks_hold_the_range_and_are_few(low, high):
    found = ticks(low, high)
    assert found[0] <= low <= high <= found[-1]
    assert 2 <= len(found) <= 8
    steps = [b - a for a, b in pairwise(found)]
    assert steps == pytest.approx([steps[0]] * len(steps))


def test_epoch_ticks():
    assert whole_ticks(60) == [0, 10, 20, 30, 40, 50, 60]
    assert whole_ticks(1) == [0, 1]
    assert len(whole_ticks(400)) <= 7


def test_numbers_for_people():
    thin = "\N{NARROW NO-BREAK SPACE}"
    assert percent(0.97222) == f"97.2{thin}%"
    assert [points(v) for v in (0.0046, -0.0046, 0.0001, 0)] == ["+0.5", "−0.5", "±0.0", "±0.0"]
    assert count(22050664) == f"22{thin}050{thin}664"
    assert [short(v) for v in (4.357e9, 812, 0)] == [f"4.36{thin}G", "812", "0"]
    assert size(3.1e6) == f"3.1{thin}MB"
    assert [plain(v) for v in (0.002, 1e-5, 0, float("nan"), -0.5)] == [
        "0.002",
        "1e−5",
        "0",
        "not finite",
        "−0.5",
    ]
    assert [duration(v) for v in (61, 600, 9000)] == [
        f"61{thin}s",
        f"10{thin}min",
        f"2{thin}h 30{thin}min",
    ]
    assert [ratio(3, 2), ratio(0, 5), ratio(0, 0), ratio(1, 0)] == ["1.50×", "none", "=", "–"]


def test_text_is_escaped_and_markup_is_not():
    assert (
        tag("p", "a < b & c", tag("b", "d"), None, ["e"], title='"')
        == '<p title="&quot;">a &lt; b &amp; c<b>d</b>e</p>'
    )
    assert isinstance(join("x"), Html)
