"""The numeric bars D1 to D9 of SimA as one list of checks over any callable, so that mutants can be
run through the same list.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from softless.attention import OPERATORS
from tests.ops.draw import FAMILIES, assert_near, family

Run = Callable[..., Tensor]  # (q, k, v, mask=, query_mask=, out_dtype=) -> o

FLOAT32, BFLOAT16 = 1e-6, 4e-3
# float16 in, float32 out: the inputs are rounded already, the sums are float32, so the bar is
# float32's
IN_FLOAT32 = {torch.float32: FLOAT32, torch.bfloat16: FLOAT32, torch.float16: FLOAT32}


def truth(q: Tensor, k: Tensor, v: Tensor, **masks: Tensor) -> Tensor:
    return OPERATORS["sima"].reference(q.double(), k.double(), v.double(), **masks)


def values(run: Run, tokens: int) -> None:
    """D1: every family in every dtype, with two heads of which neither may stand for the other."""
    for name in FAMILIES:
        for dtype, bound in IN_FLOAT32.items():
            call = family(name, tokens, heads=2, width=32, dtype=dtype)
            assert_near(run(*call, out_dtype=torch.float32), truth(*call), bound, f"{name} {dtype}")
        call = family(name, tokens, heads=2, width=32, dtype=torch.bfloat16)
        assert_near(
            run(*call, out_dtype=torch.bfloat16), truth(*call), BFLOAT16, f"{name} bfloat16 out"
        )


def zero_channel(run: Run, tokens: int) -> None:
    """D5: a channel of zeros, or of next to nothing, leaves a finite and right answer in every
    dtype.
    """
    for size in (0.0, 1e-6, 1e-12, 1e-20, 1e-41):
        for dtype, bound in IN_FLOAT32.items():
            q, k, v = family("gauss", tokens, heads=2, width=32, dtype=dtype)
            q[..., 3] *= size
            k[..., 5] *= size
            assert_near(
                run(q, k, v, out_dtype=torch.float32),
                truth(q, k, v),
                bound,
                f"channel x {size:g} {dtype}",
            )


def masks(run: Run, tokens: int) -> None:
    """D9, D10: masking is removal; background behind a mask changes nothing."""
    q, k, v = family("gauss", tokens + 9, heads=2, width=32)
    for x in (q, k, v):
        x[..., tokens:, :] = 3.0
    keep = torch.arange(tokens + 9).expand(1, -1) < tokens
    o = run(q, k, v, mask=keep, query_mask=keep, out_dtype=torch.float32)
    assert_near(
        o[..., :tokens, :],
        truth(*(x[..., :tokens, :] for x in (q, k, v))),
        FLOAT32,
        "behind the mask",
    )
    assert not bool(o[..., tokens:, :].any()), "masked rows"


CHECKS = {"values": values, "zero channel": zero_channel, "masks": masks}


def failed(run: Run, tokens: int) -> list[str]:
    """Names of the checks that a callable fails at this number of tokens."""
    found = []
    for name, check in CHECKS.items():
        try:
            check(run, tokens)
        except AssertionError:
            found.append(name)
    return found
