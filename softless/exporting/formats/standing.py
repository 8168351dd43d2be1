"""What a format takes and whether this machine has it, in words."""

from collections.abc import Mapping

from softless.errors import MissingExtra, need
from softless.exporting.formats.format import Format, Int8


def needs(record: Format, int8: Int8 = "none") -> tuple[str, ...]:
    """Packages that write a format, run it, and quantise it where that is asked for."""
    quantises = record.quantises_with if int8 != "none" else ()
    return tuple(dict.fromkeys((*record.writes_with, *(record.runs_with or ()), *quantises)))


def missing(record: Format, int8: Int8 = "none") -> str:
    """What a format lacks here, with the command that installs it; empty where it lacks nothing."""
    try:
        need(*needs(record, int8))
    except MissingExtra as error:
        return str(error)
    return ""


def abilities(record: Format) -> Mapping[str, str]:
    """What a format takes, wherever it is used."""
    eight = ", ".join(kind for kind in record.int8 if kind != "none")
    further = ", ".join(name for name in record.quantises_with if name not in needs(record))
    return {
        "ending": record.ending,
        "needs": ", ".join(needs(record)) or "nothing but torch",
        "runs here": "yes" if record.open is not None else "no: it is written here alone",
        "dynamic": ", ".join(record.dynamic) or "no: one size and one image at once",
        "int8": f"{eight}{f' (needs {further})' if further else ''}" if eight else "no",
    }


def standing(record: Format) -> Mapping[str, str]:
    """The same, and whether this machine has what it needs."""
    absent = missing(record)
    return {**abilities(record), "installed": f"no: {absent}" if absent else "yes"}
