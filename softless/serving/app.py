"""The routes of the server."""

import asyncio
import json
import logging
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from PIL import Image

from softless.data.pictures import for_people
from softless.report.html import Html, tag
from softless.serving.guard import App, Guard
from softless.serving.headers import TAKEN, checked
from softless.serving.limits import MIB, Limits
from softless.serving.look import Look, png
from softless.serving.looking import answered, looked_at, picture_of
from softless.serving.page import failure, page, script, style
from softless.serving.refusal import Gone, Refusal
from softless.serving.shown import shown
from softless.serving.slide_page import slide_part
from softless.serving.subject import Subject
from softless.serving.uploads import Form, Holdings, form_of, received
from softless.serving.viewed import Shelf
from softless.serving.worker import Died, Full, Job, Worker

_log = logging.getLogger("softless.serving")
THUMBNAIL = 144  # pixels of the longer side of a test image in the page
NOWHERE = "there is nothing here"
FULL = "the server has as many requests as it may: try again"


class Desk:
    """What takes requests to the thread that computes, and brings the answers back.

    Args:
        subject: what is served.
        worker: the thread that computes.
        slides: named at the start.
        limits: of requests.
    """

    def __init__(
        self, subject: Subject, worker: Worker[Subject], slides: Shelf, limits: Limits
    ) -> None:
        self.subject, self.worker, self.slides, self.limits = subject, worker, slides, limits
        self.holdings = Holdings(limits.holding)

    async def form(self, request: Any) -> Form:
        """The form of a request, received and taken apart."""
        async with received(request, self.limits, self.holdings) as body:
            return form_of(request.headers, body, self.limits)

    async def of_image(self, request: Any, work: Callable[[Subject, Any, str | None], Any]) -> Any:
        """What `work` makes of the image of a request, or of the test image that it names.

        Raises:
            Refusal: there is no answer; the reason.
            Gone: the client departure, and the work was ended.
        """
        self.refuse_when_full()
        async with received(request, self.limits, self.holdings) as body:
            form = form_of(request.headers, body, self.limits)
            if "sample" in form.fields:
                return await self.done(request, self._of_sample(form.fields["sample"], work))
            content = form.image()
            header = checked(content, self.limits)
            return await self.done(
                request,
                lambda subject: work(subject, picture_of(subject.served, content, header), None),
            )

    def _of_sample(
        self, text: bytes | bytearray, work: Callable[[Subject, Any, str | None], Any]
    ) -> Callable[[Subject], Any]:
        test = self.subject.test
        number = int(text) if len(text) < 6 and text.isdigit() else -1
        if test is None or not 0 <= number < len(test):
            raise Refusal(404, "there is no such test image")
        return lambda subject: work(subject, test.samples.image(number), test.truth(number))

    def refuse_when_full(self) -> None:
        """Refuse at once what would find no room.

        Raises:
            Refusal: 503.
        """
        if self.worker.full:
            raise Refusal(503, FULL, {"Retry-After": "2"})

    async def done(self, request: Any, work: Callable[[Subject], Any]) -> Any:
        """The answer of a job; it is ended where it takes too long or nobody waits any more.

        Raises:
            Refusal: 503 where there is no room or the thread ended, 504 where it took too long.
            Gone: the client departure.
        """
        try:
            job = self.worker.submit(work)
        except Full:
            raise Refusal(503, FULL, {"Retry-After": "2"}) from None
        outcome = asyncio.wrap_future(job.outcome)
        departure = asyncio.ensure_future(_departure(request))
        try:
            while not outcome.done():
                await asyncio.wait(
                    {outcome, departure}, timeout=0.25, return_when=asyncio.FIRST_COMPLETED
                )
                self._check(job, outcome, departure)
            return self._of(outcome)
        except asyncio.CancelledError:
            raise Refusal(503, "the server is ending", {"Retry-After": "30"}) from None
        finally:
            departure.cancel()
            if not outcome.done():
                self.worker.stop(job)
                outcome.add_done_callback(lambda ended: ended.exception())

    def _check(self, job: Job[Subject], outcome: Any, departure: Any) -> None:
        """Whether it is still waited for.

        Raises:
            Refusal: it takes too long.
            Gone: nobody waits.
        """
        if outcome.done():
            return
        if departure.done():
            raise Gone
        now, limits = time.monotonic(), self.limits
        if job.began is not None and now - job.began > limits.computing:
            raise Refusal(504, f"the image took longer than {limits.computing:.0f} s: it was ended")
        if job.began is None and now - job.submitted > limits.queueing:
            raise Refusal(503, FULL, {"Retry-After": "10"})

    @staticmethod
    def _of(outcome: Any) -> Any:
        try:
            return outcome.result()
        except Died:
            raise Refusal(
                503, "the work on this image was ended: try again", {"Retry-After": "5"}
            ) from None
        except Refusal:
            raise
        except Exception as error:  # noqa: BLE001 - a failed request never ends the server
            raise failed(error) from None


