"""prov-gigapath: `SLIDE.h5` with `features` and `coords` without attributes, or what its pipeline
returns (`tile_embeds`, `coords`) saved by torch.

Read in `finetune/datasets/slide_datatset.py` and `gigapath/pipeline.py` at 09d8e87. Tiles have 256
pixels of 0.5 micrometres, and coordinates count such pixels, not those of level 0. Nothing in an h5
file says so, so layout="gigapath" must be given for it.
"""

from softless.bags.files import Source
from softless.bags.layouts.layout import Described, Layout, feature_key, pairs
from softless.bags.units import Frame

MPP, SIDE = 0.5, 256.0  # micrometres of a pixel that coordinates count, and the side of a tile


def _describe(source: Source, *, named: bool) -> Described:  # noqa: ARG001
    key = feature_key(source, "features", "tile_embeds")
    return Described(key, pairs(source, "coords"), Frame(um=MPP, tile=SIDE), "prov-gigapath")


LAYOUT = Layout(
    name="gigapath",
    tool="prov-gigapath",
    keys="`features`, `coords`, no attributes; `tile_embeds`, `coords` of its pipeline",
    unit='pixels of 0.5 micrometres; only where `layout="gigapath"` is given',
    recognises=lambda source: False,  # noqa: ARG005 - nothing in the file tells it from others
    describe=_describe,
)
