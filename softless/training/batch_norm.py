"""BatchNorm over the batch of all ranks, on any device: torch's SyncBatchNorm takes CUDA tensors
alone.

    mean = sum_r sum x / sum_r n,     var = sum_r sum (x - mean)^2 / sum_r n

so a run of several processes has the statistics of one process with the same global batch. The
published code of XCiT and SimA uses SyncBatchNorm.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


class SummedOverRanks(torch.autograd.Function):
    """The sum over ranks; each rank's gradient reaches every rank's input."""

    @staticmethod
    def forward(_: Any, x: Tensor) -> Tensor:
        """x of any shape, the same on all ranks, to their sum."""
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(_: Any, grad: Tensor) -> Tensor:
        """The sum of the gradients of all ranks, of the shape of x."""
        total = grad.contiguous().clone()
        dist.all_reduce(total)
        return total


class SyncedBatchNorm2d(nn.BatchNorm2d):
    """nn.BatchNorm2d whose statistics in training are those of all ranks' maps (B, C, h, w)."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, h, w) to normalised ones, in x's dtype; sums are in float32 at least."""
        if (
            not self.training
            or not dist.is_initialized()
            or self.running_mean is None
            or self.running_var is None
        ):
            return super().forward(x)
        precise = x.to(torch.promote_types(x.dtype, torch.float32))
        pixels = x.numel() // x.shape[1]
        sums = SummedOverRanks.apply(
            torch.cat([precise.sum((0, 2, 3)), precise.new_full((1,), pixels)])
        )
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centred = precise - mean[:, None, None]
        var = SummedOverRanks.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
            share = (
                self.momentum if self.momentum is not None else 1 / float(self.num_batches_tracked)
            )
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), share)
            self.running_var.lerp_((var * count / (count - 1)).to(self.running_var.dtype), share)
        normed = centred * torch.rsqrt(var + self.eps)[:, None, None]
        if self.weight is not None and self.bias is not None:
            normed = normed * self.weight[:, None, None] + self.bias[:, None, None]
        return normed.to(x.dtype)


def synchronised(model: nn.Module) -> nn.Module:
    """The model with each of its BatchNorm2d synchronised, in place: parameters, buffers and keys
    stay.
    """
    for module in model.modules():
        if type(module) is nn.BatchNorm2d:
            module.__class__ = SyncedBatchNorm2d
    return model


def alone(model: nn.Module) -> nn.Module:
    """The model with ordinary BatchNorms again, in place: what `synchronised` changed for the
    training of several ranks.
    """
    for module in model.modules():
        if type(module) is SyncedBatchNorm2d:
            module.__class__ = nn.BatchNorm2d  # type: ignore[assignment]
    return model
