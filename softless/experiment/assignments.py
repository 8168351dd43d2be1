"""Fields of a recipe as words: `field=value`."""

from collections.abc import Mapping, Sequence
from typing import Any

from softless.errors import UsageError


def assignments(pairs: str | Sequence[str] | Mapping[str, Any]) -> Mapping[str, Any]:
    """`field=value` words as a mapping: several, or one; a mapping is one already.

    Raises:
        UsageError: a word without `=`, or a field that is set twice to different values.
    """
    if isinstance(pairs, Mapping):
        return pairs
    pairs = [pairs] if isinstance(pairs, str) else pairs
    wrong = [assignment for assignment in pairs if "=" not in assignment]
    if wrong:
        raise UsageError(
            f"--set takes field=value, for example --set optim.lr=3e-4; got '{wrong[0]}'"
        )
    fields: dict[str, str] = {}
    for field, _, value in (assignment.partition("=") for assignment in pairs):
        if fields.setdefault(field, value) != value:
            raise UsageError(
                f"{field} is set twice, to '{fields[field]}' and to '{value}': leave one out"
            )
    return fields
