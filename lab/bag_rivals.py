"""torchmil's models of bags in the place of ours: the same trainer, folds, seeds and recipe.

torchmil (Apache-2.0) is no dependency: `pip install torchmil` where its rows are measured. Its
TransMIL takes no mask, so each bag goes through it alone.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

from softless.errors import UsageError

WIDTH, HEADS = 128, 4  # as of the models beside them
STANDS_FOR = "abmil_bag"  # the name in the recipe: the trainer asks for a known one


class Rival(nn.Module):
    """A model of torchmil that is called as ours are.

    Args:
        inner: its model, of features (B, N, W).
        in_dim: features of a tile.
        masked: whether it takes a mask.
        act: behind the first projection.
    """

    def __init__(self, inner: nn.Module, in_dim: int, *, masked: bool, act: nn.Module) -> None:
        super().__init__()
        self.embed, self.act, self.inner = nn.Linear(in_dim, WIDTH), act, inner
        self.in_dim, self.masked, self.num_classes = in_dim, masked, 2
        self.pretrained_cfg: dict[str, Any] = {}

    def forward(
        self, features: Tensor, coords_um: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Features (B, N, D), coordinates that are not looked at, mask (B, N), to logits (B, 2)."""
        del coords_um
        tokens = self.act(self.embed(features))
        if self.masked:
            second = self.inner(tokens, mask)
        else:
            alone = [
                tokens[index : index + 1]
                if mask is None
                else tokens[index : index + 1, mask[index]]
                for index in range(len(tokens))
            ]
            second = torch.cat([self.inner(bag) for bag in alone])
        return torch.stack([torch.zeros_like(second), second], 1)

    def tile_scores(
        self, features: Tensor, coords_um: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """(B, N): all alike; nobody looks at the tiles of a rival."""
        del coords_um
        counts = torch.ones(features.shape[:2]) if mask is None else mask.float()
        return counts / counts.sum(1, keepdim=True)


def _abmil(in_dim: int) -> Rival:
    from torchmil.models import ABMIL

    inner = ABMIL((WIDTH,), att_dim=WIDTH // 2, gated=True)
    return Rival(inner, in_dim, masked=True, act=nn.ReLU())


def _transmil(in_dim: int) -> Rival:
    from torchmil.models import TransMIL

    inner = TransMIL((WIDTH,), att_dim=WIDTH, n_heads=HEADS)
    return Rival(inner, in_dim, masked=False, act=nn.ReLU())


RIVALS: Mapping[str, Callable[[int], Rival]] = {
    "torchmil_abmil": _abmil,
    "torchmil_transmil": _transmil,
}


@contextmanager
def in_place(name: str) -> Iterator[str]:
    """The name to put into the recipe; within, a rival is built for it.

    Raises:
        UsageError: torchmil is not installed.
    """
    if name not in RIVALS:
        yield name
        return
    try:
        import torchmil.models  # noqa: F401
    except ImportError as error:
        raise UsageError(f"'{name}' needs torchmil: pip install torchmil") from error

    def build(architecture: str, *, in_dim: int, **_: Any) -> Rival:
        assert architecture == STANDS_FOR
        return RIVALS[name](in_dim)

    with mock.patch("softless.tasks.bags.model.create_model", build):
        yield STANDS_FOR
