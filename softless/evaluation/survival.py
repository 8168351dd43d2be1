"""Survival: Cox's partial likelihood as a loss, and how well risks order those who died.

    loss = - 1/E sum_i in events [ r_i - log( sum_{t_j >= t_i} e^{r_j} - l_i/d_i sum_{j in D_i} e^{r_j} ) ]

r is the logarithm of the risk, E the number of events. D_i are the d_i events at the time of i, and
l_i counts those of them before i from 0: Efron's treatment of ties (JASA 1977). Concordance is
Harrell's (JAMA 1982). A pair counts where the one who had the event is known to have had it first.
Events at one time make no pair; a censoring at the time of an event is later. Equal risks count half.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from softless.evaluation.patients import Averaged
from softless.evaluation.spread import Estimate, estimate, resampled
from softless.words import aligned

BLOCK = 4_000_000  # pairs at once: 16 MB


def cox_loss(risks: Tensor, times: Tensor, events: Tensor) -> Tensor:
    """Cox's negative partial log-likelihood by the events, Efron's ties, ().

    Args:
        risks: (B,) logarithms; raised to float32 at least.
        times: (B,) until the event or the censoring.
        events: (B,) bool, whether the event was seen.

    Returns:
        (); zero where no event was seen.
    """
    risks = risks.to(torch.promote_types(risks.dtype, torch.float32))
    events = events.bool()
    if not events.any():
        return risks.sum() * 0
    at_risk = times[None, :] >= times[:, None]
    tied = (times[None, :] == times[:, None]) & events[None, :]
    before = torch.tril(tied, -1).sum(1)  # events at the same time that stand ahead
    share = before / tied.sum(1).clamp_min(1)
    weights = at_risk.to(risks.dtype) - share[:, None].to(risks.dtype) * tied.to(risks.dtype)
    # every event weighs 1 / d at least in its own sum, so no difference of two sums is taken
    totals = torch.logsumexp(risks[None, :] + weights[events].log(), dim=1)
    return (totals - risks[events]).mean()


def concordance(risks: np.ndarray, times: np.ndarray, events: np.ndarray) -> float | None:
    """Harrell's concordance of risks (P,) with times (P,) and events (P,) bool; None without a
    pair.
    """
    value = weighted_concordance(risks, times, events, np.ones((1, len(risks))))[0]
    return None if np.isnan(value) else float(value)


def weighted_concordance(
    risks: np.ndarray, times: np.ndarray, events: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    """(R,) of patients that count `weights` (R, P) times; NaN where no pair counts."""
    events = np.asarray(events, dtype=bool)
    right, pairs = np.zeros(len(weights)), np.zeros(len(weights))
    firsts = np.flatnonzero(events)
    step = max(1, BLOCK // max(len(risks), 1))
    transposed = np.ascontiguousarray(weights.T, dtype=np.float64)
    for start in range(0, len(firsts), step):
        rows = firsts[start : start + step]
        later = (times[None, :] > times[rows, None]) | (
            (times[None, :] == times[rows, None]) & ~events[None, :]
        )
        lower, equal = (
            risks[None, :] < risks[rows, None],
            risks[None, :] == risks[rows, None],
        )
        counted = weights[:, rows].T
        right += (((lower + 0.5 * equal) * later) @ transposed * counted).sum(0)
        pairs += (later.astype(np.float64) @ transposed * counted).sum(0)
    return np.divide(right, pairs, out=np.full(len(weights), np.nan), where=pairs > 0)


@dataclass(frozen=True)
class SurvivalEvaluation:
    """Risks per patient: answers (P, 1) logarithms, targets (P, 2) time and event."""

    units: Averaged

    @property
    def risks(self) -> np.ndarray:
        """(P,) logarithms of the risk, mean over the slides of a patient."""
        return self.units.answers[:, 0]

    @property
    def times(self) -> np.ndarray:
        """(P,) in the unit of the table."""
        return self.units.targets[:, 0]

    @property
    def events(self) -> np.ndarray:
        """(P,) bool, whether the event was seen."""
        return self.units.targets[:, 1] > 0

    @property
    def loss(self) -> float:
        """Cox's, over all of them."""
        risks, times = torch.from_numpy(self.risks), torch.from_numpy(self.times)
        return float(cox_loss(risks, times, torch.from_numpy(self.events)))

    @property
    def concordance_value(self) -> float | None:
        """Harrell's; None without a pair."""
        return concordance(self.risks, self.times, self.events)

    @cached_property
    def concordance(self) -> Estimate:
        """The same, with an interval of a bootstrap over patients."""
        value = self.concordance_value
        if value is None:
            return Estimate(None, why="no patient with an event has one who lived longer")
        groups = self.units.groups
        index = (
            np.arange(len(self.risks))
            if groups is None
            else np.unique(groups, return_inverse=True)[1]
        )
        drawn = resampled(
            lambda weights: weighted_concordance(
                self.risks, self.times, self.events, weights[:, index]
            ),
            int(index.max()) + 1,
        )
        drawn = drawn[~np.isnan(drawn)]
        deviation = float(drawn.std()) if len(drawn) > 1 else 0.0
        return estimate(value, deviation, int(self.events.sum()), unit="event")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        estimated = self.concordance
        return {
            "unit": f"{self.units.unit}s",
            "patients": len(self.units.names),
            "events": int(self.events.sum()),
            "concordance": estimated.value,
            "loss": self.loss,
            "intervals": {"concordance": estimated.interval},
            "reasons": {"concordance": estimated.why} if estimated.why else {},
        }

    def __str__(self) -> str:
        return "\n".join(
            aligned([
                (f"{self.units.unit}s", f"{len(self.units.names)}"),
                ("events", f"{int(self.events.sum())}"),
                ("concordance", str(self.concordance)),
                ("Cox loss", f"{self.loss:.4f}"),
            ])
        )


def kaplan_meier(times: np.ndarray, events: np.ndarray) -> list[tuple[float, float]]:
    """The curve of those who are left: (time, share) at its corners, from (0, 1) on.

    Kaplan and Meier, JASA 1958.

    Args:
        times: (P,).
        events: (P,) bool.
    """
    points, alive = [(0.0, 1.0)], 1.0
    for time in np.unique(times):
        deaths, left = int((events & (times == time)).sum()), int((times >= time).sum())
        if deaths:
            points.append((float(time), alive))
            alive *= 1 - deaths / left
            points.append((float(time), alive))
    return [*points, (float(times.max()), alive)]
