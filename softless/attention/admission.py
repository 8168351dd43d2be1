"""What a record must hold to before it is an operator: its names, the signature of its reference,
one call of it.
"""

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from softless.attention.norms import TokenNorm
from softless.attention.record import Dims, Operator
from softless.attention.samples import dims_of, draw
from softless.errors import UsageError

SMALL = (2, 2, 6, 6, 4, 4)  # B, H, N, M, D, E of the call that is tried
MASKS = ("mask", "query_mask")
OF_A_CALL = frozenset({"q", "k", "v", "op", *MASKS, "grid", "learned", "out_dtype", "backend"})


def check_record(record: object) -> Operator:
    """The record, if it can be an operator.

    Raises:
        UsageError: it is none, or a field does not fit; the field is named, and the line to write
            shown.
    """
    if not isinstance(record, Operator):
        raise UsageError(
            "softless.register takes a record, softless.attention.Operator(…), and this is of "
            f"type {type(record).__name__}"
        )
    for check in (_names, _words, _functions, _choices, _options, _learned, _signature, _one_call):
        check(record)
    return record


def _names(record: Operator) -> None:
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", record.name):
        raise UsageError(
            f"identity.name={record.name!r}: small letters, digits and single underscores, for "
            "example Identity(name='relu_linear')"
        )
    if not record.title.isidentifier() or not record.title[0].isupper():
        raise UsageError(
            f"operator '{record.name}': identity.title={record.title!r} names a class, for "
            "example Identity(title='ReluLinear')"
        )


def _words(record: Operator) -> None:
    """Every field that tables print is one line of text; those that explain something are not
    empty.
    """
    for name in ("summary", "formula", "paper", "differs"):
        value = getattr(record, name)
        if (
            not isinstance(value, str)
            or "\n" in value
            or value != value.strip()
            or (name == "summary" and not value)
        ):
            raise UsageError(
                f"operator '{record.name}': identity.{name}={value!r} must be one line of text"
            )
    if record.formula and "=" not in record.formula:
        raise UsageError(
            f"operator '{record.name}': identity.formula={record.formula!r} must be an equation, "
            "for example 'o = q (kᵀ v)'"
        )
    if record.paper and not re.search(r"arXiv:\d|doi|https?://|\d{4}", record.paper):
        raise UsageError(
            f"operator '{record.name}': identity.paper={record.paper!r} must say where, for "
            "example 'arXiv:2206.08898'"
        )


FUNCTIONS = {  # a field, and the line to write
    "claims.flops": "flops=lambda d: 2 * d.B * d.H * d.D * d.E * (d.N + d.M)",
    "claims.exps": "exps=lambda d: d.B * d.H * d.N",
    "claims.limits": "limits=lambda d, **extras: None, or leave it out",
    "claims.exports_from": "exports_from=lambda options: 2, or leave it out",
    "half.half_refusal": "half_refusal=lambda d, **options: None, or leave it out",
    "half.half_lift": "half_lift=lambda d: 2.0 ** 11, or leave it out",
    "host.reduces": "reduces=lambda options: 2, or leave it out",
    "views.class_row": "class_row=row, with def row(q, k, *, eps), or leave it out",
}
MAY_BE_NONE = {"half.half_refusal", "half.half_lift", "host.reduces", "views.class_row"}
CHOICES: dict[str, tuple[Any, ...]] = {
    "growth": ("N", "N^2"),
    "normalises": ("rows", "tokens", "nothing"),
    "resolution": ("any", "grid", "fixed"),
    **dict.fromkeys(
        ("scale_free", "equivariant", "implied_matrix", "cross", "linear_in_v", "drops_weights"),
        (False, True),
    ),
}
MASKED = {"token", "pairwise", "causal"}


