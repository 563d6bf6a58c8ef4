"""A headless Chromium, spoken to over its debugging pipe: what a page does when it is really shown."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_AS_3_AND_4 = (
    "import fcntl, os, sys\n"
    "commands, answers = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])\n"
    "os.dup2(commands, 3)\n"
    "os.dup2(answers, 4)\n"
    "os.execv(sys.argv[3], sys.argv[3:])\n"
)
"""The browser reads commands from file 3 and writes answers to file 4. Copies first: one may be the other."""


@dataclass
class Shown:
    """A page as it was shown. complaints: of the console; requests: addresses asked for, its own left out."""

    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


class Browser:
    """A running browser; as a context manager it ends with the block, and its profile goes with it."""

    def __init__(self, program: str) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="kvquant-chromium-")
        to_browser, self._to = os.pipe()
        self._from, from_browser = os.pipe()

        argv = [program, "--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]
        argv += ["--disable-dev-shm-usage", "--no-first-run", f"--user-data-dir={self._folder.name}"]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _AS_3_AND_4, str(to_browser), str(from_browser), *argv, "about:blank"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(to_browser, from_browser),
        )
        os.close(to_browser)
        os.close(from_browser)
        self._left = b""
        self._number = 0
        self._events: list[dict[str, Any]] = []
        target = self._call("Target.createTarget", {"url": "about:blank"})["targetId"]
        attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True})
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._page(f"{domain}.enable")

    def show(self, path: Path, width: int, dark: bool = False) -> Shown:
        """Load a file in a window of this width and wait until it has settled."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._page("Emulation.setEmulatedMedia", {"features": [scheme]})
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._page("Emulation.setDeviceMetricsOverride", metrics)
        self._events.clear()
        url = path.resolve().as_uri()
        self._page("Page.navigate", {"url": url})
        while not any(event["method"] == "Page.loadEventFired" for event in self._events):
            self._events.append(self._read())
        self.evaluate("new Promise(done => requestAnimationFrame(() => setTimeout(done, 50)))")
        return _shown(self._events, url)

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page; promises are awaited."""
        parameters = {"expression": expression, "returnByValue": True, "awaitPromise": True}
        answer = self._page("Runtime.evaluate", parameters)
        if "exceptionDetails" in answer:
            raise AssertionError(answer["exceptionDetails"]["text"])
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """Write the whole page as PNG."""
        answer = self._page("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(answer["data"]))

    def close(self) -> None:
        """End the browser."""
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _page(self, method: str, parameters: dict[str, Any] | None = None) -> dict[str, Any]:
        return self._call(method, parameters, {"sessionId": self._session})

    def _call(
        self, method: str, parameters: dict[str, Any] | None = None, where: dict[str, str] | None = None
    ) -> dict[str, Any]:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters or {}, **(where or {})}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") != self._number:
                self._events.append(answer)
            elif "error" in answer:
                raise AssertionError(f"{method}: {answer['error']['message']}")
            else:
                return dict(answer["result"])

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._left:
            piece = os.read(self._from, 2**16)
            if not piece:
                raise AssertionError(f"the browser ended with status {self._process.wait()}")
            self._left += piece
        message, _, self._left = self._left.partition(b"\0")
        return dict(json.loads(message))


def _shown(events: list[dict[str, Any]], url: str) -> Shown:
    found = Shown()
    for event in events:
        method, values = event["method"], event.get("params", {})
        if method == "Runtime.consoleAPICalled":
            found.complaints.append(json.dumps(values["args"]))
        elif method == "Runtime.exceptionThrown":
            found.complaints.append(values["exceptionDetails"]["text"])
        elif method == "Log.entryAdded":
            found.complaints.append(values["entry"]["text"])
        elif method == "Network.requestWillBeSent" and values["request"]["url"] != url:
            found.requests.append(values["request"]["url"])
    return found
