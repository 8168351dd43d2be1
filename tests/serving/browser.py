"""Debian's chromium, without a window, led over a pipe: what people see and do."""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PATIENCE = 60.0  # seconds
PLACES = ("chromium", "chromium-browser", "google-chrome")


def browser_path() -> str | None:
    """Where a browser is, if one is here."""
    return next((path for name in PLACES if (path := shutil.which(name))), None)


class Browser:
    """A browser with one page (Chrome DevTools Protocol, messages ended by NUL)."""

    def __init__(self, profile: Path) -> None:
        path = browser_path()
        assert path is not None
        to_child, self._out = os.pipe()
        self._in, from_child = os.pipe()
        # the protocol speaks at 3 and 4; other numbers may lie there just now
        script = f'exec 3<&{to_child} 4>&{from_child}; exec "$0" "$@"'
        options = [
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
            "--hide-scrollbars",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "about:blank",
        ]
        self.process = subprocess.Popen(
            ["bash", "-c", script, path, *options],
            pass_fds=(to_child, from_child),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_child)
        os.close(from_child)
        self._rest, self._number, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "DOM", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **parameters: Any) -> Any:
        """What a method of the protocol returns; events on the way are kept."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            reply = self._next()
            if reply.get("id") == self._number:
                assert "error" not in reply, (method, reply["error"])
                return reply["result"]
            self.events.append(reply)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._in, 1 << 20)
            assert part, "the browser has ended"
            self._rest += part
        text, _, self._rest = self._rest.partition(b"\0")
        reply: dict[str, Any] = json.loads(text)
        return reply

    def look(self, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        """A window of this size and colour scheme."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=width < 500,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, address: str) -> None:
        """Go to an address, and wait until it is there."""
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        reply = self.call(
            "Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in reply, reply
        return reply["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait for a condition of the page."""
        end = time.monotonic() + PATIENCE
        while not self._holds(condition):
            assert time.monotonic() < end, condition
            time.sleep(0.05)

    def _holds(self, condition: str) -> bool:
        """Whether it does; between two pages nothing does."""
        try:
            return bool(self.run(f"Boolean({condition})"))
        except AssertionError:
            return False

    def choose(self, selector: str, file: Path) -> None:
        """A file for an input, as if the user had chosen it."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(file)])

    def press(self, key: str, code: int = 0) -> None:
        """A key, down and up."""
        text = {"Enter": "\r", "Space": " "}.get(key, key if len(key) == 1 else "")
        for kind in ("keyDown", "keyUp"):
            extra = {"text": text} if text and kind == "keyDown" else {}
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=" " if key == "Space" else key,
                windowsVirtualKeyCode=code,
                **extra,
            )

    def picture(self, path: Path, *, whole: bool = True) -> None:
        """A PNG of the page."""
        options: dict[str, Any] = {"format": "png"}
        if whole:
            size = self.call("Page.getLayoutMetrics")["cssContentSize"]
            options |= {
                "captureBeyondViewport": True,
                "clip": {
                    "x": 0,
                    "y": 0,
                    "width": size["width"],
                    "height": size["height"],
                    "scale": 1,
                },
            }
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", **options)["data"]))

    def requested(self) -> list[str]:
        """The addresses that the page asked for."""
        self.run("1")
        return [
            event["params"]["request"]["url"]
            for event in self.events
            if event.get("method") == "Network.requestWillBeSent"
        ]

    def complaints(self) -> list[str]:
        """What the browser's console was told, but for advice on reading pixels often."""
        self.run("1")
        entries = [
            json.dumps(event["params"])
            for event in self.events
            if event.get("method") in {"Runtime.exceptionThrown", "Log.entryAdded"}
        ]
        return [entry for entry in entries if "Canvas2D: Multiple readback" not in entry]

    def close(self) -> None:
        """End it."""
        self.process.terminate()
        self.process.wait(20)
        os.close(self._out)
        os.close(self._in)


@contextmanager
def browsing(profile: Path) -> Iterator[Browser]:
    """A browser as long as the block lasts."""
    browser = Browser(profile)
    try:
        yield browser
    finally:
        browser.close()
