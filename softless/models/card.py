"""The model card of a published folder: README.md, with the head that the hub reads.

`save_weights` writes it; `push_to_hub` completes it with what the model costs, which takes seconds
to count, with the name of the repository and with a licence.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from softless.errors import SoftlessError
from softless.measure.audit import audit
from softless.measure.cost import cost

# stand in a card until it is completed
COST, SOURCE, LICENCE = "<!-- cost -->", "local-dir:FOLDER", "# license: nobody chose one yet"


def written(content: Mapping[str, Any], trained: Mapping[str, str], parameters: int) -> str:
    """The card of a model.

    Args:
        content: its config.json.
        trained: what training says of it: a title and a text each.
        parameters: how many numbers it has.
    """
    about, build = content["pretrained_cfg"], content.get("softless", {})
    classes = about.get("label_names") or []
    rows = {
        "architecture": f"`{content['architecture']}`",
        **({"host": f"`{build['host']}`"} if "host" in build else {}),
        "parameters": f"{parameters:,}",
        "input": " x ".join(map(str, about["input_size"])) if "input_size" in about else "",
        "classes": f"{content['num_classes']:,}" + (f": {_listed(classes)}" if classes else ""),
        "mean, std": f"{about['mean']}, {about['std']}" if "mean" in about else "",
    }
    head = ["---", "library_name: softless", LICENCE, "tags:", "- softless"]
    if content["num_classes"] and "input_size" in about:
        head.append("pipeline_tag: image-classification")
    lines = [
        *head,
        "---",
        "",
        f"# {content['architecture']}",
        "",
        "A model of softless, for PyTorch.",
        "",
        *_table(rows),
        "",
        "## Use",
        "",
        "```python",
        "import softless",
        "",
        f'model = softless.create_model("{SOURCE}", pretrained=True).eval()',
        "```",
        "",
    ]
    if trained:
        lines += ["## Training", "", *_table(trained), ""]
    lines += ["## Cost", "", COST, ""]
    return "\n".join(lines)


def completed(card: str, model: nn.Module, source: str, licence: str | None) -> str:
    """A card with what the model costs, where it lies, and its licence.

    Args:
        card: as `written` wrote it, perhaps edited since.
        model: that it describes, in evaluation.
        source: what `create_model` takes.
        licence: as the hub names it; None leaves it open, which the card says.
    """
    for mark, text in ((COST, _costs(model)), (SOURCE, source)):
        card = card.replace(mark, text)
    if licence is not None:
        card = card.replace(LICENCE, f"license: {licence}")
    return card


def _costs(model: nn.Module) -> str:
    """A table of counts, and what the audit says."""
    try:
        counts, findings = cost(model), audit(model)
    except SoftlessError as error:
        return f"It is not counted: {error}."
    of_bag = callable(getattr(model, "bag_size", None))
    size = " x ".join(map(str, counts.input_size[of_bag:]))
    what = f"a bag of {size} features" if of_bag else f"one image of {size}"
    rows = {
        "multiply-adds": f"{counts.macs:,}",
        "exponentials of attention": f"{counts.exps:,}",
        "other transcendental evaluations": f"{counts.activation_exps:,}",
        "weights": f"{counts.weight_bytes / 1e6:.1f} MB",
        "peak inference memory": f"{counts.peak_bytes / 1e6:.1f} MB",
    }
    kinds = sorted({str(finding.kind) for finding in findings.findings})
    verdict = f"It evaluates {_listed(kinds)}." if kinds else "It is free of exponentials."
    return "\n".join([
        f"Of {what}, counted by `softless cost`:",
        "",
        *_table(rows),
        "",
        f"{verdict} `softless audit` says where.",
    ])


def _table(rows: Mapping[str, str]) -> list[str]:
    filled = {name: text for name, text in rows.items() if text}
    return ["| | |", "|---|---|", *(f"| {name} | {_cell(text)} |" for name, text in filled.items())]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ").replace("<", "&lt;")


def _listed(names: Any, most: int = 20) -> str:
    shown = ", ".join(map(str, names[:most]))
    return shown + (f" and {len(names) - most:,} more" if len(names) > most else "")
