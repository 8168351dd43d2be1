"""Class attention without softmax: the class token reads all tokens, its weights divided by norms over all of them.

    a_m = sum_c q^_0c k^_mc,    o = sum_m a_m v_m

q^ of the class token needs the queries of all tokens for its norm, so q, k and v stay one projection of every token.
Koohpayegani and Pirsiavash, arXiv:2206.08898; eps 1e-6 as in the official code.
"""

# B batch, H heads, N tokens (the class token first), D features per head

import torch
from torch import Tensor, nn

from softless.attention import Operator, get
from softless.attention.attend import autocast_off, check_options
from softless.attention.linear import gain, power_of_two
from softless.errors import UsageError
from softless.layers.attention import lowered

EPS = 1e-6
LIFTED = 2048  # tokens above which float16 cannot hold the row's output (reliability.md D3)


class ClassAttention(nn.Module):
    """(B, N, dim) -> (B, 1, dim): what the class token, first of the N, takes from all of them.

    Args:
        dim: Width of the tokens.
        num_heads: Number of heads.
        op: An operator with a class row (the SimA family).
        qkv_bias: Bias in the q, k, v projection.
        attn_drop: Dropout on the row of weights.
        proj_drop: Dropout after the output projection.
        token_scale: As in the operator, where it has it; what is counted are the N - 1 tokens behind the class token, so that one number of
            training tokens holds for all attention of a host.

    Raises:
        UsageError: the operator has no class row, or no token_scale.
    """

    def __init__(self, dim: int, num_heads: int = 8, op: str | Operator = "sima", *, qkv_bias: bool = False, attn_drop: float = 0.0, proj_drop: float = 0.0, token_scale: str | float | None = None) -> None:  # fmt: skip
        super().__init__()
        self.op = get(op)
        if self.op.class_row is None:
            raise UsageError(f"operator '{self.op.name}' has no form for class attention: keep the host's own")
        self.options = check_options(self.op, {} if token_scale is None else {"token_scale": token_scale})
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.attn_drop = nn.Dropout(attn_drop)
        self.proj = nn.Linear(dim, dim)
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor) -> Tensor:
        assert self.op.class_row is not None
        scale = self.options.get("token_scale")
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)
        dtype, wide = q.dtype, torch.promote_types(q.dtype, torch.float32)
        with autocast_off(q.device.type):
            row = self.op.class_row(q.to(wide), k.to(wide), eps=EPS)
            o = self.attn_drop(row * gain(x.shape[1] - 1, scale)) @ v.to(wide)
        o = o.transpose(1, 2).flatten(2)
        if dtype == torch.float16 and x.shape[1] > LIFTED and scale != "tokens":
            lift = power_of_two(x.shape[1])
            return self.proj_drop(lowered(self.proj, (o * lift).to(dtype), lift, x.dtype))
        return self.proj_drop(self.proj(o.to(dtype)))
