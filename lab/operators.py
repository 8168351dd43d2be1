"""Value and gradient errors of every operator against float64, over lengths, dtypes, backends and
data that break naive forms.
"""
# N tokens, D channels of a head

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lab.errors_of import Deviation, deviation, gradient_deviation, gradients
from lab.families import FAMILIES
from lab.inputs import Call, call
from softless.attention import OPERATORS, Operator, get
from softless.compare.record import record_path, write_csv
from softless.data.progress import track
from softless.errors import BackendRefused, PrecisionError, UsageError
from softless.words import table

LENGTHS = (1, 2, 49, 197, 1024, 4097, 65_536)
LONG = 1_000_000
# those on which the published form was measured (reliability.md §3.2)
LONG_FAMILIES = ("gauss", "biased", "wide")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
D = 64
# queries that are looked at where each row stands alone and all of them would take N^2 memory
ROWS = 64
WHOLE = 1024  # tokens up to which all of them are
PLAIN = 10_000  # tokens up to which the plain formula is measured in low precision too


# a result may be so many times as far off as rounding the inputs to float32 moves the exact one
CONDITION = 16


@dataclass(frozen=True)
class Form:
    """One way to compute one operator: a backend through `attend`, or the published code."""

    operator: str
    name: str  # the backend, or "published"
    options: Mapping[str, Any]
    run: Callable[[Call, torch.dtype | None], Tensor]  # call, dtype of the result
    # largest error that is claimed, by input dtype; empty where none is
    claim: Mapping[torch.dtype, float]


@dataclass(frozen=True)
class Exact:
    """The float64 answer to one call."""

    value: Tensor
    # of a fixed random weighting of the value; empty where they were not asked for
    gradients: Mapping[str, Tensor]
    # how far the value moves, relative to its size, when the inputs are rounded to float32
    moves: float


@dataclass(frozen=True)
class Line:
    """One measurement."""

    operator: str
    form: str
    options: str
    setting: str  # grid and windows, which differ with the number of tokens
    dtype: str
    out_dtype: str
    tokens: int
    family: str
    status: (
        # "ok", "refused", or "does not fit": all of the exact answer is below or some beyond what
        # the dtype holds
        str
    )
    error: float | None
    gradient_error: float | None
    largest: float | None
    not_finite: int | None
    zeros: float | None
    claim: float | None
    moves: float
    reason: str = ""

    @property
    def bar(self) -> float | None:
        """The claim, or what the data allow where the exact answer hangs on the last bits of the
        inputs.
        """
        return None if self.claim is None else max(self.claim, CONDITION * self.moves)

    @property
    def within(self) -> bool:
        """Within the bar; a form without a claim, and a refusal, break none."""
        return (
            self.status != "ok" or self.bar is None or self.error is None or self.error <= self.bar
        )

    @property
    def key(self) -> tuple[str, ...]:
        """What is measured, whatever the tokens and the data."""
        return self.operator, self.form, self.options, self.dtype, self.out_dtype


@dataclass(frozen=True)
class Errors:
    """All measurements; prints the worst over the families."""

    lines: tuple[Line, ...]
    recorded: Path | None = None

    @property
    def exit_code(self) -> int:
        return 0 if all(line.within for line in self.lines) else 1

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [asdict(line) for line in self.lines], "within": self.exit_code == 0}

    def __str__(self) -> str:
        over = [line for line in self.lines if not line.within]
        sentences = [
            (
                f"{len(self.lines)} measurements; {len(over)} above what their backend claims "
                "(marked "
                "!)"
            )
        ]
        sentences += [
            f"  {x.operator} {x.form} {x.dtype} N={x.tokens} {x.family}: {x.error:.1e} > "
            f"{x.bar:.0e}"
            for x in over[:20]
        ]
        hard = [
            x
            for x in self.lines
            if x.within and x.claim is not None and x.status == "ok" and (x.error or 0) > x.claim
        ]
        if hard:
            sentences.append(
                f"{len(hard)} above the claim where rounding the inputs to float32 moves the "
                "exact answer as much (marked ~)"
            )
        parts = [self._table("value", "error")]
        if any(line.gradient_error is not None for line in self.lines):
            parts.append(self._table("gradient", "gradient_error"))
        return "\n".join([
            "\n\n".join(parts),
            "",
            *sentences,
            *([f"recorded: {self.recorded}"] if self.recorded else []),
        ])

    def _table(self, quantity: str, column: str) -> str:
        lengths = sorted({line.tokens for line in self.lines})
        by_key: dict[tuple[str, ...], dict[int, list[Line]]] = {}
        for line in self.lines:
            by_key.setdefault(line.key, {}).setdefault(line.tokens, []).append(line)
        rows = [
            [f"{operator} {form} {options}".strip(), f"{dtype} → {out}"]
            + [_worst(by_length.get(length, []), column) for length in lengths]
            for (operator, form, options, dtype, out), by_length in by_key.items()
        ]
        return table(
            [f"largest relative {quantity} error over the families", "dtype", *map(str, lengths)],
            rows,
        )


