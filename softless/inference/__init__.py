"""Models prepared for inference on the processor."""

from softless.inference.optimize import optimize
from softless.inference.optimized import Optimized

__all__ = ["Optimized", "optimize"]
