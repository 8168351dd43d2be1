"""The table of named models; operators multiply in.

One loop makes a timm entry point of each row.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Any

import timm
import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, is_model, model_entrypoint, register_model
from torch import nn

from softless.attention.registry import get
from softless.errors import UsageError, nearest
from softless.layers.attention import Attention, operator_class
from softless.models.bag import bag_models, check_bag_name, is_bag_name, operator_of
from softless.models.construction import constructed
from softless.models.hosts import HOSTS


@dataclass(frozen=True)
class Variant:
    """One size of a host, as published."""

    name: str
    host: str
    arguments: Mapping[str, Any]
    operators: tuple[str, ...] = ()  # those registered under the name <op>_<name>
    aliases: Mapping[str, str] = field(default_factory=dict)  # operator -> further name
    # operator of the host itself, where timm does not have it: registered under the plain name
    own: str | None = None
    stem: str = ""  # what follows <op>_ in registered names, where it is not the name

    def entry(self, op: str) -> str:
        """The registered name of this size with an operator."""
        return f"{op}_{self.stem or self.name}"


def _deit(size: str, dim: int, heads: int) -> Variant:
    arguments = {"patch_size": 16, "embed_dim": dim, "depth": 12, "num_heads": heads}
    return Variant(f"deit_{size}_patch16_224", "vit", arguments, operators=("sima", "seqnorm"))


def _xcit(
    size: str,
    dim: int,
    depth: int,
    heads: int,
    eta: float,
    *,
    tokens_norm: bool = True,
    patches: tuple[int, ...] = (16, 8),
) -> list[Variant]:
    def row(patch: int) -> Variant:
        arguments = {
            "patch_size": patch,
            "embed_dim": dim,
            "depth": depth,
            "num_heads": heads,
            "eta": eta,
            "tokens_norm": tokens_norm,
        }
        return Variant(
            f"xcit_{size}_{depth}_p{patch}_224",
            "xcit",
            arguments,
            ("sima",),
            {"sima": f"sima_{size}_{depth}_p{patch}"},
        )

    return [row(patch) for patch in patches]


def _cvt(size: str, depths: tuple[int, ...], operators: tuple[str, ...] = ()) -> Variant:
    return Variant(f"cvt_{size}_224", "cvt", {"depths": depths}, operators, own="softmax")


def _pyramid(
    size: str,
    third: int,
    heads: int,
    depths: tuple[int, ...],
    operators: tuple[str, ...] = ("soft", "softnorm"),
) -> Variant:
    arguments = {
        "embed_dims": (64, 128, third, 512),
        "num_heads": (2, 4, heads, 16),
        "depths": depths,
    }
    return Variant(f"soft_pyramid_{size}_224", "pyramid", arguments, operators, stem=f"{size}_224")


# DeiT: arXiv:2012.12877; XCiT: arXiv:2106.09681, table 1; the SimA models: arXiv:2206.08898; CvT:
# arXiv:2103.15808; SOFT: arXiv:2110.11945, table 1 (Small with the depths of the paper; its code
# has others); SeqNorm
# in DeiT: arXiv:2406.01314
VARIANTS: tuple[Variant, ...] = (
    _deit("tiny", 192, 3),
    _deit("small", 384, 6),
    _deit("base", 768, 12),
    *_xcit("nano", 128, 12, 4, 1.0, tokens_norm=False),
    *_xcit("tiny", 192, 12, 4, 1.0),
    *_xcit("small", 384, 12, 8, 1.0),
    # of SimA's table 2; layer scale as in the depths of 24
    *_xcit("tiny", 192, 20, 4, 1e-5, patches=(16,)),
    *_xcit("tiny", 192, 24, 4, 1e-5),
    *_xcit("small", 384, 24, 8, 1e-5),
    *_xcit("medium", 512, 24, 8, 1e-5),
    *_xcit("large", 768, 24, 16, 1e-5),
    _cvt("13", (1, 2, 10), ("sima",)),
    _cvt("21", (1, 4, 16)),
    _pyramid("tiny", 320, 10, (1, 2, 3, 2)),
    _pyramid("small", 320, 10, (1, 3, 7, 4)),
    _pyramid("small_code", 320, 10, (1, 3, 20, 4), ("soft",)),
    _pyramid("medium", 288, 9, (1, 3, 29, 5)),
    _pyramid("large", 320, 10, (1, 3, 40, 5)),
    _pyramid("huge", 352, 11, (1, 5, 49, 5)),
)


# those whose every part is built here: timm's models of the others take `attn_layer=`
BUILT_HERE = {row.name: row for row in VARIANTS if not HOSTS[row.host].timm_modules}


def first_of_each_host() -> list[str]:
    """The names of one variant of each host: sizes differ in numbers alone."""
    return list({variant.host: variant.name for variant in reversed(VARIANTS)}.values())[::-1]


@dataclass(frozen=True)
class RegisteredModel:
    """A registered name: the variant and the operator behind it."""

    name: str
    variant: Variant
    op: str
    alias_of: str | None = None

    def __call__(self, pretrained: bool = False, **kwargs: Any) -> nn.Module:
        model = HOSTS[self.variant.host].build(
            self.name, self.op, pretrained, **{**self.variant.arguments, **kwargs}
        )
        return constructed(model, self.name, self.op, kwargs)

    @property
    def configuration(self) -> dict[str, Any]:
        """What timm keeps beside a model; 224 px with a crop of 1.0, as the SimA paper tests."""
        return {
            "url": "",
            "num_classes": 1000,
            "input_size": (3, 224, 224),
            "pool_size": None,
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "first_conv": HOSTS[self.variant.host].first_conv,
            "classifier": "head",
            "license": "mit",
        }


def entries_of(op: str) -> dict[str, RegisteredModel]:
    """Every size of every host with an operator that came later; a host that has no place for it
    says so when it is built.
    """
    return {
        variant.entry(op): RegisteredModel(variant.entry(op), variant, op) for variant in VARIANTS
    }


def _entries() -> dict[str, RegisteredModel]:
    entries = {}
    for variant in VARIANTS:
        if variant.own:
            entries[variant.name] = RegisteredModel(variant.name, variant, variant.own)
        for op in variant.operators:
            name = variant.entry(op)
            entries[name] = RegisteredModel(name, variant, op)
            if alias := variant.aliases.get(op):
                entries[alias] = RegisteredModel(alias, variant, op, alias_of=name)
    return entries


_known: dict[str, RegisteredModel] = {}
ENTRIES: Mapping[str, RegisteredModel] = MappingProxyType(_known)
default_cfgs: dict[str, Any] = {}  # timm looks for this name


def add_entries(entries: Mapping[str, RegisteredModel]) -> None:
    """Give names to timm, which takes the name of a model, and the module it is listed under, from
    a function.
    """
    _known.update(entries)
    default_cfgs.update(
        generate_default_cfgs({name: entry.configuration for name, entry in entries.items()})
    )
    for name, entry in entries.items():

        def entry_point(
            pretrained: bool = False, *, _entry: RegisteredModel = entry, **kwargs: Any
        ) -> nn.Module:
            return _entry(pretrained, **kwargs)

        entry_point.__name__ = entry_point.__qualname__ = name
        entry_point.__doc__ = f"{entry.variant.name} with operator '{entry.op}'."
        entry_point.__module__ = __name__
        setattr(sys.modules[__name__], name, register_model(entry_point))


add_entries(_entries())


def own_operator(name: str) -> str | None:
    """The operator of a named model of ours, of images or of bags; None of a control."""
    return operator_of(name) if is_bag_name(name) else ENTRIES[name].op


# timm's modules whose models take attn_layer=
TIMM_MODULES = {module for host in HOSTS.values() for module in host.timm_modules}


def check_host(name: str, op: str | None) -> None:
    """Whether there are such a model and such an operator, and one has a place for the other.

    Raises:
        UsageError: there are not (nearest name offered), or it has none.
    """
    if op is not None:
        get(op)
    if is_bag_name(name) and not is_model(name):
        check_bag_name(name, op)
        return
    if name in ENTRIES:
        entry = ENTRIES[name]
        if entry.name != entry.variant.name and op not in {None, entry.op}:
            raise UsageError(
                f"'{name}' has operator '{entry.op}': for op='{op}' name the host, "
                f"'{entry.variant.name}'"
            )
        return
    if op is None:
        if name in BUILT_HERE and not is_model(name):
            raise UsageError(
                f"'{name}' is a host without an operator of its own: pass op=, for example "
                "op='soft'"
            )
        _check_known(name)
    elif name not in BUILT_HERE:
        _check_known(name)
        listed = f"Hosts: ViT and DeiT models of timm, and {', '.join(sorted(BUILT_HERE))}"
        if model_entrypoint(name).__module__.rsplit(".", 1)[-1] not in TIMM_MODULES:
            raise UsageError(f"'{name}' has no place for another attention. {listed}")
        if not _exchanges(name):
            raise UsageError(
                f"'{name}' has no place for another attention: its blocks compute it together "
                f"with their MLP, and would keep softmax. {listed}"
            )


@cache
def _exchanges(name: str) -> bool:
    """Whether a ViT of timm has blocks that take `attn_layer`: parallel ones compute attention
    themselves, and would keep softmax.
    """
    with torch.device("meta"), torch.random.fork_rng(devices=[]):
        model = timm.create_model(name, depth=1, attn_layer=operator_class("sima"))
    return any(isinstance(module, Attention) for module in model.modules())


def _check_known(name: str) -> None:
    if not is_model(name):
        near = nearest(name, [*ENTRIES, *bag_models(), *timm.list_models()])
        raise UsageError(
            f"no model named '{name}'. {near}`softless list models` shows ours, "
            "timm.list_models() the hosts"
        )
