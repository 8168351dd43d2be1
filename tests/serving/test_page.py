"""What the page and /predict say of each task and of slides; what is refused; how it ends."""

import base64
import io
import json
import re
import signal
import socket
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import softless
from softless.data import progress
from softless.errors import DataError, Interrupted, UsageError
from softless.recipes import get_recipe
from softless.serving import opening
from softless.serving.page import WAYS
from softless.serving.server import bound
from softless.serving.worker import Turn, Worker
from softless.tasks.loaded import load_run
from softless.tasks.table import TABLE
from softless.training import fit
from tests.serving.served import (
    Process,
    ask,
    form,
    picture,
    port_of,
    send,
    serving,
)


class Texts(HTMLParser):
    """The words of a page, and its elements."""

    def __init__(self, page: bytes) -> None:
        super().__init__()
        self.words: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        """All words, spaces as one."""
        return " ".join(" ".join(self.words).split())


def sample(port: int, number: int, path: str = "/look") -> bytes:
    """The page about a test image."""
    body, headers = form(str(number).encode(), name="sample", kind=None)
    reply = ask(port, path, body, **headers)
    assert reply.status == 200, reply.body
    return reply.body


def test_a_classifier_beside_its_twin(digits: Path, twin: Path):
    with serving(digits, twin=twin) as server:
        port = port_of(server)
        page, look = Texts(ask(port, "/").body), Texts(sample(port, 2))
        said = json.loads(sample(port, 2, "/predict"))
    loaded, other = load_run(digits), load_run(twin)
    assert "names one class of an image: 0, 1, 2" in page.text
    assert "Trained on digits" in page.text
    buttons = [attributes for tag, attributes in page.elements if tag == "button"]
    assert sum(attributes.get("name") == "sample" for attributes in buttons) == 12
    assert said["labels"][0] in look.text
    assert "truth:" in look.text
    assert "says:" in look.text
    size = (loaded.in_chans, *loaded.pixels)
    ours, theirs = softless.cost(loaded.model, size), softless.cost(other.model, size)
    assert ours.exps == 0 < theirs.exps
    row = re.search(r"Exponentials in attention exp and softmax 0 ([\d ]+) none", look.text)
    assert row is not None
    assert int(row[1].replace(" ", "")) == theirs.exps
    assert re.search(r"Time on this machine, median \S+ ms \S+ ms", look.text)
    assert "Trained at 16 tokens (32 x 32 pixels); this is 16 tokens (32 x 32 pixels)." in look.text
    names = [
        attributes["alt"] for tag, attributes in look.elements if tag == "img" and attributes["alt"]
    ]
    assert [str(name).partition(":")[0] for name in names] == [
        "what the model sees",
        "queries",
        "keys",
        "class token",
    ]


def test_a_form_without_scripts_gives_a_whole_page(digits: Path):
    with serving(digits) as server:
        page = send(port_of(server), picture(), "/look")
        body, headers = form(picture())
        part = ask(port_of(server), "/look", body, **headers, X_Part="1")
        wrong = send(port_of(server), b"x", "/look")
    assert page.body.startswith(b"<!doctype html>")
    assert part.body.startswith(b"<div>")
    assert wrong.status == 415
    assert "this is no image of a kind that is taken" in Texts(wrong.body).text


def test_the_page_asks_no_other_host(digits: Path):
    with serving(digits) as server:
        port = port_of(server)
        texts = [ask(port, path).body.decode() for path in ("/", "/page.css", "/page.js")]
        page = ask(port, "/")
    assert [
        found for text in texts for found in re.findall(r"(?:https?:)?//[\w.]+\.\w+", text)
    ] == []
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy.replace("'self'", "")
    elements = Texts(page.body).elements
    assert not any("style" in attributes or "onclick" in attributes for _, attributes in elements)


