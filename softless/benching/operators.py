"""Value errors of every operator against float64, over lengths, dtypes, backends and data that break naive forms."""
# N tokens, D channels of a head

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from softless.attention import OPERATORS, Operator, attend
from softless.attention.learned import starting
from softless.attention.spec import Sizes
from softless.benching.errors_of import Deviation, deviation
from softless.benching.families import FAMILIES, draw
from softless.benching.record import record_path, table, write_csv
from softless.data.progress import track
from softless.errors import BackendRefused, PrecisionError

LENGTHS = (1, 2, 49, 196, 1024, 4096, 65_536)
LONG = 1_000_000
LONG_FAMILIES = ("gauss", "biased", "wide")  # those on which the published form was measured (reliability.md §3.2)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
D = 64
ROWS = 64  # queries that are looked at where each row stands alone and all of them would take N^2 memory
WHOLE = 1024  # tokens up to which all of them are


@dataclass(frozen=True)
class Form:
    """One way to compute one operator: a backend through `attend`, or the published code."""

    operator: str
    name: str  # the backend, or "published"
    options: Mapping[str, Any]
    run: Callable[[Tensor, Tensor, Tensor, torch.dtype | None], Tensor]  # q, k, v, dtype of the result
    bar: Mapping[torch.dtype, float]  # largest error that is claimed, by input dtype; empty where none is


@dataclass(frozen=True)
class Line:
    """One measurement."""

    operator: str
    form: str
    options: str
    dtype: str
    out_dtype: str
    tokens: int
    family: str
    status: str  # "ok", "refused", or "does not fit": the exact answer is beyond the largest number of the dtype
    error: float | None
    largest: float | None
    not_finite: int | None
    zeros: float | None
    bar: float | None
    reason: str = ""

    @property
    def within(self) -> bool:
        """Within what the backend claims; a form without a claim, and a refusal, break none."""
        return self.status != "ok" or self.bar is None or self.error is None or self.error <= self.bar


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
        lengths = sorted({line.tokens for line in self.lines})
        rows = [
            [f"{form} {options}".strip(), f"{dtype} → {out}", *(self._worst(key, length) for length in lengths)]
            for key in dict.fromkeys((x.operator, x.form, x.options, x.dtype, x.out_dtype) for x in self.lines)
            for operator, name, options, dtype, out in [key]
            for form in [f"{operator} {name}"]
        ]
        shown = table(["largest relative error over the families", "dtype", *map(str, lengths)], rows)
        over = [line for line in self.lines if not line.within]
        said = [f"{len(self.lines)} measurements; {len(over)} above what their backend claims (marked !)"]
        said += [
            f"  {x.operator} {x.form} {x.dtype} N={x.tokens} {x.family}: {x.error:.1e} > {x.bar:.0e}" for x in over[:20]
        ]
        return "\n".join([shown, "", *said, *([f"recorded: {self.recorded}"] if self.recorded else [])])

    def _worst(self, key: tuple[str, ...], tokens: int) -> str:
        lines = [
            x for x in self.lines if (x.operator, x.form, x.options, x.dtype, x.out_dtype) == key and x.tokens == tokens
        ]
        errors = [x.error for x in lines if x.error is not None and x.status == "ok"]
        if not errors:
            return lines[0].status if lines else ""
        return f"{max(errors):.1e}{'' if all(x.within for x in lines) else ' !'}"


def operators(
    *,
    ops: Sequence[str] = (),
    lengths: Sequence[int] | None = None,
    long: bool = False,
    record: bool = False,
    seed: int = 0,
) -> Errors:
    """Measure every operator's error against the float64 reference on the same rounded inputs.

    One head of 64 channels. Where each row of the result stands alone (softmax), only 64 queries are looked at above 1,024 tokens.

    Args:
        ops: which operators; all by default.
        lengths: numbers of tokens; 1 to 65,536 by default.
        long: also a million tokens (some ten minutes an operator, 6 GB).
        record: also write benchmarks/operators.csv of the repository (the family with the largest error), or operators_million.csv.
        seed: of the data.
    """
    names = [_known(name) for name in ops] or list(OPERATORS)
    target = record_path("operators_million" if long else "operators") if record else None
    sizes, families = ([LONG], LONG_FAMILIES) if long else (lengths or LENGTHS, tuple(FAMILIES))
    planned = [(name, tokens, family) for name in names for tokens in sizes for family in families]
    lines = [
        line
        for name, tokens, family in track(planned, len(planned), "measuring")
        for line in _measure(OPERATORS[name], tokens, family, seed)
    ]
    if target is not None:
        kept = lines if long else hardest(lines)
        write_csv(
            target, [{name: "" if value is None else value for name, value in asdict(line).items()} for line in kept]
        )
    return Errors(tuple(lines), target)


