"""How a table of slides is read: which columns it has."""

from dataclasses import dataclass

from softless.experiment.fields import setting


@dataclass(frozen=True)
class BagTableSpec:
    """Slides listed in a table: which file it is, and the names of its columns."""

    path: str | None = setting(None, "the table, a CSV file")
    slides: str | None = setting(
        None, "a second table that says which patient each slide is of, as STAMP's slide_table"
    )
    slide: str = setting("slide", "column of the slides, with or without the ending of their files")
    patient: str | None = setting(
        "patient", "column of the patients; none: each slide is a patient of its own"
    )
    label: tuple[str, ...] = setting(
        ("label",),
        "column of the classes; several columns of 0 and 1 are labels that a patient may have "
        "together",
    )
    time: str | None = setting(None, "column of times until an event or the last visit")
    event: str | None = setting(None, "column that says whether the event came: 1, or 0 for none")
    split: str | None = setting(
        "split", "column of the parts (train, val, test); none, or no such column: they are cut"
    )
    fold: str | None = setting(None, "column of the numbers of folds, the first is 0")
    splits: str | None = setting(
        None, "CLAM's splits_k.csv, a folder of them, or STAMP's splits.json, for the parts"
    )
    mpp: str | None = setting(None, "column of the micrometres of each slide's level-0 pixel")
