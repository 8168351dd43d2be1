"""The weights of a host in the same host with another attention: what `swap` makes of them."""

import copy
from typing import Any

import pytest
import timm
import torch
from torch import nn

import softless
from softless.convert.carry import carried
from softless.convert.swap import swap
from softless.errors import UsageError

HOSTS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_tiny_patch16_224", {"img_size": (16, 24), "patch_size": 8, "reg_tokens": 2}),
    "xcit": ("xcit_tiny_12_p8_224", {"img_size": (16, 24)}),
}
SIZES: dict[str, Any] = {
    "depth": 2,
    "embed_dim": 24,
    "num_heads": 3,
    "num_classes": 5,
    "in_chans": 1,
}
OPS = ("sima", "seqnorm", "softmax", "xca", "performer", "relu_linear", "soft")


def host(kind: str, op: str | None, **options: Any) -> nn.Module:
    name, args = HOSTS[kind]
    return softless.create_model(name, op, **SIZES, **args, **options).eval()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("kind", HOSTS)
def test_it_is_what_swap_makes(kind: str, op: str):
    origin = host(kind, None)
    options: dict[str, Any] = {"sampling": "pool"} if op == "soft" else {}
    swapped, built = copy.deepcopy(origin), host(kind, op, **options)
    swap(swapped, op, **options)
    state, unseen = carried(origin.state_dict(), built.state_dict())
    built.load_state_dict(state)
    expected = swapped.state_dict()
    for name in state:
        if name not in unseen:
            torch.testing.assert_close(state[name], expected[name])
    built.load_state_dict(expected)  # the same names and shapes
    built.load_state_dict({**expected, **{n: v for n, v in state.items() if n not in unseen}})
    x = torch.randn(3, 1, 16, 24)
    torch.testing.assert_close(built(x), swapped(x))


def test_ours_goes_back_to_softmax_and_timms_temperature_is_found():
    first, back = host("vit", "sima"), host("vit", "softmax")
    state, unseen = carried(first.state_dict(), back.state_dict())
    assert not unseen
    assert all(torch.equal(state[name], value) for name, value in first.state_dict().items())
    own: Any = host("xcit", None)
    built = host("xcit", "xca")
    nn.init.normal_(own.blocks[0].attn.temperature)
    built.load_state_dict(carried(own.state_dict(), built.state_dict())[0])
    x = torch.randn(2, 1, 16, 24)
    torch.testing.assert_close(built(x), own.eval()(x))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"depth": 3}, r"the weights have no blocks\.2\.norm1\.weight"),
        ({"depth": 1}, r"the weights have blocks\.1\.\S+, for which"),
        ({"num_classes": 4}, r"head\.weight is \(5, 24\) in the weights and \(4, 24\)"),
        ({"init_values": 1.0}, r"the weights have no blocks\.0\.ls1\.gamma"),
    ],
)
def test_another_host_is_refused(args: dict, message: str):
    origin = timm.create_model(
        HOSTS["vit"][0], **{**SIZES, **HOSTS["vit"][1], "dynamic_img_size": True}
    )
    other = softless.create_model(HOSTS["vit"][0], "sima", **{**SIZES, **HOSTS["vit"][1], **args})
    with pytest.raises(UsageError, match=message):
        carried(origin.state_dict(), other.state_dict())
