"""Group F of the bars for reliability: what a request may do to the server, and what not."""

import contextlib
import http.client
import io
import json
import re
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

import softless
from softless.errors import UsageError
from softless.serving import app as routes
from softless.serving.limits import MIB, Limits
from softless.serving.opening import opened
from softless.serving.server import Server, bound
from softless.serving.slide_jobs import Slides
from softless.serving.subject import Subject
from tests.serving.served import (
    BOUNDARY,
    Process,
    answer_of,
    answering,
    ask,
    form,
    picture,
    port_of,
    raw,
    send,
    serving,
    status_of,
)


def saved(kind: str, size: tuple[int, int] = (32, 32), mode: str = "RGB", **options: Any) -> bytes:
    """An image file of one colour."""
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A chunk of a PNG."""
    code = struct.pack(">I", zlib.crc32(kind + content))
    return struct.pack(">I", len(content)) + kind + content + code


def png_of(width: int, height: int, *, texts: int = 0) -> bytes:
    """A small PNG file that says it is large; each text unpacks to a million bytes."""
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    text = chunk(b"zTXt", b"a\0\0" + zlib.compress(b" " * 1_000_000))
    rows = chunk(b"IDAT", zlib.compress(b"\0" * 10_000_000))
    return b"\x89PNG\r\n\x1a\n" + head + text * texts + rows + chunk(b"IEND", b"")


def jpeg_of(width: int, height: int) -> bytes:
    """A JPEG file whose header says another size."""
    content = bytearray(saved("JPEG"))
    start = content.index(b"\xff\xc0") + 5
    content[start : start + 4] = struct.pack(">HH", height, width)
    return bytes(content)


def webp_of(width: int, height: int) -> bytes:
    """An extended WebP file that says it is large."""
    sides = (width - 1).to_bytes(3, "little") + (height - 1).to_bytes(3, "little")
    body = b"WEBPVP8X" + struct.pack("<I", 10) + b"\0\0\0\0" + sides
    return b"RIFF" + struct.pack("<I", len(body)) + body


# F1


@pytest.mark.bar("F1", "a route that does more than it must")
def test_defaults(server: Server, process: Process):
    assert server.socket.getsockname()[0] == "127.0.0.1"
    for path in ("/docs", "/openapi.json", "/redoc", "/shutdown", "/models", "/metrics", "/admin"):
        assert ask(port_of(server), path).status == 404
        assert ask(port_of(server), path, b"", "POST").status in {404, 405}
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        assert ask(port_of(server), "/predict", b"", method).status == 405
    body, headers = form(b"http://127.0.0.1/photo.png", name="url")
    assert ask(port_of(server), "/predict", body, **headers).status == 422
    connected = Path(f"/proc/{process.process.pid}/net/tcp")
    listening = [line.split()[1] for line in connected.read_text().splitlines()[1:]]
    assert f"0100007F:{process.port:04X}" in listening
    assert f"00000000:{process.port:04X}" not in listening


@pytest.mark.bar("F1", "routes are told unless asked")
def test_routes_are_told_when_asked(digits: Path):
    with serving(digits, docs=True) as server:
        page = ask(port_of(server), "/docs")
        schema = ask(port_of(server), "/openapi.json").json
    assert page.status == 200
    assert b"POST /predict" in page.body
    assert set(schema["paths"]) == {"/healthz", "/predict"}
    assert b"http://" not in page.body
    assert b"https://" not in page.body


# F2


def head_of(length: int | None = None, more: str = "") -> bytes:
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return (
        f"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\n{size}\r\n{more}"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    ).encode()


@pytest.mark.bar("F2", "a body without end")
def test_large_bodies(process: Process):
    assert send(process.port, picture()).status == 200
    process.forget_the_most()
    before = process.memory()
    start = time.perf_counter()
    assert status_of(raw(process.port, head_of(30 * MIB))) == 413
    assert time.perf_counter() - start < 3
    part = b"10000\r\n" + b"x" * 65536 + b"\r\n"
    assert status_of(raw(process.port, head_of() + part * (22 * 16))) == 413
    tiny = b"1\r\nx\r\n" * 1_000_000
    start = time.perf_counter()
    assert status_of(raw(process.port, head_of() + tiny + b"0\r\n\r\n")) in {400, 408, 413}
    assert time.perf_counter() - start < 30
    assert process.memory("VmHWM") - before < 32 * MIB
    assert send(process.port, picture()).status == 200


@pytest.mark.bar("F2", "a sender of a byte a second")
def test_slow_senders(digits: Path):
    limits = Limits(receiving=1.5)
    with serving(digits, limits=limits) as server:
        slow_body = head_of(1000)
        for opening in (slow_body, b"GET / HTTP/1.1\r\nHo"):
            with socket.create_connection(("127.0.0.1", port_of(server)), 20) as connection:
                connection.sendall(opening)
                start = time.perf_counter()
                stop = threading.Event()
                thread = threading.Thread(target=drip, args=(connection, stop))
                thread.start()
                answer = answer_of(connection)
                stop.set()
                thread.join()
            assert status_of(answer) == 408
            assert time.perf_counter() - start < 6
        assert send(port_of(server), picture()).status == 200
        # who takes an answer and goes on sending is cut off too
        with socket.create_connection(("127.0.0.1", port_of(server)), 20) as connection:
            connection.sendall(head_of(30 * MIB))
            assert status_of(answer_of(connection)) == 413
            start = time.perf_counter()
            with pytest.raises(OSError, match=r"reset|pipe|closed|aborted"):
                go_on(connection)
            assert time.perf_counter() - start < 8
    assert Limits().receiving < 10


def go_on(connection: socket.socket) -> None:
    """Bytes that nobody asked for, for ten seconds."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        connection.sendall(b"x")
        time.sleep(0.05)


