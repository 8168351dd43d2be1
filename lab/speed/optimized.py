"""Whole models as `softless.optimize` makes them, beside OpenVINO, which a user would take instead,
and beside torch as it comes.

OpenVINO is given the published formulation in bfloat16, static shapes, the latency hint and as many
threads as torch. Without the extra `openvino` its rows are left out.
"""

import importlib.util
import warnings
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

import timm
import torch
from torch import Tensor, nn

from lab.errors_of import deviation
from lab.speed.contract import bounded
from lab.speed.models import DEIT, XCIT, with_published
from lab.speed.pace import paced
from lab.speed.rivals import Bare, Published, path_of, share_weights
from lab.speed.work import Case, Work
from softless.inference import optimize
from softless.inference.packed import why_not
from softless.models.create import create_model

# relative error of the logits against float32; in bfloat16 torch's own are 1 to 4 % off, and one
# attention that is missing moves them by far more
LOGITS = {torch.float32: 1e-4, torch.bfloat16: 1e-1}
# size of every attention's branch over that of its input, so that its errors show in the logits
SHARE = 0.3
OPENVINO = "openvino_"
DEIT_WORKS = tuple(
    Work("bfloat16", 1, (side // 16) ** 2 + 1, heads=6, pixels=side, host=DEIT)
    for side in (224, 768, 1536)
)
XCIT_WORKS = tuple(
    Work("bfloat16", 1, (side // 16) ** 2, pixels=side, host=XCIT) for side in (224, 384, 768, 1536)
)


class Linear(Bare):
    """Bare, with the projection to q, k and v read: a compiler leaves out what nobody reads, and
    with it a fourth of the linear layers.
    """

    def forward(self, x: Tensor, **_: Any) -> Tensor:
        """Tokens x (B, N, dim) to (B, N, dim)."""
        return self.proj(self.qkv(x)[..., : x.shape[-1]])


def has_openvino() -> bool:
    """Whether the extra is installed."""
    return importlib.util.find_spec("openvino") is not None


def left_out() -> str:
    """What a figure says of rivals that could not take part."""
    return "" if has_openvino() else 'OpenVINO is left out: pip install "softless[openvino]"'


def measure_deit(work: Work, seconds: float) -> Case:
    """A ViT of timm with SimA, optimized; eager; bare; and in OpenVINO published, with softmax,
    bare, and bare with all linear layers.
    """
    size: dict[str, Any] = {"img_size": work.pixels, "dynamic_img_size": True}
    host = str(work.host)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = {
            "sima": create_model(host, op="sima", **size),
            "published": timm.create_model(host, attn_layer=Published, **size),
            "softmax": timm.create_model(host, **size),
            "bare": timm.create_model(host, attn_layer=Bare, **size),
            "linear": timm.create_model(host, attn_layer=Linear, **size),
        }
    return timed(
        work, models, ("published", "softmax", "bare", "linear"), ("sima", "bare"), seconds
    )


def measure_xcit(work: Work, seconds: float) -> Case:
    """XCiT with SimA, optimized; eager; timm's own XCiT; and in OpenVINO published and timm's
    own.
    """
    host = str(work.host)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        models = {
            "sima": create_model(host, op="sima"),
            "published": with_published(timm.create_model(host)),
            "xca": timm.create_model(host),
        }
    return timed(work, models, ("published", "xca"), ("sima", "xca"), seconds)


def timed(
    work: Work,
    models: Mapping[str, nn.Module],
    compiled: Iterable[str],
    eager: Iterable[str],
    seconds: float,
) -> Case:
    """Give the models the first one's weights, compare every rival's logits with its model's in
    float32, then time them in turns.

    Args:
        work: what is done.
        models: by name, in float32; "sima" and "published" are the same function.
        compiled: those that OpenVINO runs.
        eager: those that torch runs as they are.
        seconds: of timing.
    """
    pixels = work.pixels or 0
    images = torch.rand(work.batch, 3, pixels, pixels, generator=torch.Generator().manual_seed(3))
    first = next(iter(models.values())).eval()
    enliven(first, images)
    true = {}
    for name, model in models.items():
        share_weights(first, model.eval())
        if name in {"softmax", "xca"}:  # what has no attention but linear layers is lively enough
            enliven(model, images)
        with torch.inference_mode():
            true[name] = model(images).double()
    bounded(
        "published",
        deviation(true["published"], true["sima"]).frobenius,
        work,
        LOGITS[torch.float32],
        "logits beside ours",
    )
    half = images.to(work.kind)
    calls = {"optimized": of_torch(optimize(models["sima"], work.kind), half)}
    meant, paths = {"optimized": "sima"}, {"optimized": how(models["sima"], work)}
    for name in compiled if has_openvino() else ():
        calls[OPENVINO + name] = of_openvino(models[name], images, work)
        meant[OPENVINO + name], paths[OPENVINO + name] = name, "OpenVINO, static shapes, latency"
    for name in eager:
        calls[name] = of_torch(models[name].to(work.kind), half)
        meant[name], paths[name] = name, "torch, eager"
    errors = {
        name: bounded(
            name,
            deviation(call().double(), true[meant[name]]).frobenius,
            work,
            LOGITS[work.kind],
            "logits",
        )
        for name, call in calls.items()
    }
    return Case(work, errors, paths, paced(calls, seconds))


def how(model: Any, work: Work) -> str:
    """Which way the optimized form of a model goes."""
    attention = optimize(model, work.kind).blocks[0].attn
    x = torch.empty(work.batch, work.tokens, work.dim, dtype=work.kind)
    packs = "not packed" if why_not(work.kind, x.device) else "packed"
    return f"optimize, {packs}, {path_of(attention, x)}"


def of_torch(model: nn.Module, images: Tensor) -> Callable[[], Tensor]:
    """A call of torch for images (B, 3, h, w), in inference mode; it returns logits
    (B, classes).
    """

    def call() -> Tensor:
        with torch.inference_mode():
            out: Tensor = model(images)
            return out

    return call


def of_openvino(model: nn.Module, images: Tensor, work: Work) -> Callable[[], Tensor]:
    """A call of the same model as OpenVINO compiles it for images (B, 3, h, w), in the dtype of the
    work; it returns logits (B, classes).
    """
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer's, about shapes that are fixed here
        import openvino

        graph = openvino.convert_model(
            deepcopy(model), example_input=images, input=list(images.shape)
        )
    how = {
        "INFERENCE_PRECISION_HINT": {torch.bfloat16: "bf16", torch.float32: "f32"}[work.kind],
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    request = openvino.Core().compile_model(graph, "CPU", how).create_infer_request()
    inputs = [images.numpy()]

    def call() -> Tensor:
        request.infer(inputs)
        return torch.from_numpy(request.get_output_tensor(0).data)

    return call


@torch.no_grad()
def enliven(model: Any, images: Tensor, blocks: Iterable[Any] | None = None) -> None:
    """Scale the output projection of each attention (of some blocks; all of the model) so that on
    these images its branch is 30 % of its input.

    As models start, SimA's branch is so small beside the residual that logits would not show an
    attention that is switched off. `images` are what the model takes: (B, 3, h, w), or tokens
    (B, N, dim) where it is one block.
    """

    def scale(module: Any, args: Any, out: Tensor) -> Tensor:
        branch = out - module.proj.bias
        factor = SHARE * args[0].square().mean().sqrt() / branch.square().mean().sqrt()
        module.proj.weight.mul_(factor)
        return branch * factor + module.proj.bias

    blocks = blocks or [*model.blocks, *(getattr(model, "cls_attn_blocks", None) or ())]
    hooks = [block.attn.register_forward_hook(scale) for block in blocks]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
