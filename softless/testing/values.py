"""Meters of the backends: values and gradients in every dtype, masks, neighbours, extremes, half
precision.
"""

# B batch, H heads, N queries, M keys, D features of q and k, E features of v

import math
import re
import warnings
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor

from softless.attention.attend import attend_packed, attend_projected, output_matrix
from softless.attention.packed import unpacked
from softless.attention.record import Backend, Operator
from softless.attention.samples import dims_of, draw, given_options
from softless.errors import BackendRefused, UsageError
from softless.testing.comparing import (
    DTYPES,
    SHAPES,
    able,
    error,
    exact,
    reference,
    run,
    shapes_of,
    sides,
)
from softless.testing.faults import Fault

# no bar of a backend may be wider than this: a claim of «about right» says nothing
WIDEST = {torch.float64: 1e-9, torch.float32: 2e-4, torch.bfloat16: 2e-2, torch.float16: 2e-2}
CANDIDATES: tuple[Any, ...] = (True, False, 0.5, 2, 3)


def variants(op: Operator) -> Iterator[dict[str, Any]]:
    """The defaults, and each option with one other value that it accepts: a word of its `values`, a
    truth value or a number.
    """
    yield {}
    for name, option in op.options.items():
        if name in {"dropout", "pairwise"} or option.small is not None:
            continue
        words: list[Any] = re.findall(r"'(\w+)'", option.values)
        for value in (*words, *CANDIDATES):
            if value != option.default and (value is not None) and option.takes(value):
                yield {name: value}
                break


def given(op: Operator, extras: dict[str, Any], options: dict[str, Any]) -> dict[str, Any] | None:
    """What a call takes with these options; None where they need something that is not drawn."""
    merged = {**extras, **options}
    settings = given_options(op, merged)
    if any(
        op.wants(need, settings) != op.wants(need, {}) for need in ("grid", "tied_qk", "tokens")
    ):
        return None
    if set(op.own_tensors(settings)) != set(extras.get("learned", {})) or "ratio" in options:
        return None
    return merged


def values(op: Operator) -> Iterator[Fault]:
    """Every backend against the reference in float64, on awkward shapes and other options."""
    for dtype in DTYPES:
        for name, shape in shapes_of(op).items():
            for options in variants(op) if name == "square" else [{}]:
                call, drawn = draw(op, shape, dtype)
                extras = given(op, drawn, options)
                if extras is not None:
                    yield from _values_of(
                        op, call, extras, dtype, f"{name} {options or ''}".strip()
                    )


def _values_of(
    op: Operator, call: Any, extras: dict[str, Any], dtype: torch.dtype, case: str
) -> Iterator[Fault]:
    try:
        expected = exact(op, call, extras)
        if expected.abs().max() > torch.finfo(dtype).max:
            return
        for backend in able(op, call, extras):
            o = run(op, call, backend=backend.name, **extras)
            bound, apart = backend.tolerance.get(dtype, 0.0), error(o, expected)
            if o.dtype != dtype:
                yield Fault(
                    f"own['{backend.name}'].fn",
                    f"{dtype} for {dtype}",
                    str(o.dtype),
                    "cast the result back",
                )
            if apart > bound:
                yield Fault(
                    f"own['{backend.name}'].bounds.tolerance",
                    f"{bound:.0e} in {str(dtype)[6:]}",
                    f"{apart:.1e} on {case}",
                    "mend the backend, or claim less",
                )
    except UsageError as refused:
        if not case.count("{"):
            yield Fault(
                "claims.limits",
                f"an answer for {case}",
                f"refused: {refused}"[:200],
                "mend limits or half_refusal",
            )