async def _departure(request: Any) -> None:
    """Ends when the client leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


Whole = Callable[..., Any]  # the page around an answer or a slide
HIDDEN: dict[str, Any] = {"include_in_schema": False}


def build(desk: Desk, host: str, *, docs: bool = False, token: str | None = None) -> App:
    """The application: its routes behind the guard.

    Args:
        desk: what answers.
        host: that it listens at.
        docs: whether it tells its routes.
        token: that requests must show.
    """
    from fastapi import FastAPI
    from fastapi.responses import HTMLResponse

    app = FastAPI(
        title="softless serve",
        version="1",
        docs_url=None,
        redoc_url=None,
        openapi_url="/openapi.json" if docs else None,
        redirect_slashes=False,
    )
    names = [viewed.name for viewed in desk.slides.all]

    def full_page(answer: Html | None = None, status: int = 200, slide: Html | None = None) -> Any:
        text = page(desk.subject, names, desk.limits, answer, documented=docs, slide=slide)
        return HTMLResponse(text, status)

    _of_programs(app, desk)
    _of_page(app, desk, full_page)
    _of_slides(app, desk, full_page)
    if docs:
        app.get("/docs", **HIDDEN)(lambda: full_page(slide=_routes(app.openapi())))
    _of_errors(app)
    return Guard(_Caught(app), host, token)


def _of_programs(app: Any, desk: Desk) -> None:
    """What programs ask."""
    from fastapi import Request
    from fastapi.responses import JSONResponse, Response

    @app.get("/healthz", summary="Whether the server answers")
    async def health() -> Response:
        ready = desk.worker.ready.is_set()
        state = "ready" if ready and not desk.worker.busy else "busy" if ready else "starting"
        content = {"status": state, "waiting": desk.worker.waiting, "most": desk.limits.waiting}
        return JSONResponse(content, 200 if ready else 503)

    @app.post(
        "/predict",
        summary="What the model says of an image",
        responses=_responses(desk),
        openapi_extra=_form(desk.limits),
    )
    async def predict(request: Request) -> Response:
        return _json(
            await desk.of_image(
                request, lambda subject, picture, _: answered(subject, picture, desk.limits.memory)
            )
        )


def _of_page(app: Any, desk: Desk, full_page: Whole) -> None:
    """What the page asks."""
    from fastapi import Request
    from fastapi.responses import HTMLResponse, Response

    @app.get("/", **HIDDEN)
    async def home() -> Response:
        answer: Response = full_page()
        return answer

    app.get("/page.css", **HIDDEN)(lambda: Response(style(), media_type="text/css"))
    app.get("/page.js", **HIDDEN)(lambda: Response(script(), media_type="text/javascript"))

    @app.post("/look", **HIDDEN)
    async def look(request: Request) -> Response:
        try:
            looked: Look = await desk.of_image(
                request,
                lambda subject, picture, truth: looked_at(
                    subject, picture, desk.limits.memory, truth
                ),
            )
            text, status, headers = await asyncio.to_thread(shown, looked), 200, {}
        except Refusal as refusal:
            text, status = failure(refusal.sentence), refusal.status
            headers = dict(refusal.headers)
        if request.headers.get("x-part") == "1":
            return HTMLResponse(text, status, headers)
        answer: Response = full_page(text, status)
        answer.headers.update(headers)
        return answer

    @app.get("/samples/{number}", **HIDDEN)
    async def sample(number: int) -> Response:
        test = desk.subject.test
        if test is None or not 0 <= number < len(test):
            raise Refusal(404, NOWHERE)
        content = await asyncio.to_thread(_thumbnail, test.samples, number)
        return Response(content, media_type="image/png")


def _of_slides(app: Any, desk: Desk, full_page: Whole) -> None:
    """What is asked of slides."""
    from fastapi import Request
    from fastapi.responses import Response

    @app.get("/slides/{number}", **HIDDEN)
    async def slide(number: int) -> Response:
        answer: Response = full_page(slide=slide_part(desk.slides.at(number), number))
        return answer

    @app.post("/slides/{number}/look", **HIDDEN)
    async def begin(request: Request, number: int) -> Response:
        desk.slides.at(number)
        fields = (await desk.form(request)).fields
        level = fields.get("level", b"0")
        chosen = int(level) if len(level) < 4 and level.isdigit() else -1
        desk.slides.start(number, chosen, "otsu" if fields.get("tissue") == b"otsu" else "none")
        return Response(status_code=303, headers={"Location": f"/slides/{number}"})

    @app.get("/slides/{number}/state", **HIDDEN)
    async def state(number: int) -> Response:
        viewed = desk.slides.at(number)
        return _json({
            "state": viewed.state,
            "done": viewed.done,
            "total": viewed.total,
            "words": viewed.words,
            "probabilities": dict(viewed.chances),
        })

    @app.get("/slides/{number}/tiles/{halved}/{row}/{column}", **HIDDEN)
    async def tile(number: int, halved: int, row: int, column: int) -> Response:
        content = await asyncio.to_thread(desk.slides.tile, number, halved, row, column)
        return Response(content, media_type="image/jpeg")

    @app.get("/slides/{number}/maps/{index}", **HIDDEN)
    async def overlay(number: int, index: int) -> Response:
        overlays = desk.slides.at(number).overlays
        if not 0 <= index < len(overlays):
            raise Refusal(404, NOWHERE)
        return Response(overlays[index].png, media_type="image/png")


def _of_errors(app: Any) -> None:
    """What is said where there is no answer: a sentence, and no place of this machine."""
    from fastapi import Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse, Response
    from starlette.exceptions import HTTPException

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return JSONResponse(refusal.body, refusal.status, headers=dict(refusal.headers))

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> Response:
        refusal = failed(error)
        return JSONResponse(refusal.body, refusal.status)

    @app.exception_handler(Gone)
    async def gone(_: Request, __: Gone) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(HTTPException)
    async def wrong(_: Request, error: HTTPException) -> Response:
        sentence = "this address takes other methods" if error.status_code == 405 else NOWHERE
        return JSONResponse({"error": sentence}, error.status_code, headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, __: RequestValidationError) -> Response:
        return JSONResponse({"error": NOWHERE}, 404)


def failed(error: Exception) -> Refusal:
    """What is told of an error that nobody foresaw: a number, under which the log has the rest."""
    number = secrets.token_hex(4)
    _log.error("request %s failed: %s", number, error, exc_info=error)
    sentence = f"the server failed at this request (number {number} in its log)"
    return Refusal(500, sentence, number=number)


class _Caught:
    """An application whose unforeseen errors were answered and logged, and end here."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request of ASGI."""
        with suppress(Exception):  # Starlette raises it once more behind the answer
            await self.app(scope, receive, send)


