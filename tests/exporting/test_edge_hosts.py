"""Edge forms of XCiT, CvT and the SOFT pyramid: the answers of the plain model, what a graph holds
and does not hold, and what has no form.
"""

import copy
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.models.cait import ClassAttn
from timm.models.xcit import XCA
from torch import Tensor, nn

import softless
from softless import OPERATORS
from softless.attention.inverse import by_newton
from softless.errors import UsageError
from softless.exporting.edge import edge
from softless.exporting.formats.table import FORMATS
from softless.exporting.forms.convolutions import local_form, stem_form
from softless.exporting.forms.parts import NoForm
from softless.exporting.graph import Graph, recorded
from softless.layers import LPI, Attention
from softless.layers.companions import HeadConv
from softless.models.pyramid import PreNormBlock
from softless.models.variants import ENTRIES
from tests.exporting.alive import alive
from tests.models.kinds import FEW_BLOCKS, SMALLEST, kinds_of_entries
from tests.models.lively import drawn, zeroed

create_model: Any = softless.create_model
BAR = 1e-5  # of the largest logit, in float32
SIZE = (64, 96)
NAMES = [
    name
    for name, entry in ENTRIES.items()
    if entry.alias_of is None and entry.variant.host != "vit"
]
FIRST_OF_KIND = {name: name in [entry.name for entry in kinds_of_entries()] for name in NAMES}
XCIT, CVT, SOFT = "xcit_tiny_12_p16_224", "cvt_13_224", "soft_pyramid_tiny_224"
OF_HOST = {"xcit": XCIT, "cvt": CVT, "pyramid": SOFT}
ONNX = FORMATS["onnx"]
TRANSCENDENTAL = {"Exp", "Softmax", "Erf", "Gelu", "Tanh", "Sigmoid", "Sin", "Cos", "Pow", "Sqrt"}
# what is computed of the size of an image, or could have been folded
OF_SIZE = {"Resize", "Shape", "Range", "Expand", "Gather", "BatchNormalization", "Cast", "Where"}


def image(height: int = 64, width: int = 96, number: int = 1, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(number, channels, height, width, generator=generator)


def living(model: Any, x: Tensor) -> Any:
    """`alive`, with BatchNorms of every factor."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_var.copy_(0.5 + torch.rand(len(module.weight), generator=generator))  # type: ignore[union-attr]
                module.weight.normal_(generator=generator)
    return alive(model, x)


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


# What is in a graph


def exp_free(host: str) -> Any:
    """A small model of SimA with ReLU, whose last stage is SimA too."""
    more: dict[str, Any] = {"last_stage": "sima"} if host == "pyramid" else {}
    return small(host, "sima", act="relu", **more)


@pytest.mark.parametrize(("host", "number"), [("xcit", 1), ("cvt", 3), ("pyramid", 1)])
def test_an_onnx_file_holds_products_and_sums_alone(host: str, number: int, tmp_path: Path) -> None:
    model, x = exp_free(host), image(number=number)
    batch, path = (1 if number == 1 else None), tmp_path / "model.onnx"
    ONNX.write(Graph(edge(model, SIZE, "edge", batch=batch), x), path, None)
    assert ONNX.open is not None
    assert distance(ONNX.open(path)(x)[0], model(x)) <= BAR
    shape = ONNX.shape(path)
    assert not (TRANSCENDENTAL | OF_SIZE) & set(shape.nodes), shape.nodes
    assert shape.rank is not None
    assert shape.rank <= 4


@pytest.mark.parametrize("host", OF_HOST)
def test_a_recorded_program_has_four_dimensions_at_most_and_no_symbols(host: str) -> None:
    """The plain model's has five, and asks the image for its size."""
    model, x = exp_free(host), image()
    ranks, kinds = {}, {}
    for form in ("edge", "plain"):
        program = recorded(Graph(edge(model, SIZE, form), x))
        values = [node.meta.get("val") for node in program.graph.nodes]
        tensors = [value for value in values if isinstance(value, Tensor)]
        assert all(isinstance(side, int) for value in tensors for side in value.shape)
        ranks[form] = max(value.ndim for value in tensors)
        kinds[form] = {str(node.target) for node in program.graph.nodes}
        assert distance(program.module()(x), model(x)) <= BAR
    assert ranks == {"edge": 4, "plain": 5}
    assert "aten.batch_norm.default" in kinds["plain"] - kinds["edge"]
    assert not any(name.split(".")[1].endswith("_") for name in kinds["edge"] if "aten." in name)


def test_positions_are_a_constant() -> None:
    """XCiT's plain graph computes sines of its grid, the edge form's holds none."""
    model = exp_free("xcit")
    sines = {"aten.sin.default", "aten.cos.default", "aten.pow.Scalar"}
    for form, holds in (("plain", sines), ("edge", set())):
        program = recorded(Graph(edge(model, SIZE, form), image()))
        assert sines & {str(node.target) for node in program.graph.nodes} == holds


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in NAMES if FIRST_OF_KIND[name]])
def test_kinds_of_registered_models_as_files(name: str, tmp_path: Path) -> None:
    as_files(name, tmp_path)


