"""What `attend` refuses, and how it says so."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from softless import OPERATORS, BackendRefused, UsageError
from softless.attention import Backend, attend_packed
from tests.ops.draw import attend

Q = torch.randn(2, 3, 10, 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"op": "smia"}, "no operator named 'smia'. Did you mean 'sima'"),
        ({"k": None}, "operator 'sima' needs keys"),
        ({"q": Q[0]}, "four dimensions"),
        ({"k": torch.randn(2, 3, 10, 7)}, r"q and k in features"),
        ({"v": torch.randn(2, 3, 9, 8)}, r"k and v in tokens"),
        ({"v": Q.double()}, "one floating-point dtype"),
        ({"mask": torch.ones(2, 10)}, r"torch.bool of shape \(2, 10\)"),
        ({"mask": torch.ones(2, 9, dtype=torch.bool)}, r"torch.bool of shape \(2, 10\)"),
        ({"query_mask": torch.ones(10, dtype=torch.bool)}, "query_mask"),
        ({"token_scale": -1}, "token_scale=-1 is not None, 'tokens' or a positive number"),
        ({"token_scale": True}, "token_scale=True"),
        ({"order": "rows"}, "order='rows' is not 'auto', 'tokens' or 'channels'"),
        ({"ordre": "auto"}, "Did you mean 'order'"),
        ({"learned": {"temperature": Q}}, "learned tensors: none; got temperature"),
        ({"op": "xca", "learned": {}}, "learned tensors: temperature; got none"),
    ],
)
def test_a_call_that_does_not_fit(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        attend(**{"q": Q, "k": Q, "v": Q, **arguments})


def test_backends_say_why_they_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    sima = OPERATORS["sima"]
    picky = Backend(
        name="picky",
        fn=sima.own[0].fn,
        refuses=lambda q, *_, **__: [f"head dim {q.shape[-1]} > 4"] if q.shape[-1] > 4 else [],
    )
    record = replace(sima, own=(picky, *sima.own))
    assert torch.equal(attend(Q, Q, Q, op=record), attend(Q, Q, Q))  # auto goes on to the next
    with pytest.raises(
        BackendRefused,
        match=r"'picky' cannot run sima on q \(2, 3, 10, 8\) torch.float32 cpu: picky: head dim 8 "
        r"> 4; native: .*; eager: can run; reference: can run",
    ):
        attend(Q, Q, Q, op=record, backend="picky")
    small = Q[..., :4]
    assert torch.equal(
        attend(small, small, small, op=record, backend="picky"), attend(small, small, small)
    )
    with pytest.raises(
        BackendRefused, match=r"no backend 'triton'. It has: native, eager, reference"
    ):
        attend(Q, Q, Q, backend="triton")


@pytest.mark.parametrize("shape", [(2, 10, 25), (2, 3, 10, 24), (10, 24)])
def test_a_buffer_that_holds_no_three_parts(shape: tuple[int, ...]) -> None:
    with pytest.raises(UsageError, match=r"it must be \(batch, tokens, 3 x num_heads x features\)"):
        attend_packed(torch.randn(shape), 2)
