"""What was seen in one image, as a part of the page."""

import base64
import io
from collections import Counter
from collections.abc import Callable, Sequence

from PIL import Image

from softless.report.html import Html, details, enlarged, tag
from softless.report.numbers import count, percent, ratio, short, size
from softless.serving.chances import shares
from softless.serving.look import Look, Measured, Shown, png
from softless.tasks.detection.pictures import SURE
from softless.tasks.segmentation.pictures import colours
from softless.words import counted

LONGEST = 1600  # pixels of the longer side of a picture on the page
SMALL = 400_000  # pixels up to which a picture is sent without loss


def shown(look: Look) -> Html:
    """The answer, the pictures and the cost of an image."""
    return tag(
        "div",
        tag(
            "div",
            tag("div", _answer(look), class_="card answer-card"),
            _pictures(look.pictures),
            class_="looked",
        ),
        tag("p", look.sizes, class_="note") if look.sizes else None,
        tag("p", look.foreign, class_="warning", role="note") if look.foreign else None,
        tag("p", look.why_no_maps, class_="note") if look.why_no_maps else None,
        _costs(look),
    )


def _answer(look: Look) -> Html:
    width, height = look.size
    task = look.answer.task
    says = {
        "classification": _classes,
        "multilabel": _classes,
        "detection": _boxes,
        "segmentation": _areas,
    }[task](look)
    return tag(
        "div",
        says,
        None
        if look.truth is None
        else tag("p", "truth: ", tag("strong", look.truth), class_="under"),
        [_of_twin(row) for row in look.rows[1:]],
        tag("p", f"an image of {width} x {height} pixels", class_="how"),
    )


def _classes(look: Look) -> Html:
    answer = look.answer
    several = answer.task == "multilabel"
    title = ", ".join(answer.labels) or "no label"
    first = max(answer.chances.values())
    head = tag(
        "h3",
        title,
        None if several else tag("span", percent(first)),
        class_="said-large",
    )
    return tag("div", head, shares(answer.chances, set(answer.labels)))


def _boxes(look: Look) -> Html:
    boxes = look.answer.boxes
    sure = [box for box in boxes if box["score"] >= SURE]
    title = tag("h3", counted(len(sure), "object"), class_="said-large")
    counts = Counter(box["class"] for box in sure).most_common()
    kinds = tag(
        "ul",
        [tag("li", f"{name}: {count(number)}") for name, number in counts],
        class_="plain-list",
    )
    below = len(boxes) - len(sure)
    note = f"with a score of {SURE:.0%} or more" + (f"; {count(below)} below" if below else "")
    rows = [
        tag(
            "tr",
            tag("th", box["class"], scope="row"),
            tag("td", percent(box["score"])),
            [tag("td", count(side)) for side in box["bbox"]],
        )
        for box in sure
    ]
    head = tag(
        "tr",
        [tag("th", name, scope="col") for name in ("class", "score", "x", "y", "width", "height")],
    )
    table = tag(
        "div",
        tag("table", tag("thead", head), tag("tbody", rows), class_="plain"),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label="objects, in pixels",
    )
    return tag(
        "div",
        title,
        tag("p", note, class_="under"),
        kinds if len(counts) > 1 else None,
        details("all of them", table) if rows else None,
    )


def _areas(look: Look) -> Html:
    answer = look.answer
    names = tuple(answer.chances)
    legend = [
        tag(
            "li",
            tag(
                "div",
                tag("span", _swatch(colour), name, class_="class-name"),
                tag("span", percent(answer.chances[name], 2), class_="sure"),
            ),
        )
        for name, colour in sorted(
            zip(names, colours(names), strict=True), key=lambda entry: -answer.chances[entry[0]]
        )
    ]
    assert answer.label_image is not None
    link = tag(
        "a",
        "label image (PNG)",
        href=_source(png(answer.label_image), "png"),
        download="labels.png",
    )
    head = tag("h3", "Areas", class_="said-large")
    return tag(
        "div",
        head,
        tag("p", "shares of the pixels", class_="under"),
        tag("ul", legend, class_="shares"),
        tag("p", link),
    )


def _swatch(colour: tuple[int, int, int]) -> Html:
    fill = "#{:02x}{:02x}{:02x}".format(*colour)
    square = tag(
        "rect",
        width="10",
        height="10",
        rx="2",
        fill=fill,
        stroke="currentColor",
        stroke_width="0.5",
    )
    return tag("svg", square, viewBox="-0.5 -0.5 11 11", class_="patch", aria_hidden="true")


