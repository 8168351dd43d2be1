"""Which transcendental functions a model calls, how often and where: the proof that none is left.

Watched at the level of ATen operators while one image passes, or read from an exported graph, with
composites and fused attention opened up. What does not depend on the image (position tables) is
made once per grid, is a constant of an exported graph of one size, and is listed apart. Square
roots and divisions are counted and are not transcendental.
"""

import zipfile
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker
from torch.utils.weak import WeakIdKeyDictionary

from softless.errors import DataError, UsageError, located
from softless.measure.cost import input_size_of, part_of, refused, undisturbed
from softless.measure.exps import KINDS

ROOTS = frozenset({
    "sqrt",
    "rsqrt",
    "linalg_vector_norm",
    "linalg_cholesky_ex",
    "native_layer_norm",
    "native_group_norm",
    "layer_norm",
    "batch_norm",
    "_native_batch_norm_legit_no_training",
    "native_batch_norm",
})
# native kernels: products, sums and one division by the norms; nothing transcendental
OURS = "softless"
DIVISIONS = frozenset({
    "attend",
    "attend_packed",
    "div",
    "true_divide",
    "reciprocal",
    "mean",
    "rsqrt",
})


@dataclass(frozen=True)
class Finding:
    """One kind of function in one place."""

    # exp, softmax, gelu, sigmoid, silu, tanh, erf, log, trigonometric, power, or opaque: an
    # operator that cannot be looked into
    kind: str
    where: str  # path of the module
    operator: str  # as ATen names it
    evaluations: int  # of a scalar function, for one image
    per_grid: bool  # made once for a size of image, whatever is in it


@dataclass(frozen=True)
class Audit:
    """What was found for one image of one size; prints as a table."""

    input_size: tuple[int, ...] | None  # None where an exported graph says it
    findings: tuple[Finding, ...]
    roots: int  # operators that take square roots
    divisions: int  # operators that divide
    operators: tuple[str, ...] = ()  # other than softmax, that a module's attention is named by
    dynamic: bool = False  # an exported graph of any size: the numbers are those of its example

    @property
    def exp_free(self) -> bool:
        """Nothing transcendental is evaluated for an image, and nothing is hidden."""
        return not any(not finding.per_grid for finding in self.findings)

    @property
    def exit_code(self) -> int:
        return 0 if self.exp_free else 1

    @property
    def kinds(self) -> Mapping[str, int]:
        """Evaluations for an image, by kind."""
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
        lines[0] += f" ({size})"
        if self.softmax_kept:
            lines.append(
                f"named {', '.join(self.operators)}, and softmax is kept in "
                f"{', '.join(self.softmax_kept)}"
            )
        for title, per_grid in (
            ("for each image", False),
            ("once per grid, whatever the image", True),
        ):
            rows = _grouped(finding for finding in self.findings if finding.per_grid == per_grid)
            if rows:
                width = max(len(kind) for kind, *_ in rows)
                lines += ["", f"{title}:"]
                lines += [
                    f"  {kind:<{width}}  {number:>14,}  {path}" for kind, number, path in rows
                ]
        lines += [
            "",
            (
                f"square roots in {self.roots:,} operators, divisions in {self.divisions:,}: "
                "neither "
                "is transcendental"
            ),
        ]
        if self.dynamic:
            lines.append(
                "the graph takes any size: tables are made inside it at each call, and the "
                "numbers are those of its example"
            )
        return "\n".join(lines)


def audit(
    model: nn.Module | torch.export.ExportedProgram | str | Path,
    input_size: int | tuple[int, ...] | None = None,
) -> Audit:
    """Every transcendental function that one image meets.

    Args:
        model: a module, an exported program, or a .pt2 file that holds one.
        input_size: side in pixels, (height, width) or (channels, height, width); a module's own
            size by default. An exported graph has its own.

    Returns:
        What was met by kind, number and layer; `exp_free` is True where nothing was.

    Raises:
        UsageError: a size that the model refuses, or one for an exported graph.
        DataError: no file, or not an exported program.

    Examples:
        >>> model = softless.create_model("sima_deit_tiny_patch16_224", depth=2, act="relu")
        >>> softless.audit(model).exp_free
        True
        >>> model = softless.create_model("sima_deit_tiny_patch16_224", depth=2)
        >>> softless.audit(model, input_size=64).kinds
        {'gelu': 26112}
    """
    if isinstance(model, nn.Module):
        return _watched(model, input_size_of(model, input_size))
    if input_size is not None:
        raise UsageError("an exported graph says its own input size: leave input_size out")
    return _read(
        model if isinstance(model, torch.export.ExportedProgram) else _program(located(model))
    )


def _program(path: Path) -> torch.export.ExportedProgram:
    if not path.is_file():
        raise DataError(f"no file {path}: name a .pt2 file, or pass a model")
    not_one = f"{path} is not an exported program: make it with torch.export.save"
    if not zipfile.is_zipfile(path):
        raise DataError(not_one)
    try:
        return torch.export.load(path)
    except Exception as error:
        raise DataError(f"{not_one} ({str(error).splitlines()[0][:120]})") from error