def drip(connection: socket.socket, stop: threading.Event) -> None:
    """A byte now and then."""
    with contextlib.suppress(OSError):
        while not stop.wait(0.2):
            connection.sendall(b"x")


@pytest.mark.bar("F2", "many large bodies at once")
def test_bodies_are_held_within_a_bound(digits: Path):
    with serving(digits, limits=Limits(holding=2 * MIB)) as server:
        reply = send(port_of(server), b"x" * (3 * MIB))
        assert (reply.status, reply.headers["retry-after"]) == (503, "2")
        assert send(port_of(server), picture()).status == 200


# F3


@pytest.mark.bar("F3", "an image that unpacks to gigabytes")
@pytest.mark.parametrize(
    "content",
    [
        png_of(60_000, 60_000),
        png_of(8_193, 16),
        png_of(7_100, 7_100),
        png_of(64, 64, texts=60),
        jpeg_of(65_500, 65_500),
        jpeg_of(16, 8_193),
        webp_of(16_384, 16_384),
        saved("JPEG").replace(b"\xff\xd9", b"\xff\xda" * 500 + b"\xff\xd9"),
    ],
    ids=["png", "long png", "50 MP", "texts", "jpeg", "long jpeg", "webp", "scans"],
)
def test_bombs(process: Process, content: bytes):
    send(process.port, picture())
    process.forget_the_most()
    before = process.memory()
    reply = send(process.port, content)
    assert reply.status in {413, 422}
    assert reply.seconds < 1.0  # on a busy machine; 0.1 s on an idle one
    assert re.search(r"\d+ (x \d+ pixels|scans|packed texts)", reply.json["error"])
    # beside the file itself, which the request holds
    assert process.memory("VmHWM") - before - len(content) < 20 * MIB


# F4


