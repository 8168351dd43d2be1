"""What a pass keeps: nothing of another thread's image, of evaluation in training, or of a later
pass in a recomputed block.
"""

import copy
import itertools
import pickle
import threading
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

import softless
from softless import OPERATORS, UsageError
from softless.layers import Attention
from softless.layers.own_tensors import OwnTensors
from tests.models.lively import lively

create_model: Any = softless.create_model
TINY: dict[str, Any] = {
    "depth": 2,
    "num_classes": 7,
    "embed_dim": 48,
    "num_heads": 3,
    "img_size": (64, 96),
}
PYRAMID: dict[str, Any] = {"num_classes": 7, "img_size": (64, 96)}
HOSTS: dict[str, dict[str, Any]] = {
    "deit_tiny_patch16_224": TINY,
    "deit_tiny_distilled_patch16_224": TINY,
    "vit_small_patch32_224": TINY,
    "xcit_nano_12_p16_224": TINY,
    "cvt_13_224": PYRAMID
    | {"depths": (1, 1, 2), "embed_dims": (16, 32, 48), "num_heads": (1, 2, 3)},
    "soft_pyramid_tiny_224": PYRAMID
    | {"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 32, 48), "num_heads": (2, 4, 4, 3)},
}
# where each looks at the grid: bottleneck tokens, a reduction, positions, windows, a convolution of
# v, and XCiT's table
TELLING: dict[str, tuple[str, str, dict[str, Any]]] = {
    "soft": ("deit_tiny_patch16_224", "soft", {"sampling": "pool"}),
    "reduction": ("deit_tiny_patch16_224", "linformer", {"reduction": "grid", "ratio": 2}),
    "cosformer2d": ("deit_tiny_patch16_224", "cosformer2d", {}),
    "windows": ("deit_tiny_patch16_224", "nystrom", {"pooling": "grid"}),
    "v_conv": ("deit_tiny_patch16_224", "sima", {"v_conv": 3}),
    "xcit": ("xcit_nano_12_p16_224", "sima", {}),
    "pyramid": ("soft_pyramid_tiny_224", "soft", {}),
}
TWO = ((64, 96), (96, 64))
SEVERAL = (*TWO, (32, 64), (64, 64))


def built(host: str, op: str, **more: Any) -> Any:
    torch.manual_seed(0)
    return lively(create_model(host, op=op, **HOSTS[host], **more), image(64, 96))


def telling(name: str) -> Any:
    host, op, more = TELLING[name]
    return built(host, op, **more)


def image(height: int, width: int) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(height))


def hammered(model: Any, sizes: Any, threads: int, rounds: int) -> list[str]:
    """What went otherwise than in one thread: every thread asks for the sizes in an order of its
    own.
    """
    images = [image(*size) for size in sizes]
    with torch.inference_mode():
        alone = [model(x) for x in images]
    assert all(bool(one.isfinite().all()) for one in alone)
    assert len({float(one.double().sum()) for one in alone}) == len(alone), (
        "the sizes must tell answers apart"
    )
    wrong: list[str] = []
    ready = threading.Barrier(threads)

    def work(number: int) -> None:
        ready.wait()
        with torch.inference_mode():
            for turn in range(rounds):
                which = (number + turn) % len(images)
                try:
                    if not torch.equal(model(images[which]), alone[which]):
                        wrong.append(f"{sizes[which]}: other bits")
                # whatever a thread meets is what is looked for
                except Exception as error:  # noqa: BLE001
                    wrong.append(f"{sizes[which]}: {type(error).__name__} {error}")

    workers = [threading.Thread(target=work, args=(number,)) for number in range(threads)]
    for one in workers:
        one.start()
    for one in workers:
        one.join()
    return wrong


@pytest.mark.parametrize("name", TELLING)
def test_threads_do_not_see_each_others_images(name: str) -> None:
    assert hammered(telling(name), SEVERAL, threads=4, rounds=12) == []


def windowed(op: str) -> dict[str, Any]:
    """SOFT's bottleneck tokens from windows: in heads this wide those of the convolution give next
    to nothing at the start.
    """
    return {"sampling": "pool"} if "sampling" in OPERATORS[op].options else {}


PAIRS = [pytest.param(*pair, id="-".join(pair)) for pair in itertools.product(HOSTS, OPERATORS)]


@pytest.mark.soak
@pytest.mark.parametrize("kind", ["plain", "optimized"])
@pytest.mark.parametrize(("host", "op"), PAIRS)
def test_eight_threads_of_every_pair(host: str, op: str, kind: str) -> None:
    """Portrait and landscape in eight threads, fifty rounds: the bits of one thread."""
    if host.startswith("cvt") and not OPERATORS[op].cross:
        with pytest.raises(UsageError, match="has no place"):
            built(host, op)
        return
    model = built(host, op, **windowed(op))
    if kind == "optimized":
        model = softless.optimize(model, dtype=torch.float32)
    assert hammered(model, TWO, threads=8, rounds=50) == []