def out_dtype(op: Operator) -> Iterator[Fault]:
    """A wider output is worth its name: computed from widened inputs, not from a rounded result."""
    for dtype in DTYPES:
        call, extras = draw(op, SHAPES["63"], dtype)
        expected, bound = exact(op, call, extras), op.backends[0].tolerance[torch.float32]
        for wider in (torch.float32, torch.float64):
            o = run(op, call, out_dtype=wider, **extras)
            if o.dtype != wider or error(o, expected) > bound:
                yield Fault(
                    "own",
                    f"{wider} of {dtype} inputs",
                    f"{o.dtype}, off by {error(o, expected):.1e}",
                    "let no backend cast down",
                )


def bounds(op: Operator) -> Iterator[Fault]:
    """Bars are numbers between rounding and the widest that means something; every backend that is
    here runs something.
    """
    call, extras = draw(op, SHAPES["63"], torch.float32)
    names = [backend.name for backend in op.backends]
    if len(set(names)) != len(names) or not all(
        isinstance(name, str) and name.isidentifier() for name in names
    ):
        yield Fault(
            "own",
            "backends by their names",
            ", ".join(map(repr, names)),
            "give each another name, one word",
        )
    for backend in op.own:
        for dtype in DTYPES:
            bar = backend.tolerance.get(dtype)
            if bar is None or not torch.finfo(dtype).eps / 64 <= bar <= WIDEST[dtype]:
                yield Fault(
                    f"own['{backend.name}'].bounds.tolerance",
                    f"{bar} in {str(dtype)[6:]}",
                    f"nothing between rounding and {WIDEST[dtype]:.0e}",
                    "claim a bar that means something",
                )
        if backend.here is not None and not isinstance(backend.here(), str):
            yield Fault(
                f"own['{backend.name}'].here",
                "what it has on this machine",
                repr(backend.here()),
                "return a text",
            )
        why = backend.refuses(
            *call,
            mask=None,
            query_mask=None,
            **op.filled(given_options(op, extras)),
            **_beside(op, extras),
        )
        if why and backend.here is None:
            yield Fault(
                f"own['{backend.name}'].refuses",
                "a backend that runs",
                f"it refuses 63 tokens in float32: {why[0]}",
                "refuse less, or take it out",
            )
        if not isinstance(why, list) or not all(
            isinstance(reason, str) and reason for reason in why
        ):
            yield Fault(
                f"own['{backend.name}'].refuses",
                "a list of sentences",
                repr(why)[:80],
                "return [] where it runs",
            )


def _beside(op: Operator, extras: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extras.items() if name not in op.options}


def half(op: Operator) -> Iterator[Fault]:
    """A backend that takes half precision as it is holds its bar there; one that does not would
    lose the answer.
    """
    for backend in op.own:
        apart = []
        for dtype in (torch.bfloat16, torch.float16):
            for tokens, gain, width in (
                (33, 1.0, 8),
                (333, 3.0, 16),
                (2048, 1.0, 8),
                (2048, 8.0, 16),
            ):
                call, extras = draw(op, (1, 2, tokens, tokens, width, width), dtype, gain=gain)
                settings = op.filled(given_options(op, extras)) | _beside(op, extras)
                if backend.refuses(*call, mask=None, query_mask=None, **settings):
                    continue
                if op.half_refusal is not None and op.half_refusal(
                    dims_of(op, call, extras), **settings
                ):
                    continue
                try:
                    with torch.no_grad():
                        o = backend.fn(*call, mask=None, query_mask=None, **settings)
                    apart.append(error(o, exact(op, call, extras)) / backend.tolerance[dtype])
                except RuntimeError:
                    apart.append(math.inf)
        if apart and backend.native_half and max(apart) > 1:
            yield Fault(
                f"own['{backend.name}'].bounds.native_half",
                "True",
                f"half precision misses its bar {max(apart):.1f} times",
                "set native_half=False",
            )
        if apart and not backend.native_half and max(apart) <= 1:
            yield Fault(
                f"own['{backend.name}'].bounds.native_half",
                "False",
                f"half precision as it is holds its bar ({max(apart):.2f} of it)",
                "set native_half=True",
            )