@pytest.mark.soak
@pytest.mark.parametrize("name", [name for name in NAMES if not FIRST_OF_KIND[name]])
def test_every_other_registered_model_as_files(name: str, tmp_path: Path) -> None:
    as_files(name, tmp_path)


def as_files(name: str, folder: Path) -> None:
    """A registered model of few blocks as .pt2 and .onnx, with its control."""
    torch.manual_seed(0)
    x = image()
    model = living(create_model(name, num_classes=10, **FEW_BLOCKS[ENTRIES[name].variant.host]), x)
    expected = by_fixed_steps(model, x)
    for kind in (FORMATS["pt2"], ONNX):
        for number, source in enumerate((model, zeroed(copy.deepcopy(model)))):
            path = folder / f"{number}{kind.ending}"
            kind.write(Graph(edge(source, SIZE, "edge", batch=1), x), path, None)
            assert kind.open is not None
            assert (distance(kind.open(path)(x)[0], expected) <= BAR) == (number == 0)


@pytest.mark.export
@pytest.mark.filterwarnings("ignore")  # executorch's own, at its import and in its passes
@pytest.mark.parametrize("name", ["sima_" + XCIT, "sima_" + CVT, "soft_tiny_224"])
def test_executorch_runs_it(name: str, tmp_path: Path) -> None:
    """The SOFT pyramid's GELU by a tanh too, which XNNPACK takes for that by erf."""
    pytest.importorskip("executorch.runtime", reason="executorch is no part of dev")
    kind, path = FORMATS["executorch"], tmp_path / "model.pte"
    torch.manual_seed(0)
    x = image()
    model = living(create_model(name, num_classes=10, **FEW_BLOCKS[ENTRIES[name].variant.host]), x)
    kind.write(Graph(edge(model, SIZE, "edge", batch=1), x), path, None)
    assert kind.open is not None
    answer, expected = kind.open(path)(x)[0], by_fixed_steps(model, x)
    assert distance(answer, expected) <= BAR
    assert distance(answer, edge(zeroed(model), SIZE, "edge", batch=1)(x)) > 0.01


# What is folded


def test_a_batch_norm_that_switches_channels_off() -> None:
    """What such a channel hands on is its shift, and zeros around the image are no part of it."""
    torch.manual_seed(0)
    for act in (nn.GELU, nn.Sigmoid):  # the second is not zero at zero
        lpi = LPI(6, act).eval()
        norm, scale = nn.LayerNorm(6), torch.rand(6)
        with torch.no_grad():
            for parameter in (*lpi.parameters(), *norm.parameters()):
                parameter.normal_()
            lpi.bn.running_mean.normal_()  # type: ignore[union-attr]
            lpi.bn.weight[1], lpi.bn.weight[4], lpi.bn.weight[5] = 0.0, 1e-20, 1e-44
            x = torch.randn(2, 15, 6)
            form = local_form(lpi, norm, scale, (3, 5))
            expected = scale * lpi(norm(x), 3, 5)
            assert distance(form(x), expected) <= 1e-6
            lpi.bn.bias.zero_()
            assert distance(form(x), scale * lpi(norm(x), 3, 5)) > 0.01


def test_a_stem_is_folded_whatever_lies_in_it() -> None:
    torch.manual_seed(0)
    stem = nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.Sequential(nn.ReLU(), nn.Identity()),
        nn.Conv2d(4, 6, 1),
        nn.Hardswish(),
        nn.Sequential(
            nn.Conv2d(6, 2, 3, padding="same", padding_mode="reflect"), nn.BatchNorm2d(2)
        ),
    ).eval()
    for module in stem.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
    x = image(12, 16, number=2, channels=1)
    form = stem_form(stem)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in form.modules())
    assert distance(form(x), stem(x)) <= 1e-6
    with pytest.raises(NoForm, match=r"1: no convolution stands before it"):
        stem_form(nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)))
    with pytest.raises(NoForm, match="keeps no running statistics"):
        stem_form(nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)))


