"""Why a request gets no answer: a status of HTTP, and one sentence for people."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Refusal(Exception):
    """A request that is not answered; the sentence names no place of this machine."""

    status: int
    sentence: str
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.sentence


class Gone(Exception):
    """The client has left: nobody is to be answered."""
