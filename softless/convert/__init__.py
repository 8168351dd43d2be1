"""Existing models with another attention: what is exchanged, what is kept, and why."""

from softless.convert.swap import Swapped, swap

__all__ = ["Swapped", "swap"]
