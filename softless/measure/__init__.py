"""What a call costs, counted and not timed."""

from softless.measure.audit import Audit, Finding, audit
from softless.measure.cost import Cost, cost
from softless.measure.exps import TranscendentalCounter

__all__ = ["Audit", "Cost", "Finding", "TranscendentalCounter", "audit", "cost"]
