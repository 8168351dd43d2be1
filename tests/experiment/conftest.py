"""The small recipe and the forking process of the tests of training."""

from tests.training.conftest import tiny, zygote

__all__ = ["tiny", "zygote"]
