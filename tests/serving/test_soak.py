"""Minutes of load, hostile requests and slow clients: nothing is lost, nothing grows.

SOFTLESS_SOAK_MINUTES is how long the load lasts, 30 by default.
"""

import contextlib
import os
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.serving.served import Process, Reply, answer_of, ask, picture, raw, send, status_of
from tests.serving.test_bars import ODD, head_of, jpeg_of, png_of, webp_of

pytestmark = pytest.mark.soak
MINUTES = float(os.environ.get("SOFTLESS_SOAK_MINUTES", "30"))
CLIENTS = 8  # at work at once: more than one thread can answer


@pytest.fixture
def process(digits: Path) -> Iterator[Process]:
    started = Process(str(digits))
    try:
        yield started
    finally:
        started.end()


def hostile(number: int) -> bytes:
    """Bytes of a request that no honest client sends, another for each number."""
    draw = random.Random(number)
    junk = draw.randbytes(draw.randrange(1, 4000))
    kinds = [
        junk + b"\r\n\r\n",
        b"POST /predict HTTP/1.1\r\n" + junk[:200] + b"\r\n\r\n",
        head_of(len(junk)) + junk,
        head_of() + b"%x\r\n" % len(junk) + junk + b"\r\n0\r\n\r\n",
        head_of() + junk,
        b"GET /" + junk[:100].hex().encode() + b" HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: " + junk[:50].hex().encode() + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        head_of(5) + b"--\r\n\r",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ]
    return kinds[number % len(kinds)]


def test_five_hundred_hostile_requests(process: Process):
    expected = send(process.port, picture()).json["probabilities"]
    bombs = [
        png_of(60_000, 60_000),
        jpeg_of(65_500, 65_500),
        webp_of(16_384, 16_384),
        *ODD.values(),
    ]
    for number in range(500):
        with (
            contextlib.suppress(OSError),
            socket.create_connection(("127.0.0.1", process.port), 20) as connection,
        ):
            connection.sendall(hostile(number))
            connection.shutdown(socket.SHUT_WR)
            assert status_of(answer_of(connection)) not in {200, 500}, hostile(number)[:200]
        assert 400 <= send(process.port, bombs[number % len(bombs)]).status < 500
    assert send(process.port, picture()).json["probabilities"] == expected
    assert process.process.poll() is None


def test_sixty_four_slow_clients(process: Process):
    """While they dawdle, others are answered; then they are told that they were too slow."""
    expected = send(process.port, picture()).json["probabilities"]
    slow = [socket.create_connection(("127.0.0.1", process.port), 40) for _ in range(64)]
    start, stop = time.monotonic(), threading.Event()

    def dawdle() -> None:
        for connection in slow:
            connection.sendall(head_of(100_000))
        while not stop.wait(1.0):
            for connection in slow:
                with contextlib.suppress(OSError):
                    connection.sendall(b"x")

    thread = threading.Thread(target=dawdle)
    thread.start()
    for _ in range(20):
        assert send(process.port, picture()).json["probabilities"] == expected
    statuses = Counter(status_of(answer_of(connection)) for connection in slow)
    lasted = time.monotonic() - start
    stop.set()
    thread.join()
    for connection in slow:
        connection.close()
    assert statuses == {408: 64}
    assert lasted < 30
    assert send(process.port, picture()).json["probabilities"] == expected


def test_a_load_of_minutes(process: Process, capsys: pytest.CaptureFixture[str]):
    """Twice what it can answer, good images and bad ones: no answer is lost or another."""
    images = [picture(seed) for seed in range(16)]
    expected = [send(process.port, image).json["probabilities"] for image in images]
    alone = sorted(send(process.port, images[0]).seconds for _ in range(100))[98]
    settle(process, images)
    memory, handles = process.memory(), process.handles()
    end = time.monotonic() + 60 * MINUTES
    statuses: Counter[int] = Counter()
    times: list[float] = []
    lock = threading.Lock()

    def client(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < end:
            place = draw.randrange(len(images) + 4)
            if place < len(images):
                reply = send(process.port, images[place])
                same = reply.status != 200 or reply.json["probabilities"] == expected[place]
                assert same, "another answer"
                note(reply)
            elif place == len(images):
                raw(process.port, hostile(draw.randrange(500)))
            else:
                reply = send(process.port, draw.choice(list(ODD.values())))
                assert 400 <= reply.status < 500

    def note(reply: Reply) -> None:
        with lock:
            statuses[reply.status] += 1
            if reply.status == 200:
                times.append(reply.seconds)

    with ThreadPoolExecutor(CLIENTS) as pool:
        for task in [pool.submit(client, number) for number in range(CLIENTS)]:
            task.result()
    settle(process, images)
    worst = sorted(times)[int(0.99 * len(times))]
    with capsys.disabled():
        print(
            f"\n{MINUTES:g} minutes, {CLIENTS} clients: {dict(statuses)}, 99 % within {worst:.3f} s"
            f" ({alone:.3f} s alone), memory {memory >> 20} to {process.memory() >> 20} MiB, "
            f"handles {handles} to {process.handles()}"
        )
    assert set(statuses) <= {200, 503}
    assert statuses[200] > 10 * MINUTES
    # each of so many clients waits for the others at most
    assert worst < 3 * CLIENTS * alone
    assert process.memory() < 1.05 * memory
    assert process.handles() <= handles + 4
    assert process.process.poll() is None
    assert ask(process.port, "/healthz").json["waiting"] == 0


def settle(process: Process, images: list[bytes]) -> None:
    """What is made once is made, and connections are closed."""
    for image in images * 4:
        assert send(process.port, image).status == 200
        for bad in ODD.values():
            send(process.port, bad)
    time.sleep(7)
