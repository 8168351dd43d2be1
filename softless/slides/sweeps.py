"""One layer of a ViT over tokens in memory, in chunks and in place: what a run does for each layer,
by itself.
"""

# N tokens, D width

from torch import Tensor, nn

from softless.slides.hosts import parts_of
from softless.slides.layer import Layer, TokenSequence, joined


def layer_in_chunks(block: nn.Module, x: Tensor, chunk: int) -> Tensor:
    """A block of timm's ViT with our attention applied to tokens x (N,D), which are changed; beside
    them a chunk is held at once.

    Raises:
        UsageError: a block, or an operator, that cannot be streamed.
    """
    layer = Layer(parts_of("block", block), TokenSequence(len(x), (len(x), 0, 0)))
    spans = [slice(start, min(start + chunk, len(x))) for start in range(0, len(x), chunk)]
    reader = None
    for number, sweep in enumerate(layer.sweeps):
        total = layer.summarise(x[spans[0]], spans[0], number, reader)
        kinds = {name: part.dtype for name, part in total.items()}
        for span in spans[1:]:
            total = joined(total, layer.summarise(x[span], span, number, reader), sweep.merge)
        total = {name: part.to(kinds[name]) for name, part in total.items()}
        reader = layer.finish(total, number)
    read = layer.reads(total)
    for span in spans:
        layer.transform(layer.attend(x[span], span, read))
    return x
