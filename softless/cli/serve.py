"""`softless serve`: a page on this machine to try a model with."""

import sys
from collections.abc import Sequence
from pathlib import Path

from softless.errors import need
from softless.serving.limits import Limits
from softless.serving.opening import opened
from softless.serving.server import Server, bound, check_host
from softless.serving.slide_jobs import Slides


def serve(
    run: str | Path,
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    slide: Sequence[str | Path] = (),
    twin: str | Path | None = None,
    docs: bool = False,
    public: bool = False,
    device: str = "auto",
) -> None:
    """Serve a page to try a model with: drop an image, see the answer, where the model looked, and
    what the image cost.

    The page is for this machine alone, asks no other, and needs no network. Programs send a form
    with the field image to /predict, and get the numbers of `softless predict` as JSON. Images are
    JPEG, PNG or WebP of at most 20 MiB; nothing of them is kept. Slides lie on this machine and are
    named at the start. It answers until Ctrl-C or SIGTERM ends it.

    Args:
        run: the run's folder, a folder of `save_weights` or `local-dir:FOLDER`, or a file of
            `softless export`.
        port: where it listens; 0 takes a port that is free.
        host: the address it listens at; one that other machines reach needs --public.
        slide: slides or other large images that the page offers, looked at as wholes; several
            after --slide.
        twin: another run of the same task and classes, whose answer, time and cost stand beside.
        docs: tell the routes at /docs and /openapi.json.
        public: let other machines reach it; they need the token of the address that is printed.
        device: auto, cpu, cuda, mps.

    Returns:
        Nothing: it answers until a signal comes.

    Raises:
        UsageError: the port is in use, the run answers no images, or the twin does not fit.
        DataError: no such run or slide.
        MissingExtra: fastapi, uvicorn or python-multipart is not installed.
        Interrupted: a signal ended it.

    Examples:
        >>> softless.serve("runs/no_such_run", port=0)
        Traceback (most recent call last):
        softless.errors.DataError: no run folder at runs/no_such_run: ...
    """
    server = server_of(
        run, port=port, host=host, slide=slide, twin=twin, docs=docs, public=public, device=device
    )
    server.serve(lambda: print(f"{server.address}  (Ctrl-C ends it)", file=sys.stderr, flush=True))


def server_of(
    run: str | Path,
    *,
    port: int = 8000,
    host: str = "127.0.0.1",
    slide: Sequence[str | Path] = (),
    twin: str | Path | None = None,
    docs: bool = False,
    public: bool = False,
    device: str = "auto",
    limits: Limits | None = None,
) -> Server:
    """The server of `serve`, which listens and does not answer yet.

    Args:
        limits: of requests, in place of the usual ones.

    Raises:
        UsageError: as `serve`; also DataError and MissingExtra.
    """
    need("fastapi", "uvicorn", "python_multipart")
    check_host(host, public=public)
    listening = bound(host, port)
    try:
        subject = opened(run, twin, device)
        return Server(
            subject,
            listening,
            host,
            lambda turn: Slides(slide, subject.served, turn),
            docs=docs,
            limits=limits,
        )
    except BaseException:
        listening.close()
        raise
