"""report.html of a recovery: what came out in a sentence, how each step did, and each layer before
and after. It is made of recover.json alone.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from softless.report.document import document
from softless.report.html import Html, section, tag
from softless.report.numbers import THIN, count, duration, percent, plain, ratio, short
from softless.report.pairs import Pair, PairChart
from softless.report.places import shortened, shortened_words
from softless.report.recipes import written
from softless.report.tables import table
from softless.words import counted

Content = Mapping[str, Any]

LINKS = {
    "result": "Result",
    "steps": "Steps",
    "layers": "Layers",
    "functions": "Exponentials",
    "exchanged": "What was exchanged",
    "method": "Method",
}
IN_WORDS = {
    "bare": "exchanged and no more",
    "refit": "after the refit",
    "distil": "after the distillation",
}
STEP_NAMES = {"bare": "bare swap", "refit": "refit", "distil": "distillation"}
COLOURS = {"bare": "s6", "refit": "s0", "distil": "s2"}
METHOD = (
    (
        "Numbers of each step are of images that this step was not fitted on, prepared as the "
        "model's own evaluation prepares them."
    ),
    (
        "The epoch of a distillation is chosen on these images too, and so is the ridge where "
        "there were no others, which flatters the numbers a little."
    ),
    (
        "Agreement is the share of images to which the model gives the teacher's first answer; "
        "the divergence is KL(teacher || model) in nats; the cosine is that of the features, "
        "token by token."
    ),
    (
        "A layer's error is relative: the distance to the teacher's over its length. A branch "
        "error of 1 is that of no branch at all."
    ),
    "Seconds are of the processor. Exponentials are counted by running the model on one image.",
)


def render(content: Content) -> str:
    """The page as text.

    Args:
        content: what recover.json holds.
    """
    parts = [
        section("result", "Result", _headline(content)),
        section("steps", "Steps", _steps(content), lead=_steps_lead(content)),
        *_layers(content),
        *_functions(content),
        section("exchanged", "What was exchanged", _exchanged(content)),
        section("method", "Method", _method(content)),
    ]
    request = content["request"]
    title = f"{content['op']} in the place of {request['attention']}: {request['model']}"
    return document("Softless recovery", title, _subtitle(content), parts, LINKS)


def _subtitle(content: Content) -> str:
    steps = " and ".join(STEP_NAMES[step] for step in content["request"]["steps"])
    looked_at = content["images"]
    parts = [
        steps,
        f"{counted(looked_at, 'image')} in the refit, copies included" if looked_at else "",
        f"{short(content['parameters'])} parameters",
        str(content["about"]["date"])[:10],
    ]
    return " · ".join(part for part in parts if part)


def _headline(content: Content) -> Html:
    """The sentence, and a card for each step."""
    cards = [_card(content, step) for step in content["steps"]]
    notes = [tag("li", note) for note in content["notes"]]
    return tag(
        "div",
        tag("p", sentence(content), class_="verdict-line"),
        tag("div", cards, class_="cards"),
        tag("div", tag("h3", "To know"), tag("ul", notes), class_="known") if notes else None,
    )


def sentence(content: Content) -> str:
    """What came out, in words."""
    steps = content["steps"]
    last = next(reversed(steps.values()))
    name, subject = _told(last)
    many = counted(last["images"], "image")
    if name == "top1":
        opening = (
            f"The teacher gets {percent(last['teacher_top1'])} of {many} right. With "
            f"{content['op']} in its place: "
        )
    else:
        opening = f"With {content['op']}, {subject} on {many}: "
    shares = [f"{_value(near, name)} {IN_WORDS[step]}" for step, near in steps.items()]
    kept = STEP_NAMES[content["kept"]]
    end = f". The weights of the {kept} are kept."
    return opening + ", ".join(shares) + end


def _told(near: Content) -> tuple[str, str]:
    """The number that a sentence tells of, and what it is."""
    if near["top1"] is not None:
        return "top1", "the share of right answers"
    if near["agreement"] is not None:
        return "agreement", "the share of the teacher's own answers"
    return "cosine", "the cosine of its features to the teacher's"


def _value(near: Content, name: str) -> str:
    value = near[name]
    if value is None:
        return "–"
    return f"{value:.3f}" if name in {"cosine", "kl"} else percent(value)


def _card(content: Content, step: str) -> Html:
    near = content["steps"][step]
    name, subject = _told(near)
    big = _value(near, name)
    rows = [
        ("of the teacher's accuracy", _share(near)),
        ("same answer as the teacher", _value(near, "agreement")),
        ("divergence, nats", _value(near, "kl")),
        ("cosine of features", _value(near, "cosine")),
        ("of the processor", _seconds(content, step)),
    ]
    title = STEP_NAMES[step] + (", kept" if step == content["kept"] else "")
    number, _, sign = big.partition(THIN)
    return tag(
        "article",
        tag("h3", tag("span", class_=f"swatch {COLOURS[step]}"), title),
        tag("p", number, tag("span", f"{THIN}{sign}") if sign else None, class_="big"),
        tag("p", subject, class_="under"),
        tag(
            "dl",
            [
                tag("div", tag("dt", label), tag("dd", value))
                for label, value in rows
                if value != "–"
            ],
        ),
        class_="card",
    )


def _share(near: Content) -> str:
    theirs = near["teacher_top1"]
    return percent(near["top1"] / theirs) if near["top1"] is not None and theirs else "–"


def _seconds(content: Content, step: str) -> str:
    seconds = content["seconds"].get(step)
    return "–" if seconds is None else _duration(seconds)


def _duration(seconds: float) -> str:
    return f"{seconds:.1f}{THIN}s" if seconds < 10 else duration(seconds)


def _steps_lead(content: Content) -> str | None:
    distilled = content["distilled"]
    if distilled is None:
        return None
    run = distilled["run"]
    which = (
        "No epoch was better than the start, so that one is kept."
        if run["best_epoch"] == 0
        else f"Epoch {run['best_epoch']} of {run['epochs']} is kept."
    )
    return f"The distillation is a run of its own, in the folder distil, with a page. {which}"


def _steps(content: Content) -> Html:
    head = ["step", "accuracy", "of the teacher's", "same answer", "divergence", "cosine"]
    head += ["images", "of the processor"]
    last = next(reversed(content["steps"].values()))
    rows: list[list[Any]] = []
    if last["teacher_top1"] is not None:
        teacher = [percent(last["teacher_top1"]), percent(1.0), "–", "–", "–", last["images"], "–"]
        rows.append(["teacher", *teacher])
    for step, near in content["steps"].items():
        rows.append([
            tag("span", tag("span", class_=f"swatch {COLOURS[step]}"), STEP_NAMES[step]),
            _value(near, "top1"),
            _share(near),
            _value(near, "agreement"),
            _value(near, "kl"),
            _value(near, "cosine"),
            near["images"],
            _seconds(content, step),
        ])
    full = [column for column in range(len(head)) if any(row[column] != "–" for row in rows)]
    return table(
        [head[column] for column in full],
        [[row[column] for column in full] for row in rows],
        caption="Each step on images that it was not fitted on",
    )


def _layers(content: Content) -> list[Html]:
    """Charts of the layers that were fitted, and their numbers."""
    layers = content["layers"]
    if not layers:
        return []
    branches = [
        Pair(layer["path"], layer["branch_before"], layer["branch_after"])
        for layer in layers
        if layer["branch_before"] is not None
    ]
    streams = [
        Pair(layer["path"], layer["stream_before"], layer["stream_after"])
        for layer in layers
        if layer["stream_before"] is not None
    ]
    charts = [
        PairChart(
            title,
            pairs,
            words=("old weights", "fitted weights"),
            unit="relative error",
            line=line,
            note=note,
        ).render(f"layers-{number}", "s0")
        for number, (title, pairs, line, note) in enumerate((
            (
                "What each attention adds",
                branches,
                1.0,
                "At the dashed line it is no better than no attention at all.",
            ),
            ("The stream behind each layer", streams, None, ""),
        ))
        if pairs
    ]
    head = ["layer", "ridge", "branch before", "after", "stream before", "after", ""]
    body = [
        [
            tag("code", layer["path"]),
            "–" if layer["strength"] is None else plain(layer["strength"]),
            *(
                "–" if layer[name] is None else f"{layer[name]:.3f}"
                for name in ("branch_before", "branch_after", "stream_before", "stream_after")
            ),
            f"as it was: {layer['kept']}" if layer["kept"] else "",
        ]
        for layer in layers
    ]
    number = sum(not layer["kept"] for layer in layers)
    lead = (
        f"{number} of {len(layers)} layers were fitted, block after block, to the teacher's stream."
    )
    if content["stream"] is not None:
        lead += f" Behind the last block the stream's error is {content['stream']:.3f}."
    return [
        section(
            "layers",
            "Layers",
            tag("div", charts, class_="charts squares"),
            table(
                head,
                body,
                caption="Relative errors on held-out images, and the ridge as a share of the mean "
                "diagonal",
                class_="plain listed",
            ),
            lead=lead,
        )
    ]


def _functions(content: Content) -> list[Html]:
    before, after = (content["exponentials"][name] for name in ("before", "after"))
    if before is None or after is None:
        return []
    rows = [
        [
            kind,
            count(before.get(kind, 0)),
            count(after.get(kind, 0)),
            ratio(after.get(kind, 0), before.get(kind, 0)),
        ]
        for kind in sorted({*before, *after})
    ]
    lead = "Nothing transcendental is left." if not any(after.values()) else None
    return [
        section(
            "functions",
            "Exponentials",
            table(
                ["function", "teacher", "this model", "ratio"],
                rows,
                caption="Evaluations for one image",
            ),
            lead=lead,
        )
    ]


def _exchanged(content: Content) -> Html:
    swapped = content["swapped"]
    options = ", ".join(f"{name} {written(value)}" for name, value in content["options"].items())
    parts: list[Any] = []
    if options:
        parts.append(tag("p", f"Options of {content['op']}: {options}.", class_="note"))
    if swapped is None:
        return tag(
            "div",
            parts,
            tag("p", f"The model was built anew with {content['op']} and has its weights."),
        )
    rows = [[tag("code", path), f"{kind}, exchanged"] for path, kind in swapped.items()]
    rows += [[tag("code", path), f"left: {why}"] for path, why in content["left"].items()]
    rows += [[tag("code", path), f"given up: {what}"] for path, what in content["lost"].items()]
    caption = f"{counted(len(swapped), 'attention')} exchanged, {len(content['left'])} left"
    return tag("div", parts, table(["attention", "what became of it"], rows, caption=caption))


def _method(content: Content) -> Html:
    about, request = content["about"], content["request"]
    facts: dict[str, Any] = {
        "command": tag("code", shortened_words(about["command"])),
        "date": str(about["date"]).replace("T", " ").replace("+00:00", " UTC"),
        "commit": about["commit"],
        **about["versions"],
        **about["machine"],
        "weights of the teacher": _digest(request["teacher_sha256"]),
        "weights of the model": _digest(content["weights_sha256"]),
        "images": _digest(request["images"]),
    }
    left_out = {"images", "teacher_sha256", "student_sha256", "model", "attention", "op", "options"}
    names = [name for name in request if name not in left_out]
    values = shortened([request[name] for name in names])
    asked = dict(zip(names, values, strict=True))
    return tag(
        "div",
        tag(
            "div",
            tag("div", tag("h3", "How it was measured"), tag("ul", [tag("li", t) for t in METHOD])),
            _facts("What was asked for", {name: _asked(asked[name]) for name in names}),
            _facts("Command, versions and machine", facts),
            class_="columns",
        ),
    )


def _asked(value: Any) -> str:
    """A setting for people; one that was left open is said to be."""
    if value is None:
        return "chosen"
    return written(value) or "none"


def _facts(title: str, rows: Mapping[str, Any]) -> Html:
    listed = [tag("div", tag("dt", name), tag("dd", value)) for name, value in rows.items()]
    return tag("div", tag("h3", title), tag("dl", listed, class_="facts"))


def _digest(text: Sequence[str] | str) -> Html:
    return tag("code", f"{str(text)[:16]}…")
