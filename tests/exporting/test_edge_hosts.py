"""Edge forms of XCiT, CvT and the SOFT pyramid: the answers of the plain model, what a graph holds
and does not hold, and what has no form.
"""

import collections
import copy
from typing import Any

import pytest
import timm
import torch
from timm.models.cait import ClassAttn
from torch import Tensor, nn

import softless
from softless import OPERATORS
from softless.attention.inverse import by_newton
from softless.errors import UsageError
from softless.exporting.edge import edge
from softless.exporting.forms.convolutions import local_form, stem_form
from softless.exporting.forms.parts import NoForm
from softless.exporting.graph import Graph, quiet, recorded
from softless.layers import LPI, Attention
from softless.layers.companions import HeadConv
from softless.models.hosts import HOSTS
from softless.models.pyramid import PreNormBlock
from softless.models.variants import ENTRIES
from tests.models.kinds import FEW_BLOCKS, SMALLEST
from tests.models.lively import lively, zeroed

create_model: Any = softless.create_model
BAR = 1e-5  # of the largest logit, in float32
SIZE = (64, 96)
NAMES = [
    name
    for name, entry in ENTRIES.items()
    if entry.alias_of is None and entry.variant.host != "vit"
]
XCIT, CVT, SOFT = "xcit_tiny_12_p16_224", "cvt_13_224", "soft_pyramid_tiny_224"
OF_HOST = {"xcit": XCIT, "cvt": CVT, "pyramid": SOFT}
EXP_FREE = {"Exp", "Softmax", "Erf", "Gelu", "Tanh", "Sigmoid", "Sin", "Cos", "Pow", "Sqrt"}
DEPENDS_ON_SIZE = {"Resize", "Shape", "Range", "Expand", "BatchNormalization", "Identity"}


