"""Rules of the group `data` alone."""

import re

from softless.errors import UsageError
from softless.experiment.groups import DataSpec
from softless.words import clipped, counted


def check_scaling(spec: DataSpec) -> None:
    """Whether mean and standard deviation are both given or both measured, with a number for each
    channel.

    Raises:
        UsageError: they are not.
    """
    if (spec.mean is None) != (spec.std is None):
        raise UsageError(
            "set data.mean and data.std together, or neither to have them measured on the "
            "training images"
        )
    for name, values in (("mean", spec.mean), ("std", spec.std)):
        if values is not None and len(values) != spec.in_chans:
            raise UsageError(
                f"data.{name} has {len(values)} numbers for data.in_chans={spec.in_chans} channels"
            )


def compiled(pattern: str) -> re.Pattern[str]:
    """The pattern.

    Raises:
        UsageError: it is none, or has not exactly one capture group.
    """
    try:
        rule = re.compile(pattern)
    except re.error as error:
        raise UsageError(
            f"data.group={clipped(pattern)} is no regular expression: {error}"
        ) from error
    if rule.groups != 1:
        raise UsageError(
            f"data.group={clipped(pattern)} has {counted(rule.groups, 'capture group')}: "
            "brackets around one part of the path say what the group is, "
            r"for example data.group='/(p\d+)_'"
        )
    return rule