@pytest.mark.slow
def test_a_detector(boxes: Path, tmp_path: Path):
    loaded = load_run(boxes)
    (tmp_path / "0.png").write_bytes(picture(size=(96, 80)))
    out = softless.predict(
        boxes, tmp_path / "0.png", tmp_path / "out", overlays=False, device="cpu"
    )
    known = json.loads(out.json.read_text())
    with serving(boxes) as server:
        said = send(port_of(server), (tmp_path / "0.png").read_bytes()).json
        look = Texts(send(port_of(server), (tmp_path / "0.png").read_bytes(), "/look").body)
    names = {category["id"]: category["name"] for category in known["categories"]}
    expected = sorted(known["annotations"], key=lambda answer: -answer["score"])
    assert [(box["class"], box["score"], box["bbox"]) for box in said["boxes"]] == [
        (names[answer["category_id"]], answer["score"], answer["bbox"]) for answer in expected
    ]
    assert said["task"] == loaded.task == "detection"
    sure = sum(answer["score"] >= 0.3 for answer in expected)
    assert f"{sure} object" in look.text
    assert "Not counted:" in look.text


@pytest.mark.slow
def test_a_segmenter(areas: Path, tmp_path: Path):
    (tmp_path / "0.png").write_bytes(picture(size=(96, 80)))
    out = softless.predict(
        areas, tmp_path / "0.png", tmp_path / "out", overlays=False, device="cpu"
    )
    with serving(areas) as server:
        said = send(port_of(server), (tmp_path / "0.png").read_bytes()).json
        look = Texts(send(port_of(server), (tmp_path / "0.png").read_bytes(), "/look").body)
        large = send(port_of(server), picture(size=(96, 80)), "/look")
        assert large.status == 200
    image = Image.open(io.BytesIO(base64.b64decode(said["label_image"].partition(",")[2])))
    expected = Image.open(next(out.labels.glob("*.png")))
    values = np.asarray(image)
    assert list(said["values"]) == list(load_run(areas).classes)
    inside = np.asarray(expected) != 255  # a run of vessels leaves out what is outside the field
    assert (values[inside] == np.asarray(expected)[inside]).all()
    assert sum(said["shares"].values()) == pytest.approx(1)
    assert "Areas" in look.text


def test_an_image_that_needs_too_much_memory_is_refused(areas: Path):
    from softless.serving.limits import Limits

    with serving(areas, limits=Limits(memory=1_000_000)) as server:
        reply = send(port_of(server), picture(size=(96, 80)))
    assert reply.status == 413
    assert "GB may be used" in reply.json["error"]


def test_an_exported_file(digits: Path, tmp_path: Path):
    file = softless.export(str(digits), "pt2", tmp_path / "files").path
    with serving(digits) as server:
        expected = send(port_of(server), picture()).json["probabilities"]
    with serving(file) as server:
        said = send(port_of(server), picture()).json
        look = Texts(send(port_of(server), picture(), "/look").body)
        page = Texts(ask(port_of(server), "/").body)
    assert said["probabilities"] == pytest.approx(expected, abs=1e-5)
    assert "An exported file holds no attention layers" in look.text
    assert not [1 for tag, attributes in page.elements if attributes.get("name") == "sample"]


