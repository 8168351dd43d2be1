"""Weights on which every branch counts, so that a fault in the attention shows in the whole model
(design §4).
"""

import torch
from torch import Tensor, nn

from softless.layers import Attention, ClassAttention

SHARE = 0.3  # RMS of an attention branch over the residual's


def lively(model: nn.Module, image: Tensor) -> nn.Module:
    """The model with random weights whose layer scales are near 1 and whose attention branches are
    30 % of the residual.

    In a freshly made SimA-DeiT-Ti the logits move by 2 % with attention switched off, in
    xcit_tiny_24 by 4e-8: nothing that such a model computes says anything of its attention.
    """
    model = drawn(model)
    # one after the other: each sees what the ones before it now do
    for module in branches(model).values():
        scaled(model, module, image)
    return model


def drawn(model: nn.Module) -> nn.Module:
    """The model in evaluation with those random weights, its branches as large as they come."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "gamma" in name or (
                "learned" in name and bool((parameter == parameter.flatten()[0]).all())
            ):
                parameter.copy_(1 + 0.2 * torch.rand(parameter.shape, generator=generator))
            elif "learned" in name:
                continue  # drawn at random already
            elif parameter.ndim > 1:
                parameter.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
            elif "bias" in name or "token" in name:
                parameter.normal_(std=0.3, generator=generator)
        for buffer_name, buffer in model.named_buffers():
            if buffer_name.endswith("running_mean"):
                buffer.normal_(std=0.1, generator=generator)
    return model.eval()


def branches(model: nn.Module) -> dict[str, nn.Module]:
    """The attention modules, in the order of the forward pass."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, Attention | ClassAttention)
    }


def outputs(model: nn.Module, image: Tensor) -> dict[str, Tensor]:
    """What every attention branch adds, before layer scale and drop path."""
    found: dict[str, Tensor] = {}
    hooks = [
        module.register_forward_hook(
            lambda _, __, out, name=name: found.__setitem__(name, out.detach())
        )
        for name, module in branches(model).items()
    ]
    try:
        with torch.no_grad():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def zeroed(model: nn.Module) -> nn.Module:
    """The control: the same model with the attention's part of every branch taken out, its bias
    left.
    """
    with torch.no_grad():
        for module in branches(model).values():
            module.proj.weight.zero_()  # type: ignore[union-attr, operator]
    return model


def scaled(model: nn.Module, module: nn.Module, image: Tensor) -> None:
    """Sets the projection so that the branch without its bias has SHARE of the RMS of the module's
    (normalised) input.
    """
    seen: list[Tensor] = []
    hook = module.register_forward_hook(
        lambda _, inputs, out: seen.extend((inputs[0].detach(), out.detach()))
    )
    with torch.no_grad():
        model(image)
        hook.remove()
        branch = seen[1] - module.proj.bias  # type: ignore[union-attr, operator]
        factor = SHARE * seen[0].square().mean().sqrt() / branch.square().mean().sqrt()
        module.proj.weight.mul_(factor)  # type: ignore[union-attr, operator]
        module.proj.bias.mul_(0.1)  # type: ignore[union-attr, operator]
