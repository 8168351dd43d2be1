"""What an optimized model is besides a model: it refuses what it cannot do, and reads no token that
its answer does not need.
"""

import functools
from typing import Any

import torch
from timm.layers import LayerNorm, RmsNorm
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from softless.attention.transforms import transformed
from softless.errors import UsageError
from softless.inference.blocks import PackedBlock
from softless.inference.layers import PackedAttention, cast
from softless.inference.optimized import Optimized
from softless.inference.packed import NO_GRADIENTS
from softless.layers.plain import watched, why_called
from softless.models.vit import HOST

NORMS = (nn.Identity, nn.LayerNorm, LayerNorm, nn.RMSNorm, RmsNorm)  # of single tokens


class InferenceModel(nn.Module):
    """Mixed into the class of a model that `optimize` made. `optimized` tells what was done."""

    optimized: Optimized
    outside: torch.dtype  # what it takes and answers in

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """As torch calls a model, without gradients; floating-point tensors among the arguments are
        cast to the model's dtype, in lists too.

        Raises:
            UsageError: a gradient by the images is asked for, a transform of torch.func or
                forward-mode differentiation is active, or the model is exported.
        """
        if why := transformed():
            raise UsageError(f"{why}: {NO_GRADIENTS}")
        if torch.is_grad_enabled() and any(
            isinstance(x, Tensor) and x.requires_grad for x in tree_leaves((args, kwargs))
        ):
            raise UsageError(NO_GRADIENTS)
        with torch.no_grad():
            return super().__call__(*cast(args, self.outside), **cast(kwargs, self.outside))

    def train(self, mode: bool = True) -> Any:
        """Evaluation only.

        Raises:
            UsageError: training is asked for.
        """
        if mode:
            raise UsageError(
                "an optimized model cannot be trained: train the model it was made of, and "
                "optimize that again"
            )
        return super().train(mode=False)

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """No gradients.

        Raises:
            UsageError: gradients are asked for.
        """
        if requires_grad:
            raise UsageError(NO_GRADIENTS)
        return super().requires_grad_(requires_grad=False)

    def state_dict(self, *_: Any, **__: Any) -> Any:
        """None: packed weights are no tensors that another model could load.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "an optimized model has no state dict, since its weights are packed and folded: keep "
            "that of the model it was made of, "
            "or store the whole with torch.save(model, path)"
        )

    def load_state_dict(self, *_: Any, **__: Any) -> Any:
        """As `state_dict`.

        Raises:
            UsageError: always.
        """
        raise UsageError(
            "an optimized model takes no weights, since its own are packed and folded: load them "
            "into the plain model, and optimize that"
        )

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = torch.empty(0, dtype=self.outside, device=self.optimized.device)
        after = fn(before)
        if after.dtype != before.dtype or after.device != before.device:
            raise UsageError(
                f"an optimized model stays {before.dtype} on {before.device}: move or convert the "
                "model it was made of, and optimize that"
            )
        return super()._apply(fn, recurse)

    def __reduce_ex__(self, _: Any) -> Any:
        return empty, (kind_of(self), isinstance(self, FirstTokenViT)), self.__dict__


class FirstTokenViT(InferenceModel):
    """A ViT (`HOST.models`) whose head reads the class token alone: in the last block nothing else is computed past
    the attention's sums.
    """

    def forward(
        self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False
    ) -> Tensor:
        """(B,C,H,W) -> (B,num_classes), as timm's."""
        me: Any = self
        *blocks, last = me.blocks
        if attn_mask is not None or is_causal or not reads_first(self) or self._seen(last):
            return super().forward(x, attn_mask=attn_mask, is_causal=is_causal)
        x = me.norm_pre(me.patch_drop(me._pos_embed(me.patch_embed(x))))
        for block in blocks:
            x = block(x)
        return me.forward_head(me.norm(last.first(x)))

    def _seen(self, last: nn.Module) -> bool:
        """Whether somebody waits for what the short cut leaves out: all tokens of the last block
        and of the norm, and the call of `blocks`.
        """
        me: Any = self
        return bool(why_called(me.blocks)) or watched(last) or watched(me.norm)


def reads_first(model: Any) -> bool:
    """Whether a model's answer is made of its first token, and its last block can give that
    alone.
    """
    if type(model) not in HOST.models and not isinstance(model, FirstTokenViT):
        return False
    last = model.blocks[-1] if len(model.blocks) else None
    plain = model.global_pool == "token" and model.attn_pool is None and model.num_prefix_tokens > 0
    single = type(model.norm) in NORMS and type(model.blocks) is nn.Sequential
    return plain and single and type(last) is PackedBlock and isinstance(last.attn, PackedAttention)


def kind_of(model: nn.Module) -> type:
    """The class of a model, or of the one that it was optimized from."""
    return type(model).__bases__[1] if isinstance(model, InferenceModel) else type(model)


@functools.cache
def inference_class(kind: Any, first: bool) -> type:
    """The class of a model of some kind once it is optimized."""
    mixed = FirstTokenViT if first else InferenceModel
    return type(
        f"Optimized{kind.__name__}",
        (mixed, kind),
        {"__module__": __name__, "__doc__": f"{kind.__name__}, optimized."},
    )


def empty(kind: type, first: bool) -> nn.Module:
    """An optimized model of a kind before it is given its state, as pickle asks."""
    model_class: Any = inference_class(kind, first)
    return model_class.__new__(model_class)
