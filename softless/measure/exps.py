"""Counts transcendental evaluations while a call runs: what an edge device has no cheap instruction
for.

Counted at the level of ATen operators, with composites and fused attention opened up: a fused
softmax attention over N x M pairs is H N M exponentials though no exp appears. Square roots and
divisions are not transcendental.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode


def _elements(args: tuple[Any, ...]) -> int:
    return next(arg.numel() for arg in args if isinstance(arg, Tensor))


def _pairs(args: tuple[Any, ...]) -> int:
    q, k = args[0], args[1]
    return q.shape[:-1].numel() * k.shape[-2]


def _tensor_power(args: tuple[Any, ...]) -> int:
    exponent = args[1]
    if isinstance(exponent, int | float) and float(2 * exponent).is_integer():
        return 0  # whole and half powers are products and square roots
    return _elements(args)


def _power_of_a_norm(order: int) -> Callable[[tuple[Any, ...]], int]:
    """Evaluations of a p-norm, its p at a place: for 1, 2 and infinity there are none."""

    def power(args: tuple[Any, ...]) -> int:
        p = args[order] if len(args) > order else None
        plain = not isinstance(p, int | float) or p in {0, 1, 2, math.inf, -math.inf}
        return 0 if plain else _elements(args)

    return power


KINDS: Mapping[str, tuple[str, Callable[[tuple[Any, ...]], int]]] = MappingProxyType(
    dict.fromkeys(("exp", "exp2", "expm1", "ldexp", "soft_margin_loss"), ("exp", _elements))
    | dict.fromkeys(
        (
            "_softmax",
            "_log_softmax",
            "_safe_softmax",
            "_masked_softmax",
            "logsumexp",
            "softmax",
            "log_softmax",
            "cross_entropy_loss",
        ),
        ("softmax", _elements),
    )
    | dict.fromkeys(
        (
            "scaled_dot_product_attention",  # as exported graphs have it
            "_scaled_dot_product_flash_attention_for_cpu",
            "_scaled_dot_product_flash_attention",
            "_scaled_dot_product_efficient_attention",
            "_scaled_dot_product_cudnn_attention",
            "_scaled_dot_product_fused_attention_overrideable",
            "_scaled_dot_product_attention_math",
            "_scaled_dot_product_attention_math_for_mps",
        ),
        ("softmax", _pairs),
    )
    | {
        name: (name, _elements)
        for name in (
            "gelu",
            "sigmoid",
            "silu",
            "mish",
            "softplus",
            "elu",
            "tanh",
            "erf",
            "erfc",
            "erfinv",
        )
    }
    | dict.fromkeys(("celu", "selu"), ("elu", _elements))
    | dict.fromkeys(
        (
            "log",
            "log2",
            "log10",
            "log1p",
            "logaddexp",
            "logaddexp2",
            "logcumsumexp",
            "_logcumsumexp",
            "logit",
            "xlogy",
            "binary_cross_entropy",
            "binary_cross_entropy_with_logits",
        ),
        ("log", _elements),
    )
    | dict.fromkeys(("log_sigmoid_forward", "log_sigmoid", "glu"), ("sigmoid", _elements))
    | dict.fromkeys(
        (
            *("sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh", "cosh"),
            *("asinh", "acosh", "atanh", "arctan2", "sinc", "polar", "angle"),
        ),
        ("trigonometric", _elements),
    )
    | dict.fromkeys(("pow", "float_power"), ("power", _tensor_power))
    | dict.fromkeys(("norm", "linalg_norm", "linalg_vector_norm"), ("power", _power_of_a_norm(1)))
    | {"_pdist_forward": ("power", _power_of_a_norm(1))}
    | {"_cdist_forward": ("power", _power_of_a_norm(2))},
)

# the kinds an attention brings; the others come from activations and position tables
ATTENTION = ("exp", "softmax")


class TranscendentalCounter(TorchDispatchMode):
    """Counts per kind while active: `with TranscendentalCounter() as counter: model(x)`, then
    `counter.kinds`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.kinds: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        kind = KINDS.get(name) or KINDS.get(name.removesuffix("_"))
        if kind and (number := kind[1](args)):
            self.kinds[kind[0]] += number
        return func(*args, **(kwargs or {}))
