"""`softless bench KIND`: comparisons that are trained or timed."""

import importlib
import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from typing import Any, Literal, NamedTuple

from softless.errors import UsageError, need, unknown
from softless.ranks import Done, shared


class Comparison(NamedTuple):
    """A comparison."""

    function: str  # module:function, whose arguments are its options
    trains: bool  # ranks share its runs
    extras: tuple[str, ...] = ()  # packages that are used at its end


KINDS: Mapping[str, Comparison] = {
    "twins": Comparison("softless.compare.comparison:twins", trains=True),
    "compare": Comparison("softless.compare.comparison:compare", trains=True),
    "uses": Comparison("softless.compare.uses:uses", trains=True),
    "dino": Comparison("softless.compare.dino:dino", trains=True, extras=("lightly", "sklearn")),
    "resolution": Comparison(
        "softless.compare.resolution:resolution", trains=True, extras=("matplotlib",)
    ),
    "runs": Comparison("softless.compare.finished:finished", trains=False),
    "latency": Comparison("softless.compare.latency:latency", trains=False),
    "export": Comparison("softless.compare.exports:exports", trains=False),
    "recover": Comparison("softless.compare.recovery:recoveries", trains=False),
    "bags": Comparison("softless.compare.bags:bags", trains=False),
}
# what measures this repository, and stands beside it
LAB = (
    "averages",
    "backbone",
    "bags",
    "biases",
    "operators",
    "inverse",
    "models",
    "counts",
    "exports",
    "eyes",
    "papers",
    "probes",
    "recoveries",
    "routes",
    "autograd",
    "swaps",
    "fidelity",
    "survival",
    "slides",
    "settings",
    "speed",
)


def bench(
    kind: Literal[
        "twins",
        "compare",
        "uses",
        "dino",
        "resolution",
        "runs",
        "latency",
        "export",
        "recover",
        "bags",
    ],
    *arguments: Any,
    **options: Any,
) -> Any:
    """Measure models side by side: trained under one recipe, or timed in turns.

    twins      a recipe's model and the same with softmax, or another model: accuracies with
               intervals, a page
    compare    every operator in one small ViT under a recipe: accuracy, time per step, memory,
               exponentials
    uses       a recipe of any task with several operators: scores, time and memory of a step
    dino       a recipe of self-supervision with several operators: what frozen features are worth
    resolution a recipe's model trained at one image size, evaluated at 0.5 to 4 times that size
    runs       finished runs of one model over their seeds: mean test accuracy with its interval
    latency    what an image takes a model in each runtime that is here, or several models
    export     a run in every format: does it work, is it right, exponentials, bytes, time
    bags       models of bags: inference over a store of tiles, a training step in chunks, whole and
               beside softmax
    recover    a trained model with other operators in place of its own, refitted and distilled:
               accuracy, agreement, exponentials

    Each has options of its own: softless bench KIND --help tells them. Under --ranks or torchrun
    those that train share each run among the ranks, and the first rank measures; the others are
    refused. What this repository measures of itself (speed, operators, …) is `python -m lab KIND`
    in a checkout.

    Args:
        kind: twins, compare, uses, dino, resolution, runs, latency, export, recover or bags.
        arguments: what the kind takes by place.
        options: what it takes by name.

    Returns:
        What was measured: `str()` is its table, `to_dict()` its numbers.

    Raises:
        UsageError: no such kind, an option that it does not have, or whatever is wrong with one.

    Examples:
        >>> import softless
        >>> timed = softless.bench(
        ...     "latency", "sima_deit_tiny_patch16_224", runtimes=["eager"], rounds=1
        ... )
        >>> timed.rows[0].height
        224
    """
    return function_of(kind)(*arguments, **options)


def function_of(kind: str) -> Callable[..., Any]:
    """The function that measures, with its own signature and docstring.

    Raises:
        UsageError: no such kind.
    """
    if kind in LAB and kind not in KINDS:
        raise UsageError(
            f"'{kind}' measures softless itself, for its documents: run python -m lab {kind} in a "
            "checkout of the repository"
        )
    if kind not in KINDS:
        raise unknown("kind of bench", kind, KINDS)
    chosen = KINDS[kind]
    module, _, name = chosen.function.partition(":")
    measure: Callable[..., Any] = getattr(importlib.import_module(module), name)

    @wraps(measure)
    def measured(*arguments: Any, **options: Any) -> Any:
        if not chosen.trains and int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise shared(
                UsageError(
                    f"bench {kind} measures one process: start it without --ranks or torchrun"
                )
            )
        need(*chosen.extras)
        _refuse_what_does_not_fit(kind, measure, arguments, options)
        try:
            return measure(*arguments, **options)
        except Done:
            return None

    return measured


def _refuse_what_does_not_fit(
    kind: str, measure: Callable[..., Any], arguments: Sequence[Any], options: Mapping[str, Any]
) -> None:
    signature = inspect.signature(measure)
    names = [
        name
        for name, parameter in signature.parameters.items()
        if parameter.kind is not parameter.VAR_POSITIONAL
    ]
    for name in options:
        if name not in names:
            raise unknown(f"option of bench {kind}", name, names)
    try:
        signature.bind(*arguments, **options)
    except TypeError as error:
        raise UsageError(f"bench {kind}: {error}; it takes {kind}{signature}") from error
