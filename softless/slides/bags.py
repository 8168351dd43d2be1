"""`softless.stream` of a bag: a model's answer to any number of tiles, in memory bounded by the
chunk.

Features are read chunk by chunk, where they lie. The residual stream is all that is kept of all
tiles: in memory while it is small, else in a file. Each block goes over it in chunks, with the
summaries of its attention in between; the pool joins over chunks too.
"""

# N tiles, n of a chunk, W width, K classes

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from softless.attention.streaming import Summary
from softless.bags.bag import Bag
from softless.data.progress import track
from softless.errors import DataError, PrecisionError, UsageError, located
from softless.evaluation.run import LoadedRun
from softless.layers.plain import refuse_parts
from softless.layers.recomputed import spans_of
from softless.models.bag import BagModel
from softless.models.bag_parts import BagBlock, ClassPool, GatedPool, from_smallest
from softless.models.durable import make_folder
from softless.modes import evaluating, unwrapped
from softless.slides.layer import joined
from softless.slides.store import InFile, InMemory

CHUNK = 2048
HELD = 2**27  # bytes of the residual stream that stay in memory


@dataclass(frozen=True)
class BagResult:
    """What a model says of a bag that was streamed."""

    logits: Tensor  # (1, K)
    features: Tensor  # (1, W): what the head is given
    # (N,): the gated weight of each tile, which sum to 1; None of a model without a gated pool
    scores: Tensor | None
    tiles: int
    seconds: float


def stream_bag(
    model: nn.Module | LoadedRun,
    bag: Bag,
    *,
    chunk: int = CHUNK,
    store: str | Path | None = None,
    quiet: bool = False,
) -> BagResult:
    """The same as model(features, coords_um), in memory bounded by the chunk.

    Args:
        model: a model of bags, or its run.
        bag: what it is asked about.
        chunk: tiles worked on at once; the answer does not hang on it.
        store: a folder for the file of the residual stream; the system's own for such files by
            default. It is removed at the end.
        quiet: no progress line.

    Raises:
        UsageError: a model of images, an operator that cannot work in chunks (the reason is given),
            or a chunk without tiles.
        PrecisionError: a model in float16.
        DataError: a bag of other features, or without the coordinates that the model looks at.
        CoordinateError: coordinates whose unit is not known.
        StorageError: the disk has no room for the residual stream.
    """
    start = time.monotonic()
    network = unwrapped(model.model if isinstance(model, LoadedRun) else model)
    if not isinstance(network, BagModel):
        raise UsageError(
            f"a bag holds features of tiles, and this {type(network).__name__} takes images: "
            "stream it with a model of bags, for example "
            f"softless.create_model('sima_bag_small', in_dim={bag.features.shape[1]})"
        )
    if chunk < 1:
        raise UsageError(f"chunk={chunk}: at least one tile at once")
    with ExitStack() as stack:
        stack.enter_context(evaluating(network))
        stack.enter_context(bag.held_open())
        run = _BagRun(network, bag, chunk, None if store is None else located(store), stack)
        steps: Iterator[None] = run.steps()
        for _ in steps if quiet else track(steps, run.number, "streaming"):
            pass
        with torch.no_grad():
            features = run.pooled()
            logits = network.head(features)
    return BagResult(logits, features, run.weights(), len(bag), time.monotonic() - start)


class _Sum:
    """Summaries of chunks as they come, joined in float64."""

    def __init__(self, merge: Callable[[Summary, Summary], Summary]) -> None:
        self.merge = merge
        self.total: Summary | None = None
        self.kinds: dict[str, torch.dtype] = {}

    def add(self, summary: Summary) -> None:
        if self.total is None:
            self.total = summary
            self.kinds = {name: x.dtype for name, x in summary.items()}
        else:
            self.total = joined(self.total, summary, self.merge)

    def whole(self) -> Summary:
        assert self.total is not None
        return {name: x.to(self.kinds[name]) for name, x in self.total.items()}


