"""A small server of the hub's API, in memory: repositories, commits of whole files, and reading."""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FIRST = "0" * 40


class Hub:
    """Repositories: name -> file -> bytes, and what was asked of the server."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.private: set[str] = set()
        self.messages: list[str] = []
        self.branches: set[str] = set()
        self.written: list[str] = []  # the branch of each commit
        self.tokens: set[str | None] = set()
        self.refuse = 0  # status that every writing request gets

    def commit(self, name: str, files: dict[str, bytes], message: str) -> str:
        self.repositories[name] |= files
        self.messages.append(message)
        content = repr(sorted(self.repositories[name].items())).encode()
        self.commits[name] = hashlib.sha1(content, usedforsecurity=False).hexdigest()
        return self.commits[name]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing."""

    def _answer(self, content: Any, status: int = 200, **headers: str) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _missing(self, code: str) -> None:
        self._answer({"error": "not found"}, 404, X_Error_Code=code)

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if self.path == "/":
            self._answer({})
            return
        if match := re.fullmatch(
            r"/api/models/([\w.-]+/[\w.-]+)(?:/revision/([^?]+))?(?:\?.*)?", self.path
        ):
            name = match[1]
            if name not in self.hub.repositories:
                self._missing("RepoNotFound")
                return
            files = [{"rfilename": file} for file in self.hub.repositories[name]]
            self._answer({"id": name, "sha": self.hub.commits[name], "siblings": files})
            return
        if match := re.fullmatch(r"/api/models/([\w.-]+/[\w.-]+)/tree/[^?]+(?:\?.*)?", self.path):
            self._answer([
                {"type": "file", "path": file, "size": len(content), "oid": FIRST}
                for file, content in self.hub.repositories[match[1]].items()
            ])
            return
        match = re.fullmatch(r"/([\w.-]+/[\w.-]+)/resolve/[^/]+/([^?]+)(?:\?.*)?", self.path)
        content = None if match is None else self.hub.repositories.get(match[1], {}).get(match[2])
        if match is None or content is None:
            self._missing("EntryNotFound")
            return
        tag = f'"{hashlib.sha256(content).hexdigest()}"'
        self._answer(content, ETag=tag, X_Repo_Commit=self.hub.commits[match[1]])

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.hub.tokens.add(self.headers.get("Authorization"))
        if self.hub.refuse:
            self._answer({"error": "You have no right to do that"}, self.hub.refuse)
            return
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            if asked.get("private") or asked.get("visibility") == "private":
                self.hub.private.add(name)
            self.hub.repositories.setdefault(name, {})
            self.hub.commits.setdefault(name, FIRST)
            self._answer({"url": f"{self._address}/{name}"})
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif match := re.fullmatch(r"/api/models/(.+?)/preupload/[^?]+(?:\?.*)?", self.path):
            files = json.loads(body)["files"]
            modes = [
                {"path": file["path"], "uploadMode": "regular", "shouldIgnore": False}
                for file in files
            ]
            self._answer({"files": modes})
        elif match := re.fullmatch(r"/api/models/(.+?)/branch/([^?]+)", self.path):
            self.hub.branches.add(match[2])
            self._answer({})
        elif match := re.fullmatch(r"/api/models/(.+?)/commit/([^?]+)(?:\?.*)?", self.path):
            self.hub.written.append(match[2])
            lines = [json.loads(line) for line in body.decode().splitlines()]
            head = next(line["value"] for line in lines if line["key"] == "header")
            sent = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            name = match[1]
            commit = self.hub.commit(name, sent, head["summary"])
            self._answer({
                "commitUrl": f"{self._address}/{name}/commit/{commit}",
                "commitOid": commit,
            })
        else:
            self._missing("Unknown")

    @property
    def _address(self) -> str:
        return f"http://{self.headers['Host']}"


@contextmanager
def serving() -> Iterator[tuple[Hub, str]]:
    """A hub, and its address."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
