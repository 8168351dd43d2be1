"""What a layer looks at, for a batch of images."""

from dataclasses import dataclass

from torch import Tensor

from softless.models.scale import Foreign


@dataclass(frozen=True)
class Saliency:
    """Maps of one attention layer for a batch of images, on the processor, float32."""

    query: Tensor  # (B, h, w) in 0..1
    key: Tensor  # (B, h, w) in 0..1; of a coarser grid where keys are reduced (CvT, PVT)
    grid: tuple[int, int]  # h, w of the queries, in tokens
    # on the keys' grid, in -1..1: the class token's row of the attention matrix, divided by its
    # largest size
    class_row: Tensor | None
    operator: str
    layer: int  # counted from 0 among the attention layers
    layers: int
    normalised: bool  # False: the operator leaves q and k alone, and the maps show their own norms
    foreign: Foreign | None = None  # where the images are far from the training size

    @property
    def caption(self) -> str:
        return f"{self.operator}, attention layer {self.layer + 1} of {self.layers}"