ODD = {
    "empty": b"",
    "html": b"<!doctype html><img src=x onerror=alert(1)>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
    "bmp": saved("BMP"),
    "tiff": saved("TIFF"),
    "gif": saved("GIF"),
    "pdf": saved("PDF"),
    "zip": b"PK\x03\x04" + b"\0" * 60,
    "pickle": b"\x80\x04cos\nsystem\n(S'true'\ntR.",
    "polyglot": b"GIF89a" + saved("PNG"),
    "one pixel": saved("PNG", (1, 1)),
    "half a png": saved("PNG", (64, 64))[:70],
    "half a header": b"\x89PNG\r\n\x1a\n\0\0",
    "half a jpeg": saved("JPEG", (640, 480))[:700],
    "half a webp": saved("WEBP", (64, 64))[:28],
    "no frame": b"\xff\xd8\xff\xd9",
    "deep": saved("PNG", mode="I;16"),
}


@pytest.mark.bar("F4", "another kind of file")
@pytest.mark.parametrize("kind", ODD)
def test_odd_files(server: Server, kind: str):
    reply = send(port_of(server), ODD[kind])
    assert reply.status in {415, 422}
    assert reply.json["error"]
    assert "\n" not in reply.json["error"]
    assert send(port_of(server), picture()).status == 200


@pytest.mark.bar("F4", "one pixel, and a wrong kind of content")
def test_wrong_kinds(server: Server):
    assert send(port_of(server), saved("JPEG", (1, 1))).status == 422
    assert send(port_of(server), picture(), kind="text/html").status == 415
    assert send(port_of(server), picture(), kind="application/octet-stream").status == 200
    assert send(port_of(server), picture(), kind=None).status == 200
    reply = ask(port_of(server), "/predict", picture(), Content_Type="image/png")
    assert reply.status == 415
    for kind in ("JPEG", "PNG", "WEBP"):
        assert send(port_of(server), picture(kind=kind), file="x.exe").status == 200


# F5


@pytest.mark.bar("F5", "a malformed request")
def test_malformed_requests(server: Server):
    port = port_of(server)
    part = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="%s"\r\n\r\nx\r\n'
    many = "".join(part % number for number in range(1_001)) + f"--{BOUNDARY}--\r\n"
    headers = {"Content_Type": f"multipart/form-data; boundary={BOUNDARY}"}
    twice = (part % "image") * 2 + f"--{BOUNDARY}--\r\n"
    nameless = f"--{BOUNDARY}\r\nContent-Type: image/png\r\n\r\nx\r\n--{BOUNDARY}--\r\n"
    long_head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{"n" * 9000}"\r\n\r\nx\r\n'
    for body in (
        many,
        twice,
        nameless,
        long_head,
        "",
        "no form",
        f"--{BOUNDARY}\r\n",
        part % "image",
    ):
        assert ask(port, "/predict", body.encode(), **headers).status == 400, body[:80]
    assert ask(port, "/predict", b"x", Content_Type="multipart/form-data").status == 400
    deep = b"[" * 100_000
    for body in (deep, b'{"image": NaN}', b"{}"):
        assert ask(port, "/predict", body, Content_Type="application/json").status == 400
    large = b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * MIB + b"\r\n\r\n"
    assert status_of(raw(port, large)) in {400, 431}
    assert ask(port, "/", X="x" * 40_000).status == 431
    for line in (
        b"GET\r\n\r\n",
        b"\0\1\2\3\r\n\r\n",
        b"GET / HTTP/9\r\n\r\n",
        b"\x16\x03\x01\0\xa5",
    ):
        with socket.create_connection(("127.0.0.1", port), 20) as connection:
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            assert status_of(answer_of(connection)) in {0, 400}
    assert send(port, picture()).status == 200


# F6


@pytest.mark.bar("F6", "a hundred bad images in a row")
def test_bad_images_in_a_row(process: Process):
    kinds = list(ODD.values())
    for number in range(20):
        assert send(process.port, picture(number)).status == 200
    before, number_of_process = process.memory(), process.process.pid
    for number in range(100):
        assert 400 <= send(process.port, kinds[number % len(kinds)]).status < 500
    assert send(process.port, picture()).status == 200
    assert process.process.poll() is None
    assert process.process.pid == number_of_process
    assert process.memory() < 1.05 * before


