"""Whether torch differentiates or maps a call in a way that only operators of torch itself know."""

import torch
from torch.autograd import forward_ad

# by name: looking it up takes longer than the call
_depth = torch._C._functorch.get_dynamic_layer_stack_depth


def transformed() -> str:
    """What is active just now that a kernel with a reverse-mode gradient alone would pass over in
    silence; empty where nothing is.
    """
    if _depth() > 0:  # dynamo knows it too, and compiles anew where it changes
        return "a transform of torch.func is active (grad, vmap, jvp, …)"
    if forward_ad._current_level >= 0:
        return "forward-mode differentiation is active"
    return ""
