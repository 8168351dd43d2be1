"""A request's body: received within its time and size, and taken apart in memory.

Nothing of it is written under a name that it gives, and no name of it is looked at.
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Any

from softless.serving.limits import MIB, Limits
from softless.serving.refusal import Gone, Refusal

CLOSING = {"Connection": "close"}
LONGEST = 8192  # bytes of the headers of a part
FORM = "send a form (multipart/form-data) whose field image is the file"
ENDINGS = {"JPEG": ".jpg", "PNG": ".png", "WebP": ".webp"}


class Holdings:
    """Bytes of all requests that are held now."""

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0

    def add(self, count: int) -> None:
        """Hold more.

        Raises:
            Refusal: the server holds as much as it may.
        """
        if self.bytes + count > self.limit:
            raise Refusal(
                503, "the server holds as many images as it may: try again", {"Retry-After": "2"}
            )
        self.bytes += count

    def release(self, count: int) -> None:
        """Hold less."""
        self.bytes -= count


@asynccontextmanager
async def received(request: Any, limits: Limits, holdings: Holdings) -> AsyncIterator[bytearray]:
    """The body of a request, held as long as the block lasts.

    Raises:
        Refusal: 413 where it is too large, 408 where it is too slow, 503 where too much is held.
        Gone: the client left.
    """
    _check_length(request.headers.get("content-length"), limits)
    body = bytearray()
    try:
        await _receive(request, limits, holdings, body)
        yield body
    finally:
        holdings.release(len(body))


def _check_length(declared: str | None, limits: Limits) -> None:
    if declared is not None and declared.isdigit() and int(declared) > limits.body:
        raise _too_large(limits)


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, f"the request is larger than {limits.body // MIB} MiB", CLOSING)


async def _receive(request: Any, limits: Limits, holdings: Holdings, body: bytearray) -> None:
    loop = asyncio.get_running_loop()
    end = loop.time() + limits.receiving
    while True:
        try:
            message = await asyncio.wait_for(request.receive(), end - loop.time())
        except (asyncio.TimeoutError, TimeoutError):
            raise Refusal(
                408, f"the request did not come whole within {limits.receiving:.0f} s", CLOSING
            ) from None
        if message["type"] == "http.disconnect":
            raise Gone
        part = message.get("body", b"")
        if len(body) + len(part) > limits.body:
            raise _too_large(limits)
        holdings.add(len(part))
        body += part
        if not message.get("more_body", False):
            return


@dataclass
class Form:
    """The fields of a form: texts, and bytes of files."""

    fields: dict[str, bytes | bytearray] = field(default_factory=dict)
    kinds: dict[str, str] = field(default_factory=dict)  # what a part says of its content

    def image(self) -> bytes | bytearray:
        """The bytes of the field image.

        Raises:
            Refusal: it is not there, or says that it is no image.
        """
        if "image" not in self.fields:
            raise Refusal(422, f"the form has no field image: {FORM}")
        kind = self.kinds.get("image", "")
        if kind and not kind.startswith("image/") and kind != "application/octet-stream":
            raise Refusal(415, "the field image says that it holds something else than an image")
        return self.fields["image"]


def form_of(headers: Mapping[str, str], body: bytes | bytearray, limits: Limits) -> Form:
    """The fields of a body.

    Raises:
        Refusal: 400 where it is no form, is damaged, has too many parts or one field twice; 415 for
            a body of another kind.
    """
    from python_multipart.multipart import parse_options_header

    kind, options = parse_options_header(headers.get("content-type", ""))
    if kind == b"application/json":
        raise Refusal(400, f"JSON is not what is taken: {FORM}")
    if kind != b"multipart/form-data":
        raise Refusal(415, f"the request is of another kind: {FORM}")
    if not options.get(b"boundary"):
        raise Refusal(400, f"the form names no boundary: {FORM}")
    return _Parts(limits).parsed(options[b"boundary"], body)


class _Parts:
    """What the parser tells of the parts of a form."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.form = limits, Form()
        self.count = 0
        self.complete = False
        self._begin()

    def parsed(self, boundary: bytes, body: bytes | bytearray) -> Form:
        from python_multipart.exceptions import FormParserError
        from python_multipart.multipart import MultipartParser

        calls: Any = {
            "on_part_begin": self._begun,
            "on_header_field": lambda data, start, end: self._headed(data[start:end], name=True),
            "on_header_value": lambda data, start, end: self._headed(data[start:end], name=False),
            "on_header_end": self._header_ended,
            "on_headers_finished": self._headers_ended,
            "on_part_data": self._went_on,
            "on_part_end": self._ended,
            "on_end": self._all_ended,
        }
        try:
            parser = MultipartParser(boundary, calls)
            for start in range(0, len(body), MIB):
                parser.write(bytes(body[start : start + MIB]))
            parser.finalize()
        except (FormParserError, ValueError):
            raise Refusal(400, f"the form is damaged: {FORM}") from None
        if not self.complete:
            raise Refusal(400, f"the form ends too early: {FORM}")
        return self.form

    def _begin(self) -> None:
        self.field, self.value, self.header_bytes = b"", b"", 0
        self.headers: dict[bytes, bytes] = {}
        self.name: str | None = None
        self.content = bytearray()

    def _begun(self) -> None:
        self.count += 1
        if self.count > self.limits.parts:
            raise Refusal(400, f"the form has more than {self.limits.parts} parts")
        self._begin()

    def _headed(self, part: bytes, *, name: bool) -> None:
        self.header_bytes += len(part)
        if self.header_bytes > LONGEST:
            raise Refusal(400, "the headers of a part of the form are too long")
        if name:
            self.field += part
        else:
            self.value += part

    def _header_ended(self) -> None:
        self.headers[self.field.lower()] = self.value
        self.field, self.value = b"", b""

    def _headers_ended(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, options = parse_options_header(self.headers.get(b"content-disposition", b""))
        if b"name" not in options:
            raise Refusal(400, "a part of the form has no name")
        self.name = options[b"name"].decode("utf-8", "replace")
        if self.name in self.form.fields:
            raise Refusal(400, "the form has one field twice: send one image at a time")
        kind = self.headers.get(b"content-type", b"").decode("latin-1")
        self.form.kinds[self.name] = kind.partition(";")[0].strip().lower()

    def _went_on(self, data: bytes, start: int, end: int) -> None:
        self.content += data[start:end]

    def _ended(self) -> None:
        if self.name is None:
            raise Refusal(400, f"the form is damaged: {FORM}")
        self.form.fields[self.name] = self.content

    def _all_ended(self) -> None:
        self.complete = True


@contextmanager
def as_file(content: bytes | bytearray, kind: str) -> Iterator[Path]:
    """The bytes as a file that is read like any other, and is gone after the block.

    It lies in memory where the system has that, else under a name of ours.
    """
    if hasattr(os, "memfd_create"):
        number = os.memfd_create("image")
        try:
            content_view = memoryview(content)
            while content_view:
                content_view = content_view[os.write(number, content_view) :]
            yield Path(f"/proc/self/fd/{number}")
        finally:
            os.close(number)
        return
    with NamedTemporaryFile(suffix=ENDINGS[kind]) as file:
        file.write(content)
        file.flush()
        yield Path(file.name)