def _of_twin(row: Measured) -> Html:
    """What the twin says of the same image, in a line."""
    answer = row.answer
    if answer.task == "detection":
        sure = sum(box["score"] >= SURE for box in answer.boxes)
        words = counted(sure, "object")
    elif answer.task == "segmentation":
        words = ", ".join(f"{name} {percent(share)}" for name, share in answer.chances.items())
    else:
        best = max(answer.chances.values())
        words = ", ".join(answer.labels) or "no label"
        words += f", {percent(best)}" if answer.task == "classification" else ""
    return tag(
        "p",
        tag("span", class_="swatch s1"),
        f"{row.served.name} says: ",
        tag("strong", words),
        class_="under",
    )


def _pictures(pictures: Sequence[Shown]) -> Html:
    columns = sum(not picture.large for picture in pictures)
    drawn = [_picture(picture) for picture in pictures]
    return tag("div", drawn, class_=f"pictures columns-{min(4, max(2, columns))}")


def _picture(picture: Shown) -> Html:
    alternative = f"{picture.name}: {picture.note}" if picture.note else picture.name
    image = tag(
        "img",
        src=_encoded(picture.image),
        alt=alternative,
        width=picture.image.width,
        height=picture.image.height,
        class_="pixels" if picture.small else None,
    )
    caption = tag(
        "figcaption",
        tag("strong", picture.name),
        tag("span", picture.note) if picture.note else None,
    )
    layout = "wide" if picture.large else None
    return tag("figure", enlarged(image, picture.name), caption, class_=layout)


def _encoded(image: Image.Image) -> str:
    """A picture inside the page: without loss where it is small."""
    copied = image.convert("RGB")
    copied.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    if copied.width * copied.height <= SMALL:
        return _source(png(copied), "png")
    buffer = io.BytesIO()
    copied.save(buffer, "JPEG", quality=90)
    return _source(buffer.getvalue(), "jpeg")


def _source(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode('ascii')}"


def _costs(look: Look) -> Html:
    """What the image cost: time, tokens, products, exponentials, beside the twin's."""
    rows = look.rows
    lines: list[tuple[str, str, list[float | None], Callable[[float], str]]] = [
        ("Time", "on this machine, median", [row.milliseconds for row in rows], _milliseconds),
        ("Tokens", "of the finest grid", [row.tokens for row in rows], count),
        ("Multiply-adds", "matrix products and convolutions", _of(rows, "macs"), short),
        ("Exponentials in attention", "exp and softmax", _of(rows, "exps"), count),
        ("Other transcendentals", "GELU and the like", _of(rows, "activation_exps"), count),
        ("Parameters", "trained numbers", _of(rows, "parameters"), count),
        ("Peak memory", "weights and live tensors", _of(rows, "peak_bytes"), size),
    ]
    body = []
    for name, says, values, write in lines:
        if all(value is None for value in values):
            continue
        cells = ["–" if value is None else write(value) for value in values]
        if len(rows) == 2:
            first, second = values
            cells.append("–" if first is None or second is None else ratio(first, second))
        body.append(
            tag(
                "tr",
                tag("th", tag("span", name, tag("small", says)), scope="row"),
                [tag("td", cell) for cell in cells],
            )
        )
    names = [
        tag("th", tag("span", class_=f"swatch s{number}"), row.served.name, scope="col")
        for number, row in enumerate(rows)
    ]
    last = [tag("th", "ratio", scope="col")] if len(rows) == 2 else []
    notes = [row.cost.note for row in rows if row.cost is not None and row.cost.note]
    table = tag(
        "table",
        tag("caption", f"What this image costs, computed in {rows[0].served.precision}"),
        tag("thead", tag("tr", tag("td"), names, last)),
        tag("tbody", body),
        class_="plain cost",
    )
    box = tag(
        "div",
        table,
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label="what this image costs",
    )
    return tag("div", box, tag("p", f"Not counted: {notes[0]}.", class_="note") if notes else None)


def _of(rows: Sequence[Measured], name: str) -> list[float | None]:
    return [None if row.cost is None else getattr(row.cost, name) for row in rows]


def _milliseconds(value: float) -> str:
    return f"{value:.3g} ms" if value < 1000 else f"{value / 1000:.3g} s"
