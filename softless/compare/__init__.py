"""Timed and trained comparisons, each printed as a table and kept as CSV rows with where they came
from.
"""

from softless.compare.comparison import compare, twins
from softless.compare.outcome import Compared
from softless.compare.throughput import throughput
from softless.compare.timing import Spread, Timings, interleaved

__all__ = ["Compared", "Spread", "Timings", "compare", "interleaved", "throughput", "twins"]
