"""Images of any size: a model's answer in memory bounded by a chunk of tokens, from a slide that is never read whole."""

from softless.slides.engine import BadTile
from softless.slides.stream import StreamResult, stream

__all__ = ["BadTile", "StreamResult", "stream"]
