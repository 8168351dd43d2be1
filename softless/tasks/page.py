"""One page for one run or several side by side: readable, printable, and with nothing to load."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from softless.data.given import name_of
from softless.errors import UsageError, unknown
from softless.models.durable import make_folder, write_text
from softless.report.composition import draw_composition
from softless.report.curves import draw_curves
from softless.report.document import document
from softless.report.exports import HEADING, PLACE, draw_exports
from softless.report.groups import FEW, Group, grouped
from softless.report.html import Html, section
from softless.report.provenance import draw_provenance
from softless.report.recipes import draw_recipes
from softless.report.runs import read_run
from softless.tasks.cost import Speed, draw_cost
from softless.tasks.table import TABLE
from softless.words import counted


def write(
    run_dirs: Sequence[Path],
    out: Path,
    *,
    title: str | None = None,
    speeds: Mapping[Path, Speed] | None = None,
) -> Path:
    """Write the page of these runs to `out`, whole or not at all, and return its path.

    Runs that differ in their seed alone are shown as one model. With several models the last one,
    softmax where there is one, is what the others are compared with.

    Args:
        run_dirs: folders of finished runs.
        out: the HTML file.
        title: heading of the page; None says the models, their data and the run.
        speeds: measured images per second in evaluation, by the folder of each model's first run
            (softless.compare).

    Raises:
        UsageError: no run, a folder without a finished run, or a place that cannot be written
            (StorageError).
    """
    if not run_dirs:
        raise UsageError("a report needs at least one run folder")
    groups = grouped([read_run(Path(folder)) for folder in run_dirs])
    text = render(groups, title or _title(groups), speeds)
    out = Path(out)
    make_folder(out.parent)
    write_text(out, text)
    return out


def render(groups: Sequence[Group], title: str, speeds: Mapping[Path, Speed] | None = None) -> str:
    """The page as text."""
    links = {**LINKS, "samples": getattr(_view(groups), "HEADING", LINKS["samples"])}
    return document("Softless report", title, _subtitle(groups), _sections(groups, speeds), links)


def _sections(groups: Sequence[Group], speeds: Mapping[Path, Speed] | None) -> list[Html]:
    view = _view(groups)
    exported = draw_exports(groups)
    return [
        section("result", "Result", view.headline(groups)),
        *(
            part
            for part in (
                draw_composition(groups),
                view.numbers(groups) if hasattr(view, "numbers") else None,
            )
            if part
        ),
        section("curves", "Learning", draw_curves(groups), lead=_curves_lead(groups)),
        *([_cost(groups, speeds)] if groups[0].first.recipe.unit == "images" else []),
        section(
            "samples",
            getattr(view, "HEADING", "Test images"),
            view.samples(groups),
            lead=view.SAMPLES,
        ),
        *(view.further(groups) if hasattr(view, "further") else []),
        *([exported] if exported else []),
        section("recipe", "Recipes" if len(groups) > 1 else "Recipe", draw_recipes(groups)),
        section("method", "Method", draw_provenance(groups, view.method(groups))),
    ]


def _cost(groups: Sequence[Group], speeds: Mapping[Path, Speed] | None) -> Html:
    """What one image costs; of samples of another kind there is no one size."""
    return section(
        "cost",
        "Cost",
        draw_cost(groups, speeds),
        lead="Counted on one image; speeds are measured.",
    )


def _view(groups: Sequence[Group]) -> Any:
    """The page module of the runs' task (`table.Row`).

    Raises:
        UsageError: runs of several tasks.
    """
    tasks = sorted({run.task for group in groups for run in group.runs})
    if len(tasks) > 1:
        raise UsageError(
            f"a page shows runs of one task, and these are for {' and '.join(tasks)}: give each "
            "its own"
        )
    if tasks[0] not in TABLE:
        raise unknown("task", tasks[0], TABLE)
    return TABLE[tasks[0]].page


def _curves_lead(groups: Sequence[Group]) -> str | None:
    if not any(len(group.runs) > 1 for group in groups):
        return None
    return (
        "Means over seeds."
        if len(groups) > FEW
        else "Thick lines are means over seeds, thin lines the seeds."
    )


LINKS = {
    "result": "Result",
    "data": "Data",
    "numbers": "Numbers",
    "curves": "Learning",
    "cost": "Cost",
    "samples": "Test images",
    "confusion": "Confusion",
    "classes": "Classes",
    PLACE: HEADING,
    "recipe": "Recipe",
    "method": "Method",
}


def _title(groups: Sequence[Group]) -> str:
    first = groups[0].first
    name = name_of(first.recipe.data.path, first.recipe.data.source)
    if len(groups) > FEW:
        return f"{len(groups)} models on {name}"
    *before, last = (group.label for group in groups)
    run = (
        f", run {first.folder.resolve().name}"
        if len(groups) == 1 and len(groups[0].runs) == 1
        else ""
    )
    return f"{', '.join(before)}{' and ' if before else ''}{last} on {name}{run}"


def _subtitle(groups: Sequence[Group]) -> str:
    first = groups[0].first
    runs = sum(len(group.runs) for group in groups)
    test = (first.result.get("test") or {}).get("seen")
    unit = first.recipe.unit.removesuffix("s")
    classes = len(first.classes)
    parts = [
        f"recipe {first.recipe.name}",
        counted(classes, "class", "classes") if classes else "",
    ]
    parts += [counted(test, f"test {unit}")] if test else []
    parts += [
        counted(runs, "run"),
        counted(int(first.result["epochs"]), "epoch"),
        str(first.provenance.get("date", ""))[:10],
    ]
    return " · ".join(part for part in parts if part)
