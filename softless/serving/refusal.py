"""Why a request gets no answer: a status of HTTP, and one sentence for people."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class Refusal(Exception):
    """A request that is not answered; the sentence names no place of this machine."""

    status: int
    sentence: str
    headers: Mapping[str, str] = field(default_factory=dict)
    number: str = ""  # under which the log tells more

    @property
    def body(self) -> dict[str, str]:
        """For JSON."""
        return {"error": self.sentence, **({"id": self.number} if self.number else {})}

    def __str__(self) -> str:
        return self.sentence


class Gone(Exception):
    """The client has left: nobody is to be answered."""