# F7, F8, F9, F11: work that stands still until it is let go


class Gate:
    """Work that waits in Python until it is let go, and notes that it was ended."""

    def __init__(self) -> None:
        self.go, self.begun, self.ended = threading.Event(), threading.Event(), threading.Event()
        self.usual = routes.answered

    def __call__(self, *arguments: Any) -> Any:
        self.begun.set()
        try:
            while not self.go.is_set():
                time.sleep(0.005)
        except BaseException:
            self.ended.set()
            raise
        return self.usual(*arguments)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    work = Gate()
    monkeypatch.setattr(routes, "answered", work)
    return work


@pytest.mark.bar("F7", "more requests than there is room for")
def test_the_queue_is_bounded(digits: Path, gate: Gate):
    images = [picture(seed) for seed in range(7)]
    with serving(digits, limits=Limits(waiting=6)) as server, ThreadPoolExecutor(8) as pool:
        port = port_of(server)
        first = pool.submit(send, port, images[0])
        assert gate.begun.wait(20)
        accepted = [pool.submit(send, port, image) for image in images[1:]]
        end = time.monotonic() + 20
        while server.worker.waiting < 6:
            assert time.monotonic() < end
            time.sleep(0.01)
        for _ in range(20):
            reply = send(port, picture())
            assert reply.status == 503
            assert int(reply.headers["retry-after"]) > 0
            assert reply.seconds < 1.0  # 0.05 s on an idle machine
        assert ask(port, "/healthz").json == {"status": "busy", "waiting": 6, "most": 6}
        gate.go.set()
        replies = [task.result() for task in (first, *accepted)]
        assert [reply.status for reply in replies] == [200] * 7
        alone = [send(port, image).json["probabilities"] for image in images]
    assert [reply.json["probabilities"] for reply in replies] == alone
    assert Limits().waiting == 64


@pytest.mark.bar("F8", "a request that takes too long")
def test_what_takes_too_long_is_ended(digits: Path, gate: Gate):
    with serving(digits, limits=Limits(computing=0.5)) as server:
        port = port_of(server)
        threads = server.worker.begun
        reply = send(port, picture())
        assert reply.status == 504
        assert gate.ended.wait(5)
        gate.go.set()
        assert send(port, picture()).status == 200
        assert server.worker.begun == threads + 1
    assert Limits().computing == 30


@pytest.mark.bar("F8", "a request of torch's that takes too long")
def test_a_model_at_work_is_ended(digits: Path, monkeypatch: pytest.MonkeyPatch):
    """Between two operators, wherever it stands; what is left of the model does not matter."""
    with serving(digits, limits=Limits(computing=0.3)) as server:
        port = port_of(server)
        right = send(port, picture()).json["probabilities"]
        usual = routes.answered

        def slowly(subject: Any, *rest: Any) -> Any:
            for _ in range(100_000):
                usual(subject, *rest)

        monkeypatch.setattr(routes, "answered", slowly)
        statuses = [send(port, picture()).status for _ in range(6)]
        monkeypatch.setattr(routes, "answered", usual)
        assert statuses == [504] * 6
        assert send(port, picture()).json["probabilities"] == right


@pytest.mark.bar("F9", "the client goes away")
def test_a_client_that_leaves_ends_its_work(digits: Path, gate: Gate):
    body, _ = form(picture())
    with serving(digits) as server:
        port = port_of(server)
        with socket.create_connection(("127.0.0.1", port), 20) as working:
            working.sendall(head_of(len(body)) + body)
            assert gate.begun.wait(20)
            with socket.create_connection(("127.0.0.1", port), 20) as waiting:
                waiting.sendall(head_of(len(body)) + body)
                end = time.monotonic() + 20
                while not server.worker.waiting:
                    assert time.monotonic() < end
                    time.sleep(0.01)
            end = time.monotonic() + 3
            while server.worker.waiting:
                assert time.monotonic() < end
                time.sleep(0.01)
        assert gate.ended.wait(3)  # 1 s on an idle machine
        gate.go.set()
        assert send(port, picture()).status == 200