def test_a_slide_is_looked_at_and_zoomed(digits: Path, tmp_path: Path):
    file = tmp_path / "a large image.png"
    file.write_bytes(picture(size=(900, 700)))
    expected = softless.slide(
        str(digits), str(file), out=tmp_path / "out", quiet=True, device="cpu"
    )
    with serving(digits, slide=[file]) as server:
        port = port_of(server)
        page = Texts(ask(port, "/slides/0").body)
        body, headers = form(b"0", name="level", kind=None)
        assert ask(port, "/slides/0/look", body, **headers).status == 303
        state = wait(port)
        done = Texts(ask(port, "/slides/0").body)
        tiles = [ask(port, f"/slides/0/tiles/{halved}/0/0") for halved in (0, 1, 2)]
        assert ask(port, "/slides/0/tiles/3/0/0").status == 404
        assert ask(port, "/slides/0/tiles/0/3/0").status == 404
        overlay = Image.open(io.BytesIO(ask(port, "/slides/0/maps/1").body))
        assert ask(port, "/slides/0/maps/9").status == 404
        assert ask(port, "/slides/1").status == 404
        wrong, headers = form(b"7", name="level", kind=None)
        assert ask(port, "/slides/0/look", wrong, **headers).status == 422
    assert "900 x 700 pixels" in page.text
    assert str(tmp_path) not in page.text
    assert state["probabilities"] == dict(expected.answers[0].classes)
    assert overlay.size == (113, 88)
    sizes = [Image.open(io.BytesIO(tile.body)).size for tile in tiles]
    assert sizes == [(256, 256), (256, 256), (225, 175)]
    (canvas,) = [attributes for tag, attributes in done.elements if tag == "canvas"]
    assert canvas["tabindex"] == "0"
    covers = [
        attributes["data-covers"]
        for tag, attributes in done.elements
        if "data-covers" in attributes
    ]
    assert covers[0] == "0 0 904 704"


def wait(port: int) -> Any:
    """The state of the slide, once it is done."""
    end = time.monotonic() + 60
    while True:
        state = ask(port, "/slides/0/state").json
        if state["state"] != "at work":
            assert state["state"] == "done", state
            return state
        assert time.monotonic() < end
        time.sleep(0.02)


def test_images_go_before_a_slide():
    """A slide holds its turn in steps, and an image that comes meanwhile waits for one at most."""
    turn = Turn()
    worker: Worker[None] = Worker(lambda: None, waiting=8, turn=turn)
    order: list[str] = []
    with turn.of_slide() as let_by:
        for step in range(3):
            job = worker.submit(partial(noted, order, f"image {step}"))
            order.append(f"step {step}")
            while worker._turn._requests == 0:  # it waits for its turn
                time.sleep(0.001)
            let_by()
            job.outcome.result(5)
    assert order == ["step 0", "image 0", "step 1", "image 1", "step 2", "image 2"]
    assert worker.close(5)


def test_progress_is_heard_in_its_thread_alone():
    heard: list[tuple[str, int, int]] = []
    with progress.heard_by(lambda *state: heard.append(state)):
        assert list(progress.track([5, 6], 2, "counting")) == [5, 6]
    list(progress.track([7], 1, "unheard"))
    assert heard == [("counting", 1, 2), ("counting", 2, 2)]


@pytest.mark.parametrize("seconds", [0.0, 0.002, 0.01])
def test_a_job_that_is_stopped_leaves_nothing(seconds: float):
    """At any instant: each job has an outcome, and the next ones are right."""
    worker: Worker[list[int]] = Worker(lambda: [1], waiting=100)
    jobs = []
    for number in range(40):
        job = worker.submit(partial(work, number))
        time.sleep(seconds)
        if number % 2:
            worker.stop(job)
        jobs.append(job)
    for number, job in enumerate(jobs):
        if number % 2 and job.outcome.exception(20) is not None:
            continue
        assert job.outcome.result(20) == number
    assert worker.submit(len).outcome.result(20) == 1
    assert worker.close(5)


def noted(order: list[str], what: str, _: None) -> None:
    order.append(what)


def work(number: int, _: list[int]) -> int:
    end = time.perf_counter() + 0.003
    while time.perf_counter() < end:
        pass
    return number


# What is refused at the start


def test_a_port_that_is_taken(digits: Path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"port {port} is in use: choose another"):
            softless.serve(digits, port=port)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"port": -1}, "ports are 0 to 65535"),
        ({"port": 70_000}, "ports are 0 to 65535"),
        ({"host": "no.such.host.invalid"}, "--public"),
        ({"slide": ["nothing.svs"]}, "no file there"),
        ({"twin": "nothing"}, "no run folder at nothing"),
        ({"device": "cuda:9"}, "no CUDA device"),
    ],
)
def test_what_cannot_be_served_is_said(digits: Path, options: Mapping[str, Any], sentence: str):
    if "device" in options and torch.cuda.is_available():
        pytest.skip("there is such a device")
    with pytest.raises(UsageError, match=re.escape(sentence)):
        softless.serve(digits, **{"port": 0, **options})


