"""Scores of a bag's tiles: the weight that the pool gives each, or what each says for a class."""

# N tiles, D features, K classes

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from softless.bags.bag import Bag
from softless.errors import CoordinateError, DivergedError, UsageError
from softless.models.bag_parts import GatedPool
from softless.modes import evaluating
from softless.slides.stream import stream

Kind = Literal["weight", "gradient", "leave-out"]
AT_ONCE = 2**22  # numbers of tiles that bags with a tile left out hold together
MOST = 4096  # tiles of a bag up to which each is left out in turn
DOUBLINGS = 3.0  # of the mean weight, and halvings, at the ends of the colours
WEIGHTS = (-2.0, -1.0, 1.0, 2.0)  # where classes of a viewer begin: doublings of the mean
SHARES = (-0.6, -0.2, 0.2, 0.6)  # of the largest evidence


@dataclass(frozen=True)
class Scores:
    """A number for each tile, and how it is shown.

    Attributes:
        kind: "weight": the pool's, which sum to 1. "gradient": gradient times input of the class's
            logit, summed over the features. "leave-out": what the logit loses without the tile.
        values: (N,) float64.
        label: The class that evidence is for; empty of weights.
        logits: (K,) of the whole bag.
    """

    kind: Kind
    values: NDArray[np.float64]
    label: str
    logits: tuple[float, ...]

    @property
    def shown(self) -> NDArray[np.float64]:
        """(N,) in -1..1: doublings of the mean weight over three, or shares of the largest
        evidence.
        """
        scaled = self._scaled(self.values)
        return np.clip(scaled / DOUBLINGS, -1, 1) if self.kind == "weight" else scaled

    def bands(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Which of five classes tiles with these scores (n,) are in, or groups with these means; 2
        is the middle one.
        """
        edges = WEIGHTS if self.kind == "weight" else SHARES
        return np.searchsorted(edges, self._scaled(values), side="right")

    def _scaled(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Doublings of the mean weight, or shares of the largest evidence."""
        if self.kind == "weight":
            with np.errstate(divide="ignore"):
                return np.log2(values * len(self.values))
        largest = np.abs(self.values).max(initial=0.0)
        return values / largest if largest else np.zeros_like(values)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the five classes."""
        if self.kind == "weight":
            parts = ("below 1/4", "1/4 to 1/2", "1/2 to 2", "2 to 4", "above 4")
            return tuple(f"weight {part} times the mean" for part in parts)
        return (
            f"strongly against {self.label}",
            f"against {self.label}",
            f"neither for nor against {self.label}",
            f"for {self.label}",
            f"strongly for {self.label}",
        )

    @property
    def middles(self) -> tuple[float, ...]:
        """What is shown in the middle of each class."""
        edges = [edge / DOUBLINGS for edge in WEIGHTS] if self.kind == "weight" else [*SHARES]
        borders = [-1.0, *edges, 1.0]
        return tuple((borders[i] + borders[i + 1]) / 2 for i in range(len(borders) - 1))

    @property
    def caption(self) -> str:
        """What the colours say."""
        if self.kind == "weight":
            return "weight of the tile in the pool, beside the mean weight"
        how = "gradient x input" if self.kind == "gradient" else "what is lost without the tile"
        return f"evidence for {self.label}: {how}, beside the largest"

    @property
    def ends(self) -> tuple[str, str]:
        """What the first and the last colour are called."""
        return ("1/8", "8 x") if self.kind == "weight" else ("-", "+")

    def measurements(self, values: NDArray[np.float64]) -> list[Mapping[str, float]]:
        """What is written of tiles with these scores (n,), or of groups with these means."""
        if self.kind != "weight":
            return [{f"evidence for {self.label}": _six(value)} for value in values.tolist()]
        count = len(self.values)
        return [
            {"weight": _six(value), "times the mean": _six(value * count)}
            for value in values.tolist()
        ]


def _six(value: float) -> float:
    """With six digits that say something."""
    return float(f"{value:.6g}")


def scores_of(
    model: nn.Module,
    bag: Bag,
    kind: Kind = "weight",
    label: int | None = None,
    classes: Sequence[str] = (),
    *,
    chunk: int = 2048,
) -> Scores:
    """The score of each tile of a bag.

    Args:
        model: A model of bags.
        bag: The tiles.
        kind: As `Scores` says it.
        label: Number of the class that evidence is for; None: the one that is answered.
        classes: Names of the classes.
        chunk: Tiles worked on at once.

    Raises:
        UsageError: the model weighs no tiles, or a bag is too large for the kind.
        CoordinateError: the model looks at places, and the bag does not know them in micrometres.
        DivergedError: scores that are not finite.
    """
    if kind not in get_args(Kind):
        raise UsageError(f"--score {kind}: give {', '.join(get_args(Kind))}")
    name = ""
    with evaluating(model):
        if kind == "weight":
            values, logits = _weights(model, bag, chunk)
        else:
            tiles = _Tiles(model, *_tensors(model, bag))
            logits = tiles.logits()
            number = int(logits[0].argmax()) if label is None else label
            if not 0 <= number < logits.shape[1]:
                raise UsageError(
                    f"--label {number}: the model has the classes 0 to {logits.shape[1] - 1}"
                )
            name = classes[number] if classes else f"class {number}"
            values = tiles.gradient(number) if kind == "gradient" else tiles.lost(number, logits)
    scores = np.asarray(values.detach().double().cpu().flatten().numpy())
    if not np.isfinite(scores).all():
        raise DivergedError("the scores of tiles are not finite: the model's weights diverged")
    return Scores(kind, scores, name, tuple(map(float, logits.detach().flatten())))


def _weights(model: Any, bag: Bag, chunk: int) -> tuple[Tensor, Tensor]:
    """Weights (N,) and logits (1,K): chunk by chunk, but for an operator that needs all tiles at
    once.

    Raises:
        UsageError: the model weighs no tiles.
    """
    if not isinstance(getattr(model, "pool", None), GatedPool):
        raise UsageError(
            "this model weighs no tiles: give --score gradient, or train one with a gated pool"
        )
    if all(block.streams for block in model.blocks):
        answer: Any = stream(model, bag, chunk=chunk)
        return answer.scores, answer.logits
    tiles = _Tiles(model, *_tensors(model, bag))
    with torch.inference_mode():
        return model.tile_scores(tiles.features, tiles.places)[0], tiles.logits()


@dataclass(frozen=True)
class _Tiles:
    """A bag as a model takes it: features (1,N,D), places (1,N,2)."""

    model: Any
    features: Tensor
    places: Tensor | None

    @torch.inference_mode()
    def logits(self) -> Tensor:
        """(1,K)."""
        logits: Tensor = self.model(self.features, self.places)
        return logits

    def gradient(self, label: int) -> Tensor:
        """(1,N). What a model takes from features ahead of all else is no evidence: the mean of the
        training's tiles, where it scales them itself.
        """
        with torch.enable_grad():
            inputs = self.features.clone().requires_grad_()
            logits = self.model(inputs, self.places)
            (gradient,) = torch.autograd.grad(logits[0, label], inputs)
        mean = getattr(self.model.embed, "mean", None)
        return (gradient * (inputs if mean is None else inputs - mean)).sum(-1).detach()

    @torch.inference_mode()
    def lost(self, label: int, logits: Tensor) -> Tensor:
        """(N,): what the logit has with a tile and has not without it."""
        count, width = self.features.shape[1:]
        if not 2 <= count <= MOST:
            raise UsageError(
                f"--score leave-out leaves each tile out in turn, and this bag has {count:,}: from "
                f"2 to {MOST:,} it can; give --score gradient"
            )
        at_once = max(1, AT_ONCE // (count * width))
        lost = []
        for start in range(0, count, at_once):
            tiles = torch.arange(start, min(start + at_once, count), device=self.features.device)
            mask = torch.ones(len(tiles), count, dtype=torch.bool, device=self.features.device)
            mask[torch.arange(len(tiles)), tiles] = False
            features = self.features.expand(len(tiles), -1, -1)
            places = None if self.places is None else self.places.expand(len(tiles), -1, -1)
            lost.append(logits[0, label] - self.model(features, places, mask)[:, label])
        return torch.cat(lost)


def _tensors(model: nn.Module, bag: Bag) -> tuple[Tensor, Tensor | None]:
    """Features (1,N,D) float32, and places (1,N,2) where the model looks at them."""
    like = next(model.parameters())
    features = torch.from_numpy(np.array(np.asarray(bag.features), dtype=np.float32))[None]
    places = None
    if bag.has_coords and not bag.why_no_um:
        places = torch.from_numpy(np.array(bag.coords_um))[None].float().to(like.device)
    elif getattr(model, "position", "none") not in {"none", None}:
        raise CoordinateError(f"the model looks at places of tiles: {bag.why_no_um}")
    return features.to(like.device), places
