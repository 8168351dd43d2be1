"""Keys and values as averages: what the operators share that weigh tokens by features of q and k,
all in one sweep.

    m = mean f(k),    u = mean v,    K = mean f(k)^T v - m^T u        (D, E and D x E numbers per head)

Sums are taken about the means and merge by Chan's formula (softless/attention/moments.py), so that
K does not cancel.
"""

# B batch, H heads, M keys, D features of q and k, E features of v

from typing import Any, NamedTuple

import torch
from torch import Tensor

from softless.attention import moments
from softless.attention.norms import keep
from softless.attention.streaming import Summary


class Averages(NamedTuple):
    """Of the keys that count: the mean feature (B,H,1,D), the mean value (B,H,1,E), their
    covariance (B,H,D,E).
    """

    key: Tensor
    value: Tensor
    covariance: Tensor


def summarise(features: Tensor, v: Tensor, mask: Tensor | None) -> Summary:
    """Count, means and products about the means of some keys: features (B,H,M,D), v (B,H,M,E)."""
    count = moments.number(features, mask)
    key, value = moments.mean(features, mask, count), moments.mean(v, mask, count)
    products = moments.products(
        moments.centred(features, key, mask), moments.centred(v, value, mask)
    )
    return {"count": count, "key": key, "value": value, "products": products}


def merge(a: Summary, b: Summary) -> Summary:
    """Both sets of keys together."""
    key, weight = moments.shift(a["key"], b["key"], a["count"], b["count"])
    value, _ = moments.shift(a["value"], b["value"], a["count"], b["count"])
    apart = (b["key"] - a["key"]).mT * (b["value"] - a["value"])
    return {
        "count": a["count"] + b["count"],
        "key": key,
        "value": value,
        "products": a["products"] + b["products"] + weight * apart,
    }


def without(total: Summary, part: Summary) -> Summary:
    """The keys of a whole that are not in a part of it: `merge` undone."""
    count = total["count"] - part["count"]
    share, nonempty = part["count"] / count.clamp_min(1), count > 0
    key, value = (
        (total[name] + (total[name] - part[name]) * share).masked_fill(~nonempty, 0)
        for name in ("key", "value")
    )
    weight = count * part["count"] / total["count"].clamp_min(1)
    apart = (part["key"] - key).mT * (part["value"] - value)
    products = (total["products"] - part["products"] - weight * apart).masked_fill(~nonempty, 0)
    return {"count": count, "key": key, "value": value, "products": products}


def finish(summary: Summary, **_: Any) -> Averages:
    """The averages; all zero where no key counts."""
    return Averages(
        summary["key"], summary["value"], summary["products"] / summary["count"].clamp_min(1)
    )


def plain(features: Tensor, v: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """mean f(k) (B,H,1,D), mean v (B,H,1,E) and mean f(k)^T v (B,H,D,E), as a formula prints them;
    masked features are 0.
    """
    count = features.shape[-2] if mask is None else mask.sum(-1)[:, None, None, None].clamp_min(1)
    v = keep(v, mask)
    return (
        features.sum(-2, keepdim=True) / count,
        v.sum(-2, keepdim=True) / count,
        features.mT @ v / count,
    )


def along(q: Tensor, key: Tensor) -> Tensor:
    """q . m for each query: (B,H,N,1)."""
    return (q * key.to(q.dtype)).sum(-1, keepdim=True)


def flops(d: Any) -> int:
    """Products of keys and values, and of queries with them; 2 FLOPs per multiply-add."""
    return 2 * d.B * d.H * d.D * d.E * (d.N + d.M)


MERGES = "Chan's formula: means by their counts, products with those of the means' differences"
HOLDS = "count, mean of f(k) (D), mean of v (E), centred Σf(k)ᵀv (D x E)"
TOLERANCE_FLOAT32 = {torch.float32: 1e-5}
