"""`create_model`: a registered name, or any timm host with its attention exchanged at
construction.
"""

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import timm
from timm.models import is_model
from timm.models._features import FeatureGetterNet
from torch import nn

from softless.attention.record import Operator
from softless.attention.registry import registered
from softless.errors import DataError, UsageError, located, unknown
from softless.layers.attention import Attention
from softless.models import config, digests, vit
from softless.models.arguments import arguments
from softless.models.bag import create_bag_model, is_bag_name
from softless.models.construction import constructed
from softless.models.download import downloaded
from softless.models.exchanges import exchanged_again
from softless.models.files import CONFIG, FILE
from softless.models.hosts import HOSTS
from softless.models.hub import hub_folder, is_ours, names_hub, timms_model
from softless.models.options import COMPANIONS, host_arguments
from softless.models.outline import check_fits
from softless.models.scale import trained_as_configured
from softless.models.variants import BUILT_HERE, ENTRIES, RegisteredModel, check_host
from softless.models.weights import fill, load_weights

_log = logging.getLogger("softless.models")
FOLDER = "local-dir:"  # as timm says it


def create_model(
    name: str, op: str | Operator | None = None, *, pretrained: bool = False, **kwargs: Any
) -> nn.Module:
    """A model by name, with attention `op`.

    Args:
        name: A registered model ("sima_deit_small_patch16_224") or a host: a ViT or DeiT of timm,
            an XCiT, CvT ("cvt_13_224") or SOFT's pyramid ("soft_pyramid_tiny_224").
            "local-dir:FOLDER" is what `save_weights` wrote there, "hf-hub:OWNER/NAME" a repository
            of the hub, which `push_to_hub` or timm wrote.
        op: Operator for a host, by its name or its registered record; None keeps a registered
            model's own, and gives a host timm's own attention.
        pretrained: Load the weights that timm knows for this name (downloads), or those of the
            folder. Hosts with exchanged attention keep the layout of their projections, so a ViT's
            softmax weights load.
        **kwargs: Options of the operator (token_scale, order, …); companions of the attention
            (v_conv, v_conv_filters, gated, rotary, as in `softless.Attention`); act ("relu",
            "gelu", "hard_swish", "silu"); num_heads; lpi (XCiT); and every argument of the timm
            model (num_classes, in_chans, img_size, drop_path_rate, features_only, …);
            checkpoint_path is read by `load_weights`.

    Returns:
        A timm model: forward (B, C, H, W) -> (B, num_classes), images in pixels.

    Raises:
        DataError: a folder whose files are damaged, or whose config.json says more than a model;
            weights that cannot be downloaded.
        UsageError: unknown model (nearest name offered) or operator, an option that does not fit, a
            host whose attention has no place for another.

    Source:
        SimA arXiv:2206.08898; the hosts DeiT arXiv:2012.12877, XCiT arXiv:2106.09681, CvT
        arXiv:2103.15808 and SOFT arXiv:2110.11945.

    Examples:
        >>> model = softless.create_model("sima_deit_tiny_patch16_224", depth=2, num_classes=10)
        >>> model(torch.zeros(1, 3, 64, 96)).shape
        torch.Size([1, 10])
        >>> softless.create_model("sima_diet_tiny_patch16_224")
        Traceback (most recent call last):
        softless.errors.UsageError: no model named 'sima_diet_tiny_patch16_224'. Did you mean ...
    """
    if (path := kwargs.pop("checkpoint_path", None)) is not None and path != "":
        return _from_checkpoint(name, op, path, pretrained, kwargs)
    if name.startswith(FOLDER):
        if op is not None:
            raise UsageError(f"'{name}' says its operator itself: leave op='{op}' out")
        return _from_folder(located(name.removeprefix(FOLDER)), pretrained, kwargs)
    if names_hub(name):
        return _from_hub(name, op, pretrained, kwargs)
    op = None if op is None else registered(op).name
    check_host(name, op)
    kwargs = {
        key: value
        for key, value in kwargs.items()
        if value is not None or key not in {"act", "num_heads", "lpi"}
    }
    try:
        if pretrained:
            return downloaded(name, lambda: _named(name, op, kwargs, pretrained=True))
        return _named(name, op, kwargs, pretrained=False)
    except TypeError as error:
        if (refused := _unknown_option(name, op, kwargs, error)) is None:
            raise
        raise refused from error
    except AssertionError as error:  # of timm, which counts the blocks
        if not kwargs.get("features_only"):
            raise
        raise UsageError(
            f"features_only of '{name}': {error}; name blocks that there are by out_indices="
        ) from error


