"""What a request may cost the server: sizes, seconds, and how many wait."""

from dataclasses import dataclass

MIB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """The bounds of one server; times are seconds."""

    body: int = 20 * MIB  # bytes of a request
    holding: int = 256 * MIB  # bytes of all requests that are being received or wait
    parts: int = 16  # of a form
    pixels: int = 50_000_000  # of an image, by its header
    side: int = 8_192  # pixels of an image's longer side
    shorter: int = 8  # pixels of its shorter side, at least
    waiting: int = 64  # requests in the queue
    receiving: float = 9.0  # until a request has come whole, its headers too
    computing: float = 30.0  # of one request, from its turn on
    queueing: float = 90.0  # until its turn
    answering: float = 30.0  # until its answer is taken
    ending: float = 3.0  # for requests at work when a signal ends the server
    memory: int = 0  # bytes that an image may need; 0 is half of what is free at the start
    connections: int = 512