def _functions(record: Operator) -> None:
    """What is called is a function; the needs of a host are."""
    for name, line in FUNCTIONS.items():
        value = getattr(record, name.rpartition(".")[2])
        if not (callable(value) or (value is None and name in MAY_BE_NONE)):
            raise UsageError(
                f"operator '{record.name}': {name}={value!r} is no function: write {line}"
            )
    needs = record.needs
    if not isinstance(needs, Mapping) or not all(map(callable, needs.values())):
        raise UsageError(
            f"operator '{record.name}': host.needs={needs!r} names what a host must tell and "
            "under which options: "
            "write needs={'grid': lambda options: True}"
        )
    if record.class_row is not None:
        row = inspect.signature(record.class_row).parameters
        if len(row) < 3 or not (
            "eps" in row
            or any(parameter.kind is parameter.VAR_KEYWORD for parameter in row.values())
        ):
            raise UsageError(
                f"operator '{record.name}': views.class_row is called with q, k and eps=: write "
                f"{FUNCTIONS['views.class_row']}"
            )


def _choices(record: Operator) -> None:
    """What takes one of a few values has one of them."""
    for name, values in CHOICES.items():
        value = getattr(record, name)
        if not any(
            value is choice or (isinstance(value, str) and value == choice) for choice in values
        ):
            raise UsageError(
                f"operator '{record.name}': claims.{name}={value!r} must be one of "
                f"{', '.join(map(repr, values))}: "
                f"write {name}={values[0]!r}"
            )
    masks = record.masks
    if not isinstance(masks, tuple) or "token" not in masks or set(masks) - MASKED:
        raise UsageError(
            f"operator '{record.name}': claims.masks={masks!r} must hold 'token', and may hold "
            "'pairwise' and 'causal': "
            "write masks=('token',)"
        )


def _counts(record: Operator, dims: Dims) -> None:
    """FLOPs and transcendentals of a call are whole numbers."""
    for name in ("flops", "exps"):
        try:
            value = getattr(record, name)(dims)
        # whatever somebody else's function raises is said in one sentence
        except Exception as error:
            raise UsageError(
                f"operator '{record.name}': claims.{name} raises {type(error).__name__} for "
                f"{dims}: {error}: "
                f"write {FUNCTIONS[f'claims.{name}']}"
            ) from error
        if not isinstance(value, int) or value < 0:
            raise UsageError(
                f"operator '{record.name}': claims.{name} gives {value!r}, and it counts: write "
                f"{FUNCTIONS[f'claims.{name}']}"
            )


def _options(record: Operator) -> None:
    for name, option in record.options.items():
        if name in OF_A_CALL or not name.isidentifier():
            raise UsageError(
                f"operator '{record.name}': options[{name!r}] shadows an argument of "
                "softless.attend: "
                f"give it another name, for example options={{'{record.name}_{name}': Option(…)}}"
            )
        if not option.takes(option.default) or (
            option.small is not None and not option.takes(option.small)
        ):
            raise UsageError(
                f"operator '{record.name}': options[{name!r}].accepts refuses its own default "
                f"{option.default!r}: "
                "accepts=lambda value: … must take it"
            )
        if option.takes(object()):
            raise UsageError(
                f"operator '{record.name}': options[{name!r}].accepts takes anything: say what it "
                "takes, "
                "for example accepts=lambda value: isinstance(value, float) and value > 0"
            )
        if not option.says or not option.values:
            raise UsageError(
                f"operator '{record.name}': options[{name!r}] must say what it does and which "
                "values it takes: "
                "Option(default, says='…', accepts=…, values='…')"
            )


def _learned(record: Operator) -> None:
    """A tensor that is trained, and one that is only drawn."""
    for name, claim in record.learned.items():
        label = f"operator '{record.name}': learned[{name!r}]"
        if claim.trained and claim.redraw_every:
            raise UsageError(
                f"{label} is trained and drawn anew: set trained=False, or leave redraw_every out"
            )
        if not claim.trained and not (callable(claim.start) and claim.redraw_every):
            raise UsageError(
                f"{label} is neither trained nor drawn anew: set trained=True, or start=a "
                "function that draws it and "
                "redraw_every=the option that says how often"
            )
        if claim.redraw_every and claim.redraw_every not in record.options:
            raise UsageError(
                f"{label}.redraw_every={claim.redraw_every!r} must be the name of an option that "
                "says how often"
            )


