"""What every request passes before a route sees it: whose page asks, and with which right; and what
every answer says to the browser.
"""

import hmac
import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from http.cookies import CookieError, SimpleCookie
from typing import Any
from urllib.parse import parse_qs, urlsplit

Message = MutableMapping[str, Any]
App = Callable[[Any, Any, Any], Awaitable[None]]
COOKIE = "softless"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = [
    (b"content-security-policy", POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"no-store"),
]
LONGEST = 2048  # signs of a path with its query
MOST_HEADERS = 32_768  # bytes of all headers of a request


def is_loopback(host: str) -> bool:
    """Whether a host's name is this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Guard:
    """An application behind its checks.

    A browser may be led to ask a server on its own machine by a foreign page, or by a foreign name
    that leads here. Such requests name a foreign Origin or Host.

    Args:
        app: what answers.
        host: that the server listens at.
        token: that every request must show; none on this machine alone.
    """

    def __init__(self, app: App, host: str, token: str | None = None) -> None:
        self.app, self.token = app, token
        self.names = {host.lower(), "localhost"}
        self.open = not is_loopback(host)
        if self.open:
            self.names |= {socket.gethostname().lower(), socket.getfqdn().lower()}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """One request of ASGI."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        headers = list(scope["headers"])

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", []), *HEADERS]
            await send(message)

        if reason := self._refuses(scope, headers):
            await _send(answer, *reason)
        elif self.token is not None and (cookie := self._new_cookie(scope)):
            location = [(b"location", b"/"), (b"set-cookie", cookie.encode())]
            await _send(answer, 303, "the token is kept in a cookie", location)
        else:
            await self.app(scope, receive, answer)

    def _refuses(self, scope: Any, headers: list[tuple[bytes, bytes]]) -> tuple[int, str] | None:
        if len(scope.get("raw_path") or b"") + len(scope["query_string"]) > LONGEST:
            return 414, "the address is too long"
        if sum(len(name) + len(value) for name, value in headers) > MOST_HEADERS:
            return 431, "the headers are too long"
        hosts = _all(headers, b"host")
        if len(hosts) != 1 or not self._is_ours(hosts[0]):
            return 403, "this server does not go by that name: ask it by the address it printed"
        origins = _all(headers, b"origin")
        if any(not _same(origin, hosts[0]) for origin in origins):
            return 403, "another page asks: requests of foreign pages are refused"
        if self.token is not None and not self._allowed(scope, headers):
            return 401, "give the token that the server printed at its start"
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname
        except ValueError:
            return False
        if name is None or "@" in host:
            return False
        if name in self.names or is_loopback(name):
            return True
        try:
            ipaddress.ip_address(name)  # a number cannot be made to lead elsewhere
        except ValueError:
            return False
        return self.open

    def _allowed(self, scope: Any, headers: list[tuple[bytes, bytes]]) -> bool:
        tokens = [_query(scope)]
        tokens += [text.removeprefix("Bearer ") for text in _all(headers, b"authorization")]
        for text in _all(headers, b"cookie"):
            try:
                cookie = SimpleCookie(text).get(COOKIE)
            except CookieError:
                continue
            tokens.append("" if cookie is None else cookie.value)
        return any(
            hmac.compare_digest(text.encode(), (self.token or "").encode()) for text in tokens
        )

    def _new_cookie(self, scope: Any) -> str:
        """What keeps the token of the address that was printed; empty for other addresses."""
        if scope["method"] != "GET" or scope["path"] != "/" or not _query(scope):
            return ""
        return f"{COOKIE}={self.token}; Path=/; HttpOnly; SameSite=Strict"


def _query(scope: Any) -> str:
    try:
        return parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=10).get(
            "token", [""]
        )[0]
    except ValueError:
        return ""


def _all(headers: list[tuple[bytes, bytes]], name: bytes) -> list[str]:
    return [value.decode("latin-1") for key, value in headers if key.lower() == name]


def _same(origin: str, host: str) -> bool:
    return origin.lower() in {f"http://{host}".lower(), f"https://{host}".lower()}


async def _send(
    send: Any, status: int, sentence: str, extra: list[tuple[bytes, bytes]] | None = None
) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *(extra or []),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
