"""One of each kind of model, from the table of variants: no test keeps names of its own."""

from typing import Any

from softless.models.hosts import HOSTS
from softless.models.variants import ENTRIES, VARIANTS, RegisteredModel, Variant, first_of_each_host

SIZES = {
    "embed_dim",
    "embed_dims",
    "depth",
    "depths",
    "num_heads",
    "eta",
}  # differ in numbers alone
SMALLEST = {name: dict(host.smallest) for name, host in HOSTS.items()}
# few blocks: every part of a model at its full width, at a cost that tests can pay
FEW_BLOCKS = {
    name: {key: value for key, value in arguments.items() if key in {"depth", "depths"}}
    for name, arguments in SMALLEST.items()
}
FIRST = first_of_each_host()
# the same with the first of their operators
FIRST_ENTRIES = [
    row.entry(row.operators[0]) for name in FIRST for row in VARIANTS if row.name == name
]


def kinds_of_hosts() -> list[Variant]:
    """Variants, each with an argument that none before it has in its host, sizes left aside."""
    found: list[Variant] = []
    seen: set[tuple[str, str, Any]] = set()
    for row in VARIANTS:
        traits: set[tuple[str, str, Any]] = {
            (row.host, key, row.arguments[key]) for key in row.arguments.keys() - SIZES
        }
        traits.add((row.host, "", ""))
        if traits - seen:
            found.append(row)
            seen |= traits
    return found


def kinds_of_entries() -> list[RegisteredModel]:
    """Entries that are no alias: those kinds of hosts, and each operator of a host."""
    found: list[RegisteredModel] = []
    seen: set[tuple[str, str]] = set()
    kinds = {row.name for row in kinds_of_hosts()}
    for entry in ENTRIES.values():
        pair = (entry.variant.host, entry.op)
        if entry.alias_of is None and (entry.variant.name in kinds or pair not in seen):
            found.append(entry)
        seen.add(pair)
    return found
