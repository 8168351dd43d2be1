"""What the record of a host says is so in its models: `optimize`, `stream`, `swap` and maps go by
it.
"""

from typing import Any

import pytest
import torch
from torch import nn

import softless
from softless.layers.plain import CONV, weights_of
from softless.models.host import BlockKind, Host
from softless.models.hosts import HOSTS, class_blocks, host_of, tokens_ahead
from softless.models.nearest import build_of
from tests.models.kinds import FIRST, SMALLEST
from tests.models.lively import branches, lively

# scales of layers and register tokens, which the smallest arguments of ViT leave out
MORE: dict[str, dict[str, Any]] = {"vit": {"init_values": 1.0, "reg_tokens": 2}}
every_host = pytest.mark.parametrize(
    ("host", "variant"), list(zip(HOSTS.values(), FIRST, strict=True)), ids=FIRST
)


def image() -> torch.Tensor:
    return torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def made(host: Host, variant: str) -> Any:
    arguments = {**SMALLEST[host.name], **MORE.get(host.name, {}), "num_classes": 3}
    torch.manual_seed(0)
    return lively(softless.create_model(variant, op="sima", **arguments), image())


def called(model: nn.Module, classes: tuple[type[nn.Module], ...]) -> list[list[str]]:
    """The parts of each block of some classes, in the order in which a pass calls them."""
    blocks = [module for module in model.modules() if isinstance(module, classes)]
    calls: list[list[str]] = [[] for _ in blocks]
    hooks = [
        part.register_forward_pre_hook(lambda _, __, name=name, own=own: own.append(name))
        for block, own in zip(blocks, calls, strict=True)
        for name, part in block.named_children()
    ]
    model(image())
    for hook in hooks:
        hook.remove()
    return calls


def parts(kind: BlockKind) -> list[str]:
    """The parts of a block in the order of its pass, as its record has them."""
    rows = [row for row in (kind.attention, kind.local, kind.mlp) if row is not None]
    return [part for row in rows for part in (row.norm, row.module)]


@every_host
def test_a_model_is_of_its_host_and_no_other(host: Host, variant: str) -> None:
    model = made(host, variant)
    assert [other for other in HOSTS.values() if isinstance(model, other.models)] == [host]
    assert host_of(softless.optimize(model, torch.float32)) is host
    build = build_of(model.state_dict())
    assert build is not None
    assert build.host == host.name
    assert weights_of(model.get_submodule(host.first_conv), kinds=CONV) is not None


@every_host
def test_the_parts_of_a_block_are_called_in_the_order_of_the_record(
    host: Host, variant: str
) -> None:
    model = made(host, variant)
    for kind in host.blocks:
        named = {*parts(kind)}
        calls = called(model, kind.accepted.classes)
        assert calls
        post_norm = [own for own in calls if own[0] == kind.attention.module]
        for own in calls:
            if own not in post_norm:
                assert [name for name in own if name in named] == parts(kind)
            assert {*own} - named <= {*kind.drops, *kind.scales}


@every_host
def test_a_scale_of_the_record_is_that_of_its_branch(host: Host, variant: str) -> None:
    """With the scale at zero the branch adds nothing, whatever its module gives."""
    model = made(host, variant)
    for kind in host.blocks:
        for row in (kind.attention, kind.local, kind.mlp):
            if row is None or row.scale is None:
                continue
            block = next(
                part for part in model.modules() if isinstance(part, kind.accepted.classes)
            )
            scale = getattr(block, row.scale)
            with torch.no_grad():
                getattr(scale, "gamma", scale).zero_()
                before = model(image())
                getattr(block, row.module).register_forward_hook(lambda _, __, out: out + 1)
                assert torch.equal(model(image()), before), row
                getattr(scale, "gamma", scale).fill_(1)
                assert not torch.equal(model(image()), before), row


@every_host
def test_every_block_of_the_record_is_rewritten(host: Host, variant: str) -> None:
    model = made(host, variant)
    fast = softless.optimize(model, torch.float32)
    kinds = tuple(cls for kind in host.blocks for cls in kind.accepted.classes)
    blocks = [path for path, part in model.named_modules() if type(part) in kinds]
    assert blocks
    assert [*fast.optimized.blocks] == blocks
    torch.testing.assert_close(fast(image()), model(image()), atol=1e-4, rtol=1e-4)


@every_host
def test_the_tokens_ahead_are_those_that_enter_the_layers(host: Host, variant: str) -> None:
    model = made(host, variant)
    if not host.passes:
        return
    seen: list[int] = []
    first = next(iter(branches(model).values()))
    first.register_forward_pre_hook(lambda _, given: seen.append(given[0].shape[1]))
    model(image())
    ahead = seen[0] - 4 * 6
    assert tokens_ahead(model) == ahead
    tokens = [getattr(model, name, None) for name in host.passes[0].prefix]
    assert sum(token.shape[1] for token in tokens if token is not None) == ahead
    assert (class_blocks(model) is not None) == (host.class_blocks is not None)
    assert [way.taken_by(type(model)) for way in host.passes].count(True) == 1
