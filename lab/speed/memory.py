"""Peak memory of attention's forward and backward over the number of tokens: SOFT's Figure 1b (12
heads, width 384, 49 bottleneck tokens).
"""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from lab.errors_of import deviation
from lab.speed.block import tokens
from lab.speed.contract import BOUND, WHOLE, bounded
from lab.speed.rivals import SoftmaxMatrix, path_of
from lab.speed.training import step
from lab.speed.work import Case, Work
from softless.attention import attend
from softless.compare.steps import peak_bytes
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
        {name: error(name, rival, x.detach(), work) for name, rival in modules.items()}
        if work.tokens <= WHOLE
        else {}
    )
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
    peaks = {}
    for name, rival in modules.items():
        call = step(rival, x, weights)
        call()  # what is made once lies there before
        peaks[name] = peak_bytes(call, x.device)
    return Case(
        work,
        errors,
        {name: path_of(rival, x.detach()) for name, rival in modules.items()},
        peaks=peaks,
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
        attention = Attention(work.dim, work.heads, op, qkv_bias=True, **options)
    nn.init.zeros_(attention.proj.bias)
    attention.set_grid((0, side, side))
    return attention.eval()


@torch.no_grad()
def error(name: str, rival: Any, x: Tensor, work: Work) -> float:
    """The relative error (Frobenius) of a module's output for tokens x (B, N, dim) against the
    operator's reference in float64.

    Raises:
        WrongAnswer: it is beyond what float32 allows.
    """
    own = rival if isinstance(rival, Attention) else module("softmax", work, 1)
    if own is not rival:
        own.load_state_dict(rival.state_dict())
    exact_module: Any = deepcopy(own).double()
    q, k, v, _ = exact_module.sides(x.double(), None, None)
    o = attend(q, k, v, op=exact_module.op, backend="reference", **exact_module.extras(x.shape[1]))
    true = exact_module.proj(o.transpose(1, 2).flatten(2))
    return bounded(name, deviation(rival(x), true).frobenius, work, BOUND[torch.float32])
