"""What an audit found, of a model or of a file: by kind, number and place, and whether anything is
left.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from softless.errors import unknown
from softless.measure.exps import KINDS
from softless.words import counted

OPAQUE = "opaque"  # an operator that no table knows, or that cannot be looked into
KIND_NAMES = frozenset({kind for kind, _ in KINDS.values()} | {OPAQUE})


@dataclass(frozen=True)
class Finding:
    """One kind of function in one place."""

    # exp, softmax, gelu, sigmoid, silu, tanh, erf, log, trigonometric, power, or opaque: an
    # operator that cannot be looked into
    kind: str
    where: str  # path of the module, or the name of the node where a file has no more
    operator: str  # as ATen or the file's format names it
    evaluations: int  # of a scalar function, for one image
    per_grid: bool  # made once for a size of image, whatever is in it
    sized: bool = True  # False: the file tells no shape, and `evaluations` counts operators


@dataclass(frozen=True)
class Audit:
    """What was found for one image of one size; prints as a table."""

    input_size: tuple[int, ...] | None  # None where an exported graph says it
    findings: tuple[Finding, ...]
    roots: int  # operators that take square roots
    divisions: int  # operators that divide
    operators: tuple[str, ...] = ()  # other than softmax, that a module's attention is named by
    dynamic: bool = False  # an exported graph of any size: the numbers are those of its example
    allowed: tuple[str, ...] = ()  # kinds that may be left
    file: str | None = None  # what was read, where it is a file of a tool
    nodes: Mapping[str, int] = field(default_factory=dict)  # a file's operators by name
    rank: int | None = None  # most dimensions of a tensor, where a file says shapes

    @property
    def exp_free(self) -> bool:
        """Nothing transcendental is evaluated for an image, and nothing is hidden."""
        return not any(not finding.per_grid for finding in self.findings)

    @property
    def exit_code(self) -> int:
        return 1 if self.left.keys() - set(self.allowed) else 0

    @property
    def left(self) -> Mapping[str, int]:
        """Places for each kind that is evaluated for an image, opaque operators included."""
        return dict(
            sorted(Counter(item.kind for item in self.findings if not item.per_grid).items())
        )

    @property
    def kinds(self) -> Mapping[str, int]:
        """Evaluations for an image, by kind; an operator of unknown shape counts as one."""
        return _sums(finding for finding in self.findings if not finding.per_grid)

    @property
    def per_grid(self) -> Mapping[str, int]:
        """Evaluations for a size of image, by kind."""
        return _sums(finding for finding in self.findings if finding.per_grid)

    @property
    def softmax_kept(self) -> tuple[str, ...]:
        """Where softmax is evaluated for an image although the model's attention is named by
        another operator.
        """
        if not self.operators:
            return ()
        rows = _grouped(
            finding
            for finding in self.findings
            if finding.kind == "softmax" and not finding.per_grid
        )
        return tuple(path for _, _, path in rows)

    def to_dict(self) -> dict[str, Any]:
        sums = {"kinds": self.kinds, "per_grid": self.per_grid, "softmax_kept": self.softmax_kept}
        return asdict(self) | {"exp_free": self.exp_free} | sums

    def __str__(self) -> str:
        size = " x ".join(map(str, self.input_size)) if self.input_size else "its example's size"
        lines = [
            "exp-free: nothing transcendental is evaluated for an image"
            if self.exp_free
            else "not exp-free"
        ]
        lines[0] += f" ({self.file or size})"
        if self.left and not self.exit_code:
            lines.append(f"allowed, and left: {', '.join(self.left)}")
        if self.softmax_kept:
            lines.append(
                f"named {', '.join(self.operators)}, and softmax is kept in "
                f"{', '.join(self.softmax_kept)}"
            )
        for title, per_grid in (
            ("for each image" if self.file is None else "for each call", False),
            (
                "once per grid, whatever the image"
                if self.file is None
                else "of constants and shapes alone, whatever the image",
                True,
            ),
        ):
            rows = _grouped(finding for finding in self.findings if finding.per_grid == per_grid)
            if rows:
                width = max(len(kind) for kind, *_ in rows)
                lines += ["", f"{title}:"]
                lines += [f"  {kind:<{width}}  {number:>14}  {path}" for kind, number, path in rows]
        lines += [
            "",
            (
                f"square roots in {self.roots:,} operators, divisions in {self.divisions:,}: "
                "neither "
                "is transcendental"
            ),
        ]
        if self.nodes:
            total = counted(sum(self.nodes.values()), "operator")
            rank = f", tensors of up to {self.rank} dimensions" if self.rank else ""
            lines.append(f"{total} of {counted(len(self.nodes), 'kind')}{rank}")
        if any(not finding.sized for finding in self.findings):
            lines.append("a number of operators stands where the file tells no shape")
        if self.dynamic:
            lines.append(
                "the graph takes any size: tables are made inside it at each call, and the "
                "numbers are those of its example"
            )
        return "\n".join(lines)


def allowed_kinds(allow: Sequence[str]) -> tuple[str, ...]:
    """The kinds that may be left, each once.

    Raises:
        UsageError: there is no such kind; the nearest is offered.
    """
    names = (allow,) if isinstance(allow, str) else tuple(allow)
    for name in names:
        if name not in KIND_NAMES:
            raise unknown("kind of function", str(name), KIND_NAMES)
    return tuple(dict.fromkeys(names))


def listed(counts: Mapping[tuple[str, str, str, bool], int]) -> tuple[Finding, ...]:
    """Findings from evaluations by kind, place, operator and whether they are per grid."""
    return tuple(
        Finding(kind, path, operator, number, grid)
        for (kind, path, operator, grid), number in counts.items()
    )


def _sums(findings: Iterable[Finding]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for finding in findings:
        total[finding.kind] += finding.evaluations
    return dict(sorted(total.items()))


def _grouped(findings: Iterable[Finding]) -> list[tuple[str, str, str]]:
    """Kind, evaluations and where, places that differ in a block's number alone put together."""
    groups: dict[tuple[str, bool, str], list[Finding]] = {}
    for finding in findings:
        general = ".".join("*" if part.isdigit() else part for part in finding.where.split("."))
        if finding.kind == OPAQUE:
            general += f" ({finding.operator})"
        groups.setdefault((finding.kind, not finding.sized, general), []).append(finding)
    rows = []
    for (kind, unsized, path), same in sorted(groups.items()):
        number = sum(finding.evaluations for finding in same)
        rows.append((
            kind,
            counted(number, "operator") if unsized else f"{number:,}",
            path + (f"  ({len(same)} places)" if len(same) > 1 else ""),
        ))
    return rows
