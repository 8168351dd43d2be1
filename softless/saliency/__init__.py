"""Saliency maps: where the queries and keys of an attention layer are large (SimA §4.7)."""

from softless.saliency.figure import figure
from softless.saliency.maps import explain
from softless.saliency.overlay import overlay, picture
from softless.saliency.saliency import Saliency

__all__ = ["Saliency", "explain", "figure", "overlay", "picture"]
