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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn

from softless.convert.refit.checks import (
    Looked,
    check_form,
    check_models,
    check_pass,
    check_settings,
    look_at,
)
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
TIED = "its weight is that of another layer too"
NOT_BETTER = "no strength lessens its held-out error"
CHUNK = 32  # images that pass at once
LEAST = 8  # images
SMALL = 0.05  # of the root mean square of a layer scale: channels below it get the gain alone
ROUNDING = 8  # of the dtype's epsilon: a stream that is so near is its teacher's


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
    # relative error behind the last block, on held-out images; no number where those were fitted
    # on too
    stream: float = math.nan
    notes: tuple[str, ...] = field(default_factory=tuple)

    def rows(self) -> list[dict[str, Any]]:
        """The layers as JSON has them: None in place of what was not measured."""
        return [
            {
                name: finite(value) if isinstance(value, float) else value
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


def finite(value: float) -> float | None:
    """A number as JSON has it: None where it is none."""
    return value if math.isfinite(value) else None


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
            much as the patches where the head reads one, 1 where it reads the mean.
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
    check_settings(ridge, class_weight)
    chunks = chunked(images)
    looked = look_at(chunks)
    count = looked.count
    measured = held_out if isinstance(held_out, Tensor) else held_out_images(count, held_out, seed)
    if measured.shape != (count,) or bool(measured.all()) or not bool(measured.any()):
        raise UsageError(
            f"held_out marks {tuple(measured.shape)} of {count} images: mark some of them"
        )
    paths = exchanged(student, teacher)
    check_models(student, teacher)
    tried = _two_images(chunks).to(next(teacher.parameters()))
    check_pass(teacher, tried)
    check_pass(student, tried)
    saved = {name: value.clone() for name, value in student.state_dict().items()}
    try:
        with in_evaluation(student), in_evaluation(teacher), torch.no_grad():
            fitting = _Fitting(
                student,
                teacher,
                chunks,
                measured,
                paths,
                ridge=ridge,
                looked=looked,
                tried=tried,
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
        int(measured.sum()),
        time.process_time() - start,
        fitting.stream_error,
        tuple(fitting.notes),
    )


def chunked(images: Tensor | Sequence[Tensor]) -> Sequence[Tensor]:
    """Images in chunks that pass at once.

    Raises:
        UsageError: neither a tensor of images (n, C, h, w) nor a sequence.
    """
    if isinstance(images, Tensor):
        check_form(images)
        return images.split(CHUNK) if len(images) else ()
    if not isinstance(images, Sequence) or isinstance(images, str | bytes):
        raise UsageError(
            f"images is a {type(images).__name__}: give a tensor (n, C, h, w), or a sequence of "
            "such chunks, since each is asked for again"
        )
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
    """Which of so many images choose and measure, (n,) of truth.

    Raises:
        UsageError: too few images, or a share that leaves none on one side.
    """
    if count < LEAST:
        raise UsageError(f"{count} images are too few to fit on: give at least {LEAST}")
    if not 0 < share < 1:
        raise UsageError(f"held_out={share}: give a share between 0 and 1, both left out")
    number = min(max(round(count * share), 1), count - 1)
    measured = torch.zeros(count, dtype=torch.bool)
    measured[torch.randperm(count, generator=torch.Generator().manual_seed(seed))[:number]] = True
    return measured


class _Fitting:
    """Both models on their way through the blocks."""

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        chunks: Sequence[Tensor],
        measured: Tensor,
        paths: Sequence[str],
        *,
        ridge: Ridge,
        looked: Looked,
        tried: Tensor,
        class_weight: float | Literal["auto"],
        refit_mlp: bool,
        on_all: bool,
    ) -> None:
        self.held, self.class_weight = measured, class_weight
        self.ridge, self.refit_mlp, self.on_all = ridge, refit_mlp, on_all
        self.notes: list[str] = []
        self.parts = 1  # rows of the stream for each image, at the block under way
        if looked.alike:
            self.ridge = 1.0 if ridge == "held-out" else ridge
            self.notes.append(
                "all images are alike, so none can choose the ridge: it is the strong one, 1"
            )
        named = student.named_parameters(remove_duplicate=False)
        self.uses = Counter(weight for _, weight in named)
        self.student, self.teacher = Walk(student, chunks), Walk(teacher, chunks)
        self.attention_of = {path.rpartition(".")[0]: path for path in paths}
        blocks = _siblings(student, list(self.attention_of))
        self.order, self.passed = stations(teacher, blocks, tried)
        self.bounds = list(_bounds(looked.lengths))
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
        parts = self._own(block, structure(block, attention_path, self._few()))
        fitted = self._attention(path, block, original, parts) if swapped else None
        mlp, branch = self._mlp(path, block, original, parts)
        if fitted is not None:
            yield replace(fitted, branch_after=branch)
        if self.refit_mlp:
            yield mlp
        self.student.leave(path, self._advanced(self.student, block))
        # of held-out images that were fitted on it would be no error of new ones
        self.stream_error = math.nan if self.on_all else self._distance()

    def _own(self, block: nn.Module, parts: Structure) -> Structure:
        """What can be fitted without moving a layer elsewhere, which would have its weight too."""
        if parts.attention is not None and self._tied(parts.attention.layer(block)):
            parts = replace(parts, attention=None, why_not=TIED)
        if parts.mlp is not None and self._tied(parts.mlp.layer(block)):
            parts = replace(parts, mlp=None, why_not_mlp=TIED)
        return parts

    def _tied(self, layer: nn.Linear) -> bool:
        return any(self.uses[weight] > 1 for weight in layer.parameters())

    def _few(self) -> Any:
        call = self.student.calls[0]
        first_images = call.stream[: 2 * self.parts]
        return type(call)(first_images, call.args, call.kwargs)

    def _advanced(self, walk: Walk, block: nn.Module) -> Iterator[Tensor]:
        for call in walk.calls:
            yield call.on(block, call.stream)

    def _attention(
        self, path: str, block: nn.Module, original: nn.Module, parts: Structure
    ) -> FittedLayer:
        """Fit the projection of one attention."""
        port = parts.attention
        if port is None:
            return FittedLayer(f"{path}.{parts.attention_path}", "attention", kept=parts.why_not)
        sums = self._sums(port.layer(block))
        branch = _Squares()
        stream = _Squares()
        for index in range(len(self.student.calls)):
            mine, goal_call = self.student.calls[index], self.teacher.calls[index]
            o = attention_input(block, port.path, mine, mine.stream)
            with observed(original, [parts.attention_path]) as calls:
                goal = attention_input(original, parts.behind, goal_call, goal_call.stream)
            theirs_added = calls.outputs[parts.attention_path]
            answered = port.layer(block)(o).reshape(theirs_added.shape)
            measured, start, goal = self._held(index), port.of(mine.stream), port.of(goal)
            branch.add(answered[measured], theirs_added[measured])
            added = answered if port.scale is None else answered * port.scale
            stream.add((start + added)[measured], goal[measured])
            self._gather(sums, index, o, goal - start, port)
        solution = self._written(path, port, block, sums, stream)
        return self._told(f"{path}.{port.path}", "attention", solution, stream, branch)

    def _mlp(
        self, path: str, block: nn.Module, original: nn.Module, parts: Structure
    ) -> tuple[FittedLayer, float]:
        """Fit the last layer of one MLP; the teacher's stream moves on.

        Returns:
            What became of the layer, and the error of the attention's branch as it is now.
        """
        port = parts.mlp if self.refit_mlp else None
        sums = None if port is None else self._sums(port.layer(block))
        stream, branch = _Squares(), _Squares()
        watched = [parts.attention_path] if parts.attention_path else []
        layer = [] if port is None else [port.path]

        def gathered() -> Iterator[Tensor]:
            for index, (mine, goal_call) in enumerate(
                zip(self.student.calls, self.teacher.calls, strict=True)
            ):
                with observed(original, watched) as before:
                    goal = goal_call.on(original, goal_call.stream)
                with observed(block, [*watched, *layer], layer) as calls:
                    output = mine.on(block, mine.stream)
                measured = self._held(index)
                for watched_path in watched:
                    branch.add(
                        calls.outputs[watched_path][measured],
                        before.outputs[watched_path][measured],
                    )
                if port is not None and sums is not None:
                    goal_part, output = port.of(goal), port.of(output)
                    answered = calls.outputs[port.path]
                    rest = output - (answered if port.scale is None else answered * port.scale)
                    stream.add(output[measured], goal_part[measured])
                    self._gather(sums, index, calls.inputs[port.path], goal_part - rest, port)
                yield goal

        self.teacher.leave(path, gathered())
        if port is None or sums is None:
            why = parts.why_not_mlp or "not asked for"
            return FittedLayer(path, "mlp", kept=why), branch.relative
        solution = self._written(path, port, block, sums, stream)
        fitted = self._told(f"{path}.{port.path}", "mlp", solution, stream, None)
        return fitted, branch.relative

    def _sums(self, layer: nn.Linear) -> tuple[Moments, Moments]:
        """Nothing yet, to fit on and held out."""
        device = self.student.calls[0].stream.device
        fit, measured = (
            Moments.zeros(layer.in_features, layer.out_features, device) for _ in range(2)
        )
        return fit, measured

    def _gather(
        self,
        sums: tuple[Moments, Moments],
        index: int,
        o: Tensor,
        missing: Tensor,
        port: LayerPlace,
    ) -> None:
        """Add the tokens of a chunk to what is fitted on and to what is held out."""
        images = len(missing)
        o = o.reshape(images, -1, o.shape[-1])
        y = missing.reshape(images, -1, missing.shape[-1]).double()
        if port.scale is not None:
            y = y / torch.where(_large(port.scale), port.scale, torch.ones_like(port.scale))
        weights = self._weights(y.shape[1], y)
        measured = self._held(index)
        for moments, chosen in ((sums[0], ~measured), (sums[1], measured)):
            if bool(chosen.any()):
                moments.add(
                    o[chosen].flatten(0, 1),
                    y[chosen].flatten(0, 1),
                    weights.repeat(int(chosen.sum())),
                )

    def _written(
        self,
        path: str,
        port: LayerPlace,
        block: nn.Module,
        sums: tuple[Moments, Moments],
        stream: "_Squares",
    ) -> Solution:
        layer = port.layer(block)
        old = weights_of(layer)
        assert old is not None
        W0, b0 = old.to(torch.float64)
        scale = torch.ones_like(W0[:, 0]) if port.scale is None else port.scale.double()
        large = torch.ones_like(scale, dtype=torch.bool) if port.scale is None else _large(scale)
        important = torch.where(large, scale.square(), torch.zeros_like(scale))
        strength = self._strength(f"{path}.{port.path}")
        if stream.relative <= ROUNDING * torch.finfo(old.W.dtype).eps:
            strength = ()
        solution = solve(*sums, W0, b0, important=important, strengths=strength, on_all=self.on_all)
        W = torch.where(large[:, None], solution.W, W0 * solution.gain)
        b = None if b0 is None else torch.where(large, solution.b, b0)
        give(layer, W.to(old.W), None if b is None else b.to(old.W))
        if solution.grown:
            self.notes.append(f"{port.path}: its normal matrix is singular, and the ridge grew")
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
        measured = self.held[start:end].to(self.student.calls[index].stream.device)
        return measured.repeat_interleave(self.parts)

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
        for index, (mine, goal_call) in enumerate(
            zip(self.student.calls, self.teacher.calls, strict=True)
        ):
            measured = self._held(index)
            squares.add(mine.stream[measured], goal_call.stream[measured])
        return squares.relative


class _Squares:
    """Squared distance of two streams, and the second one's length."""

    def __init__(self) -> None:
        self.distance = self.length = 0.0

    def add(self, mine: Tensor, goal: Tensor) -> None:
        self.distance += float((mine - goal).double().square().sum())
        self.length += float(goal.double().square().sum())

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


def _two_images(chunks: Sequence[Tensor]) -> Tensor:
    """The first image and the first that is another (2, C, h, w); where there is none, one that was
    drawn.
    """
    first = chunks[0][:1]
    for chunk in chunks:
        differ = (chunk != first).flatten(1).any(1)
        if bool(differ.any()):
            return torch.cat([first, chunk[differ][:1].to(first)])
    generator = torch.Generator().manual_seed(0)
    return torch.cat([first, torch.randn(first.shape, generator=generator).to(first)])


def _bounds(lengths: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for length in lengths:
        yield start, start + length
        start += length
