"""What follows the last block of a host: the norm, the pooling and the head."""

# B batch, N patches, C channels

from timm.layers import LayerNorm, RmsNorm
from torch import Tensor, nn

from softless.exporting.forms.parts import NoForm, copied, linear, refuse_acting, split, within
from softless.layers.plain import is_nothing

TOKEN_WISE = frozenset({nn.Identity, nn.LayerNorm, LayerNorm, nn.RMSNorm, RmsNorm})


def refuse_mixing(norm: nn.Module) -> None:
    """Refuse a norm of which a form takes some tokens apart, unless each token is normalised alone.

    Raises:
        NoForm: it may look at several.
    """
    if type(norm) not in TOKEN_WISE or len(getattr(norm, "normalized_shape", "C")) != 1:
        raise NoForm(f"it is a {type(norm).__name__}, which may look at several tokens")


class Closing(nn.Module):
    """A norm, a pooling and a head, of the tokens that the pooling reads: (B,N,C) -> (B,classes),
    or (B,N,classes) where there is none.
    """

    def __init__(self, norm: nn.Module, head: nn.Module, pool: str) -> None:
        super().__init__()
        self.norm, self.head, self.pool = norm, head, pool

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (B,N,C), of which there is one with the pooling "token"."""
        x = self.norm(x)
        if self.pool == "token":
            x = x.reshape(-1, x.shape[2])
        elif self.pool == "avg":
            x = x.mean(dim=1)
        y: Tensor = self.head(x)
        return y


def closing(model: nn.Module, pool: str) -> Closing:
    """The last parts of a host, the norm's affine in the head.

    Args:
        model: with `norm`, `head_drop` and `head`.
        pool: "token", "avg" or "" for none.

    Raises:
        NoForm: a part is not plain.
    """
    refuse_acting(model, "head_drop")
    norm, head = model.get_submodule("norm"), model.get_submodule("head")
    with within("norm"):
        refuse_mixing(norm)
    if is_nothing(head):
        with within("norm"):
            return Closing(copied(norm), nn.Identity(), pool)
    with within("norm"):
        bare, affine = split(norm)
    with within("head"):
        return Closing(bare, linear(head, affine), pool)
