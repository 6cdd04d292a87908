"""A headless Chromium, driven over pipes by the DevTools protocol; shared by tests."""

import base64
import json
import os
import shutil
import subprocess
import sys
from contextlib import contextmanager

import pytest

BROWSER = (
    shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
)
START = """
import fcntl, os, sys
reads, writes = (fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3])
os.dup2(reads, 3)  # where a browser that is driven over pipes reads, and writes to 4
os.dup2(writes, 4)
os.execvp(sys.argv[3], sys.argv[3:])
"""
needs_chromium = pytest.mark.skipif(
    BROWSER is None, reason="needs chromium (apt-get install chromium)"
)


class Page:
    """One page of a running browser.

    Attributes:
        messages: what the console said and which errors were thrown. requests: addresses that were
            asked for.
    """

    def __init__(self, write, read):
        self._write, self._read, self._count, self._rest = write, read, 0, b""
        self.messages, self.requests, self._session = [], [], None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)[
            "sessionId"
        ]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.send(f"{domain}.enable")

    def send(self, method, **params):
        """The result of a command; what happens meanwhile is noted."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._count:
                assert "error" not in answer, answer
                return answer["result"]

    def _next(self):
        while b"\0" not in self._rest:
            part = os.read(self._read, 2**16)
            assert part, "the browser has gone"
            self._rest += part
        line, self._rest = self._rest.split(b"\0", 1)
        message = json.loads(line)
        match message.get("method"):
            case "Network.requestWillBeSent":
                self.requests.append(message["params"]["request"]["url"])
            case "Runtime.consoleAPICalled" | "Runtime.exceptionThrown" | "Log.entryAdded":
                self.messages.append(message["params"])
        return message

    def open(self, address):
        """Load a page to its end."""
        self.send("Page.navigate", url=address)
        while self._next().get("method") != "Page.loadEventFired":
            pass

    def evaluate(self, expression):
        """The value of a JavaScript expression; promises are waited for."""
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def drag(self, start, end):
        """Press the mouse at a point of the window, move it to another, and let go."""
        steps = [("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)]
        for kind, (x, y) in steps:
            self.send(
                "Input.dispatchMouseEvent",
                type=kind,
                x=x,
                y=y,
                button="left",
                buttons=1,
                clickCount=1,
            )

    def press(self, key):
        """A key of the keyboard, such as ArrowRight."""
        for kind in ("keyDown", "keyUp"):
            self.send(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=39
            )

    def screenshot(self):
        """The whole page as PNG."""
        return base64.b64decode(
            self.send("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        )


@contextmanager
def browsing(profile):
    """Yields a Page; the browser keeps its files in `profile` and reaches no network."""
    commands, answers = os.pipe(), os.pipe()
    options = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--hide-scrollbars",
    ]
    options += [
        "--remote-debugging-pipe",
        "--window-size=1200,900",
        "--no-first-run",
        "--disable-component-update",
    ]
    options += [
        "--disable-background-networking",
        "--proxy-server=127.0.0.1:9",
        f"--user-data-dir={profile}",
    ]
    command = [sys.executable, "-c", START, str(commands[0]), str(answers[1]), BROWSER, *options]
    with subprocess.Popen(
        command, pass_fds=(commands[0], answers[1]), stderr=subprocess.DEVNULL
    ) as process:
        os.close(commands[0])
        os.close(answers[1])
        try:
            yield Page(commands[1], answers[0])
        finally:
            process.terminate()
            os.close(commands[1])
            os.close(answers[0])
