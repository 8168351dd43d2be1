"""Whether somebody waits for a module to be called: who computes its part without calling it would pass him by."""

from torch import nn


def has_hooks(module: nn.Module) -> bool:
    """Whether a module has hooks of its own, forward or backward."""
    return any((module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks))
