"""What every named model costs, counted for one image of 224 x 224."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from softless.compare.papers import counted
from softless.compare.record import record_path, write_csv
from softless.data.progress import track
from softless.words import table


@dataclass(frozen=True)
class Size:
    """One model: trained numbers, and one image's multiply-adds and transcendental evaluations."""

    model: str
    of: str  # "timm", or "softless"
    alias: str  # another name of the same, as the papers' code has it
    parameters: int
    macs: int
    exps: int  # of attention
    activation_exps: int  # of activations and positions


@dataclass(frozen=True)
class Sizes:
    """All of them."""

    sizes: tuple[Size, ...]
    recorded: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"rows": [asdict(size) for size in self.sizes]}

    def __str__(self) -> str:
        head = [
            "model",
            "parameters",
            "multiply-adds [G]",
            "exps: attention",
            "activations and positions",
        ]
        rows = [
            [
                s.model,
                f"{s.parameters:,}",
                f"{s.macs / 1e9:.3f}",
                f"{s.exps:,}",
                f"{s.activation_exps:,}",
            ]
            for s in self.sizes
        ]
        footer = f"\n\nrecorded: {self.recorded}" if self.recorded else ""
        return table(head, rows) + footer


def models(names: Sequence[str] = (), *, record: bool = False) -> Sizes:
    """Count the registered models, each after its host where timm has it.

    Args:
        names: which; all by default.
        record: also write benchmarks/models.csv of the repository.

    Raises:
        UsageError: an unknown model, or `record` outside of the repository.
    """
    from softless.models import ENTRIES

    target = record_path("models") if record else None
    chosen = list(names) or listed()
    aliases = {entry.alias_of: entry.name for entry in ENTRIES.values() if entry.alias_of}
    outcome = Sizes(
        tuple(
            Size(
                name,
                "softless" if name in ENTRIES else "timm",
                aliases.get(name, ""),
                *counted(name),
            )
            for name in track(chosen, len(chosen), "counting")
        ),
        target,
    )
    if target is not None:
        write_csv(target, [asdict(size) for size in outcome.sizes])
    return outcome


def listed() -> list[str]:
    """Registered names without aliases, each after the host that timm has."""
    from timm import is_model

    from softless.models import ENTRIES

    names: list[str] = []
    for host in dict.fromkeys(entry.variant.name for entry in ENTRIES.values()):
        names += [host] if is_model(host) and host not in ENTRIES else []
        names += [e.name for e in ENTRIES.values() if e.variant.name == host and not e.alias_of]
    return names
