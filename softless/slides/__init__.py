"""Images of any size: a model's answer in memory bounded by a chunk of tokens, from a slide that is
never read whole.
"""

from softless.slides.engine import BadTile
from softless.slides.lattice import Lattice
from softless.slides.maps import Map, Maps, maps_of, save_maps
from softless.slides.stream import StreamResult, stream
from softless.slides.thumbnails import thumbnail

__all__ = [
    "BadTile",
    "Lattice",
    "Map",
    "Maps",
    "StreamResult",
    "maps_of",
    "save_maps",
    "stream",
    "thumbnail",
]
