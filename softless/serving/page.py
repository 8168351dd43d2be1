"""The page around an answer: where an image is dropped, test images, slides, and how to ask by
program.
"""

from collections.abc import Sequence
from pathlib import Path

from softless.report.html import Html, details, tag
from softless.serving.headers import TAKEN
from softless.serving.limits import MIB, Limits
from softless.serving.subject import Subject
from softless.words import counted, few

STYLES = (Path(__file__).parents[1] / "report" / "page.css", Path(__file__).with_name("page.css"))
SCRIPT = Path(__file__).with_name("page.js")
WAYS = {
    "classification": "names one class of an image",
    "multilabel": "names the labels of an image",
    "detection": "draws boxes around objects",
    "segmentation": "names the class of each pixel",
}


def style() -> str:
    """The style of the page: that of all pages of ours, and what this one has besides."""
    return "\n".join(path.read_text(encoding="utf-8") for path in STYLES)


def script() -> str:
    """What the page does in the browser beside what forms do."""
    return SCRIPT.read_text(encoding="utf-8")


def page(
    subject: Subject,
    slides: Sequence[str],
    limits: Limits,
    answer: Html | None = None,
    *,
    documented: bool = False,
    slide: Html | None = None,
) -> str:
    """The page as text, with an answer or a slide in it."""
    served = subject.served
    title = served.name
    main = tag(
        "main",
        _try(subject, limits) if slide is None else None,
        tag(
            "section",
            tag("h2", "Answer", id="answer-heading"),
            tag("div", answer or _nothing(), id="answer", aria_live="polite", tabindex="-1"),
            aria_labelledby="answer-heading",
        )
        if slide is None
        else None,
        slide,
        _slides(slides) if slides and slide is None else None,
        _program(documented=documented) if slide is None else None,
    )
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", f"{title} – softless"),
        tag("link", rel="stylesheet", href="/page.css"),
        tag("link", rel="icon", href="data:,"),
        tag("script", Html(""), src="/page.js", defer=""),
    )
    top = tag(
        "header",
        tag("p", "softless serve", class_="eyebrow"),
        tag("h1", tag("a", title, href="/") if slide is not None else title),
        tag("p", _subtitle(subject), class_="subtitle"),
        class_="top",
    )
    foot = tag("footer", tag("p", "Images stay on this machine. Nothing else is asked or told."))
    return f"<!doctype html>\n{tag('html', head, tag('body', top, main, foot), lang='en')}\n"


def _subtitle(subject: Subject) -> str:
    loaded = subject.served.loaded
    words = f"A model that {WAYS[loaded.task]}: {few(loaded.classes, 6)}."
    learned = subject.served.learned
    words += f" Trained on {learned}." if learned else ""
    return words + (f" Beside it: {subject.twin.name}." if subject.twin is not None else "")


def _try(subject: Subject, limits: Limits) -> Html:
    upload = tag(
        "form",
        tag(
            "label",
            tag("strong", "Drop an image here"),
            tag("span", "or choose one", class_="choose"),
            tag(
                "span",
                f"{TAKEN}, at most {limits.body // MIB} MiB and {limits.side:,} pixels "
                "along a side",
                class_="how",
            ),
            tag(
                "input",
                type="file",
                name="image",
                accept="image/jpeg,image/png,image/webp",
                required="",
            ),
            class_="drop",
            id="drop",
        ),
        tag("button", "Look", type="submit", class_="go"),
        method="post",
        action="/look",
        enctype="multipart/form-data",
        id="upload",
    )
    return tag(
        "section",
        tag("h2", "Try it", id="try-heading"),
        tag("p", "", id="state", role="status", class_="state"),
        upload,
        _test_images(subject),
        aria_labelledby="try-heading",
    )


def _test_images(subject: Subject) -> Html | None:
    if subject.test is None:
        return None
    buttons = [
        tag(
            "button",
            tag("img", src=f"/samples/{index}", alt="", width="72", height="72", loading="lazy"),
            type="submit",
            name="sample",
            value=str(index),
            aria_label=_sample_name(subject, index),
        )
        for index in range(len(subject.test))
    ]
    return tag(
        "form",
        tag("h3", "or take one of the test images"),
        tag("div", buttons, class_="strip-of-images"),
        method="post",
        action="/look",
        enctype="multipart/form-data",
        id="samples",
    )


def _sample_name(subject: Subject, index: int) -> str:
    truth = None if subject.test is None else subject.test.truth(index)
    return f"test image {index + 1}" + ("" if truth is None else f", class {truth}")


def _nothing() -> Html:
    return tag("p", "Nothing was looked at yet.", class_="note")


def _slides(names: Sequence[str]) -> Html:
    rows = [
        tag("li", tag("a", name, href=f"/slides/{number}")) for number, name in enumerate(names)
    ]
    return tag(
        "section",
        tag("h2", "Slides", id="slides-heading"),
        tag(
            "p",
            f"{counted(len(names), 'slide')} on this machine, named at the start.",
            class_="lead",
        ),
        tag("ul", rows, class_="slides"),
        aria_labelledby="slides-heading",
    )


def _program(*, documented: bool) -> Html:
    command = "curl -F image=@photo.jpg ADDRESS/predict"
    link = tag("p", tag("a", "All routes", href="/docs")) if documented else None
    return tag(
        "section",
        details(
            "Ask by program",
            tag(
                "p",
                "A form with the field image, and JSON comes back: the same numbers as "
                "softless predict gives.",
            ),
            tag("p", tag("code", command, id="command")),
            link,
        ),
    )


def failure(sentence: str) -> Html:
    """What the page says where there is no answer."""
    return tag("p", sentence, class_="warning", role="alert")
