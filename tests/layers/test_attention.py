"""The attention module: timm's constructor, weights and forward, and an error for what an operator
cannot honour.
"""

import copy
import pickle
from typing import Any

import pytest
import timm
import torch
from timm.layers import Attention as TimmAttention
from torch import nn

import softless
from softless import OPERATORS, UsageError
from softless.layers import CLASSES, Attention, operator_class
from tests.ops.draw import SMALL, assert_near, error, every

X = torch.randn(2, 30, 24, generator=torch.Generator().manual_seed(1))


def told(module: Attention) -> Attention:
    """What a host tells: 30 tokens on a grid of 5 x 6."""
    module.set_tokens(30)
    module.set_grid((0, 5, 6))
    return module


def short(op: Any) -> dict[str, Any]:
    """Options that leave an operator something to approximate among 30 tokens."""
    return {name: value for name, value in SMALL.items() if name in op.options}


def lively(module: Attention) -> Attention:
    """Weights on which the operator's part of the output is not small."""
    with torch.no_grad():
        module.proj.weight.mul_(50 * X.shape[1])
        if module.proj.bias is not None:
            module.proj.bias.normal_()
    return module


@pytest.mark.parametrize(
    "extras",
    [
        {},
        {"qk_norm": True},
        {"scale_norm": True},
        {"gated": True},
        {"attn_head_dim": 10, "dim_out": 12},
    ],
    ids=str,
)
def test_softmax_is_timms(extras: dict[str, Any]) -> None:
    """Same constructor, same weight names, same numbers as the module whose place it takes."""
    arguments = {"num_heads": 4, "qkv_bias": True, "norm_layer": nn.LayerNorm, **extras}
    theirs, ours = TimmAttention(24, **arguments), Attention(24, op="softmax", **arguments)
    assert ours.load_state_dict(theirs.state_dict()).missing_keys == []
    assert_near(ours(X), theirs(X), 1e-6)
    ragged = torch.rand(2, 1, 30, 30) < 0.7
    ragged[..., 0] = True
    for mask in (ragged, torch.randn(2, 1, 30, 30)):
        assert_near(ours(X, attn_mask=mask), theirs(X, attn_mask=mask), 1e-5)
    assert_near(ours(X, is_causal=True), theirs(X, is_causal=True), 1e-5)


@every
def test_a_value_of_a_foreign_type_is_refused_by_name(op: Any) -> None:
    """A list is in no set of words, and a tensor of two has no truth: neither may become an error
    of Python's.
    """
    foreign: tuple[Any, ...] = (["a"], {"a": 1}, {1}, torch.ones(2), object())
    for name in op.options:
        for value in foreign:
            with pytest.raises(UsageError, match=rf"operator '{op.name}': {name}="):
                softless.attend(X[:, None], X[:, None], X[:, None], op=op.name, **{name: value})


@every
def test_one_class_per_operator(op: Any) -> None:
    cls = operator_class(op)
    assert cls is getattr(softless, op.title) is CLASSES[op.title]
    assert issubclass(cls, Attention)
    module = told(cls(24, num_heads=4, qkv_bias=True))
    assert module.op is op
    assert set(module.learned.claims if hasattr(module, "learned") else ()) == set(
        op.own_tensors({})
    )
    assert {name.split(".")[0] for name in module.state_dict()} >= {
        "qv" if op.wants("tied_qk", {}) else "qkv",
        "proj",
    }
    assert pickle.loads(pickle.dumps(module))(X).equal(module(X))
    assert copy.deepcopy(module)(X).equal(module(X))
    with pytest.raises(UsageError, match=r"asks for another"):
        cls(24, num_heads=4, op="softmax" if op.name != "softmax" else "sima")


def test_options_travel_with_the_class() -> None:
    cls = softless.SimA.with_options(token_scale="tokens")
    assert issubclass(cls, softless.SimA)
    module = cls(24, num_heads=4)
    plain = softless.SimA(24, num_heads=4)
    plain.load_state_dict(module.state_dict())
    bias = module.proj.bias
    assert_near(module(X) - bias, (plain(X) - bias) * 30, 1e-4)
    assert pickle.loads(pickle.dumps(module))(X).equal(module(X))
    with pytest.raises(UsageError, match="token_scale='token' is not"):
        softless.SimA.with_options(token_scale="token")
    with pytest.raises(UsageError, match="named 'scale'"):
        softless.SimA(24, scale=2.0)