@pytest.mark.bar("F11", "the thread that computes ends")
def test_a_thread_that_ends_is_replaced(digits: Path, monkeypatch: pytest.MonkeyPatch):
    def dies(*_: Any) -> Any:
        raise SystemExit

    with serving(digits) as server:
        port = port_of(server)
        usual = routes.answered
        monkeypatch.setattr(routes, "answered", dies)
        reply = send(port, picture())
        assert reply.status == 503
        assert reply.headers["retry-after"]
        monkeypatch.setattr(routes, "answered", usual)
        start = time.monotonic()
        while ask(port, "/healthz").status != 200:
            assert time.monotonic() - start < 5
        assert send(port, picture()).status == 200


@pytest.mark.bar("F11", "the server ends while a request is at work")
def test_the_end_waits_for_work_within_a_bound(digits: Path, gate: Gate):
    with ThreadPoolExecutor(1) as pool:
        with serving(digits, limits=Limits(ending=0.5)) as server:
            waiting = pool.submit(send, port_of(server), picture())
            assert gate.begun.wait(20)
            start = time.monotonic()
        assert time.monotonic() - start < 8
        assert gate.ended.is_set()
        with contextlib.suppress(OSError, http.client.HTTPException):
            assert waiting.result(20).status == 503


# F12


@pytest.mark.bar("F12", "a path that leads out")
@pytest.mark.parametrize(
    "path",
    [
        "/../../../../etc/passwd",
        "/samples/../../canary.txt",
        "/samples/%2e%2e%2fcanary.txt",
        "/samples/..%5c..%5ccanary.txt",
        "/samples//etc/passwd",
        "/samples/%00",
        "/samples/-1",
        "/samples/0%00.png",
        "/samples/99999999999999999999",
        "/slides/0",
        "/slides/../canary.txt",
        "/slides/0/tiles/0/0/0",
        "/slides/0/maps/%2fetc%2fpasswd",
        "//canary.txt",
        "/%5c%5chost%5cshare",
        "/page.css/../canary.txt",
        "/page.js%00",
        "/file:///etc/passwd",
    ],
)
def test_paths(server: Server, digits: Path, path: str):
    canary = digits.parent / "canary.txt"
    canary.write_text("the canary sings")
    head = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
    answer = raw(port_of(server), head.encode())
    assert status_of(answer) in {400, 404}
    assert b"canary sings" not in answer
    assert b"root:" not in answer


@pytest.mark.bar("F12", "a field that leads out")
@pytest.mark.parametrize(
    "sample", ["../../canary.txt", "-1", "0\0", "1e3", "²", "99", "", "9" * 5000]
)
def test_numbers_of_test_images(server: Server, sample: str):
    body = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="sample"\r\n\r\n{sample}\r\n'
    headers = {"Content_Type": f"multipart/form-data; boundary={BOUNDARY}"}
    reply = ask(port_of(server), "/predict", (body + f"--{BOUNDARY}--\r\n").encode(), **headers)
    assert reply.status == 404


# F13


@pytest.mark.bar("F13", "a foreign page or name asks")
def test_foreign_names_are_refused(server: Server):
    port = port_of(server)
    body, headers = form(picture())
    for host in (
        "evil.example",
        f"evil.example:{port}",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1@evil.example",
        "192.168.0.7",
        "",
    ):
        assert ask(port, "/", Host=host).status == 403, host
        assert ask(port, "/predict", body, Host=host, **headers).status == 403
    for host in ("localhost", f"localhost:{port}", "127.0.0.1:9", "[::1]:8000", "LOCALHOST"):
        assert ask(port, "/healthz", Host=host).status == 200, host
    for origin in (
        "http://evil.example",
        "null",
        "https://localhost.evil.example",
        "http://127.0.0.1:1",
        "file://",
    ):
        assert ask(port, "/predict", body, Origin=origin, **headers).status == 403, origin
    reply = ask(port, "/predict", body, Origin=f"http://127.0.0.1:{port}", **headers)
    assert reply.status == 200
    assert not [name for name in reply.headers if name.startswith("access-control")]
    twice = "GET / HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: evil.example\r\n\r\n"
    assert status_of(raw(port, twice.encode())) in {400, 403}
    assert status_of(raw(port, b"GET / HTTP/1.0\r\n\r\n")) == 403


