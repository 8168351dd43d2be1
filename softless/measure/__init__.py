"""What a call costs, counted and not timed."""

from softless.measure.cost import Cost, cost
from softless.measure.exps import TranscendentalCounter

__all__ = ["Cost", "TranscendentalCounter", "cost"]