def _json(content: Any) -> Any:
    """JSON, in which no number is other than finite."""
    from fastapi.responses import Response

    text = json.dumps(content, allow_nan=False, ensure_ascii=False)
    return Response(text, media_type="application/json")


def _thumbnail(samples: Any, number: int) -> bytes:
    image: Image.Image = for_people(samples.image(number)).convert("RGB")
    image.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    return png(image)


def _form(limits: Limits) -> dict[str, Any]:
    """What /predict takes, for those who read its schema."""
    image = {
        "type": "string",
        "format": "binary",
        "description": f"{TAKEN}; at most {limits.body // MIB} MiB, {limits.pixels:,} pixels",
    }
    schema = {"type": "object", "required": ["image"], "properties": {"image": image}}
    content = {"multipart/form-data": {"schema": schema}}
    return {"requestBody": {"required": True, "content": content}}


def _responses(desk: Desk) -> dict[int | str, dict[str, Any]]:
    task = desk.subject.served.loaded.task
    says = {
        "detection": "boxes: class, score and bbox (x, y, width, height in pixels) of each",
        "segmentation": "shares of the classes, and label_image as a PNG",
    }.get(task, "probabilities: of each class, as `softless predict` gives them")
    return {
        200: {"description": says},
        400: {"description": "no form, or a damaged one"},
        408: {"description": "the request came too slowly"},
        413: {"description": "too large"},
        415: {"description": "no image of a kind that is taken"},
        422: {"description": "an image that cannot be read"},
        503: {"description": "no room: try again after Retry-After"},
        504: {"description": "took too long, and was ended"},
    }


def _routes(schema: dict[str, Any]) -> Html:
    """The routes as a part of the page; nothing is fetched to show it."""
    cards = [
        tag(
            "div",
            tag("h3", tag("code", f"{method.upper()} {path}")),
            tag("p", operation["summary"]),
            tag(
                "dl",
                [
                    tag("div", tag("dt", code), tag("dd", answer["description"]))
                    for code, answer in operation["responses"].items()
                ],
            ),
            class_="card",
        )
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    return tag(
        "section",
        tag("h2", "Routes", id="routes-heading"),
        tag("p", "For programs: ", tag("a", "openapi.json", href="/openapi.json"), class_="lead"),
        tag("div", cards, class_="cards"),
        aria_labelledby="routes-heading",
    )
