"""What the data hold: images and classes of each part, and the sizes of the images."""

from collections.abc import Mapping, Sequence
from typing import Any

from softless.report.groups import Group
from softless.report.html import Html, section, tag
from softless.report.numbers import count
from softless.report.tables import table

PARTS = {"train": "training", "val": "validation", "test": "test"}


def draw_composition(groups: Sequence[Group]) -> Html | None:
    """The section, from what the first run wrote at its start; None of runs of an older
    softless.
    """
    data = groups[0].first.provenance.get("data")
    if data is None:
        return None
    datasets = [group.first.provenance.get("data") for group in groups]
    unit = _unit(data)
    note = (
        ""
        if all(dataset == data for dataset in datasets)
        else "The models were trained on different data; this is what the first of them was "
        "trained on."
    )
    return section(
        "data",
        "Data",
        table(
            *_rows(data),
            caption=f"{unit.capitalize()} in {data['name']}, and {data['counted']} of each class"
            if data["classes"].get("train")
            else f"{unit.capitalize()} in {data['name']}",
        ),
        tag("p", _sizes(data), class_="note"),
        tag("p", note, class_="note") if note else None,
    )


def _unit(data: Mapping[str, Any]) -> str:
    """What is counted; runs of an older softless have images."""
    return str(data.get("unit", "images"))


def _rows(data: Mapping[str, Any]) -> tuple[list[Any], list[list[Any]]]:
    parts = [part for part in PARTS if part in data["images"]]
    rows: list[list[Any]] = [
        [f"all {_unit(data)}", *(count(data["images"][part]) for part in parts)]
    ]
    names = data["classes"].get("train") or {}
    rows += [
        [name, *(count(data["classes"][part].get(name, 0)) for part in parts)] for name in names
    ]
    return ["", *(PARTS[part] for part in parts)], rows


def _sizes(data: Mapping[str, Any]) -> str:
    if "sizes" not in data or "seen" not in data:
        extent = str(data.get("extent", ""))
        return f"The training {_unit(data)} have {extent}." if extent else ""
    sizes, (height, width) = data["sizes"], data["seen"]
    small, large = (" × ".join(map(str, sizes[name])) for name in ("smallest", "largest"))
    looked = (
        f"{sizes['of']} training image{'s' * (sizes['of'] != 1)} that "
        f"{'were' if sizes['of'] != 1 else 'was'} looked at"
    )
    stored = f"are {small} pixels" if small == large else f"have from {small} to {large} pixels"
    return f"The {looked} {stored} (height × width). The model was trained at {height} × {width}."
