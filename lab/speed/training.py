"""The training step of the attention block: forward, and the gradients of the tokens and of every
weight.
"""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from lab.errors_of import deviation
from lab.speed.block import tokens
from lab.speed.contract import bounded, exact
from lab.speed.pace import paced
from lab.speed.rivals import OPERATOR, attention_modules, path_of
from lab.speed.work import DTYPES, Case, Work
from softless.compare.steps import peak_bytes

SOFTMAX_TOKENS = 2304
WORKS = tuple(
    Work(dtype, batch, tokens)
    for dtype in DTYPES
    for batch, tokens in ((8, 196), (1, 2304), (1, 9216))
)
# relative error of a gradient: sums over N tokens in the dtype
BOUND = {torch.float32: 3e-4, torch.bfloat16: 3e-2}


PROJECTED = tuple(
    Work(dtype, batch, tokens)
    for dtype in DTYPES
    for batch, limit in ((1, 9216), (8, 2304))
    for tokens in (1152, 2304, 4608, 6144, 9216)
    if tokens <= limit
)


def measure(work: Work, seconds: float) -> Case:
    """Time and peak memory of the step: the products of its linear layers, ours, published, timm's
    softmax.
    """
    return measured(
        work,
        seconds,
        ["bare", "sima", "published", *(["softmax"] if work.tokens <= SOFTMAX_TOKENS else [])],
    )


def measure_projected(work: Work, seconds: float) -> Case:
    """Our step with both projections taken into its attention and without, whatever the number of
    tokens.
    """
    return measured(work, seconds, ["bare", "inside", "apart"])


def measured(work: Work, seconds: float, names: list[str]) -> Case:
    """Time and peak memory of the rivals' steps."""
    modules = {
        name: module.train()
        for name, module in attention_modules(work.dim, work.heads, names, work.kind).items()
    }
    x = tokens(work).requires_grad_()
    # the gradient that arrives
    weights = torch.randn(x.shape, generator=torch.Generator().manual_seed(2)).to(work.kind)
    calls = {name: step(module, x, weights) for name, module in modules.items()}
    errors = {
        name: _error(name, modules[name], call, x, weights, work) for name, call in calls.items()
    }
    paths = {name: path_of(module, x) for name, module in modules.items()}
    return Case(
        work,
        errors,
        paths,
        paced(calls, seconds),
        {name: peak_bytes(call, x.device) for name, call in calls.items()},
    )


def step(module: nn.Module, x: Tensor, weights: Tensor) -> Callable[[], tuple[Tensor, ...]]:
    """A call that returns the gradients: of x (B, N, dim), then of the parameters in the module's
    order. `weights` is the gradient that arrives, of the output's shape.
    """
    leaves = [x, *module.parameters()]
    return lambda: torch.autograd.grad(module(x), leaves, weights)


def _error(
    name: str,
    module: Any,
    call: Callable[[], tuple[Tensor, ...]],
    x: Tensor,
    weights: Tensor,
    work: Work,
) -> float:
    """The largest relative error of the gradients of x and of the projections' weights, of one
    image.
    """
    exact_module = deepcopy(module).double()
    image = x[-1:].detach().requires_grad_()
    double = image.detach().double().requires_grad_()
    leaves = [double, exact_module.qkv.weight, exact_module.proj.weight]
    true = torch.autograd.grad(
        exact(OPERATOR.get(name), exact_module, double, all_queries=True),
        leaves,
        weights[-1:].double(),
    )
    gradients = torch.autograd.grad(
        module(image), [image, module.qkv.weight, module.proj.weight], weights[-1:]
    )
    error = max(
        deviation(computed, expected).frobenius
        for computed, expected in zip(gradients, true, strict=True)
    )
    # images know nothing of each other: the whole batch gives this image the same gradient
    batch_gradient = call()[0][-1:]
    error = max(error, deviation(batch_gradient, true[0]).frobenius)
    return bounded(name, error, work, BOUND[work.kind], "gradient")