@pytest.mark.parametrize("host", ["xcit", "cvt"])
def test_norms_of_other_kinds(host: str) -> None:
    """Another norm of single tokens is kept whole; one that looks at several has no form, since
    forms take some tokens apart.
    """
    check(small(host, "sima", norm_layer=partial(nn.RMSNorm, eps=1e-6)), image())
    model = small(host, "sima")
    model.norm = nn.LayerNorm((25, 48))
    assert_plain(model, "norm: it is a LayerNorm, which may look at several tokens")


def test_a_class_token_beside_sums_over_all_tokens() -> None:
    """XCiT's class attention divides by norms over every token, its own included."""
    model = small("xcit", "sima", cls_attn_layers=2, tokens_norm=True)
    form = edge(model, SIZE, "edge")
    x = torch.cat([image(), image(number=2)[1:]])
    assert distance(form(x), model(x)) <= BAR
    assert distance(form(x)[:1], form(x[:1])) <= BAR  # and hang on no image beside it


# Models of other makes


def test_timms_own_xcit() -> None:
    """With its XCA and its class attention, and with ours in their places."""
    torch.manual_seed(0)
    model: Any = timm.create_model("xcit_nano_12_p16_224", depth=2, num_classes=7)
    x = image(number=2)
    model = drawn(model)
    with torch.no_grad():
        for block in model.blocks:
            block.attn.temperature.uniform_(0.5, 2)
        expected = model(x)
        for batch in (None, 1):
            form = edge(model, SIZE, "edge", batch=batch)
            assert distance(torch.cat([form(one[None]) for one in x]), expected) <= BAR
        for module in model.modules():
            if isinstance(module, XCA | ClassAttn):
                module.proj.weight.zero_()
        assert distance(edge(model, SIZE, "edge")(x), expected) > 0.01
    other: Any = timm.create_model("xcit_nano_12_p16_224", depth=2, num_classes=7)
    softless.swap(other, op="sima")
    check(living(other, x), x)


def test_a_model_of_maps_is_plain() -> None:
    model: Any = create_model(
        XCIT, op="sima", features_only=True, depth=4, out_indices=(1, 3)
    ).eval()
    form = edge(model, SIZE)
    assert (form.form, form.why) == ("plain", "there is no edge form of a FeatureGetterNet")
    with torch.no_grad():
        for answer, expected in zip(form(image()), model(image()), strict=True):
            assert torch.equal(answer, expected)


# What has no form


def assert_plain(model: nn.Module, why: str) -> None:
    """It is answered as it is, and says why."""
    form = edge(model, SIZE)
    assert form.form == "plain"
    assert why in form.why
    with pytest.raises(UsageError, match=re.escape(why)):
        edge(model, SIZE, "edge")


@pytest.mark.parametrize("host", OF_HOST)
def test_a_hook_on_any_part_that_is_called(host: str) -> None:
    """Its owner waits for calls that a form would not make."""
    model: Any = create_model(OF_HOST[host], op="sima", **SMALLEST[host]).eval()
    called: set[str] = set()
    for path, module in model.named_modules():
        hook = module.register_forward_hook(lambda *_, path=path: called.add(path))
        module.seen = hook
    model(image())
    for module in model.modules():
        module.seen.remove()
    kinds = {
        (type(module), path.rsplit(".", 1)[-1]): path for path, module in model.named_modules()
    }
    assert len(called & set(kinds.values())) > 15
    for path in called & set(kinds.values()):
        module = model.get_submodule(path)
        if module is not model:
            hook = module.register_forward_pre_hook(lambda *_: None)
            form = edge(model, SIZE)
            assert (form.form, form.why.startswith(path)) == ("plain", True), path
            hook.remove()
    assert edge(model, SIZE).form == "edge"


