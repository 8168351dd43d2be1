"""Weighted nearest neighbours on frozen features: what they are worth without training anything.

    votes(class) = sum over the k training images most similar to the query that have this class, of  exp(cos(query, image) / T)

Wu et al., arXiv:1805.01978; as in the evaluation of DINO (Caron et al., arXiv:2104.14294): k = 20,
T = 0.07, features the backbone's output.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from softless.errors import UsageError
from softless.evaluation.features import Probe

K = 20
TEMPERATURE = 0.07
CHUNK = 256  # queries at once


def nearest(
    bank: tuple[Tensor, Tensor],
    queries: tuple[Tensor, Tensor],
    classes: tuple[str, ...],
    k: int = K,
) -> Probe:
    """Answer queries, features (m, D) and labels (m,), by their k nearest in the bank, (n, D) and
    (n,).

    Raises:
        UsageError: k is not within 1..n.
    """
    counted = votes(*bank, queries[0], len(classes), k=k)
    how = (
        f"{k} nearest of {len(bank[0])} training images by cosine, weights exp(similarity / "
        f"{TEMPERATURE})"
    )
    predicted = counted.argmax(1).numpy()
    return Probe("knn", how, predicted, queries[1].numpy(), classes, len(bank[0]), bank[0].shape[1])


def votes(
    bank: Tensor,
    labels: Tensor,
    queries: Tensor,
    classes: int,
    *,
    k: int = K,
    temperature: float = TEMPERATURE,
) -> Tensor:
    """Votes (m, classes) of the k nearest of bank (n, D) with labels (n,) for queries (m, D); the
    largest is the answer.

    Raises:
        UsageError: k is not within 1..n.
    """
    if not 1 <= k <= len(bank):
        raise UsageError(
            f"{k} nearest of {len(bank)} training images: k lies between 1 and their number"
        )
    chunks = []
    for part in queries.split(CHUNK):
        similar, nearest = neighbours(bank, part, k)
        weights = (similar / temperature).exp()
        chunks.append(torch.zeros(len(part), classes).scatter_add_(1, labels[nearest], weights))
    return torch.cat(chunks)


def neighbours(bank: Tensor, queries: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Cosine similarities (m, k) and positions (m, k) in the bank of the k nearest, nearest
    first.
    """
    similar = F.normalize(queries, dim=1) @ F.normalize(bank, dim=1).T
    top = similar.topk(k, dim=1)
    return top.values, top.indices