@every
@pytest.mark.parametrize("kind", ["mask", "boolean attn_mask", "additive attn_mask", "rows"])
def test_a_mask_is_removal(op: Any, kind: str) -> None:
    """The module's own mask, and timm's boolean and additive masks where they are the same for
    every query.
    """
    module = lively(told(Attention(24, 4, op=op, qkv_bias=True, **short(op))))
    keep = (torch.rand(30) < 0.6).index_fill(0, torch.tensor([0]), value=True)
    tokens = keep.expand(2, -1)
    bias = torch.zeros(2, 1, 1, 30).masked_fill(~tokens[:, None, None], float("-inf"))
    call: dict[str, Any] = {
        "mask": {"mask": tokens},
        "boolean attn_mask": {"attn_mask": tokens[:, None, None]},
        "additive attn_mask": {"attn_mask": bias},
        "rows": {"attn_mask": tokens[:, None].expand(-1, 30, -1)[0]},
    }[kind]
    dirty = X.masked_fill(~keep[:, None], 2.0)
    # on a grid the others keep their places, and what the masked ones hold must not matter
    expected = module(X, mask=tokens)[:, keep] if module.looks_at_the_grid else module(X[:, keep])
    assert_near(
        module(dirty, **call)[:, keep], expected, 2 * op.backends[0].tolerance[torch.float32]
    )
    assert error(module(dirty)[:, keep], expected) > 1e-2  # without the mask: the test can see


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            {"attn_mask": torch.ones(30, 30, dtype=torch.bool).tril()},
            r"differs between queries or heads; .*pass mask of shape \(B, N\) = \(2, 30\)",
        ),
        (
            {"attn_mask": torch.linspace(-1, 0, 30).expand(1, 1, 1, 30)},
            "mean nothing without softmax",
        ),
        ({"attn_mask": torch.ones(2, 1, 1, 29, dtype=torch.bool)}, "does not broadcast"),
        ({"is_causal": True}, "cannot be causal"),
        ({"mask": torch.ones(2, 29, dtype=torch.bool)}, r"torch.bool of shape \(2, 30\)"),
    ],
)
def test_masks_it_cannot_honour(call: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Attention(24, 4, op="sima")(X, **call)


@every
def test_attn_drop(op: Any) -> None:
    if not op.drops_weights:
        with pytest.raises(
            UsageError, match=r"no attention weights to drop: attn_drop=0.1 must be 0"
        ):
            Attention(24, 4, op=op, attn_drop=0.1)
        return
    module = lively(Attention(24, 4, op=op, attn_drop=0.5))
    assert not module.train()(X).equal(module(X))
    assert module.eval()(X).equal(module(X))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 24, "num_heads": 5}, "dim=24 does not divide into num_heads=5"),
        ({"dim": 24, "num_heads": 4, "qk_norm": True}, "need a norm_layer"),
        ({"dim": 24, "num_heads": 4, "op": "smia"}, "Did you mean 'sima'"),
    ],
)
def test_constructor_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Attention(**arguments)


def test_float16_is_carried_past_the_projection() -> None:
    """At 65,536 tokens float16 cannot hold the operator's output; the module's own output keeps it
    all the same.
    """
    x = torch.randn(1, 65536, 16)
    module = Attention(16, 1, op="sima", proj_bias=False).eval()
    # a float32 residual stream receives what float16 could not hold
    with torch.autocast("cpu", dtype=torch.float16):
        carried = module(x)
        q, k, v = module.project(x)
        rounded = module.proj(softless.attend(q, k, v, out_dtype=torch.float32).half()[:, 0])
    exact = copy.deepcopy(module).double()(x.double())
    assert carried.dtype == torch.float32
    # rounding the operator's output alone costs more
    assert error(carried, exact) < min(1.5e-3, error(rounded, exact) / 2)
    module = module.half()
    with torch.no_grad():
        module.proj.weight.mul_(1e4)  # large enough for a float16 module's own output
    assert_near(module(x.half()), copy.deepcopy(module).double()(x.half().double()), 3e-3)


def test_as_attn_layer_of_timm() -> None:
    model = timm.create_model(
        "deit_tiny_patch16_224", attn_layer=softless.SimA, img_size=32, depth=2, num_classes=5
    )
    assert [module.op for module in model.modules() if isinstance(module, Attention)] == [
        OPERATORS["sima"]
    ] * 2
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    softmax = timm.create_model("deit_tiny_patch16_224", img_size=32, depth=2, num_classes=5)
    assert model.load_state_dict(softmax.state_dict()).unexpected_keys == []
