"""Many bags in one npz: `features` of all (M, D), and `offsets` (n + 1,) of the bags' rows.

Their names are in `slide`; or their numbers in `bag_id`, and the names in `slides.csv` beside it.
"""

import re
from functools import lru_cache
from pathlib import Path

import numpy as np

from softless.bags.bag import Bag
from softless.bags.files import KeptSource, Source, source_of
from softless.bags.names import bare
from softless.bags.rows import Rows
from softless.data.csv_tables import read_rows
from softless.errors import DataError
from softless.words import counted

FEATURES, OFFSETS, NAMES, IDS = "features", "offsets", "slide", "bag_id"
TABLE = "slides.csv"  # beside the file
LAYOUT = "many bags"
LAST_DIGITS = re.compile(r"(\d+)\D*$")


def holds_many(file: Path) -> bool:
    """Whether a file holds several bags."""
    return file.suffix.lower() == ".npz" and {FEATURES, OFFSETS} <= source_of(file).forms.keys()


def names_in(file: Path) -> list[str]:
    """The names of the bags, in the order of the file.

    Raises:
        DataError: offsets and names do not fit together.
    """
    return list(_index(_stamped(file))[0])


def bag_in(file: Path, slide: str) -> Bag:
    """One bag of a file of many.

    Raises:
        DataError: there is no such bag, or it is empty.
    """
    names, offsets, source = _index(_stamped(file))
    if slide not in names:
        raise DataError(f"{file} has no bag '{slide}'")
    index = names.index(slide)
    span = int(offsets[index]), int(offsets[index + 1])
    rows = Rows.of(source, FEATURES, f"{file}, slide {slide}", span)
    return Bag(rows, slide, LAYOUT, path=file)


def _stamped(file: Path) -> tuple[Path, int, int]:
    """A file as it is now: what is kept of another content is not used."""
    status = file.stat()
    return file, status.st_mtime_ns, status.st_size


@lru_cache(maxsize=4)
def _index(stamped: tuple[Path, int, int]) -> tuple[tuple[str, ...], np.ndarray, Source]:
    """Names, offsets, and the source that keeps what was read."""
    file = stamped[0]
    source = KeptSource(source_of(file))
    offsets = source.read(OFFSETS)
    total = source.forms[FEATURES].shape[0]
    if (
        offsets.ndim != 1
        or offsets.dtype.kind not in "iu"
        or len(offsets) < 2
        or offsets[0] != 0
        or offsets[-1] != total
        or (np.diff(offsets) < 0).any()
    ):
        raise DataError(
            f"{file}: its offsets do not cut its {counted(total, 'row')} into bags: they rise from "
            f"0 to {total}, one more than there are bags"
        )
    names = _names(file, source, len(offsets) - 1)
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{file}: two of its bags are called '{twice}': rename one")
    return tuple(names), offsets, source


def _names(file: Path, source: Source, count: int) -> list[str]:
    for key in (NAMES, IDS):
        if key in source.forms and source.forms[key].shape != (count,):
            raise DataError(
                f"{file}: it has {counted(count, 'bag')} and '{key}' of shape "
                f"{source.forms[key].shape}: each bag has one name"
            )
    if NAMES in source.forms:
        return [bare(str(name)) for name in source.read(NAMES).tolist()]
    numbers = source.read(IDS).tolist() if IDS in source.forms else list(range(count))
    table = file.with_name(TABLE)
    if not table.is_file():
        return [str(number) for number in numbers]
    header, rows = read_rows(table, (NAMES,), "a slide")
    if NAMES not in header or len(rows) != count:
        return [str(number) for number in numbers]
    names = [bare(cells[header.index(NAMES)]) for _, cells in rows]
    for name, number in zip(names, numbers, strict=True):
        digits = LAST_DIGITS.search(name)
        if digits is None or int(digits[1]) != number:
            raise DataError(
                f"{table}: '{name}' stands where the file has the bag {number}: the rows are in "
                "the order of the bags, and their names end in the bags' numbers"
            )
    return names