def hardest(lines: Sequence[Line]) -> list[Line]:
    """Of each form, dtype and length the family with the largest error; a refusal stands for all families."""
    found: dict[tuple[Any, ...], Line] = {}
    for line in lines:
        key = (line.operator, line.form, line.options, line.dtype, line.out_dtype, line.tokens)
        worst = found.setdefault(key, line)
        if line.status == "ok" and (worst.status != "ok" or (line.error or 0) > (worst.error or 0)):
            found[key] = line
    return list(found.values())


def _known(name: str) -> str:
    from softless.attention import get

    return get(name).name


def _measure(record: Operator, tokens: int, family: str, seed: int) -> Iterator[Line]:
    """Every form and dtype on one set of data."""
    for dtype_name, dtype in DTYPES.items():
        q, k, v = draw(family, tokens, D, seed, dtype)
        if record.growth == "N^2" and record.normalises == "rows" and record.cross and tokens > WHOLE:
            q = q[:, :, :ROWS]
        exact: dict[tuple[Any, ...], Tensor] = {}
        for form in forms(record, reference=tokens < LONG):
            key = tuple(sorted(form.options.items()))
            if key not in exact:
                exact[key] = _exact(record, q, k, v, form.options)
            for out in _outputs(form, dtype):
                yield _line(form, (q, k, v), exact[key], out, dtype_name, family)


def _exact(record: Operator, q: Tensor, k: Tensor, v: Tensor, options: Mapping[str, Any]) -> Tensor:
    learned = _learned(record, torch.float64)
    return attend(q.double(), k.double(), v.double(), op=record, backend="reference", learned=learned, **options)


def _outputs(form: Form, dtype: torch.dtype) -> list[torch.dtype | None]:
    """The dtype of the result: the input's, and float32 for float16, which above 2,048 tokens cannot hold the paper's scale."""
    return [None, torch.float32] if dtype == torch.float16 and form.name != "published" and not form.options else [None]


def _line(
    form: Form, qkv: tuple[Tensor, Tensor, Tensor], exact: Tensor, out: torch.dtype | None, dtype: str, family: str
) -> Line:
    found: Deviation | None = None
    reason = ""
    try:
        found = deviation(form.run(*qkv, out), exact)
    except (PrecisionError, BackendRefused) as error:
        reason = str(error)
    given = out or DTYPES[dtype]
    fits = float(exact.abs().max()) <= torch.finfo(given).max
    status = ("ok" if fits else "does not fit") if found else "refused"
    return Line(
        operator=form.operator,
        form=form.name,
        options=" ".join(f"{name}={value}" for name, value in form.options.items()),
        dtype=dtype,
        out_dtype=dtype if out is None else str(out).removeprefix("torch."),
        tokens=qkv[1].shape[-2],
        family=family,
        status=status,
        error=found.frobenius if found else None,
        largest=found.largest if found else None,
        not_finite=found.not_finite if found else None,
        zeros=found.zeros if found else None,
        bar=form.bar.get(DTYPES[dtype]),
        reason=reason,
    )


def forms(record: Operator, *, reference: bool = True) -> list[Form]:
    """Every backend of an operator; SimA's also with token_scale and in the published form."""
    made = [_backend_form(record, backend.name, {}, backend.tolerance) for backend in record.own]
    if reference:
        made.append(_backend_form(record, "reference", {}, {}))  # the meaning, in float64; below that it claims nothing
    if record.name == "sima":
        made.append(_backend_form(record, made[0].name, {"token_scale": "tokens"}, record.backends[0].tolerance))
        made.append(Form("sima", "published", {}, lambda q, k, v, _: published(q, k, v), {}))
    return made


def _backend_form(record: Operator, backend: str, options: Mapping[str, Any], bar: Mapping[torch.dtype, float]) -> Form:
    def run(q: Tensor, k: Tensor, v: Tensor, out: torch.dtype | None) -> Tensor:
        return attend(q, k, v, op=record, backend=backend, out_dtype=out, learned=_learned(record, q.dtype), **options)

    return Form(record.name, backend, options, run, bar)


def _learned(record: Operator, dtype: torch.dtype) -> dict[str, Tensor] | None:
    """The operator's own tensors at their start, for one head."""
    made = starting(record, Sizes(1, D, record.filled({})), torch.Generator().manual_seed(0))
    return {name: value.to(dtype) for name, value in made.items()} or None


def published(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """SimA as its authors' code has it: normalise in the input's dtype, then multiply (sima.md §2)."""
    q, k = F.normalize(q, p=1.0, dim=-2), F.normalize(k, p=1.0, dim=-2)
    return (q @ k.mT) @ v if q.shape[-2] < q.shape[-1] else q @ (k.mT @ v)
