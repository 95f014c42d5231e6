"""A headless Chromium that tests drive over a pipe (Chrome's DevTools protocol), without network.

Standard library only: a package that drives browsers would bring a browser of its own.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from patience import PATIENCE_S

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--proxy-server=127.0.0.1:9", "--host-resolver-rules=MAP * ~NOTFOUND", "--remote-debugging-pipe"),
)
KEYS = {"Enter": (13, "\r"), "Space": (32, " "), "Tab": (9, "")}


class Page:
    """One tab.

    Attributes:
        console: what the page wrote to the console, and its uncaught errors.
        requests: addresses that it asked for.
    """

    def __init__(self, process: subprocess.Popen[bytes], to: int, back: int) -> None:
        self._process, self._to, self._back = process, to, back
        self._number, self._read, self._session = 0, b"", ""
        self.console: list[str] = []
        self.requests: list[str] = []
        targets = self._command("Target.getTargets")["targetInfos"]
        target = next(one["targetId"] for one in targets if one["type"] == "page")
        self._session = self._command("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._command(f"{domain}.enable")

    def _command(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command and wait for its answer, keeping events."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer["error"]
                return dict(answer["result"])

    def _message(self) -> dict[str, Any]:
        end = time.monotonic() + PATIENCE_S
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._back], [], [], max(0, end - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self._back, 2**20)
            assert part, "the browser has ended"
            self._read += part
        line, _, self._read = self._read.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        self._keep(message.get("method"), message.get("params", {}))
        return message

    def _keep(self, event: str | None, details: dict[str, Any]) -> None:
        if event == "Runtime.consoleAPICalled":
            self.console.append(" ".join(str(one.get("value", one.get("description"))) for one in details["args"]))
        elif event == "Runtime.exceptionThrown":
            self.console.append(json.dumps(details["exceptionDetails"]))
        elif event == "Log.entryAdded":
            self.console.append(details["entry"]["text"])
        elif event == "Network.requestWillBeSent":
            self.requests.append(details["request"]["url"])

    def emulate(self, width: int = 1400, dark: bool = False, media: str = "screen") -> None:
        """Set the window's width in pixels, the reader's colour scheme and the medium."""
        size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
        self._command("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def open(self, path: Path) -> None:
        """Open a file and wait until its charts are drawn."""
        self._command("Page.navigate", url=path.as_uri())
        self.evaluate(
            "new Promise((done) => document.readyState === 'complete' ? done() : addEventListener('load', done))"
        )
        self.evaluate("typeof ready === 'undefined' ? 0 : ready.then(() => 0)")

    def evaluate(self, code: str) -> Any:
        """The value of a JavaScript expression, awaited if it is a promise."""
        answer = self._command("Runtime.evaluate", expression=code, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key where the focus is."""
        code, text = KEYS[key]
        parts = {"key": text if key == "Space" else key, "code": key, "windowsVirtualKeyCode": code}
        self._command("Input.dispatchKeyEvent", type="keyDown", text=text, **parts)
        self._command("Input.dispatchKeyEvent", type="keyUp", **parts)

    def click(self, x: float, y: float) -> None:
        """Click at a point of the window."""
        for kind in ("mousePressed", "mouseReleased"):
            self._command("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)


@contextlib.contextmanager
def page(folder: Path) -> Iterator[Page]:
    """Start a browser, and end it.

    Args:
        folder: for its profile.
    """
    assert CHROMIUM is not None
    down, to = os.pipe()
    back, up = os.pipe()
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={folder / 'browser'}", "about:blank"]
    shell = ["bash", "-c", f'exec "$@" 3<&{down} 4>&{up}', "bash", *command]
    with subprocess.Popen(shell, pass_fds=(down, up), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        os.close(down)
        os.close(up)
        try:
            yield Page(process, to, back)
        finally:
            process.terminate()
            os.close(to)
            os.close(back)
