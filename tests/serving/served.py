"""A server of a small run, in this process or in its own, and clients that speak plain bytes."""

import contextlib
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from softless.cli.serve import server_of
from softless.serving.limits import Limits
from softless.serving.server import Server

BOUNDARY = "softlessformboundary"
PATIENCE = 60.0  # seconds for what takes less on an idle machine


class Reply(NamedTuple):
    """An answer of the server."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    seconds: float

    @property
    def json(self) -> Any:
        """The body as JSON, in which no constant such as NaN is taken."""
        return json.loads(self.body, parse_constant=_refused)


def _refused(name: str) -> None:
    raise ValueError(f"{name} in JSON")


@contextmanager
def serving(run: Path, *, limits: Limits | None = None, **options: Any) -> Iterator[Server]:
    """A server at a free port, in a thread of this process."""
    with answering(server_of(run, port=0, device="cpu", limits=limits, **options)) as server:
        yield server


@contextmanager
def answering(server: Server) -> Iterator[Server]:
    """A server that answers as long as the block lasts."""
    ready = threading.Event()
    thread = threading.Thread(target=server.serve, args=(ready.set,), name="the server")
    thread.start()
    assert ready.wait(PATIENCE)
    try:
        yield server
    finally:
        server.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def port_of(server: Server) -> int:
    """Where it listens."""
    return int(server.socket.getsockname()[1])


def ask(
    port: int,
    path: str,
    body: bytes | None = None,
    method: str | None = None,
    **headers: str,
) -> Reply:
    """An answer; names of headers have _ for -."""
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method or ("GET" if body is None else "POST"), path, body, named)
        reply = connection.getresponse()
        content = reply.read()
        return Reply(
            reply.status,
            {name.lower(): value for name, value in reply.getheaders()},
            content,
            time.perf_counter() - start,
        )
    finally:
        connection.close()


def form(
    content: bytes, *, name: str = "image", file: str = "photo.png", kind: str | None = "image/png"
) -> tuple[bytes, dict[str, str]]:
    """A form with one file: its body and headers."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"; filename="{file}"\r\n'
    head += f"Content-Type: {kind}\r\n" if kind else ""
    body = head.encode() + b"\r\n" + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    return body, {"Content_Type": f"multipart/form-data; boundary={BOUNDARY}"}


def send(port: int, content: bytes, path: str = "/predict", **options: Any) -> Reply:
    """The answer to an image."""
    body, headers = form(content, **options)
    return ask(port, path, body, **headers)


def raw(port: int, content: bytes, *, seconds: float = PATIENCE) -> bytes:
    """What comes back for plain bytes, until the server closes or a whole answer is there."""
    with socket.create_connection(("127.0.0.1", port), seconds) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(content)
        return answer_of(connection)


def answer_of(connection: socket.socket) -> bytes:
    """One answer, whole."""
    answer = b""
    with contextlib.suppress(ConnectionResetError, TimeoutError):
        while part := connection.recv(65536):
            answer += part
            head, found, body = answer.partition(b"\r\n\r\n")
            length = [
                int(line.split(b":")[1])
                for line in head.lower().split(b"\r\n")
                if line.startswith(b"content-length:")
            ]
            if found and length and len(body) >= length[0]:
                break
    return answer


def status_of(answer: bytes) -> int:
    """The status of plain bytes; 0 where none came."""
    return int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/1.1 ") else 0


def picture(seed: int = 0, size: tuple[int, int] = (40, 48), kind: str = "PNG") -> bytes:
    """An image file of noise with a bright patch."""
    draw = np.random.default_rng(seed)
    pixels = draw.integers(0, 160, (size[1], size[0], 3), dtype=np.uint8)
    pixels[5:15, 5:20] = 250
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


class Process:
    """A server in a process of its own, as people start it."""

    def __init__(self, *words: str, temporary: Path | None = None) -> None:
        place = {} if temporary is None else {"TMPDIR": str(temporary)}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "softless", "serve", *words, "--port", "0", "--device", "cpu"],
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **place},
        )
        assert self.process.stderr is not None
        self.said: list[str] = []
        for line in self.process.stderr:
            self.said.append(line)
            if line.startswith("http://"):
                break
        else:
            raise AssertionError("".join(self.said))
        self.address = self.said[-1].split()[0]
        self.port = int(self.address.split(":")[2].split("/")[0])
        self.reader = threading.Thread(target=self._read, daemon=True)
        self.reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.said.extend(self.process.stderr)

    def memory(self, name: str = "VmRSS") -> int:
        """Bytes that it holds now; with VmHWM the most that it ever held."""
        status = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in status if line.startswith(name))

    def forget_the_most(self) -> None:
        """VmHWM begins anew."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    def handles(self) -> int:
        """Files and sockets that it has open."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def end(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.terminate()
        code = self.process.wait(PATIENCE)
        self.close()
        return code

    def close(self) -> None:
        """What it said is read to its end."""
        self.reader.join(5)
        for stream in (self.process.stdout, self.process.stderr):
            assert stream is not None
            stream.close()
