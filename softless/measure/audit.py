"""Which transcendental functions a model calls, how often and where: the proof that none is left.

Watched at the level of ATen operators while one image passes, or read from an exported graph, with
composites and fused attention opened up. What does not depend on the image (position tables) is
made once per grid, is a constant of an exported graph of one size, and is listed apart. Square
roots and divisions are counted and are not transcendental. Files of exported models are read by
`graphs`, one reader for each ending.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker
from torch.utils.weak import WeakIdKeyDictionary

from softless.errors import UsageError
from softless.measure.cost import input_size_of, part_of, refused, shape_of, undisturbed
from softless.measure.findings import Audit, allowed_kinds, listed
from softless.measure.graphs.aten import DIVISIONS, ROOTS, kind_of, plain
from softless.measure.graphs.files import audit_file


def audit(
    model: nn.Module | torch.export.ExportedProgram | str | Path,
    input_size: int | tuple[int, ...] | None = None,
    *,
    allow: Sequence[str] = (),
) -> Audit:
    """Every transcendental function that one image meets.

    Args:
        model: a module, an exported program, or the file of an exported model: .pt2, .onnx, .xml
            (OpenVINO, its .bin beside it), .tflite, .pte (ExecuTorch) or .mlpackage (Core ML). A
            file is read without the tool that wrote it, and nothing in it is run or unpickled.
        input_size: side in pixels, (height, width) or (channels, height, width); a module's own
            size by default; of a model of bags the number of tiles. An exported graph has its own.
        allow: kinds of function that may be left: `exit_code` is 0 where nothing else is.

    Returns:
        What was met by kind, number and layer; `exp_free` is True where nothing was, and no
        operator is unknown or cannot be looked into.

    Raises:
        UsageError: a size that the model refuses, or one for an exported graph; an unknown kind.
        DataError: no file, an ending that no reader knows, or not what its ending says.

    Examples:
        >>> model = softless.create_model("sima_deit_tiny_patch16_224", depth=2, act="relu")
        >>> softless.audit(model).exp_free
        True
        >>> model = softless.create_model("sima_deit_tiny_patch16_224", depth=2)
        >>> softless.audit(model, input_size=64).kinds
        {'gelu': 26112}
        >>> softless.audit(model, input_size=64, allow=["gelu"]).exit_code
        0
    """
    allowed = allowed_kinds(allow)
    if isinstance(model, nn.Module):
        return replace(_watched(model, input_size_of(model, input_size)), allowed=allowed)
    if input_size is not None:
        raise UsageError("an exported graph says its own input size: leave input_size out")
    if isinstance(model, torch.export.ExportedProgram):
        return replace(_read(model), allowed=allowed)
    return replace(audit_file(model), allowed=allowed)


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
        self.roots += plain(name) in ROOTS
        self.divisions += plain(name) in DIVISIONS
        if evaluated := kind_of(func.namespace, name, args):
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
        image = torch.empty(shape_of(model, size), dtype=first.dtype, device=first.device)
        with _Watcher(image, tracker) as watcher:
            part(image)
    return Audit(size, listed(watcher.counts), watcher.roots, watcher.divisions, _operators(model))


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
        roots += plain(name) in ROOTS
        divisions += plain(name) in DIVISIONS
        args = torch.fx.node.map_arg(node.args, lambda argument: argument.meta.get("val"))
        if result := kind_of(node.target.namespace, name, args):
            kind, number = result
            if not isinstance(number, int):  # a symbolic number of evaluations
                dynamic = True
                number = int(number.node.hint)
            counts[kind, _path(node), name, not from_image] += number
    return Audit(None, listed(counts), roots, divisions, dynamic=dynamic)


def _path(node: Any) -> str:
    """The module that a node of a graph stands for."""
    stack = node.meta.get("nn_module_stack") or {}
    paths = [path for path, _ in stack.values() if path]
    return str(paths[-1]).removeprefix("L['self'].") if paths else "(model)"
