"""`softless.stream`: a model's answer to an image of any size, in memory bounded by the chunk."""

# N tokens, D width, h x w grid of patches

import hashlib
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, overload

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from softless.bags.bag import Bag
from softless.data.notices import notice
from softless.data.progress import track
from softless.errors import NothingReadable, UsageError, located
from softless.evaluation.run import LoadedRun
from softless.inference.packed import PackedLinear
from softless.layers.plain import weights_of
from softless.models.scale import TRAINING, Foreign, foreign, other_resolution, trained_mpp
from softless.modes import evaluating
from softless.saliency.maps import signed_unit, unit
from softless.saliency.saliency import Saliency
from softless.saliency.viewer import Picture, Size, size_of, viewer_of
from softless.slides import store as stores
from softless.slides.bags import BagResult, stream_bag, unused
from softless.slides.engine import KEY, QUERY, ROW, BadTile, Engine, Order, in_memory
from softless.slides.files import Choice
from softless.slides.hosts import StreamedHost, host_of
from softless.slides.lattice import Lattice, Origin
from softless.slides.masks import mask_of
from softless.slides.prints import image_print, tensor_print
from softless.slides.reader import Placement, Source, source_of
from softless.slides.tissue import tissue_of
from softless.tasks.opened import opened

Tissue = Literal["none", "otsu"]
CHUNK = 2048
VERSION = 3  # of what a store holds, the pixels of its image among it


@dataclass(frozen=True)
class StreamResult:
    """What a model says of an image that was streamed."""

    logits: Tensor  # (1, classes)
    features: Tensor  # (1, D): what the head is given
    saliency: Saliency | None  # of the last attention layer, over the whole grid
    # (N, D) as `forward_features` leaves them, the ones ahead of the patches first; mapped from the
    # store's file
    tokens: Tensor | None
    unreadable: tuple[BadTile, ...]
    size: tuple[int, int]  # height and width of the image at the level that was read
    grid: tuple[int, int]  # of patches; its last row and column may reach beyond the image
    patch: tuple[int, int]
    counted: int  # tokens that counted
    seconds: float
    foreign: Foreign | None = None  # where the image is far from the training size
    place: Placement = field(default_factory=Placement)  # where it lies in its file
    mask: Tensor | None = None  # (h, w) booleans: which patches counted; None: all

    def lattice(self, origin: Origin = "slide") -> Lattice:
        """Its patches as rectangles of level 0.

        Args:
            origin: Who counts the pixels: "slide" from the file's corner, "qupath" from that of
                `bounds`.

        Raises:
            UsageError: another origin.
        """
        return Lattice(self.grid, self.patch, self.size, self.place, origin)

    @property
    def level(self) -> int:
        """Of a slide, whose pixels were read."""
        return self.place.level

    @property
    def mpp(self) -> tuple[float, float] | None:
        """Micrometres per pixel of what was read, down and across; None where nothing says."""
        return self.place.mpp

    @property
    def scale(self) -> tuple[float, float]:
        """Pixels of level 0 in one of what was read, down and across."""
        return self.place.scale

    @property
    def origin(self) -> tuple[int, int]:
        """x and y of level 0 where what was read begins."""
        return self.place.origin

    @property
    def bounds(self) -> tuple[int, int, int, int] | None:
        """x, y, width and height of what was scanned, in pixels of level 0, where the slide says
        it.
        """
        return self.place.bounds

    @property
    def remarks(self) -> tuple[str, ...]:
        """What was seen of the file: a sample that was dropped, several pictures of which one was
        read.
        """
        return self.place.remarks

    @property
    def exit_code(self) -> int:
        """4 where some tiles could not be read, else 0."""
        return 4 if self.unreadable else 0


