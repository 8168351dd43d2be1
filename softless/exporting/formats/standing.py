"""What a format takes and whether this machine has it, in words."""

from collections.abc import Mapping

from softless.errors import MissingExtra, need
from softless.exporting.formats.format import Format


def missing(record: Format) -> str:
    """What a format lacks here, with the command that installs it; empty where it lacks nothing."""
    try:
        need(*needs(record))
    except MissingExtra as error:
        return str(error)
    return ""


def needs(record: Format) -> tuple[str, ...]:
    """Packages that write a format or run it."""
    return tuple(dict.fromkeys((*record.writes_with, *(record.runs_with or ()))))


def abilities(record: Format) -> Mapping[str, str]:
    """What a format takes, wherever it is used."""
    eight = [kind for kind in record.int8 if kind != "none"]
    return {
        "ending": record.ending,
        "needs": ", ".join(needs(record)) or "nothing but torch",
        "runs here": "yes" if record.open is not None else "no: it is written here alone",
        "dynamic": ", ".join(record.dynamic) or "no: one size and one image at once",
        "int8": ", ".join(eight) or "no",
    }


def standing(record: Format) -> Mapping[str, str]:
    """The same, and whether this machine has what it needs."""
    absent = missing(record)
    return {**abilities(record), "installed": f"no: {absent}" if absent else "yes"}
