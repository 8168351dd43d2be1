"""The server around the routes: its socket, its patience with connections, and how it ends."""

import asyncio
import errno
import logging
import os
import secrets
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from softless.data.notices import notice
from softless.errors import Interrupted, UsageError
from softless.serving.app import Desk, build
from softless.serving.guard import is_loopback
from softless.serving.limits import Limits
from softless.serving.subject import Subject, memory_free
from softless.serving.viewed import Shelf
from softless.serving.worker import Turn, Worker

LAST = 2.0  # seconds that the thread that computes has to end
TOO_SLOW = (
    b"HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\nconnection: close\r\n"
    b"content-length: 47\r\n\r\n"
    b'{"error": "the request did not come in time"}\r\n'
)


class Server:
    """A model on a socket of this machine.

    Args:
        subject: what is served.
        listening: the socket (`bound`).
        host: the address that it listens at.
        shelf: makes the slides that may be looked at, by the turns of the computation.
        docs: whether the routes are told.
        limits: of requests.
    """

    def __init__(
        self,
        subject: Subject,
        listening: socket.socket,
        host: str,
        shelf: Callable[[Turn], Shelf],
        *,
        docs: bool = False,
        limits: Limits | None = None,
    ) -> None:
        limits = limits or Limits()
        if not limits.memory:
            limits = replace(limits, memory=memory_free() // 2)
        turn = Turn()
        self.limits, self.host, self.socket = limits, host, listening
        self.slides = shelf(turn)
        self.worker: Worker[Subject] = Worker(subject.fresh, waiting=limits.waiting, turn=turn)
        self.token = None if is_loopback(host) else secrets.token_urlsafe(18)
        desk = Desk(subject, self.worker, self.slides, limits)
        self.app = build(desk, host, docs=docs, token=self.token)
        self.ended: signal.Signals | None = None

    @property
    def address(self) -> str:
        """Where a browser finds it, with the token where there is one."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        if self.host in {"0.0.0.0", "::"}:  # noqa: S104 - what is listened at, and named here
            name = socket.gethostname()
        token = f"?token={self.token}" if self.token else ""
        return f"http://{name}:{self.socket.getsockname()[1]}/{token}"

    def serve(self, ready: Callable[[], None] = lambda: None) -> None:
        """Answer until a signal comes.

        Args:
            ready: called when the first request could be answered.

        Raises:
            Interrupted: SIGTERM or SIGINT came; requests at work were answered or ended.
        """
        self._server = _uvicorn(self, ready)
        try:
            self._server.run(sockets=[self.socket])
        finally:
            idle = self.close()
        if self.ended is not None:
            stopped = Interrupted(f"{self.ended.name}: the server has ended", 128 + self.ended)
            if not idle:  # a call of torch cannot be broken off, and would hold the process
                logging.getLogger("softless.serving").warning("%s", stopped)
                os._exit(stopped.exit_code)
            raise stopped

    def stop(self) -> None:
        """End `serve`, from any thread."""
        self._server.should_exit = True

    def close(self) -> bool:
        """End the threads and give the socket back; whether all ended in time."""
        slides = self.slides.close(LAST / 2)
        worker = self.worker.close(LAST)
        self.socket.close()
        return slides and worker


def check_host(host: str, *, public: bool) -> None:
    """Whether an address that other machines reach is meant.

    Raises:
        UsageError: it is one, and nobody said so.
    """
    if is_loopback(host):
        return
    if not public:
        raise UsageError(
            f"--host {host} can be reached from other machines: add --public if that is meant, "
            "and a token will be asked for"
        )
    notice(
        f"{host} can be reached from other machines, over plain HTTP that others can read: who has "
        "the address below with its token may send images"
    )


def bound(host: str, port: int) -> socket.socket:
    """A socket that listens at an address.

    Raises:
        UsageError: it is taken, not ours, or no address.
    """
    if not 0 <= port <= 65535:
        raise UsageError(f"--port {port}: ports are 0 to 65535, and 0 takes one that is free")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"--host {host}: no address of this machine ({error.strerror})") from error
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(256)
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise UsageError(
                f"port {port} is in use: choose another with --port, or --port 0 for one that is "
                "free"
            ) from error
        if error.errno in {errno.EACCES, errno.EPERM}:
            raise UsageError(f"port {port} may not be taken: choose one above 1023") from error
        raise UsageError(f"--host {host}: not an address of this machine") from error
    return listening


def _uvicorn(owner: Server, ready: Callable[[], None]) -> Any:
    """The server of uvicorn with our patience and our signals."""
    import uvicorn

    class Quiet(uvicorn.Server):
        @contextmanager
        def capture_signals(self) -> Iterator[None]:
            """The first signal ends it in order, the second at once."""
            if threading.current_thread() is not threading.main_thread():
                yield
                return

            def handle(number: int, _: object) -> None:
                if owner.ended is not None:
                    os._exit(128 + number)
                owner.ended, self.should_exit = signal.Signals(number), True

            before = {
                number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)
            }
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

        async def shutdown(self, sockets: Any = None) -> None:
            """Requests that have not come whole are let go, and those at work are waited for."""
            for connection in list(self.server_state.connections):
                cycle = getattr(connection, "cycle", None)
                if cycle is not None and cycle.more_body and not cycle.response_complete:
                    connection.transport.abort()
            await super().shutdown(sockets=sockets)

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            await asyncio.to_thread(owner.worker.ready.wait)
            ready()

    # who sends damaged forms would fill the log
    logging.getLogger("python_multipart").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        owner.app,
        http=protocol(owner.limits),
        ws="none",
        lifespan="off",
        loop="asyncio",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=True,
        proxy_headers=False,
        limit_concurrency=owner.limits.connections,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=owner.limits.ending,  # type: ignore[arg-type]  # waits as long
        h11_max_incomplete_event_size=32_768,
    )
    return Quiet(config)


def protocol(limits: Limits) -> type:
    """HTTP as uvicorn speaks it, with an end to waiting: for a request, its body and its reader."""
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Patient(H11Protocol):
        """A connection that is looked after every second."""

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.since, self.answering = self.loop.time(), False
            self.watch = self.loop.call_later(1.0, self.look)

        def connection_lost(self, exc: Exception | None) -> None:
            self.watch.cancel()
            super().connection_lost(exc)

        def look(self) -> None:
            """Whether the phase that it is in has lasted too long."""
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering != self.answering:
                self.since, self.answering = self.loop.time(), answering
            lasted = self.loop.time() - self.since
            patience = (
                limits.receiving + limits.queueing + limits.computing + limits.answering
                if answering
                else limits.receiving
            )
            if lasted > patience - 1.0 and not self.transport.is_closing():
                self.give_up(answering=answering)
                return
            self.watch = self.loop.call_later(1.0, self.look)

        def give_up(self, *, answering: bool) -> None:
            """Close it; who has not sent a whole request is told."""
            if not answering and self.cycle is None:
                self.transport.write(TOO_SLOW)
                self.transport.close()
            else:
                self.transport.abort()

    return Patient
