"""A folder served on this machine and a page of it in headless Chromium, until the page says how its check ended."""

from __future__ import annotations

import json
import subprocess
import tempfile
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

# The page in a frame of its own host, and word of it when it has ended.
FRAME = """<!doctype html><iframe width=1000 height=800></iframe><script>
const frame = document.querySelector('iframe');
frame.src = location.hash.slice(1);
const timer = setInterval(() => {
    const page = frame.contentDocument, exit = page?.body?.dataset.exit;
    if (exit === undefined) return;
    clearInterval(timer);
    const found = {exit: Number(exit), title: page.title, line: page.getElementById('verdict').innerText};
    found.text = page.querySelector('pre').textContent;
    found.foreign = performance.getEntriesByType('resource').map(entry => entry.name);
    fetch('/ended', {method: 'POST', body: JSON.stringify(found)});
}, 50);
</script>"""
GPU = ("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan")


class _Handler(SimpleHTTPRequestHandler):
    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def __init__(self, *arguments: Any, found: list[dict[str, Any]], ended: threading.Event, **more: Any) -> None:
        self.found, self.ended = found, ended
        super().__init__(*arguments, **more)

    def log_message(self, *_: Any) -> None:
        """Nothing on stderr."""

    def do_GET(self) -> None:
        if self.path != "/frame":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(FRAME.encode())
        return None

    def do_POST(self) -> None:
        self.found.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()
        self.ended.set()


def ended_page(browser: str, root: Path, address: str, *flags: str, timeout: float = 120) -> dict[str, Any]:
    """What a page below `root` says at its end: exit, title, line, text."""
    found: list[dict[str, Any]] = []
    ended = threading.Event()
    handler = partial(_Handler, directory=str(root), found=found, ended=ended)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server, tempfile.TemporaryDirectory() as profile:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{server.server_port}/frame#/{address}"
        command = [browser, "--headless=new", "--no-sandbox", f"--user-data-dir={profile}", *flags, place]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            try:
                assert ended.wait(timeout), f"{address} did not end within {timeout} s"
            finally:
                process.terminate()
                process.wait()
                server.shutdown()
    return found[0]
