"""The page a run leaves: one self-contained HTML file for one run or several side by side."""

from softless.moved import names_in
from softless.report.runs import RunRecord, read_run

__all__ = ["RunRecord", "read_run"]

__getattr__ = names_in(__name__, {"write": "softless.tasks.page"})