# F14


@pytest.mark.bar("F14", "an answer that is not predict's")
def test_answers_are_those_of_predict(digits: Path, server: Server, tmp_path: Path):
    files = {f"{seed}.png": picture(seed, (30 + seed, 64 - seed)) for seed in range(12)}
    (tmp_path / "images").mkdir()
    for name, content in files.items():
        (tmp_path / "images" / name).write_bytes(content)
    rows: dict[int, dict[str, list[str]]] = {}
    for batch in (1, 64):
        out = softless.predict(
            digits,
            tmp_path / "images",
            tmp_path / f"out-{batch}",
            overlays=False,
            batch_size=batch,
            device="cpu",
        )
        lines = [line.split(",") for line in out.csv.read_text().splitlines()[1:]]
        rows[batch] = {line[0]: line[1:] for line in lines}
    with ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda content: send(port_of(server), content), files.values()))
    for name, reply in zip(files, replies, strict=True):
        said = reply.json
        texts = [f"{share:.6f}" for share in said["probabilities"].values()]
        assert [said["labels"][0], *texts] == rows[1][name]
        together = map(float, rows[64][name][1:])
        assert list(said["probabilities"].values()) == pytest.approx(list(together), abs=1e-6)
        assert send(port_of(server), files[name]).json["probabilities"] == said["probabilities"]


# F15


@pytest.mark.bar("F15", "weights that are not finite")
def test_nan_is_an_error(digits: Path):
    subject = opened(digits, device="cpu")
    with torch.no_grad():
        next(subject.served.loaded.model.parameters()).fill_(float("nan"))
    with answering(server_of_subject(subject)) as server:
        reply = send(port_of(server), picture())
        page = send(port_of(server), picture(), "/look")
        assert ask(port_of(server), "/healthz").status == 200
    assert (reply.status, page.status) == (500, 500)
    assert set(reply.json) == {"error", "id"}
    assert reply.json["id"] in reply.json["error"]
    assert b"nan" not in reply.body.lower()
    assert str(digits).encode() not in reply.body + page.body


def server_of_subject(subject: Subject) -> Server:
    """A server of a model that was changed."""
    listening = bound("127.0.0.1", 0)
    return Server(subject, listening, "127.0.0.1", lambda turn: Slides((), subject.served, turn))


# F16


@pytest.mark.bar("F16", "an answer that tells of the machine")
def test_answers_tell_nothing_of_the_machine(digits: Path, server: Server, gate: Gate):
    port = port_of(server)
    gate.go.set()
    evil = '"><script>alert(1)</script>.png'
    replies = [
        ask(port, "/"),
        ask(port, "/nothing"),
        send(port, picture(), file=evil),
        send(port, b"x", file=evil),
        send(port, ODD["half a jpeg"], file=evil),
        send(port, picture(), "/look", file=evil),
        send(port, b"", "/look", file=evil),
        ask(port, "/samples/x"),
        ask(port, "/predict", b"x", Content_Type="text/plain"),
    ]
    secrets = [
        str(digits),
        str(Path.home()),
        "Traceback",
        "uvicorn",
        "fastapi",
        "starlette",
        "/proc/",
        torch.__version__,
        "alert(1)",
        'File "',
    ]
    for reply in replies:
        text = reply.body.decode() + json.dumps(dict(reply.headers))
        assert [word for word in secrets if word.lower() in text.lower()] == []
        assert "server" not in reply.headers
        assert "'unsafe" not in reply.headers["content-security-policy"]
        assert reply.headers["x-content-type-options"] == "nosniff"


