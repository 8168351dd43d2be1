"""What the folder and the page of a run say of the files that were made of it.

The files are what was asked for. A folder that cannot be written is said, and is no failure.
"""

import json
from pathlib import Path

from softless.data.notices import notice
from softless.errors import DataError, StorageError
from softless.experiment.files import EXPORTS, read_exports
from softless.experiment.folder import REPORT
from softless.exporting.report import Exported, as_row, same_file
from softless.exporting.source import Source, weights_digest
from softless.models.durable import write_text
from softless.models.records import read_text
from softless.report.exports import drawn, with_exports
from softless.report.runs import exports_of


def note(source: Source, report: Exported) -> None:
    """Keep a line for each file in the run's folder, and show them on its page.

    Args:
        source: what was exported; nothing is kept of what is no run.
        report: its files.
    """
    if source.run is None or not report.files:
        return
    folder = source.run.path
    try:
        _keep(folder, report, weights_digest(source))
        _show(folder, source)
    except (DataError, StorageError) as error:
        notice(f"the exported files are whole, and the run's folder does not say so: {error}")


def _keep(folder: Path, report: Exported, weights: str) -> None:
    """Lines of earlier files of the same name and kind give way."""
    rows = [{**as_row(report, file), "weights_sha256": weights} for file in report.files]
    earlier = [
        row
        for row in read_exports(folder / EXPORTS)
        if not any(same_file(row, later) for later in rows)
    ]
    lines = [json.dumps(row) + "\n" for row in (*earlier, *rows)]
    write_text(folder / EXPORTS, "".join(lines))


def _show(folder: Path, source: Source) -> None:
    page = folder / REPORT
    if not page.is_file():
        return
    text = read_text(page)
    part = drawn([(None, row) for row in exports_of(folder, source.best)])
    text_with = with_exports(text, part)
    if text_with is None:
        notice(f"{page} has no place for exported files: `softless train --resume` writes it anew")
    elif text_with != text:
        write_text(page, text_with)
