"""Every field of a record turned into something false, in both directions where there are two."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from softless.attention import Backend, Operator, Option, Sweep
from softless.attention.norms import TokenNorm

Made = Callable[[], Operator]
FLIPPED = ("scale_free", "equivariant", "implied_matrix", "cross", "linear_in_v", "drops_weights")
BARS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def times(function: Callable[..., Any], factor: float) -> Callable[..., Any]:
    """The function with its result multiplied."""
    return lambda *args, **more: function(*args, **more) * factor


def refusing(*_: Any, **__: Any) -> str:
    return "never"


def refusing_all(*_: Any, **__: Any) -> list[str]:
    return ["never"]


def anything(_: Any) -> bool:
    return True


def mutations(op: Operator) -> dict[str, Made]:
    """What makes each false record; making it may itself raise, which is as good as a failed
    check.
    """
    return dict([
        *_identity(op),
        *_claims(op),
        *_half(op),
        *_host(op),
        *_views(op),
        *_streaming(op),
        *_options(op),
        *_learned(op),
        *_own(op),
    ])


def _fields(op: Operator, field: str, *values: Any) -> Iterator[tuple[str, Made]]:
    for number, value in enumerate(values):
        yield (
            f"{field} {number}" if len(values) > 1 else field,
            partial(op.changed, **{field: value}),
        )


def _identity(op: Operator) -> Iterator[tuple[str, Made]]:
    yield from _fields(op, "name", "", "Sima", "a-b")
    yield from _fields(op, "summary", "", "two\nlines")
    yield from _fields(op, "formula", "none")
    yield from _fields(op, "paper", "ours")
    yield from _fields(op, "title", "small", "Not one")
    yield from _fields(op, "differs", " ")
    yield from _fields(op, "reference", None, times(op.reference, 1.01), torch.matmul)


def _claims(op: Operator) -> Iterator[tuple[str, Made]]:
    yield from _fields(op, "flops", None, times(op.flops, 2), lambda _: 0)
    yield from _fields(
        op, "exps", lambda d: op.exps(d) + 1, *([lambda _: 0] if op.exps(_dims(op)) else [])
    )
    yield from _fields(op, "growth", "N" if op.growth == "N^2" else "N^2", "log N")
    yield from _fields(op, "normalises", *{"rows", "tokens", "nothing"} - {op.normalises})
    for field in FLIPPED:
        yield from _fields(op, field, not getattr(op, field))
    yield from _fields(op, "resolution", *{"any", "grid", "fixed"} - {op.resolution})
    yield from _fields(
        op, "exports_from", lambda _: 1, *([] if op.resolution == "grid" else [lambda _: 30])
    )
    yield from _fields(
        op,
        "masks",
        (),
        ("token",) if len(op.masks) > 1 else ("token", "causal"),
        ("token", "colour"),
    )
    yield from _fields(op, "limits", refusing)


def _dims(op: Operator) -> Any:
    from softless.attention.samples import dims_of, draw

    call, extras = draw(op, (1, 2, 9, 9, 4, 4))
    return dims_of(op, call, extras)


def _half(op: Operator) -> Iterator[tuple[str, Made]]:
    yield from _fields(op, "half_refusal", refusing, *([None] if op.half_lift else []))
    yield from _fields(op, "half_lift", lambda _: 3.0, *([lambda _: 1.0] if op.half_lift else []))


def _host(op: Operator) -> Iterator[tuple[str, Made]]:
    others = {
        name: lambda _: True
        for name in ("grid", "tied_qk", "tokens", "colour")
        if name not in op.needs
    }
    for name, when in others.items():
        yield from _renamed(_fields(op, "needs", {**op.needs, name: when}), f"needs {name}")
    for name in op.needs:
        if op.wants(name, {}):
            less = {other: when for other, when in op.needs.items() if other != name}
            yield from _renamed(_fields(op, "needs", less), f"needs no {name}")
    yield from _fields(op, "reduces", lambda _: 2)


def _renamed(made: Iterator[tuple[str, Made]], name: str) -> Iterator[tuple[str, Made]]:
    for _, make in made:
        yield name, make


def _views(op: Operator) -> Iterator[tuple[str, Made]]:
    yield from _fields(
        op,
        "hat",
        lambda x: x * 0,
        lambda x: x.flip(-1) + 1,
        lambda x: x[..., :2],
        TokenNorm("l1" if getattr(op.hat, "norm", "") == "l2" else "l2"),
        7,
    )
    zero = lambda q, k, *, eps: 0 * k.sum(-1)[:, :, None] + 0 * q.sum() * eps  # noqa: E731
    yield from _fields(op, "class_row", zero, *([times(op.class_row, 1.1)] if op.class_row else []))


def _streaming(op: Operator) -> Iterator[tuple[str, Made]]:
    if op.streaming is None:
        return
    form = op.streaming
    yield from _fields(op, "no_stream", "because")
    changes = {
        "holds": "",
        "merges": "",
        "refuses": refusing,
        "read": times(form.read, 0),
        "sweeps": (),
    }
    for name, value in changes.items():
        yield f"streaming.{name}", partial(_with_form, op, name, value)
    changes = {
        "merge": lambda a, _: a,
        "summarise": lambda tokens, _=None, **__: {"q": tokens.q.sum(-2)},
        "finish": lambda *_, **__: None,
    }
    for name, value in changes.items():
        sweeps = (*form.sweeps[:-1], _sweep(form.sweeps[-1], {name: value}))
        yield f"streaming.sweeps.{name}", partial(_with_form, op, "sweeps", sweeps)


def _sweep(sweep: Sweep, changes: dict[str, Any]) -> Sweep:
    return replace(sweep, **changes)


def _with_form(op: Operator, name: str, value: Any) -> Operator:
    assert op.streaming is not None
    changes: dict[str, Any] = {name: value}
    return replace(op, streaming=replace(op.streaming, **changes))


def _options(op: Operator) -> Iterator[tuple[str, Made]]:
    more = Option(0.5, "nothing", lambda value: isinstance(value, float), "a number")
    yield "options more", lambda: replace(op, options={**op.options, "colour": more})
    for name, option in op.options.items():
        changes: dict[str, Any] = {
            "accepts": anything,
            "says": "",
            "values": "",
            "default": object(),
        }
        for field, value in changes.items():
            made = {**op.options, name: replace(option, **{field: value})}
            yield f"options {name} {field}", partial(replace, op, options=made)
        less = {other: one for other, one in op.options.items() if other != name}
        yield f"options without {name}", partial(replace, op, options=less)


def _learned(op: Operator) -> Iterator[tuple[str, Made]]:
    for name, claim in op.learned.items():
        changes: dict[str, Any] = {
            "trained": not claim.trained,
            "redraw_every": "colour",
            "shape": lambda _: (3,),
            "when": lambda _: False,
        }
        if claim.trained:
            changes["weight_decay"] = not claim.weight_decay
        for field, value in changes.items():
            made = {**op.learned, name: replace(claim, **{field: value})}
            yield f"learned {name} {field}", partial(replace, op, learned=made)
        less = {other: one for other, one in op.learned.items() if other != name}
        yield f"learned without {name}", partial(replace, op, learned=less)


def _own(op: Operator) -> Iterator[tuple[str, Made]]:
    for number, backend in enumerate(op.own):
        from softless.attention.kernels import native

        if backend.here is not None and native.LIBRARY is None:
            continue  # it does not run on this machine
        for what, made in _backends(backend).items():
            own = (*op.own[:number], made, *op.own[number + 1 :])
            yield f"own {backend.name} {what}", partial(replace, op, own=own)


def _backends(backend: Backend) -> dict[str, Backend]:
    bounds, roads = backend.bounds, backend.roads
    made = {
        "name": replace(backend, name="two words"),
        "fn": replace(backend, fn=times(backend.fn, 1.03)),
        "refuses": replace(backend, refuses=refusing_all, here=None),
        "native_half": replace(backend, bounds=replace(bounds, native_half=not bounds.native_half)),
        "tolerance 1": replace(backend, bounds=replace(bounds, tolerance=dict.fromkeys(BARS, 1.0))),
        "tolerance 0": replace(backend, bounds=replace(bounds, tolerance=dict.fromkeys(BARS, 0.0))),
        "here": replace(backend, here=lambda: 7),  # type: ignore[arg-type,return-value]
    }
    if bounds.differentiable:
        made["differentiable"] = replace(backend, bounds=replace(bounds, differentiable=False))
    for road in ("packed", "matrix", "projected"):
        if (way := getattr(roads, road)) is not None:
            made[road] = replace(backend, roads=replace(roads, **{road: times(way, 1.1)}))
    return made
