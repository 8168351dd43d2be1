"""Weighted nearest neighbours against a loop over all pairs."""

import math

import numpy as np
import pytest
import torch

from softless.errors import UsageError
from softless.evaluation.knn import nearest, neighbours, votes


def brute_force(bank, labels, queries, classes, k, temperature):
    found = []
    for query in queries.tolist():
        similar = []
        for index, image in enumerate(bank.tolist()):
            dot = sum(a * b for a, b in zip(query, image, strict=True))
            similar.append((
                dot / math.sqrt(sum(a * a for a in query)) / math.sqrt(sum(b * b for b in image)),
                index,
            ))
        counted = [0.0] * classes
        for similarity, index in sorted(similar, reverse=True)[:k]:
            counted[int(labels[index])] += math.exp(similarity / temperature)
        found.append(counted)
    return found


def test_votes_are_those_of_a_loop_over_all_pairs():
    bank, queries, labels = torch.randn(30, 5) * 3, torch.randn(300, 5), torch.randint(4, (30,))
    for k, temperature in ((1, 0.07), (7, 0.07), (30, 0.5)):
        found = votes(bank, labels, queries, 4, k=k, temperature=temperature)
        expected = torch.tensor(brute_force(bank, labels, queries, 4, k, temperature))
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=0)


def test_near_neighbours_outweigh_many_far_ones():
    """Without weights the three of class 1 would win."""
    bank = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.1, 1.0]])
    probe = nearest(
        (bank, torch.tensor([0, 1, 1, 1])),
        (torch.tensor([[1.0, 0.05]]), torch.tensor([0])),
        ("a", "b"),
        4,
    )
    assert probe.predicted.tolist() == [0]
    assert (probe.accuracy, probe.train_images, probe.width) == (1.0, 4, 2)
    assert probe.to_dict()["knn"] == 1.0
    low, high = probe.interval
    assert 0 < low < high == 1


def test_length_does_not_count():
    bank, queries, labels = torch.randn(20, 3), torch.randn(9, 3), torch.randint(2, (20,))
    scaled = bank * torch.rand(20, 1).add(0.1)
    found = votes(scaled, labels, queries * 7, 2, k=5)
    torch.testing.assert_close(found, votes(bank, labels, queries, 2, k=5), rtol=1e-4, atol=0)


def test_neighbours_are_nearest_first():
    bank = torch.eye(3)
    similar, found = neighbours(bank, torch.tensor([[0.5, 1.0, 0.1]]), 3)
    assert found.tolist() == [[1, 0, 2]]
    assert np.all(np.diff(similar.numpy()[0]) < 0)


@pytest.mark.parametrize("k", [0, 6])
def test_more_neighbours_than_images(k: int):
    with pytest.raises(UsageError, match=f"{k} nearest of 5 training images"):
        votes(torch.randn(5, 2), torch.zeros(5, dtype=torch.int64), torch.randn(1, 2), 2, k=k)