def test_addresses_that_are_not_ours(monkeypatch: pytest.MonkeyPatch):
    def unknown(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    with pytest.raises(UsageError, match="no address of this machine"):
        bound("no.such.host.invalid", 0)
    foreign = (socket.AF_INET, socket.SOCK_STREAM, 0, "", ("192.0.2.1", 0))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [foreign])
    with pytest.raises(UsageError, match="not an address of this machine"):
        bound("192.0.2.1", 0)


def test_runs_that_answer_no_images(digits: Path, tmp_path: Path):
    with pytest.raises(DataError, match="no run folder at"):
        softless.serve(tmp_path / "nothing", port=0)
    fit(
        get_recipe("dino").quick(tmp_path / "data"), tmp_path / "dino", device="cpu", progress=False
    )
    with pytest.raises(UsageError, match="learned features without labels"):
        softless.serve(tmp_path / "dino", port=0)


@pytest.mark.parametrize("task", sorted(set(TABLE) - set(WAYS) - {"dino"}))
def test_runs_of_other_tasks(task: str, digits: Path, monkeypatch: pytest.MonkeyPatch):
    """A task that the page knows nothing of is refused by name."""
    loaded = load_run(digits)
    other = replace(loaded, best={**loaded.best, "task": task})
    monkeypatch.setattr(opening, "run_or_file", lambda *_: other)
    with pytest.raises(UsageError, match=f"is a run of {task}, which answers no images on a page"):
        softless.serve(digits, port=0)


def test_a_twin_of_others_is_refused(digits: Path, colour: Path, areas: Path):
    with pytest.raises(UsageError, match="has other classes than"):
        softless.serve(digits, twin=colour, port=0)
    with pytest.raises(UsageError, match="is a run of segmentation"):
        softless.serve(digits, twin=areas, port=0)


def test_slides_are_for_classifiers(areas: Path, digits: Path, tmp_path: Path):
    file = tmp_path / "0.png"
    file.write_bytes(picture())
    with pytest.raises(UsageError, match="slides are classified"):
        softless.serve(areas, slide=[file], port=0)
    (tmp_path / "1.svs").write_bytes(b"no slide")
    with pytest.raises(DataError, match=r"1\.svs"):
        softless.serve(digits, slide=[tmp_path / "1.svs"], port=0)


# How it ends


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it(digits: Path, number: signal.Signals):
    process = Process(str(digits))
    body, headers = form(picture())
    with socket.create_connection(("127.0.0.1", process.port), 20) as slow:
        slow.sendall(b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\nx")
        assert ask(process.port, "/predict", body, **headers).status == 200
        start = time.monotonic()
        process.process.send_signal(number)
        while len(process.said) < 2:
            assert time.monotonic() - start < 8
            time.sleep(0.01)
    # torch takes its time to leave a busy machine
    assert process.process.wait(30) == 128 + number
    process.close()
    assert process.said[1:] == [f"softless: {number.name}: the server has ended\n"]


def test_the_command_says_where_and_why(digits: Path, monkeypatch, capsys):
    from softless.cli import serve as command

    def ended(self: Any, ready: Any) -> None:
        ready()
        self.close()
        raise Interrupted("SIGINT: the server has ended", 130)

    monkeypatch.setattr(command.Server, "serve", ended)
    with pytest.raises(Interrupted):
        softless.serve(digits, port=0)
    assert re.fullmatch(r"http://127\.0\.0\.1:\d+/  \(Ctrl-C ends it\)\n", capsys.readouterr().err)
