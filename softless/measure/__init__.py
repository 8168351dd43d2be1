"""What a call costs, counted and not timed."""

from softless.measure.audit import audit
from softless.measure.cost import Cost, cost
from softless.measure.exps import TranscendentalCounter
from softless.measure.findings import Audit, Finding
from softless.measure.flops import FlopCounter

__all__ = ["Audit", "Cost", "Finding", "FlopCounter", "TranscendentalCounter", "audit", "cost"]
