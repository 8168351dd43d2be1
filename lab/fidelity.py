"""How far our models stand from the published functions on the same weights: SOFT's by default and
by `parity=True`, and SimA's, XCiT's and CvT's.

What a random pyramid computes says nothing of this. Its bottleneck tokens lie so far from the
tokens that every kernel is next to 0, and the convolution of v is the whole branch. So the weights
here are such that the kernels carry most of every branch, and a control switches them off and
leaves the convolution.
"""
# B images, N tokens, C channels

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lab import published
from softless.attention import attend
from softless.compare.record import record_path, write_csv
from softless.data.progress import track
from softless.errors import UsageError
from softless.layers import Attention
from softless.models import create_model
from softless.words import table

OPS = ("soft", "softnorm")
SIZES = ("tiny_224", "small_224", "medium_224", "large_224", "huge_224")
SIDE, IMAGES = 224, 1
APART = 1.0  # RMS of |q - mean|^2 / 2 sqrt(D): a kernel between two tokens is e^-1 or so
# the weight of the bottleneck tokens' LayerNorm, which says how far they lie from each other. From
# 0.6 on the twenty published steps reach SOFT's inverse and its two functions agree to 1e-14, which
# says nothing; at 0.4 they no longer do, and kernels
# still carry most of every branch
NEAR = 0.4
KERNELS = 0.5  # RMS of the convolution of v over that of the kernels' part
SHARE = 0.3  # RMS of a branch over that of the tokens it is added to


@dataclass(frozen=True)
class Distance:
    """One model by its default and by the published function; errors are relative, Frobenius."""

    model: str
    blocks: int  # that have the operator
    # RMS of the kernels' part over that of the whole branch, the least and the most of the blocks
    kernels: float
    kernels_most: float
    without_kernels: float  # by so much the logits move without them: the control
    logits: float  # default beside published, float64 both
    # the same of the block that differs most, on the tokens that it is given in the published model
    branch: float
    parity_float32: float  # the published function in float32 beside itself in float64


@dataclass(frozen=True)
class Fidelity:
    """All of them; prints as tables."""

    lines: tuple[Distance, ...]
    hosts: tuple[published.Parity, ...] = ()
    recorded: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": [asdict(line) for line in self.lines],
            "hosts": [asdict(line) for line in self.hosts],
        }

    def tables(self) -> dict[str, list[dict[str, Any]]]:
        """As they are recorded: name of the file -> rows."""
        rows_by_file = {
            "fidelity": [_row(line) for line in self.lines],
            "fidelity_hosts": [_row(line) for line in self.hosts],
        }
        return {name: rows for name, rows in rows_by_file.items() if rows}

    def __str__(self) -> str:
        sections = [
            table(
                [name.replace("_", " ") for name in rows[0]], [list(row.values()) for row in rows]
            )
            for rows in self.tables().values()
        ]
        return "\n\n".join([*sections, *(f"recorded: {path}" for path in self.recorded)])


EXACT = {"kernels", "kernels_most"}


def _row(line: Distance | published.Parity) -> dict[str, Any]:
    """A line with numbers as they are written."""
    return {
        name: round(value, 2)
        if name in EXACT
        else f"{value:.1e}"
        if isinstance(value, float)
        else value
        for name, value in asdict(line).items()
    }


def fidelity(
    names: Sequence[str] = (), *, ops: Sequence[str] = (), record: bool = False
) -> Fidelity:
    """Measure how far models are from the published functions: the defaults of SOFT's for every
    depth, and SimA's, XCiT's and CvT's.

    Args:
        names: sizes of SOFT's pyramid ("tiny_224", …) and hosts ("xcit_small_12_p16_224", …); all
            by default.
        ops: soft, softnorm, sima, xca and softmax (CvT's) by default.
        record: also write benchmarks/fidelity.csv and benchmarks/fidelity_hosts.csv of the
            repository.

    Raises:
        UsageError: an operator or a host that was not published so.
    """
    places = {**dict.fromkeys(OPS, SIZES), **published.HOSTS}
    published_names = {name for op in ops or places for name in places.get(op, ())}
    if wrong := [*({*ops} - {*places}), *({*names} - published_names)]:
        raise UsageError(
            f"nothing published as '{min(wrong)}': choose from {', '.join(places)} and "
            f"{', '.join(sorted(published_names))}"
        )
    planned = [
        (op, name)
        for op in ops or places
        for name in places[op]
        if name in (names or published_names)
    ]
    for name in ("fidelity", "fidelity_hosts") if record else ():
        record_path(name)  # before anything is measured
    lines: list[Distance] = []
    hosts: list[published.Parity] = []
    for op, name in track(planned, len(planned), "measuring"):
        if op in OPS:
            lines.append(measured(f"{op}_{name}"))
        else:
            hosts.append(published.measured(op, name))
    outcome = Fidelity(tuple(lines), tuple(hosts))
    if not record:
        return outcome
    for name, rows in outcome.tables().items():
        write_csv(record_path(name), rows)
    return replace(outcome, recorded=tuple(record_path(name) for name in outcome.tables()))


