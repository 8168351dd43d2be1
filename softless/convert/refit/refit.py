"""`refit`: a student whose attentions are other than its teacher's gets the projections that bring
its stream nearest to the teacher's, without a gradient and without a label.

Block after block, on the same images:
1. the projection of the attention, so that stream + s1 * W o comes to the teacher's stream behind
   its attention;
2. the last layer of the MLP, so that the block's output comes to that of the teacher's block.

Both targets are the teacher's stream, not its branches: what earlier blocks left over is mended
where it has gathered.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softless.convert.refit.ridge import Moments, Solution, solve
from softless.convert.refit.streams import Station, Walk, near, stations
from softless.convert.refit.structure import (
    LayerPlace,
    Structure,
    attention_input,
    observed,
    structure,
)
from softless.errors import UsageError
from softless.layers.plain import give, weights_of
from softless.models.hosts import tokens_ahead
from softless.modes import in_evaluation

_log = logging.getLogger("softless.convert")
Part = Literal["attention", "mlp"]
Ridge = float | Literal["held-out"] | Mapping[str, float]
NOT_BETTER = "no strength lessens its held-out error"
CHUNK = 32  # images that pass at once
LEAST = 8  # images
SMALL = 0.05  # of the root mean square of a layer scale: channels below it are left as they are


@dataclass(frozen=True)
class FittedLayer:
    """One layer that was fitted, or why it was not; errors are relative, on held-out images."""

    path: str  # of the layer
    part: Part
    strength: float | None = None  # of the ridge
    gain: float = 1.0  # that its old weight was multiplied by ahead of it
    stream_before: float = math.nan  # of the stream that it adds to, with the old weight
    stream_after: float = math.nan
    branch_before: float = math.nan  # of what the attention adds, against the teacher's
    branch_after: float = math.nan
    kept: str = ""  # why it is as it was

    @property
    def fitted(self) -> bool:
        """Whether its weight is another."""
        return not self.kept


@dataclass(frozen=True)
class Refitted:
    """What became of each layer; prints as lines."""

    layers: tuple[FittedLayer, ...]
    images: int
    held_out: int
    seconds: float  # of the processor
    stream: float = math.nan  # relative error behind the last block, on held-out images
    notes: tuple[str, ...] = field(default_factory=tuple)

    def rows(self) -> list[dict[str, Any]]:
        """The layers as JSON has them: None in place of what was not measured."""
        return [
            {
                name: None if isinstance(value, float) and not math.isfinite(value) else value
                for name, value in asdict(layer).items()
            }
            for layer in self.layers
        ]

    def __str__(self) -> str:
        number = sum(layer.fitted for layer in self.layers)
        lines = [
            (
                f"{number} of {len(self.layers)} layers fitted on {self.images} images, "
                f"{self.held_out} of them held out"
            )
        ]
        for layer in self.layers:
            state = (
                layer.kept
                or f"ridge {layer.strength:g}, stream {layer.stream_before:.3f} to "
                f"{layer.stream_after:.3f}"
                + (
                    ""
                    if math.isnan(layer.branch_after)
                    else f", branch {layer.branch_before:.3f} to {layer.branch_after:.3f}"
                )
            )
            lines.append(f"  {layer.path}: {state}")
        return "\n".join([*lines, *self.notes])


def refit(
    student: nn.Module,
    teacher: nn.Module,
    images: Tensor | Sequence[Tensor],
    *,
    ridge: Ridge = "held-out",
    held_out: float | Tensor = 0.25,
    class_weight: float | Literal["auto"] = "auto",
    refit_mlp: bool = True,
    on_all: bool = True,
    seed: int = 0,
    on_layer: Callable[[FittedLayer], None] | None = None,
) -> Refitted:
    """Fit a student's projections, in place, to its teacher's stream.

    Args:
        student: of the teacher's layout, with another attention at some paths; float32 or float64.
        teacher: the model that it was; it is not changed.
        images: (n, C, h, w), prepared as the teacher takes them, or a sequence of chunks (b, C, h,
            w), each of which is asked for a few times.
        ridge: strength, as a share of the mean diagonal; "held-out" chooses it for each layer. A
            mapping says it by path of the layer; those that it leaves out are kept.
        held_out: share of the images that choose it, and on which errors are told; or which they
            are, (n) of truth.
        class_weight: what a token ahead of the patches counts beside a patch. "auto": together as
            much as a third of the patches where the head reads one, 1 where it reads the mean.
        refit_mlp: fit the last layer of each MLP too.
        on_all: fit on the held-out images too, once the strength is chosen.
        seed: which images are held out.
        on_layer: called with each layer, once it is fitted.

    Returns:
        What became of each layer.

    Raises:
        UsageError: too few images, images that the models do not take or that are not finite, or
            nothing that differs. The student is as it was.
    """
    start = time.process_time()
    chunks = chunked(images)
    count = sum(len(chunk) for chunk in chunks)
    held = held_out if isinstance(held_out, Tensor) else held_out_images(count, held_out, seed)
    if held.shape != (count,) or bool(held.all()) or not bool(held.any()):
        raise UsageError(f"held_out marks {tuple(held.shape)} of {count} images: mark some of them")
    _check(student, teacher, ridge)
    alike = _check_images(chunks)
    paths = exchanged(student, teacher)
    saved = {name: value.clone() for name, value in student.state_dict().items()}
    try:
        with in_evaluation(student), in_evaluation(teacher), torch.no_grad():
            fitting = _Fitting(
                student,
                teacher,
                chunks,
                held,
                paths,
                ridge=ridge,
                alike=alike,
                class_weight=class_weight,
                refit_mlp=refit_mlp,
                on_all=on_all,
            )
            layers = []
            for layer in fitting.layers():
                layers.append(layer)
                if on_layer is not None:
                    on_layer(layer)
    except BaseException:
        student.load_state_dict(saved)
        raise
    return Refitted(
        tuple(layers),
        count,
        int(held.sum()),
        time.process_time() - start,
        fitting.stream_error,
        tuple(fitting.notes),
    )


def chunked(images: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """Images in chunks that pass at once.

    Raises:
        UsageError: no tensor of images (n, C, h, w).
    """
    if isinstance(images, Tensor):
        if images.ndim != 4 or not images.is_floating_point():
            raise UsageError(
                f"images are {str(images.dtype).removeprefix('torch.')} {tuple(images.shape)}: "
                "give floating-point images (n, C, h, w), prepared as the model takes them"
            )
        return images.split(CHUNK) if len(images) else ()
    return images


def exchanged(student: nn.Module, teacher: nn.Module) -> list[str]:
    """Paths at which a student has another attention than its teacher.

    Raises:
        UsageError: none, or the rest of both is not the same.
    """
    mine = dict(student.named_modules())
    paths = [
        path
        for path, module in teacher.named_modules()
        if path
        and path in mine
        and _kind(mine[path]) != _kind(module)
        and hasattr(getattr(mine[path], "inner", mine[path]), "proj")
    ]
    paths = [path for path in paths if not any(path.startswith(f"{other}.") for other in paths)]
    if not paths:
        raise UsageError(
            "nothing to fit: the model has the attentions of its teacher; exchange some with "
            "softless.swap"
        )
    inside = tuple(f"{path}." for path in paths)
    shapes = [
        {
            name: tuple(value.shape)
            for name, value in model.state_dict().items()
            if not name.startswith(inside)
        }
        for model in (student, teacher)
    ]
    for name in {**shapes[0], **shapes[1]}:
        if shapes[0].get(name) != shapes[1].get(name):
            raise UsageError(
                f"the teacher is another model: {name} is {shapes[1].get(name, 'absent')} there "
                f"and {shapes[0].get(name, 'absent')} in the student"
            )
    return paths


def _kind(module: nn.Module) -> tuple[Any, ...]:
    """What a module computes, but for its weights."""
    inner = getattr(module, "inner", module)
    op = getattr(inner, "op", None)
    return type(module), getattr(op, "name", op), tuple(getattr(inner, "options", {}).items())


def held_out_images(count: int, share: float, seed: int) -> Tensor:
    """Which of so many images choose and measure, (count) of truth.

    Raises:
        UsageError: too few images, or a share that leaves none on one side.
    """
    if count < LEAST:
        raise UsageError(f"{count} images are too few to fit on: give at least {LEAST}")
    if not 0 < share < 1:
        raise UsageError(f"held_out={share}: give a share between 0 and 1, both left out")
    number = min(max(round(count * share), 1), count - 1)
    held = torch.zeros(count, dtype=torch.bool)
    held[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:number]] = True
    return held


def _check(student: nn.Module, teacher: nn.Module, ridge: Ridge) -> None:
    numbers = (
        ridge.values() if isinstance(ridge, Mapping) else () if ridge == "held-out" else [ridge]
    )
    if not all(isinstance(number, int | float) and 0 < number < math.inf for number in numbers):
        raise UsageError(f"ridge={ridge!r}: give 'held-out', or a positive number")
    for title, model in (("student", student), ("teacher", teacher)):
        for name, parameter in model.named_parameters():
            if parameter.dtype not in {torch.float32, torch.float64}:
                raise UsageError(
                    f"the {title}'s {name} is {str(parameter.dtype).removeprefix('torch.')}: fit in "
                    "float32, model.float(), and convert afterwards"
                )
            if not bool(parameter.isfinite().all()):
                raise UsageError(f"the {title}'s {name} holds NaN or infinity: load it anew")


def _check_images(chunks: Sequence[Tensor]) -> bool:
    """Whether all images are the same.

    Raises:
        UsageError: of different sizes, or not finite.
    """
    first = chunks[0][0]
    alike = True
    for number, chunk in enumerate(chunks):
        if chunk.shape[1:] != first.shape:
            raise UsageError(
                f"images of {tuple(first.shape)} and of {tuple(chunk.shape[1:])}: give images of "
                "one size"
            )
        if not bool(chunk.isfinite().all()):
            raise UsageError(
                f"images hold NaN or infinity, first in chunk {number}: leave those out"
            )
        alike = alike and bool((chunk == first).all())
    return alike


class _Fitting:
    """Both models on their way through the blocks."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        chunks: Sequence[Tensor],
        held: Tensor,
        paths: Sequence[str],
        *,
        ridge: Ridge,
        alike: bool,
        class_weight: float | Literal["auto"],
        refit_mlp: bool,
        on_all: bool,
    ) -> None:
        self.held, self.class_weight = held, class_weight
        self.ridge, self.refit_mlp, self.on_all = ridge, refit_mlp, on_all
        self.notes: list[str] = []
        self.parts = 1  # rows of the stream for each image, at the block under way
        if alike:
            self.ridge = 1.0 if ridge == "held-out" else ridge
            self.notes.append(
                "all images are alike, so none can choose the ridge: it is the strong one, 1"
            )
        self.student, self.teacher = Walk(student, chunks), Walk(teacher, chunks)
        self.attention_of = {path.rpartition(".")[0]: path for path in paths}
        blocks = _siblings(student, list(self.attention_of))
        self.order, self.passed = stations(teacher, blocks, _like(teacher, _two_images(chunks)))
        self.bounds = list(_bounds(chunks))
        self.stream_error = math.nan

    def layers(self) -> Iterator[FittedLayer]:
        """Each layer, once it is fitted."""
        begun, left = False, dict(self.passed)
        for number, station in enumerate(self.order):
            swapped = station.path in self.attention_of
            begun = begun or swapped
            if not begun:
                continue
            self.teacher.enter(station)
            if not near(self.teacher.calls[0].stream[: station.parts], station.truth):
                left |= {
                    later.path: "its stream hangs on more than the block before it"
                    for later in self.order[number:]
                }
                break
            self.student.enter(station)
            self.parts = station.parts
            yield from self._block(station, swapped)
        for path, attention in self.attention_of.items():
            if path in left:
                yield FittedLayer(attention, "attention", kept=left[path])

    def _block(self, station: Station, swapped: bool) -> Iterator[FittedLayer]:
        path = station.path
        block, original = self.student.block(path), self.teacher.block(path)
        attention_path = (
            self.attention_of[path].removeprefix(f"{path}.") if swapped else _any_attention(block)
        )
        parts = structure(block, attention_path, self._few())
        fitted = self._attention(path, block, original, parts) if swapped else None
        mlp, branch = self._mlp(path, block, original, parts)
        if fitted is not None:
            yield replace(fitted, branch_after=branch)
        if self.refit_mlp:
            yield mlp
        self.student.leave(path, self._advanced(self.student, block))
        self.stream_error = self._distance()

    def _few(self) -> Any:
        call = self.student.calls[0]
        few = call.stream[: 2 * self.parts]
        return type(call)(few, call.args, call.kwargs)

    def _advanced(self, walk: Walk, block: nn.Module) -> Iterator[Tensor]:
        for call in walk.calls:
            yield call.on(block, call.stream)

    def _attention(
        self, path: str, block: nn.Module, original: nn.Module, parts: Structure
    ) -> FittedLayer:
        """Fit the projection of one attention."""
        place = parts.attention
        if place is None:
            return FittedLayer(f"{path}.{parts.attention_path}", "attention", kept=parts.why_not)
        sums = self._sums(place.layer(block))
        branch = _Squares()
        stream = _Squares()
        for index in range(len(self.student.calls)):
            mine, theirs = self.student.calls[index], self.teacher.calls[index]
            o = attention_input(block, place.path, mine, mine.stream)
            with observed(original, [parts.attention_path]) as seen:
                goal = attention_input(original, parts.behind, theirs, theirs.stream)
            theirs_added = seen.outputs[parts.attention_path]
            answered = place.layer(block)(o).reshape(theirs_added.shape)
            held, start, goal = self._held(index), place.of(mine.stream), place.of(goal)
            branch.add(answered[held], theirs_added[held])
            added = answered if place.scale is None else answered * place.scale
            stream.add((start + added)[held], goal[held])
            self._gather(sums, index, o, goal - start, place)
        solution = self._written(path, place, block, sums)
        return self._told(f"{path}.{place.path}", "attention", solution, stream, branch)

    def _mlp(
        self, path: str, block: nn.Module, original: nn.Module, parts: Structure
    ) -> tuple[FittedLayer, float]:
        """Fit the last layer of one MLP; the teacher's stream moves on.

        Returns:
            What became of the layer, and the error of the attention's branch as it is now.
        """
        place = parts.mlp if self.refit_mlp else None
        sums = None if place is None else self._sums(place.layer(block))
        stream, branch = _Squares(), _Squares()
        watched = [parts.attention_path] if parts.attention_path else []
        layer = [] if place is None else [place.path]

        def gathered() -> Iterator[Tensor]:
            for index, (mine, theirs) in enumerate(
                zip(self.student.calls, self.teacher.calls, strict=True)
            ):
                with observed(original, watched) as before:
                    goal = theirs.on(original, theirs.stream)
                with observed(block, [*watched, *layer], layer) as seen:
                    output = mine.on(block, mine.stream)
                held = self._held(index)
                for watched_path in watched:
                    branch.add(seen.outputs[watched_path][held], before.outputs[watched_path][held])
                if place is not None and sums is not None:
                    wanted, output = place.of(goal), place.of(output)
                    answered = seen.outputs[place.path]
                    rest = output - (answered if place.scale is None else answered * place.scale)
                    stream.add(output[held], wanted[held])
                    self._gather(sums, index, seen.inputs[place.path], wanted - rest, place)
                yield goal

        self.teacher.leave(path, gathered())
        if place is None or sums is None:
            why = parts.why_not_mlp or "not asked for"
            return FittedLayer(path, "mlp", kept=why), branch.relative
        solution = self._written(path, place, block, sums)
        fitted = self._told(f"{path}.{place.path}", "mlp", solution, stream, None)
        return fitted, branch.relative

    def _sums(self, layer: nn.Linear) -> tuple[Moments, Moments]:
        """Nothing yet, to fit on and held out."""
        device = self.student.calls[0].stream.device
        fit, held = (Moments.zeros(layer.in_features, layer.out_features, device) for _ in range(2))
        return fit, held

    def _gather(
        self,
        sums: tuple[Moments, Moments],
        index: int,
        o: Tensor,
        missing: Tensor,
        place: LayerPlace,
    ) -> None:
        """Add the tokens of a chunk to what is fitted on and to what is held out."""
        images = len(missing)
        o = o.reshape(images, -1, o.shape[-1])
        y = missing.reshape(images, -1, missing.shape[-1]).double()
        if place.scale is not None:
            y = y / torch.where(_large(place.scale), place.scale, torch.ones_like(place.scale))
        weights = self._weights(y.shape[1], y)
        held = self._held(index)
        for moments, chosen in ((sums[0], ~held), (sums[1], held)):
            if bool(chosen.any()):
                moments.add(
                    o[chosen].flatten(0, 1),
                    y[chosen].flatten(0, 1),
                    weights.repeat(int(chosen.sum())),
                )

    def _written(
        self, path: str, place: LayerPlace, block: nn.Module, sums: tuple[Moments, Moments]
    ) -> Solution:
        layer = place.layer(block)
        old = weights_of(layer)
        assert old is not None
        W0, b0 = old.to(torch.float64)
        scale = torch.ones_like(W0[:, 0]) if place.scale is None else place.scale.double()
        large = torch.ones_like(scale, dtype=torch.bool) if place.scale is None else _large(scale)
        important = torch.where(large, scale.square(), torch.zeros_like(scale))
        strength = self._strength(f"{path}.{place.path}")
        solution = solve(*sums, W0, b0, important=important, strengths=strength, on_all=self.on_all)
        W = torch.where(large[:, None], solution.W, W0 * solution.gain)
        b = None if b0 is None else torch.where(large, solution.b, b0)
        give(layer, W.to(old.W), None if b is None else b.to(old.W))
        if solution.grown:
            self.notes.append(f"{place.path}: its normal matrix is singular, and the ridge grew")
        return solution

    def _strength(self, path: str) -> tuple[float, ...] | None:
        """The strengths to choose from; none keeps the layer, one is not chosen."""
        if isinstance(self.ridge, Mapping):
            return (self.ridge[path],) if path in self.ridge else ()
        return None if self.ridge == "held-out" else (float(self.ridge),)

    def _told(
        self,
        path: str,
        part: Part,
        solution: Solution,
        stream: "_Squares",
        branch: "_Squares | None",
    ) -> FittedLayer:
        after = (
            stream.relative * solution.after / solution.before
            if solution.before
            else stream.relative
        )
        kept = "" if solution.strength is not None else NOT_BETTER
        return FittedLayer(
            path,
            part,
            solution.strength,
            solution.gain,
            stream.relative,
            after,
            math.nan if branch is None else branch.relative,
            math.nan,
            kept,
        )

    def _held(self, index: int) -> Tensor:
        start, end = self.bounds[index]
        held = self.held[start:end].to(self.student.calls[index].stream.device)
        return held.repeat_interleave(self.parts)

    def _weights(self, tokens: int, like: Tensor) -> Tensor:
        """What each token of an image counts (N)."""
        weights = torch.ones(tokens, dtype=torch.float64, device=like.device)
        prefix = tokens_ahead(self.student.model) or 0
        if not 0 < prefix < tokens:
            return weights
        if self.class_weight == "auto":
            reads_mean = getattr(self.student.model, "global_pool", "token") not in {"token", ""}
            share = 1.0 if reads_mean else (tokens - prefix) / prefix
        else:
            share = float(self.class_weight)
        weights[:prefix] = max(share, 1.0) if self.class_weight == "auto" else share
        return weights

    def _distance(self) -> float:
        squares = _Squares()
        for index, (mine, theirs) in enumerate(
            zip(self.student.calls, self.teacher.calls, strict=True)
        ):
            held = self._held(index)
            squares.add(mine.stream[held], theirs.stream[held])
        return squares.relative


