"""`optimize`: a copy of a model for inference on the processor, and what was done to it."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from timm.layers import DropPath, LayerScale, Mlp
from timm.models.beit import Attention as BeitAttention
from timm.models.eva import EvaAttention
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.ssd import SSD

from softless.convert.foreign import looks_like_attention
from softless.errors import UsageError, need_module
from softless.inference.blocks import BLOCKS
from softless.inference.layers import (
    Added,
    InDtype,
    KeptPositions,
    LookedInto,
    PackedAttention,
    PackedLPI,
    PackedMlp,
    PatchProjection,
    factors,
)
from softless.inference.model import InferenceModel, inference_class, reads_first
from softless.inference.optimized import Optimized
from softless.inference.packed import DTYPES, NONE, FusedConv, PackedLinear, activation_of, why_not
from softless.layers.attention import Attention
from softless.layers.conv_attention import ConvProjection
from softless.layers.plain import (
    CONV,
    NORM,
    is_nothing,
    refuse_parts,
    watched,
    weights_of,
    why_called,
)
from softless.layers.plain import why_not as why_not_plain
from softless.models.bag import refuse_bags
from softless.models.features import Features
from softless.models.host import BlockKind
from softless.models.hosts import HOSTS
from softless.models.published import published_folder, published_model

# torchvision's, whose coordinates need float32: eight bits of bfloat16 are two pixels at 500
DETECTORS = (GeneralizedRCNN, RetinaNet, FCOS, SSD)
LEFT_OUT = {nn.Identity, nn.Dropout, DropPath}  # nothing in evaluation


def optimize(model: nn.Module | str | Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """A copy of a model for inference on the processor: the same answers, sooner.

    Weights are packed once for oneDNN; GELU and residuals are computed with the linear layers
    beside them; BatchNorm (in evaluation) and layer scales are folded into weights; attention runs
    natively. A ViT that is read by its class token computes of the last block what that token
    needs. The copy takes images of any number and size, and returns `dtype`.

    ViT (ours, timm's, swapped), XCiT, CvT and the SOFT pyramid have blocks that are rewritten; of
    other models the linear layers and BatchNorms. Layers with hooks stay as they are. Call it under
    `torch.inference_mode()`.

    Args:
        model: the model; it is not touched. Or a folder of `save_weights`.
        dtype: bfloat16 or float32.

    Returns:
        The copy, in evaluation; its `optimized` says what was done.

    Raises:
        UsageError: another dtype, or a model that is optimized already.

    Examples:
        >>> model = softless.create_model("sima_deit_tiny_patch16_224", depth=2).eval()
        >>> fast = softless.optimize(model, dtype=torch.float32)
        >>> image = torch.zeros(1, 3, 224, 224)
        >>> with torch.inference_mode():
        ...     torch.allclose(fast(image), model(image), atol=1e-4)
        True
    """
    if isinstance(model, str | Path) and (folder := published_folder(model)) is not None:
        model = published_model(folder)
    need_module(model, "optimize")
    refuse_bags(model, "optimize")
    assert isinstance(model, nn.Module)
    if dtype not in DTYPES:
        raise UsageError(
            f"dtype={dtype}: an optimized model computes in torch.bfloat16 or torch.float32"
        )
    if isinstance(model, InferenceModel):
        raise UsageError("the model is optimized already: optimize the one it was made of")
    refuse_parts(model, "optimize")
    optimized: Any = copied(model).eval().requires_grad_(requires_grad=False)
    first_weight = next(
        (parameter for parameter in optimized.parameters() if parameter.is_floating_point()),
        torch.empty(0),
    )
    device = next(
        (
            parameter.device
            for parameter in optimized.parameters()
            if parameter.device.type != "meta"
        ),
        torch.device("cpu"),
    )
    work, outside = _Work(dtype), dtype
    with torch.no_grad():
        if backbones := _backbones(optimized):
            outside = first_weight.dtype if first_weight.dtype in DTYPES else torch.float32
            work.inside(optimized, backbones, outside)
        optimized = _settled(work.replaced("", optimized), outside)
    why = why_not(dtype, device)
    notes = [f"nothing is packed: {why}"] if why else []
    if backbones:
        notes.append(f"  {', '.join(backbones)} in {dtype}, boxes, scores and masks in {outside}")
    first = reads_first(optimized)
    if first:
        notes.append(
            "  the last block computes what the class token needs; forward_features still gives "
            "every token"
        )
    kind: Any = type(optimized)
    optimized.__class__ = inference_class(kind, first)
    optimized.outside = outside
    optimized.optimized = Optimized(
        dtype,
        device,
        work.blocks,
        () if why else tuple(work.packed),
        work.folded,
        work.fused,
        work.kept,
        tuple(notes),
    )
    return optimized


def copied(model: nn.Module) -> nn.Module:
    """A copy; a weight that is computed of others before each call, as weight_norm's, is copied as
    the number that it is now.
    """
    computed = [
        x
        for module in model.modules()
        for x in vars(module).values()
        if isinstance(x, Tensor) and not x.is_leaf
    ]
    return copy.deepcopy(model, {id(x): x.detach().clone() for x in computed})


def _settled(model: nn.Module, dtype: torch.dtype) -> nn.Module:
    """All parts in a dtype, new ones too; the weights of convolutions as their images lie, or each
    call would copy them.
    """
    model.to(dtype, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.eval().requires_grad_(requires_grad=False)


def _backbones(model: nn.Module) -> list[str]:
    """The paths of what detectors look at an image with; ours have a pyramid behind it, some of
    which is in float32 by itself.
    """
    backbones = [
        (below(path, "backbone"), module.backbone)
        for path, module in model.named_modules()
        if isinstance(module, DETECTORS)
    ]
    return [
        below(path, "features")
        if isinstance(getattr(backbone, "features", None), Features)
        else path
        for path, backbone in backbones
    ]


@dataclass
class _Work:
    """One walk through a model.

    Everything is folded in the precision that the model came in, and rounded once.
    """

    dtype: torch.dtype
    blocks: dict[str, str] = field(default_factory=dict)
    packed: list[str] = field(default_factory=list)
    folded: dict[str, str] = field(default_factory=dict)
    fused: dict[str, str] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    # what was there and what is now, by identity: two paths may share a module
    replacements: dict[int, tuple[nn.Module, nn.Module]] = field(default_factory=dict)
    heads: tuple[nn.Module, ...] = ()

    def replaced(self, path: str, module: nn.Module) -> nn.Module:
        """What stands in a module's place: another, or itself with its parts replaced."""
        if id(module) in self.replacements:
            return self.replacements[id(module)][1]
        if not path:
            self.heads = tuple(_heads(module))
        kind = type(module)
        why = why_read_not(module)
        if why and (kind in {nn.Linear, nn.Conv2d} or not _is_float(module)):
            self.kept[path] = why
            return self.as_it_came(module)
        if why and not _passes(module):
            if kind in RULES or isinstance(module, Attention | nn.Linear | nn.Conv2d):
                self.kept[path] = why
            replacement = None
        elif kind in WHOLE and watched(module):
            self.kept[path] = "a part of it has hooks"
            replacement = None
        else:
            rule: Rule = RULES.get(kind) or (_attention if isinstance(module, Attention) else _none)
            replacement = rule(self, path, module)
        if replacement is None:
            self._name(path, module)
            # named_children would pass over a part that is there twice
            for name, child in module._modules.items():
                if child is not None:
                    setattr(module, name, self.replaced(below(path, name), child))
            replacement = module
        self.replacements[id(module)] = (module, replacement)
        return replacement

    def as_it_came(self, module: nn.Module) -> nn.Module:
        """A layer that is called as it is, in the dtype that it came in: a hook may add what it
        holds in that.
        """
        own = next((x.dtype for x in module.parameters() if x.is_floating_point()), torch.float32)
        layer = module if own == self.dtype else InDtype(module, own, self.dtype)
        self.replacements[id(module)] = (module, layer)
        return layer

    def inside(self, model: nn.Module, paths: list[str], outside: torch.dtype) -> None:
        """Parts of a model in the dtype that was asked for, all else in that of the model."""
        for path in paths:
            part = _settled(self.replaced(path, model.get_submodule(path)), self.dtype)
            wrapped = LookedInto(part, self.dtype, outside) if outside != self.dtype else part
            model.set_submodule(path, wrapped)
            self.replacements[id(wrapped)] = (wrapped, wrapped)
        self.dtype = outside

    def _name(self, path: str, module: nn.Module) -> None:
        """Why a part that a reader would ask for is as it was."""
        if path in self.kept:
            return
        if looks_like_attention(module):
            self.kept[path] = (
                f"{type(module).__name__} is no attention of softless: only its linear layers are "
                "packed"
            )
        elif isinstance(module, Attention):
            self.kept[path] = (
                "something stands between its projection and its operator: only its linear layers "
                "are packed"
            )
        elif isinstance(module, nn.BatchNorm2d):
            self.kept[path] = "no rule says which convolution stands before it"
        elif "Block" in type(module).__name__:
            self.kept[path] = (
                f"no rule for {type(module).__name__}: only its linear layers are packed"
            )

    def linear(
        self, path: str, linear: nn.Module, scale: Tensor | None = None, activation: Any = NONE
    ) -> PackedLinear:
        assert isinstance(linear, nn.Linear)
        self.packed.append(path)
        return PackedLinear.of(linear, self.dtype, scale, activation)

    def attention(self, path: str, source: nn.Module, scale: Tensor | None) -> nn.Module:
        """Attention that adds itself: ours natively, any other as it is."""
        if isinstance(source, Attention) and reads_its_buffer(source):
            self.packed += [f"{path}.qkv", f"{path}.proj"]
            return PackedAttention.of(source, self.dtype, scale)
        return Added(self.replaced(path, source), scale)

    def mlp(self, path: str, source: nn.Module, scale: Tensor | None) -> nn.Module:
        """An MLP that adds itself."""
        if not is_plain_mlp(source):
            return Added(self.replaced(path, source), scale)
        them: Any = source
        activation, act = activation_of(them.act), them.act
        if activation is not None:
            self.fused[f"{path}.act"] = f"{path}.fc1"
            act = nn.Identity()
        fc1 = self.linear(f"{path}.fc1", them.fc1, activation=activation or NONE)
        return PackedMlp(fc1, act, self.linear(f"{path}.fc2", them.fc2, scale))

    def lpi(self, path: str, source: Any, scale: Tensor | None) -> nn.Module:
        """Local patch interaction that adds itself."""
        if why := _why_no_lpi(source):
            self.kept[path] = why
            return Added(self.replaced(path, source), scale)
        activation = activation_of(source.act)
        factor, _ = factors(source.bn)
        if activation is None or not bool((factor.abs() > 0).all()):
            self.kept[path] = (
                "a channel of its BatchNorm is switched off"
                if activation
                else f"oneDNN has no {type(source.act).__name__}"
            )
            return Added(source, scale)
        self.folded[f"{path}.bn"] = f"{path}.conv2"
        self.fused[f"{path}.act"] = f"{path}.conv1"
        return PackedLPI.of(source, activation, scale)

    def scale(self, path: str, name: str | None, module: nn.Module) -> Tensor | None:
        """The layer scale of a branch, which goes into its last layer; None without one."""
        layer_scale = None if name is None else getattr(module, name)
        if type(layer_scale) is LayerScale:
            layer_scale = layer_scale.gamma
        if not isinstance(layer_scale, Tensor):
            return None
        self.folded[f"{path}.{name}"] = "the last layer of its branch"
        return layer_scale.detach()


Rule = Callable[["_Work", str, Any], "nn.Module | None"]


def _none(*_: Any) -> None:
    """What has no rule of its own."""


def _linear(work: _Work, path: str, module: nn.Linear) -> nn.Module | None:
    if any(module is head for head in work.heads):
        work.kept[path] = "it reads one row an image"
        return module
    return work.linear(path, module)


def _mlp(work: _Work, path: str, module: Mlp) -> nn.Module | None:
    return work.mlp(path, module, None) if is_plain_mlp(module) else None


def _attention(work: _Work, path: str, module: Attention) -> nn.Module | None:
    if module.reduction is not None:
        return _apart(work, path, module)
    return work.attention(path, module, None) if reads_its_buffer(module) else None


def _apart(work: _Work, path: str, module: Any) -> nn.Module | None:
    """Attention that multiplies by the weight of its projection itself."""
    if isinstance(module.qkv, nn.Linear):
        work.kept[below(path, "qkv")] = "its weight is read apart from it"
        work.replacements[id(module.qkv)] = (module.qkv, module.qkv)
    return None


def _only(module: Any, kinds: set[type], *names: str) -> bool:
    """Whether the parts that a block of ours leaves out or folds are nothing else."""
    return all(
        type(getattr(module, name)) in kinds
        for name in names
        if isinstance(getattr(module, name, None), nn.Module)
    )


def _block(block: BlockKind, work: _Work, path: str, module: Any) -> nn.Module | None:
    """A block of a host whose branches add themselves, where all of its parts are known."""
    first, second, third = block.attention, block.mlp, block.local
    if (
        not isinstance(getattr(module, first.module), (Attention, *first.classes))
        or not _only(module, LEFT_OUT, *block.drops)
        or not _only(module, LEFT_OUT | {LayerScale}, *block.scales)
    ):
        return None
    scale1, scale2 = (work.scale(path, branch.scale, module) for branch in (first, second))
    local: list[nn.Module | None] = []
    if third is not None:
        branch = getattr(module, third.module)
        if branch is not None:
            scale3 = work.scale(path, third.scale, module)
            branch = work.lpi(f"{path}.{third.module}", branch, scale3)
        local = [getattr(module, third.norm), branch]
    attention = work.attention(f"{path}.{first.module}", getattr(module, first.module), scale1)
    mlp = work.mlp(f"{path}.{second.module}", getattr(module, second.module), scale2)
    branches = {
        "attention": attention,
        "MLP": mlp,
        "local patch interaction": local[-1] if local else None,
    }
    adding = [
        name
        for name, branch in branches.items()
        if branch is not None and not isinstance(branch, Added)
    ]
    work.blocks[path] = (", ".join(adding) or "nothing") + " added to the residual in place"
    norm1, norm2 = getattr(module, first.norm), getattr(module, second.norm)
    return BLOCKS[block.call](norm1, attention, norm2, mlp, *local)


def _sequence(work: _Work, path: str, module: nn.Sequential) -> nn.Module | None:
    """Convolutions of a sequence with the BatchNorm and the activation that follow."""
    names = [name for name, child in module.named_children()]
    for before, name in pairwise(names):
        conv, norm = module.get_submodule(before), module.get_submodule(name)
        if folds(conv, norm):
            setattr(module, before, fuse_conv_bn_eval(conv, norm))  # type: ignore[type-var, arg-type]
            setattr(module, name, nn.Identity())
            work.folded[below(path, name)] = below(path, before)
    return None


def _stem(work: _Work, path: str, module: nn.Sequential) -> nn.Module | None:
    """As `_sequence`, then the activations behind convolutions, one level down too
    (XCiT's stem).
    """
    _sequence(work, path, module)
    items: list[tuple[nn.Sequential, str, str]] = []
    for name, child in module.named_children():
        if type(child) is nn.Sequential and not why_called(child):
            _sequence(work, below(path, name), child)
            items += [
                (child, inner, below(path, f"{name}.{inner}"))
                for inner, _ in child.named_children()
            ]
        else:
            items.append((module, name, below(path, name)))
    parts = [
        (owner, name, item_path)
        for owner, name, item_path in items
        if type(getattr(owner, name)) is not nn.Identity
    ]
    for (owner, name, conv_path), (after, act_name, act_path) in pairwise(parts):
        conv, act = getattr(owner, name), getattr(after, act_name)
        activation = activation_of(act)
        if fuses(conv) and activation is not None and not why_called(act):
            setattr(owner, name, FusedConv(conv, activation))
            setattr(after, act_name, nn.Identity())
            work.fused[act_path] = conv_path
    return None


def _projection(work: _Work, path: str, module: ConvProjection) -> nn.Module | None:
    if folds(module.conv, module.bn):
        module.conv, module.bn = fuse_conv_bn_eval(module.conv, module.bn), nn.Identity()  # type: ignore[assignment]
        work.folded[f"{path}.bn"] = f"{path}.conv"
    return None


def _patches(work: _Work, path: str, module: Any) -> nn.Module | None:
    conv = module.proj
    plain = weights_of(conv, kinds=CONV) is not None
    if (
        plain
        and conv.stride == conv.kernel_size
        and conv.groups == 1
        and conv.dilation == (1, 1)
        and conv.padding == (0, 0)
    ):
        module.proj = PatchProjection(conv, work.dtype)
        work.packed.append(f"{path}.proj")
    return None


def _positions(_: _Work, __: str, module: nn.Module) -> nn.Module | None:
    return KeptPositions(module)


HOST_BLOCKS = [block for host in HOSTS.values() for block in host.blocks]
EMBEDDINGS = frozenset(
    kind for host in HOSTS.values() if host.embedding for kind in host.embedding.classes
)
POSITIONS = frozenset(
    kind for host in HOSTS.values() if host.positions for kind in host.positions.classes
)
RULES: Mapping[type, Rule] = {
    nn.Linear: _linear,
    nn.Sequential: _stem,
    Mlp: _mlp,
    BeitAttention: _apart,
    EvaAttention: _apart,
    ConvProjection: _projection,
    **{kind: partial(_block, block) for block in HOST_BLOCKS for kind in block.accepted.classes},
    **dict.fromkeys(EMBEDDINGS, _patches),
    **dict.fromkeys(POSITIONS, _positions),
}
# modules whose parts are called no more once they are replaced: a hook of a part keeps the whole
WHOLE = {
    Mlp,
    *POSITIONS,
    *(kind for block in HOST_BLOCKS for kind in block.accepted.classes),
    *(kind for block in HOST_BLOCKS if block.local for kind in block.local.classes),
}


def reads_its_buffer(module: Attention) -> bool:
    """Whether an attention is no more than a projection, its operator and a projection."""
    own = type(module).forward is Attention.forward and module.reads_the_buffer
    plain = own and module.gate is None and is_nothing(module.norm) and not watched(module)
    return plain and all(weights_of(layer) is not None for layer in (module.qkv, module.proj))


def is_plain_mlp(module: nn.Module) -> bool:
    """Whether it is two linear layers and an activation."""
    if type(module) is not Mlp or watched(module):
        return False
    plain = all(weights_of(layer) is not None for layer in (module.fc1, module.fc2))
    return plain and type(module.norm) is nn.Identity and _only(module, LEFT_OUT, "drop1", "drop2")


def fuses(conv: nn.Module) -> bool:
    """Whether oneDNN can compute a convolution together with what follows."""
    return (
        weights_of(conv, kinds=CONV) is not None
        and conv.padding_mode == "zeros"
        and not isinstance(conv.padding, str)
    )


def below(path: str, name: str) -> str:
    """The path of a part."""
    return f"{path}.{name}" if path else name


def folds(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether BatchNorm in evaluation is a factor and a shift that a convolution before it can
    take.
    """
    plain = weights_of(conv, kinds=CONV) is not None and not why_not_plain(norm, kinds=NORM)
    return plain and bool(norm.track_running_stats)


def why_read_not(module: nn.Module) -> str:
    """Why a module is called as it is: it was changed, or it is a layer whose weight is none that
    lies in rows.
    """
    if type(module) in {nn.Linear, nn.Conv2d}:
        return why_not_plain(module, kinds={type(module)})
    return why_called(module) or ("" if _is_float(module) else "its weight is quantized")


def _is_float(module: nn.Module) -> bool:
    """Whether a layer of torch's computes with floating-point weights: those of its quantized ones
    are packed.
    """
    return not hasattr(module, "_packed_params")


def _why_no_lpi(lpi: Any) -> str:
    """Why local patch interaction is called as it is."""
    if watched(lpi):
        return "a part of it has hooks"
    convs = (why_not_plain(conv, kinds=CONV) for conv in (lpi.conv1, lpi.conv2))
    return next((why for why in convs if why), "") or why_not_plain(lpi.bn, kinds=NORM)


def _heads(model: Any) -> Iterator[nn.Module]:
    """The layers behind the pooling."""
    for name in ("get_classifier",):
        if callable(getter := getattr(model, name, None)) and isinstance(
            head := getter(), nn.Module
        ):
            yield from head.modules()


def _passes(module: nn.Module) -> bool:
    """Whether a module's hooks still see it called: it is kept, and only its parts are replaced."""
    return type(module) in {nn.Sequential, ConvProjection, *EMBEDDINGS}
