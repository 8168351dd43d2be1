"""Two colour maps, without matplotlib: viridis for sizes in 0..1, blue-white-red for signed values
in -1..1.

Viridis is perceptually uniform and readable with any colour vision (van der Walt and Smith 2015,
CC0). 17 of its 256 colours stand here and the rest is interpolated, within 5 of 255 of the
original. The diverging map runs through equal lightness on both sides.
"""

import numpy as np
from numpy.typing import NDArray

VIRIDIS = (
    "440154 48186a 472d7b 424086 3b528b 33638d 2c728e 26828e 21918c 1fa088 28ae80 3fbc73 "
    "5ec962 84d44b addc30 d8e219 fde725"
)
DIVERGING = "1c3f7c 2f66b0 5c93cf 9cc3e3 d6e6f0 f6f4f1 f5dccd eeae93 db7760 bb3f40 861a2e"


def _table(colours: str) -> NDArray[np.float64]:
    return np.array(
        [[int(colour[i : i + 2], 16) for i in (0, 2, 4)] for colour in colours.split()],
        dtype=np.float64,
    )


def colourise(values: NDArray[np.floating], *, signed: bool = False) -> NDArray[np.float64]:
    """Colours (..., 3) in 0..255 for values in 0..1, or in -1..1 when signed; values outside are
    clipped.
    """
    table = _table(DIVERGING if signed else VIRIDIS)
    share = np.clip((values + 1) / 2 if signed else values, 0, 1)
    places = np.linspace(0, 1, len(table))
    return np.stack([np.interp(share, places, table[:, channel]) for channel in range(3)], axis=-1)