class UnknownOption(UsageError):
    """A keyword that the model does not take."""


def _unknown_option(
    name: str, op: str | None, kwargs: Mapping[str, Any], error: TypeError
) -> UnknownOption | None:
    """What a builder said of a keyword that it does not know, with the nearest that it does; None
    of another error.
    """
    match = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if match is None or match[1] not in kwargs:
        return None
    with_op = f" with op='{op}'" if op else ""
    return UnknownOption(
        str(unknown(f"option of '{name}'{with_op}", match[1], arguments(name, op) or ()))
    )


def _named(name: str, op: str | None, kwargs: dict[str, Any], *, pretrained: bool) -> nn.Module:
    """A model by a name that is known."""
    if is_bag_name(name) and not is_model(name):
        if pretrained:
            raise UsageError(f"'{name}' has no released weights: pass pretrained=False")
        return create_bag_model(name, **kwargs)
    if name in ENTRIES and ENTRIES[name].name != ENTRIES[name].variant.name:
        return timm.create_model(name, pretrained=pretrained, **kwargs)
    if name in ENTRIES and op is None:  # a host of ours with its own operator
        op = ENTRIES[name].op
    if op is None:
        return _timms(name, pretrained, kwargs)
    return _host(name, op, pretrained, kwargs)


def _timms(name: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """A host as timm builds it."""
    if wrong := [companion for companion in COMPANIONS if companion in kwargs]:
        raise UsageError(
            f"{wrong[0]} is an option of hosts with a named operator: pass op=, for example "
            "op='softmax'"
        )
    if "lpi" in kwargs:
        raise UsageError(
            f"lpi is an option of XCiT hosts with a named operator: create_model('{name}', "
            "op='xca', lpi=…) for XCiT's own"
        )
    model = constructed(
        timm.create_model(name, pretrained=pretrained, **host_arguments({**kwargs})),
        name,
        None,
        kwargs,
    )
    if pretrained:
        trained_as_configured(model)
    return model


def _host(name: str, op: str, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """A host with its attention exchanged at construction."""
    variant = BUILT_HERE.get(name)
    if "lpi" in kwargs and (variant is None or "lpi" not in HOSTS[variant.host].options):
        raise UsageError(f"'{name}' has no local patch interaction: lpi is an option of XCiT hosts")
    if variant is not None:
        if pretrained:
            raise UsageError(
                f"'{name}' with op='{op}' has no released weights: pass pretrained=False"
            )
        entry = RegisteredModel(name, variant, op)
        return entry(pretrained_cfg=entry.configuration, **kwargs)
    model: Any = timm.create_model(name, pretrained=pretrained, **vit.arguments(op, {**kwargs}))
    if not any(isinstance(module, Attention) for module in model.modules()):
        raise UsageError(
            f"'{name}' with {kwargs} has no block that takes another attention, and would keep "
            "softmax: leave block_fn= out"
        )
    # around it with features_only
    host_model: Any = model.model if isinstance(model, FeatureGetterNet) else model
    if pretrained:
        trained_as_configured(model)
    elif name.startswith("deit_"):
        vit.start_as_deit(host_model)
    vit.connect(host_model)
    return constructed(model, name, op, kwargs)


def _from_checkpoint(
    name: str, op: str | Operator | None, path: str | Path, pretrained: bool, kwargs: dict[str, Any]
) -> nn.Module:
    """A model with the weights of a file or folder."""
    if pretrained:
        raise UsageError(
            "pretrained=True and checkpoint_path= both say where the weights come from: choose one"
        )
    model: Any = create_model(name, op, **kwargs)
    loaded = (
        fill(model, located(path), head="new")
        if kwargs.get("features_only")
        else load_weights(model, located(path))
    )
    for doubt in loaded.doubts():
        _log.warning("%s: %s", path, doubt)
    return cast("nn.Module", model)


def _from_folder(folder: Path, pretrained: bool, kwargs: dict[str, Any]) -> nn.Module:
    """A model of `save_weights`."""
    digests.check(folder / CONFIG)
    stored = config.read(folder / CONFIG)
    check_fits(lambda: _rebuilt(stored, folder / CONFIG, {}), folder / FILE, folder / CONFIG)
    try:
        model: Any = _rebuilt(stored, folder / CONFIG, kwargs)
    except (UsageError, DataError):
        raise
    except Exception as error:
        raise DataError(
            f"{folder / CONFIG} with {kwargs or 'nothing else'} builds no model: {error}"
        ) from error
    preparation = {**stored.about}
    if kwargs.get("num_classes", number := stored.built.arguments.get("num_classes")) != number:
        preparation.pop("label_names", None)
    channels = kwargs.get("in_chans", stored.built.arguments.get("in_chans", 3))
    if channels != stored.built.arguments.get("in_chans", 3):
        preparation |= of_channels(preparation, channels)
    model.pretrained_cfg |= preparation
    if pretrained:
        trained_as_configured(model)
        same = kwargs.get("num_classes") in {None, stored.built.arguments.get("num_classes")}
        fill(model, folder, head="same" if same and not kwargs.get("features_only") else "new")
    return model


def _from_hub(
    name: str, op: str | Operator | None, pretrained: bool, kwargs: dict[str, Any]
) -> nn.Module:
    """A model of a repository of the hub."""
    folder = hub_folder(name, weights=pretrained)
    if is_ours(folder):
        if op is not None:
            raise UsageError(f"'{name}' says its operator itself: leave op='{op}' out")
        return _from_folder(folder, pretrained, kwargs)
    host, arguments, prepared = timms_model(folder)
    model: Any = create_model(host, op, **{**arguments, **kwargs})
    model.pretrained_cfg |= prepared
    if pretrained:
        same = kwargs.get("num_classes", number := arguments.get("num_classes")) == number
        fill(model, folder / FILE, head="same" if same else "new")
        trained_as_configured(model)
    return model


def _rebuilt(stored: config.Config, path: Path, kwargs: Mapping[str, Any]) -> nn.Module:
    """The model that a config.json describes, with further arguments.

    Raises:
        DataError: it names a swap that its own model does not take.
        UsageError: arguments that do not fit.
    """
    built = stored.built
    model = create_model(built.name, built.op, **{**built.arguments, **kwargs})
    try:
        for swap in stored.swaps:
            exchanged_again(model, swap)
    except UsageError as error:
        if kwargs:
            raise
        raise DataError(f"{path} names a swap that its model does not take: {error}") from error
    return model


def of_channels(preparation: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """How images of another number of channels are prepared: by the mean over channels for one,
    else by repeating them.
    """
    statistics = {name: list(preparation[name]) for name in ("mean", "std") if name in preparation}
    changed = {
        name: [sum(values) / len(values)]
        if channels == 1
        else [values[n % len(values)] for n in range(channels)]
        for name, values in statistics.items()
    }
    size = preparation.get("input_size")
    return {**changed, **({"input_size": (channels, *size[1:])} if size else {})}


def no_weight_decay(model: nn.Module) -> set[str]:
    """Names of parameters that take no weight decay: what the model lists, and learned tensors
    whose operator says so.
    """
    listed = set(getattr(model, "no_weight_decay", set)())
    for path, module in model.named_modules():
        if isinstance(module, Attention):
            claims = module.op.own_tensors(module.options)
            listed |= {
                f"{path}.learned.{name}" for name, claim in claims.items() if not claim.weight_decay
            }
    return listed
