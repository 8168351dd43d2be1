"""One cell of the table of tracers: what a recorded model answers beside the model itself, at the
size it was recorded at and at others.
"""

import copy
import importlib.util
import io
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import timm.models
import torch
import torchvision.models.feature_extraction as torchvision_fx
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import softless
from softless.attention import Operator, get
from softless.errors import SoftlessError
from softless.measure import FlopCounter
from tests.models.lively import branches, lively, scaled, zeroed

# one operator of each family: sums, moments, bottleneck and landmark tokens, learned rows,
# features, places, and softmax of three kinds
FAMILIES = (
    "sima",
    "seqnorm",
    "soft",
    "nystrom",
    "linformer",
    "performer",
    "cosformer2d",
    "efficient",
    "xca",
    "softmax",
)
NEAR = 1e-5  # relative to the answer's own size
SHOWS = 1e-2  # by so much a model without attention must differ
# the least and the most tokens a side, and images, that a dynamic export promises
SIDES, BATCH = (2, 24), (1, 64)
FEW = {"landmarks": 4, "projected": 4, "features": 8}


@dataclass(frozen=True)
class Cell:
    """What became of a tracer on a host with an operator: "right", "refused", "wrong" or "no
    place".
    """

    outcome: str
    told: str = ""


@dataclass(frozen=True)
class Host:
    """A host as small as it may be, the side of its coarsest tokens or keys, and a node inside
    it.
    """

    name: str
    node: str
    step: int
    own: Mapping[str, Any]
    # sides, in such tokens, of images for which the model itself goes another way
    large: tuple[int, int]
    windows: Mapping[str, int]  # of operators that have some, where the host does not decide

    def build(self, op: Operator, size: tuple[int, int]) -> nn.Module:
        """The model, with weights on which every branch counts."""
        few = {**FEW, **self.windows}
        options: dict[str, Any] = {name: value for name, value in few.items() if name in op.options}
        torch.manual_seed(0)
        model = softless.create_model(
            self.name, op=op.name, img_size=size, num_classes=3, **self.own, **options
        )
        few, many = (images(1, self.sizes[name], seed=3) for name in ("as recorded", "large"))
        return alive(lively(model, many), few, many)

    @property
    def sizes(self) -> dict[str, tuple[int, int]]:
        """Where it is recorded, as many tokens on another grid, fewer, and so many that the model
        itself goes another way; the ends of what is promised.
        """
        tokens = {
            "as recorded": (2, 4),
            "turned": (4, 2),
            "fewer": (2, 2),
            "large": self.large,
            "widest": (SIDES[0], SIDES[1]),
            "highest": (SIDES[1], SIDES[0]),
        }
        return {
            name: (height * self.step, width * self.step)
            for name, (height, width) in tokens.items()
        }


WINDOWS = {"ratio": 1}
HOSTS = {
    "ViT": Host(
        "deit_tiny_patch16_224",
        "blocks.0",
        16,
        {"depth": 2, "embed_dim": 32, "num_heads": 2},
        (20, 21),
        WINDOWS,
    ),
    "XCiT": Host(
        "xcit_nano_12_p16_224",
        "blocks.0",
        16,
        {"depth": 1, "embed_dim": 32, "num_heads": 2},
        (20, 21),
        WINDOWS,
    ),
    "CvT": Host(
        "cvt_13_224",
        "stage1",
        32,
        {"embed_dims": (8, 16, 32), "depths": (1, 1, 1), "num_heads": (1, 2, 2)},
        (4, 5),
        WINDOWS,
    ),
    "pyramid": Host(
        "soft_pyramid_tiny_224",
        "stage1",
        32,
        {"embed_dims": (16, 16, 32, 32), "depths": (1, 1, 1, 1), "num_heads": 2},
        (6, 7),
        {},
    ),
}