class _Watcher(TorchDispatchMode):
    """Finds what runs while active, and follows which values come from the image."""

    def __init__(self, image: Tensor, tracker: ModuleTracker) -> None:
        super().__init__()
        self.counts: Counter[tuple[str, str, str, bool]] = Counter()
        self.roots = self.divisions = 0
        self.tracker = tracker
        self.from_image = WeakIdKeyDictionary()
        self.from_image[image] = True

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        depends = any(leaf in self.from_image for leaf in inputs)
        if depends:
            for leaf in tree_leaves(out):
                if isinstance(leaf, Tensor):
                    self.from_image[leaf] = True
        name = func.overloadpacket.__name__
        self.roots += _plain(name) in ROOTS
        self.divisions += _plain(name) in DIVISIONS
        if evaluated := _kind(func.namespace, name, args):
            kind, number = evaluated
            deepest = max(
                (path for path in self.tracker.parents if path != "Global"), key=len, default=""
            )
            self.counts[kind, deepest.partition(".")[2] or "(model)", name, not depends] += number
        return out


def _watched(model: nn.Module, size: tuple[int, int, int]) -> Audit:
    first = next(model.parameters(), torch.zeros(()))
    with (
        undisturbed(model),
        refused(size),
        FakeTensorMode(allow_non_fake_inputs=True),
        torch.no_grad(),
        ModuleTracker() as tracker,
    ):
        part = part_of(model)
        image = torch.empty(1, *size, dtype=first.dtype, device=first.device)
        with _Watcher(image, tracker) as watcher:
            part(image)
    return Audit(size, _listed(watcher.counts), watcher.roots, watcher.divisions, _operators(model))


def _operators(model: nn.Module) -> tuple[str, ...]:
    """What the attention of a model is named by, softmax aside; known by its record, since this
    room knows no layers.
    """
    records: Iterable[Any] = (getattr(module, "op", None) for module in model.modules())
    names = {str(record.name) for record in records if hasattr(record, "reference")}
    return tuple(sorted(names - {"softmax"}))


def _read(program: torch.export.ExportedProgram) -> Audit:
    """The same from a graph: what a node makes comes from the image where one of its inputs
    does.
    """
    counts: Counter[tuple[str, str, str, bool]] = Counter()
    inputs = set(program.graph_signature.user_inputs)
    depends: set[str] = set()
    roots = divisions = 0
    dynamic = False
    for node in program.graph.nodes:
        if node.op == "placeholder":
            depends |= {node.name} & inputs
            continue
        if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
            if node.op == "call_function" and isinstance(
                node.target, torch._ops.HigherOrderOperator
            ):
                counts["opaque", _path(node), str(node.target), False] += 1
            depends |= (
                {node.name}
                if any(source.name in depends for source in node.all_input_nodes)
                else set()
            )
            continue
        from_image = any(source.name in depends for source in node.all_input_nodes)
        depends |= {node.name} if from_image else set()
        name = node.target.overloadpacket.__name__
        roots += _plain(name) in ROOTS
        divisions += _plain(name) in DIVISIONS
        args = torch.fx.node.map_arg(node.args, lambda argument: argument.meta.get("val"))
        if result := _kind(node.target.namespace, name, args):
            kind, number = result
            if not isinstance(number, int):  # a symbolic number of evaluations
                dynamic = True
                number = int(number.node.hint)
            counts[kind, _path(node), name, not from_image] += number
    return Audit(None, _listed(counts), roots, divisions, dynamic=dynamic)


def _path(node: Any) -> str:
    """The module that a node of a graph stands for."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return str(paths[-1]).removeprefix("L['self'].") if paths else "(model)"


def _plain(name: str) -> str:
    return name.removesuffix("_")


def _kind(namespace: str, name: str, args: tuple[Any, ...]) -> tuple[str, int] | None:
    """Kind and number of evaluations of an operator, or None where it has none."""
    if namespace == OURS:
        return None
    if namespace not in {"aten", "prim", "prims", "profiler"}:
        return "opaque", 1
    kind = KINDS.get(name) or KINDS.get(_plain(name))
    if kind is None:
        return None
    number = kind[1](args)
    return (kind[0], number) if isinstance(number, torch.SymInt) or number else None


def _listed(counts: Mapping[tuple[str, str, str, bool], int]) -> tuple[Finding, ...]:
    return tuple(
        Finding(kind, path, operator, number, grid)
        for (kind, path, operator, grid), number in counts.items()
    )


def _sums(findings: Iterable[Finding]) -> dict[str, int]:
    total: Counter[str] = Counter()
    for finding in findings:
        total[finding.kind] += finding.evaluations
    return dict(sorted(total.items()))


def _grouped(findings: Iterable[Finding]) -> list[tuple[str, int, str]]:
    """Kind, evaluations and where, places that differ in a block's number alone put together."""
    groups: dict[tuple[str, str], list[Finding]] = {}
    for finding in findings:
        general = ".".join("*" if part.isdigit() else part for part in finding.where.split("."))
        groups.setdefault((finding.kind, general), []).append(finding)
    return [
        (
            kind,
            sum(finding.evaluations for finding in same),
            f"{path}" + (f"  ({len(same)} places)" if len(same) > 1 else ""),
        )
        for (kind, path), same in sorted(groups.items())
    ]
