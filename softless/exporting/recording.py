"""What is recorded of a source: the graph, what it is held against, and what its file must say."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from softless.exporting.graph import Graph


@dataclass(frozen=True)
class Recording:
    """A graph, and what goes with it into a file."""

    graph: Graph
    form: str  # edge or plain
    why: str  # why plain, where the edge form was possible to ask for
    decoding: Mapping[str, Any] | None = None  # what makes answers of a detector's maps
    parts: Mapping[str, Graph] = field(default_factory=dict)  # further graphs in files beside
    notes: tuple[str, ...] = ()
