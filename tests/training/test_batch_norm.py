"""BatchNorm over two ranks against one BatchNorm over the whole batch: values, gradients, running
statistics.
"""

from pathlib import Path

import torch
from torch import nn

from softless.training.batch_norm import SyncedBatchNorm2d, synchronised
from tests.processes import run_ranks


def batch() -> torch.Tensor:
    return torch.randn(4, 3, 5, 7, generator=torch.Generator().manual_seed(0)) * 3 + 1


def model() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)
    ).train()


def rank(folder: Path) -> None:
    """One of the two: its half of the batch, the mean of the gradients."""
    torch.distributed.init_process_group("gloo")
    number = torch.distributed.get_rank()
    net = synchronised(model())
    net(batch()[2 * number : 2 * number + 2]).square().mean().backward()
    for parameter in net.parameters():
        assert parameter.grad is not None
        torch.distributed.all_reduce(parameter.grad)
        parameter.grad /= 2
    state = {"state": net.state_dict(), "grads": [parameter.grad for parameter in net.parameters()]}
    torch.save(state, folder / f"{number}.pt")
    torch.distributed.destroy_process_group()


def test_two_ranks_have_the_statistics_and_gradients_of_one(tmp_path: Path):
    run_ranks(
        "-c",
        "import pathlib; from tests.training.test_batch_norm import rank; "
        f"rank(pathlib.Path({str(tmp_path)!r}))",
    )
    one = model()
    one(batch()).square().mean().backward()
    for number in range(2):
        two = torch.load(tmp_path / f"{number}.pt")
        torch.testing.assert_close(two["state"], one.state_dict(), rtol=1e-5, atol=1e-6)
        for ours, theirs in zip(two["grads"], one.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs.grad, rtol=1e-4, atol=1e-6)


def test_keys_stay_and_alone_it_is_batch_norm():
    plain, synced = model(), synchronised(model())
    assert list(plain.state_dict()) == list(synced.state_dict())
    assert isinstance(synced.get_submodule("1"), SyncedBatchNorm2d)
    assert torch.equal(plain(batch()), synced(batch()))
