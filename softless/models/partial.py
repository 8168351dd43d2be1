"""A model of which a part is trained: the head alone, or the head beside low-rank updates. The rest
has no gradient, and rests.
"""

from torch import nn

from softless.errors import UsageError


def heads(model: nn.Module) -> dict[str, nn.Module]:
    """The classifiers of a model by path, as its configuration names them; empty without."""
    configured = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or "head"
    names = [configured] if isinstance(configured, str) else list(configured)
    modules = dict(model.named_modules())
    return {
        name: modules[name]
        for name in names
        if name in modules and any(True for _ in modules[name].parameters())
    }


def train_heads(model: nn.Module, *, learned: bool = False) -> nn.Module:
    """The model of which the classifiers alone have gradients, in place.

    Args:
        model: with a classifier.
        learned: an operator's own tensors have gradients too.

    Raises:
        UsageError: it has no classifier.
    """
    classifiers = heads(model)
    if not classifiers:
        raise UsageError(
            f"{type(model).__name__} has no head that could be trained alone: leave "
            "model.freeze and model.lora out"
        )
    model.requires_grad_(requires_grad=False)
    for head in classifiers.values():
        head.requires_grad_(requires_grad=True)
    if learned:
        for name, parameter in model.named_parameters():
            if ".learned." in name:
                parameter.requires_grad = True
    return model


def rest_backbone(model: nn.Module) -> None:
    """All but the classifiers in evaluation mode: no statistics move, nothing is dropped."""
    model.eval()
    for head in heads(model).values():
        head.train()
    if isinstance(drop := getattr(model, "head_drop", None), nn.Module):
        drop.train()


def rest_statistics(model: nn.Module) -> None:
    """BatchNorms in evaluation mode: their statistics belong to weights that are not trained."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