class _BagRun:
    """A model over the chunks of a bag."""

    def __init__(
        self, model: BagModel, bag: Bag, chunk: int, store: Path | None, stack: ExitStack
    ) -> None:
        self.model, self.bag = model, bag
        refuse_parts(model, "stream")
        width = bag.features.shape[1]
        if width != model.in_dim:
            raise DataError(
                f"{bag.slide or 'the bag'} has {width} features a tile, and the model was made for "
                f"{model.in_dim}: take the features of the encoder that it was trained on"
            )
        weight = model.first_weight
        self.device, self.dtype = weight.device, weight.dtype
        if self.dtype == torch.float16:
            raise PrecisionError(
                "float16 cannot hold the output of many tiles: stream the model in bfloat16 or "
                "float32"
            )
        self.coords = self._coordinates()
        # a class token stands ahead of the tiles
        self.ahead = 0 if model.cls_token is None else 1
        self.total = len(bag) + self.ahead
        self.spans = spans_of(self.total, chunk)
        self.blocks = [
            block.chunked(f"blocks.{i}.attn", None, self.total)
            for i, block in enumerate(model.blocks)
            if isinstance(block, BagBlock)
        ]
        gated = isinstance(model.pool, GatedPool)
        self.scores = torch.empty(len(bag)) if gated else None
        self.sums = [_Sum(block.sweeps[0].merge) for block in self.blocks]
        self.sums.append(_Sum(model.pool.merge))
        self.first: Tensor | None = None  # the class token behind the last block
        self.rows = self._rows(store, stack) if self.blocks else None
        sweeps = [len(block.sweeps) for block in self.blocks]
        self.number = len(self.spans) * (1 + sum(sweeps))

    def _coordinates(self) -> Tensor | None:
        if self.model.position is None:
            return None
        coords = self.bag.coords_um
        if coords is None:
            raise DataError(
                f"{self.bag.slide or 'the bag'} has no coordinates, and the model looks at where "
                "tiles stand: give the file of coordinates by Bag.open(…, coords=)"
            )
        return from_smallest(torch.tensor(coords)[None], None)

    def _rows(self, store: Path | None, stack: ExitStack) -> InFile | InMemory:
        """Where the residual stream lies."""
        width, size = self.model.num_features, torch.empty(0, dtype=self.dtype).element_size()
        small = store is None and self.total * width * size <= HELD
        rows: InFile | InMemory
        if small:
            rows = InMemory(self.total, width, self.dtype, self.device)
        else:
            if store is not None:
                make_folder(store)
            folder = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="softless-bag-", dir=store)
            )
            rows = InFile(Path(folder) / "rows.bin", self.total, width, self.dtype, self.device)
            stack.callback(rows.close, remove=True)
        rows.open()
        return rows

    def steps(self) -> Iterator[None]:
        """One step for each chunk of each pass."""
        for span in self.spans:
            self._take(0, self._tokens(span), span)
            yield
        for i, block in enumerate(self.blocks):
            reader = block.sweeps[0].finish(self.sums[i].whole())
            for sweep in block.sweeps[1:]:
                total = _Sum(sweep.merge)
                for span in self.spans:
                    total.add(_without_gradients(sweep.summarise, self._read(span), span, reader))
                    yield
                reader = sweep.finish(total.whole())
            read = _without_gradients(block.reading, reader)
            for span in self.spans:
                self._take(i + 1, _without_gradients(read, self._read(span), span), span)
                yield

    def _read(self, span: slice) -> Tensor:
        assert self.rows is not None
        return self.rows.read(span.start, span.stop)[None]

    @torch.no_grad()
    def _tokens(self, span: slice) -> Tensor:
        """Tokens (1,n,W) of a chunk as they enter the first block."""
        model = self.model
        tiles = slice(max(span.start - self.ahead, 0), span.stop - self.ahead)
        parts = []
        if tiles.stop > tiles.start:
            # a file that is mapped is not writable, which torch warns of
            rows = np.require(self.bag.features[tiles], requirements="W")
            features = torch.from_numpy(rows)[None].to(self.device)
            parts.append(model.embedded(features, self.coords, None, tiles))
        if model.cls_token is not None and span.start == 0:
            parts.insert(0, model.cls_token.to(self.dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    @torch.no_grad()
    def _take(self, level: int, x: Tensor, span: slice) -> None:
        """Hand tokens (1,n,W) on to a block, or behind the last to the pool."""
        if level < len(self.blocks):
            self.sums[level].add(self.blocks[level].sweeps[0].summarise(x, span, None))
            assert self.rows is not None
            self.rows.write(span.start, x[0])
            return
        pool = self.model.pool
        if isinstance(pool, ClassPool):
            if span.start == 0:
                self.first = pool(x)
        elif isinstance(pool, GatedPool):
            h = pool.norm(x)
            scores = pool.scores(h)
            assert self.scores is not None
            self.scores[span] = scores[0, :, 0].float().cpu()
            self.sums[level].add(pool.weighed(h, scores, None))
        else:
            self.sums[level].add(pool.summarise(x, None))

    def pooled(self) -> Tensor:
        """What the head is given, (1,W)."""
        return self.model.pool.finish(self.sums[-1].whole()) if self.first is None else self.first

    def weights(self) -> Tensor | None:
        """The gated weight of each tile, (N,)."""
        return None if self.scores is None else self.scores.double().softmax(0).float()


@torch.no_grad()
def _without_gradients(function: Callable[..., Any], *arguments: Any) -> Any:
    return function(*arguments)


def unused(options: Sequence[tuple[str, bool]]) -> None:
    """Refuse options of images.

    Raises:
        UsageError: one was given.
    """
    names = [name for name, given in options if given]
    if names:
        raise UsageError(
            f"{names[0]}= is for images, and a bag holds features of tiles: leave it out"
        )