class Scaled(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


class OwnConv(HeadConv):
    """A convolution of v that is another one."""


class OwnBlock(PreNormBlock):
    """A block of one's own."""


REPLACED: list[tuple[str, str, Callable[[Any], nn.Module], str]] = [
    ("xcit", "head", nn.Sequential, "head: it is a Sequential"),
    ("xcit", "norm", lambda _: nn.GroupNorm(1, 25), "norm: it is a GroupNorm"),
    ("xcit", "pos_embed", nn.Sequential, "pos_embed: it is a Sequential"),
    ("xcit", "patch_embed", nn.Sequential, "patch_embed: it is a Sequential"),
    ("xcit", "blocks.0", nn.Sequential, "blocks.0: it is a Sequential"),
    ("xcit", "blocks.1.attn", lambda _: nn.Identity(), "blocks.1.attn: it is a Identity"),
    ("xcit", "blocks.1.attn.qkv", lambda m: cast(m, Scaled), "blocks.1.attn.qkv: it is a Scaled"),
    ("xcit", "blocks.0.local_mp", nn.Sequential, "blocks.0.local_mp: it is a Sequential"),
    ("xcit", "blocks.0.local_mp.bn", lambda _: nn.GroupNorm(1, 48), "local_mp.bn: it is a"),
    ("xcit", "blocks.0.drop_path", nn.Sequential, "blocks.0.drop_path: it is a Sequential"),
    ("xcit", "blocks.0.mlp", nn.Sequential, "blocks.0.mlp: it is a Sequential"),
    ("xcit", "blocks.0.mlp.fc2", lambda m: cast(m, Scaled), "blocks.0.mlp.fc2: it is a Scaled"),
    ("xcit", "cls_attn_blocks.0", nn.Sequential, "cls_attn_blocks.0: it is a Sequential"),
    ("xcit", "cls_attn_blocks.0.attn", nn.Sequential, "cls_attn_blocks.0.attn: it is a Seq"),
    ("xcit", "cls_attn_blocks.0.norm1", lambda _: nn.BatchNorm1d(25), "norm1: it is a BatchNorm1d"),
    ("cvt", "stage0", nn.Sequential, "stage0: it is a Sequential"),
    ("cvt", "stage0.patch_embed", nn.Flatten, "stage0.patch_embed: it is a Flatten"),
    ("cvt", "stage1.blocks.0", lambda m: cast(m, OwnBlock), "stage1.blocks.0: it is a OwnBlock"),
    ("cvt", "stage2.blocks.1.attn.conv_proj_k", nn.Sequential, "conv_proj_k: it is a Sequential"),
    ("cvt", "stage2.blocks.1.attn.proj_v", lambda m: cast(m, Scaled), "attn.proj_v: it is a Sc"),
    ("cvt", "stage0.patch_embed.norm", lambda _: nn.GroupNorm(1, 16), "norm: it is a GroupNorm"),
    ("pyramid", "stage0.blocks.0.attn.v_conv", lambda m: cast(m, OwnConv), "v_conv: it is a OwnC"),
    (
        "pyramid",
        "stage1.patch_embed.1",
        lambda m: cast(m, OwnNorm),
        "patch_embed.0: it is a OwnNorm",
    ),
    ("pyramid", "head_drop", nn.Sequential, "head_drop: it is a Sequential"),
]


class OwnNorm(nn.BatchNorm2d):
    """A norm of one's own."""


def cast(module: nn.Module, kind: type[nn.Module]) -> nn.Module:
    """A copy of a module as one of a derived class."""
    module = copy.deepcopy(module)
    module.__class__ = kind
    return module


@pytest.mark.parametrize(
    ("host", "path", "replaced", "why"), REPLACED, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_a_replaced_part(
    host: str, path: str, replaced: Callable[[Any], nn.Module], why: str
) -> None:
    model: Any = create_model(OF_HOST[host], op="sima", **SMALLEST[host]).eval()
    model.set_submodule(path, replaced(model.get_submodule(path)))
    assert_plain(model, why)


@pytest.mark.parametrize("host", OF_HOST)
def test_a_class_of_ones_own(host: str) -> None:
    """Its forward may be another one."""
    model: Any = create_model(OF_HOST[host], op="sima", **SMALLEST[host]).eval()
    model.__class__ = type("Mine", (type(model),), {})
    assert_plain(model, "Mine has a forward of its own")
    model.__class__ = type(model).__bases__[0]
    model.forward_head = lambda x: x
    assert_plain(model, "its forward_head was replaced")


@pytest.mark.parametrize("host", OF_HOST)
def test_what_a_model_refuses_its_form_refuses(host: str) -> None:
    model: Any = create_model(OF_HOST[host], op="sima", **SMALLEST[host]).eval()
    with pytest.raises(UsageError, match="height and width must be multiples of"):
        edge(model, (64, 100))
    form = edge(model, SIZE)
    with pytest.raises(UsageError, match="this form takes images of 64 x 96"):
        form(image(96, 64))
    assert model.training is False


def test_the_model_is_left_alone() -> None:
    for host in OF_HOST:
        model = small(host, "sima")
        before = copy.deepcopy(model.state_dict())
        form = edge(model, SIZE, "edge")
        with torch.no_grad():
            for tensor in [*form.parameters(), *form.buffers()]:
                tensor.zero_()
        assert all(torch.equal(before[name], x) for name, x in model.state_dict().items())


# What the checks above share


def by_fixed_steps(model: nn.Module, x: Tensor) -> Tensor:
    """The plain model's answer, SOFT's inverse by as many steps as an edge form takes."""
    with torch.no_grad(), by_newton():
        answer: Tensor = model(x)
    return answer
