"""Slides that were named at the start: each looked at as a whole by a job with progress, and shown in
tiles that the browser zooms.
"""

import io
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from softless.data import progress
from softless.data.pictures import for_people, in_bytes
from softless.errors import DataError, SoftlessError, UsageError, located
from softless.inference.optimize import optimize
from softless.saliency.colours import colourise
from softless.saliency.viewer import declared
from softless.serving.refusal import Refusal
from softless.serving.subject import Served
from softless.serving.viewed import TILE, Overlay, Viewed
from softless.serving.worker import Stopped, Turn
from softless.slides.files import Choice, Levels
from softless.slides.hosts import host_of
from softless.slides.maps import Map, maps_of, pooled
from softless.slides.pixels import Lost, Pixels, Scaled
from softless.slides.reader import pixels_of
from softless.slides.stream import StreamResult, Tissue, stream

KEPT = 64 << 20  # bytes of tiles that are kept
OPEN = 6  # levels that are kept open
AT_ONCE = 16  # tiles that may wait
SIDE = 2048  # cells along a side of a map that is sent
GREY = 200  # of what cannot be read
MAPS = {"query": "queries", "key": "keys", "class row": "class token"}


class Slides:
    """All slides of a server, and the job that one of them may be in.

    Raises:
        DataError: a file that is not there or cannot be read.
        UsageError: slides, and a model that does not look at them.
        MissingExtra: what reads slides is not installed.
    """

    def __init__(self, paths: Sequence[str | Path], served: Served, turn: Turn) -> None:
        self.turn, self.thread, self.ending = turn, threading.Thread(), threading.Event()
        self.model: Any = None
        self.classes, self.best = served.loaded.classes, served.loaded.best
        self._lock, self._starting = threading.Lock(), threading.Lock()
        self._tiles: OrderedDict[tuple[int, int, int, int], bytes] = OrderedDict()
        self._open: OrderedDict[tuple[int, int], Scaled] = OrderedDict()
        self._waiting = 0
        if paths:
            self.model = _model_of(served)
            self.choice = Choice(None, None, declared(self.model))
        self.all: Sequence[Viewed] = [self._viewed(path) for path in paths]

    def __len__(self) -> int:
        return len(self.all)

    def at(self, number: int) -> Viewed:
        """A slide by its number.

        Raises:
            Refusal: there is none.
        """
        if not 0 <= number < len(self.all):
            raise Refusal(404, "there is nothing here")
        return self.all[number]

    def _viewed(self, path: str | Path) -> Viewed:
        file = located(path)
        if not file.is_file():
            raise DataError(f"--slide {path}: no file there; name slides that lie on this machine")
        pixels = pixels_of(file, 3, 0, choice=self.choice)
        try:
            if not isinstance(pixels, Levels):
                return Viewed(file, pixels.size, [(0, *pixels.size)])
            readable = [
                (number, *size) for number, size in enumerate(pixels.sizes) if pixels.works[number]
            ]
            return Viewed(file, pixels.sizes[0], readable)
        finally:
            pixels.close()

    def start(self, number: int, level: int, tissue: Tissue) -> None:
        """Begin to look at a slide as a whole.

        Raises:
            Refusal: another is looked at, or there is no such level.
        """
        viewed = self.at(number)
        if level not in {number for number, _, _ in viewed.levels}:
            raise Refusal(422, "this slide has no such level")
        with self._starting:
            if self.thread.is_alive():
                raise Refusal(409, "a slide is being looked at: wait until it is done")
            viewed.state, viewed.done, viewed.total, viewed.words = "at work", 0, 0, "reading"
            viewed.chances, viewed.overlays = {}, ()
            self.thread = threading.Thread(
                target=self._look, args=(viewed, level, tissue), name="slide", daemon=True
            )
            self.thread.start()

    def _look(self, viewed: Viewed, level: int, tissue: Tissue) -> None:
        try:
            with self.turn.of_slide() as let_by:

                def heard(label: str, done: int, total: int) -> None:
                    viewed.done, viewed.total, viewed.words = done, total, f"{label} {done}/{total}"
                    let_by()
                    self._go_on()

                with progress.heard_by(heard):
                    result = stream(
                        self.model,
                        viewed.path,
                        level=level,
                        tissue=tissue,
                        mean=self.best["mean"],
                        std=self.best["std"],
                    )
            self._take(viewed, result)
        except (SoftlessError, OSError) as error:
            viewed.state = "failed"
            viewed.words = str(error).replace(str(viewed.path), viewed.name)
        except Stopped:
            viewed.state, viewed.words = "failed", "the server is ending"
        except Exception:
            viewed.state, viewed.words = "failed", "the slide could not be looked at"
            raise

    def _go_on(self) -> None:
        if self.ending.is_set():
            raise Stopped

    def _take(self, viewed: Viewed, result: StreamResult) -> None:
        if not result.logits.isfinite().all():
            raise UsageError("the model's output is not finite: its weights are of no use")
        shares = result.logits[0].double().softmax(0).tolist()
        viewed.chances = dict(zip(self.classes, shares, strict=True))
        scale, patch, grid = result.scale, result.patch, result.grid
        covers = 0.0, 0.0, grid[1] * patch[1] * scale[1], grid[0] * patch[0] * scale[0]
        viewed.overlays = [
            Overlay(MAPS[drawn.name], _coloured(drawn), covers) for drawn in maps_of(result).maps
        ]
        bad = len(result.unreadable)
        viewed.facts = {
            "pixels that were read": f"{result.size[1]:,} x {result.size[0]:,}",
            "tokens": f"{result.counted:,}",
            "seconds": f"{result.seconds:.1f}",
            **({"micrometres a pixel": f"{result.mpp[1]:.3g}"} if result.mpp else {}),
            **({"tiles that could not be read": f"{bad:,}"} if bad else {}),
        }
        far = "" if result.foreign is None else f"{result.foreign}."
        viewed.words = far[:1].upper() + far[1:]
        viewed.state = "done"

    def tile(self, number: int, halved: int, row: int, column: int) -> bytes:
        """A tile of a slide that is halved so often, as a JPEG file.

        Raises:
            Refusal: there is none, or too many wait.
        """
        viewed = self.at(number)
        if not 0 <= halved <= viewed.deepest:
            raise Refusal(404, "there is nothing here")
        height, width = (max(1, math.ceil(side / 2**halved)) for side in viewed.size)
        y, x = row * TILE, column * TILE
        if not (0 <= y < height and 0 <= x < width):
            raise Refusal(404, "there is nothing here")
        key = (number, halved, row, column)
        if self._waiting >= AT_ONCE:
            raise Refusal(503, "too many tiles at once: try again", {"Retry-After": "1"})
        self._waiting += 1
        try:
            with self._lock:
                if key not in self._tiles:
                    box = y, x, min(TILE, height - y), min(TILE, width - x)
                    self._keep(key, self._read(viewed, (number, halved), (height, width), box))
                self._tiles.move_to_end(key)
                return self._tiles[key]
        except (SoftlessError, OSError):
            raise Refusal(422, "this part of the slide cannot be read") from None
        finally:
            self._waiting -= 1

    def _keep(self, key: tuple[int, int, int, int], tile: bytes) -> None:
        self._tiles[key] = tile
        while sum(map(len, self._tiles.values())) > KEPT:
            self._tiles.popitem(last=False)

    def _read(
        self,
        viewed: Viewed,
        key: tuple[int, int],
        size: tuple[int, int],
        box: tuple[int, int, int, int],
    ) -> bytes:
        if key not in self._open:
            fine: Pixels = pixels_of(viewed.path, 3, 0, coarse=max(size), choice=self.choice)
            factors = (fine.size[0] / size[0], fine.size[1] / size[1])
            self._open[key] = Scaled(fine, factors, size)
            while len(self._open) > OPEN:
                self._open.popitem(last=False)[1].close()
        self._open.move_to_end(key)
        lost: list[Lost] = []
        y, x, height, width = box
        region = in_bytes(self._open[key].read(y, x, height, width, lost)).copy()
        for tile in lost:
            top, first, bottom, last = tile.box
            rows = slice(max(0, top - y), max(0, bottom - y))
            region[rows, max(0, first - x) : max(0, last - x)] = GREY
        buffer = io.BytesIO()
        for_people(region).convert("RGB").save(buffer, "JPEG", quality=88)
        return buffer.getvalue()

    def close(self, seconds: float) -> bool:
        """End the job; whether it came to its end in time."""
        self.ending.set()
        if self.thread.is_alive():
            self.thread.join(seconds)
        return not self.thread.is_alive()


def _model_of(served: Served) -> Any:
    """A copy that looks at slides as `softless slide` does.

    Raises:
        UsageError: the model is none that is streamed.
    """
    loaded = served.loaded
    if served.exported:
        raise UsageError(
            f"--slide: {loaded.path.name} is an exported file, and a graph cannot be cut into the "
            "passes over a slide: serve the run that it was made of"
        )
    if loaded.task != "classification":
        raise UsageError(
            f"--slide: {loaded.path} is a run of {loaded.task}, and slides are classified: serve "
            "the run of a classifier"
        )
    model = served.fresh().loaded.model
    if served.setting.device.type == "cpu":
        model = optimize(model, torch.float32)
    host_of(model)
    return model


def _coloured(drawn: Map) -> bytes:
    """A map in colours, a pixel a patch, clear where a patch does not count."""
    side = max(1, -(-max(drawn.values.shape) // SIDE))
    values = pooled(drawn.values, side)
    colours = colourise(np.nan_to_num(values), signed=drawn.signed).round().astype(np.uint8)
    opaque = np.where(np.isnan(values), 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate([colours, opaque[..., None]], axis=-1)).save(buffer, "PNG")
    return buffer.getvalue()