def images(number: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Images (B, 3, h, w)."""
    return torch.randn(number, 3, *size, generator=torch.Generator().manual_seed(seed))


@torch.no_grad()
def alive(model: nn.Module, *given: Tensor) -> nn.Module:
    """The model with branches that count at every size given, and bottleneck tokens among its
    tokens: kernels to far ones carry nothing.
    """
    for name, parameter in model.named_parameters():
        if name.endswith("learned.norm_weight"):
            parameter.fill_(0.3)
    generator = torch.Generator().manual_seed(7)
    for module in branches(model).values():
        module.proj.weight.normal_(std=0.1, generator=generator)  # type: ignore[union-attr, operator]
        module.proj.bias.normal_(std=0.1, generator=generator)  # type: ignore[union-attr, operator]
        held = []
        for x in given:
            scaled(model, module, x)
            held.append([one.clone() for one in (module.proj.weight, module.proj.bias)])  # type: ignore[union-attr, operator]
        weight, bias = max(held, key=lambda one: float(one[0].norm()))
        module.proj.weight.copy_(weight)  # type: ignore[union-attr, operator]
        module.proj.bias.copy_(bias)  # type: ignore[union-attr, operator]
    return model


def distance(found: Tensor, want: Tensor) -> float:
    """Relative to the answer's own size; infinite where a number is none."""
    away = float((found - want).norm() / want.norm())
    return min(float("inf"), away)


def eager(model: nn.Module, x: Tensor) -> Tensor:
    """What the model itself answers."""
    with torch.no_grad():
        found: Tensor = model(x)
    return found


def compared(
    model: nn.Module,
    host: Host,
    run: Callable[[Tensor], Tensor],
    sizes: tuple[str, ...],
    numbers: tuple[int, ...] = (2, 3),
) -> Iterator[str]:
    """Where what was recorded answers otherwise than the model, for other images in another number
    too.
    """
    for name in sizes:
        for number in numbers:
            x = images(number, host.sizes[name], seed=number)
            try:
                want = eager(model, x)
            except SoftlessError:
                continue  # the operator takes no such size
            away = distance(run(x), want)
            if not away <= NEAR:
                yield f"{name}, {number} images: off by {away:.1e}"


ALL = ("as recorded", "turned", "fewer", "large")


def script_of(model: nn.Module, x: Tensor) -> Any:
    """What a process without this library would load."""
    made: Any = torch.jit.trace(model, x)
    graph = str(made.inlined_graph)
    assert "softless::" not in graph, "an operator that exists only in Python"
    assert "^" not in graph, "a function that exists only in Python"
    file = io.BytesIO()
    torch.jit.save(made, file)
    file.seek(0)
    return torch.jit.load(file)


def traced(model: nn.Module, host: Host, op: Operator) -> Iterator[str]:
    """torch.jit.trace, with gradients on as people call it, and without; saved and loaded; at a
    size that does not fit it fails.
    """
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            script = script_of(model, images(2, host.sizes["as recorded"]))
        yield from compared(model, host, partial(eager, script), ALL)
        height, width = host.sizes["as recorded"]
        try:
            script(images(2, (height + 1, width)))
            yield "an image that is no whole number of patches was answered"
        except RuntimeError:
            pass


def extracted(
    create: Callable[..., nn.Module],
) -> Callable[[nn.Module, Host, Operator], Iterator[str]]:
    """A feature extractor of torch.fx: a node inside the model, and its answer."""

    def through(model: nn.Module, host: Host, op: Operator) -> Iterator[str]:
        seen: dict[str, Tensor] = {}
        graph = create(model, {host.node: "inside", "head": "answer"})
        graph.eval()
        inner = model.get_submodule(host.node)
        inner.register_forward_hook(
            lambda _, __, out: seen.update(out=out[0] if isinstance(out, tuple) else out)
        )

        def run(x: Tensor) -> Tensor:
            found = _values(graph(x))
            inside = found["inside"][0] if isinstance(found["inside"], tuple) else found["inside"]
            if inside.shape == seen["out"].shape:
                assert distance(inside, seen["out"]) <= NEAR, "the node inside differs"
            return found["answer"]

        yield from compared(model, host, partial(eager, run), ALL)  # type: ignore[arg-type]

    return through


def _values(found: Any) -> dict[str, Any]:
    return dict(found)


def exported(model: nn.Module, host: Host, shapes: Any) -> torch.export.ExportedProgram:
    """What torch.export records; the graph holds no operator of ours."""
    with torch.no_grad():
        program = torch.export.export(
            model, (images(2, host.sizes["as recorded"]),), dynamic_shapes=shapes
        )
    held = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert not any("softless" in name for name in held), "an operator that exists only in Python"
    return program


def unguarded(program: torch.export.ExportedProgram, *promised: tuple[int, int]) -> None:
    """Each size that is free may be all that was promised, and nothing in the graph asks for its
    value.
    """
    ranges = {
        name: (int(one.lower), int(one.upper)) for name, one in program.range_constraints.items()
    }
    free = sorted(one for name, one in ranges.items() if name.is_Symbol)
    assert free == sorted(promised), f"free are {free}, and promised {sorted(promised)}"
    asks = [
        str(node.target)
        for node in program.graph.nodes
        if "assert_scalar" in str(node.target) or "constrain_range" in str(node.target)
    ]
    assert not asks, f"the graph asks for sizes: {asks[0]}"


def static(model: nn.Module, host: Host, op: Operator) -> Iterator[str]:
    """One shape."""
    run = exported(model, host, None).module()
    yield from compared(model, host, partial(eager, run), ("as recorded",), (2,))


def _batch() -> Any:
    return torch.export.Dim("batch", min=BATCH[0], max=BATCH[1])


def _any_size(host: Host) -> list[dict[int, Any]]:
    """Any number of images of any size, as torch.export takes it."""
    height, width = (
        host.step * torch.export.Dim(side, min=SIDES[0], max=SIDES[1]) for side in ("h", "w")
    )
    return [{0: _batch(), 2: height, 3: width}]


ENDS = (*ALL, "widest", "highest")


def dynamic_batch(model: nn.Module, host: Host, op: Operator) -> Iterator[str]:
    """Any number of images of one size."""
    program = exported(model, host, [{0: _batch()}])
    unguarded(program, BATCH)
    yield from compared(model, host, partial(eager, program.module()), ("as recorded",), (1, 3, 64))


def dynamic(model: nn.Module, host: Host, op: Operator) -> Iterator[str]:
    """Any number of images of any size, with no guard on the number of tokens."""
    program = exported(model, host, _any_size(host))
    unguarded(program, BATCH, SIDES, SIDES)
    yield from compared(model, host, partial(eager, program.module()), ENDS, (1, 3))


def onnx(model: nn.Module, host: Host, op: Operator) -> Iterator[str]:
    """torch.onnx by its exporter of today, any number of images of any size, checked by onnx and
    run by ONNX Runtime.
    """
    import onnx
    import onnxruntime

    file: Any = io.BytesIO()
    given = (images(2, host.sizes["as recorded"]),)
    with torch.no_grad():
        program = torch.onnx.export(
            model, given, dynamo=True, verbose=False, dynamic_shapes=_any_size(host)
        )
    assert program is not None
    program.save(file)
    onnx.checker.check_model(file.getvalue(), full_check=True)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    run = lambda x: torch.as_tensor(session.run(None, {name: x.numpy()})[0])  # noqa: E731
    yield from compared(model, host, run, ENDS, (1, 3))


def compiled(model: nn.Module, host: Host, op: Operator) -> Iterator[str]:
    """torch.compile, without a break in the graph, from size to size."""
    torch.compiler.reset()
    run: Any = torch.compile(model, backend="aot_eager", fullgraph=True)
    try:
        yield from compared(model, host, partial(eager, run), ALL)
    finally:
        torch.compiler.reset()  # what is compiled counts for whoever compiles the same class next


# torch's counter has no formula for it
UNKNOWN_TO_TORCH = ("aten::_scaled_dot_product_flash_attention_for_cpu",)


def counted(model: nn.Module, host: Host, op: Operator) -> Iterator[str]:
    """FlopCounterMode of torch changes no answer, and counts what ours counts."""
    for name in ALL:
        x = images(2, host.sizes[name])
        try:
            want = eager(model, x)
        except SoftlessError:
            continue
        with FlopCounterMode(display=False) as theirs:
            found = eager(model, x)
        with FlopCounter() as ours:
            eager(model, x)
        if not distance(found, want) <= NEAR:
            yield f"{name}: off by {distance(found, want):.1e}"
        known = ours.total - sum(ours.by_operator[one] for one in UNKNOWN_TO_TORCH)
        if theirs.get_total_flops() != known:
            yield f"{name}: {theirs.get_total_flops():,} FLOPs, and ours are {known:,}"


TRACERS: dict[str, Callable[[nn.Module, Host, Operator], Iterator[str]]] = {
    "torch.jit.trace": traced,
    "torchvision's create_feature_extractor": extracted(torchvision_fx.create_feature_extractor),
    "timm's create_feature_extractor": extracted(timm.models.create_feature_extractor),
    "torch.export": static,
    "torch.export, any batch": dynamic_batch,
    "torch.export, any size": dynamic,
    "torch.onnx": onnx,
    "torch.compile": compiled,
    "FlopCounterMode": counted,
}

NEEDS = {"torch.onnx": ("onnx", "onnxscript", "onnxruntime")}


def absent(tracer: str) -> list[str]:
    """The packages that a tracer needs and that are not installed here."""
    return [name for name in NEEDS.get(tracer, ()) if importlib.util.find_spec(name) is None]


def cell(tracer: str, host: str, op: str) -> Cell:
    """Fill a cell in."""
    record, place = get(op), HOSTS[host]
    size = place.sizes["large"]
    try:
        model = place.build(record, size)
    except SoftlessError as refusal:
        return Cell("no place", str(refusal))
    x = images(2, place.sizes["as recorded"])
    try:
        eager(model, x)
    except SoftlessError as refusal:
        return Cell("no place", str(refusal))
    silent = zeroed(copy.deepcopy(model))
    for name in ("as recorded", "large"):
        x = images(2, place.sizes[name])
        if distance(eager(silent, x), eager(model, x)) < SHOWS:
            return Cell("wrong", f"the control is blind, {name}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=FutureWarning)
        try:
            wrong = list(TRACERS[tracer](model, place, record))
        # whatever is raised that is no sentence of ours is wrong
        except Exception as error:  # noqa: BLE001
            return _raised(error)
    return Cell("wrong", "; ".join(wrong)) if wrong else Cell("right")


def _raised(error: BaseException) -> Cell:
    one: BaseException | None = error
    while one is not None:
        if isinstance(one, SoftlessError):
            return Cell("refused", str(one))
        one = one.__cause__ or one.__context__
    return Cell("wrong", f"{type(error).__name__}: {str(error)[:300]}")
