"""ExecuTorch: a program for phones and small devices, its layers handed to XNNPACK where it has them.

A program has no room for words of its own, so a file of JSON stands beside it.
"""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from softless.errors import DataError, need
from softless.exporting.formats.format import Format, Runner, Shape
from softless.exporting.graph import Graph, last_sentence, recorded
from softless.exporting.metadata import KEY, LARGEST
from softless.exporting.quantized.executorch import INT8, Recorded
from softless.exporting.silence import muted
from softless.measure.audit import audit
from softless.models.digests import of_file
from softless.models.durable import write_text
from softless.models.records import DIGEST, TABLE, Rule, check, parsed

ANEW = "export the model anew"
RULES: dict[str, Rule] = {KEY: TABLE, "sha256": DIGEST}
DELEGATE = "XnnpackBackend"
INSIDE = "xnnpack::"  # begins the names of operators in its parts


def write(graph: Graph, path: Path, _: int | None) -> None:
    """Record a module and write it as a program.

    Raises:
        UsageError: torch cannot record it.
    """
    module = recorded(graph).module()
    _normalised_in_two_passes(module)
    path.write_bytes(lowered(recorded(replace(graph, module=Recorded(module)))))


def _normalised_in_two_passes(module: Any) -> None:
    """Write every LayerNorm out: what is centred first, and squared then. ExecuTorch's own kernel
    takes E[x^2] - E[x]^2 in float32: 4e-5 of the answer are lost where the mean is ten standard
    deviations, and 3e-3 where it is a hundred.

    Means are a linear layer of one row: XNNPACK has no mean over the last axis, and with them all
    of it is in XNNPACK's hands.
    """
    aten, nodes = torch.ops.aten, module.graph
    for node in list(nodes.nodes):
        if node.op != "call_function" or node.target != aten.layer_norm.default:
            continue
        x, sides, weight, bias, eps = [*node.args, None, None, 1e-5][:5]
        assert len(sides) == 1, sides
        name = f"mean_of_{sides[0]}"
        module.register_buffer(name, torch.full((1, sides[0]), 1 / sides[0]))
        with nodes.inserting_before(node):
            row = nodes.get_attr(name)

            def call(operator: Any, *arguments: Any) -> Any:
                return nodes.call_function(operator, arguments)

            centred = call(aten.sub.Tensor, x, call(aten.linear.default, x, row))
            squares = call(aten.mul.Tensor, centred, centred)
            spread = call(aten.add.Tensor, call(aten.linear.default, squares, row), eps)
            y = call(aten.mul.Tensor, centred, call(aten.rsqrt.default, spread))
            y = y if weight is None else call(aten.mul.Tensor, y, weight)
            y = y if bias is None else call(aten.add.Tensor, y, bias)
        node.replace_all_uses_with(y)
        nodes.erase_node(node)
    module.recompile()


def lowered(program: torch.export.ExportedProgram) -> bytes:
    """A recorded program as ExecuTorch runs it, in XNNPACK's hands all that it takes."""
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = program.run_decompositions({torch.ops.aten.gelu.default: written_out})
    edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    content: bytes = edge.to_executorch().buffer
    return content


def written_out(x: Tensor, *, approximate: str = "none") -> Tensor:
    """GELU by a tanh as what it is, of any shape: XNNPACK computes it by erf, which is 5e-4 off (seen
    in ExecuTorch 1.5).
    """
    if approximate != "tanh":
        return NotImplemented
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x)))


def beside(path: Path) -> Path:
    """Where the words of a program stand."""
    return path.with_name(path.name + ".json")


def label(path: Path, text: str) -> None:
    """Keep a text beside the program, with the digest that says which one it is of."""
    content = {KEY: json.loads(text), "sha256": of_file(path)}
    write_text(beside(path), json.dumps(content, indent=1, sort_keys=True) + "\n")


def text_of(path: Path) -> str:
    """The text that was kept; "" where there is none.

    Raises:
        DataError: it is damaged, or the text of another program.
    """
    words = beside(path)
    if not words.is_file():
        return ""
    if words.stat().st_size > LARGEST:
        raise DataError(f"{words} has {words.stat().st_size:,} bytes, at most {LARGEST:,}")
    content = parsed(words.read_text(encoding="utf-8", errors="replace"), words, dict, mend=ANEW)
    check(content, RULES, words, mend=ANEW)
    if of_file(path) != content["sha256"]:
        raise DataError(
            f"{path} is damaged, or {words.name} belongs to another program: the digest in it is "
            f"not this one's; {ANEW}"
        )
    return json.dumps(content[KEY], sort_keys=True)


def run(path: Path) -> Runner:
    """What runs the program on the processor, one image at a time, with as many threads as torch
    has.

    Raises:
        DataError: the runtime cannot load it.
    """
    need("executorch")
    with muted():
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime

        threads = torch.get_num_threads()
        present = getattr(portable_lib, "_threadpool_get_thread_count", None)  # 1.0 has none
        if present is None or present() != threads:
            portable_lib._unsafe_reset_threadpool(threads)
        failure = None
        try:
            method = Runtime.get().load_program(path).load_method("forward")
        except (RuntimeError, ValueError) as error:
            failure = error
    if failure is not None:
        with path.open("rb") as file:
            layout = file.read(8)[4:].decode("ascii", errors="replace")
        raise DataError(
            f"ExecuTorch cannot load {path}, a program of layout {layout!r}: "
            f"{last_sentence(failure)}; {ANEW}"
        ) from failure

    def answer(images: Tensor) -> tuple[Tensor, ...]:
        # the outputs lie in the program's own memory, and the next call writes there
        outputs = method.execute([images.detach().contiguous()])
        return tuple(output.clone() for output in outputs)

    return answer


def shape(path: Path) -> Shape:
    """Operators by ATen's and XNNPACK's names, the parts that XNNPACK takes over, and the calls of
    kernels between them.
    """
    audited = audit(path)
    outside = sum(
        number
        for name, number in audited.nodes.items()
        if name != DELEGATE and not name.startswith(INSIDE)
    )
    return Shape(audited.nodes, audited.rank, audited.nodes.get(DELEGATE, 0), outside)


FORMAT = Format(
    name="executorch",
    ending=".pte",
    summary="ExecuTorch: phones and small devices, by XNNPACK",
    writes_with=("executorch",),
    write=write,
    label=label,
    text_of=text_of,
    runs_with=("executorch",),
    open=run,
    batch=1,
    int8=INT8,
    quantises_with=("torchao",),
    shape=shape,
    parts=lambda path: [path, beside(path)],
)
