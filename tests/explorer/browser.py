"""A headless Chromium that tests drive over its DevTools pipe: no package, no port."""

import base64
import json
import os
import pathlib
import select
import shutil
import subprocess
import time

PROGRAM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe",
)  # fmt: skip


class Browser:
    """One page, `with Browser(profile) as page`.

    profile: an empty folder for the browser's own files.
    """

    def __init__(self, profile, timeout=60):
        self._timeout, self._number, self._rest, self.messages = timeout, 0, b"", []
        read, self._write = os.pipe()
        self._read, write = os.pipe()
        self._said = pathlib.Path(profile, "stderr.txt")
        log = self._said.open("wb")
        # The browser reads commands from descriptor 3 and writes answers to 4.
        line = f'exec "$@" 3<&{read} 4>&{write}'
        self._process = subprocess.Popen(
            ["sh", "-c", line, "sh", PROGRAM, *FLAGS, f"--user-data-dir={profile}", "about:blank"],
            pass_fds=(read, write), stdout=subprocess.DEVNULL, stderr=log,
        )  # fmt: skip
        log.close()
        os.close(read)
        os.close(write)
        self._session = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self._session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Performance.enable", timeDomain="threadTicks")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)

    def call(self, method, **params):
        """The result of a DevTools command."""
        self._number += 1
        command = {"id": self._number, "method": method, "params": params}
        if self._session:
            command["sessionId"] = self._session
        os.write(self._write, json.dumps(command).encode() + b"\0")
        end = time.monotonic() + self._timeout
        while True:
            message = self._next(end)
            if message.get("id") == self._number:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']}")
                return message["result"]
            self.messages.append(message)

    def _next(self, end):
        while b"\0" not in self._rest:
            if not select.select([self._read], [], [], max(end - time.monotonic(), 0))[0]:
                raise TimeoutError("Chromium does not answer")
            part = os.read(self._read, 1 << 20)
            if not part:
                raise RuntimeError(f"Chromium has ended: {self._said.read_text(errors='replace')[-2000:]}")
            self._rest += part
        line, self._rest = self._rest.split(b"\0", 1)
        return json.loads(line)

    def size(self, width, height, **features):
        """The window's size, and media features such as prefers_color_scheme="dark"."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        listed = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        self.call("Emulation.setEmulatedMedia", features=listed)

    def open(self, path, fragment=""):
        self.call("Page.navigate", url="about:blank")
        self.call("Page.navigate", url=f"file://{path}{fragment}")
        self.until("document.readyState === 'complete' && typeof explorer !== 'undefined'")

    def run(self, expression):
        """The value of a JavaScript expression, awaited."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise RuntimeError(json.dumps(answer["exceptionDetails"])[:800])
        return answer["result"].get("value")

    def until(self, expression):
        """Waits for an expression to be true."""
        end = time.monotonic() + self._timeout
        while not self.run(expression):
            if time.monotonic() > end:
                raise TimeoutError(expression)
            time.sleep(0.05)

    def script_seconds(self):
        """Time of the page's scripts until now, by the clock of their thread: waiting for a processor is not in it."""
        metrics = self.call("Performance.getMetrics")["metrics"]
        return next(metric["value"] for metric in metrics if metric["name"] == "ScriptDuration")

    def mouse(self, kind, x, y):
        """kind: mousePressed, mouseMoved or mouseReleased."""
        held = {"button": "left", "clickCount": 1} if kind != "mouseMoved" else {"button": "left", "buttons": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)

    def key(self, key):
        for kind in ("keyDown", "keyUp"):
            text = {"text": key if len(key) == 1 else "\r" if key == "Enter" else ""} if kind == "keyDown" else {}
            self.call("Input.dispatchKeyEvent", type=kind, key=key, **text)

    def picture(self, path, whole=False):
        """Writes a screenshot as a PNG, of the window or of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]
        with open(path, "wb") as file:
            file.write(base64.b64decode(data))