def _worst(lines: Sequence[Line], column: str) -> str:
    """The largest of some errors, with what is to be said of it."""
    measured = [x for x in lines if x.status == "ok" and getattr(x, column) is not None]
    if not measured:
        return lines[0].status if lines else ""
    mark = ""
    if column == "error" and any(
        x.claim is not None and (x.error or 0) > x.claim for x in measured
    ):
        mark = " ~" if all(x.within for x in measured) else " !"
    return f"{max(getattr(x, column) for x in measured):.1e}{mark}"


def operators(
    *,
    ops: Sequence[str] = (),
    lengths: Sequence[int] | None = None,
    long: bool = False,
    record: bool = False,
    seed: int = 0,
) -> Errors:
    """Measure every operator's errors against the float64 reference on the same rounded inputs.

    One head of 64 channels, with the operator's own tensors at their start and, on a grid, windows
    of which there are at most 64. The gradient is that of a fixed random weighting of the output.
    Where each row of the result stands alone (softmax), only 64 queries are looked at above 1,024
    tokens.

    Args:
        ops: which operators; all by default.
        lengths: numbers of tokens; 1 to 65,536 by default.
        long: also a million tokens, values alone (some ten minutes an operator, 6 GB).
        record: also write benchmarks/operators.csv of the repository (the families with the largest
            errors), or operators_million.csv.
        seed: of the data.

    Raises:
        UsageError: an unknown operator, or `record` outside of the repository.
    """
    names = [get(name).name for name in ops] or list(OPERATORS)
    target = record_path("operators_million" if long else "operators") if record else None
    sizes, families = ([LONG], LONG_FAMILIES) if long else (lengths or LENGTHS, tuple(FAMILIES))
    planned = [(name, tokens, family) for name in names for tokens in sizes for family in families]
    lines = [
        line
        for name, tokens, family in track(planned, len(planned), "measuring")
        for line in _measure(OPERATORS[name], tokens, family, seed, gradient=not long)
    ]
    if target is not None:
        recorded = lines if long else hardest(lines)
        write_csv(
            target,
            [
                {name: "" if value is None else value for name, value in asdict(line).items()}
                for line in recorded
            ],
        )
    return Errors(tuple(lines), target)


def hardest(lines: Sequence[Line]) -> list[Line]:
    """Of each form, dtype and length the families with the largest errors, of the value and of the
    gradient; a refusal stands for all families.
    """
    hardest_by_case: dict[tuple[Any, ...], dict[str, Line]] = {}
    for line in lines:
        worst = hardest_by_case.setdefault((*line.key, line.tokens), {})
        for column in ("error", "gradient_error"):
            before = worst.setdefault(column, line)
            if line.status == "ok" and (
                before.status != "ok"
                or (getattr(line, column) or 0) > (getattr(before, column) or 0)
            ):
                worst[column] = line
    return [line for worst in hardest_by_case.values() for line in dict.fromkeys(worst.values())]


def _measure(
    record: Operator, tokens: int, family: str, seed: int, *, gradient: bool
) -> Iterator[Line]:
    """Every form and dtype on one set of data."""
    alone = (
        record.growth == "N^2" and record.normalises == "rows" and record.cross and tokens > WHOLE
    )
    for dtype_name, dtype in DTYPES.items():
        sample = call(record, family, tokens, D, seed, dtype, queries=ROWS if alone else None)
        exact: dict[tuple[Any, ...], Exact] = {}
        for form in forms(record, reference=tokens <= PLAIN):
            key = tuple(sorted(form.options.items()))
            if key not in exact:
                exact[key] = _exact(sample, form.options, gradient=gradient)
            for out in _outputs(form, dtype):
                if line := _line(form, sample, exact[key], out, dtype_name, family):
                    yield line