def image(height: int = 64, width: int = 96, number: int = 1, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(number, channels, height, width, generator=generator)


def living(model: Any, x: Tensor) -> Any:
    """`lively`, with BatchNorms of every scale, and SOFT's bottleneck tokens near enough to tokens
    for kernels that count: at its weights of one they are of the order of 1e-13.
    """
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            if name.endswith("learned.norm_weight"):
                tensor.copy_(0.5 + 0.1 * torch.rand(tensor.shape, generator=generator))
            elif name.endswith("learned.norm_bias"):
                tensor.normal_(std=0.1, generator=generator)
            elif name.endswith("running_var"):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.copy_(torch.randn(module.weight.shape, generator=generator))
    return lively(model, x)


def without_kernels(model: Any) -> Any:
    """The control of SOFT: bottleneck tokens so far off that no token sees them."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("learned.norm_bias"):
                parameter.add_(10)
    return model


def small(host: str, op: str, x: Tensor | None = None, **more: Any) -> Any:
    """The smallest model with every kind of block."""
    torch.manual_seed(0)
    if OPERATORS[op].wants("tokens", OPERATORS[op].filled({})):
        more = {"img_size": SIZE, **more}
    arguments = {**SMALLEST[host], "num_classes": 7, **more}
    return living(create_model(OF_HOST[host], op=op, **arguments), image() if x is None else x)


def distance(answer: Tensor, expected: Tensor) -> float:
    """Of the largest logit."""
    return ((answer - expected).abs().max() / expected.abs().max()).item()


@torch.no_grad()
def check(model: Any, x: Tensor, batch: int | None = None, bar: float = BAR) -> None:
    """The edge form answers as the plain model, and that of a model without attention does not."""
    form, size = edge(model, x.shape[-2:], "edge", batch=batch), tuple(x.shape[-2:])
    with by_newton(form.setting.steps):
        expected = model(x)
    assert form(x).shape == expected.shape
    assert distance(form(x), expected) <= bar
    control = edge(zeroed(copy.deepcopy(model)), size, "edge", batch=batch)
    assert distance(control(x), expected) > 0.01
    if any("inverse" in module.options for module in attentions(model)):
        control = edge(without_kernels(copy.deepcopy(model)), size, "edge", batch=batch)
        assert distance(control(x), expected) > 0.01


def attentions(model: nn.Module) -> list[Attention]:
    return [module for module in model.modules() if isinstance(module, Attention)]


@pytest.mark.parametrize("name", NAMES)
def test_every_registered_model_of_few_blocks(name: str) -> None:
    torch.manual_seed(0)
    few = FEW_BLOCKS[ENTRIES[name].variant.host]
    model = living(create_model(name, num_classes=10, **few), image(number=2))
    check(model, image(number=2))


@pytest.mark.parametrize("op", OPERATORS)
@pytest.mark.parametrize("host", OF_HOST)
def test_every_operator_where_it_has_a_place(host: str, op: str) -> None:
    if host == "cvt" and not OPERATORS[op].cross:
        pytest.skip("has no place in CvT")
    model = small(host, op)
    check(model, image())
    check(model, image(), batch=1)


XCIT_OPTIONS: list[dict[str, Any]] = [
    {"global_pool": "avg"},
    {"global_pool": ""},
    {"num_classes": 0},
    {"num_classes": 0, "global_pool": "avg"},
    {"num_classes": 0, "global_pool": ""},
    {"token_scale": "tokens"},
    {"token_scale": 49},
    {"order": "tokens"},
    {"lpi": False},
    {"in_chans": 1},
    {"patch_size": 8},
    {"cls_attn_layers": 2},
    {"cls_attn_layers": 2, "tokens_norm": True},
    {"cls_attn_layers": 2, "tokens_norm": True, "global_pool": "avg"},
    {"cls_attn_layers": 2, "tokens_norm": True, "global_pool": ""},
    {"use_pos_embed": False},
    {"gated": "silu"},
    {"v_conv": 3, "v_conv_filters": "channel"},
    {"qkv_bias": False},
    {"act": "silu"},
    {"op": "mala", "feature": "relu"},
    {"op": "linformer", "reduction": "grid"},
    {"op": "soft", "parity": True},
]
CVT_OPTIONS: list[dict[str, Any]] = [
    {"global_pool": "avg"},
    {"global_pool": ""},
    {"num_classes": 0},
    {"num_classes": 0, "global_pool": ""},
    {"token_scale": "tokens"},
    {"token_scale": 49},
    {"in_chans": 1},
    {"gated": "linear"},
    {"qkv_bias": False},
    {"act": "relu"},
    {"num_heads": 1},
]
SOFT_OPTIONS: list[dict[str, Any]] = [
    {"global_pool": "avg"},
    {"global_pool": ""},
    {"num_classes": 0},
    {"num_classes": 0, "global_pool": "avg"},
    {"token_scale": "tokens"},
    {"in_chans": 1},
    {"gated": "linear"},
    {"v_conv": 0},
    {"v_conv": 3},
    {"act": "relu"},
    *({"last_stage": op} for op in ("sima", "seqnorm", "xca", "soft")),
    {"op": "soft", "ratio": 2},
    {"op": "soft", "sampling": "pool"},
    {"op": "soft", "sampling": "random"},
    {"op": "softnorm", "ratio": 4, "sampling": "strided"},
    {"op": "linformer", "reduction": "grid"},
    {"op": "linformer", "ratio": 2},
]
OPTIONS = [
    pytest.param(host, options, id=f"{host}-{'-'.join(map(str, options.values()))}")
    for host, rows in {"xcit": XCIT_OPTIONS, "cvt": CVT_OPTIONS, "pyramid": SOFT_OPTIONS}.items()
    for options in rows
]


@pytest.mark.parametrize(("host", "options"), OPTIONS)
def test_options(host: str, options: dict[str, Any]) -> None:
    """In float64, where SOFT's matrices are far from what rounding decides."""
    x = image(number=3, channels=options.get("in_chans", 3))
    model = small(host, **{"op": "sima", "x": x, **options})
    check(model.double(), x.double(), bar=1e-11)


@pytest.mark.parametrize(("height", "width"), [(96, 64), (32, 160), (64, 64)])
@pytest.mark.parametrize("host", OF_HOST)
def test_other_sizes(host: str, height: int, width: int) -> None:
    x = image(height, width, number=2)
    if host != "pyramid":
        check(small(host, "sima", x), x)
        return
    check(small(host, "sima", x, last_stage="sima"), x)
    check(small(host, "soft", x, ratio=1).double(), x.double(), bar=1e-11)
