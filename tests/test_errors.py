"""Errors pass from one process to another (a loader's, a rank's) as what they are."""

import pickle

import pytest

from softless import errors

KINDS = [
    kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, errors.SoftlessError)
]
GIVEN: dict[type, tuple] = {
    errors.Interrupted: ("stopped", 143),
    errors.MissingExtra: ("lightly", "ssl"),
    errors.Faults: ("two faults:", ["a", "b"]),
}


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_an_error_is_pickled_whole(kind: type[errors.SoftlessError]) -> None:
    error = kind(*GIVEN.get(kind, ("what, the rule, the way out",)))
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert (str(again), again.exit_code) == (str(error), error.exit_code)