def _rounding(x: Tensor) -> float:
    """What rounding to float16 costs, against the cost for the same numbers brought to the size of
    one.
    """
    scaled = x / x.abs().amax((-2, -1), keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    smallest = error(scaled.half().double(), scaled)
    return error(x.half().double(), x) / max(smallest, 1e-9)


def half_refusal(op: Operator) -> Iterator[Fault]:
    """float16 is refused where it cannot hold the exact answer, and nowhere else; the lift is the
    power of two that helps.
    """
    lengths = (64, 512, 4096, 32768) if op.growth == "N" and op.resolution == "any" else (64, 512)
    for tokens in lengths:
        for width in (8, 32) if tokens <= 512 else (8,):
            call, extras = draw(op, (1, 1, tokens, tokens, width, width), torch.float16)
            settings = op.filled(given_options(op, extras)) | _beside(op, extras)
            dims = dims_of(op, call, extras)
            why = None if op.half_refusal is None else op.half_refusal(dims, **settings)
            if why is not None and not isinstance(why, str):
                yield Fault(
                    "half.half_refusal", "None, or why", repr(why)[:60], "return a sentence"
                )
            o = exact(op, call, extras)
            cost = _rounding(o)
            if why is None and cost > 16:
                yield Fault(
                    "half.half_refusal",
                    f"that float16 holds {tokens} tokens",
                    f"rounding costs {cost:.0f} times what it need",
                    "refuse there",
                )
            if why is not None and op.half_lift is not None and tokens > 2:
                lift = op.half_lift(dims)
                lifted = (
                    _rounding(o * lift) if lift > 0 and math.log2(lift).is_integer() else math.inf
                )
                if not lifted < 8 or not bool((o * lift).half().isfinite().all()):
                    yield Fault(
                        "half.half_lift",
                        f"{lift:g} at {tokens} tokens",
                        f"rounding the lifted output costs {lifted:.0f} times what it need",
                        "return the power of two that brings it to the size of v",
                    )
    call, extras = draw(op, SHAPES["short"], torch.float16)
    small = draw(op, (1, 2, 33, 33, 8, 8), torch.float16)
    for inputs, drawn in ((call, extras), small):
        settings = op.filled(given_options(op, drawn)) | _beside(op, drawn)
        if (
            op.half_refusal is not None
            and op.half_refusal(dims_of(op, inputs, drawn), **settings) is not None
        ):
            yield Fault(
                "half.half_refusal",
                f"that float16 cannot hold {inputs[0].shape[2]} tokens",
                f"rounding costs {_rounding(exact(op, inputs, drawn)):.1f} times what it need",
                "refuse less",
            )
    if op.half_lift is not None and op.half_refusal is None:
        yield Fault(
            "half.half_lift",
            "a lift",
            "nothing is refused",
            "take it out, or say what float16 cannot hold",
        )


def gradients(op: Operator) -> Iterator[Fault]:
    """At most twice the error of the reference run in the same precision; a backend without
    gradients gives none.
    """
    for dtype in DTYPES:
        call, extras = draw(op, SHAPES["63"], dtype)
        weight = torch.randn(
            call[2].shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64
        )

        def of(inputs: Any, function: Any, weight: Tensor = weight) -> list[Tensor]:
            leaves = [x.detach().clone().requires_grad_() for x in inputs]
            (function(*leaves).double() * weight).sum().backward()
            return [leaf.grad for leaf in sides(op, leaves) if leaf.grad is not None]

        truth = of([x.double() for x in call], lambda *x, extras=extras: exact(op, x, extras))
        plain = of(call, lambda *x, extras=extras: reference(op, *x, **extras))
        for backend in able(op, call, extras):
            at = partial(_positional, op, backend, extras)
            try:
                slopes = of(call, at)
            except BackendRefused:
                if backend.differentiable:
                    yield Fault(
                        f"own['{backend.name}'].refuses",
                        "a backend that runs",
                        "it refuses a call that wants gradients",
                        "set differentiable=False",
                    )
                elif _has_gradients(op, backend, call, extras, truth):
                    yield Fault(
                        f"own['{backend.name}'].bounds.differentiable",
                        "False",
                        "its gradients are right",
                        "set differentiable=True",
                    )
                continue
            floor = 32 * torch.finfo(dtype).eps
            for name, own, rough, exact_slope in zip(
                "qkv" if len(truth) == 3 else "qv", slopes, plain, truth, strict=True
            ):
                if error(own, exact_slope) > max(2 * error(rough, exact_slope), floor):
                    yield Fault(
                        f"own['{backend.name}'].bounds.differentiable",
                        f"gradients of {name} in {str(dtype)[6:]}",
                        f"off by {error(own, exact_slope):.1e}",
                        "mend the backend, or set differentiable=False",
                    )


def _has_gradients(
    op: Operator, backend: Backend, call: Any, extras: dict[str, Any], truth: list[Tensor]
) -> bool:
    """Whether the function of a backend is differentiable after all."""
    leaves = [x.detach().clone().float().requires_grad_() for x in call]
    try:
        o = backend.fn(
            *leaves,
            mask=None,
            query_mask=None,
            **(op.filled(given_options(op, extras)) | _beside(op, extras)),
        )
        o.square().sum().backward()
    except (RuntimeError, UsageError):
        return False
    return all(
        leaf.grad is not None and bool(leaf.grad.any()) for leaf in sides(op, leaves)
    ) and bool(truth)


def _positional(op: Operator, backend: Backend, extras: dict[str, Any], *inputs: Tensor) -> Tensor:
    return run(op, inputs, backend=backend.name, **extras)


def masked(op: Operator) -> Iterator[Fault]:
    """Norms, sums and other tokens' outputs as without a masked token, whatever it holds; its own
    row is 0.
    """
    keep = torch.rand(33, generator=torch.Generator().manual_seed(2)) < 0.6
    keep[0] = True
    mask = keep.expand(2, -1)
    for dtype in DTYPES:
        (q, k, v), extras = draw(op, SHAPES["square"], dtype)
        if op.wants("grid", {}):  # the others keep their places
            cleared = [x.masked_fill(~keep[:, None], 0) for x in (q, k, v)]
            expected = exact(op, cleared, extras, mask=mask, query_mask=mask)[..., keep, :]
            if error(exact(op, (q, k, v), extras)[..., keep, :], expected) < 1e-2:
                yield Fault(
                    "reference",
                    "that a masked token is gone",
                    "the mask changes nothing",
                    "leave masked tokens out of every sum",
                )
        else:
            expected = exact(op, (q[..., keep, :], k[..., keep, :], v[..., keep, :]), extras)
        hidden = [x.masked_fill(~keep[:, None], float("nan")) for x in (q, k, v)]
        for backend in able(op, hidden, extras):
            o = run(op, hidden, mask=mask, query_mask=mask, backend=backend.name, **extras)
            apart = error(o[..., keep, :], expected)
            field = (
                "reference"
                if backend.name in {"reference", "eager"} and backend.fn is op.reference
                else f"own['{backend.name}'].fn"
            )
            if apart > backend.tolerance[dtype]:
                yield Fault(
                    field,
                    "that a masked token is gone",
                    f"the others are off by {apart:.1e} in {str(dtype)[6:]}",
                    "clear it first: softless.attention.keep(x, mask)",
                )
            if bool(o[..., ~keep, :].any()):
                yield Fault(
                    field,
                    "0 in masked rows",
                    f"{o[..., ~keep, :].abs().max():.1e}",
                    "keep(output, query_mask)",
                )
    yield from _all_masked(op)
    yield from _gradients_of_masked(op)


def _all_masked(op: Operator) -> Iterator[Fault]:
    """A sample without any token that counts gives 0, and does not touch the other sample."""
    call, extras = draw(op, SHAPES["square"], torch.float32)
    mask = torch.zeros(2, 33, dtype=torch.bool)
    mask[0, 7] = True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        o = run(op, call, mask=mask, query_mask=mask, **extras)
    if not bool(o[0].isfinite().all()) or bool(o[1].any()):
        yield Fault(
            "reference",
            "0 for a sample all masked",
            f"{o.abs().max():.1e}",
            "divide by a sum that is floored: clamp_min(eps)",
        )


def _gradients_of_masked(op: Operator) -> Iterator[Fault]:
    """No gradient passes a mask, and every token that counts gets one."""
    call, extras = draw(op, SHAPES["square"])
    mask = torch.rand(2, 33, generator=torch.Generator().manual_seed(8)) < 0.5
    mask[:, 0] = True
    leaves = [x.detach().clone().requires_grad_() for x in call]
    run(op, leaves, mask=mask, query_mask=mask, **extras).square().sum().backward()
    for leaf in sides(op, leaves):
        slope = None if leaf.grad is None else leaf.grad.transpose(1, 2)
        if slope is None or bool(slope[~mask].any()) or not bool(slope[mask].any()):
            yield Fault(
                "reference",
                "gradients of the tokens that count alone",
                "others, or none",
                "clear masked tokens first: keep(x, mask)",
            )


def neighbours(op: Operator) -> Iterator[Fault]:
    """Bitwise the same alone and among others, with a NaN image beside it; with one thread and with
    two.
    """
    for dtype in DTYPES:
        call, extras = draw(op, (33, 2, 20, 20, 8, 8), dtype)
        for x in call:
            x[5] = float("nan")
        batch = run(op, call, **extras)
        for size in (1, 2, 8):
            part = run(op, [x[:size] for x in call], **extras)
            if not torch.equal(part.nan_to_num(7.0), batch[:size].nan_to_num(7.0)) or not bool(
                batch[6:].isfinite().all()
            ):
                yield Fault(
                    "reference",
                    "an answer that hangs on no batch mate",
                    f"other bits among 33 than among {size}",
                    "sum over tokens alone, never over the batch",
                )
    call, extras = draw(op, (2, 2, 300, 300, 8, 8), torch.float32)
    before = torch.get_num_threads()
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            if not torch.equal(run(op, call, **extras), run(op, call, **extras)):
                yield Fault(
                    "reference",
                    "the same bits twice",
                    f"other bits with {threads} threads",
                    "use no atomic sums and no random numbers",
                )
    finally:
        torch.set_num_threads(before)


def extremes(op: Operator) -> Iterator[Fault]:
    """Finite and right where the exact answer fits; zeros give a finite value and gradient."""
    for gain in (1e-12, 1e-4, 30.0, 1e4, 1e12):
        call, extras = draw(op, SHAPES["square"], torch.float32, gain=gain)
        expected = exact(op, call, extras)
        if (
            not bool((expected.abs() < torch.finfo(torch.float32).max).all())
            or expected.abs().max() < torch.finfo(torch.float32).tiny
        ):
            continue
        o = run(op, call, **extras)
        bound = max(op.backends[0].tolerance[torch.float32], 16 * _sensitivity(op, call, extras))
        if not bool(o.isfinite().all()) or (bound < 1 and error(o, expected) > bound):
            yield Fault(
                "own",
                f"the answer for values of {gain:g}",
                f"off by {error(o, expected):.1e}, bound {bound:.0e}",
                "keep sums in range",
            )
    for dtype in DTYPES:
        (q, k, v), extras = draw(op, SHAPES["square"], dtype)
        q[..., 0] = 0
        k[..., 1] = 0
        for inputs in (
            (q, k, v),
            (torch.zeros_like(q), k, v),
            (torch.zeros_like(q), torch.zeros_like(k), torch.zeros_like(v)),
        ):
            leaves = [x.clone().requires_grad_() for x in inputs]
            o = run(op, leaves, **extras)
            o.float().sum().backward()
            slopes = [leaf.grad for leaf in leaves if leaf.grad is not None]
            if not bool(o.isfinite().all()) or not all(
                bool(slope.isfinite().all()) for slope in slopes
            ):
                yield Fault(
                    "own",
                    f"a finite value and gradient for zeros in {str(dtype)[6:]}",
                    "NaN or infinity",
                    "floor what is divided by",
                )


def _sensitivity(op: Operator, call: Any, extras: dict[str, Any]) -> float:
    """How far the exact answer moves when q, k and v are rounded to float32: no float32 form can be
    closer, but for luck.
    """
    generator = torch.Generator().manual_seed(1)
    q, k, v = (
        x.double() * (1 + 6e-8 * torch.randn(x.shape, generator=generator, dtype=torch.float64))
        for x in call
    )
    k = q if call[0] is call[1] else k
    return error(exact(op, (q, k, v), extras), exact(op, call, extras))


def roads(op: Operator) -> Iterator[Fault]:
    """The buffer, the matrix and both projections give what `attend` gives."""
    apart = op.wants("tied_qk", {}) or op.wants("grid", {}) or bool(op.learned)
    generator = torch.Generator().manual_seed(4)
    qkv = torch.randn(2, 30, 3 * 2 * 8, generator=generator)
    q, k, v = unpacked(qkv, 2)
    for backend in op.own:
        if apart and (backend.matrix or backend.projected):
            yield Fault(
                f"own['{backend.name}'].roads",
                "a matrix or both projections",
                "operators with a grid, tied q and k or own tensors have none",
                "take it out",
            )
        elif not apart and not backend.refuses(
            q, k, v, mask=None, query_mask=None, **op.filled({})
        ):
            yield from _roads_of(op, backend, qkv)
            if backend.projected is not None:
                yield from _projected(op, backend, generator)


def _roads_of(op: Operator, backend: Backend, qkv: Tensor) -> Iterator[Fault]:
    q, k, v = unpacked(qkv, 2)
    expected, bar, field = (
        exact(op, (q, k, v), {}),
        backend.tolerance[torch.float32],
        f"own['{backend.name}'].roads",
    )
    if backend.packed is not None:
        apart = error(
            attend_packed(qkv, 2, op, backend=backend.name), expected.transpose(1, 2).flatten(2)
        )
        if apart > bar:
            yield Fault(
                f"{field}.packed",
                "the same value from the buffer",
                f"off by {apart:.1e}",
                "mend it, or take it out",
            )
    if backend.matrix is not None:
        matrix = output_matrix(qkv, 2, op, backend=backend.name)
        apart = math.inf if matrix is None else error(q.double() @ matrix.double(), expected)
        if apart > 4 * bar:
            yield Fault(
                f"{field}.matrix",
                "a matrix that turns q into the output",
                f"off by {apart:.1e}",
                "mend it, or take it out",
            )


def _projected(op: Operator, backend: Backend, generator: torch.Generator) -> Iterator[Fault]:
    x, weight, out = (
        torch.randn(shape, generator=generator) for shape in ((2, 30, 16), (48, 16), (16, 16))
    )
    projected = attend_projected(x, (weight, None), (out, None), 2, op, backend=backend.name)
    expected = (
        exact(op, unpacked(x.double() @ weight.double().T, 2), {}).transpose(1, 2).flatten(2)
        @ out.double().T
    )
    apart = math.inf if projected is None else error(projected, expected)
    if apart > 8 * backend.tolerance[torch.float32]:
        yield Fault(
            f"own['{backend.name}'].roads.projected",
            "the module's output with both projections",
            f"off by {apart:.1e}",
            "mend it, or take it out",
        )