class _Squares:
    """Squared distance of two streams, and the second one's length."""

    def __init__(self) -> None:
        self.distance = self.length = 0.0

    def add(self, mine: Tensor, theirs: Tensor) -> None:
        self.distance += float((mine - theirs).double().square().sum())
        self.length += float(theirs.double().square().sum())

    @property
    def relative(self) -> float:
        return math.sqrt(self.distance / self.length) if self.length else 0.0


def _large(scale: Tensor) -> Tensor:
    return scale.abs() > SMALL * scale.double().square().mean().sqrt().to(scale)


def _siblings(model: nn.Module, blocks: Sequence[str]) -> list[str]:
    """The blocks, and those beside them in their lists, of a class of theirs."""
    kinds = {type(model.get_submodule(path)) for path in blocks}
    lists = dict.fromkeys(path.rpartition(".")[0] for path in blocks)
    return [
        f"{parent}.{name}" if parent else name
        for parent in lists
        for name, module in model.get_submodule(parent).named_children()
        if type(module) in kinds
    ]


def _any_attention(block: nn.Module) -> str:
    """Path of the attention of a block that was not exchanged; empty where none is seen."""
    names = (
        path
        for path, module in block.named_modules()
        if path and hasattr(getattr(module, "inner", module), "proj")
    )
    return next(names, "")


def _like(model: nn.Module, images: Tensor) -> Tensor:
    """Images in the dtype and on the device of a model."""
    return images.to(next(model.parameters()))


def _two_images(chunks: Sequence[Tensor]) -> Tensor:
    few = [chunk[:2] for chunk in chunks[:2]]
    return torch.cat(few)[:2]


def _bounds(chunks: Sequence[Tensor]) -> Iterator[tuple[int, int]]:
    start = 0
    for chunk in chunks:
        yield start, start + len(chunk)
        start += len(chunk)
