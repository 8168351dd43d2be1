"""Streaming: one layer over a quarter of a million tokens, and a whole model over the image's side,
in time and in memory.

The layer's rivals take turns in this process. A whole model runs in a process of its own. Its
peak of memory is the system's own count, pixels and decoding included, beyond what lay there
before. That is the bytes of the image, the weights, and what a small image left behind.
"""

# N tokens, D width

import copy
import json
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import timm
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn

from lab.errors_of import deviation
from lab.speed.contract import BOUND, bounded
from lab.speed.models import DEIT, LOGITS
from lab.speed.optimized import Linear, enliven
from lab.speed.pace import paced
from lab.speed.rivals import Published, share_weights
from lab.speed.work import DTYPES, Case, Work
from softless.compare.resident import forget, in_own_process, peak
from softless.compare.steps import peak_bytes
from softless.compare.timing import Timings
from softless.inference import optimize
from softless.layers import operator_class
from softless.models import create_model
from softless.slides.stream import CHUNK, stream
from softless.slides.sweeps import layer_in_chunks

LAYER_WORKS = tuple(
    Work(dtype, 1, tokens) for dtype in DTYPES for tokens in (16_384, 65_536, 262_144)
)
SIDES = (224, 512, 1024, 2048, 4096, 8192, 16384)
MODEL_WORKS = tuple(
    Work("bfloat16", 1, (side // 16) ** 2 + 1, heads=6, pixels=side, host=DEIT) for side in SIDES
)
WHOLE = 8192  # pixels above which a model that holds all activations takes more than 12 GB
# tokens at which a layer is compared with float64, pixels up to which a model is: 512
CHECKED = 4096
ROUNDS, FEW = 5, 2048  # how often a model of up to so many pixels is timed; larger ones once


def measure_layer(work: Work, seconds: float) -> Case:
    """One layer of a ViT over the residual stream: ours, optimized, in chunks and in place; the
    published form over all tokens at once; and the floor.

    The floor, "linear", is the streamed layer without its attention: the same packed linear layers
    over the same chunks.
    """
    kinds = {"streamed": operator_class("sima"), "published": Published, "linear": Linear}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        blocks = {
            name: Block(work.dim, work.heads, qkv_bias=True, attn_layer=kind)
            for name, kind in kinds.items()
        }
        x = torch.randn(work.tokens, work.dim).to(work.kind)
    enliven(blocks["streamed"].eval(), x[None, :CHECKED].float(), [blocks["streamed"]])
    for block in blocks.values():
        share_weights(blocks["streamed"], block.eval())
    true = _exact_layers(blocks, x[:CHECKED])
    packed = {
        name: optimize(nn.Sequential(blocks[name]), work.kind)[0] for name in ("streamed", "linear")
    }
    published_block = blocks["published"].to(work.kind)
    calls: dict[str, Callable[[Tensor], Tensor]] = {
        "streamed": lambda y: layer_in_chunks(packed["streamed"], y, CHUNK),
        "published": lambda y: published_block(y[None])[0],
        "linear": lambda y: _chunk_by_chunk(packed["linear"], y),
    }
    with torch.inference_mode():
        errors = {
            name: bounded(
                name,
                deviation(call(x[:CHECKED].clone()), true[name]).frobenius,
                work,
                BOUND[work.kind],
            )
            for name, call in calls.items()
        }
    mine = x.clone()  # for those that work in place

    @torch.inference_mode()
    def run(name: str) -> Any:
        return calls[name](x if name == "published" else mine)

    timings = paced({name: lambda name=name: run(name) for name in calls}, seconds)  # type: ignore[misc]
    peaks = {name: peak_bytes(lambda name=name: run(name), x.device) for name in calls}  # type: ignore[misc]
    streamed = f"optimized, chunks of {CHUNK} tokens"
    paths = {"streamed": streamed, "published": "published formula, torch", "linear": streamed}
    return Case(work, errors, paths, timings, peaks)


@torch.inference_mode()
def _exact_layers(blocks: Mapping[str, nn.Module], x: Tensor) -> dict[str, Tensor]:
    """What float64 gives of the weights and tokens as they are rounded to their dtype."""
    outputs = {}
    for name, block in blocks.items():
        exact = copy.deepcopy(block).to(x.dtype).double()
        outputs[name] = exact(x[None].double())[0]
    return outputs


def _chunk_by_chunk(block: nn.Module, x: Tensor) -> Tensor:
    for chunk in x.split(CHUNK):
        chunk.copy_(block(chunk[None])[0])
    return x


def measure_model(work: Work, seconds: float) -> Case:
    """A DeiT from bytes to logits: ours, optimized, streamed and over all tokens at once, and the
    published form.
    """
    assert work.pixels is not None
    names = ["streamed", *(["optimized", "published"] if work.pixels <= WHOLE else [])]
    rounds = ROUNDS if seconds and work.pixels <= FEW else 1
    outcomes = {name: in_a_process(name, work, rounds) for name in names}
    logits = {
        name: torch.tensor(outcome["logits"], dtype=torch.float64)
        for name, outcome in outcomes.items()
    }
    errors = {}
    if work.pixels <= 512:
        true = torch.tensor(
            in_a_process("sima", Work(**{**vars(work), "dtype": "float64"}), 1)["logits"],
            dtype=torch.float64,
        )
        errors = {
            name: bounded(name, deviation(own, true).frobenius, work, LOGITS[work.kind], "logits")
            for name, own in logits.items()
        }
    for name in names[1:]:
        bounded(
            "streamed",
            deviation(logits["streamed"], logits[name]).frobenius,
            work,
            LOGITS[work.kind],
            f"logits beside those of '{name}'",
        )
    paths = {
        "streamed": f"optimized, chunks of {CHUNK} tokens",
        "optimized": "optimized, all tokens at once",
        "published": "published formula, torch",
    }
    return Case(
        work,
        errors,
        {name: paths[name] for name in names},
        Timings({name: outcome["seconds"] for name, outcome in outcomes.items()}),
        {name: outcome["peak"] for name, outcome in outcomes.items()},
    )


def in_a_process(name: str, work: Work, rounds: int) -> dict[str, Any]:
    """What a process of its own found: seconds of each round, peak bytes, logits.

    Raises:
        SoftlessError: the process ended with an error.
    """
    request = {
        "rival": name,
        "dtype": work.dtype,
        "pixels": work.pixels,
        "host": work.host,
        "rounds": rounds,
        "threads": torch.get_num_threads(),
    }
    return in_own_process("lab.speed.stream", request, f"'{name}' at {work}")


def alone(
    *, rival: str, dtype: str, pixels: int, host: str, rounds: int, threads: int
) -> dict[str, Any]:
    """The work of such a process."""
    torch.set_num_threads(threads)
    kind = getattr(torch, dtype)
    model = _model(rival, host).to(kind).eval()
    if rival in {"streamed", "optimized"}:
        model = optimize(model, kind)
    image = np.random.default_rng(3).integers(0, 256, (pixels, pixels, 3), dtype=np.uint8)

    @torch.inference_mode()
    def at_once(values: np.ndarray) -> Tensor:
        scaled = torch.from_numpy(values).permute(2, 0, 1)[None].to(kind).div_(127.5).sub_(1)
        output: Tensor = model(scaled)
        return output

    def streamed(values: np.ndarray) -> Tensor:
        return stream(
            model, values, mean=(0.5,) * 3, std=(0.5,) * 3, saliency=False, quiet=True
        ).logits

    call = streamed if rival == "streamed" else at_once
    call(image[:224, :224].copy())
    before = forget()
    seconds = []
    for number in range(rounds + (rounds > 1)):
        start = time.perf_counter()
        logits = call(image)
        elapsed = time.perf_counter() - start
        if number or rounds == 1:
            seconds.append(elapsed)
    # less than a MiB is not told from what the allocator kept of the small image
    return {
        "seconds": seconds,
        "peak": max(2**20, peak() - before),
        "logits": logits[0].double().tolist(),
    }


def _model(rival: str, host: str) -> nn.Module:
    torch.manual_seed(0)
    own = create_model(host, op="sima")
    if rival != "published":
        return own
    published = timm.create_model(host, attn_layer=Published, dynamic_img_size=True)
    share_weights(own, published)
    return published


if __name__ == "__main__":
    print(json.dumps(alone(**json.loads(sys.argv[1]))))
