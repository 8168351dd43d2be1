"""recovered.json of a run: which weights it started from, and what was done to them before the
first step.
"""

from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from softless.errors import DataError
from softless.models.records import ANY_NUMBER, TEXT, Rule, check, one_of, or_none, read_json, whole

RECOVERED = "recovered.json"
TAKEN, EXCHANGED, REFITTED = "taken", "exchanged", "refitted"
RULES: dict[str, Rule] = {
    "weights": TEXT,
    "trained_with": or_none(TEXT),
    "model_has": or_none(TEXT),
    "how": one_of(TAKEN, EXCHANGED, REFITTED),
    "images?": whole(0),
    "layers_fitted?": whole(0),
    "layers?": (lambda value: isinstance(value, list), "a list of layers"),
    "stream_error?": or_none(ANY_NUMBER),
    "seconds?": ANY_NUMBER,
}


def read_started(path: Path) -> dict[str, Any]:
    """What recovered.json says, or nothing where it is missing or another's: it is for people."""
    try:
        content: dict[str, Any] = read_json(path)
        check(content, RULES, path, mend="delete it")
    except DataError:
        return {}
    return content


def line_of(record: Mapping[str, Any]) -> str:
    """What became of the weights, in a clause without places of this machine; nothing where they
    were drawn.

    >>> line_of({
    ...     "weights": "/runs/one",
    ...     "trained_with": "sima",
    ...     "model_has": "sima",
    ...     "how": "taken",
    ... })
    'from the weights of one, trained with sima'
    """
    if not record:
        return ""
    source = str(record["weights"])
    source = f"the weights of {PurePath(source).name}" if "/" in source else source
    before, now = record["trained_with"], record["model_has"]
    if record["how"] == TAKEN:
        return f"from {source}{f', trained with {before}' if before else ''}"
    clause = f"from {source}, {before} replaced by {now}"
    if record["how"] == EXCHANGED:
        return f"{clause}, nothing fitted"
    error = record.get("stream_error")
    return (
        f"{clause}: {record.get('layers_fitted', 0)} of {len(record.get('layers', ()))} layers "
        f"fitted on {record.get('images', 0)} images"
        f"{'' if error is None else f', error of the stream {error:.2f}'}"
    )
