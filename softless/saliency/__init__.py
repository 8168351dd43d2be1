"""Saliency maps: where the queries and keys of an attention layer are large (SimA §4.7)."""

from softless.saliency.figure import figure, picture
from softless.saliency.maps import Saliency, explain
from softless.saliency.overlay import overlay

__all__ = ["Saliency", "explain", "figure", "overlay", "picture"]