def keywords_of(function: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The parameters of a function behind its first three, and whether it takes any keyword."""
    parameters = list(inspect.signature(function).parameters.values())
    rest = {
        parameter.name: parameter
        for parameter in parameters[3:]
        if parameter.kind is not parameter.VAR_KEYWORD
    }
    return rest, any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters)


def expected(record: Operator) -> Iterator[str]:
    """Keywords that every reference is given."""
    yield from MASKS
    yield from record.options
    if record.learned:
        yield "learned"
    if "grid" in record.needs:
        yield "grid"


def _signature(record: Operator) -> None:
    line = (
        "def reference(q, k, v, *, "
        f"{', '.join(f'{name}=None' if name in MASKS else name for name in expected(record))})"
    )
    if not callable(record.reference):
        raise UsageError(
            f"operator '{record.name}': reference={record.reference!r} is no function: write {line}"
        )
    parameters = list(inspect.signature(record.reference).parameters.values())
    first = [
        parameter
        for parameter in parameters
        if parameter.kind in {parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD}
    ][:3]
    if len(first) < 3 or any(
        parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters
    ):
        raise UsageError(
            f"operator '{record.name}': reference does not take q, k and v, in that order: write "
            f"{line}"
        )
    rest, anything = keywords_of(record.reference)
    if anything:
        raise UsageError(
            f"operator '{record.name}': reference takes any keyword (**): name each, so that a "
            f"missing one is seen: write {line}"
        )
    missing = [name for name in expected(record) if name not in rest]
    if missing:
        raise UsageError(
            f"operator '{record.name}': reference takes no keyword '{missing[0]}': write {line}"
        )
    unknown = [name for name in rest if name not in set(expected(record))]
    if unknown:
        raise UsageError(
            f"operator '{record.name}': reference takes '{unknown[0]}', which is no option: add "
            "it to options="
            f"{{'{unknown[0]}': Option(…)}}, or take it out of the reference"
        )
    for name, option in record.options.items():
        default = rest[name].default if name in rest else inspect.Parameter.empty
        if default is not inspect.Parameter.empty and default != option.default:
            raise UsageError(
                f"operator '{record.name}': options[{name!r}].default={option.default!r}, and "
                f"reference has {name}={default!r}: "
                "write the same in both"
            )


def _one_call(record: Operator) -> None:
    """The reference gives (B,H,N,E) in the dtype of its inputs."""
    inputs, extras = draw(record, SMALL)
    extras = {**record.filled({}), **extras}
    try:
        with torch.no_grad():
            o = record.reference(*inputs, mask=None, query_mask=None, **extras)
    except Exception as error:  # whatever somebody else's function raises is said in one sentence
        raise UsageError(
            f"operator '{record.name}': reference raises {type(error).__name__} for q, k and v of "
            f"shape (2, 2, 6, 4): {error}"
        ) from error
    shape = tuple(o.shape) if isinstance(o, torch.Tensor) else type(o).__name__
    if shape != (2, 2, 6, 4):
        raise UsageError(
            f"operator '{record.name}': reference gives {shape} for q, k and v of shape (2, 2, 6, "
            "4): it must return (B, H, N, E)"
        )
    if o.dtype != torch.float64:
        raise UsageError(
            f"operator '{record.name}': reference gives {o.dtype} for float64 inputs: leave out "
            "casts, backends widen what needs it"
        )
    _counts(record, dims_of(record, inputs, extras))
    hat = record.hat
    if hat is not None and not callable(hat):
        raise UsageError(
            f"operator '{record.name}': views.hat={hat!r} is no function: write "
            f"hat={TokenNorm.__name__}('l1'), or a function of x (B,H,N,D)"
        )
