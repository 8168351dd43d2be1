"""Models prepared for inference on the processor."""

from softless.inference.optimize import Optimized, optimize

__all__ = ["Optimized", "optimize"]