@overload
def stream(
    model: nn.Module | LoadedRun | str | Path,
    image: Bag,
    *,
    chunk: int = CHUNK,
    store: str | Path | None = None,
    quiet: bool = False,
) -> BagResult: ...
@overload
def stream(
    model: nn.Module | LoadedRun | str | Path, image: Picture, **options: Any
) -> StreamResult: ...
def stream(  # type: ignore[misc] # each option of images by its name
    model: nn.Module | LoadedRun | str | Path,
    image: Picture | Bag,
    *,
    chunk: int = CHUNK,
    store: str | Path | None = None,
    level: int = 0,
    mpp: float | str | None = None,
    slide_mpp: float | None = None,
    channels: Sequence[int] | None = None,
    page: int | None = None,
    resize: Size | None = None,
    mask: ArrayLike | Tensor | str | Path | None = None,
    tissue: Tissue = "none",
    origin: Origin = "slide",
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    saliency: bool = True,
    tokens: bool = False,
    quiet: bool = False,
    order: Order | None = None,
) -> StreamResult | BagResult:
    """The same result as model(image), in memory bounded by the chunk: exact attention over all
    tokens of an image of any size.

    The residual stream is all that is kept of the whole image, in memory or in a folder. Each layer
    goes over it chunk by chunk, with the summary of its attention in between (docs/streaming.md).
    The model computes in its own dtype, as in evaluation, and is left as it was.

    Args:
        model: A run, its folder or the name of a model; or a model: a ViT or DeiT of timm with
            softless attention (`softless.create_model`, `softless.swap`), or an XCiT;
            `softless.optimize` makes one that is faster here too.
        image: A tensor (C,H,W) or (1,C,H,W) as the model takes it, its size one that the model
            takes; a PIL image; bytes (H,W,C) as a numpy array; or the path of an image file or a
            slide. All but a tensor are normalised by `mean` and `std`; where the last patches reach
            beyond the image they are filled up with the mean colour. Of a model that was trained in
            a declared range, files and arrays hold stored values. A slide, or a tiled TIFF, is read
            region by region; an image file whole, as bytes. Or a `softless.Bag` for a model of
            bags: then `chunk`, `store` and `quiet` alone are taken, and features are read chunk by
            chunk.
        chunk: Tokens worked on at once. A layer with local patch interaction works on whole rows of
            the grid, one at least.
        store: A folder for the residual stream; None is memory. A run that was killed goes on there
            and ends with the same bits.
        level: Level of a slide, 0 the finest.
        mpp: Micrometres per pixel to look at a slide with, in place of a level; it is scaled down
            from the next finer level. "training" is what the model's training images had.
        slide_mpp: Micrometres per pixel of level 0, for a file that does not say; one that says
            another is an error.
        channels: Which 1 or 3 channels of a TIFF to look at, the first being 0: samples, or pages
            that are channels.
        page: Which picture of a TIFF that holds several, or which plane of a stack, the first being
            0.
        resize: Not for a tensor: "training" brings the image to as many tokens as in training, a
            number its longer side to so many pixels. None leaves its size.
        mask: (h,w) boolean over patches, True where one counts; the others are as if they were not
            there. Or a file: a PNG of two values and the image's shape, where 0 does not count, or
            polygons as GeoJSON. A patch counts where half of it does.
        tissue: "otsu" lets count what is stained, by Otsu's threshold on saturation; "none" looks
            at all of it.
        origin: Who counted the pixels of a mask's polygons: "slide", or "qupath"
            (`StreamResult.lattice`).
        mean: Of the normalisation; the model's by default.
        std: Of the normalisation; the model's by default.
        saliency: Whether to draw the maps of `softless.explain` for the last attention layer.
        tokens: Whether to return the tokens that the last norm leaves.
        quiet: No progress line.
        order: In which order a pass takes its chunks, given their number; any order gives the same
            result. Not with a store.

    Returns:
        Logits, features, maps, and the tiles that could not be read: their tokens are masked, which
            is removal. Of a bag logits, features and the gated weight of each tile.

    Raises:
        UsageError: a model, an operator or a size that cannot be streamed; what is in the way is
            named.
        PrecisionError: a model in float16.
        DataError: no such image or mask, one of a kind that is not read, or (`NothingReadable`) one
            of which nothing can be read.
        MissingResolution: `mpp` for a file that does not say its resolution.
        MissingExtra: a slide without what reads it.
        StorageError: the disk of the store is full; what is finished is kept.
        CheckpointError: the store holds another run, or is damaged.

    Examples:
        >>> model = softless.create_model(
        ...     "sima_deit_tiny_patch16_224", depth=2, num_classes=3
        ... ).eval()
        >>> image = torch.zeros(3, 512, 768)
        >>> result = softless.stream(model, image, chunk=256, quiet=True)
        >>> torch.allclose(result.logits, model(image[None]), atol=1e-5)
        True
    """
    if chunk < 1:
        raise UsageError(f"chunk={chunk}: at least one token at once")
    if store is not None and order is not None:
        raise UsageError(
            "order= is for runs in memory: one in a folder goes on in the order in which the "
            "chunks lie"
        )
    if isinstance(image, Bag):
        unused([
            ("level", level != 0),
            ("mpp", mpp is not None),
            ("slide_mpp", slide_mpp is not None),
            ("channels", channels is not None),
            ("page", page is not None),
            ("resize", resize is not None),
            ("mask", mask is not None),
            ("tissue", tissue != "none"),
            ("origin", origin != "slide"),
            ("mean", mean is not None),
            ("std", std is not None),
            ("tokens", tokens),
            ("order", order is not None),
        ])
        return stream_bag(opened(model), image, chunk=chunk, store=store, quiet=quiet)
    start, viewer = time.monotonic(), viewer_of(opened(model))
    model = viewer.model
    host = host_of(model)
    own_mean, own_std = viewer.mean, viewer.std
    looks = _micrometres(model, mpp)
    to_size = None if resize is None else partial(size_of, model, resize)
    choice = Choice(None if channels is None else tuple(channels), page, viewer.scale)
    source = source_of(
        image,
        host.channels,
        mean or own_mean,
        std or own_std,
        level=level,
        mpp=looks,
        slide_mpp=slide_mpp,
        to_size=to_size,
        choice=choice,
    )
    for remark in source.placement.remarks:
        notice(f"{source.name}: {remark}")
    far = foreign(model, *source.size)
    if far is not None:
        notice(far.advice())
    if resolution_note := other_resolution(model, source.placement.mpp):
        notice(f"{source.name}: {resolution_note}")
    with closing(source), evaluating(model):
        counts = _counting(
            mask, tissue, image, _lattice(host, source, origin), source.exact, choice
        )
        run = _Run(host, source, chunk, store, counts, saliency, tokens, order)
        facts: dict[str, Any] = (
            {}
            if store is None
            else {
                "image": image_print(image),
                "level": [level, looks, slide_mpp],
                "scale": [list(mean or own_mean), list(std or own_std)],
            }
        )
        for name, argument in (
            ("resize", resize),
            ("channels", None if channels is None else list(channels)),
            ("page", page),
            ("range", None if viewer.scale is None else viewer.scale.text),
        ):
            if facts and argument is not None:
                facts[name] = argument
        return replace(run.result(facts, quiet=quiet, start=start), foreign=far)


class _Run:
    """An engine in its folder."""

    def __init__(
        self,
        host: StreamedHost,
        source: Source,
        chunk: int,
        store: str | Path | None,
        mask: Tensor | None,
        saliency: bool,
        tokens: bool,
        order: Order | None,
    ) -> None:
        self.host, self.source, self.chunk, self.mask = host, source, chunk, mask
        self.saliency, self.tokens, self.order = saliency, tokens, order
        self.folder = None if store is None else located(store)

    def result(self, facts: dict[str, Any], *, quiet: bool, start: float) -> StreamResult:
        if self.folder is None:
            return self._done(self._engine(), quiet, start)
        options = {
            "chunk": self.chunk,
            "saliency": self.saliency,
            "tokens": self.tokens,
            "mask": tensor_print(self.mask),
        }
        stores.same_run(
            self.folder,
            {**facts, "model": _model_print(self.host), "options": options, "version": VERSION},
        )
        with stores.held(self.folder):
            try:
                return self._done(self._engine(), quiet, start)
            except NothingReadable:
                stores.emptied(self.folder)
                raise

    def _engine(self) -> Engine:
        journal = log = None
        rows = in_memory(self.host.device)
        if self.folder is not None:
            folder, journal, log = self.folder, stores.Journal(self.folder), stores.Log(self.folder)

            def rows(name: str, count: int, width: int, dtype: torch.dtype) -> stores.Rows:
                return stores.InFile(folder / f"{name}.bin", count, width, dtype, self.host.device)

        return Engine(
            self.host,
            self.source,
            chunk=self.chunk,
            rows=rows,
            journal=journal,
            log=log,
            mask=self.mask,
            draws=self.saliency,
            finishes=self.tokens,
            order=self.order,
        )

    def _done(self, engine: Engine, quiet: bool, start: float) -> StreamResult:
        steps: Iterable[None] = engine.run()
        for _ in steps if quiet else track(steps, engine.steps, "streaming"):
            pass
        sequence = engine.sequence
        result = StreamResult(
            logits=engine.state["logits"],
            features=engine.state["features"],
            saliency=_saliency(engine) if self.saliency else None,
            tokens=engine.tokens.whole() if self.tokens else None,
            unreadable=tuple(engine.unreadable.tiles.values()),
            size=self.source.size,
            grid=engine.grid,
            patch=self.host.patch,
            counted=sequence.tokens if sequence.mask is None else int(sequence.mask.sum()),
            seconds=time.monotonic() - start,
            place=self.source.placement,
            mask=None
            if sequence.mask is None
            else sequence.mask[self.host.prefix :].unflatten(0, engine.grid).cpu(),
        )
        engine.close()
        return result


