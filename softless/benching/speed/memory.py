"""Peak memory of attention's forward and backward over the number of tokens: SOFT's Figure 1b (12
heads, width 384, 49 bottleneck tokens).
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from softless.attention import attend
from softless.benching.errors_of import deviation
from softless.benching.speed.block import tokens
from softless.benching.speed.contract import BOUND, WHOLE, bounded
from softless.benching.speed.rivals import SoftmaxMatrix, path_of
from softless.benching.speed.training import step
from softless.benching.speed.work import Case, Work
from softless.benching.steps import peak_bytes
from softless.layers import Attention

FEW = 7  # along a side: 49 bottleneck tokens, landmarks, projected tokens
SIDES = (14, 28, 42, 56, 70, 84, 112)  # of the grid: 196 to 12,544 tokens
WORKS = tuple(Work("float32", 1, side * side, heads=12) for side in SIDES)
MATRIX_TOKENS = 4900  # above, an N x N matrix of 12 heads and its gradients take more than 4 GB
FUSED_TOKENS = 7056  # above, the fused kernel takes minutes under the profiler
OPERATORS = ("softmax", "sima", "soft", "softnorm", "xca", "linformer", "nystrom", "performer")


def measure(work: Work, _: float = 0.0) -> Case:
    """The peaks of every operator in our module, and of softmax with its matrix held."""
    x = tokens(work).requires_grad_()
    side = round(work.tokens**0.5)
    modules = {
        name: module(name, work, side)
        for name in OPERATORS
        if name != "softmax" or work.tokens <= FUSED_TOKENS
    }
    if work.tokens <= MATRIX_TOKENS:
        modules["softmax_matrix"] = SoftmaxMatrix(work.dim, work.heads, qkv_bias=True)
        modules["softmax_matrix"].load_state_dict(modules["softmax"].state_dict())
    errors = (
        {name: error(name, one, x.detach(), work) for name, one in modules.items()}
        if work.tokens <= WHOLE
        else {}
    )
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    peaks = {}
    for name, one in modules.items():
        call = step(one, x, weights)
        call()  # what is made once lies there before
        peaks[name] = peak_bytes(call, x.device)
    return Case(
        work, errors, {name: path_of(one, x.detach()) for name, one in modules.items()}, peaks=peaks
    )


def module(op: str, work: Work, side: int) -> nn.Module:
    """Our module with an operator, the few tokens of those that have them set to 49."""
    options: dict[str, Any] = {
        "soft": {"ratio": max(1, side // FEW)},
        "softnorm": {"ratio": max(1, side // FEW)},
        "linformer": {"projected": FEW**2, "tokens": work.tokens},
        "nystrom": {"landmarks": FEW**2},
    }.get(op, {})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = Attention(work.dim, work.heads, op, qkv_bias=True, **options)
    nn.init.zeros_(made.proj.bias)
    made.set_grid((0, side, side))
    return made.eval()


@torch.no_grad()
def error(name: str, one: Any, x: Tensor, work: Work) -> float:
    """The relative error of a module's output against the operator's reference in float64."""
    ours = one if isinstance(one, Attention) else module("softmax", work, 1)
    if ours is not one:
        ours.load_state_dict(one.state_dict())
    wide: Any = deepcopy(ours).double()
    q, k, v, _ = wide.sides(x.double(), None, None)
    o = attend(q, k, v, op=wide.op, backend="reference", **wide.extras(x.shape[1]))
    true = wide.proj(o.transpose(1, 2).flatten(2))
    return bounded(name, deviation(one(x), true).frobenius, work, BOUND[torch.float32])