def _exact(sample: Call, options: Mapping[str, Any], *, gradient: bool) -> Exact:
    exact_sample = sample.double()

    def run(inputs: Call) -> Tensor:
        return inputs.run(backend="reference", **options)

    value, slopes = gradients(run, exact_sample) if gradient else (run(exact_sample), {})
    return Exact(value, slopes, deviation(run(exact_sample.nudged()), value).frobenius)


def _outputs(form: Form, dtype: torch.dtype) -> list[torch.dtype | None]:
    """The dtype of the result: the input's, and float32 for float16, which above 2,048 tokens
    cannot hold the paper's scale.
    """
    return (
        [None, torch.float32]
        if dtype == torch.float16 and form.name != "published" and not form.options
        else [None]
    )


def _line(
    form: Form, sample: Call, exact: Exact, out: torch.dtype | None, dtype: str, family: str
) -> Line | None:
    """One measurement; None where the backend does not take such calls
    (`softless list --backends`).
    """
    measured: Deviation | None = None
    slope: float | None = None
    reason = ""
    try:
        if exact.gradients:
            value, slopes = gradients(
                lambda inputs: form.run(inputs, out), sample, like=exact.gradients
            )
            slope = gradient_deviation(slopes, exact.gradients)
        else:
            value = form.run(sample, out)
        measured = deviation(value, exact.value)
    except BackendRefused:
        return None
    except (PrecisionError, UsageError) as error:
        reason = str(error)
    limits, top = torch.finfo(out or DTYPES[dtype]), float(exact.value.abs().max())
    fits = top == 0 or limits.tiny <= top <= limits.max
    return Line(
        operator=form.operator,
        form=form.name,
        options=" ".join(f"{name}={value}" for name, value in form.options.items()),
        setting=sample.setting(),
        dtype=dtype,
        out_dtype=dtype if out is None else str(out).removeprefix("torch."),
        tokens=sample.v.shape[-2],
        family=family,
        status=("ok" if fits else "does not fit") if measured else "refused",
        error=measured.frobenius if measured else None,
        gradient_error=slope if measured and fits else None,
        largest=measured.largest if measured else None,
        not_finite=measured.not_finite if measured else None,
        zeros=measured.zeros if measured else None,
        claim=form.claim.get(DTYPES[dtype]),
        moves=exact.moves,
        reason=reason,
    )


def forms(record: Operator, *, reference: bool = True) -> list[Form]:
    """Every backend of an operator; SimA's also with token_scale, and the published forms of the
    same meaning.
    """
    variants = [
        _backend_form(record, backend.name, {}, backend.tolerance) for backend in record.own
    ]
    if reference:
        # the meaning, in float64; below that it claims nothing
        variants.append(_backend_form(record, "reference", {}, {}))
    if record.name == "sima":
        variants += [
            _backend_form(record, backend.name, {"token_scale": "tokens"}, backend.tolerance)
            for backend in record.own
        ]
        variants.append(
            Form(
                "sima",
                "published",
                {},
                lambda inputs, _: published(inputs.q, inputs.k, inputs.v),
                {},
            )
        )
    if record.name == "performer":  # the same ratio with the published stabilisers
        variants.append(
            Form(
                record.name,
                "published",
                {},
                lambda inputs, out: inputs.run(out=out, parity=True),
                {},
            )
        )
    return variants


def _backend_form(
    record: Operator, backend: str, options: Mapping[str, Any], claim: Mapping[torch.dtype, float]
) -> Form:
    def run(inputs: Call, out: torch.dtype | None) -> Tensor:
        return inputs.run(backend=backend, out=out, **options)

    return Form(record.name, backend, options, run, claim)


def published(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SimA as its authors' code has it (arXiv:2206.08898; sima.md §2): normalise in the input's
    dtype, then multiply, in the order that is cheaper.

    q is (B, H, N, D), k (B, H, M, D), v (B, H, M, E); the answer is (B, H, N, E).
    """
    q, k = F.normalize(q, p=1.0, dim=-2), F.normalize(k, p=1.0, dim=-2)
    return (
        (q @ k.transpose(-2, -1)) @ v
        if q.shape[-2] < q.shape[-1]
        else q @ (k.transpose(-2, -1) @ v)
    )
