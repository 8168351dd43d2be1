"""Timed and trained comparisons, each printed as a table and kept as CSV rows with where they came
from.
"""

from softless.benching.comparison import compare, twins
from softless.benching.measure import Spread, Timings, interleaved
from softless.benching.outcome import Compared
from softless.benching.throughput import throughput

__all__ = ["Compared", "Spread", "Timings", "compare", "interleaved", "throughput", "twins"]