@pytest.mark.bar("F16", "a name that is markup")
def test_names_are_escaped(digits: Path):
    subject = opened(digits, device="cpu")
    loaded = subject.served.loaded
    evil = tuple(f"<img src=x onerror=alert({name})>" for name in loaded.classes)
    served = replace(subject.served, loaded=replace(loaded, classes=evil))
    renamed = replace(subject, served=served, test=replace(subject.test, classes=evil))  # type: ignore[type-var]
    with answering(server_of_subject(renamed)) as server:
        page = ask(port_of(server), "/")
        look = send(port_of(server), picture(), "/look")
    assert b"<img src=x" not in page.body + look.body
    assert b"&lt;img src=x" in page.body
    assert b"&lt;img src=x" in look.body


@pytest.mark.bar("F16", "an error that nobody foresaw")
def test_unforeseen_errors_have_a_number(digits: Path, server: Server, monkeypatch, caplog):
    def breaks(*_: Any) -> Any:
        raise RuntimeError(f"something about {digits}")

    monkeypatch.setattr(routes, "answered", breaks)
    monkeypatch.setattr(routes, "looked_at", breaks)
    reply, page = send(port_of(server), picture()), send(port_of(server), picture(), "/look")
    assert (reply.status, page.status) == (500, 500)
    assert "something" not in (reply.body + page.body).decode()
    assert reply.json["id"] in caplog.text
    assert "something about" in caplog.text


# F17


@pytest.mark.bar("F17", "an upload that stays on the disk")
def test_uploads_leave_nothing(process: Process, tmp_path: Path):
    folder = Path(f"/proc/{process.process.pid}/environ").read_bytes().split(b"\0")
    place = next(Path(entry[7:].decode()) for entry in folder if entry.startswith(b"TMPDIR="))
    handles = process.handles()
    for name in ("../../evil.png", "/tmp/evil.png", "evil\0.png", "C:\\evil.png", "a" * 300):
        reply = send(process.port, picture(size=(400, 400)), file=name)
        assert reply.status in {200, 400}
        send(process.port, ODD["half a jpeg"], file=name)
    time.sleep(0.3)
    assert [path for path in place.rglob("*") if path.is_file() and "evil" in path.name] == []
    assert [path for path in place.rglob("*") if path.suffix in {".png", ".jpg", ".webp"}] == []
    assert not Path("/tmp/evil.png").exists()
    assert process.handles() <= handles + 2


# F18


@pytest.mark.bar("F18", "a server that everybody may ask")
def test_a_public_address_needs_a_word_and_a_token(digits: Path, caplog):
    with pytest.raises(UsageError, match=r"--public"), serving(digits, host="0.0.0.0"):
        pass
    with serving(digits, host="0.0.0.0", public=True) as server:
        port, token = port_of(server), server.token
        assert "can be reached from other machines" in caplog.text
        assert token is not None
        assert len(token) >= 20
        assert f"/?token={token}" in server.address
        body, headers = form(picture())
        for path in ("/", "/healthz", "/page.css", "/samples/0"):
            assert ask(port, path).status == 401
        assert ask(port, "/predict", body, **headers).status == 401
        assert ask(port, "/", Authorization="Bearer wrong").status == 401
        assert ask(port, "/", Cookie="softless=wrong").status == 401
        bearer: dict[str, Any] = {"Authorization": f"Bearer {token}"}
        assert ask(port, "/predict", body, **bearer, **headers).status == 200
        assert ask(port, "/", Host="evil.example", **bearer).status == 403
        assert ask(port, "/healthz", Host="192.168.0.7", **bearer).status == 200
        first = ask(port, f"/?token={token}")
        assert (first.status, first.headers["location"]) == (303, "/")
        cookie = first.headers["set-cookie"]
        assert "HttpOnly" in cookie
        assert "SameSite=Strict" in cookie
        assert ask(port, "/", Cookie=cookie.partition(";")[0]).status == 200