@torch.no_grad()
def measured(name: str, **smaller: Any) -> Distance:
    """One model; `smaller` are arguments of its host."""
    images = torch.randn(IMAGES, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    torch.manual_seed(0)
    parity = create_model(name, num_classes=10, parity=True, **smaller).eval()
    shares = enlivened(parity, images)
    default = create_model(name, num_classes=10, **smaller).eval()
    default.load_state_dict(parity.state_dict())
    single = parity(images)
    parity, default, images = parity.double(), default.double(), images.double()
    exact = parity(images)
    return Distance(
        name,
        len(gaussian(default)),
        min(shares),
        max(shares),
        distance(silenced(parity, images), exact),
        distance(default(images), exact),
        max(_branches(parity, default, images)),
        distance(single.double(), exact),
    )


def gaussian(model: nn.Module) -> list[Attention]:
    """The attention modules with a Gaussian kernel, in the order of the pass."""
    return [
        module
        for module in model.modules()
        if isinstance(module, Attention) and module.op.name in OPS
    ]


def distance(computed: Tensor, want: Tensor) -> float:
    """|computed - want| / |want|, Frobenius, of two tensors of one shape."""
    return float((computed - want).norm() / want.norm())


def parts(module: Attention, x: Tensor, grid: Any) -> tuple[Tensor, Tensor]:
    """What the kernels and what the convolution of v give for tokens x (B,N,C), heads joined:
    (B,N,H D) twice.
    """
    q, k, v, _ = module.sides(x, None, grid)
    assert module.v_conv is not None
    kernels = attend(q, k, v, op=module.op, **module.extras(x.shape[1], grid))
    return kernels.transpose(1, 2).flatten(2), module.v_conv(v, None, grid).transpose(1, 2).flatten(
        2
    )


@contextmanager
def _hooked(
    modules: Sequence[nn.Module], hook: Callable[..., Any], *, before: bool = False
) -> Iterator[None]:
    """A hook (module, args, kwargs[, output]) on some modules."""
    if before:
        handles = [module.register_forward_pre_hook(hook, with_kwargs=True) for module in modules]
    else:
        handles = [module.register_forward_hook(hook, with_kwargs=True) for module in modules]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def enlivened(model: nn.Module, images: Tensor) -> list[float]:
    """Give a model weights on which its kernels count, block by block as a pass over images
    (B, 3, h, w) comes to them.

    Returns:
        The kernels' share of each block's branch, RMS over RMS.
    """
    generator = torch.Generator().manual_seed(5)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1 and ".learned." not in name:
            parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
    shares: list[float] = []

    def enliven(module: Any, args: Any, kwargs: Any) -> None:
        x, grid = args[0], kwargs["grid"]
        qv, width = module.qv, module.num_heads * module.head_dim
        q = module.sides(x, None, grid)[0]
        apart = (q - q.mean(2, keepdim=True)).square().sum(-1).mean() / (2 * module.head_dim**0.5)
        qv.weight[:width] *= (APART / apart).sqrt()
        qv.bias[:width].zero_()
        module.learned.norm_weight.fill_(NEAR)
        kernels, convolution = parts(module, x, grid)
        module.v_conv.weight *= KERNELS * _rms(kernels) / _rms(convolution)
        kernels, convolution = parts(module, x, grid)
        module.proj.weight *= SHARE * _rms(x) / _rms((kernels + convolution) @ module.proj.weight.T)
        shares.append(_rms(kernels) / _rms(kernels + convolution))

    with _hooked(gaussian(model), enliven, before=True):
        model(images)
    return shares


def _rms(x: Tensor) -> float:
    return float(x.square().mean().sqrt())


def silenced(model: nn.Module, images: Tensor) -> Tensor:
    """The control: what the model answers for images (B, 3, h, w) with its kernels switched off,
    (B, classes).
    """

    def silence(module: Attention, args: Any, kwargs: Any, _: Tensor) -> Tensor:
        return module.proj(parts(module, args[0], kwargs["grid"])[1])

    with _hooked(gaussian(model), silence):
        answer: Tensor = model(images)
    return answer


def _branches(published: nn.Module, default: nn.Module, images: Tensor) -> list[float]:
    """How far each block of the default stands from the published one's on the tokens that this is
    given.
    """
    twins = dict(zip(gaussian(published), gaussian(default), strict=True))
    apart: list[float] = []

    def compare(module: Attention, args: Any, kwargs: Any, output: Tensor) -> None:
        apart.append(distance(twins[module](args[0], grid=kwargs["grid"]), output))

    with _hooked(list(twins), compare):
        published(images)
    return apart
