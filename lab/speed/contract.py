"""Nothing is timed before its answer was compared with the float64 one."""

# B batch, H heads, N tokens, D channels of a head

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lab.errors_of import deviation
from lab.speed.work import Work
from softless.attention import get
from softless.attention.learned import given_or_starting
from softless.errors import SoftlessError

# relative: linear layers and the published form round in the dtype
BOUND = {torch.float32: 3e-5, torch.bfloat16: 2e-2}
ROWS = 64  # queries that are compared where all of them would take an N x N matrix of float64
WHOLE = 1024  # tokens up to which all are


class WrongAnswer(SoftlessError):
    """A rival does not compute what it is said to: no time of it means anything."""

    exit_code = 1


def exact(op: str | None, module: Any, x: Tensor, *, all_queries: bool = False) -> Tensor:
    """Float64 output of the last image of x (B, N, dim), (1, N, dim), before the bias of `proj`, by
    the operator's reference; op None is `bare`.

    Of softmax the first 64 queries alone above 1,024 tokens, (1, 64, dim), unless `all_queries`.
    """
    x = x[-1:].double()
    if op is None and not x.requires_grad:
        return F.linear(x, module.proj.weight.double())
    bias = None if module.qkv.bias is None else module.qkv.bias.double()
    qkv = F.linear(x, module.qkv.weight.double(), bias)
    if op is None:
        return F.linear(qkv[..., : x.shape[-1]], module.proj.weight.double())
    q, k, v = qkv.unflatten(-1, (3, module.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return F.linear(
        exact_of(op, q, k, v, module, all_queries=all_queries).transpose(1, 2).flatten(2),
        module.proj.weight.double(),
    )


def exact_of(
    op: str, q: Tensor, k: Tensor, v: Tensor, module: Any = None, *, all_queries: bool = False
) -> Tensor:
    """The operator's reference on float64 q, k and v, with the module's temperature (XCA) or the
    operator's own tensors as they start.

    q is (B, H, N, D), k (B, H, M, D), v (B, H, M, E); the answer is (B, H, N, E). Above 1,024
    tokens softmax answers the first 64 queries alone, (B, H, 64, E), unless `all_queries`.
    """
    record = get(op)
    queries = (
        q[:, :, :ROWS] if record.growth == "N^2" and q.shape[2] > WHOLE and not all_queries else q
    )
    extras: dict[str, Any] = {}
    if record.learned:
        temperature = getattr(module, "temperature", None)
        extras["learned"] = given_or_starting(
            record,
            temperature if temperature is None else {"temperature": temperature.to(q)},
            {},
            k,
            v,
        )
    return record.reference(queries, k, v, **extras)


def check(name: str, computed: Tensor, true: Tensor, work: Work | str, dtype: torch.dtype) -> float:
    """The relative error (Frobenius) of the last image of a result (B, …, N, C) beside the true one
    (1, …, n, C), on the first n of its tokens.

    Raises:
        WrongAnswer: it is beyond what the dtype allows.
    """
    return bounded(
        name, deviation(computed[-1:, ..., : true.shape[-2], :], true).frobenius, work, BOUND[dtype]
    )


def bounded(
    name: str, error: float, work: Work | str, bound: float, quantity: str = "output"
) -> float:
    """The error.

    Raises:
        WrongAnswer: it is beyond the bound, or not a number.
    """
    if not error <= bound:
        raise WrongAnswer(
            f"the {quantity} of '{name}' is {error:.1e} off the float64 reference at {work} "
            f"(allowed: {bound:.0e}): nothing is reported"
        )
    return error


@torch.inference_mode()
def check_layers(
    name: str, layers: list[nn.Module], op: str | None, model: nn.Module, images: Tensor, work: Work
) -> tuple[float, str]:
    """The largest error of some attention layers of a model on what images (B, 3, h, w) give them
    there, and the first one's path.

    Raises:
        WrongAnswer: one is beyond what the dtype allows.
    """
    from lab.speed.rivals import path_of

    calls: list[tuple[nn.Module, Tensor, Tensor]] = []
    hooks = [
        layer.register_forward_hook(lambda module, args, out: calls.append((module, args[0], out)))
        for layer in layers
    ]
    try:
        model(images)
    finally:
        for hook in hooks:
            hook.remove()
    errors = []
    for layer, x, y in calls:
        module: Any = layer
        errors.append(
            check(
                name,
                y if module.proj.bias is None else y - module.proj.bias,
                exact(op, module, x),
                work,
                work.kind,
            )
        )
    return max(errors), path_of(calls[0][0], calls[0][1])
