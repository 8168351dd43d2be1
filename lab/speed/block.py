"""The attention block: the projections and what stands between them."""

import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from lab.speed.contract import check, exact
from lab.speed.pace import paced
from lab.speed.rivals import OPERATOR, attention_modules, path_of
from lab.speed.work import DTYPES, Case, Work
from softless.errors import UsageError
from softless.inference import optimize

TOKENS = (49, 196, 576, 2304, 9216, 65_536)
SOFTMAX_TOKENS = 9216  # above, its N^2 takes minutes a call
BATCHED_TOKENS = 9216  # up to here eight images fit into 8 GB with every rival's copies
WORKS = tuple(
    Work(dtype, batch, tokens)
    for dtype in DTYPES
    for batch in (1, 8)
    for tokens in TOKENS
    if batch == 1 or tokens <= BATCHED_TOKENS
)
MERGING = tuple(
    Work(dtype, batch, tokens)
    for dtype in DTYPES
    for batch in (1, 8)
    for tokens in (196, 384, 576, 768, 1152, 2304, 9216)
    if batch == 1 or tokens < BATCHED_TOKENS
)
COMPILED = tuple(Work(dtype, 1, tokens) for dtype in DTYPES for tokens in (196, 2304, 9216))


def rivals(work: Work) -> list[str]:
    """Who takes part: timm's softmax where a call takes seconds at most."""
    softmax = work.batch * work.tokens <= SOFTMAX_TOKENS or work.tokens <= 2304
    return ["bare", "sima", "published", *(["softmax"] if softmax else []), "xca"]


def measure(work: Work, seconds: float) -> Case:
    """The block in evaluation: bare, ours, published, timm's softmax and XCA."""
    return timed(work, attention_modules(work.dim, work.heads, rivals(work), work.kind), seconds)


def measure_compiled(work: Work, seconds: float) -> Case:
    """The published block as torch.compile makes it, beside itself and ours; a compilation takes a
    minute or two.

    Raises:
        UsageError: there is no C++ compiler.
    """
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise UsageError(
            f"torch.compile needs a C++ compiler, and there is no '{compiler}': install one or "
            "set CXX"
        )
    modules = attention_modules(work.dim, work.heads, ["bare", "sima", "published"], work.kind)
    compiled = torch.compile(
        modules["published"], fullgraph=True, dynamic=False, options={"freezing": True}
    )
    return timed(work, modules, seconds, {"compiled": compiled})


def measure_merging(work: Work, seconds: float) -> Case:
    """Our block with the merged output projection and without, whatever the number of tokens; and
    as `optimize` packs it, which is without.
    """
    modules = attention_modules(work.dim, work.heads, ["bare", "merged", "apart"], work.kind)
    packed = optimize(nn.Sequential(modules["apart"]), work.kind)[0]
    return timed(work, {**modules, "packed": packed}, seconds)


def timed(
    work: Work,
    modules: Mapping[str, nn.Module],
    seconds: float,
    compiled: Mapping[str, Callable[[Tensor], Tensor]] | None = None,
) -> Case:
    """Check the modules on random tokens (B, N, dim), then time them in turns; each returns as
    many. `compiled` are further forms of "published".

    Raises:
        WrongAnswer: one is not what the float64 reference says.
    """
    x = tokens(work)
    calls = {name: _call(module, x) for name, module in modules.items()}
    with torch.inference_mode():  # attention has ways of its own there
        paths = {name: path_of(module, x) for name, module in modules.items()}
    for name, form in (compiled or {}).items():
        calls[name] = _call(form, x)
        paths[name] = "published formula, torch.compile with frozen weights"
    with torch.inference_mode():
        true = {
            op: exact(op, modules["bare"] if op != "xca" else modules["xca"], x)
            for op in {OPERATOR.get(name) for name in calls}
        }
        errors = {
            name: check(name, call(), true[OPERATOR.get(name)], work, work.kind)
            for name, call in calls.items()
        }
    del true
    return Case(work, errors, paths, paced(calls, seconds))


def tokens(work: Work) -> Tensor:
    """Random tokens (B, N, dim) in the work's dtype, the same for the same work."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(work.batch, work.tokens, work.dim, generator=generator).to(work.kind)


def _call(module: Callable[[Tensor], Any], x: Tensor) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            return module(x)

    return call
