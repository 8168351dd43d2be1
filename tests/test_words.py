"""Numbers in sentences: right nouns, and no rate of 0 for what moves."""

import doctest

import pytest

import softless.report.places
import softless.training.opening
import softless.words


@pytest.mark.parametrize(
    "module", [softless.words, softless.report.places, softless.training.opening]
)
def test_the_examples_hold(module):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed
