"""The passes of a run over the residual stream: embedding, sweep after sweep, and what is drawn;
each step may be the last before a kill.

A layer costs one pass where its operator takes one sweep. The pass that applies layer l to a chunk
already sums what layer l + 1 needs to know of it (reference: performance.md §5):

    for each chunk:   x += attention_l(x);  x += lpi_l(x);  x += mlp_l(x);  summary_l+1 += summarise(x)
"""

# N tokens, D width, h x w grid

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softless.attention.streaming import Summary
from softless.data.notices import notice
from softless.errors import NothingReadable
from softless.slides.hosts import StreamedHost
from softless.slides.layer import Layer, TokenSequence, joined
from softless.slides.pixels import Lost
from softless.slides.reader import Source
from softless.slides.store import Entry, InFile, InMemory, Journal, Log, Rows
from softless.slides.tail import ClassBlock, State, Sweeping, Tail, TailStage

HALO = 2  # rows of tokens that two convolutions of 3 x 3 see beyond their own
QUERY, KEY, ROW = 0, 1, 2  # columns of what is drawn
Order = Callable[[int], Sequence[int]]  # of so many chunks


@dataclass(frozen=True)
class BadTile:
    """A tile that could not be read: its level, the pixel of that level where it begins, and
    why.
    """

    level: int
    x: int
    y: int
    reason: str


@dataclass
class UnreadableTiles:
    """What the embedding found: tiles that cannot be read, and the patches they cover."""

    tiles: dict[tuple[int, int], BadTile] = field(default_factory=dict)  # by x and y
    # first row, last row + 1, first column, last column + 1
    patches: list[Sequence[int]] = field(default_factory=list)
    log: Log | None = None

    def add(self, tile: BadTile, patches: Sequence[int]) -> None:
        """Take a tile in, once; with a log it outlives the process."""
        if (tile.x, tile.y) not in self.tiles:
            self.tiles[tile.x, tile.y] = tile
            self.patches.append(patches)
            if self.log is not None:
                self.log.add({"tile": vars(tile), "patches": list(patches)})

    def back_to(self, length: int) -> None:
        """What the log held when it was so long."""
        for line in self.log.back_to(length) if self.log is not None else ():
            tile = BadTile(**line["tile"])
            self.tiles[tile.x, tile.y] = tile
            self.patches.append(line["patches"])


@dataclass(frozen=True)
class Job:
    """One pass over all tokens: a layer applied, something summed, something drawn, or the tokens
    finished.
    """

    layer: Layer | None = None
    stage: TailStage | None = None
    draws: bool = False
    row: ClassBlock | None = None
    finishes: bool = False
    answers: bool = False  # the head follows