@pytest.mark.soak
@pytest.mark.parametrize(
    "host", ["deit_tiny_patch16_224", "xcit_nano_12_p16_224", "eva02_tiny_patch14_224"]
)
@pytest.mark.parametrize("op", OPERATORS)
def test_eight_threads_of_swapped_models(host: str, op: str) -> None:
    side = 14 if "14" in host else 16
    model: Any = (
        timm.create_model(host, depth=2, num_classes=7, dynamic_img_size=True)
        if "xcit" not in host
        else timm.create_model(host, depth=2, num_classes=7)
    )
    if OPERATORS[op].wants("tokens", {}):
        return  # it has a row for each token of 224 x 224, and images here are smaller
    softless.swap(model, op, **windowed(op))
    sizes = ((4 * side, 6 * side), (6 * side, 4 * side))
    assert hammered(lively(model, image(*sizes[0])), sizes, threads=8, rounds=50) == []


# Evaluation and training


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    model(x).square().sum().backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def pinned(model: Any) -> Any:
    """In training, with BatchNorm in evaluation: its running means would be other at every pass, in
    timm's models too.
    """
    model.train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    return model


@pytest.mark.parametrize("name", TELLING)
def test_training_after_inference_and_inference_within_training(name: str) -> None:
    """The same bits as apart, at the same size and at the other one."""
    model, x, other = telling(name), image(*TWO[0]), image(*TWO[1])
    fresh, state = pinned(copy.deepcopy(model)), copy.deepcopy(model.state_dict())
    apart = gradients(fresh, x)
    with torch.inference_mode():
        expected = model.eval()(other)
        model(x)
    assert same(gradients(pinned(model), x), apart)
    loss = pinned(model)(x).square().sum()
    with torch.inference_mode():
        assert torch.equal(model.eval()(other), expected)
    model.zero_grad(set_to_none=True)
    pinned(model)
    loss.backward()
    assert same({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, apart)
    assert same(dict(model.state_dict()), state), "a pass wrote to the model"


@pytest.mark.parametrize("name", TELLING)
def test_blocks_computed_again_stand_where_they_stood(name: str) -> None:
    """Two images of other grids before the backward pass, with checkpointing: the gradients of
    both, as without it.
    """
    model = pinned(telling(name))

    def both() -> dict[str, Tensor]:
        model.zero_grad(set_to_none=True)
        sum(model(image(*size)).square().sum() for size in TWO).backward()
        return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    plain = both()
    model.set_grad_checkpointing(True)
    assert same(both(), plain)


def test_a_recomputed_block_that_no_gradient_enters_is_refused() -> None:
    model = pinned(telling("cosformer2d"))
    model.patch_embed.requires_grad_(False)
    model.pos_embed.requires_grad_(False)
    model.cls_token.requires_grad_(False)
    model.set_grad_checkpointing(True)
    with pytest.raises(
        UsageError, match=r"nothing in the graph tells which image it was given.*set_grid"
    ):
        model(image(*TWO[0])).square().sum().backward()
    for module in model.modules():
        if isinstance(module, Attention):
            module.set_grid((1, 4, 6))
    model(image(*TWO[0])).square().sum().backward()
    assert model.blocks[0].attn.qkv.weight.grad.any()


def test_a_whole_model_computed_again_is_told_again() -> None:
    model = pinned(telling("cosformer2d"))
    plain = gradients(model, image(*TWO[0]))
    model.zero_grad(set_to_none=True)
    x = image(*TWO[0]).requires_grad_()
    out: Any = torch.utils.checkpoint.checkpoint(model, x, use_reentrant=False)
    model(image(*TWO[1]))
    out.square().sum().backward()
    assert same({name: p.grad for name, p in model.named_parameters() if p.grad is not None}, plain)


def test_random_features_are_those_of_the_first_pass_in_a_recomputed_block() -> None:
    """A redraw fell into the backward pass once: features are drawn at construction, and no pass
    draws any.
    """
    model = pinned(built("deit_tiny_patch16_224", "performer", redraw_every=1))
    held: list[Any] = [
        one.get_buffer("directions").clone()
        for one in model.modules()
        if isinstance(one, OwnTensors)
    ]
    plain = gradients(model, image(*TWO[0]))
    model.set_grad_checkpointing(True)
    assert same(gradients(model, image(*TWO[0])), plain)
    now: list[Any] = [one.directions for one in model.modules() if isinstance(one, OwnTensors)]
    assert all(torch.equal(a, b) for a, b in zip(held, now, strict=True))


def test_copies_and_pickles_are_told_apart() -> None:
    model = telling("cosformer2d")
    expected = [model(image(*size)) for size in TWO]
    again = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    again(image(*TWO[0]))
    for size, one in zip(TWO, expected, strict=True):
        again(image(*reversed(size)))
        assert torch.equal(model(image(*size)), one)
    module: Any = Attention(24, 4, op="cosformer2d")
    module.set_grid((0, 4, 6))
    assert copy.deepcopy(module)(torch.randn(1, 24, 24)).shape == (1, 24, 24), (
        "a grid told for all passes goes with a copy"
    )