def _saliency(engine: Engine) -> Saliency:
    """The maps as `softless.explain` gives them; a patch that does not count has nothing in
    them.
    """
    assert engine.maps is not None
    prefix, layer = engine.host.prefix, engine.layers[-1]
    values = engine.maps.whole()[prefix:].T.unflatten(1, engine.grid)[:, None].cpu()
    mask = (
        None
        if engine.sequence.mask is None
        else engine.sequence.mask[prefix:].unflatten(0, engine.grid).cpu()
    )

    def low(x: Tensor) -> Tensor:
        if mask is None or not mask.any():
            return x
        return torch.where(mask, x, x[..., mask].min())

    row = values[ROW] if layer.has_class_row or engine.tail.row is not None else None
    return Saliency(
        query=unit(low(values[QUERY])),
        key=unit(low(values[KEY])),
        grid=engine.grid,
        class_row=None
        if row is None
        else signed_unit(row if mask is None else row.masked_fill(~mask, 0)),
        operator=layer.record.name,
        layer=len(engine.layers) - 1,
        layers=len(engine.layers),
        normalised=layer.record.hat is not None,
    )


def _micrometres(model: nn.Module, mpp: float | str | None) -> float | None:
    if mpp == TRAINING:
        return trained_mpp(model)
    if isinstance(mpp, str):
        raise UsageError(f"mpp={mpp}: give micrometres per pixel, for example 0.5, or training")
    return mpp


def _lattice(host: StreamedHost, source: Source, origin: Origin) -> Lattice:
    down, across = (-(-side // patch) for side, patch in zip(source.size, host.patch, strict=True))
    return Lattice((down, across), host.patch, source.size, source.placement, origin)


def _counting(
    mask: ArrayLike | Tensor | str | Path | None,
    tissue: Tissue,
    image: Picture,
    lattice: Lattice,
    exact: bool,
    choice: Choice,
) -> Tensor | None:
    """Which patches count (h,w), as asked; None: all."""
    if tissue not in get_args(Tissue):
        raise UsageError(f"tissue={tissue}: give otsu (what is stained counts) or none (all of it)")
    if tissue == "otsu":
        if mask is not None:
            raise UsageError("mask= and tissue=otsu both say what counts: leave one of them out")
        if exact:
            raise UsageError(
                "tissue=otsu looks at a picture, and a tensor is taken as it is: give mask="
            )

        return torch.from_numpy(tissue_of(image, lattice, choice))
    if mask is None:
        return None
    if isinstance(mask, str | Path):
        return torch.from_numpy(mask_of(mask, lattice))
    patches = (
        torch.as_tensor(mask) if isinstance(mask, Tensor) else torch.from_numpy(np.array(mask))
    )
    if patches.dtype != torch.bool or tuple(patches.shape) != lattice.grid:
        raise UsageError(
            f"mask has shape {tuple(patches.shape)} and dtype {patches.dtype}: give booleans of "
            f"shape {lattice.grid}, one for each patch of "
            f"{lattice.patch[0]} x {lattice.patch[1]} pixels, True where it counts"
        )
    return patches


# What a folder is told of its run


def _model_print(host: StreamedHost) -> str:
    """A digest of the weights, their names, and what the model computes with them."""
    digest = hashlib.sha256(repr(host.model).encode())
    for name, values in _weights(host.model):
        digest.update(
            f"{name} {values.dtype} {tuple(values.shape)} {tensor_print(values)}\n".encode()
        )
    return digest.hexdigest()


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters, buffers and packed weights."""
    yield from model.named_parameters()
    yield from model.named_buffers()
    for path, module in model.named_modules():
        if (
            isinstance(module, PackedLinear)
            and (packed := weights_of(module, kinds=(PackedLinear,))) is not None
        ):
            yield path, packed.W