class Engine:
    """A run: a host, an image, the rows it works on.

    Args:
        host: The model.
        source: The image.
        chunk: Tokens worked on at once.
        rows: Makes a place for N rows of a width and dtype, by name.
        journal: Where each step is noted; None in memory.
        log: Where tiles that cannot be read are noted, with a journal.
        mask: (h, w) patches that count; None: all.
        draws: Whether the maps are drawn.
        finishes: Whether the finished tokens are wanted.
        order: In which order the chunks of a pass go; as they lie by default, and always where a
            layer looks at neighbours.

    Raises:
        UsageError: the size, or an operator, does not allow it.
    """

    def __init__(
        self,
        host: StreamedHost,
        source: Source,
        *,
        chunk: int,
        rows: Callable[[str, int, int, torch.dtype], Rows],
        journal: Journal | None = None,
        log: Log | None = None,
        mask: Tensor | None = None,
        draws: bool = True,
        finishes: bool = False,
        order: Order | None = None,
    ) -> None:
        self.host, self.source, self.chunk, self.journal, self.order = (
            host,
            source,
            chunk,
            journal,
            order,
        )
        height, width = source.size
        across, down = math.ceil(width / host.patch[1]), math.ceil(height / host.patch[0])
        host.check(
            *(source.size if source.exact else (down * host.patch[0], across * host.patch[1]))
        )
        self.grid = down, across
        self.requested_mask = mask
        self.sequence = TokenSequence(host.prefix + down * across, (host.prefix, down, across))
        host.positions(down, across)
        self.layers = [Layer(parts, self.sequence) for parts in host.parts]
        self.tail = Tail(host, self.sequence)
        self.jobs = self._jobs(draws, finishes)
        self.blocks = list(self._blocks())
        self.unreadable = UnreadableTiles(log=log)
        self.tokens = rows("tokens", self.sequence.tokens, host.dim, host.dtype)
        self.maps = rows("maps", self.sequence.tokens, 3, torch.float32) if draws else None
        self.state: State = {}

    def _jobs(self, draws: bool, finishes: bool) -> list[Job]:
        """The passes over the residual stream, in their order."""
        jobs, before = [], None
        for layer in self.layers:
            for sweep in range(len(layer.sweeps)):
                jobs.append(Job(before, Sweeping(layer, sweep)))
                before = None
            before = layer
        stages: list[TailStage | None] = [*self.tail.stages] or [None]
        jobs.append(Job(before, stages[0], draws=draws, answers=len(stages) == 1))
        jobs += [Job(stage=stage, answers=stage is stages[-1]) for stage in stages[1:]]
        if draws and self.tail.row is not None:
            jobs.append(Job(row=self.tail.row))
        return [*jobs, Job(finishes=True)] if finishes else jobs

    @property
    def steps(self) -> int:
        """How many steps the run has in all."""
        return len(self.blocks) + sum(len(self._spans(job)) for job in self.jobs)

    # The passes

    @torch.no_grad()
    def run(self) -> Iterator[None]:
        """Do the work, one step for each that is yielded; a run that has a journal goes on where it
        stands.
        """
        at, carried = self._resumed()
        if at["job"] < 0:
            yield from self._embed(at["step"] + 1)
            at = {"job": 0, "step": -1}
        else:
            for _ in self.blocks:
                yield
        self._know_the_mask()
        for number, job in enumerate(self.jobs):
            spans = self._spans(job)
            if number < at["job"]:
                for _ in spans:
                    yield
                continue
            ahead = at["step"] + 1 if number == at["job"] else 0
            for _ in range(ahead):
                yield
            yield from self._pass(number, job, spans, ahead, carried if number == at["job"] else {})

    def _pass(
        self, number: int, job: Job, spans: list[slice], ahead: int, carried: State
    ) -> Iterator[None]:
        step = Step(self, job, carried)
        for index in range(ahead, len(spans)):
            changed = step.take(spans[index])
            self._note(number, index, changed, step.carried())
            if changed is not None:
                self.tokens.write(*changed)
            yield
        self.state = step.close()
        if job.answers:
            prefix = self.tokens.read(0, self.host.prefix)
            features, logits = self.tail.head(prefix, self.state)
            self.state = self.state | {"features": features, "logits": logits}
        self._note(number + 1, -1)

    def _spans(self, job: Job) -> list[slice]:
        """The chunks of a pass in their order; whole rows of the grid where a layer looks at
        neighbours.
        """
        total, size = self.sequence.tokens, self.chunk
        if job.layer is not None and job.layer.parts.lpi is not None:
            size = max(1, size // self.grid[1]) * self.grid[1]
            return [slice(start, min(start + size, total)) for start in range(0, total, size)]
        spans = [slice(start, min(start + size, total)) for start in range(0, total, size)]
        return spans if self.order is None else [spans[i] for i in self.order(len(spans))]

    def close(self) -> None:
        """Give files back; those whose rows nobody asked for go."""
        for rows, keep in ((self.tokens, self.jobs[-1].finishes), (self.maps, True)):
            if isinstance(rows, InFile):
                rows.close(remove=not keep)

    # Embedding

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        """Squares of patches, about a chunk each: a slide's tiles are then read once, or nearly
        so.
        """
        side = 2 ** int(math.log2(max(1, math.isqrt(self.chunk))))
        for top in range(0, self.grid[0], side):
            for left in range(0, self.grid[1], side):
                yield (
                    slice(top, min(top + side, self.grid[0])),
                    slice(left, min(left + side, self.grid[1])),
                )

    def _embed(self, ahead: int) -> Iterator[None]:
        prefix, width = self.host.prefix, self.grid[1]
        self.tokens.write(0, self.host.prefix_rows().to(self.host.dtype))
        for _ in range(ahead):
            yield
        for number in range(ahead, len(self.blocks)):
            rows, columns = self.blocks[number]
            tokens = self.host.embed(self._pixels(rows, columns), rows, columns)
            for row, values in zip(range(rows.start, rows.stop), tokens, strict=True):
                self.tokens.write(prefix + row * width + columns.start, values.contiguous())
            self._note(-1, number)
            yield
        self.state = {}
        self._note(0, -1)

    def _pixels(self, rows: slice, columns: slice) -> Tensor:
        """The pixels of a block, with the host's margin above and to the left, filled up with the
        mean colour where the image ends.
        """
        (patch_height, patch_width), margin = self.host.patch, self.host.margin
        top, left = (
            max(0, rows.start - margin) * patch_height,
            max(0, columns.start - margin) * patch_width,
        )
        height, width = rows.stop * patch_height - top, columns.stop * patch_width - left
        inside = min(height, self.source.size[0] - top), min(width, self.source.size[1] - left)
        lost: list[Lost] = []
        pixels = self.source.read(top, left, *inside, lost)
        for tile in lost:
            self._report(tile)
        pixels = pixels.to(self.host.device, self.host.dtype)
        return (
            F.pad(pixels, (0, width - inside[1], 0, height - inside[0]))
            if inside != (height, width)
            else pixels
        )

    def _report(self, tile: Lost) -> None:
        """Note a tile that cannot be read, and the patches that it covers: they do not count."""
        (patch_height, patch_width), (top, left, bottom, right) = self.host.patch, tile.box
        patches = (
            top // patch_height,
            math.ceil(bottom / patch_height),
            left // patch_width,
            math.ceil(right / patch_width),
        )
        self.unreadable.add(BadTile(tile.level, tile.x, tile.y, tile.reason), patches)

    def _know_the_mask(self) -> None:
        """Which tokens count: the patches asked for, without those that could not be read."""
        mask = (
            torch.ones(self.grid, dtype=torch.bool)
            if self.requested_mask is None
            else self.requested_mask.clone()
        )
        for top, bottom, left, right in self.unreadable.patches:
            mask[top:bottom, left:right] = False
        if self.unreadable.patches and not mask.any():
            tile = next(iter(self.unreadable.tiles.values()))
            raise NothingReadable(
                f"{self.source.name}: none of its {len(self.unreadable.tiles)} tiles that count "
                f"can be read ({tile.reason}), so there is no answer; replace the file"
            )
        if not mask.any():
            notice(f"{self.source.name}: no patch counts, so the answer says nothing of the image")
        if not mask.all():
            prefix = torch.ones(self.host.prefix, dtype=torch.bool)
            self.sequence.know(torch.cat([prefix, mask.flatten()]).to(self.host.device))

    # The journal

    def _note(
        self,
        job: int,
        step: int,
        changed: tuple[int, Tensor] | None = None,
        carried: State | None = None,
    ) -> None:
        """Note a step; what it made goes in with it, since it changes tokens where they lie."""
        if self.journal is None:
            return
        at: dict[str, Any] = {
            "job": job,
            "step": step,
            "log": 0 if self.unreadable.log is None else self.unreadable.log.length,
        }
        tensors = {f"state.{name}": x for name, x in self.state.items()}
        for name, x in (carried or {}).items():
            tensors[f"carried.{name}"] = x
        if changed is not None:
            at["start"], tensors["rows"] = changed
        self.journal.write(Entry(at, tensors))

    def _resumed(self) -> tuple[dict[str, Any], State]:
        """Where the run stands, with the tokens of the last step in their place; -1 is the
        embedding.
        """
        entry = None if self.journal is None else self.journal.read()
        # a finished run is its answer, and needs no room
        if entry is None or entry.at["job"] < len(self.jobs):
            for rows in (self.tokens, self.maps):
                if rows is not None:
                    rows.open()
        self.unreadable.back_to(0 if entry is None else entry.at["log"])
        if entry is None:
            return {"job": -1, "step": -1}, {}
        if "start" in entry.at:
            self.tokens.write(entry.at["start"], entry.tensors["rows"].to(self.host.device))
        parts: dict[str, State] = {"state": {}, "carried": {}}
        for name, x in entry.tensors.items():
            kind, _, rest = name.partition(".")
            if rest:
                parts[kind][rest] = x.to(self.host.device)
        self.state = parts["state"]
        return dict(entry.at), parts["carried"]


class Step:
    """A pass at work: what it sums, and what one chunk hands to the next."""

    def __init__(self, engine: Engine, job: Job, carried: State) -> None:
        self.engine, self.job, self.layer = engine, job, job.layer
        self.tokens, self.maps, self.sequence = engine.tokens, engine.maps, engine.sequence
        self.total: Summary = {
            name.removeprefix("sum."): x for name, x in carried.items() if name.startswith("sum.")
        }
        self.kinds = {
            name.removeprefix("kind."): x.dtype
            for name, x in carried.items()
            if name.startswith("kind.")
        }
        # rows of tokens past the attention, which the next chunk begins with
        self.halo = carried.get("halo")
        # tokens that are past the attention
        self.attended = int(carried["known"]) if "known" in carried else 0
        state = engine.state
        self.summary = {
            name: x for name, x in state.items() if not name.startswith(("before.", "first"))
        }
        if self.layer is not None:
            self.reader = self.layer.reads(self.summary)
            if job.draws and self.layer.has_class_row:
                engine.state = state = {"first": self.tokens.read(0, 1).clone()} | state
                self.pull = self.layer.pull(state["first"], self.summary)
                before = {
                    name.removeprefix("before."): x
                    for name, x in state.items()
                    if name.startswith("before.")
                }
                self.before = (
                    self.layer.finish(before, len(self.layer.sweeps) - 2) if before else None
                )
        first = isinstance(job.stage, Sweeping) or job.stage is None
        self.handed: State = (
            self.summary if self.layer is None else {} if first else engine.tail.start()
        )
        if job.stage is not None:
            job.stage.begin(self.handed)

    def carried(self) -> State:
        """What a later process needs to go on behind this chunk."""
        state = {f"sum.{name}": x for name, x in self.total.items()}
        state |= {f"kind.{name}": torch.empty(0, dtype=kind) for name, kind in self.kinds.items()}
        if self.halo is not None:
            state |= {"halo": self.halo, "known": torch.tensor(self.attended)}
        return state

    def take(self, span: slice) -> tuple[int, Tensor] | None:
        """Work on a chunk; the tokens that it changed, and where they begin. They are (n,D)."""
        changed = None
        if self.layer is None:
            x = self.tokens.read(span.start, span.stop)
        elif self.layer.parts.lpi is None:
            x = self.tokens.read(span.start, span.stop)
            self._past_attention(x, span)
            x = self.layer.transform(x)
            changed = span.start, x
        else:
            x = self._among_neighbours(span)
            changed = span.start, x
        if self.job.stage is not None:
            self._sum(self.job.stage.part(x, span, self.handed))
        if self.job.row is not None:
            self._draw(span, ROW, self.job.row.row(x, span, self.engine.state))
        if self.job.finishes:
            changed = span.start, self.engine.tail.finished(x)
        return changed

    def _sum(self, part: Summary) -> None:
        stage = self.job.stage
        assert stage is not None
        if not self.total:
            self.kinds = {name: x.dtype for name, x in part.items()}
            self.total = {
                name: x.double() if x.is_floating_point() else x for name, x in part.items()
            }
        else:
            self.total = joined(self.total, part, stage.merge)

    def _past_attention(self, x: Tensor, span: slice) -> None:
        layer = self.layer
        assert layer is not None
        if self.job.draws:
            for column, values in zip(
                (QUERY, KEY), layer.sizes(x, span, self.summary), strict=True
            ):
                self._draw(span, column, values)
            if layer.has_class_row:
                self._draw(span, ROW, layer.row(x, span, self.summary, self.pull, self.before))
        layer.attend(x, span, self.reader)

    def _among_neighbours(self, span: slice) -> Tensor:
        """Whole rows through a layer with local patch interaction: it looks at rows past the
        attention, above and below its own.
        """
        layer, width = self.layer, self.engine.grid[1]
        assert layer is not None
        reach = HALO * width
        until = min(span.stop + reach, self.sequence.tokens)
        begin = max(0, span.start - reach)
        fresh = self.tokens.read(self.attended, until).clone()
        if self.attended < until:
            self._past_attention(fresh, slice(self.attended, until))
        tokens = fresh if self.halo is None else torch.cat([self.halo, fresh])
        mask = None if self.sequence.mask is None else self.sequence.mask[begin:until]
        branch = layer.interact(tokens, width, mask)
        own = slice(span.start - begin, span.stop - begin)
        x = tokens[own] + branch[own]
        self.attended, self.halo = until, tokens[max(0, span.stop - reach) - begin :].clone()
        return layer.transform(x)

    def _draw(self, span: slice, column: int, values: Tensor) -> None:
        assert self.maps is not None
        rows = self.maps.read(span.start, span.stop)
        rows[:, column] = values.to(rows.dtype)
        self.maps.write(span.start, rows)

    def close(self) -> State:
        """What the next pass is given."""
        stage, state = self.job.stage, self.engine.state
        if stage is None:
            return state if self.layer is None else {}
        total = {name: x.to(self.kinds[name]) for name, x in self.total.items()}
        return stage.close(total, self.handed)


def in_memory(device: torch.device) -> Callable[[str, int, int, torch.dtype], Rows]:
    """Places for rows in memory."""
    return lambda _, count, width, dtype: InMemory(count, width, dtype, device)
