"""The part of the page that shows a slide: how to look at it, the answer, and the viewer."""

from collections.abc import Sequence

from softless.report.html import Html, tag
from softless.report.numbers import percent
from softless.serving.chances import shares
from softless.serving.viewed import Overlay, Viewed


def slide_part(viewed: Viewed, number: int) -> Html:
    """A slide in one of its four states: new, at work, done or failed."""
    height, width = viewed.size
    return tag(
        "section",
        tag("p", tag("a", "all of this page", href="/")),
        tag("h2", viewed.name, id="slide-heading"),
        tag("p", f"{width:,} x {height:,} pixels", class_="lead"),
        _failed(viewed) if viewed.state == "failed" else None,
        _at_work(viewed, number) if viewed.state == "at work" else _options(viewed, number),
        _warning(viewed) if viewed.state == "done" and viewed.words else None,
        _done(viewed) if viewed.state == "done" else None,
        _viewer(viewed, number),
        aria_labelledby="slide-heading",
    )


def _failed(viewed: Viewed) -> Html:
    return tag("p", viewed.words, class_="warning", role="alert")


def _warning(viewed: Viewed) -> Html:
    return tag("p", viewed.words, class_="warning", role="note")


def _options(viewed: Viewed, number: int) -> Html:
    levels = [
        tag("option", f"level {level}: {width:,} x {height:,} pixels", value=str(level))
        for level, height, width in viewed.levels
    ]
    return tag(
        "form",
        tag("label", "look at", tag("select", levels, name="level")),
        tag(
            "label",
            tag("input", type="checkbox", name="tissue", value="otsu"),
            "stained tissue alone",
        ),
        tag("button", "Look again" if viewed.state == "done" else "Look", type="submit"),
        method="post",
        action=f"/slides/{number}/look",
        enctype="multipart/form-data",
        class_="options",
    )


def _at_work(viewed: Viewed, number: int) -> Html:
    bar = tag(
        "progress", value=str(viewed.done), max=str(viewed.total or 1), aria_label="how far it is"
    )
    return tag(
        "div",
        bar,
        tag("p", viewed.words, class_="words note", role="status"),
        tag("noscript", tag("p", tag("a", "how far is it?", href=f"/slides/{number}"))),
        id="job",
        data_state="at work",
        data_at=f"/slides/{number}/state",
    )


def _done(viewed: Viewed) -> Html:
    best = max(viewed.chances, key=lambda name: viewed.chances[name])
    facts = [tag("div", tag("dt", name), tag("dd", value)) for name, value in viewed.facts.items()]
    return tag(
        "div",
        tag(
            "div",
            tag("h3", best, tag("span", percent(viewed.chances[best])), class_="said-large"),
            shares(viewed.chances, {best}),
            class_="card",
        ),
        tag("div", tag("h3", "What was looked at"), tag("dl", facts), class_="card"),
        class_="cards slide-answer",
    )


def _viewer(viewed: Viewed, number: int) -> Html:
    height, width = viewed.size
    return tag(
        "div",
        tag(
            "canvas",
            tabindex="0",
            role="img",
            aria_label=f"{viewed.name}, to be zoomed: arrows move it, + and - zoom, 0 shows all",
        ),
        tag(
            "noscript",
            tag("img", src=f"/slides/{number}/tiles/{viewed.deepest}/0/0", alt=viewed.name),
        ),
        tag(
            "div",
            tag("button", "+", type="button", data_do="in", aria_label="zoom in"),
            tag("button", "−", type="button", data_do="out", aria_label="zoom out"),
            tag("button", "whole", type="button", data_do="whole"),
            _maps(viewed.overlays, number) if viewed.overlays else None,
            tag("span", "", class_="place"),
            class_="tools",
        ),
        class_="viewer",
        data_width=str(width),
        data_height=str(height),
        data_tiles=f"/slides/{number}/tiles",
    )


def _maps(overlays: Sequence[Overlay], number: int) -> list[Html]:
    options = [
        tag(
            "option",
            overlay.name,
            value=f"/slides/{number}/maps/{index}",
            data_covers=" ".join(f"{side:.6g}" for side in overlay.covers),
        )
        for index, overlay in enumerate(overlays)
    ]
    return [
        tag("label", "map", tag("select", options, tag("option", "none", value=""), name="map")),
        tag(
            "label",
            "strength",
            tag("input", type="range", name="opacity", min="0", max="100", value="55"),
        ),
    ]
